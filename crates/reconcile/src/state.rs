//! The loop that looks after the state itself: whether it can be written, whether it lies where it should, and whether it is as
//! new as the clusters on the disk.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{OnDisk, StateMark};
use model::{ClusterId, Wish};
use store::{Entry, Snapshot};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::Reconciler;
use crate::ticks::Ticks;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// So often what belongs to no cluster's document is marked, at most: each change of the state is counted.
const MARK_EVERY: Duration = Duration::from_secs(60);
/// Most folders that are marked at a look: each waits for the disk.
const MARKED_MAX: usize = 100;
/// Most clusters that an alarm names.
const NAMED_MAX: usize = 5;

/// What was written into the folders of clusters.
#[derive(Default)]
struct Marked {
    /// What each folder says of its cluster's document.
    revisions: HashMap<ClusterId, u64>,
    /// How far the state had come when it was last written, and when that was.
    commits: u64,
    at: Option<Instant>,
}

pub(crate) async fn run(house: &Arc<Reconciler>, stop: &CancellationToken) {
    let mut ticks = Ticks::every(LOOK_EVERY, stop);
    let mut marked = Marked::default();
    while ticks.next().await {
        let house = house.clone();
        let looked = spawn_blocking(move || {
            house.store.look_after();
            mark(&house, &mut marked);
            marked
        });
        match looked.await {
            Ok(kept) => marked = kept,
            Err(panic) => {
                tracing::error!(%panic, "the look after the state broke off");
                marked = Marked::default();
            }
        }
    }
}

/// Compares the state with what the disk tells of it, once, before anything is marked anew.
pub(crate) async fn compare(house: &Arc<Reconciler>) {
    let house = house.clone();
    let compared = spawn_blocking(move || {
        let (snapshot, commits) = (house.store.snapshot(), house.store.commits());
        let on_disk = house.host.marks();
        let Some(reason) = why_older(&snapshot, commits, &on_disk) else { return };
        house.store.tell_that_it_is_older(reason);
        // Another cluster must not get the routing id, and with it the OS user, of one that lies there.
        let highest = on_disk.iter().filter_map(|found| found.routing_id).max();
        if let Some(Err(cause)) = highest.map(|highest| house.store.skip_routing_ids(highest)) {
            tracing::error!(%cause, "the routing ids of clusters that the state does not know could not be set aside");
        }
    });
    if let Err(panic) = compared.await {
        tracing::error!(%panic, "the state could not be compared with the disk");
    }
}

/// Writes into the folders of clusters how far the state has come, where their documents were changed since; and into one of them
/// once in a while where something else was, such as a key of the API that was revoked.
fn mark(house: &Reconciler, marked: &mut Marked) {
    let (snapshot, commits) = (house.store.snapshot(), house.store.commits());
    let changed = |entry: &&Arc<Entry>| {
        entry.seen.is_initialized && marked.revisions.get(&entry.cluster.id) != Some(&entry.cluster.revision)
    };
    let mut due: Vec<_> = snapshot.iter().filter(changed).take(MARKED_MAX).cloned().collect();
    let is_time = marked.at.is_none_or(|at| at.elapsed() >= MARK_EVERY);
    if due.is_empty() && commits > marked.commits && is_time {
        due.extend(snapshot.iter().find(|entry| entry.seen.is_initialized).cloned());
    }
    if !due.is_empty() {
        (marked.commits, marked.at) = (commits, Some(Instant::now()));
    }
    for entry in due {
        let (id, revision) = (entry.cluster.id, entry.cluster.revision);
        match house.host.mark(id, StateMark { commits, revision }) {
            Ok(true) => {
                marked.revisions.insert(id, revision);
            }
            Ok(false) => {}
            // Where there is no room it is tried again; until then an older state would be noticed by its other clusters.
            Err(cause) => {
                tracing::debug!(cluster = %id, %cause, "the state could not be marked in its folder");
            }
        }
    }
    marked.revisions.retain(|id, _| snapshot.get(id).is_some());
}

/// Says which clusters on the disk are newer than the state, or unknown to it.
fn why_older(snapshot: &Snapshot, commits: u64, on_disk: &[OnDisk]) -> Option<String> {
    let (mut newer, mut unknown) = (Vec::new(), Vec::new());
    let there: HashSet<ClusterId> = on_disk.iter().map(|found| found.id).collect();
    let is_gone = |entry: &&Arc<Entry>| {
        entry.seen.is_initialized && entry.cluster.wish != Wish::Deleted && !there.contains(&entry.cluster.id)
    };
    let gone: Vec<String> =
        snapshot.iter().filter(is_gone).map(|entry| entry.cluster.name.to_string()).collect();
    for OnDisk { id, routing_id, mark } in on_disk.iter().copied() {
        let is_later = mark.is_some_and(|mark| mark.commits > commits);
        match snapshot.get(&id) {
            Some(entry) if is_later || mark.is_some_and(|mark| mark.revision > entry.cluster.revision) => {
                newer.push(entry.cluster.name.to_string());
            }
            // The rest of a deletion, which is finished.
            None if snapshot.deleted_by_id(&id).is_some() => {}
            None if is_later
                || routing_id.is_some_and(|number| number.get() >= snapshot.next_routing_id()) =>
            {
                newer.push(id.to_string());
            }
            None if routing_id.is_some() => unknown.push(id.to_string()),
            // As it should be; or half made by a program that was killed.
            Some(_) | None => {}
        }
    }
    let mut reason = String::new();
    for (names, what) in [
        (newer, "clusters on the disk are newer than the state"),
        (unknown, "the state knows nothing of clusters on the disk"),
        (gone, "nothing of clusters of the state is on the disk, which may not be mounted"),
    ] {
        if names.is_empty() {
            continue;
        }
        let separator = if reason.is_empty() { "" } else { "; " };
        let more = names.len().saturating_sub(NAMED_MAX);
        let shown = names[..names.len() - more].join(", ");
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        let _ = write!(reason, "{separator}{what}: {shown}{rest}");
    }
    (!reason.is_empty()).then_some(reason)
}
