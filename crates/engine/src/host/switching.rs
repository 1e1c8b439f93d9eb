//! The switch of a cluster to the volume that was copied: the one step after which the other data key counts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use keys::DataKey;
use model::{Cluster, StorageLimit, VolumeId};

use super::{Host, KeyUse, NextVolume, Slot, admitted_before, blocking, lock, to_its_end};
use crate::Error;
use crate::control_file;
use crate::copying::{self, Stopped};
use crate::places::{Marker, Owner};
use crate::postgres::Postgres;
use crate::volume::{self, Unlocked};

impl Host {
    /// Stops the engine, copies what changed since the copy, makes the copied volume the one that counts, and destroys
    /// the old key and volume. The engine stays stopped. Where it fails before the last moment, the old volume counts as
    /// if nothing had happened. Refused where this was not copied.
    pub async fn switch_volume(self: &Arc<Self>, cluster: &Cluster, to: VolumeId) -> Result<KeyUse, Error> {
        let (host, cluster) = (self.clone(), cluster.clone());
        to_its_end(async move {
            let slot = host.slot(cluster.id);
            let _turn = slot.turn.lock().await;
            let is_it = |next: &Arc<NextVolume>| next.is_whole.load(Ordering::Relaxed) && next.volume() == to;
            let next = lock(&slot.next).clone().filter(is_it);
            let (Some(next), Some(marker)) = (next, host.marker(cluster.id)?) else {
                return Err(Error::Refused(
                    "the cluster's volume was not copied; copy it, then switch".into(),
                ));
            };
            host.switch_in(&slot, &cluster, marker, &next).await
        })
        .await
    }

    async fn switch_in(
        self: &Arc<Self>,
        slot: &Slot,
        cluster: &Cluster,
        old: Marker,
        next: &Arc<NextVolume>,
    ) -> Result<KeyUse, Error> {
        let (id, places) = (cluster.id, self.places.clone());
        let new_folder = places.volume(id, next.generation);
        // Services are asked while the engine still works.
        let (from, to) = (places.volume(id, old.generation), new_folder.clone());
        let (from, to) =
            blocking(move || Ok((volume::wrapped_key(&from)?, volume::wrapped_key(&to)?))).await?;
        let (old_key, new_key) = (self.keys.unwrap(id, &from).await?, self.keys.unwrap(id, &to).await?);
        // The cluster's key may be another than when the copy began.
        let wrapped = self.keys.wrap(cluster, &new_key).await?;
        self.must_open(id, &wrapped, &new_key).await?;
        let (folder, kept) = (new_folder.clone(), wrapped.clone());
        blocking(move || volume::keep_wrapped_key(&folder, &kept)).await?;

        // An engine that could not be started again is not stopped.
        let postgres = self.postgres_of(id).await?;
        self.stop_in(slot).await?;
        fail::fail_point!("switch-stopped");
        let source = self.ended_cleanly(slot, (cluster, &postgres), old, &old_key).await?;
        let (last, owner, companion) = (next.clone(), Owner::of(cluster), self.companion.clone());
        blocking(move || {
            let unlocked =
                volume::unlock(&companion, &new_folder, last.kind, &new_key, owner, StorageLimit::MAX);
            let target = match unlocked {
                Ok(target) => target,
                Err(cause) => {
                    source.lock()?;
                    return Err(cause);
                }
            };
            let copied = last_pass(&last, &source, &target, &new_folder);
            let (one, other) = (source.lock(), target.lock());
            copied.and(one).and(other)
        })
        .await
        .inspect_err(|_| {
            // Whatever went wrong, the next copy trusts nothing of this one.
            *lock(&slot.next) = None;
        })?;

        let marker = Marker { encryption: next.kind, generation: next.generation, ..old };
        let text = serde_json::to_vec(&marker).map_err(|cause| Error::Unready(cause.to_string()))?;
        let path = places.marker(id);
        blocking(move || Ok(keys::write_atomically(&path, &text)?)).await?;
        *lock(&slot.next) = None;
        fail::fail_point!("switch-marked");
        let destroyed = blocking(move || {
            volume::shred_key(&places.volume(id, old.generation))?;
            fail::fail_point!("switch-shredded");
            volume::destroy(&places, id, old.generation)
        });
        if let Err(cause) = destroyed.await {
            tracing::error!(
                cluster = %cluster.handle(), %cause,
                "the cluster uses its new data key, but what was encrypted with the old one could not be destroyed; it is \
                 tried again when Chitin starts"
            );
        }
        fail::fail_point!("switch-destroyed");
        Ok(wrapped.into())
    }

    /// Unlocks the volume of an engine that has ended as it should. One that crashed is started once more: only a volume
    /// to which nothing must be added has everything in its files.
    async fn ended_cleanly(
        self: &Arc<Self>,
        slot: &Slot,
        (cluster, postgres): (&Cluster, &Arc<Postgres>),
        marker: Marker,
        key: &DataKey,
    ) -> Result<Unlocked, Error> {
        for is_last in [false, true] {
            let (folder, key) = (self.places.volume(cluster.id, marker.generation), key.clone());
            let (owner, companion, limit) = (Owner::of(cluster), self.companion.clone(), cluster.storage());
            let unlock = move || volume::unlock(&companion, &folder, marker.encryption, &key, owner, limit);
            let volume = blocking(unlock).await?;
            let (volume, is_clean) = blocking(move || {
                // One that has no such file, or one that nobody can read, is not clean.
                let is_clean = control_file::checkpoint(&volume.base)
                    .and_then(|_| control_file::is_shut_down(&volume.base));
                Ok((volume, is_clean))
            })
            .await?;
            if matches!(is_clean, Ok(true)) {
                return Ok(volume);
            }
            if is_last || is_clean.is_err() {
                blocking(move || volume.lock()).await?;
                let says = is_clean.map_or_else(
                    |cause| cause.to_string(),
                    |_| "its files say that it was not shut down".to_owned(),
                );
                return Err(Error::Unready(format!(
                    "it did not end cleanly, so its volume cannot be switched: {says}"
                )));
            }
            let admitted = admitted_before(&volume.base);
            self.launch(slot, (cluster, postgres), (marker.volume(), volume), &admitted).await?;
            self.stop_in(slot).await?;
        }
        Err(Error::Unready("it did not end cleanly".to_owned()))
    }
}

/// The pass that counts: nobody writes either volume. Everything is on the disk and compared when it returns.
fn last_pass(
    next: &NextVolume,
    source: &Unlocked,
    target: &Unlocked,
    folder: &std::path::Path,
) -> Result<(), Error> {
    let mut looks = lock(&next.looks);
    let is_given_up = std::sync::atomic::AtomicBool::new(false);
    let passed = copying::pass(&source.base, &target.base, &mut looks, &next.progress, &is_given_up)
        .map_err(|stopped| match stopped {
            Stopped::Failed(cause) => cause,
            Stopped::GivenUp => Error::Unready("the last pass was given up".to_owned()),
        })?;
    fail::fail_point!("switch-copied");
    target.sync(folder)?;
    fail::fail_point!("switch-synced");
    copying::compare(&source.base, &target.base, &passed.written)
}
