//! What the tests stand on: a machine of their own, other networks on it, a front door, and clients somewhere.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use model::{ClusterId, Network, NetworkSeen, Peering, PeeringPhase, PeeringWish, PeeringWith, RoutingId};
use network::private::PrivateNetworks;
use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, Socket, Type};
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;
use tokio::task::AbortHandle;

use crate::skipped::skipped;

/// For a client to be let in, on a busy machine.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// For a client to learn that it is not.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);
/// For the kernel to take away what nobody holds any more.
pub const GONE_MAX: Duration = Duration::from_secs(60);
/// Where the front door listens in every test.
pub const PORT: u16 = 26257;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A name that no other test has, nor another run of the tests.
pub fn unique(what: &str) -> String {
    format!("ct{what}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs a test in a network of its own: every thread and program that it starts is there.
pub fn on_a_machine<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    on_a_machine_with(CloneFlags::CLONE_NEWNET, test);
}

/// The same, with further namespaces of its own.
pub fn on_a_machine_with<F: Future<Output = ()>>(
    flags: CloneFlags,
    test: impl FnOnce() -> F + Send + 'static,
) {
    if !rustix::process::geteuid().is_root() {
        return skipped("only root may make network namespaces");
    }
    let thread = std::thread::spawn(move || {
        unshare(flags).unwrap();
        sh("ip link set lo up");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// Runs a command in the machine's network and gives what it prints; it must succeed.
pub fn sh(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|cause| panic!("{command}: {cause}; ./test installs what is missing"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the machine's links.
pub fn links() -> Vec<String> {
    names(&sh("ip -o link show"))
}

fn names(listed: &str) -> Vec<String> {
    let name = |line: &str| line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
    listed.lines().map(name).collect()
}

/// A named network namespace; removed with everything in it.
pub struct Place(pub String);

impl Place {
    pub fn new() -> Self {
        let name = unique("ns");
        sh(&format!("ip netns add {name}"));
        let place = Self(name);
        place.ip("link set lo up");
        place
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) -> String {
        sh(&format!("ip -n {} {arguments}", self.0))
    }

    /// Runs a program inside.
    pub fn run(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} {command}", self.0))
    }

    pub fn links(&self) -> Vec<String> {
        names(&self.ip("-o link show"))
    }

    /// The one link that Chitin made here.
    pub fn link(&self) -> String {
        let made: Vec<String> = self.links().into_iter().filter(|name| name.starts_with("ct")).collect();
        assert_eq!(made.len(), 1, "{made:?}");
        made[0].clone()
    }

    /// Connects from inside and reads whom the front door saw.
    pub fn connect(&self, from: Option<&str>, to: (IpAddr, u16)) -> io::Result<String> {
        self.connect_within(CONNECT_MAX, socket_address(from), to)
    }

    /// Tries to connect from inside where it is expected to fail.
    pub fn attempt(&self, from: Option<&str>, to: (IpAddr, u16)) -> io::Result<String> {
        self.connect_within(ATTEMPT_MAX, socket_address(from), to)
    }

    /// The same from an address whose link must be named.
    pub fn attempt_over(&self, from: SocketAddrV6, to: (IpAddr, u16)) -> io::Result<String> {
        self.connect_within(ATTEMPT_MAX, Some(from.into()), to)
    }

    fn connect_within(
        &self,
        limit: Duration,
        from: Option<SocketAddr>,
        to: (IpAddr, u16),
    ) -> io::Result<String> {
        let name = self.0.clone();
        let thread = std::thread::spawn(move || {
            let file = std::fs::File::open(format!("/run/netns/{name}"))?;
            setns(file, CloneFlags::CLONE_NEWNET)?;
            connect(limit, from, to.into())
        });
        thread.join().unwrap()
    }

    /// Knows the front door's hardware address from now on, without asking for it: who asks with a stolen address gets
    /// no answer to that either.
    pub fn learn(&self, door: (IpAddr, u16)) {
        let known = self.ip(&format!("neigh show {}", door.0));
        let hardware = known.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap();
        let (door, link) = (door.0, self.link());
        self.ip(&format!("neigh replace {door} lladdr {hardware} dev {link} nud permanent"));
    }

    /// What the kernel counted here (`/proc/net/snmp`), for instance `Tcp` and `OutRsts`.
    pub fn count(&self, protocol: &str, what: &str) -> u64 {
        let text = self.run("cat /proc/net/snmp");
        let mut lines = text.lines().filter(|line| line.starts_with(&format!("{protocol}:")));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let column = names.split(' ').position(|name| name == what).unwrap();
        values.split(' ').nth(column).unwrap().parse().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn socket_address(text: Option<&str>) -> Option<SocketAddr> {
    text.map(|text| (text.parse::<IpAddr>().unwrap(), 0).into())
}

fn connect(limit: Duration, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.bind(&from.into())?;
    }
    socket.connect_timeout(&to.into(), limit)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(limit))?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen)?;
    Ok(seen)
}

/// A cluster with its document and its front door, which tells everybody whom it sees.
pub struct Cluster {
    pub networks: Arc<PrivateNetworks>,
    pub id: ClusterId,
    pub routing: RoutingId,
    pub network: Network,
    door: Option<AbortHandle>,
}

impl Cluster {
    pub fn new(networks: &Arc<PrivateNetworks>, range: &str) -> Self {
        let network = Network { range: Some(range.parse().unwrap()), ..Network::default() };
        let routing = RoutingId::try_from(NEXT.fetch_add(1, Ordering::Relaxed) + 2).unwrap();
        Self { networks: networks.clone(), id: ClusterId::random(), routing, network, door: None }
    }

    /// Puts a peering that was accepted into the document.
    pub fn peer(&mut self, name: &str, with: PeeringWith, ranges: &[&str]) {
        self.network.peerings.push(Peering {
            name: name.parse().unwrap(),
            with,
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            wish: PeeringWish::Accepted,
            created_at: OffsetDateTime::UNIX_EPOCH,
        });
    }

    /// Puts a peering with a named namespace into the document, at the next free address, which it gives.
    pub fn peer_with(&mut self, name: &str, place: &Place, ranges: &[&str]) -> IpAddr {
        let address = self.network.free_address().unwrap();
        self.peer(name, PeeringWith::Namespace { namespace: place.0.clone(), address }, ranges);
        address
    }

    pub async fn ensure(&self) -> NetworkSeen {
        self.networks.ensure(self.id, self.routing, &self.network).await
    }

    /// Ensures that everything is active.
    pub async fn stand(&self) {
        let seen = self.ensure().await;
        assert_eq!(seen.front_door, self.network.front_door(), "{seen:?}");
        assert!(seen.peerings.values().all(|phase| *phase == PeeringPhase::Active), "{seen:?}");
    }

    /// Why the peering failed.
    pub async fn reason(&self, name: &str) -> String {
        match self.ensure().await.peerings.remove(&name.parse().unwrap()) {
            Some(PeeringPhase::Failed { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Ensures that everything is active and opens the front door.
    pub async fn open(&mut self) {
        self.stand().await;
        let listener = self.networks.listen(self.id, PORT).await.unwrap();
        let door = tokio::spawn(async move {
            while let Ok((mut client, from)) = listener.accept().await {
                let seen = model::canonical(from.ip()).to_string();
                tokio::spawn(async move { client.write_all(seen.as_bytes()).await });
            }
        });
        self.door = Some(door.abort_handle());
    }

    pub fn door(&self) -> (IpAddr, u16) {
        (self.network.front_door().unwrap(), PORT)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(door) = &self.door {
            door.abort();
        }
    }
}

/// Waits until it holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < GONE_MAX, "{what}: not within {GONE_MAX:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Fails unless the connection is refused, for that reason.
pub fn assert_refused(attempt: io::Result<String>, kinds: &[io::ErrorKind]) {
    match attempt {
        Ok(seen) => panic!("let in as {seen}"),
        Err(cause) => assert!(kinds.contains(&cause.kind()), "{cause:?}, expected {kinds:?}"),
    }
}
