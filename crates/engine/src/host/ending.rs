//! How engines end: stopped and locked, or destroyed with their keys.

use std::sync::Arc;

use model::{Cluster, ClusterId, RoutingId};

use super::{Host, Slot, blocking, lock, to_its_end};
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
            return Ok(());
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
        let locked = blocking(move || {
            // Names that it could reach tell about it while it sleeps.
            let _ = inner_network::write_hosts(&etc, &[]);
            if let Ok(run) = Inside::at(&run) {
                run.remove(SOCKET);
                run.remove(&format!("{SOCKET}.lock"));
            }
            let locked = volume.map_or(Ok(()), Unlocked::lock);
            // Of a volume that was lost a part may be gone that is to be undone.
            if is_lost { locked.or_else(|_| volume::lock_left(&folder, kind)) } else { locked }
        })
        .await;
        if let Some(groups) = &self.groups {
            groups.remove(running.routing_id);
        }
        *lock(&slot.running) = None;
        locked
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
        self.stop_in(slot).await?;
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
