//! What leaves on a cluster's behalf: judged before it leaves, and until it is back.

use model::{Egress, EgressDestination, EgressPolicy, EgressRule};

use super::*;

/// Knows one cluster; everybody else goes nowhere.
struct Policy {
    cluster: ClusterId,
    egress: watch::Sender<Egress>,
    changes: watch::Sender<u64>,
}

impl Policy {
    fn new(policy: EgressPolicy, rules: &[(&str, &[u16])]) -> Arc<Self> {
        let egress =
            watch::Sender::new(Egress { policy, rules: rules.iter().map(rule).collect(), engine: false });
        Arc::new(Self { cluster: ClusterId::random(), egress, changes: watch::Sender::new(0) })
    }

    fn become_closed(&self) {
        self.egress.send_replace(Egress { policy: EgressPolicy::DefaultDeny, ..Egress::default() });
        self.changes.send_modify(|count| *count += 1);
    }

    fn get(&self, url: impl Into<String>) -> Fetch {
        Fetch { cluster: Some(self.cluster), ..get(url) }
    }
}

impl Perimeter for Policy {
    fn judge(&self, cluster: ClusterId, to: &Destination<'_>) -> Result<(), String> {
        let Target { host, port } = to.target;
        let is_permitted = cluster == self.cluster && self.egress.borrow().permits(host, to.address, *port);
        is_permitted.then_some(()).ok_or_else(|| format!("no rule names {}", to.target))
    }

    fn may_look_up(&self, cluster: ClusterId, target: &Target) -> Result<(), String> {
        let egress = self.egress.borrow();
        let is_named = egress.rules.iter().any(|rule| match &rule.destination {
            EgressDestination::Cidr(range) => rule.names(&target.host, range.address(), target.port),
            EgressDestination::Fqdn(_) => rule.names(&target.host, [0; 4].into(), target.port),
        });
        let is_permitted = cluster == self.cluster && (is_named || egress.policy == EgressPolicy::AllowAll);
        is_permitted.then_some(()).ok_or_else(|| format!("no rule names {target}"))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn rule((destination, ports): &(&str, &[u16])) -> EgressRule {
    EgressRule {
        id: uuid::Uuid::new_v4(),
        name: "one".parse().unwrap(),
        destination: match destination.parse() {
            Ok(range) => EgressDestination::Cidr(range),
            Err(_) => EgressDestination::Fqdn(destination.parse().unwrap()),
        },
        written: (*destination).to_owned(),
        ports: ports.to_vec(),
        description: String::new(),
        created_at: time::OffsetDateTime::UNIX_EPOCH,
        idempotency_key: None,
    }
}

fn through(policy: &Arc<Policy>, allow: &[&str], names: &[&[&str]]) -> Gate {
    Gate::with_resolver(settings(allow), policy.clone(), Names::new(names)).unwrap()
}

const LOOPBACK: &[&str] = &["127.0.0.0/8"];

#[tokio::test]
async fn a_cluster_reaches_what_its_rules_name_and_nothing_beside_it() {
    let server = Server::new(answer("", "ok")).await;
    let port = server.address.port();
    let policy = Policy::new(EgressPolicy::DefaultDeny, &[("good.example", &[port])]);
    let gate = through(&policy, LOOPBACK, &[&["127.0.0.1"]]);
    let named = format!("http://Good.example:{port}/");
    assert_eq!(gate.fetch(policy.get(&named)).await.unwrap().body, b"ok");
    assert_eq!(gate.fetch(policy.get(named.replace("example:", "example.:"))).await.unwrap().body, b"ok");
    let others = [
        format!("http://other.example:{port}/"),
        format!("http://sub.good.example:{port}/"),
        format!("http://good.example:{}/", port ^ 1),
        // By the raw address of the name that is permitted, in every spelling that URLs know.
        format!("http://127.0.0.1:{port}/"),
        format!("http://127.1:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
    ];
    for url in others {
        let refused = gate.fetch(policy.get(&url)).await;
        assert!(is_refused(refused.clone()), "{url}: {refused:?}");
    }
    assert_eq!(server.count(), 2);
    // What is the operator's own is no cluster's.
    assert!(gate.fetch(get(format!("http://127.0.0.1:{port}/"))).await.is_ok());
}

#[tokio::test]
async fn a_range_permits_names_whose_every_address_lies_in_it() {
    let server = Server::at("127.0.0.2:0", answer("", "ok")).await;
    let port = server.address.port();
    let policy = Policy::new(EgressPolicy::DefaultDeny, &[("127.0.0.2/32", &[])]);
    let url = format!("http://any.example:{port}/");
    assert!(through(&policy, LOOPBACK, &[&["127.0.0.2"]]).fetch(policy.get(&url)).await.is_ok());
    assert!(through(&policy, LOOPBACK, &[&["::ffff:127.0.0.2"]]).fetch(policy.get(&url)).await.is_ok());
    for list in [&["127.0.0.3"][..], &["127.0.0.2", "127.0.0.3"], &["127.0.0.2", "169.254.169.254"]] {
        assert!(is_refused(through(&policy, LOOPBACK, &[list]).fetch(policy.get(&url)).await), "{list:?}");
    }
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn a_cluster_that_nobody_knows_goes_nowhere() {
    let server = Server::new(answer("", "secret")).await;
    let policy = Policy::new(EgressPolicy::AllowAll, &[]);
    let gate = Gate::new(settings(LOOPBACK), policy).unwrap();
    let stranger = Fetch { cluster: Some(ClusterId::random()), ..get(server.url("/")) };
    assert!(is_refused(gate.fetch(stranger).await));
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn t51_a_permitted_name_that_turns_to_metadata_is_refused() {
    let good = Server::at("127.0.0.2:0", answer("", "good")).await;
    let port = good.address.port();
    let policy = Policy::new(EgressPolicy::DefaultDeny, &[("good.example", &[])]);
    for bad in ["169.254.169.254", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "127.0.0.1", "10.0.0.1"] {
        let gate =
            through(&policy, &["127.0.0.2/32", "169.254.0.0/16", "fd00::/8"], &[&["127.0.0.2"], &[bad]]);
        let url = format!("http://good.example:{port}/");
        assert_eq!(gate.fetch(policy.get(&url)).await.unwrap().body, b"good");
        let refused = gate.fetch(policy.get(&url)).await;
        assert!(is_refused(refused.clone()), "{bad}: {refused:?}");
    }
}

#[tokio::test]
async fn t51_a_redirect_of_a_permitted_host_leads_nowhere() {
    let secret = Server::new(answer("", "secret")).await;
    let head = format!("HTTP/1.1 307 Moved\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", secret.url("/"));
    let server = Server::at("127.0.0.2:0", head).await;
    let policy = Policy::new(EgressPolicy::DefaultDeny, &[("127.0.0.2/32", &[])]);
    let gate = Gate::new(settings(LOOPBACK), policy.clone()).unwrap();
    assert_eq!(gate.fetch(policy.get(server.url("/"))).await.unwrap().status, 307);
    // Whoever follows it asks again, and is judged again.
    assert!(is_refused(gate.fetch(policy.get(secret.url("/"))).await));
    assert_eq!(secret.count(), 0);
}

#[tokio::test]
async fn a_policy_that_closes_breaks_off_what_is_under_way() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (endless, sent) = flood("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let mut asked = None;
    for address in [silent.local_addr().unwrap(), endless] {
        let policy = Policy::new(EgressPolicy::AllowAll, &[]);
        let settings = GateSettings { bytes_max: usize::MAX, ..settings(LOOPBACK) };
        let gate = Gate::new(settings, policy.clone()).unwrap();
        let fetch = Fetch { bytes_max: usize::MAX, ..policy.get(format!("http://{address}/")) };
        let under_way = tokio::spawn(async move { gate.fetch(fetch).await });
        if address == endless {
            while sent.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        } else {
            let (mut connection, _) = silent.accept().await.unwrap();
            assert!(head_of(&mut connection).await.starts_with("GET / "));
            asked = Some(connection);
        }
        // A change that closes nothing breaks nothing off.
        policy.changes.send_modify(|count| *count += 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!under_way.is_finished());
        policy.become_closed();
        // By the change: had its own time been over, it would say so.
        let broken = under_way.await.unwrap();
        assert!(matches!(&broken, Err(FetchFailure::Refused(why)) if why.contains("no rule")), "{broken:?}");
    }
    let more = asked.unwrap().read(&mut [0; 16]).await;
    assert!(!matches!(more, Ok(1..)), "it was connected, asked, and then hung up on: {more:?}");
}

#[tokio::test]
async fn a_destination_is_considered_without_being_reached() {
    let server = Server::new(answer("", "secret")).await;
    let port = server.address.port();
    let policy = Policy::new(EgressPolicy::DefaultDeny, &[("127.0.0.1/32", &[])]);
    let gate = through(&policy, LOOPBACK, &[&["127.0.0.1", "127.0.0.2", "169.254.169.254", "10.0.0.1"]]);
    let target = Target::read(&format!("a.example:{port}")).unwrap();
    let judged = gate.consider(policy.cluster, &target).await.unwrap();
    let told: Vec<String> = judged
        .into_iter()
        .map(|(address, verdict)| match verdict {
            Ok(()) => format!("{address} ok"),
            Err(why) => format!("{address} {why}"),
        })
        .collect();
    assert_eq!(told[0], "127.0.0.1 ok");
    assert!(
        told[1].contains("no rule") && told[2].contains("never") && told[3].contains("--fetch-allow"),
        "{told:?}"
    );
    let bounded = GateSettings { time_max: Duration::from_millis(50), ..settings(LOOPBACK) };
    let silent = Gate::with_resolver(bounded, policy.clone(), Arc::new(Silent)).unwrap();
    assert_eq!(silent.consider(policy.cluster, &target).await, Err(FetchFailure::TimedOut));
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn an_engine_never_reaches_this_machine_whatever_is_opened() {
    let own = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = own.local_addr().unwrap().port();
    let policy = Policy::new(EgressPolicy::AllowAll, &[]);
    let mut lists = vec![vec!["127.0.0.1".to_owned()], vec!["127.1.2.3".to_owned()], vec!["::1".to_owned()]];
    let outward = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    if outward.connect("192.0.2.1:9").is_ok() {
        // By the address that others know it by, alone and beside a stranger's.
        let known_by = outward.local_addr().unwrap().ip().to_string();
        lists.extend([vec![known_by.clone()], vec!["192.0.2.1".to_owned(), known_by]]);
    }
    for list in lists {
        let names: Vec<&str> = list.iter().map(String::as_str).collect();
        let gate = through(&policy, &["0.0.0.0/0", "::/0"], &[&names]);
        let target = Target::read(&format!("db.example:{port}")).unwrap();
        let refused = gate.open(policy.cluster, target).await;
        assert!(
            matches!(&refused, Err(FetchFailure::Refused(why)) if why.contains("this machine")),
            "{refused:?}"
        );
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), own.accept()).await.is_err());
}

#[tokio::test]
async fn an_engine_s_connection_is_judged_like_a_fetch() {
    let policy = Policy::new(EgressPolicy::DefaultDeny, &[("db.example", &[5432])]);
    for (host, port, address) in [
        ("db.example", 5433, "192.0.2.1"),
        ("other.example", 5432, "192.0.2.1"),
        ("db.example", 5432, "169.254.169.254"),
        ("db.example", 5432, "10.0.0.1"),
    ] {
        let gate = through(&policy, &["192.0.2.0/24"], &[&[address]]);
        let target = Target::read(&format!("{host}:{port}")).unwrap();
        assert!(is_refused(gate.open(policy.cluster, target).await), "{host}:{port} at {address}");
    }
    let tight = GateSettings { time_max: Duration::from_millis(200), ..settings(&["192.0.2.0/24"]) };
    let silent = Gate::with_resolver(tight, policy.clone(), Arc::new(Silent)).unwrap();
    let target = Target::read("db.example:5432").unwrap();
    assert!(matches!(silent.open(policy.cluster, target).await, Err(FetchFailure::TimedOut)));
}

#[tokio::test]
async fn what_engines_dial_takes_no_turn_of_a_fetch() {
    let policy = Policy::new(EgressPolicy::AllowAll, &[]);
    let settings = GateSettings { fetches_max: 1, ..settings(LOOPBACK) };
    let gate = Arc::new(Gate::with_resolver(settings, policy.clone(), Arc::new(Silent)).unwrap());
    let (dialling, cluster) = (gate.clone(), policy.cluster);
    let target = Target::read("db.example:5432").unwrap();
    let hanging = tokio::spawn(async move { dialling.open(cluster, target).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let server = Server::new(answer("", "ok")).await;
    assert_eq!(gate.fetch(policy.get(server.url("/"))).await.unwrap().body, b"ok");
    assert!(!hanging.is_finished());
    hanging.abort();
}
/// Remembers the names that it was asked for.
struct Listening(Mutex<Vec<String>>);

#[async_trait]
impl Resolver for Listening {
    async fn resolve(&self, host: &str) -> std::io::Result<Vec<IpAddr>> {
        self.0.lock().unwrap().push(host.to_owned());
        Ok(vec!["127.0.0.2".parse().unwrap()])
    }
}

#[tokio::test]
async fn t51_a_name_that_no_rule_can_permit_is_not_even_looked_up() {
    let rules: [(&str, &[u16]); 2] = [("good.example", &[]), ("127.0.0.3/32", &[443])];
    let policy = Policy::new(EgressPolicy::DefaultDeny, &rules);
    let names = Arc::new(Listening(Mutex::default()));
    let gate = Gate::with_resolver(settings(LOOPBACK), policy.clone(), names.clone()).unwrap();
    // The name's own server would read what is written in it.
    assert!(is_refused(gate.fetch(policy.get("http://the-secret.evil.example/")).await));
    assert_eq!(names.0.lock().unwrap().as_slice(), [""; 0]);
    // Where a range may permit it, only its addresses can tell.
    assert!(is_refused(gate.fetch(policy.get("https://any.example/")).await));
    assert_eq!(names.0.lock().unwrap().as_slice(), ["any.example"]);
}
