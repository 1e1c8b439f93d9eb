//! What these tests share: a cloud on a host of its own, other hosts around it, and ways to look at their networks.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use house::cloud::{HTTP_PORT, PATIENCE, SQL_PORT};
use house::command::{eventually, run, run_with};
use house::machine::assert_within;
use house::shared::stopped;
use house::{Caller, Cloud, Cluster, Host, Hosts, Options, Refusal, Wire};

/// For a client to learn that nobody answers.
const ATTEMPT_MAX: Duration = Duration::from_millis(1_500);

static WORLD: OnceLock<World> = OnceLock::new();

/// What a session reads when its peering goes.
pub(crate) const PARTED: &str =
    "terminating connection: this address is no longer behind a peering of the cluster";

/// A cloud on a host, and room for more hosts.
pub(crate) struct World {
    /// The internet between them.
    pub(crate) hosts: Hosts,
    /// Where the cloud is.
    pub(crate) home: Host,
    /// The cloud. One of its clusters is open to everybody, so that refusals come in words.
    pub(crate) cloud: Cloud,
}

impl World {
    /// A cloud of a test's own. Providers and responders of these tests are on the cloud's own host.
    pub(crate) fn new() -> Self {
        Self::with(&["--fetch-allow", "127.0.0.1/32"], None)
    }

    /// As [`World::new`], started with these arguments, and with names of its own.
    pub(crate) fn with(arguments: &[&str], names: Option<&str>) -> Self {
        let hosts = Hosts::new();
        let home = hosts.host();
        let names = names.map(str::to_owned);
        let options = Options { host: Some(home.clone()), names, ..Options::unencrypted(arguments) };
        Self { hosts, home, cloud: Cloud::start(options) }
    }

    /// Stops the cloud of a world that is never dropped; says whether it left nothing behind.
    pub(crate) fn stop(&self) -> bool {
        stopped(&self.cloud)
    }

    /// Signs in at the public door, from another host.
    pub(crate) fn enter_publicly(&self, one: &Cluster<'_>, from: &Host) -> Result<Wire, Refusal> {
        let wire = self.public(from).map_err(|error| Refusal::closed(&error.to_string()))?;
        one.enter_over(wire, &Caller::with(&one.password))
    }

    /// Connects to the public door, from another host.
    pub(crate) fn public(&self, from: &Host) -> io::Result<Wire> {
        from.connect(SocketAddr::new(self.home.ipv4(), SQL_PORT), None)
    }
}

/// The world that tests share, made by the first that asks.
pub(crate) fn world() -> &'static World {
    WORLD.get_or_init(|| {
        let world = World::new();
        world.cloud.cluster("open-to-all", &[]);
        world
    })
}

/// Stops the shared cloud; says whether it left nothing behind.
pub(crate) fn stop() -> bool {
    WORLD.get().is_none_or(World::stop)
}

/// A private cluster with a user, and the address of its front door.
pub(crate) fn private<'cloud>(cloud: &'cloud Cloud, name: &str, range: &str) -> Cluster<'cloud> {
    cloud.cluster(name, &["--plan", "dedicated", "--visibility", "private", "--cidr", range])
}

/// Proposes and accepts a peering with a host, and waits until it is active.
pub(crate) fn peer(one: &Cluster<'_>, name: &str, with: &Host, more: &[&str]) {
    let arguments = [&["--namespace", with.name()], more].concat();
    propose(one, name, &arguments);
    accept(one, name);
}

/// Proposes a peering.
pub(crate) fn propose(one: &Cluster<'_>, name: &str, arguments: &[&str]) {
    let all = [&["peering", "create", &one.name, name], arguments].concat();
    run_with(&mut one.cloud.command_of(&all), b"", PATIENCE).ok();
}

/// Accepts a peering and waits until it is active.
pub(crate) fn accept(one: &Cluster<'_>, name: &str) {
    one.cloud.chitin(["peering", "accept", &one.name, name]).ok();
    eventually_active(one, name);
}

/// Waits until a peering is active; panics with its reason where it is not.
pub(crate) fn eventually_active(one: &Cluster<'_>, name: &str) {
    let mut last = String::new();
    let until = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < until {
        last = show(one, name);
        if status(&last) == "active" {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the peering {name} of {} is not active: {last}", one.name);
}

/// What is known of a peering, in JSON.
pub(crate) fn show(one: &Cluster<'_>, name: &str) -> String {
    one.cloud.json(["peering", "show", &one.name, name]).to_string()
}

/// A peering's status, of what [`show`] says.
pub(crate) fn status(shown: &str) -> String {
    let shown: serde_json::Value = serde_json::from_str(shown).expect("JSON");
    let said = shown["state"].as_str().unwrap_or_else(|| panic!("no state: {shown}"));
    said.to_owned()
}

/// Tries to open a TCP connection from a host.
pub(crate) fn attempt(from: &Host, to: IpAddr, port: u16) -> io::Result<()> {
    from.within(|| TcpStream::connect_timeout(&SocketAddr::new(to, port), ATTEMPT_MAX)).map(drop)
}

/// As [`attempt`], from an address that the host has.
pub(crate) fn attempt_from(from: &Host, source: IpAddr, to: IpAddr, port: u16) -> io::Result<()> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    from.within(|| {
        let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let descriptor = socket(family, SocketType::STREAM, None)?;
        // It bounds connecting, too.
        set_socket_timeout(&descriptor, Timeout::Send, Some(ATTEMPT_MAX))?;
        bind(&descriptor, &SocketAddr::new(source, 0))?;
        Ok(connect(&descriptor, &SocketAddr::new(to, port))?)
    })
}

/// A new private key of WireGuard, and its public key.
pub(crate) fn wireguard_keys() -> (String, String) {
    let own = run(Command::new("wg").arg("genkey")).ok();
    let public = run_with(Command::new("wg").arg("pubkey"), own.as_bytes(), PATIENCE).ok();
    (own.trim().to_owned(), public.trim().to_owned())
}

/// Whether a host reaches neither of the front door's ports.
#[track_caller]
pub(crate) fn assert_unreachable(from: &Host, door: IpAddr) {
    for port in [SQL_PORT, HTTP_PORT] {
        let reached = attempt(from, door, port);
        assert!(reached.is_err(), "{} reached {door} at port {port}", from.name());
    }
}

/// Signs in at the front door, from a host that is joined, as the address `source` if one is given.
pub(crate) fn enter_from(
    one: &Cluster<'_>,
    from: &Host,
    door: IpAddr,
    source: Option<IpAddr>,
) -> Result<Wire, Refusal> {
    let wire = from.connect(SocketAddr::new(door, SQL_PORT), source);
    let wire = wire.map_err(|error| Refusal::closed(&error.to_string()))?;
    let name = format!("{}.localhost", one.handle);
    one.enter_over(wire, &Caller::with(&one.password).naming(&name))
}

/// As [`enter_from`]; panics where it is refused.
#[track_caller]
pub(crate) fn enter(one: &Cluster<'_>, from: &Host, door: IpAddr) -> Wire {
    enter_from(one, from, door, None)
        .unwrap_or_else(|refusal| panic!("{} at {door} from {}: {refusal:?}", one.name, from.name()))
}

/// Waits for a session's end, which must be `57P01` with this text and quick.
#[track_caller]
pub(crate) fn assert_cut(wire: &mut Wire, text: &str) {
    let begun = std::time::Instant::now();
    let refusal = wire.expect_refusal();
    assert_eq!((refusal.code.as_str(), refusal.message.as_str()), ("57P01", text), "{refusal:?}");
    assert_within(Duration::from_secs(2), begun, "it is cut");
}

/// What an operator runs on a host; it must succeed.
pub(crate) fn on(host: &Host, words: &str) -> String {
    let mut words = words.split_whitespace();
    let mut command = host.command(words.next().expect("a program"));
    run(command.args(words)).ok()
}

/// Links, addresses, routes and rules of a host, for comparing.
pub(crate) fn network_of(host: &Host) -> Vec<String> {
    let looks =
        ["-o link", "-o address", "-4 route show table all", "-6 route show table all", "rule", "-6 rule"];
    let lines = looks.iter().flat_map(|look| {
        let said = on(host, &format!("ip {look}"));
        said.lines().map(|line| format!("{look}: {}", line.trim())).collect::<Vec<_>>()
    });
    let mut lines: Vec<String> = lines.map(|line| without_lifetimes(&line)).collect();
    lines.sort();
    lines
}

/// A line without what changes by itself.
fn without_lifetimes(line: &str) -> String {
    let mut words = line.split_whitespace().peekable();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if ["valid_lft", "preferred_lft", "expires", "qlen"].contains(&word) {
            words.next();
        } else if word != "tentative" {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// Waits until a host's network is what it was.
#[track_caller]
pub(crate) fn eventually_as_before(host: &Host, before: &[String]) {
    let differs = |now: &[String]| -> Vec<String> {
        let gone = before.iter().filter(|line| !now.contains(line)).map(|line| format!("gone: {line}"));
        gone.chain(now.iter().filter(|line| !before.contains(line)).map(|line| format!("new: {line}")))
            .collect()
    };
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let differences = differs(&network_of(host));
        if differences.is_empty() {
            return;
        }
        assert!(std::time::Instant::now() < until, "{}: {differences:#?}", host.name());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until something holds, for as long as links need to come and go.
pub(crate) fn soon(what: &str, holds: impl Fn() -> bool) {
    eventually(what, PATIENCE, || holds().then_some(()));
}
