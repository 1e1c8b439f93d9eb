//! The loop that makes, starts, stops and destroys engines, one step of one cluster at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use model::{Cluster, ClusterId, Observation, Phase, Power, VolumeId, Wish};
use store::Entry;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::{BackOff, EngineFacts, Reconciler, Step, checkpoints, decide, keys, roles, volumes};

/// For a cluster to be made.
const CREATE_MAX: Duration = Duration::from_secs(120);
/// For an engine to start. After a crash it replays its log first, which takes as long as it takes.
const START_MAX: Duration = Duration::from_secs(600);
/// For an engine to stop and its volume to be locked.
const STOP_MAX: Duration = Duration::from_secs(120);
/// For a cluster to be destroyed.
const DESTROY_MAX: Duration = Duration::from_secs(120);
/// For what changed since a volume was copied.
const SWITCH_MAX: Duration = Duration::from_secs(3_600);
/// For sessions that were told to end before their engine is stopped.
const LEAVE_MAX: Duration = Duration::from_secs(3);
/// Tries to make a cluster before it counts as failed for good.
const CREATE_TRIES_MAX: u32 = 3;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The engine works from now on.
    Works,
    /// There is no engine now, on purpose; or nothing was to be done.
    Rests,
    /// It failed and is to be tried again later.
    Failed,
}

struct Engines {
    house: Arc<Reconciler>,
    tasks: JoinSet<Outcome>,
    busy: HashMap<task::Id, ClusterId>,
    back_offs: HashMap<ClusterId, BackOff>,
}

pub(crate) async fn run(house: Arc<Reconciler>, stop: CancellationToken) {
    let mut changes = house.store.changes();
    let mut deaths = house.host.deaths();
    let look_every = house.settings.look_every;
    let mut engines = Engines {
        house: house.clone(),
        tasks: JoinSet::new(),
        busy: HashMap::new(),
        back_offs: HashMap::new(),
    };
    clear_strays(&engines.house).await;
    loop {
        changes.mark_unchanged();
        let next_try = engines.look();
        let tick = Instant::now() + look_every;
        let wake_up = next_try.map_or(tick, |due| due.min(tick));
        tokio::select! {
            () = stop.cancelled() => break,
            changed = changes.changed() => if changed.is_err() { break },
            Some(ended) = engines.tasks.join_next_with_id() => engines.ended(ended),
            () = house.copied.notified() => {}
            died = deaths.recv() => match died {
                // Too many at once are no loss: every cluster is looked at anyway.
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => break,
            },
            () = sleep_until(wake_up) => {}
        }
    }
    // What was begun is finished: an engine half started would have to be cleared away by the next start.
    while let Some(ended) = engines.tasks.join_next_with_id().await {
        engines.ended(ended);
    }
}

/// Destroys what is left on the disk of clusters whose deletion is on record. What no record speaks of is left alone and
/// told: an old state file put back must not cost anybody's data.
async fn clear_strays(house: &Reconciler) {
    let snapshot = house.store.snapshot();
    for id in house.host.on_disk().into_iter().filter(|id| snapshot.get(id).is_none()) {
        if snapshot.deleted_by_id(&id).is_none() {
            tracing::warn!(cluster = %id, "the state knows nothing of this cluster on the disk; it is left alone");
            continue;
        }
        if let Err(reason) = within(DESTROY_MAX, house.host.destroy_stray(id)).await {
            tracing::error!(cluster = %id, %reason, "the rest of a deleted cluster could not be destroyed");
        }
    }
}

impl Engines {
    /// Looks at every cluster and begins what is to be done. Tells when the next waiting try is due.
    fn look(&mut self) -> Option<Instant> {
        let snapshot = self.house.store.snapshot();
        let busy: HashSet<ClusterId> = self.busy.values().copied().collect();
        let now = Instant::now();
        let mut due = Vec::new();
        let mut next_try: Option<Instant> = None;
        for entry in snapshot.iter() {
            let id = entry.cluster.id;
            if busy.contains(&id) {
                continue;
            }
            let back_off = self.back_offs.get(&id).copied().unwrap_or_default();
            let facts = EngineFacts {
                is_running: self.house.host.is_running(id),
                was_good: back_off.is_good(),
                is_barred: is_barred(entry),
                is_copied: is_copied(&self.house, entry),
                is_stale: !entry.seen.is_copy_whole() && !entry.seen.roles.is_given_up,
                is_unread: entry.seen.roles.failure.is_some() && !entry.seen.roles.is_given_up,
            };
            let step = decide(entry.cluster.wish, &entry.seen, facts);
            match (step, back_off.next_try()) {
                (Step::Rest, _) => {}
                (Step::Bury | Step::Settle | Step::Stop | Step::Switch, _) | (_, None) => {
                    due.push((step, entry.clone()));
                }
                (_, Some(time)) if time <= now => due.push((step, entry.clone())),
                (_, Some(time)) => next_try = Some(next_try.map_or(time, |earlier| earlier.min(time))),
            }
        }
        // Those whose clients are waiting come first.
        due.sort_by_key(|(_, entry)| std::cmp::Reverse(self.house.sessions.count(entry.cluster.id)));
        for (step, entry) in due {
            if self.busy.len() >= self.house.settings.parallel_max {
                break;
            }
            self.begin(step, entry);
        }
        // A cluster that is forgotten needs no back-off any more.
        if self.back_offs.len() > 2 * snapshot.len() + 16 {
            self.back_offs.retain(|id, _| snapshot.get(id).is_some());
        }
        next_try
    }

    fn begin(&mut self, step: Step, entry: Arc<Entry>) {
        let id = entry.cluster.id;
        let back_off = self.back_offs.entry(id).or_default();
        if step == Step::Bury {
            let wait = back_off.failed(Instant::now());
            tracing::error!(cluster = %id, ?wait, "the engine does not work any more; it is started again");
        }
        let failures = back_off.failures();
        let house = self.house.clone();
        let task = self.tasks.spawn(async move { take(&house, step, &entry, failures).await });
        self.busy.insert(task.id(), id);
    }

    fn ended(&mut self, ended: Result<(task::Id, Outcome), JoinError>) {
        let (task, outcome) = match ended {
            Ok(ended) => ended,
            Err(panic) => {
                // One cluster's accident must not stop the others.
                tracing::error!(%panic, "a step of the engines loop broke off");
                (panic.id(), Outcome::Failed)
            }
        };
        let Some(id) = self.busy.remove(&task) else {
            return;
        };
        let back_off = self.back_offs.entry(id).or_default();
        match outcome {
            Outcome::Works => back_off.works(Instant::now()),
            Outcome::Rests if back_off.failures() == 0 => back_off.rests(),
            // A burial waits out its back-off; a sleep does not wipe out the memory of earlier failures.
            Outcome::Rests => {}
            Outcome::Failed => {
                back_off.failed(Instant::now());
            }
        }
    }
}

async fn take(house: &Reconciler, step: Step, entry: &Entry, failures: u32) -> Outcome {
    let cluster = &entry.cluster;
    let taken = match step {
        Step::Rest => Ok(Outcome::Rests),
        Step::Create => create(house, entry, failures).await,
        Step::Start => start(house, cluster).await,
        Step::Settle => settle(house, cluster, None).await,
        Step::Refresh => {
            let is_read = roles::refresh(house, cluster.id).await;
            Ok(if is_read { Outcome::Works } else { Outcome::Failed })
        }
        Step::Stop => stop(house, cluster).await,
        Step::Switch => switch(house, entry).await,
        Step::Bury => bury(house, cluster.id).await,
        Step::Destroy => destroy(house, cluster).await,
    };
    taken.unwrap_or_else(|cause| {
        tracing::error!(cluster = %cluster.id, ?step, %cause, "could not write what was seen");
        Outcome::Failed
    })
}

/// Whether the keys forbid that it runs.
fn is_barred(entry: &Entry) -> bool {
    entry.seen.keys.hindrance(&entry.cluster.keys).is_some()
        || entry.seen.storage.is_stopped(entry.cluster.storage())
}

/// Whether the volume is copied under a data key that somebody asked for.
fn is_copied(house: &Reconciler, entry: &Entry) -> bool {
    entry.cluster.keys.data_keys > entry.seen.keys.data_keys && house.host.is_copied(entry.cluster.id)
}

/// Whether the engine should not run at this moment.
fn should_rest(house: &Reconciler, entry: &Entry) -> bool {
    entry.cluster.wish == Wish::Exists(Power::Asleep) || is_barred(entry) || is_copied(house, entry)
}

async fn create(house: &Reconciler, entry: &Entry, failures: u32) -> Result<Outcome, store::Error> {
    let cluster = &entry.cluster;
    tracing::info!(cluster = %cluster.id, name = %cluster.name, plan = cluster.plan.as_str(), "creating");
    let made = within(CREATE_MAX, house.host.create(cluster)).await;
    match made {
        Ok(made) => {
            let volume = made.volume;
            note(house, cluster.id, move |seen| {
                seen.is_initialized = true;
                counts(seen, volume);
            })
            .await?;
            tracing::info!(cluster = %cluster.id, encryption = volume.encryption.as_str(), "created");
            settle(house, cluster, Some(made.engine_version)).await
        }
        Err(reason) => {
            let is_final = reason.is_final || failures + 1 >= CREATE_TRIES_MAX;
            tracing::error!(cluster = %cluster.id, %reason, is_final, "creation failed");
            if house.host.is_made(cluster.id) {
                // It was made whole before, and what the state says is older: nobody's data are destroyed for that.
                see(house, cluster.id, Phase::Broken { reason: reason.text }).await?;
                return Ok(Outcome::Failed);
            }
            if !is_final {
                return Ok(Outcome::Failed);
            }
            if let Err(rest) = within(DESTROY_MAX, house.host.destroy(cluster)).await {
                tracing::warn!(cluster = %cluster.id, reason = %rest, "what was half made could not be undone yet");
            }
            see(house, cluster.id, Phase::Failed { reason: reason.text }).await?;
            Ok(Outcome::Rests)
        }
    }
}

async fn start(house: &Reconciler, cluster: &Cluster) -> Result<Outcome, store::Error> {
    see(house, cluster.id, Phase::Waking).await?;
    let began = Instant::now();
    match within(START_MAX, house.host.start(cluster)).await {
        Ok(started) => {
            tracing::info!(cluster = %cluster.id, took = ?began.elapsed(), "awake");
            let volume = started.volume;
            let is_known = house.store.snapshot().get(&cluster.id).is_some_and(|entry| {
                entry.seen.volume.current == Some(volume) && entry.seen.volume.next.is_none()
            });
            if !is_known {
                note(house, cluster.id, move |seen| counts(seen, volume)).await?;
            }
            settle(house, cluster, Some(started.engine_version)).await
        }
        Err(reason) => {
            tracing::error!(cluster = %cluster.id, %reason, "the engine could not be started; it is tried again");
            see(house, cluster.id, Phase::Broken { reason: reason.text }).await?;
            Ok(Outcome::Failed)
        }
    }
}

/// Writes that the engine runs, and copies its roles. From here on somebody may change them.
async fn settle(
    house: &Reconciler,
    cluster: &Cluster,
    version: Option<String>,
) -> Result<Outcome, store::Error> {
    house.awake_since().insert(cluster.id, Instant::now());
    let connections = house.host.connections_max(cluster.id);
    note(house, cluster.id, move |seen| {
        seen.phase = Phase::Running;
        seen.connections_running = connections;
        seen.connections_used_up_at = None;
        seen.roles.is_whole = Some(false);
        seen.roles.is_given_up = false;
        seen.engine_version = version.or(seen.engine_version.take());
    })
    .await?;
    roles::refresh(house, cluster.id).await;
    Ok(Outcome::Works)
}

async fn stop(house: &Reconciler, cluster: &Cluster) -> Result<Outcome, store::Error> {
    let id = cluster.id;
    {
        let _closed = house.gate.close().await;
        // A client may have woken it since we looked. Before the mark it keeps its session, after it it waits.
        let snapshot = house.store.snapshot();
        if !snapshot.get(&id).is_some_and(|now| should_rest(house, now)) {
            return Ok(Outcome::Works);
        }
        see(house, id, Phase::Stopping).await?;
    }
    let mut is_read = false;
    if house.host.is_running(id) {
        // Those who were told to leave do so at a message boundary; those who wait for the next start stay seated.
        let left = async {
            while house.sessions.count(id) > 0 && is_told_to_leave(house, id) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = timeout(LEAVE_MAX, left).await;
        house.host.let_sessions_go_on(id);
        is_read = roles::refresh_last(house, id).await;
        if !is_read && is_asleep_by_wish(house, id) {
            tracing::warn!(cluster = %id, "it is not put to sleep before its roles are kept; it is tried again");
            see(house, id, Phase::Running).await?;
            return Ok(Outcome::Failed);
        }
    }
    match within(STOP_MAX, house.host.stop(id)).await {
        Ok(()) => {
            house.awake_since().remove(&id);
            checkpoints::remember(house, id, house.host.checkpoint(id)).await;
            note(house, id, move |seen| {
                let is_whole = is_read || seen.is_copy_whole();
                seen.phase = Phase::Asleep;
                seen.connections_used_up_at = None;
                seen.connections_running = None;
                seen.roles.is_whole = Some(is_whole);
            })
            .await?;
            tracing::info!(cluster = %id, "asleep, and its key has left the kernel");
            Ok(Outcome::Rests)
        }
        Err(reason) => {
            tracing::error!(cluster = %id, %reason, "could not be put to sleep; it is tried again");
            // One breath here, because stopping is not held up by the back-off of starting.
            tokio::time::sleep(crate::SHORTEST).await;
            Ok(Outcome::Failed)
        }
    }
}

/// This volume counts from now on.
fn counts(seen: &mut Observation, volume: VolumeId) {
    seen.encryption = Some(volume.encryption);
    seen.volume.current = Some(volume);
    seen.volume.next = None;
}

/// Whether nothing but the wish to let it sleep is why it stops, and nobody said that it is to sleep whatever it says.
fn is_asleep_by_wish(house: &Reconciler, id: ClusterId) -> bool {
    let by_wish =
        |entry: &Entry| !is_barred(entry) && !is_copied(house, entry) && !entry.seen.roles.is_given_up;
    house.store.snapshot().get(&id).is_some_and(|entry| by_wish(entry))
}

/// Whether its sessions hear from the gateway that they must end. Before a switch the engine tells them itself.
fn is_told_to_leave(house: &Reconciler, id: ClusterId) -> bool {
    let is_told = |entry: &Entry| entry.cluster.wish == Wish::Exists(Power::Asleep) || is_barred(entry);
    house.store.snapshot().get(&id).is_some_and(|entry| is_told(entry))
}

/// Switches to the copied volume. One that cannot be switched to is given up: the cluster must not stand still for it.
async fn switch(house: &Reconciler, entry: &Entry) -> Result<Outcome, store::Error> {
    let (id, demand) = (entry.cluster.id, entry.cluster.keys.data_keys);
    let _switching = house.begin_switch(id);
    keys::announce(house, id, &entry.cluster.keys.spec()).await?;
    let Some(next) = house.host.copied(id) else {
        return Ok(Outcome::Rests);
    };
    // Before it counts on the disk, so that a crash right after that leaves a volume that is on record.
    note(house, id, move |seen| seen.volume.next = Some(next)).await?;
    match within(SWITCH_MAX, house.host.switch_volume(&entry.cluster, next)).await {
        Ok(used) => {
            note(house, id, move |seen| counts(seen, next)).await?;
            let now = house.now();
            let noted = move |store: &store::Store| {
                store.observe_keys(id, |seen| {
                    keys::remember(seen, &used, now);
                    seen.data_keys = seen.data_keys.max(demand);
                    seen.data_key_since = Some(now);
                    seen.failure = None;
                })
            };
            house.write(noted).await?;
            tracing::info!(target: "audit", cluster = %id, "the volume is encrypted with a new data key; the earlier one is destroyed");
        }
        Err(reason) => {
            tracing::error!(cluster = %id, %reason, "the copied volume could not be switched to; it is copied again later");
            if let Err(cause) = house.host.abandon_copy(id).await {
                tracing::error!(cluster = %id, %cause, "a copy could not be ended");
            }
            let text = format!("the copied volume could not be switched to: {reason}");
            let rewraps = entry.cluster.keys.rewraps;
            let noted = move |store: &store::Store| {
                store.observe_keys(id, |seen| (seen.failure, seen.failed_demand) = (Some(text), rewraps))
            };
            house.write(noted).await?;
        }
    }
    Ok(Outcome::Rests)
}

async fn bury(house: &Reconciler, id: ClusterId) -> Result<Outcome, store::Error> {
    house.awake_since().remove(&id);
    let reason = match volumes::reason(&house.host, id).await {
        None => "the engine ended unexpectedly; it is started again by itself".to_owned(),
        Some(lost) => {
            volumes::tell_sessions(house, id).await;
            format!(
                "the cluster's volume was lost while its engine ran: {lost}; the engine was ended, what was left of the volume \
                 is locked, and it is started again by itself"
            )
        }
    };
    see(house, id, Phase::Broken { reason }).await?;
    // Nothing of it stays unlocked while it waits for its next start.
    if let Err(reason) = within(STOP_MAX, house.host.stop(id)).await {
        tracing::error!(cluster = %id, %reason, "what is left of the engine could not be locked; the next start tries again");
    }
    Ok(Outcome::Rests)
}

async fn destroy(house: &Reconciler, cluster: &Cluster) -> Result<Outcome, store::Error> {
    let id = cluster.id;
    see(house, id, Phase::Deleting).await?;
    match within(DESTROY_MAX, house.host.destroy(cluster)).await {
        Ok(()) => {
            house.awake_since().remove(&id);
            house.write(move |store| store.forget(id)).await?;
            tracing::info!(cluster = %id, name = %cluster.name, "key and data are destroyed");
            Ok(Outcome::Rests)
        }
        Err(reason) => {
            tracing::error!(cluster = %id, %reason, "could not be destroyed; it is tried again");
            Ok(Outcome::Failed)
        }
    }
}

/// Why a step of the host failed.
struct Reason {
    text: String,
    /// Trying again cannot help.
    is_final: bool,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

async fn within<T>(
    most: Duration,
    work: impl Future<Output = Result<T, engine::Error>>,
) -> Result<T, Reason> {
    match timeout(most, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(cause)) => {
            let is_final = matches!(
                cause,
                engine::Error::NoEncryption { .. }
                    | engine::Error::NoPostgres { .. }
                    | engine::Error::NoSandbox { .. }
            );
            Err(Reason { text: cause.to_string(), is_final })
        }
        Err(_) => Err(Reason { text: format!("it took longer than {} s", most.as_secs()), is_final: false }),
    }
}

async fn see(house: &Reconciler, id: ClusterId, phase: Phase) -> Result<(), store::Error> {
    note(house, id, move |seen| seen.phase = phase).await
}

/// Changes the observation.
async fn note(
    house: &Reconciler,
    id: ClusterId,
    change: impl FnOnce(&mut Observation) + Send + 'static,
) -> Result<(), store::Error> {
    let changed = move |seen: &mut Observation| {
        // What an earlier version left unsaid is said before the phase, from which it is known, changes.
        let is_whole = seen.is_copy_whole();
        seen.roles.is_whole.get_or_insert(is_whole);
        change(seen);
    };
    house.write(move |store| store.note(id, changed)).await
}
