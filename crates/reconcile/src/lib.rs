//! Loops that make the wish true: they read what should be, look at the machine, act, and write what they saw.
//!
//! A loop takes no argument. Nudges only make it look sooner, so a lost one costs time and never correctness.

mod answers;
mod back_off;
mod checkpoints;
mod connections;
mod decide;
mod engines;
mod expiry;
mod gate;
mod idle;
mod keys;
mod memory;
mod networks;
mod roles;
mod state;
mod storage;
mod ticks;
mod volumes;

pub use back_off::{BackOff, LONGEST, SHORTEST};
pub use decide::{EngineFacts, Step, decide};
pub use gate::Gate;
pub use keys::{KeyFacts, KeyStep, decide_keys};
pub use networks::{FrontDoors, NetworkReconciler, NetworkSettings};

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::time::OffsetDateTime;
use engine::Host;
use model::{Clock, ClusterId, Observation};
use store::Store;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Who is using a cluster right now. Answered by the program.
pub trait Sessions: Send + Sync + 'static {
    /// How many use the cluster, those who still wait for its engine included.
    fn count(&self, cluster: ClusterId) -> usize;

    /// When the last of them left; `None` while somebody is there or if nobody ever was.
    fn idle_since(&self, cluster: ClusterId) -> Option<std::time::Instant>;

    /// Ends the sessions of a cluster whose volume was lost under its engine, and says so to them.
    fn cut_for_lost_volume(&self, cluster: ClusterId);

    /// The clusters that refused somebody since the last call because all sessions that they may have were in use, and when last.
    fn take_used_up(&self) -> HashMap<ClusterId, std::time::Instant>;
}

/// The cloud's root key while it is exchanged. Answered by the program.
pub trait RootRotation: Send + Sync + 'static {
    /// The version that data keys should be wrapped by, while some may still be wrapped by earlier ones.
    fn rotating_to(&self) -> Option<String>;
}

/// What the operator may set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A serverless cluster without sessions sleeps after this.
    pub idle_after: Duration,
    /// Every cluster is looked at this often, nudged or not.
    pub look_every: Duration,
    /// The roles of running engines are read this often.
    pub roles_every: Duration,
    /// Key services are asked this often whether a cluster's key may still be used.
    pub keys_every: Duration,
    /// The same while a cluster waits for its key.
    pub keys_again_after: Duration,
    /// A cluster whose key service has refused the credentials for so long is stopped as if the key were denied; without one
    /// it runs on.
    pub credentials_refused_max: Option<Duration>,
    /// Most clusters that are worked on at a time.
    pub parallel_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            idle_after: Duration::from_secs(300),
            look_every: Duration::from_secs(10),
            roles_every: Duration::from_secs(60),
            keys_every: Duration::from_secs(60),
            keys_again_after: Duration::from_secs(5),
            credentials_refused_max: None,
            parallel_max: 8,
        }
    }
}

/// What all loops share.
pub struct Reconciler {
    store: Arc<Store>,
    host: Arc<Host>,
    sessions: Arc<dyn Sessions>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    gate: Arc<Gate>,
    root: Arc<dyn RootRotation>,
    /// A volume was copied, and the engines' loop has to switch to it.
    copied: Notify,
    /// When each engine was started by this process.
    awake_since: Mutex<HashMap<ClusterId, Instant>>,
    /// Clusters whose switch to a copied volume is under way, until it is written that their demand is met.
    switching: Mutex<HashSet<ClusterId>>,
}

/// A cluster's switch, from before its first step until it is written what came of it.
struct Switching<'a> {
    house: &'a Reconciler,
    id: ClusterId,
}

impl Drop for Switching<'_> {
    fn drop(&mut self) {
        self.house.switching().remove(&self.id);
    }
}

impl Reconciler {
    /// Puts the loops together; [`Self::run`] starts them. The gate is the one that wakers pass through.
    pub fn new(
        store: Arc<Store>,
        host: Arc<Host>,
        sessions: Arc<dyn Sessions>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        gate: Arc<Gate>,
        root: Arc<dyn RootRotation>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            host,
            sessions,
            clock,
            settings,
            gate,
            root,
            copied: Notify::new(),
            awake_since: Mutex::default(),
            switching: Mutex::default(),
        })
    }

    /// Runs all loops until `stop`, then lets what was begun come to its end.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        // Before anything is marked anew, or made.
        state::compare(&self).await;
        tokio::join!(
            engines::run(self.clone(), stop.clone()),
            keys::run(self.clone(), stop.clone()),
            idle::run(&self, &stop),
            roles::run(&self, &stop),
            checkpoints::run(&self, &stop),
            memory::run(&self, &stop),
            connections::run(&self, &stop),
            volumes::run(&self, &stop),
            expiry::run(&self, &stop),
            storage::run(&self, &stop),
            state::run(&self, &stop),
            answers::run(&self, &stop)
        );
        roles::refresh_all(&self).await;
    }

    /// Writes how far the files of clusters have come whose engines were stopped with the program.
    pub async fn remember_checkpoints(&self) {
        checkpoints::remember_all(self).await;
    }

    /// The time as the API tells it: clients compare what they get, and all of it is in microseconds.
    fn now(&self) -> OffsetDateTime {
        let now = self.clock.now();
        now.replace_nanosecond(now.microsecond() * 1_000).unwrap_or(now)
    }

    fn awake_since(&self) -> MutexGuard<'_, HashMap<ClusterId, Instant>> {
        // Single inserts and removals: a panic elsewhere leaves the map whole.
        self.awake_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a switch is under way for as long as the answer lives.
    fn begin_switch(&self, id: ClusterId) -> Switching<'_> {
        self.switching().insert(id);
        Switching { house: self, id }
    }

    fn switching(&self) -> MutexGuard<'_, HashSet<ClusterId>> {
        self.switching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Store) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, store::Error> {
        write(&self.store, change).await
    }

    /// Takes back what was seen of clusters and has been said for long enough.
    async fn forget(&self, is_old: impl Fn(&Observation) -> bool, clear: fn(&mut Observation)) {
        let snapshot = self.store.snapshot();
        for id in snapshot.iter().filter(|entry| is_old(&entry.seen)).map(|entry| entry.cluster.id) {
            if let Err(cause) = self.write(move |store| store.note(id, clear)).await {
                tracing::warn!(cluster = %id, %cause, "could not write that what was said of a cluster is over");
            }
        }
    }
}

/// Writes to the store away from the threads that carry sessions: a write waits for the disk.
async fn write<T: Send + 'static>(
    store: &Arc<Store>,
    change: impl FnOnce(&Store) -> Result<T, store::Error> + Send + 'static,
) -> Result<T, store::Error> {
    let store = store.clone();
    match tokio::task::spawn_blocking(move || change(&store)).await {
        Ok(written) => written,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler").field("settings", &self.settings).finish_non_exhaustive()
    }
}
