//! The loop over keys, with real engines: what is wished of a cluster's keys becomes true, and what a key service says of
//! its key has its consequences.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

#[path = "../../../tests/folder.rs"]
mod folder;
#[path = "../../../tests/launcher.rs"]
mod launcher;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use engine::{Host, HostConfig};
use folder::Folder;
use keys::{Binding, DataKey, KeyEncryption, KeyFailure, KeyRing, RootKey, WrappedKey};
use model::{
    Asked, Cluster, ClusterId, CmekStatus, Encryption, KeySpec, KeyType, KeyWish, Observation, Phase, Plan,
    Power, Provider, SystemClock, Wish,
};
use reconcile::{Gate, Reconciler, RootRotation, Sessions, Settings};
use store::{Draft, Store};
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// For the loops to have done what they should.
const SOON: Duration = Duration::from_secs(120);

/// What the service says.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Mood {
    Willing,
    Denying,
    Silent,
    NotLettingIn,
}

/// A ring whose keys of customers are roots of their own, at a service that may say no or nothing.
#[derive(Debug)]
struct Service {
    root: RootKey,
    customers: RootKey,
    mood: AtomicU8,
    version: AtomicU32,
    old: Mutex<Vec<String>>,
}

impl Service {
    fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    fn asked(&self, spec: &KeySpec) -> Result<(), KeyFailure> {
        let (key, mood) = (spec.to_string(), self.mood.load(Ordering::SeqCst));
        if mood == Mood::Denying as u8 {
            return Err(KeyFailure::Denied { key, reason: "it is disabled".to_owned() });
        }
        if mood == Mood::Silent as u8 {
            return Err(KeyFailure::Unreachable { key, reason: "no answer".to_owned() });
        }
        if mood == Mood::NotLettingIn as u8 {
            return Err(KeyFailure::Unauthenticated { key, reason: "the token has ended".to_owned() });
        }
        Ok(())
    }
}

#[async_trait]
impl KeyRing for Service {
    async fn wrap(&self, cluster: &Cluster, key: &DataKey) -> Result<WrappedKey, KeyFailure> {
        let (spec, place) = (cluster.keys.spec(), Binding::Volume(cluster.id));
        if !spec.is_customers() {
            return KeyEncryption::wrap(&self.root, key, &place).await;
        }
        self.asked(&spec)?;
        let mut wrapped = KeyEncryption::wrap(&self.customers, key, &place).await?;
        self.old.lock().unwrap().push(wrapped.key_version.clone());
        wrapped.key = spec;
        wrapped.key_version = self.version.load(Ordering::SeqCst).to_string();
        Ok(wrapped)
    }

    async fn unwrap(&self, cluster: ClusterId, wrapped: &WrappedKey) -> Result<DataKey, KeyFailure> {
        let place = Binding::Volume(cluster);
        if !wrapped.key.is_customers() {
            return KeyEncryption::unwrap(&self.root, wrapped, &place).await;
        }
        self.asked(&wrapped.key)?;
        let version = self.old.lock().unwrap().first().cloned().unwrap();
        let own = WrappedKey { key: KeySpec::root(), key_version: version, ..wrapped.clone() };
        KeyEncryption::unwrap(&self.customers, &own, &place).await
    }
}

impl RootRotation for Service {
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

/// A cloud's loops over one cluster.
struct Ground {
    folder: Folder,
    service: Arc<Service>,
    store: Arc<Store>,
    host: Arc<Host>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

async fn host(folder: &Path, service: &Arc<Service>) -> Arc<Host> {
    let config = HostConfig {
        data: folder.to_owned(),
        keys: service.clone(),
        allow_unencrypted: false,
        postgres: launcher::postgres(),
        default_major: launcher::default_major(),
        encryption: None,
        attestation: None,
        launcher: launcher::launcher(),
        record: launcher::no_record(),
    };
    Host::open(config).await.unwrap()
}

impl Ground {
    async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        let folder = Folder::new();
        let root = |name: &str| RootKey::open_or_create(&folder.path().join(name)).unwrap();
        let service = Arc::new(Service {
            root: root("kek"),
            customers: root("customers"),
            mood: AtomicU8::new(Mood::Willing as u8),
            version: AtomicU32::new(1),
            old: Mutex::default(),
        });
        let sealer = service.root.sealer("state").unwrap();
        let store = Store::open(&folder.path().join("state.redb"), sealer).unwrap();
        let host = host(folder.path(), &service).await;
        let (stop, running) = start(&store, &host, &service, settings);
        Self { folder, service, store, host, stop, running }
    }

    async fn create(&self) -> ClusterId {
        let draft = Draft {
            name: "lazy-roach".parse().unwrap(),
            plan: Plan::Dedicated,
            provider: Provider::Gcp,
            regions: vec!["local".to_owned()],
            labels: BTreeMap::new(),
            is_delete_protected: false,
            allowlist: Vec::new(),
            network: model::Network::default(),
            egress: model::Egress::default(),
            asked: Asked::default(),
        };
        let id = self.store.create(draft, OffsetDateTime::now_utc()).unwrap().id;
        self.until(id, "it runs", |_, seen| seen.phase == Phase::Running).await;
        id
    }

    fn edit(&self, id: ClusterId, change: impl FnOnce(&mut KeyWish)) {
        let edited: Result<(), store::Error> = self.store.edit(id, OffsetDateTime::now_utc(), |cluster| {
            change(&mut cluster.keys);
            Ok(())
        });
        edited.unwrap();
    }

    fn both(&self, id: ClusterId) -> (KeyWish, Observation) {
        let snapshot = self.store.snapshot();
        let entry = snapshot.get(&id).unwrap();
        (entry.cluster.keys.clone(), entry.seen.clone())
    }

    fn status(&self, id: ClusterId) -> CmekStatus {
        let (wish, seen) = self.both(id);
        wish.status(&seen.keys)
    }

    async fn until(&self, id: ClusterId, what: &str, holds: impl Fn(&KeyWish, &Observation) -> bool) {
        let start = Instant::now();
        loop {
            let (wish, seen) = self.both(id);
            if holds(&wish, &seen) {
                return;
            }
            assert!(start.elapsed() < SOON, "{what}: {wish:?} {seen:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_status(&self, id: ClusterId, wanted: CmekStatus) {
        self.until(id, wanted.as_str(), |wish, seen| wish.status(&seen.keys) == wanted).await;
    }

    async fn until_running(&self, id: ClusterId) {
        self.until(id, "it runs", |_, seen| seen.phase == Phase::Running).await;
        assert!(self.host.is_running(id));
    }

    async fn enable(&self, id: ClusterId) {
        self.edit(id, |keys| {
            (keys.cmek, keys.rewraps) = (Some(key("shop")), keys.rewraps + 1);
        });
        self.until_status(id, CmekStatus::Enabled).await;
    }

    /// Stops the loops as a program's end does.
    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
        self.host.shutdown().await;
    }
}

fn start(
    store: &Arc<Store>,
    host: &Arc<Host>,
    service: &Arc<Service>,
    settings: Settings,
) -> (CancellationToken, JoinHandle<()>) {
    let settings = Settings {
        keys_every: Duration::from_millis(200),
        keys_again_after: Duration::from_millis(200),
        ..settings
    };
    let reconciler = Reconciler::new(
        store.clone(),
        host.clone(),
        Arc::new(Nobody),
        Arc::new(SystemClock),
        settings,
        Arc::new(Gate::default()),
        service.clone(),
    );
    let stop = CancellationToken::new();
    (stop.clone(), tokio::spawn(reconciler.run(stop)))
}

fn key(name: &str) -> KeySpec {
    KeySpec {
        kind: KeyType::Vault,
        uri: format!("transit/keys/{name}"),
        auth_principal: String::new(),
        service: Some("vault".parse().unwrap()),
    }
}

/// Adds a database and tells how many there are, beside the one that every cluster begins with.
async fn rows(host: &Arc<Host>, id: ClusterId) -> usize {
    let engine = host.administration(id).await.unwrap();
    let count = engine.databases().await.unwrap().len();
    engine.create_database(&format!("kept_{count}").parse().unwrap()).await.unwrap();
    // Beside the two that every cluster has.
    engine.databases().await.unwrap().len() - 2
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_and_go_on_a_living_cluster_and_nothing_is_lost() {
    let ground = Ground::new().await;
    let id = ground.create().await;
    assert_eq!(rows(&ground.host, id).await, 1);

    ground.enable(id).await;
    assert_eq!(ground.host.key_use(id).await.unwrap().spec, key("shop"));
    assert_eq!(rows(&ground.host, id).await, 2, "the engine did not notice");

    // Another version of the same key, another key, and back to the cloud's own.
    ground.service.version.store(2, Ordering::SeqCst);
    ground.edit(id, |keys| keys.rewraps += 1);
    ground.until_status(id, CmekStatus::Enabled).await;
    assert_eq!(ground.host.key_use(id).await.unwrap().version, "2");
    for spec in [key("other"), KeySpec::root()] {
        let wanted = spec.clone();
        ground.edit(id, |keys| (keys.cmek, keys.rewraps) = (Some(wanted), keys.rewraps + 1));
        ground.until_status(id, CmekStatus::Enabled).await;
        assert_eq!(ground.host.key_use(id).await.unwrap().spec, spec);
    }
    let (_, seen) = ground.both(id);
    let kept: Vec<&str> = seen.keys.keys.iter().map(|key| key.spec.uri.as_str()).collect();
    assert_eq!(kept, ["", "transit/keys/other", "transit/keys/shop"]);

    // Another data key: the engine is stopped and started once, and everything is there.
    let old = key_files(&ground, id);
    ground.edit(id, |keys| keys.data_keys += 1);
    ground.until(id, "a new data key", |_, seen| seen.keys.data_keys == 1).await;
    ground.until_running(id).await;
    assert_eq!(rows(&ground.host, id).await, 3);
    let new = key_files(&ground, id);
    assert!(new.len() == 1 && new != old, "only the new wrapped key is left");
    ground.stop().await;
}

/// The wrapped keys that lie in the cluster's folder.
fn key_files(ground: &Ground, id: ClusterId) -> Vec<Vec<u8>> {
    let folder = ground.folder.path().join("clusters").join(id.to_string());
    let below = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let places = below.filter(|path| path.is_dir()).chain([folder.clone()]);
    places.filter_map(|place| std::fs::read(place.join("key.json")).ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_takes_long_leaves_one_volume_and_begins_no_second_copy() {
    let ground = Ground::new().await;
    let id = ground.create().await;
    // A customer's key is asked for again and again, and every time the loop looks at everything.
    ground.enable(id).await;
    fail::cfg("switch-marked", "sleep(1500)").unwrap();
    ground.edit(id, |keys| keys.data_keys += 1);
    ground.until(id, "a new data key", |_, seen| seen.keys.data_keys == 1).await;
    ground.until_running(id).await;
    fail::remove("switch-marked");
    assert_eq!(key_files(&ground, id).len(), 1, "a volume is left that nothing asked for");
    assert_eq!(rows(&ground.host, id).await, 1);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_stops_the_cluster_until_access_is_given_back() {
    let ground = Ground::new().await;
    let id = ground.create().await;
    rows(&ground.host, id).await;
    ground.enable(id).await;

    // The service takes the key away, and nobody says a word here.
    ground.service.set(Mood::Denying);
    ground.until_status(id, CmekStatus::Revoked).await;
    assert!(!ground.host.is_running(id));
    assert!(!ground.host.volume_state(id).unwrap().is_unlocked);
    sleep(Duration::from_millis(600)).await;
    assert!(!ground.host.is_running(id), "it stays down, whatever is wished");
    ground.service.set(Mood::Willing);
    ground.until_running(id).await;
    assert_eq!(ground.status(id), CmekStatus::Enabled);
    assert_eq!(rows(&ground.host, id).await, 2);

    // The customer revokes here, while the service still allows: only the customer ends that.
    ground.edit(id, |keys| keys.is_revoked = true);
    ground.until_status(id, CmekStatus::Revoked).await;
    sleep(Duration::from_millis(600)).await;
    assert_eq!(ground.status(id), CmekStatus::Revoked);
    ground.edit(id, |keys| keys.is_revoked = false);
    ground.until_running(id).await;

    // Both: when the service gives the key back, the cluster comes back without a person.
    ground.service.set(Mood::Denying);
    ground.edit(id, |keys| keys.is_revoked = true);
    ground
        .until(id, "the denial is seen", |_, seen| {
            seen.keys.is_locked_away && seen.keys.was_denied_since_revocation
        })
        .await;
    // A restart in between forgets nothing.
    let Ground { folder, service, store, host: old_host, stop, running } = ground;
    stop.cancel();
    running.await.unwrap();
    old_host.shutdown().await;
    drop(old_host);
    let host = host(folder.path(), &service).await;
    let (stop, running) = start(&store, &host, &service, Settings::default());
    let ground = Ground { folder, service, store, host, stop, running };
    sleep(Duration::from_millis(600)).await;
    assert_eq!(ground.status(id), CmekStatus::Revoked);
    ground.service.set(Mood::Willing);
    ground.until_running(id).await;
    assert!(!ground.both(id).0.is_revoked);
    assert_eq!(rows(&ground.host, id).await, 3);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_service_lets_run_what_runs_and_refuses_what_would_start() {
    let ground = Ground::new().await;
    let id = ground.create().await;
    ground.enable(id).await;
    ground.service.set(Mood::Silent);
    ground.until(id, "the silence is seen", |_, seen| seen.keys.outage.is_some()).await;
    sleep(Duration::from_millis(600)).await;
    assert!(ground.host.is_running(id));
    assert_eq!(rows(&ground.host, id).await, 1);

    let now = OffsetDateTime::now_utc();
    ground.store.wish(id, Wish::Exists(Power::Asleep), now).unwrap();
    ground.until(id, "it sleeps", |_, seen| seen.phase == Phase::Asleep).await;
    ground.store.wish(id, Wish::Exists(Power::Running), now).unwrap();
    ground
        .until(
            id,
            "it cannot start",
            |_, seen| matches!(&seen.phase, Phase::Broken { reason } if reason.contains("no answer")),
        )
        .await;
    assert_eq!(ground.status(id), CmekStatus::Enabled, "nothing was revoked");

    ground.service.set(Mood::Willing);
    ground.until_running(id).await;
    ground.until(id, "the outage is over", |_, seen| seen.keys.outage.is_none()).await;
    assert_eq!(rows(&ground.host, id).await, 2);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_stop_nothing_that_runs_and_give_back_nothing_that_was_taken() {
    let ground = Ground::new().await;
    let id = ground.create().await;
    ground.enable(id).await;
    ground.service.set(Mood::NotLettingIn);
    let refused = |_: &KeyWish, seen: &Observation| {
        seen.keys.outage.as_ref().is_some_and(|outage| outage.are_credentials_refused)
    };
    ground.until(id, "the refusal is seen", refused).await;
    sleep(Duration::from_millis(600)).await;
    assert!(ground.host.is_running(id));
    assert_eq!(rows(&ground.host, id).await, 1);
    assert_eq!(ground.status(id), CmekStatus::Enabled, "nothing was revoked");
    // What sleeps says why it cannot start.
    let now = OffsetDateTime::now_utc();
    ground.store.wish(id, Wish::Exists(Power::Asleep), now).unwrap();
    ground.until(id, "it sleeps", |_, seen| seen.phase == Phase::Asleep).await;
    ground.store.wish(id, Wish::Exists(Power::Running), now).unwrap();
    let says_why = |_: &KeyWish, seen: &Observation| matches!(&seen.phase, Phase::Broken { reason } if reason.contains("the token has ended"));
    ground.until(id, "it cannot start", says_why).await;
    ground.service.set(Mood::Willing);
    ground.until_running(id).await;
    ground.until(id, "the outage is over", |_, seen| seen.keys.outage.is_none()).await;

    // What the service took away stays away while it does not let us in: somebody who spoils the credentials opens nothing.
    ground.service.set(Mood::Denying);
    ground.until_status(id, CmekStatus::Revoked).await;
    ground.service.set(Mood::NotLettingIn);
    ground.until(id, "the refusal is seen", refused).await;
    sleep(Duration::from_millis(600)).await;
    assert_eq!(ground.status(id), CmekStatus::Revoked);
    assert!(!ground.host.is_running(id));
    ground.service.set(Mood::Willing);
    ground.until_running(id).await;
    assert_eq!(rows(&ground.host, id).await, 2);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_refused_credentials_to_end_says_after_how_long() {
    let settings = Settings { credentials_refused_max: Some(Duration::from_secs(3)), ..Settings::default() };
    let ground = Ground::with(settings).await;
    let id = ground.create().await;
    ground.enable(id).await;
    // A service that says nothing never counts, however long.
    ground.service.set(Mood::Silent);
    ground.until(id, "the silence is seen", |_, seen| seen.keys.outage.is_some()).await;
    sleep(Duration::from_secs(4)).await;
    assert!(ground.host.is_running(id));
    ground.service.set(Mood::Willing);
    ground.until(id, "the silence is over", |_, seen| seen.keys.outage.is_none()).await;

    ground.service.set(Mood::NotLettingIn);
    ground.until_status(id, CmekStatus::Revoked).await;
    ground.until(id, "it stops", |_, _| !ground.host.is_running(id)).await;
    let (_, seen) = ground.both(id);
    let reason = seen.keys.denied.unwrap();
    assert!(reason.contains("refused the credentials") && reason.contains("the token has ended"), "{reason}");
    ground.service.set(Mood::Willing);
    ground.until_running(id).await;
    assert_eq!(rows(&ground.host, id).await, 1);

    // The operator's own revocation does not end with it.
    ground.edit(id, |keys| keys.is_revoked = true);
    ground.until(id, "it stops", |_, _| !ground.host.is_running(id)).await;
    ground.service.set(Mood::NotLettingIn);
    ground.until(id, "overdue", |_, seen| seen.keys.denied.is_some()).await;
    ground.service.set(Mood::Willing);
    ground.until(id, "the service lets us in", |_, seen| seen.keys.denied.is_none()).await;
    sleep(Duration::from_millis(600)).await;
    assert!(ground.both(id).0.is_revoked && !ground.host.is_running(id));
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_used_leaves_the_earlier_one_in_use() {
    let ground = Ground::new().await;
    let id = ground.create().await;
    ground.service.set(Mood::Denying);
    ground.edit(id, |keys| (keys.cmek, keys.rewraps) = (Some(key("shop")), 1));
    ground.until_status(id, CmekStatus::EnableFailed).await;
    assert!(ground.host.is_running(id), "a key that was never used takes nothing away");
    assert_eq!(ground.host.key_use(id).await.unwrap().spec, KeySpec::root());
    let (wish, seen) = ground.both(id);
    assert!(wish.keys(&seen.keys)[0].user_message.contains("disabled"));
    ground.service.set(Mood::Willing);
    ground.until_status(id, CmekStatus::Enabled).await;
    assert_eq!(ground.host.key_use(id).await.unwrap().spec, key("shop"));
    assert_ne!(ground.both(id).1.encryption, Some(Encryption::None));
    ground.stop().await;
}
