//! Brings an engine to the point where it can be used: writes the wish, and waits for the observation.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use engine::Host;
use gateway::directory::{Engine, NotReady};
use gateway::examine::Vouched;
use model::{Clock, ClusterId, Phase, Power, Provisioned, RoleName, Wish};
use reconcile::Gate;
use store::{Entry, Store};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

/// For an engine to answer. Making a cluster or replaying a crashed one's log takes longest.
const WAKE_MAX: Duration = Duration::from_secs(90);
/// An engine that broke is started again by itself; a caller waits for one such start and no longer.
const PATIENCE_WITH_BROKEN: Duration = Duration::from_secs(5);
/// Should a change be missed, it is looked again after this.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Wakes clusters.
pub struct Waker {
    store: Arc<Store>,
    host: Arc<Host>,
    clock: Arc<dyn Clock>,
    gate: Arc<Gate>,
    turns: Turns,
}

/// One at a time for each user who is made or gets other roles: PostgreSQL refuses changes of one role that meet.
#[derive(Default)]
struct Turns(Mutex<HashMap<(ClusterId, RoleName), Weak<Turn>>>);

type Turn = tokio::sync::Mutex<()>;

/// Turns that nobody waits for any more are forgotten when there are so many.
const TURNS_KEPT: usize = 1_000;

impl Turns {
    fn of(&self, cluster: ClusterId, role: &RoleName) -> Arc<Turn> {
        // Single inserts and removals.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (cluster, role.clone());
        if let Some(turn) = all.get(&key).and_then(Weak::upgrade) {
            return turn;
        }
        if all.len() >= TURNS_KEPT {
            all.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = Arc::default();
        all.insert(key, Arc::downgrade(&turn));
        turn
    }
}

/// Where a cluster stands on its way to being usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Ready,
    /// Nobody wished for it to run yet.
    Unwished,
    Underway,
    Broken(NotReady),
    Refused(NotReady),
}

impl Waker {
    /// Puts the waker together. The gate is the one that the idle loop closes.
    pub fn new(store: Arc<Store>, host: Arc<Host>, clock: Arc<dyn Clock>, gate: Arc<Gate>) -> Arc<Self> {
        Arc::new(Self { store, host, clock, gate, turns: Turns::default() })
    }

    /// Wakes the cluster, if it sleeps. Whoever calls must already be counted as using it, or it may fall asleep again.
    pub async fn wake(&self, id: ClusterId) -> Result<(), NotReady> {
        let deadline = Instant::now() + WAKE_MAX;
        let mut broken_until = None;
        let mut changes = self.store.changes();
        loop {
            changes.mark_unchanged();
            match self.look_and_wish(id).await? {
                Standing::Ready => return Ok(()),
                Standing::Refused(reason) => return Err(reason),
                Standing::Broken(reason) => {
                    let until = *broken_until.get_or_insert(Instant::now() + PATIENCE_WITH_BROKEN);
                    if Instant::now() >= until {
                        return Err(reason);
                    }
                }
                Standing::Unwished | Standing::Underway => {}
            }
            if Instant::now() >= deadline {
                return Err(NotReady::TimedOut);
            }
            let look_again = deadline.min(Instant::now() + LOOK_EVERY);
            if let Ok(Err(_)) = timeout_at(look_again, changes.changed()).await {
                return Err(NotReady::Failed);
            }
        }
    }

    async fn look_and_wish(&self, id: ClusterId) -> Result<Standing, NotReady> {
        // Inside the gate nobody is put to sleep: either we were counted in time, or the wish to sleep is seen here.
        let _passed = self.gate.pass().await;
        let snapshot = self.store.snapshot();
        let standing = snapshot
            .get(&id)
            .map_or(Standing::Refused(NotReady::Gone), |entry| standing(entry, self.host.is_running(id)));
        if standing != Standing::Unwished {
            return Ok(standing);
        }
        let (store, now) = (self.store.clone(), self.clock.now());
        let wished =
            tokio::task::spawn_blocking(move || store.wish(id, Wish::Exists(Power::Running), now)).await;
        match wished {
            Ok(Ok(())) => Ok(Standing::Underway),
            Ok(Err(store::Error::NotFound(_))) => Err(NotReady::Gone),
            Ok(Err(cause)) => {
                tracing::error!(cluster = %id, %cause, "could not wish for the cluster to run");
                Err(NotReady::Failed)
            }
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

fn standing(entry: &Entry, is_running: bool) -> Standing {
    match (entry.cluster.wish, &entry.seen.phase) {
        (Wish::Deleted, _) | (_, Phase::Deleting) => Standing::Refused(NotReady::Gone),
        (_, Phase::Failed { .. }) => Standing::Refused(NotReady::Failed),
        _ if entry.seen.keys.hindrance(&entry.cluster.keys).is_some() => {
            Standing::Refused(NotReady::KeyRevoked)
        }
        _ if entry.seen.storage.is_stopped(entry.cluster.storage()) => {
            Standing::Refused(NotReady::StorageUsedUp)
        }
        (Wish::Exists(Power::Asleep), _) => Standing::Unwished,
        (Wish::Exists(Power::Running), Phase::Running) if is_running => Standing::Ready,
        (Wish::Exists(Power::Running), Phase::Broken { .. }) => {
            Standing::Broken(match &entry.seen.keys.outage {
                Some(outage) if outage.are_credentials_refused => NotReady::KeyServiceNotLettingIn,
                Some(_) => NotReady::KeyServiceSilent,
                None => NotReady::Failed,
            })
        }
        (
            Wish::Exists(Power::Running),
            Phase::Running | Phase::Creating | Phase::Asleep | Phase::Waking | Phase::Stopping,
        ) => Standing::Underway,
    }
}

impl Waker {
    /// Gives the engine the user and the memberships that somebody vouched for. What was begun is finished, also when
    /// nobody waits for it any longer.
    async fn grant(
        &self,
        cluster: ClusterId,
        role: &RoleName,
        vouched: &Vouched,
    ) -> Result<(), engine::Error> {
        if vouched.source.is_none() && vouched.memberships.is_none() {
            return Ok(());
        }
        let (store, host, now) = (self.store.clone(), self.host.clone(), self.clock.now());
        let (role, vouched) = (role.clone(), vouched.clone());
        let turn = self.turns.of(cluster, &role);
        let granting = tokio::spawn(async move {
            let _turn = turn.lock().await;
            let engine = host.administration(cluster).await?;
            match engine.role(&role).await? {
                // Somebody took away the right to sign in since it was looked at, or it is a role for groups.
                Some(known) if !known.role.can_login => {
                    return Err(engine::Error::Refused(format!("role '{role}' may not sign in")));
                }
                Some(_) => {}
                None => {
                    let Some(source) = vouched.source else {
                        return Err(engine::Error::NotFound { what: "user", name: role.to_string() });
                    };
                    // Remembered first: a user that exists and is not remembered would not be locked.
                    let (user, made) = (role.clone(), Provisioned { source: source.clone(), at: now });
                    let kept = tokio::task::spawn_blocking(move || {
                        store.put_provisioned(cluster, user.as_str(), made)
                    });
                    let kept = kept.await.map_err(|panic| panic.to_string());
                    kept.and_then(|kept| kept.map_err(|cause| cause.to_string())).map_err(|cause| {
                        engine::Error::Unready(format!("the user's source could not be kept: {cause}"))
                    })?;
                    if engine.provision(&role).await? {
                        tracing::info!(target: "audit", %cluster, user = %role, %source, "a token made a SQL user");
                    }
                }
            }
            match &vouched.memberships {
                Some(memberships) => engine.set_memberships(&role, memberships).await,
                None => Ok(()),
            }
        });
        granting.await.unwrap_or_else(|panic| Err(engine::Error::Unready(panic.to_string())))
    }
}

#[async_trait]
impl gateway::directory::Waker for Waker {
    async fn engine(
        &self,
        cluster: ClusterId,
        role: &RoleName,
        vouched: Option<&Vouched>,
    ) -> Result<Arc<dyn Engine>, NotReady> {
        self.wake(cluster).await?;
        if let Some(vouched) = vouched
            && let Err(cause) = self.grant(cluster, role, vouched).await
        {
            tracing::error!(%cluster, user = %role, %cause, "what a token gives could not be granted");
            return Err(NotReady::NotGranted);
        }
        if let Err(cause) = self.host.admit(cluster, role).await {
            tracing::error!(%cluster, %cause, "the engine does not take a user in");
            return Err(NotReady::Failed);
        }
        let connector = self.host.connector(cluster).ok_or(NotReady::Failed)?;
        let memory_kills = self.host.memory_kills(cluster).ok_or(NotReady::Failed)?;
        Ok(Arc::new(EngineRun { connector, memory_kills }))
    }
}

/// One run of an engine, as the gateway knows it.
struct EngineRun {
    connector: Arc<engine::Connector>,
    memory_kills: engine::MemoryKills,
}

#[async_trait]
impl Engine for EngineRun {
    async fn connect(&self) -> io::Result<UnixStream> {
        self.connector.connect().await
    }

    fn has_run_out_of_memory(&self) -> bool {
        self.memory_kills.count() > 0
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker")
    }
}

#[cfg(test)]
mod tests {
    use model::{Cluster, Observation};

    use super::*;
    use crate::testing::cluster;

    fn entry(wish: Wish, phase: Phase) -> Entry {
        let seen = Observation { phase, is_initialized: true, ..Observation::nothing_yet() };
        Entry::new(Cluster { wish, ..cluster() }, seen)
    }

    #[test]
    fn an_engine_is_ready_only_when_it_should_run_and_does() {
        let (run, sleep) = (Wish::Exists(Power::Running), Wish::Exists(Power::Asleep));
        assert_eq!(standing(&entry(run, Phase::Running), true), Standing::Ready);
        // What was seen may be older than the engine's death.
        assert_eq!(standing(&entry(run, Phase::Running), false), Standing::Underway);
        // Still running, but on its way to sleep: a session opened now would be cut.
        assert_eq!(standing(&entry(sleep, Phase::Running), true), Standing::Unwished);
        assert_eq!(standing(&entry(run, Phase::Stopping), true), Standing::Underway);
        assert_eq!(standing(&entry(Wish::Deleted, Phase::Running), true), Standing::Refused(NotReady::Gone));
    }

    #[test]
    fn whoever_waits_hears_that_the_key_is_the_reason() {
        let run = Wish::Exists(Power::Running);
        let mut revoked = entry(run, Phase::Running);
        revoked.cluster.keys.is_revoked = true;
        assert_eq!(standing(&revoked, true), Standing::Refused(NotReady::KeyRevoked));
        let mut denied = entry(Wish::Exists(Power::Asleep), Phase::Asleep);
        denied.seen.keys.denied = Some("the key is disabled".to_owned());
        assert_eq!(standing(&denied, false), Standing::Refused(NotReady::KeyRevoked));
        let mut silent = entry(run, Phase::Broken { reason: "no answer".to_owned() });
        assert_eq!(standing(&silent, false), Standing::Broken(NotReady::Failed));
        let since = time::OffsetDateTime::UNIX_EPOCH;
        let outage = |are_credentials_refused| model::KeyOutage {
            since,
            reason: "no answer".to_owned(),
            are_credentials_refused,
        };
        silent.seen.keys.outage = Some(outage(false));
        assert_eq!(standing(&silent, false), Standing::Broken(NotReady::KeyServiceSilent));
        silent.seen.keys.outage = Some(outage(true));
        assert_eq!(standing(&silent, false), Standing::Broken(NotReady::KeyServiceNotLettingIn));
    }
}
