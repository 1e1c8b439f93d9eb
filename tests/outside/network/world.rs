//! What these tests share: a cloud on this machine with every door, and one on a host of its own with other hosts around it.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use house::cloud::{HTTP_PORT, SQL_PORT};
use house::ports::free_port;
use house::shared::{Shared, stopped};
use house::wire::{ANSWER_DEADLINE, text};
use house::{Caller, Cloud, Cluster, Host, Hosts, Options, Refusal, Wire};

/// What a client reads whose address is not on the list.
pub(crate) const NOT_LISTED: &str = "connection refused: this address is not on the cluster's IP allowlist";
/// What its session reads when the address goes.
pub(crate) const NO_LONGER_LISTED: &str =
    "terminating connection: this address is no longer on the cluster's IP allowlist";
/// Rows without end, the first of them at once.
pub(crate) const COPY_OUT: &str =
    "copy (select repeat('x', 8000) from (select generate_series(1, 100000000)) as many) to stdout";

/// Longest wait for a session to end that should have ended long ago.
const END_MAX: Duration = Duration::from_secs(90);

/// A cloud's doors beside those that everybody finds.
pub(crate) struct Doors {
    /// For SQL behind a balancer.
    pub(crate) sql: SocketAddr,
    /// For the API behind a balancer.
    pub(crate) http: SocketAddr,
    /// For private endpoints of clouds.
    pub(crate) endpoint: SocketAddr,
    /// For connecting proxies with a certificate.
    pub(crate) endpoint_tls: SocketAddr,
}

static DOORS: OnceLock<Doors> = OnceLock::new();
static WORLD: OnceLock<World> = OnceLock::new();

impl Doors {
    fn arguments(&self) -> Vec<String> {
        let doors = [
            ("--sql-proxy", self.sql),
            ("--http-proxy", self.http),
            ("--endpoint", self.endpoint),
            ("--endpoint-tls", self.endpoint_tls),
        ];
        let at = |door: SocketAddr| match door.ip().is_loopback() {
            true => door.to_string(),
            // Of all addresses there: IPv4 peers are shown to the program in IPv6's words.
            false => format!("[::]:{}", door.port()),
        };
        doors.into_iter().flat_map(|(flag, door)| [flag.to_owned(), at(door)]).collect()
    }
}

static SHARED: Shared = Shared::new(options);

/// How the shared cloud on this machine is started. Of all addresses, 127.0.0.1 alone is a balancer.
fn options() -> Options {
    let doors =
        Doors { sql: free_port(), http: free_port(), endpoint: free_port(), endpoint_tls: free_port() };
    let mut arguments = doors.arguments();
    arguments.extend(["--proxy-from", "127.0.0.1/32", "--fetch-allow", "127.0.0.0/8"].map(str::to_owned));
    assert!(DOORS.set(doors).is_ok(), "the shared cloud is started once");
    with_doors(&arguments)
}

fn with_doors(arguments: &[String]) -> Options {
    Options::unencrypted(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The shared cloud on this machine.
pub(crate) fn cloud() -> &'static Cloud {
    SHARED.cloud()
}

/// A cluster of it that is open to everybody, so that refusals come in words.
pub(crate) fn cluster() -> &'static Cluster<'static> {
    SHARED.cluster()
}

/// The doors of the shared cloud, which is started if it does not run yet, with the cluster that is open to everybody.
pub(crate) fn doors() -> &'static Doors {
    cluster();
    DOORS.get().expect("the cloud was started with them")
}

/// A cloud on a host, a balancer that it believes, and room for more hosts.
pub(crate) struct World {
    /// The internet between them.
    pub(crate) hosts: Hosts,
    /// Where the cloud is.
    pub(crate) home: Host,
    /// The only one whose PROXY headers count.
    pub(crate) balancer: Host,
    /// The cloud. One of its clusters is open to everybody, so that refusals come in words.
    pub(crate) cloud: Cloud,
    /// Its doors, at the home's IPv4 address.
    pub(crate) doors: Doors,
}

/// The world, made by the first that asks.
pub(crate) fn world() -> &'static World {
    WORLD.get_or_init(|| {
        let hosts = Hosts::new();
        let (home, balancer) = (hosts.host(), hosts.host());
        let at = |port| SocketAddr::new(home.ipv4(), port);
        let doors =
            Doors { sql: at(26_258), http: at(8_081), endpoint: at(26_259), endpoint_tls: at(26_260) };
        let mut arguments = doors.arguments();
        for peer in [balancer.ipv4(), balancer.ipv6()] {
            arguments.extend(["--proxy-from".to_owned(), peer.to_string()]);
        }
        arguments.extend(["--hostname".to_owned(), home.ipv4().to_string()]);
        arguments.extend(["--fetch-allow", "127.0.0.0/8"].map(str::to_owned));
        let options = Options { host: Some(home.clone()), ..with_doors(&arguments) };
        let cloud = Cloud::start(options);
        cloud.cluster("open-to-all", &[]);
        World { hosts, home, balancer, cloud, doors }
    })
}

/// Stops all clouds; says whether nothing was left behind.
pub(crate) fn stop() -> bool {
    // All, whatever becomes of the first.
    let are_clean =
        [SHARED.stop(), WORLD.get().is_none_or(|world| stopped(&world.cloud)), super::crowd::stop()];
    are_clean.iter().all(|is_clean| *is_clean)
}

impl World {
    /// A new cluster that lets nobody in.
    pub(crate) fn closed(&self, name: &str) -> Cluster<'_> {
        self.cloud.cluster(name, &["--plan", "dedicated"])
    }

    /// The home's address of the same kind as this one.
    pub(crate) fn home_for(&self, source: IpAddr) -> IpAddr {
        if source.is_ipv4() { self.home.ipv4() } else { self.home.ipv6() }
    }

    /// Connects from a host's address to the door that everybody finds.
    pub(crate) fn reach(&self, host: &Host, source: IpAddr) -> io::Result<Wire> {
        host.connect(SocketAddr::new(self.home_for(source), SQL_PORT), Some(source))
    }

    /// Signs in from a host's address.
    pub(crate) fn enter(&self, one: &Cluster<'_>, host: &Host, source: IpAddr) -> Result<Wire, Refusal> {
        let wire = self.reach(host, source).map_err(|error| Refusal::closed(&error.to_string()))?;
        one.enter_over(wire, &Caller::with(&one.password))
    }

    /// What curl needs to find the API as `localhost` from another host.
    pub(crate) fn resolve(&self, source: IpAddr) -> String {
        match self.home_for(source) {
            IpAddr::V4(home) => format!("localhost:{HTTP_PORT}:{home}"),
            IpAddr::V6(home) => format!("localhost:{HTTP_PORT}:[{home}]"),
        }
    }
}

/// How a refusal reads, whichever way it came.
pub(crate) fn words(refusal: &Refusal) -> (&str, &str) {
    (refusal.code.as_str(), refusal.message.as_str())
}

/// How a session ended, and when its client read of it.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) at: Instant,
    pub(crate) refusal: Refusal,
}

/// A session that a thread reads until it ends. Dropped, it is over.
pub(crate) struct Watched {
    ended: Receiver<Ended>,
    thread: JoinHandle<()>,
    socket: TcpStream,
}

impl Watched {
    fn over(mut wire: Wire, act: impl FnOnce(&mut Wire) -> Refusal + Send + 'static) -> Self {
        let socket = wire.socket().try_clone().expect("a descriptor is left");
        let (say, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let refusal = act(&mut wire);
            // Nobody may want to know any more.
            let _ = say.send(Ended { at: Instant::now(), refusal });
        });
        Self { ended, thread, socket }
    }

    /// One that does nothing.
    pub(crate) fn idle(wire: Wire) -> Self {
        Self::over(wire, Wire::expect_refusal)
    }

    /// One whose statement takes longer than the test.
    pub(crate) fn busy(mut wire: Wire) -> Self {
        wire.send(b'Q', &text("select pg_sleep(600)")).expect("the session stands");
        Self::idle(wire)
    }

    /// One that reads rows without end.
    pub(crate) fn copying_out(mut wire: Wire) -> Self {
        wire.send(b'Q', &text(COPY_OUT)).expect("the session stands");
        Self::idle(wire)
    }

    /// One that writes rows without end, some megabytes a second.
    pub(crate) fn copying_in(mut wire: Wire) -> Self {
        wire.query("create temporary table taken (line text)").expect("a table of its own");
        wire.send(b'Q', &text("copy taken from stdin")).expect("the session stands");
        assert_eq!(wire.expect_message().expect("COPY begins").tag, b'G');
        let row = [vec![b'x'; 8_000], vec![b'\n']].concat();
        Self::over(wire, move |wire| {
            let _ = wire.socket().set_read_timeout(Some(Duration::from_millis(2)));
            // Until the gateway has something to say.
            while wire.socket().peek(&mut [0]).is_err() {
                if wire.send(b'd', &row).is_err() {
                    break;
                }
            }
            let _ = wire.socket().set_read_timeout(Some(ANSWER_DEADLINE));
            wire.expect_refusal()
        })
    }

    /// Whether it goes on.
    pub(crate) fn is_open(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Its end; panics where it has none.
    #[track_caller]
    pub(crate) fn end(self) -> Ended {
        self.ended.recv_timeout(END_MAX).expect("the session ends with a refusal")
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Milliseconds from one moment to another; 0 where it comes before.
pub(crate) fn milliseconds(from: Instant, to: Instant) -> u128 {
    to.saturating_duration_since(from).as_millis()
}

/// The middle value.
pub(crate) fn median(mut values: Vec<u128>) -> u128 {
    values.sort_unstable();
    values[values.len() / 2]
}
