//! The loop that makes and keeps private networks, and opens and closes the front doors inside them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use model::{Cluster, ClusterId, Network, NetworkSeen, PeeringPhase, Wish};
use network::private::PrivateNetworks;
use store::Store;
use tokio::net::TcpListener;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// Every private network is compared with the kernel this often, nudged or not.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Most networks that are worked on at a time.
const PARALLEL_MAX: usize = 8;

/// Who serves clients at a front door inside a private network. Answered by the program.
pub trait FrontDoors: Send + Sync + 'static {
    /// Opens the doors of the cluster; the listeners are inside its private network.
    fn open(&self, cluster: ClusterId, sql: TcpListener, http: TcpListener);

    /// Closes them, and with them the sessions that came through. Closing what is closed changes nothing.
    fn close(&self, cluster: ClusterId);

    /// Returns when nobody is left inside who may not stay by the documents as they are now, or after a moment: links are
    /// removed after that, or the last words to those clients would go nowhere.
    fn told(&self, cluster: ClusterId) -> BoxFuture<'_, ()>;
}

/// Where front doors listen.
#[derive(Clone, Copy, Debug)]
pub struct NetworkSettings {
    /// The port for SQL clients, 1 to 65535.
    pub sql_port: u16,
    /// The port for the API and the pages, 1 to 65535.
    pub http_port: u16,
}

/// The loop; [`Self::run`] starts it.
pub struct NetworkReconciler {
    store: Arc<Store>,
    networks: Arc<PrivateNetworks>,
    doors: Arc<dyn FrontDoors>,
    settings: NetworkSettings,
}

/// What was last made of a cluster's network.
#[derive(Default)]
struct Made {
    network: Network,
    at: Option<Instant>,
    is_open: bool,
}

struct Networks {
    house: Arc<NetworkReconciler>,
    tasks: JoinSet<bool>,
    busy: HashMap<task::Id, ClusterId>,
    made: HashMap<ClusterId, Made>,
}

impl NetworkReconciler {
    /// Puts the loop together.
    pub fn new(
        store: Arc<Store>,
        networks: Arc<PrivateNetworks>,
        doors: Arc<dyn FrontDoors>,
        settings: NetworkSettings,
    ) -> Self {
        Self { store, networks, doors, settings }
    }

    /// Runs until `stop`, then closes every front door and takes every network apart.
    pub async fn run(self, stop: CancellationToken) {
        let house = Arc::new(self);
        let mut changes = house.store.changes();
        let mut networks = Networks {
            house: house.clone(),
            tasks: JoinSet::new(),
            busy: HashMap::new(),
            made: HashMap::new(),
        };
        loop {
            changes.mark_unchanged();
            let next_look = networks.look();
            tokio::select! {
                () = stop.cancelled() => break,
                changed = changes.changed() => if changed.is_err() { break },
                Some(ended) = networks.tasks.join_next_with_id() => networks.ended(ended),
                () = sleep_until(next_look) => {}
            }
        }
        while let Some(ended) = networks.tasks.join_next_with_id().await {
            networks.ended(ended);
        }
        join_all(house.networks.known().into_iter().map(|id| house.take_apart(id))).await;
    }

    /// Makes the network what the document says, opens its doors when it is there, and writes what is seen. Tells
    /// whether the doors are open.
    async fn make(&self, cluster: &Cluster, is_open: bool) -> bool {
        let id = cluster.id;
        if is_open {
            self.doors.told(id).await;
        }
        let mut seen = self.networks.ensure(id, cluster.routing_id, &cluster.network).await;
        let mut is_open = is_open;
        if seen.front_door.is_some() && !is_open {
            match self.open(id).await {
                Ok(()) => is_open = true,
                Err(cause) => {
                    seen.front_door = None;
                    seen.reason = Some(format!(
                        "the private listener could not listen: {cause}; it is tried again by itself"
                    ));
                }
            }
        }
        self.write(id, seen).await;
        is_open
    }

    async fn open(&self, id: ClusterId) -> std::io::Result<()> {
        let sql = self.networks.listen(id, self.settings.sql_port).await?;
        let http = self.networks.listen(id, self.settings.http_port).await?;
        self.doors.open(id, sql, http);
        Ok(())
    }

    /// The doors first: who is inside is told, and the listeners no longer hold the network.
    async fn take_apart(&self, id: ClusterId) {
        self.doors.close(id);
        self.doors.told(id).await;
        self.networks.remove(id).await;
    }

    /// Tells whether it is written, or needs not be.
    async fn write(&self, id: ClusterId, seen: NetworkSeen) -> bool {
        let known = self.store.snapshot().get(&id).map(|entry| entry.seen.network.clone());
        if known.as_ref() == Some(&seen) {
            return true;
        }
        tell(id, &known.unwrap_or_default(), &seen);
        match crate::write(&self.store, move |store| store.observe_network(id, seen)).await {
            // It was forgotten in the meantime.
            Ok(()) | Err(store::Error::NotFound(_)) => true,
            Err(cause) => {
                tracing::error!(cluster = %id, %cause, "could not write what was seen of a private network");
                false
            }
        }
    }
}

impl Networks {
    /// Looks at every cluster and begins what is to be done. Tells when to look again.
    fn look(&mut self) -> Instant {
        let snapshot = self.house.store.snapshot();
        let busy: HashSet<ClusterId> = self.busy.values().copied().collect();
        let now = Instant::now();
        // With what is to be seen of them when their networks are taken apart.
        let mut gone: HashMap<ClusterId, NetworkSeen> =
            self.made.keys().map(|id| (*id, NetworkSeen::default())).collect();
        let mut next_look = now + LOOK_EVERY;
        for entry in snapshot.iter() {
            let id = entry.cluster.id;
            if let Err(without) = wanted(&entry.cluster) {
                // Also what a predecessor saw.
                if self.made.contains_key(&id) || entry.seen.network != without {
                    gone.insert(id, without);
                }
                continue;
            }
            gone.remove(&id);
            if busy.contains(&id) || self.busy.len() >= PARALLEL_MAX {
                continue;
            }
            let made = self.made.entry(id).or_default();
            let due = made.at.map_or(now, |at| at + LOOK_EVERY);
            if due <= now || made.network != entry.cluster.network {
                made.at = Some(now);
                made.network.clone_from(&entry.cluster.network);
                let is_open = made.is_open;
                let (house, entry) = (self.house.clone(), entry.clone());
                let task = self.tasks.spawn(async move { house.make(&entry.cluster, is_open).await });
                self.busy.insert(task.id(), id);
            } else {
                next_look = next_look.min(due);
            }
        }
        for (id, without) in gone.into_iter().filter(|(id, _)| !busy.contains(id)) {
            let house = self.house.clone();
            let task = self.tasks.spawn(async move {
                house.take_apart(id).await;
                if !house.write(id, without).await {
                    // One breath, because the next look would begin the same at once.
                    sleep(crate::SHORTEST).await;
                }
                false
            });
            self.busy.insert(task.id(), id);
            self.made.remove(&id);
        }
        next_look
    }

    fn ended(&mut self, ended: Result<(task::Id, bool), JoinError>) {
        let (task, is_open) = match ended {
            Ok((task, is_open)) => (task, Some(is_open)),
            Err(panic) => {
                // One cluster's accident must not stop the others.
                tracing::error!(%panic, "a step of the networks loop broke off");
                (panic.id(), None)
            }
        };
        let made = self.busy.remove(&task).and_then(|id| self.made.get_mut(&id));
        if let (Some(made), Some(is_open)) = (made, is_open) {
            made.is_open = is_open;
        }
    }
}

/// Whether the cluster is to have a private network; where not, what is to be seen of that.
fn wanted(cluster: &Cluster) -> Result<(), NetworkSeen> {
    let reason = match (cluster.wish, cluster.network.range) {
        (Wish::Deleted, _) | (Wish::Exists(_), None) => None,
        (Wish::Exists(_), Some(_)) if cluster.network.front_door().is_some() => return Ok(()),
        (Wish::Exists(_), Some(range)) => Some(format!(
            "the private network's range {range} has no room for a front door; choose a larger one, for instance \
             10.77.0.0/24 or fd00:77::/64"
        )),
    };
    Err(NetworkSeen { reason, ..NetworkSeen::default() })
}

/// Logs what changed between two looks.
fn tell(id: ClusterId, before: &NetworkSeen, now: &NetworkSeen) {
    match (before.front_door, now.front_door) {
        (old, Some(front_door)) if old != now.front_door => {
            tracing::info!(cluster = %id, %front_door, "the private listener in the private network is open");
        }
        (Some(front_door), None) => {
            tracing::info!(cluster = %id, %front_door, "the private listener in the private network is closed");
        }
        (Some(_) | None, Some(_)) | (None, None) => {}
    }
    if let Some(reason) = now.reason.as_ref().filter(|reason| before.reason.as_ref() != Some(reason)) {
        tracing::error!(cluster = %id, %reason, "there is no private network");
    }
    for (peering, phase) in
        now.peerings.iter().filter(|(name, phase)| before.peerings.get(name) != Some(phase))
    {
        match phase {
            PeeringPhase::Active => tracing::info!(cluster = %id, %peering, "joined"),
            PeeringPhase::Failed { reason } => tracing::warn!(cluster = %id, %peering, %reason, "not joined"),
            PeeringPhase::Pending | PeeringPhase::Deleting => {
                tracing::info!(cluster = %id, %peering, phase = phase.as_str(), "peering");
            }
        }
    }
}

impl std::fmt::Debug for NetworkReconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetworkReconciler").field("settings", &self.settings).finish_non_exhaustive()
    }
}
