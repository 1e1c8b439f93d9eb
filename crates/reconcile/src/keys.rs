//! The loop that keeps each cluster's data key wrapped as its document says, asks key services whether their keys may
//! still be used, and copies volumes that get another data key.
//!
//! Stopping an engine whose key may not be used, and switching to a copied volume, are steps of the engines' loop: there
//! is one place that starts and stops.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use engine::{Copied, KeyUse};
use keys::KeyFailure;
use model::{ClusterId, CmekStatus, KEYS_KEPT_MAX, KeyOutage, KeySeen, KeyWish, KeysSeen, Observation, Wish};
use store::Entry;
use time::OffsetDateTime;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::{BackOff, Reconciler, SHORTEST};

/// For a key service to answer, several questions included.
const ASK_MAX: Duration = Duration::from_secs(60);
/// A key service that said no is asked once more after this: only a no that lasts stops a cluster.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);
/// Copies at a time: each reads and writes a whole volume.
const COPIES_MAX: usize = 2;

/// What to do next for the keys of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyStep {
    /// Wrap the data key anew.
    Rewrap,
    /// Ask the service whether the key may be used.
    Ask,
    /// Copy the volume under another data key.
    Copy,
    /// Write that the data key is out of reach, or that it need not be any more.
    Note {
        /// Which of both.
        is_locked_away: bool,
    },
}

/// What the machine and the clock say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct KeyFacts {
    /// Nothing of the cluster runs, and its volume is locked.
    pub is_at_rest: bool,
    /// The volume is copied under another data key and waits to be switched to.
    pub is_copied: bool,
    /// The data key is wrapped by an earlier version of the cloud's root key.
    pub is_root_old: bool,
    /// It is time to ask the service.
    pub is_ask_due: bool,
    /// Nothing failed so lately that it must not be tried again yet.
    pub may_try: bool,
}

/// Decides. A cluster that is being made or deleted is left alone.
pub fn decide_keys(wish: Wish, keys: &KeyWish, seen: &Observation, facts: KeyFacts) -> Option<KeyStep> {
    if wish == Wish::Deleted || !seen.is_initialized {
        return None;
    }
    let is_customers = keys.spec().is_customers();
    if seen.keys.hindrance(keys).is_some() {
        return if facts.is_at_rest && !seen.keys.is_locked_away {
            Some(KeyStep::Note { is_locked_away: true })
        } else {
            (facts.is_ask_due && is_customers).then_some(KeyStep::Ask)
        };
    }
    if seen.keys.is_locked_away {
        return Some(KeyStep::Note { is_locked_away: false });
    }
    let is_wrapped_otherwise = seen.keys.wrapped_by.as_ref().is_some_and(|spec| *spec != keys.spec());
    let is_rewrap_due = keys.rewraps > seen.keys.rewraps || is_wrapped_otherwise || facts.is_root_old;
    if is_rewrap_due && facts.may_try {
        return Some(KeyStep::Rewrap);
    }
    if facts.is_ask_due && is_customers {
        return Some(KeyStep::Ask);
    }
    (keys.data_keys > seen.keys.data_keys && !facts.is_copied && facts.may_try && !is_rewrap_due)
        .then_some(KeyStep::Copy)
}

struct Keys {
    house: Arc<Reconciler>,
    tasks: JoinSet<bool>,
    /// A copy takes long, and the key goes on being watched meanwhile.
    busy: HashMap<task::Id, (ClusterId, bool)>,
    back_offs: HashMap<(ClusterId, bool), BackOff>,
    asked: HashMap<ClusterId, Instant>,
    /// Revoked, and asked since: whether the service denies the key too decides how the revocation ends.
    asked_revoked: HashSet<ClusterId>,
    /// The version that the root key is being rotated to, and the clusters that are known to be under it: a cloud has many,
    /// and each is read once or twice and not at every look.
    followed: (String, HashSet<ClusterId>),
}

pub(crate) async fn run(house: Arc<Reconciler>, stop: CancellationToken) {
    let mut changes = house.store.changes();
    let mut keys = Keys {
        house,
        tasks: JoinSet::new(),
        busy: HashMap::new(),
        back_offs: HashMap::new(),
        asked: HashMap::new(),
        asked_revoked: HashSet::new(),
        followed: (String::new(), HashSet::new()),
    };
    loop {
        changes.mark_unchanged();
        let next_look = keys.look().await;
        tokio::select! {
            () = stop.cancelled() => break,
            changed = changes.changed() => if changed.is_err() { break },
            Some(ended) = keys.tasks.join_next_with_id() => keys.ended(ended),
            () = sleep_until(next_look) => {}
        }
    }
    // Wrapping is finished; a copy would hold up the end, and the next start begins it anew.
    let copies = keys.busy.values().filter(|(_, is_copy)| *is_copy).map(|(id, _)| *id);
    for id in copies {
        if let Err(cause) = keys.house.host.abandon_copy(id).await {
            tracing::error!(cluster = %id, %cause, "a copy could not be ended");
        }
    }
    while let Some(ended) = keys.tasks.join_next_with_id().await {
        keys.ended(ended);
    }
}

impl Keys {
    /// Looks at every cluster whose keys may need something and begins it. Tells when to look again.
    async fn look(&mut self) -> Instant {
        let (snapshot, now) = (self.house.store.snapshot(), Instant::now());
        let mut next_look = now + self.house.settings.look_every;
        // Asked once a look: a cloud has many clusters, and nearly always no rotation.
        let rotating_to = self.house.root.rotating_to();
        if let Some(version) = &rotating_to
            && self.followed.0 != *version
        {
            self.followed = (version.clone(), HashSet::new());
        }
        for entry in snapshot.iter() {
            let id = entry.cluster.id;
            if !entry.cluster.keys.is_revoked {
                self.asked_revoked.remove(&id);
            }
            if !concerns(entry, rotating_to.is_some()) || self.is_busy(id, false) {
                continue;
            }
            let ask_at = self.ask_at(entry, now);
            let facts = self.facts(entry, now, ask_at, rotating_to.is_some()).await;
            let step = decide_keys(entry.cluster.wish, &entry.cluster.keys, &entry.seen, facts);
            if entry.cluster.keys.spec().is_customers() {
                next_look = next_look.min(ask_at.max(now + SHORTEST));
            }
            let is_copy = step == Some(KeyStep::Copy);
            let copies = self.busy.values().filter(|(_, is_copy)| *is_copy).count();
            match step {
                None => {}
                Some(KeyStep::Copy) if self.is_busy(id, true) || copies >= COPIES_MAX => {}
                // Its copy is not waiting any more, and its demand does not count as met yet.
                Some(KeyStep::Copy) if self.house.switching().contains(&id) => {}
                Some(step) if self.busy.len() < self.house.settings.parallel_max => {
                    self.begin(step, is_copy, entry.clone());
                }
                Some(_) => next_look = now + SHORTEST,
            }
            for is_copy in [false, true] {
                let next = self.back_offs.get(&(id, is_copy)).and_then(BackOff::next_try);
                if let Some(next) = next.filter(|next| *next > now) {
                    next_look = next_look.min(next);
                }
            }
        }
        if self.asked.len() > 2 * snapshot.len() + 16 {
            self.asked.retain(|id, _| snapshot.get(id).is_some());
            self.asked_revoked.retain(|id| snapshot.get(id).is_some());
            self.back_offs.retain(|(id, _), _| snapshot.get(id).is_some());
        }
        next_look
    }

    fn is_busy(&self, id: ClusterId, is_copy: bool) -> bool {
        self.busy.values().any(|busy| *busy == (id, is_copy))
    }

    /// When the key service is to be asked next.
    fn ask_at(&self, entry: &Entry, now: Instant) -> Instant {
        let (id, seen) = (entry.cluster.id, &entry.seen.keys);
        if entry.cluster.keys.is_revoked && !self.asked_revoked.contains(&id) {
            return now;
        }
        let is_troubled = seen.hindrance(&entry.cluster.keys).is_some()
            || seen.outage.is_some()
            || matches!(entry.seen.phase, model::Phase::Broken { .. });
        let every = self.house.settings.keys_every;
        // Where something waits for the answer it is asked more often.
        let every = if is_troubled { every.min(self.house.settings.keys_again_after) } else { every };
        self.asked.get(&id).map_or(now, |asked| *asked + every)
    }

    async fn facts(&mut self, entry: &Entry, now: Instant, ask_at: Instant, is_rotating: bool) -> KeyFacts {
        let (host, id) = (self.house.host.clone(), entry.cluster.id);
        let is_root_old =
            is_rotating && !entry.cluster.keys.spec().is_customers() && self.is_root_old(id).await;
        let keys = &entry.seen.keys;
        let is_barred = keys.hindrance(&entry.cluster.keys).is_some();
        let is_copy_wanted = wants_data_key(entry);
        let may_try = |is_copy| {
            let next = self.back_offs.get(&(id, is_copy)).and_then(BackOff::next_try);
            next.is_none_or(|next| next <= now)
        };
        KeyFacts {
            is_at_rest: is_barred
                && !keys.is_locked_away
                && !host.is_running(id)
                && host.volume_state(id).is_none_or(|state| !state.is_unlocked || state.is_plain()),
            is_copied: is_copy_wanted && host.is_copied(id),
            is_root_old,
            is_ask_due: ask_at <= now,
            may_try: may_try(false) && (!is_copy_wanted || may_try(true)),
        }
    }

    /// Whether, in a rotation of the root key, an earlier version of it wraps the data key.
    async fn is_root_old(&mut self, id: ClusterId) -> bool {
        let (version, followed) = &mut self.followed;
        if followed.contains(&id) {
            return false;
        }
        let Ok(used) = self.house.host.key_use(id).await else { return false };
        let is_old = !used.spec.is_customers() && used.version != *version;
        if !is_old {
            followed.insert(id);
        }
        is_old
    }

    fn begin(&mut self, step: KeyStep, is_copy: bool, entry: Arc<Entry>) {
        let id = entry.cluster.id;
        if matches!(step, KeyStep::Ask | KeyStep::Rewrap) {
            self.asked.insert(id, Instant::now());
        }
        if step == KeyStep::Ask && entry.cluster.keys.is_revoked {
            self.asked_revoked.insert(id);
        }
        let house = self.house.clone();
        let task = self.tasks.spawn(async move {
            let taken = match step {
                KeyStep::Rewrap => rewrap(&house, &entry).await,
                KeyStep::Ask => ask(&house, &entry).await,
                KeyStep::Copy => copy(&house, &entry).await,
                KeyStep::Note { is_locked_away } => note_locked(&house, &entry, is_locked_away).await,
            };
            taken.unwrap_or_else(|cause| {
                tracing::error!(cluster = %id, ?step, %cause, "could not write what was seen of the keys");
                false
            })
        });
        self.busy.insert(task.id(), (id, is_copy));
    }

    fn ended(&mut self, ended: Result<(task::Id, bool), JoinError>) {
        let (task, is_done) = match ended {
            Ok(ended) => ended,
            Err(panic) => {
                tracing::error!(%panic, "a step of the keys loop broke off");
                (panic.id(), false)
            }
        };
        let Some(which) = self.busy.remove(&task) else {
            return;
        };
        let back_off = self.back_offs.entry(which).or_default();
        if is_done {
            back_off.rests();
        } else {
            back_off.failed(Instant::now());
        }
    }
}

/// Whether anything may be to do: most clusters of most clouds need no look at all.
fn concerns(entry: &Entry, is_rotating: bool) -> bool {
    let (wish, seen) = (&entry.cluster.keys, &entry.seen.keys);
    wish.cmek.is_some() || wants_data_key(entry) || wish.is_revoked || seen.is_locked_away || is_rotating
}

fn wants_data_key(entry: &Entry) -> bool {
    entry.cluster.keys.data_keys > entry.seen.keys.data_keys
}

async fn rewrap(house: &Arc<Reconciler>, entry: &Entry) -> Result<bool, store::Error> {
    let (id, wish) = (entry.cluster.id, &entry.cluster.keys);
    let demand = wish.rewraps;
    let now = house.now();
    announce(house, id, &wish.spec()).await?;
    match asked(house.host.rewrap(&entry.cluster)).await {
        Ok(used) => {
            tracing::info!(target: "audit", cluster = %id, key = %used.spec, version = used.version, "the data key is wrapped anew");
            note(house, id, move |seen| {
                remember(seen, &used, now);
                seen.rewraps = seen.rewraps.max(demand);
                (seen.failure, seen.outage) = (None, None);
            })
            .await?;
            Ok(true)
        }
        Err(cause) => {
            let reason = cause.to_string();
            tracing::error!(cluster = %id, key = %wish.spec(), reason, "the data key could not be wrapped anew; the earlier key stays in use, and it is tried again");
            note(house, id, move |seen| (seen.failure, seen.failed_demand) = (Some(reason), demand)).await?;
            Ok(false)
        }
    }
}

/// Asks whether the data key can be unwrapped, and writes what that means.
async fn ask(house: &Arc<Reconciler>, entry: &Entry) -> Result<bool, store::Error> {
    let (id, now) = (entry.cluster.id, house.now());
    let mut answer = asked(house.host.try_key(id)).await;
    if entry.seen.keys.denied.is_none() && matches!(answer, Err(Trouble::Denied(_))) {
        tokio::time::sleep(CONFIRM_AFTER).await;
        answer = asked(house.host.try_key(id)).await;
    }
    let (was, is_revoked) = (&entry.seen.keys, entry.cluster.keys.is_revoked);
    let spec = entry.cluster.keys.spec();
    match answer {
        Ok(()) => {
            if was.outage.is_some() {
                tracing::info!(cluster = %id, key = %spec, "the key service answers again");
            }
            if was.denied.is_some() {
                tracing::info!(target: "audit", cluster = %id, key = %spec, "the key may be used again; the cluster comes back by itself");
            }
            if is_revoked && was.was_denied_since_revocation {
                let given_back = move |store: &store::Store| {
                    store.edit::<(), store::Error>(id, now, |cluster| {
                        cluster.keys.is_revoked = false;
                        Ok(())
                    })
                };
                house.write(given_back).await?;
                tracing::info!(target: "audit", cluster = %id, key = %spec, "the revocation is over: the key service gave the key back");
            }
            note(house, id, |seen| {
                (seen.denied, seen.outage) = (None, None);
                seen.was_denied_since_revocation = false;
            })
            .await?;
        }
        Err(Trouble::Denied(reason)) => {
            if was.denied.is_none() {
                tracing::error!(target: "audit", cluster = %id, key = %spec, reason, "the key may not be used; sessions are cut and the volume is locked");
            }
            note(house, id, move |seen| {
                seen.denied = Some(reason);
                seen.outage = None;
                seen.was_denied_since_revocation = is_revoked;
            })
            .await?;
        }
        Err(trouble @ (Trouble::Silent(_) | Trouble::NotLetIn(_))) => {
            let are_credentials_refused = matches!(trouble, Trouble::NotLetIn(_));
            let since = was.outage.as_ref().map_or(now, |outage| outage.since);
            let before = was.outage.as_ref().map(|outage| outage.are_credentials_refused);
            let reason = trouble.to_string();
            if before != Some(are_credentials_refused) {
                let what = ["gives no answer", "does not accept the credentials"]
                    [usize::from(are_credentials_refused)];
                tracing::error!(cluster = %id, key = %spec, reason, "the key service {what}; a running cluster runs on, a sleeping one cannot wake, and it is asked again");
            }
            let outage = KeyOutage { since, reason, are_credentials_refused };
            let overdue = outage.overdue(now, house.settings.credentials_refused_max);
            let newly = overdue.as_ref().filter(|_| was.denied.is_none());
            newly.inspect(|reason| tracing::error!(target: "audit", cluster = %id, key = %spec, reason, "sessions are cut and the volume is locked"));
            note(house, id, move |seen| {
                seen.outage = Some(outage);
                seen.denied = seen.denied.take().or(overdue);
            })
            .await?;
        }
    }
    Ok(true)
}

async fn copy(house: &Arc<Reconciler>, entry: &Entry) -> Result<bool, store::Error> {
    let id = entry.cluster.id;
    // A switch that came to its end since the cluster was looked at has met the demand: another copy would be nobody's.
    if !house.store.snapshot().get(&id).is_some_and(|entry| wants_data_key(entry)) {
        return Ok(true);
    }
    tracing::info!(cluster = %id, "copying the volume under a new data key");
    match house.host.copy_volume(&entry.cluster).await {
        Ok(Copied::Done) => {
            note(house, id, |seen| seen.failure = None).await?;
            // Nobody else wrote: the engines' loop has to look.
            house.copied.notify_one();
            Ok(true)
        }
        Ok(Copied::GivenUp) => Ok(false),
        Err(cause) => {
            let reason = format!("the volume could not be copied under a new data key: {cause}");
            tracing::error!(cluster = %id, reason, "the earlier data key stays in use, and it is tried again");
            let demand = entry.cluster.keys.rewraps;
            note(house, id, move |seen| (seen.failure, seen.failed_demand) = (Some(reason), demand)).await?;
            Ok(false)
        }
    }
}

async fn note_locked(
    house: &Arc<Reconciler>,
    entry: &Entry,
    is_locked_away: bool,
) -> Result<bool, store::Error> {
    let id = entry.cluster.id;
    if is_locked_away {
        tracing::info!(target: "audit", cluster = %id, "revoked: nothing runs, and the data key is out of the kernel");
    }
    note(house, id, move |seen| seen.is_locked_away = is_locked_away).await?;
    Ok(true)
}

/// Writes which key is about to wrap the data key, so that after a crash both it and the earlier one are known.
pub(crate) async fn announce(
    house: &Reconciler,
    id: ClusterId,
    spec: &model::KeySpec,
) -> Result<(), store::Error> {
    let spec = spec.clone();
    let noted = move |store: &store::Store| {
        store.observe_keys(id, |seen| {
            if !seen.tried.contains(&spec) {
                seen.tried.insert(0, spec);
                seen.tried.truncate(KEYS_KEPT_MAX);
            }
        })
    };
    house.write(noted).await
}

/// Writes which key wraps the data key, newest first among those that did.
pub(crate) fn remember(seen: &mut KeysSeen, used: &KeyUse, now: OffsetDateTime) {
    seen.wrapped_by = Some(used.spec.clone());
    seen.tried.clear();
    let known = seen.keys.iter().position(|key| key.spec == used.spec).map(|place| seen.keys.remove(place));
    let key = KeySeen {
        spec: used.spec.clone(),
        version: used.version.clone(),
        status: CmekStatus::Enabled,
        user_message: String::new(),
        created_at: known.map_or(now, |known| known.created_at),
        updated_at: now,
    };
    seen.keys.insert(0, key);
    seen.keys.truncate(KEYS_KEPT_MAX);
}

/// Why a question had no good answer.
enum Trouble {
    /// The service said no.
    Denied(String),
    /// The service does not accept what we sign in with. Nothing is known of the key.
    NotLetIn(String),
    /// Nothing is known.
    Silent(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Denied(reason) | Self::NotLetIn(reason) | Self::Silent(reason) => f.write_str(reason),
        }
    }
}

async fn asked<T>(work: impl Future<Output = Result<T, engine::Error>>) -> Result<T, Trouble> {
    match timeout(ASK_MAX, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(engine::Error::DataKey(cause))) => {
            let reason = cause.to_string();
            Err(match cause {
                KeyFailure::Denied { .. } => Trouble::Denied(reason),
                KeyFailure::Unauthenticated { .. } => Trouble::NotLetIn(reason),
                // A wrapped key that does not open, or is not the cluster's, is no word of the service's.
                KeyFailure::Unreachable { .. }
                | KeyFailure::Unusable { .. }
                | KeyFailure::DoesNotOpen { .. }
                | KeyFailure::NotItsKey { .. } => Trouble::Silent(reason),
            })
        }
        Ok(Err(cause)) => Err(Trouble::Silent(cause.to_string())),
        Err(_) => Err(Trouble::Silent(format!("no answer within {} s", ASK_MAX.as_secs()))),
    }
}

async fn note(
    house: &Arc<Reconciler>,
    id: ClusterId,
    change: impl FnOnce(&mut KeysSeen) + Send + 'static,
) -> Result<(), store::Error> {
    house.write(move |store| store.observe_keys(id, change)).await
}

#[cfg(test)]
mod tests {
    use model::{KeySpec, KeyType, Phase, Power};

    use super::*;

    fn key() -> KeySpec {
        KeySpec { kind: KeyType::Vault, uri: "transit/keys/shop".into(), ..KeySpec::root() }
    }

    fn seen(keys: KeysSeen) -> Observation {
        Observation { phase: Phase::Running, is_initialized: true, keys, ..Observation::nothing_yet() }
    }

    const RUN: Wish = Wish::Exists(Power::Running);
    const READY: KeyFacts = KeyFacts {
        is_at_rest: false,
        is_copied: false,
        is_root_old: false,
        is_ask_due: false,
        may_try: true,
    };

    #[test]
    fn a_demand_is_met_once_and_not_while_it_failed_a_moment_ago() {
        let wish = KeyWish { cmek: Some(key()), rewraps: 1, ..KeyWish::default() };
        let mut now = seen(KeysSeen::default());
        assert_eq!(decide_keys(RUN, &wish, &now, READY), Some(KeyStep::Rewrap));
        assert_eq!(decide_keys(RUN, &wish, &now, KeyFacts { may_try: false, ..READY }), None);
        now.keys = KeysSeen { rewraps: 1, wrapped_by: Some(key()), ..KeysSeen::default() };
        assert_eq!(decide_keys(RUN, &wish, &now, READY), None);
        // A copy that was begun before the demand is wrapped as it was then.
        now.keys.wrapped_by = Some(KeySpec::root());
        assert_eq!(decide_keys(RUN, &wish, &now, READY), Some(KeyStep::Rewrap));
        now.is_initialized = false;
        assert_eq!(decide_keys(RUN, &wish, &now, READY), None);
        assert_eq!(decide_keys(Wish::Deleted, &wish, &now, READY), None);
    }

    #[test]
    fn what_is_revoked_is_locked_away_and_asked_for_and_nothing_else() {
        let wish =
            KeyWish { cmek: Some(key()), is_revoked: true, rewraps: 2, data_keys: 1, ..KeyWish::default() };
        let mut now = seen(KeysSeen { rewraps: 1, wrapped_by: Some(key()), ..KeysSeen::default() });
        assert_eq!(decide_keys(RUN, &wish, &now, READY), None);
        let at_rest = KeyFacts { is_at_rest: true, is_ask_due: true, ..READY };
        assert_eq!(decide_keys(RUN, &wish, &now, at_rest), Some(KeyStep::Note { is_locked_away: true }));
        now.keys.is_locked_away = true;
        assert_eq!(decide_keys(RUN, &wish, &now, at_rest), Some(KeyStep::Ask));
        let given_back = KeyWish { is_revoked: false, ..wish };
        assert_eq!(decide_keys(RUN, &given_back, &now, READY), Some(KeyStep::Note { is_locked_away: false }));
    }

    #[test]
    fn a_volume_is_copied_once_and_only_after_its_key_is_settled() {
        let mut wish = KeyWish { data_keys: 1, ..KeyWish::default() };
        let now = seen(KeysSeen::default());
        assert_eq!(decide_keys(RUN, &wish, &now, READY), Some(KeyStep::Copy));
        assert_eq!(decide_keys(RUN, &wish, &now, KeyFacts { is_copied: true, ..READY }), None);
        wish.cmek = Some(key());
        wish.rewraps = 1;
        assert_eq!(decide_keys(RUN, &wish, &now, READY), Some(KeyStep::Rewrap));
        assert_eq!(decide_keys(RUN, &wish, &now, KeyFacts { may_try: false, ..READY }), None);
    }

    #[test]
    fn the_cloud_s_root_key_is_never_asked_for() {
        let due = KeyFacts { is_ask_due: true, ..READY };
        assert_eq!(decide_keys(RUN, &KeyWish::default(), &seen(KeysSeen::default()), due), None);
    }

    #[test]
    fn keys_are_remembered_newest_first_and_once() {
        let used = |name: &str, version: &str| KeyUse {
            spec: KeySpec { uri: name.to_owned(), ..key() },
            id: name.to_owned(),
            version: version.to_owned(),
            algorithm: String::new(),
        };
        let mut seen = KeysSeen::default();
        for (name, version) in [("a", "1"), ("b", "1"), ("a", "2")] {
            remember(&mut seen, &used(name, version), OffsetDateTime::UNIX_EPOCH);
        }
        let kept: Vec<(&str, &str)> =
            seen.keys.iter().map(|key| (key.spec.uri.as_str(), key.version.as_str())).collect();
        assert_eq!(kept, [("a", "2"), ("b", "1")]);
        assert_eq!(seen.wrapped_by, Some(KeySpec { uri: "a".into(), ..key() }));
    }
}
