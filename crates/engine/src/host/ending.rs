//! How engines end: stopped and locked, or destroyed with their keys.

use std::sync::Arc;

use model::{Cluster, ClusterId, RoutingId};

use super::{Host, Left, Slot, blocking, lock, to_its_end};
use crate::connector::SOCKET;
use crate::inside::Inside;
use crate::places::remove_folder;
use crate::volume::{self, Unlocked};
use crate::{Error, control_file, inner_network, leftovers};

impl Host {
    /// Stops the engine and locks its volume. Does nothing where it is stopped.
    pub async fn stop(self: &Arc<Self>, id: ClusterId) -> Result<(), Error> {
        let host = self.clone();
        to_its_end(async move {
            let slot = host.slot(id);
            let _turn = slot.turn.lock().await;
            host.stop_in(&slot).await
        })
        .await
    }

    /// Has every session of a running engine go on that somebody has stopped: one that stands still holds up all that waits for it.
    pub fn let_sessions_go_on(&self, id: ClusterId) {
        if let Ok(running) = self.running(id) {
            running.let_sessions_go_on();
        }
    }

    /// Stops an engine that cannot bring anything to the disk any more, and locks its volume.
    pub async fn stop_at_once(self: &Arc<Self>, id: ClusterId) -> Result<(), Error> {
        let host = self.clone();
        to_its_end(async move {
            let slot = host.slot(id);
            let _turn = slot.turn.lock().await;
            host.end_in(&slot, false).await
        })
        .await
    }

    pub(super) async fn stop_in(&self, slot: &Slot) -> Result<(), Error> {
        self.end_in(slot, true).await
    }

    async fn end_in(&self, slot: &Slot, can_write: bool) -> Result<(), Error> {
        Self::give_up_copy(slot).await?;
        let Some(running) = lock(&slot.running).clone() else {
            return self.lock_left(slot).await;
        };
        let is_lost = running.lost().is_some();
        if is_lost {
            lock(&running.volume).as_mut().map(Unlocked::give_up);
            running.end_at_once().await;
        } else {
            running.end(can_write).await;
        }
        let volume = lock(&running.volume).take();
        let (run, etc) = (self.places.run(running.routing_id), self.etc(running.id));
        if let Some(volume) = volume.as_ref().filter(|_| !is_lost) {
            let base = volume.base.clone();
            // One that cannot be read says nothing; the next start reads it again.
            *lock(&slot.checkpoint) = blocking(move || control_file::checkpoint(&base)).await.ok();
        }
        let folder = self.places.volume(running.id, running.on.generation);
        let kind = running.on.encryption;
        let files = volume.as_ref().map(Unlocked::files).unwrap_or_default();
        let place = folder.clone();
        let locked = blocking(move || {
            // Names that it could reach tell about it while it sleeps.
            let _ = inner_network::write_hosts(&etc, &[]);
            if let Ok(run) = Inside::at(&run) {
                run.remove(SOCKET);
                run.remove(&format!("{SOCKET}.lock"));
            }
            let locked = volume.map_or(Ok(()), Unlocked::lock);
            // Of a volume that was lost a part may be gone that is to be undone.
            if is_lost { locked.or_else(|_| volume::lock_left(&place, kind, &[])) } else { locked }
        })
        .await;
        if let Some(groups) = &self.groups {
            groups.remove(running.routing_id);
        }
        *lock(&slot.running) = None;
        if locked.is_err() {
            *lock(&slot.left) = Some(Left { folder, kind, files });
        }
        locked
    }

    /// Locks what could not be locked before, if there is anything.
    async fn lock_left(&self, slot: &Slot) -> Result<(), Error> {
        let Some(left) = lock(&slot.left).clone() else {
            return Ok(());
        };
        let folder = left.folder.clone();
        blocking(move || volume::lock_left(&left.folder, left.kind, &left.files)).await?;
        self.companion.forget(&folder);
        *lock(&slot.left) = None;
        Ok(())
    }

    /// What the kernel says is still unlocked of clusters that ran: each with what it says. For the last words of a program that
    /// ends.
    pub async fn still_unlocked(self: &Arc<Self>) -> Vec<(ClusterId, String)> {
        let host = self.clone();
        let look = move || {
            let slots: Vec<_> = lock(&host.slots).iter().map(|(id, slot)| (*id, slot.clone())).collect();
            let look = |(id, slot): (ClusterId, Arc<Slot>)| Some((id, host.unlocked_in(id, &slot)?));
            Ok(slots.into_iter().filter_map(look).collect())
        };
        blocking(look).await.unwrap_or_default()
    }

    fn unlocked_in(&self, id: ClusterId, slot: &Slot) -> Option<String> {
        let left = lock(&slot.left).clone();
        let of_running = || {
            let running = lock(&slot.running).clone()?;
            let files = lock(&running.volume).as_ref().map(Unlocked::files).unwrap_or_default();
            Some((self.places.volume(id, running.on.generation), running.on.encryption, files))
        };
        let (folder, kind, files) =
            left.map(|left| (left.folder, left.kind, left.files)).or_else(of_running)?;
        volume::still_unlocked(&folder, kind, &files)
    }

    /// Destroys a cluster: its key first, then its engine and data. Safe to repeat.
    pub async fn destroy(self: &Arc<Self>, cluster: &Cluster) -> Result<(), Error> {
        let (host, id, routing_id) = (self.clone(), cluster.id, cluster.routing_id);
        to_its_end(async move {
            let slot = host.slot(id);
            let _turn = slot.turn.lock().await;
            host.destroy_in(&slot, id, Some(routing_id)).await
        })
        .await
    }

    /// Destroys a cluster that no document speaks of.
    pub async fn destroy_stray(self: &Arc<Self>, id: ClusterId) -> Result<(), Error> {
        let host = self.clone();
        to_its_end(async move {
            let slot = host.slot(id);
            let _turn = slot.turn.lock().await;
            let routing_id = host.places.read_marker(id).map(|marker| marker.routing_id);
            host.destroy_in(&slot, id, routing_id).await
        })
        .await
    }

    pub(super) async fn destroy_in(
        &self,
        slot: &Slot,
        id: ClusterId,
        routing_id: Option<RoutingId>,
    ) -> Result<(), Error> {
        let places = self.places.clone();
        blocking(move || leftovers::shred_all(&places, id)).await?;
        // What it would still write is destroyed anyway.
        self.end_in(slot, false).await?;
        *lock(&slot.next) = None;
        let (places, companion) = (self.places.clone(), self.companion.clone());
        blocking(move || {
            leftovers::end_processes_of(&places.cluster(id));
            volume::destroy_all(&places, id)?;
            companion.forget(&places.cluster(id));
            routing_id.map_or(Ok(()), |routing_id| remove_folder(&places.run(routing_id)))
        })
        .await
    }

    /// Stops every engine and locks every volume.
    pub async fn shutdown(self: &Arc<Self>) {
        let ids: Vec<ClusterId> = lock(&self.slots).keys().copied().collect();
        let mut stops = tokio::task::JoinSet::new();
        for id in ids {
            let host = self.clone();
            stops.spawn(async move { (id, host.stop(id).await) });
        }
        while let Some(stopped) = stops.join_next().await {
            if let Ok((id, Err(cause))) = stopped {
                tracing::error!(cluster = %id, %cause, "could not be locked");
            }
        }
    }
}
