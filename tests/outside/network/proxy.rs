//! Doors behind balancers: whose headers are believed, which headers count, and that everything after goes by the header's
//! address.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::network::{cloud, cluster};
use house::balancer::Balancer;
use house::cloud::{SQL_PORT, program};
use house::command::run;
use house::machine::allowed;
use house::ports::free_port;
use house::proxy::{AWS, CRC32C, Header, NOOP};
use house::wire::AT_ONCE;
use house::wire::{SSL_REQUEST, cancel_request, message, text};
use house::{Caller, Cloud, Cluster, Options, Refusal, Wire};
use serde_json::json;

use crate::network::world::{NO_LONGER_LISTED, NOT_LISTED, Watched, doors, words, world};

/// The only peer whose headers count on this machine.
const BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
/// Another peer.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Until a door has given up on a header, which it does after three seconds, with room for a busy machine.
const GIVEN_UP: Duration = Duration::from_secs(20);

/// What a door does with a connection that begins with these bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It goes on: TLS is welcome.
    Welcome,
    /// It closes without a word.
    Closed,
    /// It says no in plaintext and closes.
    Refused,
}

/// Sends the pieces one after the other, and at the end asks for TLS.
pub(crate) fn answer(door: SocketAddr, peer: IpAddr, pieces: &[&[u8]]) -> Answer {
    let mut wire = Wire::tcp_from(door, Some(peer)).expect("the door is there");
    for piece in pieces.iter().chain([&&SSL_REQUEST[..]]) {
        // A door that closes early closes on the rest.
        if wire.send_raw(piece).is_err() {
            break;
        }
    }
    wire.socket().set_read_timeout(Some(GIVEN_UP)).expect("a live socket");
    let mut first = [0];
    match wire.read(&mut first) {
        Ok(0) => Answer::Closed,
        Ok(_) if first == *b"S" => Answer::Welcome,
        Ok(_) if first == *b"E" => {
            assert!(wire.is_closed_within(AT_ONCE), "a refusal is the end");
            Answer::Refused
        }
        Ok(_) => panic!("answered with {first:?}"),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Answer::Closed,
        Err(error) => panic!("neither an answer nor an end within {GIVEN_UP:?}: {error}"),
    }
}

/// The header and the question for TLS in one piece, as a balancer that coalesces sends them.
fn at_once(door: SocketAddr, peer: IpAddr, header: &[u8]) -> Answer {
    answer(door, peer, &[header])
}

/// Connects to a door behind the balancer as a client with this header.
pub(crate) fn behind(door: SocketAddr, header: &Header) -> Wire {
    let mut wire = Wire::tcp_from(door, Some(BALANCER)).expect("the door is there");
    wire.send_raw(&header.bytes()).expect("the door listens");
    wire
}

/// Signs in behind the balancer as a client with this header.
pub(crate) fn enter(one: &Cluster<'_>, door: SocketAddr, header: &Header) -> Result<Wire, Refusal> {
    one.enter_over(behind(door, header), &Caller::with(&one.password))
}

pub fn t55_only_a_good_header_from_a_believed_peer_passes() {
    let door = doors().sql;
    let good = || Header::from("203.0.113.7");
    let six = || Header::from("2001:db8::7");
    let with_bytes = |change: fn(&mut Header)| {
        let mut header = good();
        change(&mut header);
        header.bytes()
    };
    for (what, header) in [
        ("IPv4", good().bytes()),
        ("IPv6", six().bytes()),
        ("a right checksum", good().with_checksum().bytes()),
        ("a checksum before others", six().with_checksum().with(0x05, b"one").with(NOOP, &[0; 20]).bytes()),
        ("TLVs that nobody knows", good().with(0x02, b"example.org").with(0xE7, &[7; 300]).bytes()),
        ("4 KiB", good().with(NOOP, &[0; 4_096 - 12 - 3]).bytes()),
        ("padding twice", good().with(NOOP, b"").with(NOOP, &[0; 9]).bytes()),
    ] {
        assert_eq!(at_once(door, BALANCER, &header), Answer::Welcome, "{what}");
        assert_eq!(at_once(door, STRANGER, &header), Answer::Closed, "{what}, from a stranger");
    }
    let byte_by_byte = good().with_checksum().bytes();
    let bytes: Vec<&[u8]> = byte_by_byte.chunks(1).collect();
    assert_eq!(answer(door, BALANCER, &bytes), Answer::Welcome, "a header in single bytes");

    // Bytes that were sent before our answer could be known are read neither behind a header nor anywhere else.
    let stuffed = [&good().bytes()[..], &SSL_REQUEST, &message(b'Q', &text("select 1"))].concat();
    assert_eq!(at_once(door, BALANCER, &stuffed), Answer::Closed, "a query stuffed behind SSLRequest");
    let mut twice = good().bytes();
    twice.extend(good().bytes());
    assert_ne!(at_once(door, BALANCER, &twice), Answer::Welcome, "a header twice");
    let mapped = format!("::ffff:{BALANCER}");
    for (what, header) in [
        ("no header", Vec::new()),
        ("version 1", b"PROXY TCP4 203.0.113.7 10.0.0.1 50000 5432\r\n".to_vec()),
        ("version 1, unknown", b"PROXY UNKNOWN\r\n".to_vec()),
        ("LOCAL", with_bytes(|header| header.version_and_command = 0x20)),
        (
            "LOCAL without addresses",
            with_bytes(|header| {
                *header = Header { addresses: vec![], family: 0, version_and_command: 0x20, ..header.clone() }
            }),
        ),
        ("version 3", with_bytes(|header| header.version_and_command = 0x31)),
        ("an unknown command", with_bytes(|header| header.version_and_command = 0x22)),
        ("UNSPEC", with_bytes(|header| header.family = 0x00)),
        ("UDP over IPv4", with_bytes(|header| header.family = 0x12)),
        ("UDP over IPv6", Header { family: 0x22, ..six() }.bytes()),
        ("UNIX", Header { family: 0x31, addresses: vec![0; 216], ..good() }.bytes()),
        ("an unknown family", with_bytes(|header| header.family = 0x41)),
        ("IPv6's words and IPv4's length", with_bytes(|header| header.family = 0x21)),
        ("a wrong checksum", good().with(CRC32C, &[1, 2, 3, 4]).bytes()),
        ("a checksum that is too short", good().with(CRC32C, &[1, 2, 3]).bytes()),
        ("two checksums", good().with_checksum().with(CRC32C, &[0; 4]).bytes()),
        ("a TLV that runs past the end", Header { tlvs: vec![0x05, 0, 9, 1], ..good() }.bytes()),
        ("a TLV without its length", Header { tlvs: vec![0x05, 0], ..good() }.bytes()),
        ("a TLV twice", good().with(0x05, b"a").with(0x05, b"b").bytes()),
        ("65 TLVs", (0..65).fold(good(), |header, _| header.with(NOOP, b"")).bytes()),
        ("4 KiB and a byte", good().with(NOOP, &[0; 4_096 - 12 - 2]).bytes()),
        ("a length of 64 KiB", with_bytes(|header| header.length = Some(0xffff))),
        ("a length that ends in the addresses", with_bytes(|header| header.length = Some(11))),
        ("no client's address", Header::from("0.0.0.0").bytes()),
        ("no client's port", Header::of("203.0.113.7:0".parse().expect("an address")).bytes()),
        ("a multicast address", Header::from("ff02::1").bytes()),
        (
            "the balancer's signature, bent",
            [b"\r\n\r\n\0\r\nQUIT\r".to_vec(), good().bytes()[12..].to_vec()].concat(),
        ),
    ] {
        let begun = Instant::now();
        assert_eq!(at_once(door, BALANCER, &header), Answer::Closed, "{what}");
        assert!(begun.elapsed() < GIVEN_UP, "{what}");
        assert_ne!(at_once(door, STRANGER, &header), Answer::Welcome, "{what}, from a stranger");
    }
    // A stranger who says to be the balancer is a stranger.
    for spoofed in [BALANCER.to_string(), mapped] {
        assert_eq!(at_once(door, STRANGER, &Header::from(&spoofed).bytes()), Answer::Closed);
    }
}

pub fn t55_a_header_is_no_header_at_the_public_doors() {
    let one = cluster();
    for header in [
        Header::from("203.0.113.7").bytes(),
        Header::from("203.0.113.7").through_aws("vpce-08d2bf15fac5001c9").bytes(),
        b"PROXY TCP4 203.0.113.7 10.0.0.1 50000 5432\r\n".to_vec(),
    ] {
        for peer in [BALANCER, STRANGER] {
            assert_eq!(at_once(cloud().sql_address(), peer, &header), Answer::Refused, "SQL");
            let mut wire = Wire::tcp_from(cloud().http_address(), Some(peer)).expect("the API is there");
            wire.send_raw(&header).expect("the API listens");
            assert!(wire.handshake(cloud().trust(), "localhost").is_err(), "the API");
        }
    }
    one.sign_in();
}

pub fn t55_a_header_that_does_not_come_is_not_waited_for() {
    let header = Header::from("203.0.113.7").bytes();
    let doors = doors();
    let slow = |door: SocketAddr, sent: &[u8], every: Option<Duration>| {
        let mut wire = Wire::tcp_from(door, Some(BALANCER)).expect("the door is there");
        let begun = Instant::now();
        match every {
            None => wire.send_raw(sent).expect("the door listens"),
            Some(every) => {
                for byte in sent {
                    if wire.send_raw(&[*byte]).is_err() {
                        break;
                    }
                    std::thread::sleep(every);
                }
            }
        }
        assert!(wire.is_closed_within(GIVEN_UP.saturating_sub(begun.elapsed())), "still waited for");
        begun.elapsed()
    };
    let dribble = Some(Duration::from_millis(300));
    std::thread::scope(|scope| {
        for door in [doors.sql, doors.http, doors.endpoint] {
            for (what, sent, every) in [
                ("nothing", &header[..0], None),
                ("half of the fixed part", &header[..9], None),
                ("a header without its end", &header[..header.len() - 1], None),
                ("a byte from time to time", &header[..], dribble),
            ] {
                scope.spawn(move || {
                    let taken = slow(door, sent, every);
                    assert!(taken > Duration::from_secs(2), "{what}: given up after {taken:?} already");
                });
            }
        }
    });
}

pub fn t56_the_allowlist_decides_on_the_headers_address() {
    let one = cloud().cluster("behind-balancer", &["--plan", "dedicated"]);
    let door = doors().sql;
    let refusal = |header: &Header| enter(&one, door, header).err().expect("not on the list");
    // The balancer's own address opens nothing for its clients.
    one.allow("127.0.0.0/8");
    assert_eq!(words(&refusal(&Header::from("203.0.113.7"))), ("28000", NOT_LISTED));
    one.disallow("127.0.0.0/8");
    one.allow("203.0.113.0/24");
    one.allow("2001:db8:7::/48");
    for (address, is_listed) in [
        ("203.0.113.0", true),
        ("203.0.113.255", true),
        ("::ffff:203.0.113.9", true),
        ("2001:db8:7::1", true),
        ("203.0.114.0", false),
        ("127.0.0.1", false),
        ("::ffff:127.0.0.1", false),
        ("::1", false),
        ("2001:db8:8::1", false),
        // The same bits without the mark of a mapped address are another address.
        ("::203.0.113.9", false),
    ] {
        let header = Header::from(address);
        match enter(&one, door, &header) {
            Ok(mut wire) => assert!(is_listed && wire.value("select 1") == "1", "{address} was let in"),
            Err(refusal) => {
                assert!(!is_listed, "{address}: {refusal:?}");
                assert_eq!(words(&refusal), ("28000", NOT_LISTED), "{address}");
            }
        }
    }
    // An IPv6 entry for everybody lets no mapped address in.
    one.disallow("203.0.113.0/24");
    one.allow("::/0");
    assert_eq!(words(&refusal(&Header::from("::ffff:203.0.113.9"))), ("28000", NOT_LISTED));
    enter(&one, door, &Header::from("2001:db8:8::1")).expect("every IPv6 address");
    // At the public door the same client is who it is: its own address is not on the list.
    let refused = one.refusal_of("at the public door", &Caller::with(&one.password));
    assert_eq!(words(&refused), ("28000", NOT_LISTED));
    // A cluster's name in the ClientHello: refused before any certificate, by the header's address.
    let named = Caller::with(&one.password).naming(&format!("{}.localhost", one.handle));
    let wire = behind(door, &Header::from("203.0.113.9"));
    let refused = one.enter_over(wire, &named).err().expect("not on the list");
    assert!(refused.code == "closed" && refused.message.contains("AccessDenied"), "{refused:?}");
}

pub fn t59_a_balanced_clients_session_is_cut_by_the_headers_address() {
    let one = cloud().cluster("cut-behind-balancer", &["--plan", "dedicated"]);
    let door = doors().sql;
    one.allow("203.0.113.0/24");
    one.allow("198.51.100.0/24");
    let enter = |address: &str| enter(&one, door, &Header::from(address)).expect("listed");
    let goes = [Watched::idle(enter("203.0.113.7")), Watched::busy(enter("::ffff:203.0.113.8"))];
    let mut stays = enter("198.51.100.7");
    one.disallow("203.0.113.0/24");
    let begun = Instant::now();
    for session in goes {
        let ended = session.end();
        assert_eq!(words(&ended.refusal), ("57P01", NO_LONGER_LISTED));
        assert!(ended.at.saturating_duration_since(begun) < allowed(Duration::from_secs(1)));
    }
    assert_eq!(stays.value("select 1"), "1");
    // A cancel is judged by its header's address too.
    let (process, secret) = stays.cancel_key.clone().expect("a key");
    stays.send(b'Q', &text("select pg_sleep(1)")).expect("the session stands");
    std::thread::sleep(Duration::from_millis(200));
    let mut cancel = behind(door, &Header::from("203.0.113.7"));
    assert_eq!(cancel.ask_for_tls().expect("an answer"), b'S');
    cancel.handshake(cloud().trust(), "localhost").expect("TLS comes before the key");
    let _ = cancel.send_raw(&cancel_request(process, &secret));
    assert!(stays.results().is_ok(), "an address that is not listed cancelled a statement");
}

pub fn a_cancel_in_plaintext_is_nothing_behind_a_balancer() {
    let one = cloud().cluster("plain-behind-balancer", &["--plan", "dedicated"]);
    let (door, client, own) = (doors().sql, Header::from("127.57.0.9"), Some([127, 57, 0, 9].into()));
    one.allow("127.57.0.0/24");
    let direct = || cloud().connect(cloud().sql_address(), own).expect("it listens");
    let enter_directly = || one.enter_over(direct(), &Caller::with(&one.password)).expect("listed");
    // By the balancer's word it is the client's own address; at the public door it really is that address.
    let mut sessions = [enter(&one, door, &client).expect("listed"), enter_directly()];
    for (number, wire) in sessions.iter_mut().enumerate() {
        let (process, secret) = wire.cancel_key.clone().expect("a key");
        let cancel = |mut by: Wire| {
            by.send_raw(&cancel_request(process, &secret)).expect("it is read");
            assert!(by.is_closed_within(AT_ONCE));
        };
        wire.begin("select pg_sleep(600)", &mut enter_directly());
        cancel(behind(door, &client));
        if number == 0 {
            cancel(direct());
        }
        assert!(
            wire.is_silent(),
            "where addresses may be another's word, a key was taken in plaintext: {number}"
        );
        // The same key inside TLS, from the session's own address.
        let mut by = if number == 0 { behind(door, &client) } else { direct() };
        assert_eq!(by.ask_for_tls().expect("an answer"), b'S');
        by.handshake(cloud().trust(), "localhost").expect("TLS comes before the key");
        cancel(by);
        assert_eq!(wire.results().expect_err("cancelled").code, "57014");
    }
}

pub fn t67_failed_sign_ins_count_against_the_headers_address_and_not_the_balancer() {
    let door = free_port();
    let arguments = ["--sql-proxy", &door.to_string(), "--proxy-from", "127.0.0.1"];
    let mut options = Options::unencrypted(&arguments);
    for (name, value) in [("CHITIN_THROTTLE_FREE", "4"), ("CHITIN_THROTTLE_BASE", "1m")] {
        options.environment.push((name.to_owned(), value.to_owned()));
    }
    let cloud = Cloud::start(options);
    let one = cloud.cluster("throttled-balancer", &[]);
    let (attacker, owner) = (Header::from("203.0.113.66"), Header::from("203.0.113.7"));
    let throttled = "too many failed authentication attempts";
    let guess = || {
        let wrong = Caller::with("a-wrong-guess");
        one.enter_over(behind(door, &attacker), &wrong).err().expect("a wrong password")
    };
    let is_heard = (0..20).any(|_| guess().message == throttled);
    assert!(is_heard, "twenty guesses, and none was refused");
    let refusal = enter(&one, door, &attacker).err().expect("refused, whatever the password");
    assert_eq!(words(&refusal), ("28000", throttled));
    // Its neighbours behind the same balancer, and the balancer's own address, are not touched.
    enter(&one, door, &owner).expect("somebody else");
    enter(&one, door, &Header::from("2001:db8::7")).expect("somebody else");
    one.sign_in();
    let lines = cloud.json(["throttle", "list"])["lines"].clone();
    let counted: Vec<&str> =
        lines.as_array().expect("a list").iter().filter_map(|line| line["address"].as_str()).collect();
    assert!(counted.contains(&"203.0.113.66") && !counted.contains(&"127.0.0.1"), "{lines}");
    // Nor is the attacker let in by coming as somebody else's IPv6 spelling.
    let refusal = enter(&one, door, &Header::from("::ffff:203.0.113.66")).err().expect("the same address");
    assert_eq!(words(&refusal), ("28000", throttled));
}

/// Asks the API behind the balancer as a client with this header.
fn ask(header: &Header, path: &str) -> std::io::Result<house::api::Answer> {
    let mut wire = behind(doors().http, header);
    wire.handshake(cloud().trust(), "localhost")?;
    cloud().speak(&mut wire, "GET", path, None)
}

pub fn t55_the_api_behind_a_balancer_goes_by_the_header_too() {
    let door = doors().http;
    let whoami = "/api/v1/chitin/whoami";
    for (said, expected) in [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
    ] {
        let header = Header::from(said).with_checksum();
        assert_eq!(ask(&header, whoami).expect("an answer").ok()["address"], expected);
    }
    for (what, header) in [
        ("LOCAL", Header { version_and_command: 0x20, ..Header::from("203.0.113.7") }),
        ("UDP", Header { family: 0x12, ..Header::from("203.0.113.7") }),
        ("a wrong checksum", Header::from("203.0.113.7").with(CRC32C, &[1, 2, 3, 4])),
        ("64 KiB", Header { length: Some(0xffff), ..Header::from("203.0.113.7") }),
    ] {
        assert!(ask(&header, whoami).is_err(), "{what}");
    }
    let mut stranger = Wire::tcp_from(door, Some(STRANGER)).expect("the door is there");
    let _ = stranger.send_raw(&Header::from("203.0.113.7").bytes());
    assert!(stranger.handshake(cloud().trust(), "localhost").is_err(), "a stranger's header");
    let mut without = Wire::tcp_from(door, Some(BALANCER)).expect("the door is there");
    assert!(without.handshake(cloud().trust(), "localhost").is_err(), "no header");
    // What curl can send is version 1.
    let mut command = Command::new("curl");
    command
        .args(["-sS", "--max-time", "10", "--haproxy-protocol", "--cacert"])
        .arg(cloud().root_certificate());
    let said = run(command.arg(format!("https://localhost:{}{whoami}", door.port())));
    assert!(!said.status.success() && said.stdout.is_empty(), "{said:?}");

    // At the public door nothing that a client says of itself is believed.
    let mut command = Command::new("curl");
    let key = std::fs::read_to_string(cloud().data().join("admin-key")).expect("the key");
    command.args(["-H", &format!("Authorization: Bearer {}", key.trim()), "--cacert"]);
    command.arg(cloud().root_certificate());
    for header in ["X-Forwarded-For: 203.0.113.7", "X-Real-IP: 203.0.113.7", "Forwarded: for=203.0.113.7"] {
        command.args(["-H", header]);
    }
    let answer = house::api::curl(command.arg(cloud().web(whoami)), None).ok();
    assert!(["127.0.0.1", "::1"].contains(&answer["address"].as_str().expect("an address")), "{answer}");

    // The pages go by the header's address.
    let one = cloud().cluster("pages-behind", &["--plan", "dedicated"]);
    one.try_allow("203.0.113.0/24", &json!({ "sql": false, "ui": true })).ok();
    one.allow("127.0.0.0/8");
    let page = |said: &str| {
        ask(&Header::from(said), &format!("/oidc/v1/login?cluster={}", one.handle)).expect("an answer").status
    };
    // No provider is set up: whoever the list lets in hears that.
    assert_eq!((page("203.0.113.7"), page("198.51.100.7"), page("127.0.0.1")), (400, 403, 403));
    // Whoever asks too often is slowed down alone.
    let busy = (0..80).any(|_| page("203.0.113.66") == 429);
    assert!(busy, "eighty requests without a key, and none was too many");
    assert_eq!(page("203.0.113.7"), 400);
}

pub fn doors_behind_balancers_are_not_opened_without_peers_to_believe() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let start = |arguments: &[&str]| {
        let mut command = Command::new(program());
        command.args(["start", "--data"]).arg(scratch.path().join("data")).args(arguments);
        run(&mut command)
    };
    for flag in ["--sql-proxy", "--http-proxy", "--endpoint"] {
        let said = start(&[flag, "127.0.0.1:0"]);
        assert_eq!(said.code(), 2, "{flag}: {said:?}");
        assert!(said.stderr.contains("--proxy-from"), "{flag}: {}", said.stderr);
        let said = start(&[flag, "127.0.0.1:0", "--proxy-from", "127.0.0.1/8"]);
        assert_eq!(said.code(), 2, "{flag}: {said:?}");
        assert!(said.stderr.contains("host bits"), "{flag}: {}", said.stderr);
    }
    assert!(!scratch.path().join("data").exists(), "nothing was begun");
}

pub fn a_real_balancer_carries_the_clients_address() {
    let world = world();
    let one = world.closed("haproxy-sql");
    let options = "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority check inter 500ms";
    let _balancer = Balancer::start(&world.balancer, SQL_PORT, &format!("{} {options}", world.doors.sql));
    let (friend, stranger) = (world.hosts.host(), world.hosts.host());
    one.allow(&format!("{}/32", friend.ipv4()));
    one.allow(&format!("{}/128", friend.ipv6()));
    // What the cloud sees of a connection is the balancer, which is listed for nothing.
    let psql = |host: &house::Host, address: IpAddr, sql: &str| {
        run(&mut one.client_at(host, "psql", address, &["-X", "-A", "-t", "-c", sql]))
    };
    for (address, own) in [(world.balancer.ipv4(), friend.ipv4()), (world.balancer.ipv6(), friend.ipv6())] {
        assert_eq!(psql(&friend, address, "select session_user").ok(), "maria\n");
        let log = world.cloud.log();
        let signed_in = format!("from={own} method");
        let is_logged = |line: &str| line.contains(&one.handle) && line.contains(&signed_in);
        assert!(log.lines().any(is_logged), "no sign-in from {own} in the log:\n{}", world.cloud.log_end());
        let said = psql(&stranger, address, "select 1").refused();
        assert!(said.contains(NOT_LISTED), "{said}");
    }
    // Past the balancer, its door believes nobody.
    let refused = psql(&friend, world.doors.sql.ip(), "select 1");
    assert!(refused.status.success(), "the public door knows the friend: {refused:?}");
    let mut direct = stranger.connect(world.doors.sql, None).expect("the door is there");
    let spoofed = Header::of(SocketAddr::new(friend.ipv4(), 50_000)).with(AWS, b"");
    let _ = direct.send_raw(&spoofed.bytes());
    assert!(direct.ask_for_tls().is_err(), "a host that is no balancer was believed");
    // A balancer that comes over IPv6 is believed for clients of both kinds.
    let six = SocketAddr::new(world.home.ipv6(), world.doors.sql.port());
    for own in [friend.ipv4(), friend.ipv6()] {
        let mut wire = world.balancer.connect(six, Some(world.balancer.ipv6())).expect("the door is there");
        wire.send_raw(&Header::of(SocketAddr::new(own, 50_000)).bytes()).expect("the door listens");
        one.enter_over(wire, &Caller::with(&one.password)).expect("listed");
    }
    let mut other = world.balancer.connect(six, Some(world.balancer.ipv6_at(2))).expect("the door is there");
    let _ = other.send_raw(&Header::of(SocketAddr::new(friend.ipv4(), 50_000)).bytes());
    assert!(other.ask_for_tls().is_err(), "another address of the balancer's machine was believed");
    // A session through the balancer is cut by the client's own address.
    let through = friend.connect(SocketAddr::new(world.balancer.ipv4(), SQL_PORT), None).expect("it listens");
    let session = Watched::idle(one.enter_over(through, &Caller::with(&one.password)).expect("listed"));
    one.disallow(&format!("{}/32", friend.ipv4()));
    let begun = Instant::now();
    let ended = session.end();
    assert_eq!(words(&ended.refusal), ("57P01", NO_LONGER_LISTED));
    assert!(ended.at.saturating_duration_since(begun) < allowed(Duration::from_secs(1)));
}
