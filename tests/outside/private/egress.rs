//! What leaves a cluster on its behalf: real questions to a real responder, under the policy that its owner set.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use house::authority::{Authority, Identity, Leaf};
use house::caller::fresh_address;
use house::cloud::PATIENCE;
use house::machine::allowed;
use house::responder::{Mood, Responder};
use house::{Caller, Cluster, Refusal};
use serde_json::json;

use crate::private::world::{World, private};

/// What the cloud of these tests finds under which name.
const NAMES: &str = "127.0.0.1 localhost
127.0.0.1 ocsp.house.example
127.0.0.1 other.house.example
127.0.0.2 closed.house.example
169.254.169.254 metadata.house.example
10.95.0.1 tenant.house.example
127.0.0.1 mixed.house.example
10.95.0.1 mixed.house.example
";

/// What a client reads whose certificate nobody could be asked about.
const STRICT: &str = "OCSP check failed in strict mode";

static WORLD: OnceLock<World> = OnceLock::new();

/// A cloud of its own, because what it finds under a name is its own. Its operator opened a tenant's network too: that
/// must not open it.
fn world() -> &'static World {
    WORLD.get_or_init(|| {
        let world =
            World::with(&["--fetch-allow", "127.0.0.1/32", "--fetch-allow", "10.95.0.0/16"], Some(NAMES));
        private(&world.cloud, "next-door", "10.95.0.0/24");
        world
    })
}

/// Stops the cloud of these tests; says whether it left nothing behind.
pub(crate) fn stop() -> bool {
    WORLD.get().is_none_or(World::stop)
}

/// A cluster that takes certificates only, asks about each, and sends nothing out but what it is told to.
struct Stage {
    cluster: Cluster<'static>,
    root: Authority,
    responder: Responder,
    _scratch: tempfile::TempDir,
}

fn stage(name: &str) -> Stage {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let root = Authority::root(scratch.path(), "root");
    let responder = world().home.within(|| Responder::of(&root));
    let cluster = world().cloud.cluster(name, &[]);
    cluster.set_authorities(&root.pem());
    cluster.set_rules("host all all all cert\n");
    cluster.set_ocsp(&json!({ "mode": "strict", "timeout_ms": 5_000 }));
    let stage = Stage { cluster, root, responder, _scratch: scratch };
    stage.policy("default-deny");
    stage
}

/// The port in an address of ours.
fn port(url: &str) -> &str {
    url.trim_end_matches('/').rsplit(':').next().expect("a port")
}

impl Stage {
    fn policy(&self, policy: &str) {
        world().cloud.chitin(["egress", "policy", &self.cluster.name, policy]).ok();
    }

    fn permit(&self, rule: &str, destination: &str, ports: &[&str]) {
        let mut all = vec!["egress", "add", &self.cluster.name, rule, destination];
        all.extend(ports.iter().flat_map(|port| ["--port", port]));
        house::command::run(&mut world().cloud.command_of(&all)).ok();
    }

    /// A new certificate of maria, about which nobody was asked yet; its responder is there.
    fn leaf(&self, url: &str) -> Identity {
        self.root.issue(&Leaf::of("maria").asked_at(url))
    }

    fn enter(&self, identity: &Identity) -> Result<(), Refusal> {
        self.cluster.enter(&Caller::holding(identity).from(fresh_address())).map(drop)
    }

    #[track_caller]
    fn lets_in(&self, url: &str) {
        self.enter(&self.leaf(url)).unwrap_or_else(|refusal| panic!("{url}: {refusal:?}"));
    }

    /// The sign-in fails closed, nobody is asked, the client learns nothing of it, and the operator reads why.
    #[track_caller]
    fn refuses(&self, url: &str, why: &str) {
        let (leaf, logged) = (self.leaf(url), world().cloud.log().len());
        let refusal = self.enter(&leaf).expect_err(url);
        assert_eq!(refusal.code, "28000", "{url}: {refusal:?}");
        assert!(refusal.message.contains(STRICT), "{url}: {refusal:?}");
        let told = format!("{refusal:?}");
        assert!(!told.contains("egress") && !told.contains("house.example"), "{told}");
        assert_eq!(self.responder.asked_about(&leaf), 0, "{url} was reached");
        let log = world().cloud.log();
        assert!(log[logged..].contains(why), "{url}: no {why:?} in: {}", &log[logged..]);
        let verdict = world().cloud.json(["egress", "test", &self.cluster.name, url]);
        assert_eq!(verdict["is_permitted"], false, "{url}: {verdict}");
    }

    /// Where the responder is, under a name.
    fn at(&self, name: &str) -> String {
        format!("http://{name}:{}/", port(&self.responder.url()))
    }
}

pub fn t51_only_the_named_host_and_port_are_asked_and_everything_else_fails_closed() {
    let stage = stage("careful-shop");
    let second = world().home.within(|| Responder::of(&stage.root));
    let good = stage.at("ocsp.house.example");
    let denied = "the egress policy of careful-shop is DEFAULT_DENY and no rule names";
    stage.refuses(&good, denied);
    stage.permit("ocsp", "ocsp.house.example", &[port(&good)]);
    stage.lets_in(&good);
    assert!(stage.responder.asked() > 0, "the named responder was asked");

    stage.refuses(&format!("http://ocsp.house.example:{}/", port(&second.url())), denied);
    assert_eq!(second.asked(), 0, "another port of the named host");
    stage.refuses(&stage.responder.url(), denied);
    stage.refuses(&stage.at("other.house.example"), denied);
    stage.refuses(&stage.at("[::ffff:127.0.0.1]"), denied);

    // What is reached by nobody is reached by no rule.
    for name in ["metadata", "closed", "tenant", "mixed"] {
        stage.permit(name, &format!("{name}.house.example"), &[]);
    }
    stage.refuses("http://metadata.house.example/latest/meta-data/", "never reached from here");
    stage.refuses(&stage.at("closed.house.example"), "not everybody's");
    stage.refuses("http://tenant.house.example:8080/", "in another cluster's private network");
    // As an address it is named by no rule, which is known before anything is looked up.
    stage.refuses("http://10.95.0.1:8080/", denied);
    // A name that has one good address among its own has none.
    stage.refuses(&stage.at("mixed.house.example"), "in another cluster's private network");
    stage.lets_in(&good);
}

pub fn t51_a_responder_that_is_permitted_redirects_to_nowhere() {
    let stage = stage("led-shop");
    let lure = world().home.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
    let own = format!("http://ocsp.house.example:{}/", lure.local_addr().expect("bound").port());
    stage.permit("ocsp", "ocsp.house.example", &[port(&own)]);
    for (status, target) in [
        (301, stage.responder.url()),
        (302, stage.at("other.house.example")),
        (307, stage.responder.url()),
        (308, "http://metadata.house.example/".to_owned()),
    ] {
        let asked = std::thread::scope(|scope| {
            let lured = scope.spawn(|| {
                let (mut stream, _) = lure.accept().expect("somebody asks");
                stream.set_read_timeout(Some(PATIENCE)).expect("a time");
                let read = stream.read(&mut [0; 4096]).expect("a question");
                let answer = format!(
                    "HTTP/1.1 {status} Elsewhere\r\nLocation: {target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).expect("an answer");
                read
            });
            let refusal = stage.enter(&stage.leaf(&own)).expect_err("no answer");
            assert!(refusal.message.contains(STRICT), "{refusal:?}");
            assert_eq!(stage.responder.asked(), 0, "{status} to {target} was followed");
            lured.join().expect("the lure was asked")
        });
        assert!(asked > 0);
    }
}

pub fn t51_a_policy_counts_at_once_also_for_what_is_under_way() {
    let stage = stage("strict-shop");
    let good = stage.at("ocsp.house.example");
    let denied = "the egress policy of strict-shop is DEFAULT_DENY";
    for _ in 0..2 {
        stage.policy("allow-all");
        stage.lets_in(&good);
        stage.policy("default-deny");
        stage.refuses(&good, denied);
    }
    stage.permit("ocsp", "ocsp.house.example", &[port(&good)]);
    stage.lets_in(&good);
    world().cloud.chitin(["egress", "remove", &stage.cluster.name, "ocsp"]).ok();
    stage.refuses(&good, denied);

    // A question that is under way when the policy closes is broken off; it would have waited for five seconds.
    stage.policy("allow-all");
    stage.responder.set(Mood::Hanging);
    let leaf = stage.leaf(&good);
    std::thread::scope(|scope| {
        let entering = scope.spawn(|| {
            let refusal = stage.enter(&leaf).expect_err("no answer");
            (Instant::now(), refusal)
        });
        house::command::eventually("the responder is asked", PATIENCE, || {
            (stage.responder.asked_about(&leaf) > 0).then_some(())
        });
        stage.policy("default-deny");
        let closed = Instant::now();
        let (ended, refusal) = entering.join().expect("it ends");
        assert!(refusal.message.contains(STRICT), "{refusal:?}");
        let taken = ended.saturating_duration_since(closed);
        assert!(taken < allowed(Duration::from_secs(3)), "it was broken off after {taken:?}");
    });
    assert!(world().cloud.log().contains(denied));
}
