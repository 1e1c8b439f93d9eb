//! A new data key for a cluster: its volume is copied into another while the engine works, and then the other counts.
//!
//! Until the marker is replaced the old volume is whole and the new one is nobody's; after it, the other way round. A
//! crash at any moment leaves one of the two, and the next start destroys what is left of the other.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keys::{DataKey, WrappedKey};
use model::{Cluster, ClusterId, Encryption, StorageLimit, VolumeId};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Host, Slot, blocking, lock, to_its_end};
use crate::companion::Companion;
use crate::copying::{self, Looks, Progress, Stopped};
use crate::inside::Inside;
use crate::places::{DiskRoom, Marker, Owner, Places, disk_room, make_folder};
use crate::volume::{self, Unlocked};
use crate::{Error, syscall};

/// Passes over a volume that is in use. Each has less to do, if the engine writes less than the disk can.
const PASSES_MAX: u32 = 4;
/// So little that it is copied with the engine stopped.
const REST_BYTES: u64 = 64 << 20;
/// For a copy to notice that it is given up, and to lock what it unlocked.
const GIVE_UP_MAX: Duration = Duration::from_secs(60);

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// The copy is there; a switch may follow.
    Done,
    /// Somebody wanted to start, stop or destroy the cluster. What was copied serves the next try.
    GivenUp,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyProgress {
    /// Bytes that were copied, at most `total_bytes`.
    pub done_bytes: u64,
    /// Bytes of the volume when the copy began.
    pub total_bytes: u64,
}

/// A volume that is to take the place of the one in use.
pub(super) struct NextVolume {
    pub(super) generation: u32,
    pub(super) kind: Encryption,
    pub(super) looks: Mutex<Looks>,
    pub(super) progress: Progress,
    /// It was copied from end to end at least once.
    pub(super) is_whole: AtomicBool,
    is_given_up: AtomicBool,
    is_idle: watch::Sender<bool>,
}

impl NextVolume {
    pub(super) fn volume(&self) -> VolumeId {
        VolumeId { encryption: self.kind, generation: self.generation }
    }
}

/// A copy that may begin: both volumes are unlocked.
struct Begun {
    next: Arc<NextVolume>,
    from: PathBuf,
    /// Unlocked by the copy itself, where the cluster sleeps.
    source: Option<Unlocked>,
    target: Unlocked,
}

/// What a copy needs of keys. Asked for before the cluster's turn is taken, since services may be slow.
struct CopyKeys {
    /// Of the volume in use, where the cluster sleeps.
    source: Option<DataKey>,
    target: DataKey,
    /// Where the volume is not there yet.
    wrapped: Option<WrappedKey>,
}

impl Host {
    /// Copies into a volume of the next generation, with a new data key and as the posture encrypts new clusters, while
    /// the engine works or sleeps. Whoever wants to start, stop or destroy the cluster is not held up: the copy is given
    /// up then, and what was copied serves the next try. Again after [`Copied::Done`] it brings the copy up to date,
    /// which shortens the switch.
    pub async fn copy_volume(self: &Arc<Self>, cluster: &Cluster) -> Result<Copied, Error> {
        let (host, cluster) = (self.clone(), cluster.clone());
        to_its_end(async move {
            let slot = host.slot(cluster.id);
            let Ok(_only_one) = slot.copying.clone().try_lock_owned() else {
                return Err(Error::Refused("the cluster's volume is being copied already".to_owned()));
            };
            let keys = host.copy_keys(&slot, &cluster).await?;
            let Some(begun) = host.begin_copy(&slot, &cluster, keys).await? else {
                return Ok(Copied::GivenUp);
            };
            let next = begun.next.clone();
            let copied = blocking(move || Ok(begun.copy())).await;
            next.is_idle.send_replace(true);
            match copied? {
                Ok(()) => Ok(Copied::Done),
                Err(Stopped::GivenUp) => Ok(Copied::GivenUp),
                Err(Stopped::Failed(cause)) => Err(cause),
            }
        })
        .await
    }

    /// How far the copy of a cluster's volume is; `None` where none was begun since Chitin started.
    pub fn copy_progress(&self, id: ClusterId) -> Option<CopyProgress> {
        let next = lock(&self.slot(id).next).clone()?;
        let total_bytes = next.progress.total_bytes.load(Ordering::Relaxed);
        let is_whole = next.is_whole.load(Ordering::Relaxed);
        let done_bytes = next.progress.done_bytes.load(Ordering::Relaxed).min(total_bytes);
        Some(CopyProgress { done_bytes: if is_whole { total_bytes } else { done_bytes }, total_bytes })
    }

    /// Whether the volume was copied, so that a switch may follow.
    pub fn is_copied(&self, id: ClusterId) -> bool {
        self.copied(id).is_some()
    }

    /// The volume that the cluster would be switched to.
    pub fn copied(&self, id: ClusterId) -> Option<VolumeId> {
        let slot = self.slot(id);
        let next = lock(&slot.next);
        next.as_ref().filter(|next| next.is_whole.load(Ordering::Relaxed)).map(|next| next.volume())
    }

    /// Ends a copy, if one is under way, and forgets it. What was copied is destroyed before the next.
    pub async fn abandon_copy(&self, id: ClusterId) -> Result<(), Error> {
        let slot = self.slot(id);
        let _turn = slot.turn.lock().await;
        Self::give_up_copy(&slot).await?;
        *lock(&slot.next) = None;
        Ok(())
    }

    async fn copy_keys(self: &Arc<Self>, slot: &Slot, cluster: &Cluster) -> Result<CopyKeys, Error> {
        let id = cluster.id;
        let next = lock(&slot.next).clone();
        let mut kept = None;
        if let Some(next) = next {
            let folder = self.places.volume(id, next.generation);
            let opened = match blocking(move || volume::wrapped_key(&folder)).await {
                Ok(wrapped) => self.keys.unwrap(id, &wrapped).await.map_err(Error::from),
                Err(damaged) => Err(damaged),
            };
            match opened {
                Ok(key) => kept = Some(key),
                // Of a key whose service does not answer, or does not let us in, nothing is known; it may soon.
                Err(Error::DataKey(cause)) if cause.is_silence() => return Err(cause.into()),
                // Its key cannot be had any more, so the copy is worth nothing.
                Err(_) => *lock(&slot.next) = None,
            }
        }
        let (target, wrapped) = if let Some(key) = kept {
            (key, None)
        } else {
            let key = DataKey::random();
            let wrapped = self.keys.wrap(cluster, &key).await?;
            self.must_open(id, &wrapped, &key).await?;
            (key, Some(wrapped))
        };
        let source = if self.is_running(id) {
            None
        } else {
            let wrapped = self.wrapped_key(id).await?;
            Some(self.keys.unwrap(id, &wrapped).await?)
        };
        Ok(CopyKeys { source, target, wrapped })
    }

    /// A key that was wrapped and cannot be unwrapped would cost the data.
    pub(super) async fn must_open(
        &self,
        id: ClusterId,
        wrapped: &WrappedKey,
        key: &DataKey,
    ) -> Result<(), Error> {
        let again = self.keys.unwrap(id, wrapped).await?;
        if again.expose() == key.expose() {
            return Ok(());
        }
        Err(keys::KeyFailure::DoesNotOpen { key: wrapped.key.to_string() }.into())
    }

    /// Takes the cluster's turn for as long as it takes to unlock both volumes.
    async fn begin_copy(
        self: &Arc<Self>,
        slot: &Slot,
        cluster: &Cluster,
        keys: CopyKeys,
    ) -> Result<Option<Begun>, Error> {
        let _turn = slot.turn.lock().await;
        let Some(marker) = self.marker(cluster.id)? else {
            return Err(Error::Refused(
                "the cluster was not completely made, so it has no volume to copy".into(),
            ));
        };
        let reserve_bytes = self.must_have_room()?.reserve_bytes;
        fail::fail_point!("copy-begun");
        let running = self.running(cluster.id).ok();
        let base = running.and_then(|running| lock(&running.volume).as_ref().map(|held| held.base.clone()));
        if base.is_none() {
            // One that died left its volume unlocked.
            self.stop_in(slot).await?;
        }
        let (places, id, owner) = (self.places.clone(), cluster.id, Owner::of(cluster));
        let limit = cluster.storage();
        let (from, source) = match (base, keys.source) {
            (Some(base), _) => (base, None),
            (None, Some(key)) => {
                let (folder, companion) = (places.volume(id, marker.generation), self.companion.clone());
                let unlock =
                    move || volume::unlock(&companion, &folder, marker.encryption, &key, owner, limit);
                let unlocked = blocking(unlock).await?;
                (unlocked.base.clone(), Some(unlocked))
            }
            // It was stopped since its key was not needed.
            (None, None) => return Ok(None),
        };
        let next = lock(&slot.next).clone();
        let kind = self.posture.encryption_of_new();
        let base = from.clone();
        let (target, wrapped, companion) = (keys.target, keys.wrapped, self.companion.clone());
        let opened = blocking(move || {
            let opened = match (next, wrapped) {
                (Some(next), None) => {
                    let folder = places.volume(id, next.generation);
                    // What fits into the one fits into the other, whatever the limit says by now.
                    let unlocked =
                        volume::unlock(&companion, &folder, next.kind, &target, owner, StorageLimit::MAX);
                    unlocked.map(|unlocked| Some((next, unlocked)))
                }
                (None, Some(wrapped)) => {
                    let made = (&*companion, &places, id, marker);
                    make_next(made, kind?, (&target, &wrapped), (owner, limit), (&base, reserve_bytes))
                        .map(Some)
                }
                // Somebody destroyed the copy, or began one, while we asked for its key.
                (Some(_), Some(_)) | (None, None) => Ok(None),
            };
            if !matches!(opened, Ok(Some(_)))
                && let Some(source) = source
            {
                source.lock()?;
                return Ok((opened?, None));
            }
            Ok((opened?, source))
        })
        .await?;
        let (Some((next, target)), source) = opened else {
            return Ok(None);
        };
        next.is_given_up.store(false, Ordering::Relaxed);
        next.is_idle.send_replace(false);
        *lock(&slot.next) = Some(next.clone());
        Ok(Some(Begun { next, from, source, target }))
    }

    /// Gives up every copy that is under way; what was copied serves the next try. The disk below has nothing left for them.
    pub fn give_up_copies(&self) {
        let slots: Vec<Arc<Slot>> = lock(&self.slots).values().cloned().collect();
        for next in slots.iter().filter_map(|slot| lock(&slot.next).clone()) {
            next.is_given_up.store(true, Ordering::Relaxed);
        }
    }

    /// Wraps the data key of a copy anew, so that no earlier key opens it either. A copy whose key cannot be had any more
    /// is destroyed. To be called with the cluster's turn.
    pub(super) async fn rewrap_next(&self, slot: &Slot, cluster: &Cluster) -> Result<(), Error> {
        let Some(next) = lock(&slot.next).clone() else {
            return Ok(());
        };
        let (id, folder) = (cluster.id, self.places.volume(cluster.id, next.generation));
        let rewrapped = async {
            let place = folder.clone();
            let old = blocking(move || volume::wrapped_key(&place)).await?;
            let key = self.keys.unwrap(id, &old).await?;
            let new = self.keys.wrap(cluster, &key).await?;
            self.must_open(id, &new, &key).await?;
            blocking(move || volume::keep_wrapped_key(&folder, &new)).await
        };
        match rewrapped.await {
            Ok(()) => Ok(()),
            Err(Error::DataKey(cause)) if cause.is_silence() => Err(cause.into()),
            Err(cause) => {
                tracing::warn!(cluster = %cluster.handle(), %cause, "a copied volume is destroyed: its data key cannot be wrapped anew");
                Self::give_up_copy(slot).await?;
                *lock(&slot.next) = None;
                let places = self.places.clone();
                blocking(move || volume::destroy(&places, id, next.generation)).await
            }
        }
    }

    /// Ends a copy that is under way and waits until it has locked what it unlocked. To be called with the cluster's turn.
    pub(super) async fn give_up_copy(slot: &Slot) -> Result<(), Error> {
        let Some(next) = lock(&slot.next).clone() else {
            return Ok(());
        };
        next.is_given_up.store(true, Ordering::Relaxed);
        let mut is_idle = next.is_idle.subscribe();
        match timeout(GIVE_UP_MAX, is_idle.wait_for(|is_idle| *is_idle)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Unready(format!(
                "a copy of its volume did not end within {} seconds; the disk is probably stuck",
                GIVE_UP_MAX.as_secs()
            ))),
        }
    }
}

impl Begun {
    /// The passes over the volume in use; then what was unlocked for them is locked, whatever they say.
    fn copy(self) -> Result<(), Stopped> {
        let passed = self.passes();
        let locked = self.target.lock();
        let source = self.source.map_or(Ok(()), Unlocked::lock);
        passed?;
        locked.and(source)?;
        self.next.is_whole.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn passes(&self) -> Result<(), Stopped> {
        // The engine's own reads and writes go first, where the disk's scheduler heeds that.
        let _priority = syscall::LowPriority::of_this_thread();
        let next = &self.next;
        let mut looks = lock(&next.looks);
        for count in 0..PASSES_MAX {
            next.progress.done_bytes.store(0, Ordering::Relaxed);
            let passed =
                copying::pass(&self.from, &self.target.base, &mut looks, &next.progress, &next.is_given_up)?;
            if count == 0 {
                fail::fail_point!("copy-first-pass", |_| Ok(()));
            }
            if passed.written_bytes <= REST_BYTES {
                break;
            }
        }
        Ok(())
    }
}

/// Makes the volume that is to be copied into, its key first.
fn make_next(
    (companion, places, id, current): (&Companion, &Places, ClusterId, Marker),
    kind: Encryption,
    (key, wrapped): (&DataKey, &WrappedKey),
    (owner, limit): (Owner, StorageLimit),
    (base, reserve_bytes): (&Path, u64),
) -> Result<(Arc<NextVolume>, Unlocked), Error> {
    volume::destroy_others(places, id, current.generation)?;
    let generation = current.generation.checked_add(1).unwrap_or(1);
    let folder = places.volume(id, generation);
    let used_bytes = copying::used_bytes(&Inside::at(base)?)?;
    must_have_room(&places.cluster(id), used_bytes, reserve_bytes)?;
    make_folder(&folder, 0o711)?;
    let made = (|| {
        volume::keep_wrapped_key(&folder, wrapped)?;
        fail::fail_point!("copy-keyed");
        let wal_bytes = volume::wal_used_bytes(base)?;
        let unlocked = volume::create(companion, &folder, kind, key, owner, (limit, wal_bytes))?;
        unlocked.receive(&folder, kind, owner)?;
        Ok(unlocked)
    })();
    let unlocked = match made {
        Ok(unlocked) => unlocked,
        Err(cause) => {
            // Best effort: what is left is destroyed before the next copy.
            let _ = volume::destroy(places, id, generation);
            return Err(cause);
        }
    };
    fail::fail_point!("copy-made");
    let progress = Progress::default();
    progress.total_bytes.store(used_bytes, Ordering::Relaxed);
    let next = NextVolume {
        generation,
        kind,
        looks: Mutex::default(),
        progress,
        is_whole: AtomicBool::new(false),
        is_given_up: AtomicBool::new(false),
        is_idle: watch::channel(true).0,
    };
    Ok((Arc::new(next), unlocked))
}

/// Refuses a copy for which there is no room, or which would take from what the machine keeps for what runs.
fn must_have_room(folder: &Path, used_bytes: u64, reserve_bytes: u64) -> Result<(), Error> {
    let DiskRoom { free_bytes, .. } = disk_room(folder).map_err(Error::file("look at", folder))?;
    let needed_bytes = used_bytes.saturating_add(used_bytes / 10).saturating_add(reserve_bytes);
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(Error::NoRoom { used_bytes, needed_bytes, free_bytes, path: folder.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_has_no_room_is_refused_with_numbers() {
        let folder = tempfile::tempdir().unwrap();
        must_have_room(folder.path(), 1, 0).unwrap();
        let refused = must_have_room(folder.path(), 1_000_000_000_000_000, 7).unwrap_err().to_string();
        assert!(refused.contains("1100000000000007 free bytes"), "a tenth more, and the reserve: {refused}");
        assert!(must_have_room(folder.path(), 1, u64::MAX / 2).is_err(), "the reserve counts");
        assert!(refused.contains(&folder.path().display().to_string()), "{refused}");
    }
}
