//! An engine that reaches a second real PostgreSQL, in a network of its own, and nothing beside it.

use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use engine::HostConfig;
use keys::RootKey;
use model::{Egress, EgressDestination, EgressPolicy, EgressRule, Encryption, Network, Provider, RoleName};
use network::{GateSettings, Resolver};
use store::Draft;
use time::OffsetDateTime;
use tokio_postgres::{Client, Config, NoTls};

use super::*;
use crate::folder::Folder;
use crate::perimeter::Perimeter;
use crate::skipped::skipped;

const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
const PASSWORD: &str = "far-away-4711";
const PATIENCE: Duration = Duration::from_secs(120);

/// A PostgreSQL in a network namespace that a veth pair joins with ours. It takes TLS only, with a password.
struct Far {
    space: String,
    network: u32,
    server: Child,
    _folder: Folder,
    /// As long as it is held, no other test takes the network's number.
    _claim: UnixListener,
}

/// A number from 0 to 249 that no other test on this machine has, and what keeps it ours.
fn network_number() -> (u32, UnixListener) {
    let claim = |number: &u32| {
        let name = UnixAddress::from_abstract_name(format!("chitin-tests-far-network-{number}")).unwrap();
        UnixListener::bind_addr(&name).ok()
    };
    (0..250).find_map(|number| Some((number, claim(&number)?))).expect("a number is free")
}

fn say(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {said}");
}

fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
    versions.map(|entry| entry.path().join("bin")).max().unwrap()
}

impl Far {
    fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (network, claim) = network_number();
        let space = format!("chitin-far-{process}-{count}");
        let (ours, theirs) = (format!("cfo{process}-{count}"), format!("cft{process}-{count}"));
        say("ip", &format!("netns add {space}"));
        say("ip", &format!("link add {ours} type veth peer name {theirs} netns {space}"));
        say("ip", &format!("addr add 10.213.{network}.1/24 dev {ours}"));
        say("ip", &format!("link set {ours} up"));
        say("ip", &format!("-n {space} addr add 10.213.{network}.2/24 dev {theirs}"));
        say("ip", &format!("-n {space} link set {theirs} up"));
        let folder = Folder::new();
        let path = folder.path().display().to_string();
        let made = rcgen::generate_simple_self_signed(vec!["far.example".to_owned()]).unwrap();
        std::fs::write(folder.path().join("server.crt"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("server.key"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(folder.path().join("password"), PASSWORD).unwrap();
        say("chmod", &format!("600 {path}/server.key"));
        say("chown", &format!("-R postgres:postgres {path}"));
        let (bin, as_user) =
            (programs().display().to_string(), "--reuid postgres --regid postgres --clear-groups");
        say(
            "setpriv",
            &format!("{as_user} {bin}/initdb -D {path}/pg -U far -A scram-sha-256 --pwfile {path}/password"),
        );
        let hba = "hostssl all all all scram-sha-256\n";
        std::fs::write(folder.path().join("pg/pg_hba.conf"), hba).unwrap();
        let settings = format!(
            "listen_addresses = '10.213.{network}.2'\nunix_socket_directories = ''\nport = 5432\nssl = on\n\
             ssl_cert_file = '{path}/server.crt'\nssl_key_file = '{path}/server.key'\nfsync = off\n\
             max_connections = 120\n"
        );
        std::fs::write(folder.path().join("pg/postgresql.conf"), settings).unwrap();
        let server = Command::new("ip")
            .args(["netns", "exec", &space, "setpriv", "--pdeathsig", "KILL"])
            .args(as_user.split(' '))
            .args([&format!("{bin}/postgres"), "-D", &format!("{path}/pg")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { space, network, server, _folder: folder, _claim: claim }
    }

    fn address(&self) -> String {
        format!("10.213.{}.2", self.network)
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        // The pair goes with the namespace.
        let _ = Command::new("ip").args(["netns", "delete", &self.space]).status();
    }
}

/// Says what it was told last.
struct Names(Mutex<Vec<IpAddr>>);

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, host: &str) -> std::io::Result<Vec<IpAddr>> {
        assert_eq!(host, "far.example", "nothing else is ever asked for");
        Ok(self.0.lock().unwrap().clone())
    }
}

struct World {
    store: Arc<Store>,
    host: Arc<Host>,
    outlets: Arc<Outlets>,
    names: Arc<Names>,
    cluster: Cluster,
    stop: CancellationToken,
    _folder: Folder,
}

impl World {
    async fn new(far: &Far) -> Self {
        let folder = Folder::new();
        let kek = Arc::new(RootKey::open_or_create(&folder.path().join("kek")).unwrap());
        let store = Store::open(&folder.path().join("state"), kek.sealer("state").unwrap()).unwrap();
        let config = HostConfig {
            data: folder.path().to_owned(),
            keys: kek,
            allow_unencrypted: true,
            postgres: crate::launcher::postgres(),
            default_major: crate::launcher::default_major(),
            encryption: Some(Encryption::None),
            attestation: None,
            launcher: crate::launcher::launcher(),
            record: crate::launcher::no_record(),
        };
        let host = Host::open(config).await.unwrap();
        let names = Arc::new(Names(Mutex::new(vec![far.address().parse().unwrap()])));
        // Loopback is open, as it may be for fetches; engines do not reach it all the same.
        let allow = [format!("10.213.{}.0/24", far.network), "127.0.0.0/8".to_owned()];
        let settings = GateSettings {
            allow: allow.iter().map(|range| range.parse().unwrap()).collect(),
            ..GateSettings::default()
        };
        let gate = Gate::with_resolver(settings, Perimeter::new(store.clone()), names.clone()).unwrap();
        let outlets = Outlets::new(store.clone(), host.clone(), Arc::new(gate), 1_000);
        let stop = CancellationToken::new();
        tokio::spawn(outlets.clone().run(stop.clone()));
        let cluster = store.create(draft("near-one", Network::default()), OffsetDateTime::now_utc()).unwrap();
        host.create(&cluster).await.unwrap();
        let administration = host.administration(cluster.id).await.unwrap();
        administration.create_user(&"maria".parse().unwrap(), VERIFIER).await.unwrap();
        administration.open_foreign_data().await.unwrap();
        Self { store, host, outlets, names, cluster, stop, _folder: folder }
    }

    async fn edit(&self, change: impl FnOnce(&mut Egress)) {
        let edited = self.store.edit(self.cluster.id, OffsetDateTime::now_utc(), |cluster| {
            change(&mut cluster.egress);
            Ok::<(), store::Error>(())
        });
        edited.unwrap();
        assert!(self.outlets.settle(PATIENCE).await);
    }

    /// A session of the tenant, with a foreign server and one table of it.
    async fn session(&self) -> Client {
        let role: RoleName = "maria".parse().unwrap();
        self.host.admit(self.cluster.id, &role).await.unwrap();
        attach(&self.host.connector(self.cluster.id).unwrap()).await
    }

    async fn close(self) {
        self.stop.cancel();
        self.outlets.tasks.wait().await;
        self.host.destroy(&self.cluster).await.unwrap();
    }
}

async fn attach(connector: &engine::Connector) -> Client {
    let stream = connector.connect().await.unwrap();
    let (client, connection) =
        Config::new().user("maria").dbname("defaultdb").connect_raw(stream, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn draft(name: &str, network: Network) -> Draft {
    Draft {
        name: name.parse().unwrap(),
        plan: Plan::Dedicated,
        provider: Provider::Gcp,
        regions: vec!["local".to_owned()],
        labels: BTreeMap::new(),
        is_delete_protected: false,
        allowlist: Vec::new(),
        network,
        egress: Egress::default(),
        asked: model::Asked::default(),
    }
}

fn rule(name: &str, ports: &[u16]) -> EgressRule {
    EgressRule {
        id: uuid::Uuid::new_v4(),
        name: name.parse().unwrap(),
        destination: EgressDestination::Fqdn("far.example".parse().unwrap()),
        written: "far.example".to_owned(),
        ports: ports.to_vec(),
        description: String::new(),
        created_at: OffsetDateTime::UNIX_EPOCH,
        idempotency_key: None,
    }
}

fn open(egress: &mut Egress) {
    egress.engine = true;
    egress.policy = EgressPolicy::DefaultDeny;
    egress.rules = vec![rule("far", &[5432])];
}

async fn server(session: &Client, name: &str, host: &str, port: u16) {
    let made = format!(
        "CREATE SERVER {name} FOREIGN DATA WRAPPER postgres_fdw
           OPTIONS (host '{host}', port '{port}', dbname 'postgres', sslmode 'require', connect_timeout '10');
         CREATE USER MAPPING FOR CURRENT_USER SERVER {name} OPTIONS (user 'far', password '{PASSWORD}');
         CREATE FOREIGN TABLE {name}_ssl (pid int, ssl bool, version text) SERVER {name}
           OPTIONS (schema_name 'pg_catalog', table_name 'pg_stat_ssl')"
    );
    session.batch_execute(&made).await.unwrap();
}

/// How many connections the far side says that it has, each of them inside TLS; or why it was not reached.
async fn ask(session: &Client, name: &str) -> Result<i64, String> {
    let rows = session.query_one(&format!("SELECT count(*) FROM {name}_ssl WHERE ssl"), &[]).await;
    rows.map(|row| row.get(0)).map_err(|cause| {
        cause.as_db_error().map_or(cause.to_string(), |refused| refused.message().to_owned())
    })
}

async fn reached(session: &Client, name: &str) -> i64 {
    let began = Instant::now();
    loop {
        match ask(session, name).await {
            Ok(count) => return count,
            // It is still starting.
            Err(why) => assert!(began.elapsed() < PATIENCE, "{why}"),
        }
        sleep(Duration::from_millis(200)).await;
    }
}

type Change = fn(&mut Egress);

fn has_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_reaches_what_rules_name_by_name_and_port_and_nothing_beside_it() {
    if !has_root() {
        return skipped("only root may make the network in which the other PostgreSQL is");
    }
    let far = Far::start();
    let world = World::new(&far).await;
    let session = world.session().await;
    server(&session, "far", "far.example", 5432).await;
    assert!(ask(&session, "far").await.unwrap_err().contains("could not connect"), "it is off by default");
    world.edit(open).await;
    assert!(reached(&session, "far").await >= 1, "TLS goes through to the far side");
    for proof in world.host.sandbox_evidence(world.cluster.id).await.unwrap() {
        assert_ne!(proof.is_proven, Some(false), "{proof:?}");
    }
    // Another port, the raw address, another name, and what only this machine has.
    let others = [
        ("port", "far.example", 5433),
        ("raw", far.address().as_str(), 5432),
        ("name", "other.example", 5432),
        ("under", "x.far.example", 5432),
        ("here", "127.0.0.1", 5432),
        ("meta", "169.254.169.254", 80),
        ("sock", "/run/chitin", 5432),
    ]
    .map(|(name, host, port)| (name, host.to_owned(), port));
    for (name, host, port) in &others {
        server(&session, name, host, *port).await;
        let why = ask(&session, name).await.unwrap_err();
        assert!(why.contains("could not connect") || why.contains("password"), "{host}:{port}: {why}");
    }
    // A name that turns to somewhere else is refused; the session that is open goes on. This machine's side of the pair
    // lies in what the operator opened, and somebody listens there.
    let ours = format!("10.213.{}.1", far.network);
    let temptation = std::net::TcpListener::bind((ours.as_str(), 5432)).unwrap();
    temptation.set_nonblocking(true).unwrap();
    for bad in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "0.0.0.0", &ours] {
        *world.names.0.lock().unwrap() = vec![bad.parse().unwrap()];
        let other = world.session().await;
        assert!(ask(&other, "far").await.is_err(), "{bad}");
    }
    assert!(temptation.accept().is_err(), "this machine was reached");
    assert!(ask(&session, "far").await.is_ok());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_reaches_ends_with_the_rule_the_switch_and_the_run() {
    if !has_root() {
        return skipped("only root may make the network in which the other PostgreSQL is");
    }
    let far = Far::start();
    let mut world = World::new(&far).await;
    world.edit(open).await;
    let session = world.session().await;
    server(&session, "far", "far.example", 5432).await;
    reached(&session, "far").await;
    let closings: [(&str, Change); 4] = [
        ("the rule", |egress| egress.rules.clear()),
        ("the port", |egress| egress.rules = vec![rule("far", &[5433])]),
        ("every port", |egress| egress.rules = vec![rule("far", &[])]),
        ("the switch", |egress| egress.engine = false),
    ];
    for (what, close) in closings {
        let mut held = world.session().await;
        reached(&held, "far").await;
        // The foreign connection stays open as long as a transaction uses it.
        let transaction = held.transaction().await.unwrap();
        transaction.query("SELECT * FROM far_ssl", &[]).await.unwrap();
        world.edit(close).await;
        let broken = transaction.query("SELECT * FROM far_ssl", &[]).await;
        assert!(broken.is_err(), "{what}");
        drop(transaction);
        assert!(ask(&held, "far").await.is_err(), "{what}");
        world.edit(open).await;
        assert!(ask(&held, "far").await.is_ok(), "{what} given back");
    }

    // Another tenant takes the far network for its own.
    let range = Some(format!("10.213.{}.0/24", far.network).parse().unwrap());
    let other = draft("other-one", Network { range, ..Network::default() });
    let other = world.store.create(other, OffsetDateTime::now_utc()).unwrap();
    assert!(ask(&session, "far").await.is_err());
    let given_back = world.store.edit(other.id, OffsetDateTime::now_utc(), |cluster| {
        cluster.network = Network::default();
        Ok::<(), store::Error>(())
    });
    given_back.unwrap();
    reached(&session, "far").await;

    // The next run of the engine has its outlets again, and the one before holds nothing.
    drop(session);
    world.host.stop(world.cluster.id).await.unwrap();
    world.cluster = world.store.snapshot().get(&world.cluster.id).unwrap().cluster.clone();
    world.host.start(&world.cluster).await.unwrap();
    let session = world.session().await;
    reached(&session, "far").await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_has_so_many_connections_and_gives_them_back() {
    if !has_root() {
        return skipped("only root may make the network in which the other PostgreSQL is");
    }
    let far = Far::start();
    let world = World::new(&far).await;
    world.edit(open).await;
    let session = world.session().await;
    server(&session, "far", "far.example", 5432).await;
    reached(&session, "far").await;
    for number in 1..OUTLET_CONNECTIONS_MAX {
        let name = format!("far{number}");
        server(&session, &name, "far.example", 5432).await;
        ask(&session, &name).await.unwrap();
    }
    let one_more = world.session().await;
    assert!(ask(&one_more, "far").await.is_err());
    drop(session);
    reached(&one_more, "far").await;
    world.close().await;
}
