//! Floods of connections that nobody signs in on, from many addresses, against both listeners: whoever comes from elsewhere
//! comes in, and the operator too.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use house::api::curl;
use house::cloud::{HTTP_PORT, PATIENCE, SQL_PORT};
use house::command::eventually;
use house::hosts::ADDRESSES;
use house::machine::{self, assert_within};
use house::proxy::Header;
use house::shared::stopped;
use house::wire::{ANSWER_DEADLINE, SSL_REQUEST};
use house::{Caller, Cloud, Cluster, Host, Hosts, Options, Wire, tls};

/// Descriptors of the cloud. They bound what its doors hold of those who have not signed in.
const DESCRIPTORS: u32 = 2_112;
/// Places at a SQL door with so many.
const SQL_PLACES: usize = 256;
/// Places at a door of the API.
const HTTP_PLACES: usize = 64;
/// The door behind a balancer.
const BALANCED_PORT: u16 = 26_258;
/// For what nobody else's crowd may delay.
const SOON: Duration = Duration::from_secs(3);
/// What a connection without a sign-in lives at the most, and room for a busy machine.
const GONE: Duration = Duration::from_secs(25);

/// A cloud with few places, somebody who floods it from two networks, and a customer in a third.
struct Crowded {
    home: Host,
    attackers: [Host; 2],
    customer: Host,
    cloud: Cloud,
    // Dropped last: without it the hosts lose each other.
    _hosts: Hosts,
}

static CROWDED: OnceLock<Crowded> = OnceLock::new();

/// Made by the first that asks.
fn crowded() -> &'static Crowded {
    CROWDED.get_or_init(|| {
        machine::raise_descriptor_limit();
        let hosts = Hosts::new();
        let (home, attackers, customer) = (hosts.host(), [hosts.host(), hosts.host()], hosts.host());
        let balancer = attackers[0].ipv4().to_string();
        let door = format!("[::]:{BALANCED_PORT}");
        let arguments = ["--sql-proxy", &door, "--proxy-from", &balancer];
        let options = Options {
            host: Some(home.clone()),
            descriptors: Some(DESCRIPTORS),
            ..Options::unencrypted(&arguments)
        };
        let cloud = Cloud::start(options);
        Crowded { home, attackers, customer, cloud, _hosts: hosts }
    })
}

/// Stops the cloud; says whether nothing was left behind.
pub(crate) fn stop() -> bool {
    CROWDED.get().is_none_or(|crowded| stopped(&crowded.cloud))
}

impl Crowded {
    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.home.ipv4(), port)
    }

    /// The same door at the address that this source can reach.
    fn at_for(&self, source: IpAddr, port: u16) -> SocketAddr {
        SocketAddr::new(if source.is_ipv4() { self.home.ipv4() } else { self.home.ipv6() }, port)
    }

    /// Signs in from the customer's host and asks something.
    #[track_caller]
    fn customer_comes_in(&self, one: &Cluster<'_>) {
        let begun = Instant::now();
        let wire = self.customer.connect(self.at(SQL_PORT), None).expect("the door is there");
        let mut wire = one.enter_over(wire, &Caller::with(&one.password)).expect("a newcomer comes in");
        assert_eq!(wire.value("select 1"), "1");
        assert_within(SOON, begun, "signing in beside a flood");
    }

    /// Asks the API with a key, from the customer's host, by TCP.
    #[track_caller]
    fn customer_is_answered(&self) {
        let key = std::fs::read_to_string(self.cloud.data().join("admin-key")).expect("the key");
        let begun = Instant::now();
        let mut command = self.customer.command("curl");
        command.arg("--resolve").arg(format!("localhost:{HTTP_PORT}:{}", self.home.ipv4()));
        command.arg("--cacert").arg(self.cloud.root_certificate());
        command.args(["-H", &format!("Authorization: Bearer {}", key.trim())]);
        command.arg(format!("https://localhost:{HTTP_PORT}/api/v1/clusters"));
        curl(&mut command, None).ok();
        assert_within(SOON, begun, "a call of the API beside a flood");
    }

    /// The operator's own command, on the cloud's machine.
    #[track_caller]
    fn operator_is_answered(&self) {
        let begun = Instant::now();
        self.cloud.chitin(["status"]).ok();
        assert_within(SOON, begun, "chitin status beside a flood");
    }
}

/// Ends the flood, also when a test fails in the middle of it.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether the other side has not closed it.
fn is_open(wire: &Wire) -> bool {
    let socket = wire.socket();
    socket.set_nonblocking(true).expect("a live socket");
    let mut bytes = [0; 1024];
    loop {
        match (&mut &*socket).read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// Keeps opening connections from every address of the attackers' hosts, IPv4 and IPv6, while `act` runs; at most `held_max` from each host
/// at a time. Returns how many were opened.
fn beside_a_flood(
    crowded: &Crowded,
    (held_max, pause): (usize, Duration),
    open: impl Fn(&Host, IpAddr) -> std::io::Result<Wire> + Sync,
    act: impl FnOnce(),
) -> usize {
    let (is_over, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _ending = Ending(&is_over);
        for host in &crowded.attackers {
            let (is_over, opened, open) = (&is_over, &opened, &open);
            scope.spawn(move || {
                host.within(|| {
                    let mut held = VecDeque::new();
                    let sources =
                        (1..=ADDRESSES).flat_map(|place| [host.ipv4_at(place), host.ipv6_at(place)]);
                    for source in sources.cycle() {
                        if is_over.load(Ordering::Relaxed) {
                            return;
                        }
                        if let Ok(wire) = open(host, source) {
                            held.push_back(wire);
                            opened.fetch_add(1, Ordering::Relaxed);
                        }
                        if held.len() > held_max {
                            held.pop_front();
                        }
                        std::thread::sleep(pause);
                    }
                });
            });
        }
        eventually("there are more than there is room for", PATIENCE, || {
            (opened.load(Ordering::Relaxed) > 3 * held_max / 2).then_some(())
        });
        act();
    });
    opened.into_inner()
}

pub fn t09_a_flood_of_silent_connections_keeps_nobody_from_elsewhere_out_of_sql() {
    let crowded = crowded();
    let one = crowded.cloud.cluster("beside-a-flood", &[]);
    let opened = beside_a_flood(
        crowded,
        (2 * SQL_PLACES, Duration::from_millis(1)),
        |_, source| Wire::tcp_from(crowded.at_for(source, SQL_PORT), Some(source)),
        || {
            for _ in 0..5 {
                crowded.customer_comes_in(&one);
            }
            crowded.operator_is_answered();
        },
    );
    assert!(opened > 2 * SQL_PLACES, "{opened} connections are no flood");
    assert!(crowded.cloud.log().contains("crowded with connections that are not signed in"));
}

pub fn t09_those_of_the_crowded_network_go_and_whoever_came_before_them_stays() {
    let crowded = crowded();
    let one = crowded.cloud.cluster("before-a-flood", &[]);
    let sql = crowded.at(SQL_PORT);
    // The oldest of all, in the middle of its sign-in.
    let early = crowded.customer.connect(sql, None).expect("the door is there");
    let mut early = one.knock_over(early, &Caller::with(&one.password)).expect("TLS stands");
    let flood: Vec<Wire> = crowded
        .attackers
        .iter()
        .flat_map(|host| {
            host.within(|| {
                let sources = (0..SQL_PLACES).map(|number| {
                    host.ipv4_at(u8::try_from(number % usize::from(ADDRESSES)).expect("small") + 1)
                });
                let open = |source| {
                    let mut wire = Wire::tcp_from(sql, Some(source)).expect("the door is there");
                    // Not silent, so that only the crowd sends it away.
                    let _ = wire.send_raw(&SSL_REQUEST[..5]);
                    wire
                };
                sources.map(open).collect::<Vec<_>>()
            })
        })
        .collect();
    eventually("half of the flood is gone", PATIENCE, || {
        let open = flood.iter().filter(|wire| is_open(wire)).count();
        (open <= SQL_PLACES).then_some(())
    });
    assert_eq!(early.expect_message().expect("it is still there").tag, b'R');
}

pub fn t09_a_flood_of_silent_http_2_connections_keeps_neither_the_operator_nor_others_out() {
    let crowded = crowded();
    let config = std::sync::Arc::new(tls::client(&crowded.cloud.root_certificate(), &["h2"]));
    let silent = |_: &Host, source: IpAddr| {
        let mut wire = Wire::tcp_from(crowded.at_for(source, HTTP_PORT), Some(source))?;
        wire.handshake(&config, "localhost")?;
        // The preface of HTTP/2 with empty settings (RFC 9113, section 3.4), and not a word more.
        wire.send_raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
        Ok(wire)
    };
    let opened = beside_a_flood(crowded, (2 * HTTP_PLACES, Duration::from_millis(5)), silent, || {
        for _ in 0..3 {
            crowded.customer_is_answered();
            crowded.operator_is_answered();
        }
    });
    assert!(opened > 2 * HTTP_PLACES, "{opened} connections are no flood");
    // Without a crowd, too, a connection that shows no key lives for seconds.
    let host = &crowded.attackers[0];
    let mut alone = host.within(|| silent(host, host.ipv4())).expect("the door is there");
    assert!(alone.is_closed_within(GONE), "a silent HTTP/2 connection outlived {GONE:?}");
}

pub fn t09_a_crowd_behind_the_balancer_keeps_nobody_out() {
    let crowded = crowded();
    let one = crowded.cloud.cluster("beside-a-balancer", &[]);
    let balanced = crowded.at(BALANCED_PORT);
    let balancer = &crowded.attackers[0];
    let number = AtomicUsize::new(0);
    let open_from = |networks: usize| {
        let number = &number;
        move |_: &Host, _: IpAddr| {
            let [.., c, d] = (number.fetch_add(1, Ordering::Relaxed) % networks).to_be_bytes();
            let mut wire = Wire::tcp_from(balanced, None)?;
            wire.send_raw(&Header::from(&format!("198.{c}.{d}.7")).bytes())?;
            Ok(wire)
        }
    };
    let flood = (2 * SQL_PLACES, Duration::from_millis(1));
    // From everywhere at once, as far as the balancer says: it is the balancer's door alone that is crowded.
    beside_a_flood(crowded, flood, open_from(1 << 16), || crowded.customer_comes_in(&one));
    // From a few networks: a customer behind the same balancer, in a network of its own, comes in too.
    beside_a_flood(crowded, flood, open_from(3), || {
        let header = Header::from("203.0.113.9");
        let mut wire = balancer.connect(balanced, None).expect("the door is there");
        wire.write_all(&header.bytes()).expect("the door listens");
        let mut wire = one.enter_over(wire, &Caller::with(&one.password)).expect("a newcomer comes in");
        assert_eq!(wire.value("select 1"), "1");
    });
}

pub fn an_api_connection_lives_for_seconds_until_it_has_shown_a_key() {
    let crowded = crowded();
    let connect = || {
        let mut wire = crowded.customer.connect(crowded.at(HTTP_PORT), None).expect("the door is there");
        wire.handshake(crowded.cloud.trust(), "localhost").expect("TLS 1.3");
        wire
    };
    let key = std::fs::read_to_string(crowded.cloud.data().join("admin-key")).expect("the key");
    let ask = |wire: &mut Wire, authorization: &str| -> std::io::Result<String> {
        let request = format!(
            "GET /api/v1/clusters HTTP/1.1\r\nHost: localhost\r\n{authorization}Content-Length: 0\r\n\r\n"
        );
        wire.send_raw(request.as_bytes())?;
        let mut bytes = [0; 16 * 1024];
        let count = wire.read(&mut bytes)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
    };
    let (mut known, mut stranger) = (connect(), connect());
    let bearer = format!("Authorization: Bearer {}\r\n", key.trim());
    let begun = Instant::now();
    // Both ask again and again, so that neither is idle. Only one of them has anything to show.
    let refused = loop {
        assert!(ask(&mut known, &bearer).expect("it goes on").starts_with("HTTP/1.1 200"));
        match ask(&mut stranger, "") {
            Ok(answer) => assert!(answer.starts_with("HTTP/1.1 401"), "{answer}"),
            Err(closed) => break closed,
        }
        assert!(begun.elapsed() < GONE, "a connection without a key outlived {GONE:?}");
        std::thread::sleep(Duration::from_secs(1));
    };
    assert!(begun.elapsed() > Duration::from_secs(5), "people need some time at a page: {refused}");
    assert!(ask(&mut known, &bearer).expect("it goes on").starts_with("HTTP/1.1 200"));
    let _ = known.socket().set_read_timeout(Some(ANSWER_DEADLINE));
}
