//! Ends sessions that a change, or the time, took the ground from: an address no longer allowed, a line of an allowlist
//! that has expired, an endpoint or a peering that is gone, a cluster that is private now or to be deleted, a key that was
//! revoked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gateway::directory::Directory as _;
use gateway::{Cut, SessionFacts};
use model::{Clock, ClusterId, Visibility, Way, Wish};
use store::{Snapshot, Store};
use time::OffsetDateTime;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::presence::Presence;

/// Should a change be missed, it is looked again after this.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// After a line has expired: clocks and timers round differently.
const GRACE: time::Duration = time::Duration::milliseconds(2);

/// Watches until `stop`.
pub async fn run(
    store: Arc<Store>,
    presence: Arc<Presence>,
    directory: Arc<Directory>,
    clock: Arc<dyn Clock>,
    mut jumps: tokio::sync::watch::Receiver<u64>,
    stop: CancellationToken,
) {
    let mut changes = store.changes();
    let mut revisions = HashMap::new();
    // The next moment at which a line of an allowlist ends by itself, as seen when it was still to come.
    let mut next_expiry: Option<OffsetDateTime> = None;
    loop {
        changes.mark_unchanged();
        let (snapshot, now) = (store.snapshot(), clock.now());
        // Of observations only what was seen of keys concerns sessions.
        let seen: HashMap<ClusterId, (u64, bool)> = snapshot
            .iter()
            .map(|entry| (entry.cluster.id, (entry.cluster.revision, entry.seen.keys.denied.is_some())))
            .collect();
        if next_expiry.is_some_and(|end| end <= now) || seen != revisions {
            let count = presence.cut(|facts| verdict(&snapshot, &directory, facts));
            if count > 0 {
                tracing::info!(sessions = count, "ended sessions that may not stay");
            }
            presence.retain(|id| seen.contains_key(id));
            revisions = seen;
        }
        directory.tidy();
        next_expiry = directory.next_expiry(now);
        let until_next = next_expiry.and_then(|end| Duration::try_from(end - clock.now() + GRACE).ok());
        let patience = until_next.map_or(LOOK_EVERY, |left| left.min(LOOK_EVERY));
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = jumps.changed() => {}
            changed = timeout(patience, changes.changed()) => if let Ok(Err(_)) = changed { return },
        }
    }
}

/// Why a session may not stay.
pub(crate) fn verdict(snapshot: &Snapshot, directory: &Directory, facts: &SessionFacts) -> Option<Cut> {
    let cluster = match snapshot.get(&facts.cluster) {
        None => return Some(Cut::Deleted),
        Some(entry) if entry.cluster.wish == Wish::Deleted => return Some(Cut::Deleted),
        Some(entry) if entry.seen.keys.hindrance(&entry.cluster.keys).is_some() => {
            return Some(Cut::KeyRevoked);
        }
        Some(entry) => &entry.cluster,
    };
    if directory.admits(facts.cluster, &facts.origin) {
        return None;
    }
    Some(match facts.origin.way {
        Way::Public if cluster.network.visibility == Visibility::Private => Cut::Private,
        Way::Public => Cut::Address,
        Way::Endpoint(_) => Cut::Endpoint,
        Way::Private(_) => Cut::Peering,
    })
}
