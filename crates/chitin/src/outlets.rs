//! Lets engines reach the outside, where that is switched on: listeners of ours in an engine's own network, and what
//! comes there is carried through the gate.
//!
//! The engine keeps having no network. A name that its cluster's rules offer is known inside at a loopback address of its
//! own; who listens there is this program. TLS stays between PostgreSQL and the far database.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use engine::{Host, Run};
use model::{
    Cluster, ClusterId, EgressHost, FetchFailure, FqdnName, OUTLET_CONNECTIONS_MAX, Outlet, Plan, Wish,
};
use network::{Gate, Target};
use store::Store;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Should a change be missed, or an engine end by itself, it is looked again after this.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// An outlet that could not be opened is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Connections of one engine that are being opened at a time; further ones wait.
const DIALS_MAX: usize = 16;
/// For a turn to be dialled, and no longer: the gate has its own time.
const TURN_MAX: Duration = Duration::from_secs(10);
/// A listener that cannot accept, for instance for want of descriptors, rests.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The first address that names are known at; the others follow. Far from 127.0.0.1, where engines may listen themselves.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 1);

/// The outlets of all engines.
pub struct Outlets {
    store: Arc<Store>,
    host: Arc<Host>,
    gate: Arc<Gate>,
    /// For the connections of all engines.
    places: Arc<Semaphore>,
    /// Up to which change of the state outlets are as they should be.
    settled: watch::Sender<u64>,
    tasks: TaskTracker,
}

/// Those of one run of an engine. When this is dropped, its listeners and connections end.
struct Open {
    run: Run,
    /// An address is never given to another name as long as the engine runs: it may remember.
    addresses: BTreeMap<FqdnName, Ipv4Addr>,
    next: Ipv4Addr,
    listeners: BTreeMap<Outlet, DropGuard>,
    failed: BTreeSet<Outlet>,
    retry_at: Instant,
    bounds: Bounds,
}

/// What one engine has of connections.
#[derive(Clone)]
struct Bounds {
    seats: Arc<Semaphore>,
    dials: Arc<Semaphore>,
}

impl Outlets {
    /// Of the engines of this host, which may have so many connections together.
    pub fn new(store: Arc<Store>, host: Arc<Host>, gate: Arc<Gate>, connections_max: usize) -> Arc<Self> {
        let settled = watch::Sender::new(0);
        let places = Arc::new(Semaphore::new(connections_max));
        Arc::new(Self { store, host, gate, places, settled, tasks: TaskTracker::new() })
    }

    /// The gate that they lead through.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Keeps outlets as they should be until `stop`; ends every connection then.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.store.changes();
        let mut open = HashMap::new();
        loop {
            let seen = *changes.borrow_and_update();
            self.look(&mut open).await;
            self.settled.send_replace(seen);
            tokio::select! {
                () = stop.cancelled() => break,
                changed = timeout(LOOK_EVERY, changes.changed()) => if let Ok(Err(_)) = changed { break },
            }
        }
        open.clear();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Waits until outlets are as the state says at this moment. False if that takes too long.
    pub async fn settle(&self, patience: Duration) -> bool {
        let now = *self.store.changes().borrow();
        let mut settled = self.settled.subscribe();
        timeout(patience, settled.wait_for(|seen| *seen >= now)).await.is_ok_and(|seen| seen.is_ok())
    }

    async fn look(self: &Arc<Self>, open: &mut HashMap<ClusterId, Open>) {
        let snapshot = self.store.snapshot();
        let wanted: HashMap<ClusterId, (Run, &Cluster)> = snapshot
            .reaching()
            .map(|entry| &entry.cluster)
            .filter(|cluster| cluster.plan == Plan::Dedicated && cluster.wish != Wish::Deleted)
            .filter_map(|cluster| Some((cluster.id, (self.host.run(cluster.id)?, cluster))))
            .collect();
        let is_wanted = |id: &ClusterId, kept: &Open| wanted.get(id).is_some_and(|(run, _)| *run == kept.run);
        let gone: Vec<ClusterId> =
            open.iter().filter(|(id, kept)| !is_wanted(id, kept)).map(|(id, _)| *id).collect();
        for id in gone {
            open.remove(&id);
            // An engine that ended has no names any more; one that runs on forgets them.
            let _ = self.host.name_inside(id, Vec::new()).await;
        }
        for (id, (run, cluster)) in wanted {
            let kept = open.entry(id).or_insert_with(|| Open::new(run));
            match self.adjust(cluster, kept).await {
                // It ended meanwhile, and the next look finds it gone.
                Ok(()) | Err(engine::Error::Asleep) => {}
                Err(cause) => {
                    kept.retry_at = Instant::now() + RETRY_AFTER;
                    tracing::warn!(cluster = %id, %cause, "the engine's way out could not be opened; it is tried again");
                }
            }
        }
    }

    /// Closes what is offered no longer, and opens what is new.
    async fn adjust(self: &Arc<Self>, cluster: &Cluster, open: &mut Open) -> Result<(), engine::Error> {
        let offered = cluster.egress.outlets().offered;
        let before = open.listeners.len();
        open.listeners.retain(|outlet, _| offered.contains(outlet));
        let is_resting = Instant::now() < open.retry_at;
        let new: Vec<Outlet> = offered
            .iter()
            .filter(|outlet| !open.listeners.contains_key(outlet))
            .filter(|outlet| !(is_resting && open.failed.contains(outlet)))
            .cloned()
            .collect();
        if new.is_empty() && before == open.listeners.len() {
            return Ok(());
        }
        open.failed.retain(|outlet| offered.contains(outlet));
        open.failed.extend(new.iter().cloned());
        let addresses =
            new.iter().map(|outlet| SocketAddrV4::new(open.address_of(&outlet.host), outlet.port)).collect();
        let listening = self.host.listen_inside(cluster.id, open.run, addresses).await?;
        for (outlet, listening) in new.into_iter().zip(listening) {
            match listening.and_then(TcpListener::from_std) {
                Ok(listener) => {
                    open.failed.remove(&outlet);
                    let guard = self.serve(cluster.id, &outlet, listener, open.bounds.clone());
                    open.listeners.insert(outlet, guard);
                }
                Err(cause) => {
                    open.retry_at = Instant::now() + RETRY_AFTER;
                    let Outlet { host, port } = outlet;
                    tracing::warn!(cluster = %cluster.id, %host, port, %cause, "an engine cannot be offered this");
                }
            }
        }
        let names: BTreeMap<&FqdnName, Ipv4Addr> = open
            .listeners
            .keys()
            .filter_map(|outlet| Some((&outlet.host, *open.addresses.get(&outlet.host)?)))
            .collect();
        let names = names.into_iter().map(|(name, address)| (name.to_string(), address)).collect();
        self.host.name_inside(cluster.id, names).await
    }

    /// Accepts until the guard is dropped.
    fn serve(
        self: &Arc<Self>,
        cluster: ClusterId,
        outlet: &Outlet,
        listener: TcpListener,
        bounds: Bounds,
    ) -> DropGuard {
        let closed = CancellationToken::new();
        let (outlets, outlet, until) = (self.clone(), outlet.clone(), closed.clone());
        self.tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = until.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((near, _)) = accepted else {
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                let Ok(seat) = bounds.seats.clone().try_acquire_owned() else {
                    tracing::warn!(%cluster, max = OUTLET_CONNECTIONS_MAX, "an engine has too many connections to the outside; one more was closed");
                    continue;
                };
                let Ok(place) = outlets.places.clone().try_acquire_owned() else {
                    tracing::warn!(%cluster, "an engine's connection to the outside was closed: all that the limit on open files leaves for them are taken; raise it (LimitNOFILE= of a systemd unit, ulimit -Hn)");
                    continue;
                };
                let places = ([seat, place], bounds.dials.clone());
                let carried = outlets.clone().carry(cluster, outlet.clone(), near, places, until.clone());
                outlets.tasks.spawn(carried);
            }
        });
        closed.drop_guard()
    }

    /// Carries one connection to its end.
    async fn carry(
        self: Arc<Self>,
        cluster: ClusterId,
        outlet: Outlet,
        near: TcpStream,
        (_places, dials): ([OwnedSemaphorePermit; 2], Arc<Semaphore>),
        closed: CancellationToken,
    ) {
        let Outlet { host, port } = outlet;
        let target = Target { host: EgressHost::Name(host.as_str().to_owned()), port };
        let carried = async {
            let passage = {
                let turn = timeout(TURN_MAX, dials.acquire()).await;
                let _turn = turn.map_err(|_| FetchFailure::TimedOut)?;
                self.gate.open(cluster, target).await?
            };
            self.gate.carry(passage, near).await
        };
        let ended = tokio::select! {
            biased;
            () = closed.cancelled() => Err(FetchFailure::Refused("no rule offers it to the engine any more".to_owned())),
            ended = carried => ended,
        };
        match ended {
            Ok((bytes_out, bytes_in)) => {
                tracing::info!(%cluster, %host, port, bytes_out, bytes_in, "an engine's connection to the outside has ended");
            }
            Err(cause) => {
                tracing::warn!(%cluster, %host, port, %cause, "an engine's connection to the outside was not carried on");
            }
        }
    }
}

impl Open {
    fn new(run: Run) -> Self {
        Self {
            run,
            addresses: BTreeMap::new(),
            next: FIRST_ADDRESS,
            listeners: BTreeMap::new(),
            failed: BTreeSet::new(),
            retry_at: Instant::now(),
            bounds: Bounds {
                seats: Arc::new(Semaphore::new(OUTLET_CONNECTIONS_MAX)),
                dials: Arc::new(Semaphore::new(DIALS_MAX)),
            },
        }
    }

    fn address_of(&mut self, host: &FqdnName) -> Ipv4Addr {
        if let Some(known) = self.addresses.get(host) {
            return *known;
        }
        let address = self.next;
        // There are millions, and each takes somebody who edits a rule.
        self.next = Ipv4Addr::from(u32::from(address).wrapping_add(1));
        self.addresses.insert(host.clone(), address);
        address
    }
}

impl std::fmt::Debug for Outlets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outlets")
    }
}

#[cfg(test)]
mod tests;
