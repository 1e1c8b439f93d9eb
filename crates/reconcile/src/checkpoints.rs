//! The loop that remembers how far each cluster's files have come, and looks whether its folder still names the volume that is
//! on record. So an older copy that is put in a volume's place, or another volume, is noticed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use model::{Checkpoint, ClusterId, Wish};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::Reconciler;
use crate::ticks::Ticks;

/// PostgreSQL makes a checkpoint every five minutes where there is something to bring to the disk.
const LOOK_EVERY: Duration = Duration::from_secs(5);

pub(crate) async fn run(house: &Arc<Reconciler>, stop: &CancellationToken) {
    let mut ticks = Ticks::every(LOOK_EVERY, stop);
    // The files are an engine's, and whoever reads them may wait for it: each reading is heard when it is over.
    let mut readings: HashMap<ClusterId, JoinHandle<Option<Checkpoint>>> = HashMap::new();
    while ticks.next().await {
        let snapshot = house.store.snapshot();
        for entry in snapshot.iter().filter(|entry| entry.seen.is_initialized) {
            let id = entry.cluster.id;
            compare(house, id).await;
            if !house.host.is_running(id) {
                continue;
            }
            match readings.remove(&id) {
                Some(slow) if !slow.is_finished() => {
                    readings.insert(id, slow);
                    continue;
                }
                Some(read) => remember(house, id, read.await.ok().flatten()).await,
                None => {}
            }
            let host = house.host.clone();
            readings.insert(id, spawn_blocking(move || host.checkpoint(id)));
        }
        readings.retain(|id, _| snapshot.get(id).is_some());
    }
}

/// Writes a checkpoint that is newer than what is on record.
pub(crate) async fn remember(house: &Reconciler, id: ClusterId, found: Option<Checkpoint>) {
    let Some(found) = found else {
        return;
    };
    let known = house.store.snapshot().get(&id).and_then(|entry| entry.seen.volume.checkpoint);
    if known.is_some_and(|known| known == found || found.is_older_than(&known)) {
        return;
    }
    let written = house.write(move |store| store.note(id, |seen| seen.volume.checkpoint = Some(found))).await;
    if let Err(cause) = written {
        tracing::warn!(cluster = %id, %cause, "could not write how far the cluster's files have come");
    }
}

/// What every cluster's files said when its engine was stopped. To be called after the last one was.
pub(crate) async fn remember_all(house: &Reconciler) {
    let ids: Vec<ClusterId> = house.store.snapshot().iter().map(|entry| entry.cluster.id).collect();
    for id in ids.into_iter().filter(|id| !house.host.is_running(*id)) {
        remember(house, id, house.host.checkpoint(id)).await;
    }
}

/// Writes what does not agree, or that it does again.
async fn compare(house: &Reconciler, id: ClusterId) {
    let host = house.host.clone();
    let looked = spawn_blocking(move || host.check_volume(id)).await;
    let alarm = looked.ok().and_then(Result::err).map(|refused| refused.to_string());
    // Looked at afterwards: the folder of one that is being deleted names nothing.
    let exists = |entry: &&Arc<store::Entry>| entry.cluster.wish != Wish::Deleted;
    let known = house.store.snapshot().get(&id).filter(exists).map(|entry| entry.seen.volume.alarm.clone());
    if known.is_none_or(|known| known == alarm) {
        return;
    }
    if let Some(reason) = &alarm {
        tracing::error!(cluster = %id, %reason, "the cluster's folder does not agree with the sealed state");
    }
    let written = house.write(move |store| store.note(id, |seen| seen.volume.alarm = alarm)).await;
    if let Err(cause) = written {
        tracing::warn!(cluster = %id, %cause, "could not write that a cluster's folder does not agree");
    }
}
