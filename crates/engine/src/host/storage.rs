//! What clusters store, and what the machine has left for them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::{ClusterId, INTERNAL_ROLE, StorageLimit, StorageUse};
use tokio::time::timeout;

use super::{Host, Slot, blocking, lock};
use crate::places::{DiskRoom, disk_room};
use crate::running::Running;
use crate::volume::{self, Limits, Measured};
use crate::{Error, process};

/// The machine keeps one in so many bytes of the disk below, at most [`RESERVE_BYTES_MAX`] and, unless the disk is small, at
/// least [`RESERVE_BYTES_MIN`].
const RESERVE_PART: u64 = 50;
const RESERVE_BYTES_MIN: u64 = 1 << 30;
const RESERVE_BYTES_MAX: u64 = 32 << 30;
/// Of a small disk, one in so many.
const RESERVE_PART_MAX: u64 = 10;
/// What write-ahead logs may still grow by is kept beside that: of the disk at most one in so many bytes.
const LOGS_PART: u64 = 4;
/// The machine lets clusters grow again when so much more than its reserve is free: one in so many bytes of the reserve.
const AGAIN_PART: u64 = 10;
/// A volume that is only watched may be busy, or change under the count, so many times, one after the other.
const UNMEASURED_MAX: u32 = 5;
/// Processes of one engine that are looked at: its sessions and its workers.
const PROCESSES_MAX: usize = 2_048;
/// For sessions to begin in all databases.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// For an engine to take that it is full.
const RESTRAIN_MAX: Duration = Duration::from_secs(10);

/// What the disk below all clusters has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineRoom {
    /// The data directory.
    pub path: PathBuf,
    /// Its disk.
    pub total_bytes: u64,
    /// What everybody may still write.
    pub free_bytes: u64,
    /// With less than this no cluster grows and none is made: what runs needs the rest to go on working. It has what the
    /// write-ahead logs of running engines may grow by even then.
    pub reserve_bytes: u64,
    /// Nothing may grow, since there was less until now.
    pub is_frozen: bool,
}

impl MachineRoom {
    /// Whether nothing may grow.
    pub fn is_used_up(&self) -> bool {
        self.is_frozen || self.free_bytes < self.reserve_bytes
    }

    /// Whether nothing may grow from now on: with less than the reserve, and then until there is clearly more.
    pub fn is_to_be_frozen(&self) -> bool {
        let more_bytes = if self.is_frozen { self.reserve_bytes / AGAIN_PART } else { 0 };
        self.free_bytes < self.reserve_bytes.saturating_add(more_bytes)
    }
}

impl Host {
    /// What the disk below has left.
    ///
    /// # Errors
    ///
    /// It cannot be asked.
    pub fn machine_room(&self) -> Result<MachineRoom, Error> {
        let path = self.places.clusters();
        let DiskRoom { total_bytes, free_bytes } = disk_room(&path).map_err(Error::file("look at", &path))?;
        let slots: Vec<Arc<Slot>> = lock(&self.slots).values().cloned().collect();
        let running = slots.iter().filter_map(|slot| lock(&slot.running).clone());
        let may_grow =
            |running: Arc<Running>| Some(log_bytes(&(*lock(&running.measured))?, running.log_bytes_max));
        let logs_bytes = running.filter_map(may_grow).sum();
        let reserve_bytes = reserve_bytes(total_bytes, logs_bytes);
        Ok(MachineRoom { path, total_bytes, free_bytes, reserve_bytes, is_frozen: self.is_frozen() })
    }

    /// Whether nothing may grow.
    pub fn is_frozen(&self) -> bool {
        self.is_frozen.load(Ordering::Relaxed)
    }

    /// Lets nothing grow any more, or again.
    pub fn set_frozen(&self, is_frozen: bool) {
        self.is_frozen.store(is_frozen, Ordering::Relaxed);
    }

    /// What the disk below has left. Refuses what would take from the reserve.
    pub(super) fn must_have_room(&self) -> Result<MachineRoom, Error> {
        let room = self.machine_room()?;
        if room.is_used_up() {
            let MachineRoom { path, free_bytes, reserve_bytes, .. } = room;
            return Err(Error::ReserveReached { path, free_bytes, reserve_bytes });
        }
        Ok(room)
    }

    /// Measures a running cluster, and holds it to its limit where its file system can; while nothing may grow to what it has.
    /// Nothing where it does not run, or is just being started.
    ///
    /// # Errors
    ///
    /// It cannot be measured. One that is only watched counts as above its limit when that happens again and again.
    pub async fn storage(
        self: &Arc<Self>,
        id: ClusterId,
        limit: StorageLimit,
    ) -> Result<Option<Measured>, Error> {
        let Ok(running) = self.running(id) else {
            return Ok(None);
        };
        let Some((base, server)) =
            lock(&running.volume).as_ref().map(|volume| (volume.base.clone(), volume.server()))
        else {
            return Ok(None);
        };
        if !running.is_settled.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let folder = self.places.volume(id, running.on.generation);
        let kind = running.on.encryption;
        let limits = Limits { limit, started: running.started, is_frozen: self.is_frozen() };
        let run = running.clone();
        let measured = blocking(move || {
            let looked_at =
                [Some(run.jailer), server].into_iter().flatten().filter(|_| volume::is_watched(kind));
            let processes: Vec<u32> =
                looked_at.flat_map(|process| process::family(process, PROCESSES_MAX)).collect();
            let giving = &mut *lock(&run.giving);
            volume::measure(&folder, &base, &processes, kind, limits, giving)
        })
        .await;
        let measured = match measured {
            Ok(measured) => {
                running.unmeasured.store(0, Ordering::Relaxed);
                measured
            }
            // That we can open nothing says nothing about the cluster.
            Err(cause) if cause.is_want_of_descriptors() => return Err(cause),
            Err(cause) => {
                let before = running.unmeasured.fetch_add(1, Ordering::Relaxed);
                if !volume::is_watched(kind) || before < UNMEASURED_MAX || running.has_exited() {
                    return Err(cause);
                }
                tracing::error!(cluster = %id, %cause, "what the cluster stores cannot be measured; it counts as more than its limit");
                Measured { usage: volume::endless(limit), is_read_only: None, is_given_more: false }
            }
        };
        *lock(&running.measured) = Some(measured.usage);
        if measured.is_given_more {
            self.keep_open(id).await;
        }
        Ok(Some(measured))
    }

    /// Takes back what an engine that has just started found free and did not need, before anybody is let in.
    pub(super) async fn settle_storage(&self, running: &Arc<Running>, limit: StorageLimit) {
        let (folder, run) = (self.places.volume(running.id, running.on.generation), running.clone());
        let (place, kind) = (folder.clone(), running.on.encryption);
        if blocking(move || volume::is_tight(&place, kind, limit)).await.unwrap_or(false) {
            self.keep_open(running.id).await;
        }
        let limits = Limits { limit, started: running.started, is_frozen: self.is_frozen() };
        let settled =
            blocking(move || volume::settle(&folder, run.on.encryption, limits, &mut lock(&run.giving)));
        if let Err(cause) = settled.await {
            // It is tried again when it is measured.
            tracing::warn!(cluster = %running.id, %cause, "could not hold the cluster to its storage limit");
        }
        running.is_settled.store(true, Ordering::SeqCst);
    }

    /// Opens a session in each database while there is room, so that others find the small file that the first one writes.
    async fn keep_open(&self, id: ClusterId) {
        let opened = async { self.administration(id).await?.everywhere("SELECT 1").await };
        match timeout(OPEN_MAX, opened).await {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => {
                tracing::debug!(cluster = %id, %cause, "a full cluster has no room for sessions to begin");
            }
            Err(_) => tracing::debug!(cluster = %id, "a full cluster opens sessions too slowly"),
        }
    }

    /// What a running cluster stored when it was last measured.
    pub fn last_storage(&self, id: ClusterId) -> Option<StorageUse> {
        *lock(&self.running(id).ok()?.measured)
    }

    /// Makes the transactions of a running cluster read-only unless they say otherwise and cuts its sessions, so that what
    /// they were storing is given back; or lets it write as before. Another run of it writes as before.
    ///
    /// # Errors
    ///
    /// The engine did not take it within ten seconds.
    pub async fn restrain(&self, id: ClusterId, is_over: bool) -> Result<(), Error> {
        let late = |_| Error::Unready("it did not take its limit in time".to_owned());
        timeout(RESTRAIN_MAX, self.restrain_now(id, is_over)).await.map_err(late)?
    }

    async fn restrain_now(&self, id: ClusterId, is_over: bool) -> Result<(), Error> {
        let administration = self.administration(id).await?;
        // Each by itself: a change of the system's settings stands in no transaction.
        let set = if is_over {
            "SET default_transaction_read_only = on"
        } else {
            "RESET default_transaction_read_only"
        };
        administration.batch(&format!("ALTER SYSTEM {set}")).await?;
        administration.batch("SELECT pg_catalog.pg_reload_conf()").await?;
        if is_over {
            administration
                .batch(&format!(
                    "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
                     WHERE backend_type = 'client backend' AND usename <> '{INTERNAL_ROLE}'"
                ))
                .await?;
        }
        Ok(())
    }
}

/// What an engine's write-ahead log may still grow by while nothing else does.
fn log_bytes(usage: &StorageUse, bytes_max: u64) -> u64 {
    let half = usage.wal_limit_bytes.unwrap_or(0) / 2;
    half.min(bytes_max).saturating_sub(usage.wal_used_bytes.unwrap_or(0))
}

fn reserve_bytes(total_bytes: u64, logs_bytes: u64) -> u64 {
    let own_bytes = (total_bytes / RESERVE_PART)
        .clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX)
        .min(total_bytes / RESERVE_PART_MAX);
    own_bytes.saturating_add(logs_bytes.min(total_bytes / LOGS_PART))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_grows_below_the_reserve_and_everything_again_when_there_is_clearly_more() {
        let freezes = |free_bytes, is_frozen| {
            let path = PathBuf::new();
            MachineRoom { path, total_bytes: 1_000, free_bytes, reserve_bytes: 100, is_frozen }
                .is_to_be_frozen()
        };
        assert!(!freezes(100, false) && freezes(99, false));
        assert!(freezes(100, true) && freezes(109, true), "not again and again at the edge");
        assert!(!freezes(110, true), "it ends by itself");
    }

    #[test]
    fn the_reserve_fits_the_disk() {
        let gib = |gib: u64| gib << 30;
        assert_eq!(reserve_bytes(gib(250), 0), gib(5));
        assert_eq!(reserve_bytes(gib(250), gib(3)), gib(8), "what logs may grow by");
        assert_eq!(reserve_bytes(gib(200), gib(900)), gib(54));
        assert_eq!(reserve_bytes(gib(100_000), 0), gib(32));
        assert_eq!(reserve_bytes(gib(20), 0), gib(1));
        assert_eq!(reserve_bytes(gib(2), 0), gib(2) / 10);
    }
}
