//! WireGuard between two hosts, and what of it all can be seen on the way: Debian's `wireguard-go`, set up by `wg-quick`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use house::capture::{Capture, Packet, streams, tls_records};
use house::cloud::{PATIENCE, SQL_PORT};
use house::command::{Finished, run, run_with};
use house::wire::SSL_REQUEST;
use house::{Cluster, Host};

use crate::private::world::{
    PARTED, accept, assert_cut, assert_unreachable, attempt, attempt_from, enter, enter_from,
    eventually_active, on, peer, private, propose, soon, wireguard_keys, world,
};

/// What nobody on the way may read.
const CANARY: &str = "canary-4a31f0c7-of-the-tests";

/// A tunnel's other end: a host with a private key.
struct Branch {
    host: Host,
    link: String,
    private_key: String,
    public_key: String,
    scratch: tempfile::TempDir,
}

impl Branch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (private_key, public_key) = wireguard_keys();
        let link = format!("wg{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let scratch = tempfile::tempdir().expect("a scratch directory");
        Self { host: world().hosts.host(), link, private_key, public_key, scratch }
    }

    fn file(&self) -> PathBuf {
        // The file's name is the link's.
        self.scratch.path().join(format!("{}.conf", self.link))
    }

    /// What a person does with the configuration that the cluster's operator sent: paste the key, name the machine, go.
    fn up(&self, one: &Cluster<'_>, name: &str, key: &str) {
        let text = one.cloud.chitin(["peering", "config", &one.name, name]).ok();
        assert!(!text.contains(&self.private_key), "nobody told it: {text}");
        let text = text.replace("<paste your private key>", key);
        let text = text.replace("Endpoint = localhost:", &format!("Endpoint = {}:", world().home.ipv4()));
        assert!(text.contains(&format!("Endpoint = {}:", world().home.ipv4())), "{text}");
        std::fs::write(self.file(), text).expect("a scratch file");
        let mut command = self.host.command("wg-quick");
        // Also where the kernel has its own: the other implementation is what this is about.
        run(command.arg("up").arg(self.file()).env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")).ok();
    }

    fn down(&self) {
        run(self.host.command("ip").args(["link", "del", &self.link]));
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        // `wireguard-go` ends with its link.
        self.down();
    }
}

/// Runs a statement with psql on a host, with the full check of the certificate.
fn psql(one: &Cluster<'_>, from: &Host, door: IpAddr, sql: &str) -> Finished {
    let mut command = from.command("psql");
    command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql]).arg(format!(
        "host={}.localhost hostaddr={door} port={SQL_PORT} user={} dbname=defaultdb sslmode=verify-full sslrootcert={}",
        one.handle,
        one.user,
        one.cloud.root_certificate().display()
    ));
    command.env("PGPASSWORD", &one.password).env("PGCONNECT_TIMEOUT", "20");
    run_with(&mut command, b"", PATIENCE)
}

pub fn psql_goes_through_a_tunnel_and_the_internet_sees_nothing_but_wireguard() {
    let branch = Branch::new();
    let one = private(&world().cloud, "far-bank", "10.87.0.0/24");
    let door = IpAddr::from([10, 87, 0, 1]);
    propose(&one, "branch", &["--wireguard", "--range", "192.168.9.0/24"]);
    let shown = one.cloud.json(["peering", "show", &one.name, "branch"]);
    let port = u16::try_from(shown["with"]["listen_port"].as_u64().expect("a port")).expect("a port");

    one.cloud.chitin(["peering", "accept", &one.name, "branch", "--public-key", &branch.public_key]).ok();
    eventually_active(&one, "branch");
    let capture = Capture::begin_of(&branch.host, "eth0", &["host", &branch.host.ipv4().to_string()]);
    branch.up(&one, "branch", &branch.private_key);
    soon("the tunnel carries", || attempt(&branch.host, door, SQL_PORT).is_ok());
    psql(&one, &branch.host, door, &format!("create table kept as select '{CANARY}' as line")).ok();
    assert_eq!(psql(&one, &branch.host, door, "select line from kept").ok().trim(), CANARY);
    let refused = attempt(&branch.host, door, 5432).expect_err("only two ports pass");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    // What lies behind it comes in too, and what does not stays out.
    on(&branch.host, "ip address add 192.168.9.9/32 dev lo");
    on(&branch.host, "ip address add 192.168.10.9/32 dev lo");
    let behind = enter_from(&one, &branch.host, door, Some(IpAddr::from([192, 168, 9, 9])));
    assert_eq!(behind.expect("in the range").value("select line from kept"), CANARY);
    let other = IpAddr::from([192, 168, 10, 9]);
    attempt_from(&branch.host, other, door, SQL_PORT).expect_err("in no range");
    let (bytes, packets) = capture.end();

    let mut kinds = std::collections::BTreeSet::new();
    for packet in packets {
        match packet {
            Packet::Arp | Packet::Icmpv6 => {}
            Packet::Udp { ports, payload } => {
                assert!(ports.0 == port || ports.1 == port, "{ports:?}");
                // Message types 1 to 4, and three bytes of zero (WireGuard, section 5.4).
                assert!(payload.len() >= 32 && payload[1..4] == [0; 3], "{payload:?}");
                kinds.insert(payload[0]);
            }
            other => panic!("the internet saw {other:?}"),
        }
    }
    assert!(kinds.is_superset(&[1, 2, 4].into()) && kinds.is_subset(&[1, 2, 3, 4].into()), "{kinds:?}");
    assert!(!contains(&bytes, CANARY.as_bytes()), "the internet saw a row");
    assert!(!contains(&bytes, one.handle.as_bytes()), "the internet saw the cluster's name");

    let mut session = enter(&one, &branch.host, door);
    one.cloud.chitin(["peering", "delete", &one.name, "branch"]).ok();
    assert_cut(&mut session, PARTED);
    // The tunnel stays open for a moment, for those words.
    soon("the tunnel is closed", || attempt(&branch.host, door, SQL_PORT).is_err());
    assert_unreachable(&branch.host, door);
}

pub fn t54_a_tunnel_with_another_key_gets_nothing() {
    let (branch, thief) = (Branch::new(), Branch::new());
    let one = private(&world().cloud, "keyed-bank", "10.88.0.0/24");
    let door = IpAddr::from([10, 88, 0, 1]);
    propose(&one, "branch", &["--wireguard", "--public-key", &branch.public_key]);
    // Nobody listens before it is accepted.
    branch.up(&one, "branch", &branch.private_key);
    assert_unreachable(&branch.host, door);
    accept(&one, "branch");
    soon("the tunnel carries", || attempt(&branch.host, door, SQL_PORT).is_ok());
    enter(&one, &branch.host, door);
    let capture = Capture::begin_of(&thief.host, "eth0", &["host", &thief.host.ipv4().to_string()]);
    thief.up(&one, "branch", &thief.private_key);
    assert_unreachable(&thief.host, door);
    // It called, and was not answered.
    let (_, packets) = capture.end();
    let sent = packets.iter().filter_map(|packet| match packet {
        Packet::Udp { payload, .. } => Some(payload[0]),
        _ => None,
    });
    let kinds: Vec<u8> = sent.collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == 1), "{kinds:?}");
    enter(&one, &branch.host, door);
}

pub fn t59_a_tunnel_s_peer_is_a_private_endpoint_that_can_be_rejected() {
    let branch = Branch::new();
    let one = private(&world().cloud, "guarded-bank", "10.89.0.0/24");
    let door = IpAddr::from([10, 89, 0, 1]);
    propose(&one, "branch", &["--wireguard", "--public-key", &branch.public_key]);
    accept(&one, "branch");
    branch.up(&one, "branch", &branch.private_key);
    let mut session = enter(&one, &branch.host, door);
    let id = format!("wireguard:{}", branch.public_key);
    one.cloud.chitin(["endpoint", "service", &one.name, "--create"]).ok();
    one.cloud.chitin(["endpoint", "add", &one.name, &id]).ok();
    assert_eq!(session.value("select 1"), "1");
    one.cloud.chitin(["endpoint", "reject", &one.name, &id]).ok();
    assert_cut(&mut session, PARTED);
    let refusal = enter_from(&one, &branch.host, door, None).map(drop).expect_err("rejected");
    assert!(["28000", "closed"].contains(&refusal.code.as_str()), "{refusal:?}");
    one.cloud.chitin(["endpoint", "accept", &one.name, &id]).ok();
    assert_eq!(enter(&one, &branch.host, door).value("select 1"), "1");
}

pub fn a_peering_on_this_machine_carries_tls_and_nothing_in_plaintext() {
    let office = world().hosts.host();
    let one = private(&world().cloud, "sealed-bank", "10.91.0.0/24");
    let door = IpAddr::from([10, 91, 0, 1]);
    peer(&one, "office", &office, &[]);
    let made = on(&office, "ip -o link");
    let link = made.split(": ").find(|word| word.starts_with("ct")).expect("a link of the peering");
    let capture = Capture::begin(&office, link.split('@').next().expect("a name"));
    psql(&one, &office, door, &format!("create table kept as select '{CANARY}' as line")).ok();
    assert_eq!(psql(&one, &office, door, "select line from kept").ok().trim(), CANARY);
    let (bytes, packets) = capture.end();
    assert!(!contains(&bytes, CANARY.as_bytes()), "a row went in plaintext");
    assert!(!contains(&bytes, b"defaultdb"), "a startup message went in plaintext");
    for packet in &packets {
        assert!(matches!(packet, Packet::Arp | Packet::Icmpv6 | Packet::Tcp { .. }), "{packet:?}");
    }
    let streams = streams(&packets);
    assert_eq!(streams.len(), 4, "two connections, two directions: {:?}", streams.keys());
    for ((from, _), bytes) in streams {
        let is_ours = from.1 == SQL_PORT;
        let rest = if is_ours { bytes.strip_prefix(b"S") } else { bytes.strip_prefix(&SSL_REQUEST) };
        let kinds = tls_records(rest.expect("SSLRequest and its answer, and then TLS"));
        assert!(kinds.contains(&22) && kinds.contains(&23), "{kinds:?}");
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}
