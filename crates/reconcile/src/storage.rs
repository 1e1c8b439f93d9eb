//! The loop that holds running clusters to their storage limits, and sees file systems that cannot be written to any more.
//!
//! Where a volume's own file system is the wall, the loop only moves it: what is kept back is given once something was refused, a
//! larger limit counts at once, and while the machine's reserve is reached nobody grows. Where nothing is a wall (the operator's
//! own file system, gocryptfs) the loop measures, and stops a cluster from writing: at its limit transactions are read-only
//! unless they say otherwise, which is for who wants to delete, and a little above it the engine is stopped until the limit is
//! larger ([`model::StorageSeen::is_stopped`]).
//!
//! Each cluster is measured and held in a task of its own: an engine that does not answer delays nobody else's turn.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::{Measured, Run};
use model::{ClusterId, Enforcement, Fullness, StorageLimit, StorageUse};
use store::Entry;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::ticks::Ticks;
use crate::{Reconciler, roles};

/// So often the machine and the clusters with a wall of their own are looked at, which is a few system calls.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After a measurement that took long, so many times the time is left for other work.
const PAUSE_OF_ITS_TIME: u32 = 10;
/// But no more than this, and near the limit as much as it took.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Faster than any cluster stores: one that has much room left is not counted again before it can have used that up.
const FASTEST_BYTES_PER_SECOND: u64 = 4 << 30;
/// What a cluster that nothing but stopping it holds may store more, from when the machine had nothing left to give: what it was just
/// storing, and beside it what its log grows to while somebody deletes.
const FROZEN_GROWTH_BYTES_MAX: u64 = 128 << 20;
/// For a cluster that is stopped because it goes on storing to end its sessions and tell its roles.
const LAST_WORDS_MAX: Duration = Duration::from_secs(5);

/// What the loop knows of one cluster.
#[derive(Default)]
struct Watch {
    /// A look at it that is under way.
    looking: Option<JoinHandle<Looked>>,
    next: Option<Instant>,
    /// Its limit at the last look, and whether nothing might grow then: where that is another by now the next look is due.
    held_to: Option<(StorageLimit, bool)>,
    /// The run whose sessions were cut, and that writes only where it is asked for.
    restrained: Option<Run>,
    /// What it stored when the machine had nothing left to give.
    frozen_bytes: Option<u64>,
}

/// What a look came to.
struct Looked {
    restrained: Option<Run>,
    pause: Duration,
    used_bytes: Option<u64>,
}

pub(crate) async fn run(house: &Arc<Reconciler>, stop: &CancellationToken) {
    let mut ticks = Ticks::every(LOOK_EVERY, stop);
    let mut watches: HashMap<ClusterId, Watch> = HashMap::new();
    // Of a program before this one some may be stopped.
    let mut may_be_stopped = true;
    while ticks.next().await {
        let is_frozen = look_at_machine(house);
        if is_frozen {
            house.host.give_up_copies();
            may_be_stopped = true;
        } else if may_be_stopped {
            may_be_stopped = !let_run_again(house).await;
        }
        let snapshot = house.store.snapshot();
        watches.retain(|id, _| snapshot.get(id).is_some());
        for id in house.host.running_clusters() {
            if let Some(entry) = snapshot.get(&id).filter(|entry| entry.seen.is_initialized) {
                watches.entry(id).or_default().turn(house, entry, is_frozen).await;
            }
        }
    }
}

/// Freezes the machine, or lets clusters grow again. Says whether nothing may grow.
fn look_at_machine(house: &Reconciler) -> bool {
    let Ok(room) = house.host.machine_room() else {
        return house.host.is_frozen();
    };
    let is_frozen = room.is_to_be_frozen();
    let (free_bytes, reserve_bytes) = (room.free_bytes, room.reserve_bytes);
    match (room.is_frozen, is_frozen) {
        (false, true) => tracing::error!(
            free_bytes,
            reserve_bytes,
            "the machine's reserve of disk space is reached: no cluster grows"
        ),
        (true, false) => {
            tracing::info!(free_bytes, "the machine has disk space again: clusters grow within their limits");
        }
        (true, true) | (false, false) => {}
    }
    house.host.set_frozen(is_frozen);
    is_frozen
}

/// Lets clusters run that were stopped while nothing could grow. False where that could not be written of all.
async fn let_run_again(house: &Reconciler) -> bool {
    let snapshot = house.store.snapshot();
    let mut are_all = true;
    for entry in snapshot.iter().filter(|entry| entry.seen.storage.is_stopped_for_machine) {
        are_all &= note_stopped(house, entry.cluster.id, false).await;
    }
    are_all
}

impl Watch {
    /// Takes what the last look came to, and begins the next where it is due.
    async fn turn(&mut self, house: &Arc<Reconciler>, entry: &Arc<Entry>, is_frozen: bool) {
        if let Some(looking) = self.looking.take() {
            if !looking.is_finished() {
                self.looking = Some(looking);
                return;
            }
            // One that broke off says nothing; the next one may.
            if let Ok(looked) = looking.await {
                self.restrained = looked.restrained;
                let now = looked.used_bytes.filter(|_| is_frozen);
                self.frozen_bytes = self.frozen_bytes.filter(|_| is_frozen).or(now);
                self.next = Some(Instant::now() + looked.pause);
            }
        }
        let held_to = Some((entry.cluster.storage(), is_frozen));
        if self.held_to != held_to || self.next.is_none_or(|next| Instant::now() >= next) {
            self.held_to = held_to;
            let look = look_at(house.clone(), entry.clone(), (is_frozen, self.frozen_bytes), self.restrained);
            self.looking = Some(tokio::spawn(look));
        }
    }
}

/// Measures a cluster, writes down what changed, and holds it back where no file system does.
async fn look_at(
    house: Arc<Reconciler>,
    entry: Arc<Entry>,
    (is_frozen, frozen_bytes): (bool, Option<u64>),
    restrained: Option<Run>,
) -> Looked {
    let (id, limit) = (entry.cluster.id, entry.cluster.storage());
    let began = Instant::now();
    let measured = house.host.storage(id, limit).await;
    let took = began.elapsed();
    let pause = (took * PAUSE_OF_ITS_TIME).min(PAUSE_MAX).max(took);
    let unchanged = Looked { restrained, pause, used_bytes: None };
    match measured {
        Ok(Some(Measured { is_read_only: Some(reason), .. })) => {
            bring_back(&house, id, reason).await;
            unchanged
        }
        Ok(Some(Measured { usage, is_read_only: None, .. })) => {
            write_down(&house, &entry, usage).await;
            if usage.enforcement == Enforcement::Enforced {
                return unchanged;
            }
            let used_bytes = usage.used_bytes;
            if let Some(then) = frozen_bytes.filter(|_| is_frozen)
                && used_bytes > then.saturating_add(FROZEN_GROWTH_BYTES_MAX + limit.wal_bytes() / 4)
            {
                stop_for_machine(&house, id, used_bytes).await;
                return unchanged;
            }
            let restrained = restrain(&house, id, &usage, is_frozen, restrained).await;
            let pause = match usage.fullness {
                Fullness::Ample if is_frozen => pause,
                Fullness::Ample => pause.max(room_lasts(&usage).min(PAUSE_MAX)),
                _ => took,
            };
            Looked { restrained, pause, used_bytes: Some(used_bytes) }
        }
        // It may just have been stopped.
        Err(cause) if house.host.is_running(id) => {
            tracing::warn!(cluster = %id, %cause, "what the cluster stores could not be measured");
            unchanged
        }
        Ok(None) | Err(_) => unchanged,
    }
}

/// For how long what is left of a cluster's limit lasts in any case.
fn room_lasts(usage: &StorageUse) -> Duration {
    let left_bytes = usage.limit_bytes.saturating_sub(usage.used_bytes);
    Duration::from_millis(left_bytes / (FASTEST_BYTES_PER_SECOND / 1_000))
}

async fn write_down(house: &Reconciler, entry: &Entry, usage: StorageUse) {
    let (id, seen) = (entry.cluster.id, &entry.seen.storage);
    let is_stopped = usage.enforcement == Enforcement::Watched
        && usage.used_bytes >= entry.cluster.storage().stopped_at_bytes();
    let is_changed = seen.last.is_none_or(|last| last.limit_bytes != usage.limit_bytes)
        || settled(seen.fullness(), &usage) != seen.fullness()
        || is_stopped;
    if !is_changed && seen.is_read_only.is_none() {
        return;
    }
    // What was stored before there were limits goes on: its first measurement gives it a limit that it fits into.
    let wider = seen.last.is_none().then(|| wider(entry.cluster.storage(), &usage)).flatten();
    if wider.is_none() {
        tell(id, seen.fullness(), &usage);
    }
    let now = house.now();
    let written = house.write(move |store| {
        if let Some(limit) = wider {
            store.edit(id, now, |cluster| {
                cluster.storage_floor = Some(limit);
                Ok::<(), store::Error>(())
            })?;
        }
        store.note(id, |seen| {
            // Of a limit that has just become another one the next measurement says how full it is.
            seen.storage.last = Some(usage).filter(|_| wider.is_none());
            seen.storage.is_read_only = None;
        })
    });
    match (written.await, wider) {
        (Err(cause), _) => {
            tracing::warn!(cluster = %id, %cause, "could not write how full a cluster is");
        }
        (Ok(()), Some(limit)) => {
            tracing::warn!(cluster = %id, used_bytes = usage.used_bytes, limit_bytes = limit.bytes(), "the cluster stored more than its plan's limit before there was one: it got a larger one");
        }
        (Ok(()), None) => {}
    }
}

/// The limit of a cluster that fills its own when it is measured for the first time: half as much again as it stores, in whole
/// GiB. A new one stores next to nothing then.
fn wider(limit: StorageLimit, usage: &StorageUse) -> Option<StorageLimit> {
    if usage.fullness == Fullness::Ample {
        return None;
    }
    let used_bytes = usage.used_bytes.saturating_add(usage.wal_used_bytes.unwrap_or(0));
    let gib = used_bytes.saturating_add(used_bytes / 2).div_ceil(1 << 30);
    StorageLimit::from_gib(gib).ok().filter(|wider| *wider > limit)
}

/// Stops a cluster that goes on storing while nothing may grow, as long as that is so.
async fn stop_for_machine(house: &Reconciler, id: ClusterId, used_bytes: u64) {
    tracing::error!(cluster = %id, used_bytes, "the cluster goes on storing while the machine has nothing left to give: it is stopped");
    let is_noted = note_stopped(house, id, true).await;
    if is_noted && !house.host.is_frozen() {
        // There is room again since it was looked at, and who lets clusters run again has been here.
        note_stopped(house, id, false).await;
        return;
    }
    // What is stored ends with its sessions. With its roles kept, whoever signs in meanwhile hears why it does not run.
    let is_read = timeout(LAST_WORDS_MAX, roles::refresh_last(house, id)).await.unwrap_or(false);
    if is_read {
        note_roles(house, id, |seen| seen.roles.is_whole = Some(true)).await;
    }
    if let Err(cause) = house.host.stop(id).await {
        tracing::error!(cluster = %id, %cause, "a cluster that goes on storing could not be stopped");
    } else if is_read {
        // The engines' loop, which stops it too, may have asked it while it stopped.
        note_roles(house, id, |seen| seen.roles.failure = None).await;
    }
}

async fn note_roles(house: &Reconciler, id: ClusterId, note: fn(&mut model::Observation)) {
    if let Err(cause) = house.write(move |store| store.note(id, note)).await {
        tracing::warn!(cluster = %id, %cause, "could not write that the engine's roles were kept");
    }
}

/// Writes that a cluster is stopped until the machine has room again, or is not. False where that could not be written.
async fn note_stopped(house: &Reconciler, id: ClusterId, is_stopped: bool) -> bool {
    let note = move |seen: &mut model::Observation| seen.storage.is_stopped_for_machine = is_stopped;
    let written = house.write(move |store| store.note(id, note)).await;
    if let Err(cause) = &written {
        tracing::warn!(cluster = %id, %cause, is_stopped, "could not write whether a cluster is stopped");
    }
    written.is_ok()
}

/// Cuts the sessions of a cluster that has reached its limit without a wall, and lets it write only where that is asked for.
/// Returns the run for which that is so.
async fn restrain(
    house: &Reconciler,
    id: ClusterId,
    usage: &StorageUse,
    is_frozen: bool,
    restrained: Option<Run>,
) -> Option<Run> {
    let run = house.host.run(id)?;
    let is_over = usage.fullness == Fullness::Full || is_frozen;
    if is_over == (restrained == Some(run)) {
        return restrained;
    }
    match house.host.restrain(id, is_over).await {
        Ok(()) if is_over => {
            tracing::error!(cluster = %id, used_bytes = usage.used_bytes, "the cluster has reached its limit: transactions are read-only unless they say otherwise");
            Some(run)
        }
        Ok(()) => {
            tracing::info!(cluster = %id, "the cluster has room again, and writes as before");
            None
        }
        Err(cause) => {
            tracing::warn!(cluster = %id, %cause, "the cluster could not be told that it is full");
            restrained
        }
    }
}

/// How full it is, where a little less than before is as before: else it would be written down again and again.
fn settled(before: Fullness, usage: &StorageUse) -> Fullness {
    if usage.fullness >= before {
        return usage.fullness;
    }
    if before == Fullness::Full {
        return usage.fullness;
    }
    usage.fullness.max(Fullness::of(
        usage.used_bytes.saturating_add(usage.data_limit_bytes / 50),
        usage.data_limit_bytes,
    ))
}

fn tell(id: ClusterId, before: Fullness, usage: &StorageUse) {
    let (used_bytes, limit_bytes) = (usage.used_bytes, usage.data_limit_bytes);
    match usage.fullness {
        // Nothing to say of one that always had.
        Fullness::Ample if before == Fullness::Ample => {}
        Fullness::Ample => tracing::info!(cluster = %id, used_bytes, limit_bytes, "the cluster has room"),
        Fullness::Filling | Fullness::Low => {
            tracing::warn!(cluster = %id, used_bytes, limit_bytes, "the cluster is near its storage limit");
        }
        Fullness::Full => {
            tracing::error!(cluster = %id, used_bytes, limit_bytes, "the cluster has reached its storage limit: what grows is refused");
        }
    }
}

/// Stops an engine whose file system cannot be written to. Its next start checks the file system and mounts it again, and comes
/// by itself, because the cluster is wished to run.
async fn bring_back(house: &Reconciler, id: ClusterId, reason: String) {
    tracing::error!(cluster = %id, %reason, "the engine is stopped, its file system is checked, and it is started again");
    let told = format!(
        "{reason}; the engine is stopped, the file system is checked, and it is started again by itself"
    );
    let note = |text: Option<String>| {
        house.write(move |store| store.note(id, |seen| seen.storage.is_read_only = text))
    };
    if let Err(cause) = note(Some(told)).await {
        tracing::warn!(cluster = %id, %cause, "could not write that a file system cannot be written to");
    }
    if let Err(cause) = house.host.stop_at_once(id).await {
        tracing::error!(cluster = %id, %cause, "an engine whose file system cannot be written to could not be stopped");
    }
    // A change of what is written is what the engines' loop looks at next.
    let _ = note(Some(format!(
        "{reason}; the engine was stopped, and the file system is checked before it starts again"
    )))
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(used_bytes: u64, fullness: Fullness) -> StorageUse {
        StorageUse {
            limit_bytes: 1_200,
            used_bytes,
            data_limit_bytes: 1_000,
            wal_used_bytes: None,
            wal_limit_bytes: None,
            enforcement: Enforcement::Enforced,
            fullness,
        }
    }

    #[test]
    fn a_cluster_at_a_threshold_is_not_written_down_again_and_again() {
        assert_eq!(settled(Fullness::Ample, &usage(800, Fullness::Filling)), Fullness::Filling);
        assert_eq!(settled(Fullness::Filling, &usage(799, Fullness::Ample)), Fullness::Filling);
        assert_eq!(settled(Fullness::Filling, &usage(779, Fullness::Ample)), Fullness::Ample);
        assert_eq!(settled(Fullness::Full, &usage(700, Fullness::Ample)), Fullness::Ample);
    }

    #[test]
    fn a_cluster_with_much_room_is_counted_less_often_and_one_with_little_as_often_as_before() {
        let gib = |gib: u64| gib << 30;
        let room = |used_bytes, limit_bytes| {
            let usage = StorageUse { limit_bytes, ..usage(used_bytes, Fullness::Ample) };
            room_lasts(&usage)
        };
        assert!((Duration::from_secs(2)..=Duration::from_millis(2_600)).contains(&room(gib(0), gib(10))));
        assert!(room(gib(9), gib(10)) <= LOOK_EVERY);
        assert_eq!(room(gib(11), gib(10)), Duration::ZERO);
    }

    #[test]
    fn what_was_stored_before_there_were_limits_gets_one_that_it_fits_into() {
        let gib = |gib: u64| gib << 30;
        let plans_own = StorageLimit::of_plan(model::Plan::Serverless);
        let found = |bytes, fullness| StorageUse { wal_used_bytes: Some(gib(1)), ..usage(bytes, fullness) };
        assert_eq!(wider(plans_own, &found(gib(1), Fullness::Ample)), None);
        assert_eq!(wider(plans_own, &found(gib(49), Fullness::Full)), StorageLimit::from_gib(75).ok());
    }
}
