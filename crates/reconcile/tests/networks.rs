//! The loop over private networks: what the store wishes becomes true, is kept true, and is taken apart.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

#[path = "../../../tests/skipped.rs"]
mod skipped;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use keys::RootKey;
use model::{
    Asked, ClusterId, Network, NetworkSeen, Peering, PeeringPhase, PeeringWish, PeeringWith, Plan, Power,
    Provider, Wish,
};
use network::private::PrivateNetworks;
use nix::sched::{CloneFlags, setns, unshare};
use reconcile::{FrontDoors, NetworkReconciler, NetworkSettings};
use skipped::skipped;
use store::{Draft, Store};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// For the loop to have done what it should: it looks every five seconds at the latest.
const SOON: Duration = Duration::from_secs(120);
const SETTINGS: NetworkSettings = NetworkSettings { sql_port: 26257, http_port: 8080 };

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Doors that keep their listeners and let nobody further in: a connection is all that the tests look for.
#[derive(Default)]
struct Doors {
    open: Mutex<HashMap<ClusterId, [TcpListener; 2]>>,
    /// Whoever holds it lets nobody be told.
    telling: tokio::sync::Mutex<()>,
}

impl FrontDoors for Doors {
    fn open(&self, cluster: ClusterId, sql: TcpListener, http: TcpListener) {
        let before = self.open.lock().unwrap().insert(cluster, [sql, http]);
        assert!(before.is_none(), "the doors of {cluster} were opened twice");
    }

    fn close(&self, cluster: ClusterId) {
        self.open.lock().unwrap().remove(&cluster);
    }

    fn told(&self, _: ClusterId) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(self.telling.lock().await) })
    }
}

impl Doors {
    fn ports(&self, cluster: ClusterId) -> Vec<u16> {
        let open = self.open.lock().unwrap();
        let listeners = open.get(&cluster).into_iter().flatten();
        listeners.map(|listener| listener.local_addr().unwrap().port()).collect()
    }
}

/// A store with the loop over it.
struct Ground {
    _folder: tempfile::TempDir,
    store: Arc<Store>,
    networks: Arc<PrivateNetworks>,
    doors: Arc<Doors>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Ground {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kek = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
        let store = Store::open(&folder.path().join("state.redb"), kek.sealer("state").unwrap()).unwrap();
        let (networks, doors) = (PrivateNetworks::new(), Arc::new(Doors::default()));
        let stop = CancellationToken::new();
        let reconciler = NetworkReconciler::new(store.clone(), networks.clone(), doors.clone(), SETTINGS);
        let running = tokio::spawn(reconciler.run(stop.clone()));
        Self { _folder: folder, store, networks, doors, stop, running }
    }

    fn create(&self, name: &str, network: Network) -> ClusterId {
        let draft = Draft {
            name: name.parse().unwrap(),
            plan: Plan::Serverless,
            provider: Provider::Gcp,
            regions: vec!["local".to_owned()],
            labels: BTreeMap::new(),
            is_delete_protected: false,
            allowlist: Vec::new(),
            network,
            egress: model::Egress::default(),
            asked: Asked::default(),
        };
        self.store.create(draft, OffsetDateTime::now_utc()).unwrap().id
    }

    fn edit(&self, id: ClusterId, change: impl FnOnce(&mut Network)) {
        let edited: Result<(), store::Error> = self.store.edit(id, OffsetDateTime::now_utc(), |cluster| {
            change(&mut cluster.network);
            Ok(())
        });
        edited.unwrap();
    }

    fn seen(&self, id: ClusterId) -> NetworkSeen {
        self.store.snapshot().get(&id).map(|entry| entry.seen.network.clone()).unwrap_or_default()
    }

    async fn until(&self, id: ClusterId, what: &str, holds: impl Fn(&NetworkSeen) -> bool) {
        let start = Instant::now();
        while !holds(&self.seen(id)) {
            assert!(start.elapsed() < SOON, "{what}: {:?}", self.seen(id));
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Runs a test in a network of its own, as root.
fn on_a_machine<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        return skipped("only root may make network namespaces");
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A named namespace, removed at the end.
struct Office(String);

impl Office {
    fn new() -> Self {
        let office = Self(format!("ctr{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        assert!(Command::new("ip").args(["netns", "add", &office.0]).status().unwrap().success());
        office
    }

    fn peering(&self, address: &str) -> Peering {
        let address = address.parse().unwrap();
        Peering {
            name: "office".parse().unwrap(),
            with: PeeringWith::Namespace { namespace: self.0.clone(), address },
            ranges: Vec::new(),
            wish: PeeringWish::Accepted,
            created_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn links(&self) -> String {
        let output = Command::new("ip").args(["-n", &self.0, "-o", "link", "show", "type", "veth"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    fn is_let_in(&self, address: IpAddr, port: u16) -> bool {
        let name = self.0.clone();
        let thread = std::thread::spawn(move || {
            setns(std::fs::File::open(format!("/run/netns/{name}")).unwrap(), CloneFlags::CLONE_NEWNET)
                .unwrap();
            std::net::TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(10)).is_ok()
        });
        thread.join().unwrap()
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn network(range: &str, peerings: Vec<Peering>) -> Network {
    Network { range: Some(range.parse().unwrap()), peerings, ..Network::default() }
}

#[test]
fn a_wish_becomes_a_network_with_open_doors_and_its_end_leaves_nothing() {
    on_a_machine(|| async {
        let (ground, office) = (Ground::new(), Office::new());
        let front_door: IpAddr = "10.77.0.1".parse().unwrap();
        let plain = ground.create("plain-one", Network::default());
        let id = ground.create("shop-one", network("10.77.0.0/24", vec![office.peering("10.77.0.2")]));
        ground.until(id, "the front door is open", |seen| seen.front_door == Some(front_door)).await;
        assert_eq!(ground.seen(id).peerings.into_values().collect::<Vec<_>>(), [PeeringPhase::Active]);
        assert_eq!(ground.doors.ports(id), [SETTINGS.sql_port, SETTINGS.http_port]);
        assert!(
            office.is_let_in(front_door, SETTINGS.sql_port)
                && office.is_let_in(front_door, SETTINGS.http_port)
        );
        assert_eq!((ground.seen(plain), ground.networks.known()), (NetworkSeen::default(), vec![id]));

        // What somebody removes is made again though nobody wished for anything.
        let link = office.links().split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        assert!(Command::new("ip").args(["-n", &office.0, "link", "del", &link]).status().unwrap().success());
        let start = Instant::now();
        while !office.is_let_in(front_door, SETTINGS.sql_port) {
            assert!(start.elapsed() < SOON, "the link was not made again");
        }

        ground.edit(id, |network| network.peerings[0].wish = PeeringWish::Proposed);
        let is_pending =
            |seen: &NetworkSeen| seen.peerings.values().all(|phase| *phase == PeeringPhase::Pending);
        ground.until(id, "the peering is taken back", is_pending).await;
        assert_eq!(office.links(), "");

        ground.edit(id, |network| network.range = None);
        ground.until(id, "the network is gone", |seen| *seen == NetworkSeen::default()).await;
        assert_eq!((ground.doors.ports(id), ground.networks.known()), (vec![], vec![]));

        // And back again: the doors are opened anew.
        ground.edit(id, |own| *own = network("10.78.0.0/24", vec![office.peering("10.78.0.2")]));
        ground.until(id, "the front door is open again", |seen| seen.front_door.is_some()).await;
        assert!(office.is_let_in("10.78.0.1".parse().unwrap(), SETTINGS.sql_port));

        ground.store.wish(id, Wish::Deleted, OffsetDateTime::now_utc()).unwrap();
        ground
            .until(id, "the deleted cluster's network is gone", |seen| *seen == NetworkSeen::default())
            .await;
        assert_eq!((ground.doors.ports(id), office.links()), (vec![], String::new()));
    });
}

#[test]
fn links_go_after_those_who_came_by_them_were_told() {
    on_a_machine(|| async {
        let (ground, office) = (Ground::new(), Office::new());
        let id = ground.create("shop-one", network("10.77.0.0/24", vec![office.peering("10.77.0.2")]));
        let front_door: IpAddr = "10.77.0.1".parse().unwrap();
        ground.until(id, "the front door is open", |seen| seen.front_door.is_some()).await;
        for is_deleted in [false, true] {
            let talk = ground.doors.telling.lock().await;
            if is_deleted {
                ground.store.wish(id, Wish::Deleted, OffsetDateTime::now_utc()).unwrap();
            } else {
                ground.edit(id, |network| network.peerings.clear());
            }
            sleep(Duration::from_millis(300)).await;
            assert_ne!(office.links(), "", "the last words would go nowhere");
            drop(talk);
            ground.until(id, "the peering is gone", |seen| seen.peerings.is_empty()).await;
            assert_eq!(office.links(), "");
            if !is_deleted {
                ground.edit(id, |network| network.peerings.push(office.peering("10.77.0.2")));
                ground.until(id, "joined again", |seen| !seen.peerings.is_empty()).await;
                assert!(office.is_let_in(front_door, SETTINGS.sql_port));
            }
        }
    });
}

#[test]
fn a_sleeping_cluster_keeps_its_network_and_stopping_takes_every_network_apart() {
    on_a_machine(|| async {
        let (ground, office) = (Ground::new(), Office::new());
        let one = ground.create("shop-one", network("10.77.0.0/24", vec![office.peering("10.77.0.2")]));
        let two = ground.create("shop-two", network("fd00:77::/64", vec![office.peering("fd00:77::2")]));
        for id in [one, two] {
            ground.store.wish(id, Wish::Exists(Power::Asleep), OffsetDateTime::now_utc()).unwrap();
            ground.until(id, "the front door is open", |seen| seen.front_door.is_some()).await;
        }
        assert!(office.is_let_in("10.77.0.1".parse().unwrap(), SETTINGS.sql_port));
        assert!(office.is_let_in("fd00:77::1".parse().unwrap(), SETTINGS.sql_port));
        ground.stop.cancel();
        timeout(SOON, ground.running).await.unwrap().unwrap();
        assert_eq!(ground.networks.known(), []);
        assert_eq!((ground.doors.ports(one), ground.doors.ports(two)), (vec![], vec![]));
        assert_eq!(office.links(), "");
    });
}

#[test]
fn what_a_predecessor_saw_of_a_network_that_is_not_wished_for_is_forgotten() {
    on_a_machine(|| async {
        let ground = Ground::new();
        let id = ground.create("shop-one", Network::default());
        let stale = NetworkSeen { front_door: Some("10.77.0.1".parse().unwrap()), ..NetworkSeen::default() };
        ground.store.observe_network(id, stale).unwrap();
        ground.until(id, "it is forgotten", |seen| *seen == NetworkSeen::default()).await;
    });
}

#[test]
fn what_cannot_be_made_says_why_and_what_can_stands() {
    on_a_machine(|| async {
        let (ground, office) = (Ground::new(), Office::new());
        // A range without room for a front door cannot be; a namespace that is not there can come yet.
        let narrow = ground.create("narrow-one", network("10.79.0.0/32", Vec::new()));
        let mut peering = office.peering("10.77.0.2");
        peering.with =
            PeeringWith::Namespace { namespace: "nobody".to_owned(), address: "10.77.0.2".parse().unwrap() };
        let id = ground.create("shop-one", network("10.77.0.0/24", vec![peering]));
        let has_failed = |seen: &NetworkSeen| {
            seen.peerings.values().any(|phase| matches!(phase, PeeringPhase::Failed { reason } if reason.contains("`ip netns add nobody`")))
        };
        ground.until(id, "the reason is told", has_failed).await;
        assert!(ground.seen(id).front_door.is_some(), "the front door stands without the peering");
        ground
            .until(narrow, "the reason is told", |seen| {
                seen.reason.as_ref().is_some_and(|reason| reason.contains("10.79.0.0/32"))
            })
            .await;
    });
}
