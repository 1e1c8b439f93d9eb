//! The copy of an engine's roles, with real engines: when it is whole, and what happens to a cluster whose copy is not.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

#[path = "../../../tests/folder.rs"]
mod folder;
#[path = "../../../tests/launcher.rs"]
mod launcher;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine::{Host, HostConfig};
use folder::Folder;
use keys::RootKey;
use model::{
    Asked, ClusterId, Encryption, Observation, Phase, Plan, Power, Provider, RoleName, SystemClock, Wish,
};
use reconcile::{Gate, Reconciler, RootRotation, Sessions, Settings};
use store::{Draft, Store};
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// For the loops to have done what they should.
const SOON: Duration = Duration::from_secs(120);
const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

struct Still;

impl RootRotation for Still {
    fn rotating_to(&self) -> Option<String> {
        None
    }
}

/// Nobody is there.
struct Nobody;

impl Sessions for Nobody {
    fn count(&self, _: ClusterId) -> usize {
        0
    }

    fn idle_since(&self, _: ClusterId) -> Option<std::time::Instant> {
        None
    }

    fn cut_for_lost_volume(&self, _: ClusterId) {}

    fn take_used_up(&self) -> std::collections::HashMap<ClusterId, std::time::Instant> {
        std::collections::HashMap::new()
    }
}

/// A cloud over one cluster; its loops run or not.
struct Ground {
    store: Arc<Store>,
    host: Arc<Host>,
    id: ClusterId,
    _folder: Folder,
}

struct Loops {
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Loops {
    /// Ends them as a program's end does.
    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }

    /// Ends them as a crash does.
    async fn crash(self) {
        self.running.abort();
        let _ = self.running.await;
    }
}

impl Ground {
    async fn new() -> (Self, Loops) {
        let folder = Folder::new();
        let root = Arc::new(RootKey::open_or_create(&folder.path().join("kek")).unwrap());
        let store = Store::open(&folder.path().join("state.redb"), root.sealer("state").unwrap()).unwrap();
        let config = HostConfig {
            data: folder.path().to_owned(),
            keys: root,
            allow_unencrypted: true,
            postgres: launcher::postgres(),
            default_major: launcher::default_major(),
            encryption: Some(Encryption::None),
            attestation: None,
            launcher: launcher::launcher(),
            record: launcher::no_record(),
        };
        let host = Host::open(config).await.unwrap();
        let draft = Draft {
            name: "lazy-roach".parse().unwrap(),
            plan: Plan::Serverless,
            provider: Provider::Gcp,
            regions: vec!["local".to_owned()],
            labels: BTreeMap::new(),
            is_delete_protected: false,
            allowlist: Vec::new(),
            network: model::Network::default(),
            egress: model::Egress::default(),
            asked: Asked::default(),
        };
        let id = store.create(draft, OffsetDateTime::now_utc()).unwrap().id;
        let ground = Self { store, host, id, _folder: folder };
        assert!(ground.seen().is_copy_whole(), "what never ran has no roles");
        let loops = ground.start();
        ground.until("it runs", |seen| seen.phase == Phase::Running).await;
        (ground, loops)
    }

    fn start(&self) -> Loops {
        let settings = Settings { roles_every: Duration::from_millis(500), ..Settings::default() };
        let reconciler = Reconciler::new(
            self.store.clone(),
            self.host.clone(),
            Arc::new(Nobody),
            Arc::new(SystemClock),
            settings,
            Arc::new(Gate::default()),
            Arc::new(Still),
        );
        let stop = CancellationToken::new();
        Loops { stop: stop.clone(), running: tokio::spawn(reconciler.run(stop)) }
    }

    fn seen(&self) -> Observation {
        self.store.snapshot().get(&self.id).unwrap().seen.clone()
    }

    fn wish(&self, power: Power) {
        self.store.wish(self.id, Wish::Exists(power), OffsetDateTime::now_utc()).unwrap();
    }

    fn knows(&self, role: &str) -> bool {
        self.store.snapshot().get(&self.id).unwrap().role(role).is_some()
    }

    async fn make(&self, user: &str) {
        let name: RoleName = user.parse().unwrap();
        let engine = self.host.administration(self.id).await.unwrap();
        engine.create_user(&name, VERIFIER).await.unwrap();
    }

    async fn until(&self, what: &str, holds: impl Fn(&Observation) -> bool) {
        let start = Instant::now();
        while !holds(&self.seen()) {
            assert!(start.elapsed() < SOON, "{what}: {:?}", self.seen());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_whole_from_a_proper_end_until_the_engine_runs_again() {
    let (ground, loops) = Ground::new().await;
    assert!(!ground.seen().is_copy_whole(), "somebody may change a role at any moment");
    ground.make("maria").await;
    ground.wish(Power::Asleep);
    ground.until("it sleeps", |seen| seen.phase == Phase::Asleep).await;
    assert!(ground.seen().is_copy_whole() && ground.knows("maria"), "{:?}", ground.seen());
    ground.wish(Power::Running);
    ground.until("it runs", |seen| seen.phase == Phase::Running).await;
    assert!(!ground.seen().is_copy_whole());
    // The program's own end is proper too.
    ground.make("otto").await;
    loops.end().await;
    assert!(ground.seen().is_copy_whole() && ground.knows("otto"), "{:?}", ground.seen());
    ground.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_sleeps_with_an_old_copy_runs_once_and_is_asleep_with_a_whole_one() {
    let (ground, loops) = Ground::new().await;
    ground.until("its roles were read", |seen| seen.roles.failure.is_none()).await;
    loops.crash().await;
    ground.make("maria").await;
    assert!(!ground.knows("maria"));
    // The engine went down with the crash, and the wish was that it sleeps.
    ground.host.stop(ground.id).await.unwrap();
    ground.wish(Power::Asleep);
    for phase in [Phase::Stopping, Phase::Asleep] {
        ground.store.note(ground.id, |seen| seen.phase = phase).unwrap();
        assert!(!ground.seen().is_copy_whole());
        let loops = ground.start();
        ground.until("its copy is whole", Observation::is_copy_whole).await;
        assert_eq!(ground.seen().phase, Phase::Asleep);
        assert!(ground.knows("maria") && !ground.host.is_running(ground.id));
        loops.end().await;
        ground.store.note(ground.id, |seen| seen.roles.is_whole = Some(false)).unwrap();
    }
    ground.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_roles_cannot_be_read_is_not_put_to_sleep_until_they_can() {
    let (ground, loops) = Ground::new().await;
    ground.until("its roles were read", |seen| seen.roles.failure.is_none()).await;
    let stream = ground.host.connector(ground.id).unwrap().connect().await.unwrap();
    let mut config = tokio_postgres::Config::new();
    config.user("chitin").dbname("postgres");
    let (holder, connection) = config.connect_raw(stream, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    // Nobody reads it, and nobody new gets in, for as long as this lasts.
    holder.batch_execute("BEGIN; LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE").await.unwrap();
    ground.wish(Power::Asleep);
    ground.until("it says why", |seen| seen.roles.failure.is_some()).await;
    ground.until("it runs on", |seen| seen.phase == Phase::Running).await;
    assert!(ground.host.is_running(ground.id) && !ground.seen().is_copy_whole());
    holder.batch_execute("COMMIT").await.unwrap();
    ground.until("it sleeps", |seen| seen.phase == Phase::Asleep).await;
    assert!(ground.seen().is_copy_whole() && ground.seen().roles.failure.is_none());
    loops.end().await;
    ground.host.shutdown().await;
}
