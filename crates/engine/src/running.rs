//! One engine that was started: its processes, its volume, and how it is ended.

use std::collections::HashSet;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use model::{Cluster, ClusterId, Resources, RoutingId, StorageLimit, StorageUse, VolumeId};
use rustix::process::Signal;
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, broadcast, watch};
use tokio::time::{Instant, timeout};

use crate::Error;
use crate::cgroup::{Group, MemoryKills};
use crate::connector::Connector;
use crate::inside::Inside;
use crate::postgres::Postgres;
use crate::process::{self, Watcher, none_left};
use crate::settings;
use crate::volume::{Giving, Unlocked};

/// For a fast shutdown, which writes everything to the disk.
const STOP_MAX: Duration = Duration::from_secs(60);
/// For an immediate one.
const ABORT_MAX: Duration = Duration::from_secs(5);
/// Processes of an engine that ends are told so often to go on.
const GO_ON_EVERY: Duration = Duration::from_secs(1);
/// So many of them.
const PROCESSES_MAX: usize = 4_096;
/// Lines of its log that are told when it does not start.
const LAST_LINES: usize = 3;

/// One run of an engine, from its start to its end; no two are the same as long as this program lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run(u64);

impl Run {
    fn next() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self(COUNT.fetch_add(1, Ordering::Relaxed))
    }
}

/// An engine that was started.
pub(crate) struct Running {
    pub(crate) run: Run,
    pub(crate) id: ClusterId,
    pub(crate) routing_id: RoutingId,
    /// The process that holds the jail.
    pub(crate) jailer: u32,
    pub(crate) connector: Arc<Connector>,
    /// The installation that it was started from.
    pub(crate) postgres: Arc<Postgres>,
    /// Its control group.
    pub(crate) group: Option<Group>,
    /// What the group's limits were set to.
    pub(crate) resources: Mutex<Resources>,
    /// Since the start.
    pub(crate) memory_kills: MemoryKills,
    /// Which volume it runs on.
    pub(crate) on: VolumeId,
    pub(crate) volume: Mutex<Option<Unlocked>>,
    /// What it stored when it was last measured.
    pub(crate) measured: Mutex<Option<StorageUse>>,
    /// When more of what is kept back may be given: of its data and of its write-ahead log. Another run goes on with it.
    pub(crate) giving: Arc<Mutex<[Giving; 2]>>,
    /// Its storage limit when it started.
    pub(crate) started: StorageLimit,
    /// Sessions that it was started for.
    pub(crate) connections_max: u32,
    /// What its write-ahead log may grow to, in bytes.
    pub(crate) log_bytes_max: u64,
    /// It has started, and what it found free for that was taken back.
    pub(crate) is_settled: AtomicBool,
    /// How many times it could not be measured, one after the other.
    pub(crate) unmeasured: AtomicU32,
    exited: watch::Receiver<bool>,
    /// Set when the end is wanted, so that it is not reported as a death.
    stopping: Arc<AtomicBool>,
    /// Why its volume is of no use any more.
    lost: OnceLock<String>,
    /// Roles that its identity map names.
    pub(crate) admitted: AsyncMutex<HashSet<String>>,
}

impl Running {
    /// Watches over a process that was just started.
    pub(crate) fn watch(
        child: Child,
        connector: Connector,
        watch: Watch,
        (cluster, postgres, group): (&Cluster, Arc<Postgres>, Option<Group>),
        (on, volume, giving): (VolumeId, Unlocked, Arc<Mutex<[Giving; 2]>>),
        admitted: HashSet<String>,
    ) -> Self {
        let jailer = child.id();
        let (id, routing_id) = (cluster.id, cluster.routing_id);
        let Watch { watcher, exited, stopping } = watch;
        watcher.watch(child);
        let (volume, admitted) = (Mutex::new(Some(volume)), AsyncMutex::new(admitted));
        Self {
            run: Run::next(),
            id,
            routing_id,
            jailer,
            connector: Arc::new(connector),
            postgres,
            memory_kills: Group::watch_memory(group.as_ref()),
            group,
            resources: Mutex::new(cluster.resources()),
            on,
            volume,
            measured: Mutex::default(),
            giving,
            started: cluster.storage(),
            connections_max: cluster.connections_max(),
            log_bytes_max: settings::log_bytes_max(cluster),
            is_settled: AtomicBool::new(false),
            unmeasured: AtomicU32::new(0),
            exited,
            stopping,
            lost: OnceLock::new(),
            admitted,
        }
    }

    pub(crate) fn has_exited(&self) -> bool {
        *self.exited.borrow()
    }

    /// Returns when it has exited.
    pub(crate) async fn ended(&self) {
        // Whoever watches over it says so before it goes away.
        let _ = self.exited.clone().wait_for(|has_exited| *has_exited).await;
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Its volume is of no use any more.
    pub(crate) fn lose(&self, reason: &str) {
        // The first reason is the one that counts.
        let _ = self.lost.set(reason.to_owned());
    }

    pub(crate) fn lost(&self) -> Option<String> {
        self.lost.get().cloned()
    }

    /// Ends an engine whose volume is lost: nothing that it would write at its end comes to the disk, and it may wait for the
    /// volume for ever.
    pub(crate) async fn end_at_once(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        process::signal(self.jailer, Signal::KILL);
        let _ = timeout(ABORT_MAX, self.ended()).await;
    }

    fn let_go_on(&self) {
        for process in process::family(self.jailer, PROCESSES_MAX) {
            process::signal(process, Signal::CONT);
        }
    }

    /// All but the engine's first process: one that stands still answers nobody, which is noticed elsewhere.
    pub(crate) fn let_sessions_go_on(&self) {
        let Some(postmaster) = self.postmaster() else {
            return;
        };
        for process in process::family(postmaster, PROCESSES_MAX).into_iter().skip(1) {
            process::signal(process, Signal::CONT);
        }
    }

    fn postmaster(&self) -> Option<u32> {
        process::children(self.jailer).first().and_then(|init| process::children(*init).first().copied())
    }

    /// Ends the engine: asked nicely, unless it cannot write any more, then firmly, then killed.
    pub(crate) async fn end(&self, can_write: bool) {
        self.stopping.store(true, Ordering::SeqCst);
        let postmaster = self.postmaster();
        let ways = [(Signal::INT, STOP_MAX), (Signal::QUIT, ABORT_MAX)];
        for (signal, patience) in ways.into_iter().skip(usize::from(!can_write)) {
            let Some(postmaster) = postmaster.filter(|_| !self.has_exited()) else {
                break;
            };
            process::signal(postmaster, signal);
            let deadline = Instant::now() + patience;
            while !self.has_exited() && Instant::now() < deadline {
                // One that somebody stopped takes no notice, and its engine waits for it.
                self.let_go_on();
                let _ = timeout(GO_ON_EVERY, self.ended()).await;
            }
        }
        if !self.has_exited() {
            tracing::warn!("an engine did not stop when asked and was killed; it recovers at its next start");
            process::signal(self.jailer, Signal::KILL);
            let _ = timeout(ABORT_MAX, self.ended()).await;
        }
    }

    /// The end of what the engine wrote while it started, for the operator.
    pub(crate) fn last_words(&self) -> Option<String> {
        let volume = self.volume.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let log = Inside::open(&volume.as_ref()?.base, "log").ok()?;
        let text = log.read("start.log")?;
        let lines = text.lines().rev().filter(|line| !line.contains("redirecting"));
        let mut last: Vec<&str> = lines.take(LAST_LINES).collect();
        last.reverse();
        (!last.is_empty()).then(|| last.join("; "))
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("run", &self.run).field("id", &self.id).finish_non_exhaustive()
    }
}

/// What will watch over an engine's process, in a thread of its own. Made before the process is started, because an engine that
/// nobody watches over must not run.
pub(crate) struct Watch {
    watcher: Watcher,
    exited: watch::Receiver<bool>,
    stopping: Arc<AtomicBool>,
}

impl Watch {
    /// An end that nobody asked for will be told to `deaths`. The engine's place among those that may run, if they are
    /// bounded, is given back when its process has ended.
    pub(crate) fn prepare(
        id: ClusterId,
        place: Option<OwnedSemaphorePermit>,
        deaths: broadcast::Sender<ClusterId>,
    ) -> Result<Self, Error> {
        let stopping = Arc::new(AtomicBool::new(false));
        let (told, exited) = watch::channel(false);
        let is_wanted = stopping.clone();
        let ended = move |_, _| {
            drop(place);
            told.send_replace(true);
            if !is_wanted.load(Ordering::SeqCst) {
                // Nobody listening means that nobody is left to act on it.
                let _ = deaths.send(id);
            }
        };
        let watcher = Watcher::start("engine-watch", ended)
            .map_err(|cause| Error::NotWatched { reason: none_left(&cause) })?;
        Ok(Self { watcher, exited, stopping })
    }
}
