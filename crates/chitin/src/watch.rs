//! Ends sessions that a change took the ground from: an address no longer allowed, a cluster to be deleted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gateway::{Cut, SessionFacts};
use model::{ClusterId, Wish};
use store::{Snapshot, Store};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::presence::Presence;

/// Should a change be missed, it is looked again after this.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Watches until `stop`.
pub async fn run(
    store: Arc<Store>,
    presence: Arc<Presence>,
    directory: Arc<Directory>,
    stop: CancellationToken,
) {
    let mut changes = store.changes();
    let mut revisions = HashMap::new();
    loop {
        changes.mark_unchanged();
        let snapshot = store.snapshot();
        let now: HashMap<ClusterId, u64> =
            snapshot.iter().map(|entry| (entry.cluster.id, entry.cluster.revision)).collect();
        // Observations change often and concern no session.
        if now != revisions {
            let count = presence.cut(|facts| verdict(&snapshot, facts));
            if count > 0 {
                tracing::info!(sessions = count, "ended sessions that may not stay");
            }
            presence.retain(|id| now.contains_key(id));
            revisions = now;
        }
        directory.tidy();
        tokio::select! {
            () = stop.cancelled() => return,
            changed = timeout(LOOK_EVERY, changes.changed()) => if let Ok(Err(_)) = changed { return },
        }
    }
}

fn verdict(snapshot: &Snapshot, facts: &SessionFacts) -> Option<Cut> {
    match snapshot.get(&facts.cluster) {
        None => Some(Cut::Deleted),
        Some(entry) if entry.cluster.wish == Wish::Deleted => Some(Cut::Deleted),
        Some(entry) if !entry.cluster.admits_sql(facts.address) => Some(Cut::Address),
        Some(_) => None,
    }
}
