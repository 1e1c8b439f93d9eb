//! Private endpoints: known by what a cloud's balancer says of them, or by the key of a connecting proxy.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::network::cloud;
use house::authority::{Authority, Identity, Leaf, self_signed};
use house::balancer::Balancer;
use house::cloud::SQL_PORT;
use house::command::{eventually, run};
use house::machine::Process;
use house::machine::allowed;
use house::proxy::{AWS, AZURE, GCP, Header, NOOP};
use house::wire::AT_ONCE;
use house::wire::{ANSWER_DEADLINE, PROTOCOL_3_0, SSL_REQUEST, cancel_request, message, startup, text};
use house::{Caller, Cloud, Cluster, Refusal, Wire, tls};
use serde_json::json;

use crate::network::proxy::{Answer, answer, behind, enter};
use crate::network::world::{Ended, NOT_LISTED, Watched, doors, median, milliseconds, words, world};

const BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What a client reads whose private endpoint is not accepted.
const NOT_ACCEPTED: &str = "connection refused: this private endpoint is not accepted by the cluster";
/// What its session reads when the endpoint goes.
const NO_LONGER_ACCEPTED: &str =
    "terminating connection: this private endpoint is no longer accepted by the cluster";
/// How the API calls what nobody decided yet.
const WAITING: &str = "STATUS_PENDING_ACCEPTANCE";
/// Most that wait at one cluster.
const WAITING_MAX: usize = 20;

/// A cluster with an empty allowlist and a private endpoint service.
fn closed<'cloud>(cloud: &'cloud Cloud, name: &str) -> Cluster<'cloud> {
    let one = cloud.cluster(name, &["--plan", "dedicated"]);
    one.make_endpoint_service();
    one
}

/// A VPC endpoint's id that no other test has.
fn vpce(number: u32) -> String {
    format!("vpce-0a{number:08x}")
}

/// A header of a client through that VPC endpoint, as a network load balancer sends it.
fn through(id: &str) -> Header {
    Header::from("203.0.113.7").with_checksum().through_aws(id).with(NOOP, &[0; 36])
}

fn refused(one: &Cluster<'_>, header: &Header) -> Refusal {
    enter(one, doors().endpoint, header).err().expect("not accepted")
}

pub fn t54_every_cloud_s_endpoints_are_read_as_its_balancers_send_them() {
    let door = doors().endpoint;
    let one = closed(cloud(), "three-clouds");
    let six = || Header::from("2001:db8::7");
    for (id, header, others) in [
        (
            "vpce-08d2bf15fac5001c9",
            through("vpce-08d2bf15fac5001c9"),
            [through("vpce-08d2bf15fac5001c8"), through("vpce-08d2bf15fac5001c")],
        ),
        (
            // Bytes that read backwards are another connection.
            "psc:72623859790382856",
            six().through_gcp(0x0102_0304_0506_0708),
            [six().through_gcp(0x0807_0605_0403_0201), six().through_gcp(0)],
        ),
        (
            "azure:16909060",
            Header::from("203.0.113.7").through_azure(0x0102_0304),
            [Header::from("203.0.113.7").through_azure(0x0403_0201), six().through_azure(0)],
        ),
    ] {
        assert_eq!(words(&refused(&one, &header)), ("28000", NOT_ACCEPTED), "{id}");
        one.connect_endpoint(id);
        let mut wire = enter(&one, door, &header).unwrap_or_else(|refusal| panic!("{id}: {refusal:?}"));
        assert_eq!(wire.value("select session_user"), "maria");
        for other in others {
            assert_eq!(words(&refused(&one, &other)), ("28000", NOT_ACCEPTED), "not {id}");
        }
    }
    // The same number is another endpoint in another cloud.
    let number = Header::from("203.0.113.7").through_gcp(16_909_060);
    assert_eq!(words(&refused(&one, &number)), ("28000", NOT_ACCEPTED));
}

pub fn t54_tlvs_that_no_cloud_sends_are_refused_and_break_nothing() {
    let door = doors().endpoint;
    let before = Process::of(cloud().pid());
    let id = "vpce-08d2bf15fac5001c9";
    let good = || Header::from("203.0.113.7");
    let with = |kind: u8, value: &[u8]| good().with(kind, value);
    let aws = |value: &[u8]| with(AWS, &[&[1], value].concat());
    let mut headers = vec![
        ("no endpoint", good()),
        ("padding alone", good().with(NOOP, &[0; 60])),
        ("not UTF-8", aws(b"vpce-\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7")),
        ("half a letter", aws(b"vpce-08d2bf15fac5001c\xc3")),
        ("capitals", aws(b"vpce-08D2BF15FAC5001C9")),
        ("too long", aws(b"vpce-08d2bf15fac5001c90")),
        ("too short", aws(b"vpce-08d2bf1")),
        ("no kind", aws(b"08d2bf15fac5001c9")),
        ("a zero byte", aws(b"vpce-08d2bf15\0c5001c9")),
        ("a line's end", aws(b"vpce-08d2bf15fac5001c\n")),
        ("another subtype of AWS", with(AWS, &[&[2], id.as_bytes()].concat())),
        ("no subtype of AWS", with(AWS, id.as_bytes())),
        ("another subtype of Azure", with(AZURE, &[2, 4, 3, 2, 1])),
        ("two of AWS", good().through_aws(id).through_aws(id)),
        ("two of Azure", good().through_azure(1).through_azure(1)),
        ("two clouds", good().through_aws(id).through_gcp(1)),
        ("three clouds", good().through_gcp(1).through_azure(1).through_aws(id)),
        ("past the header", Header { tlvs: [&[AWS, 0, 99, 1], id.as_bytes()].concat(), ..good() }),
        ("past the header by one", Header { tlvs: [&[AWS, 0, 24, 1], id.as_bytes()].concat(), ..good() }),
        ("a length of one byte", Header { tlvs: vec![AWS, 0], ..good() }),
        ("65,535 bytes that do not come", Header { tlvs: vec![AWS, 0xff, 0xff, 1], ..good() }),
        ("65,535 bytes", Header { tlvs: [&[AWS, 0xff, 0xff][..], &[1; 65_504]].concat(), ..good() }),
    ];
    for (kind, name) in [(AWS, "AWS"), (AZURE, "Azure"), (GCP, "GCP")] {
        for length in [0, 1, 2, 4, 5, 7, 8, 9] {
            // Five bytes of Azure and eight of GCP are an endpoint.
            if (kind, length) != (AZURE, 5) && (kind, length) != (GCP, 8) {
                headers.push((name, with(kind, &vec![1; length])));
            }
        }
    }
    for (what, header) in headers {
        let bytes = header.bytes();
        assert_eq!(answer(door, BALANCER, &[&bytes]), Answer::Closed, "{what}: {:?}", header.tlvs);
    }
    for good in [through(id), good().with(GCP, &[1; 8]), good().with(AZURE, &[1; 5])] {
        assert_eq!(answer(door, BALANCER, &[&good.bytes()]), Answer::Welcome);
    }
    assert_eq!(Process::of(cloud().pid()), before, "the program is another one");
    assert!(!cloud().log().contains("panicked"), "something panicked:\n{}", cloud().log_end());
}

pub fn an_accepted_endpoint_needs_no_entry_and_opens_nothing_else() {
    let door = doors().endpoint;
    let (one, other) = (closed(cloud(), "endpoint-one"), closed(cloud(), "endpoint-other"));
    let header = through(&vpce(1));
    one.connect_endpoint(&vpce(1));
    let sign_in = |caller: &Caller| one.enter_over(behind(door, &header), caller);
    sign_in(&Caller::with(&one.password)).expect("accepted");
    sign_in(&Caller::with(&one.password).naming(&format!("{}.localhost", one.handle))).expect("accepted");
    // It proves a way, not a person.
    let refusal = sign_in(&Caller::with("a-wrong-guess")).err().expect("a wrong password");
    assert_eq!(refusal.code, "28P01", "{refusal:?}");
    // Not to another cluster, whatever names it, nor to one that everybody reaches from outside.
    assert_eq!(words(&refused(&other, &header)), ("28000", NOT_ACCEPTED));
    assert_eq!(words(&refused(crate::network::cluster(), &header)), ("28000", NOT_ACCEPTED));
    let crossed = Caller::with(&other.password).naming(&format!("{}.localhost", one.handle));
    let refusal = other.enter_over(behind(door, &header), &crossed).err().expect("two names disagree");
    assert!(["08004", "28000"].contains(&refusal.code.as_str()), "{refusal:?}");
    // The header's address is no address of a list, even where it stands on one.
    other.allow("203.0.113.0/24");
    assert_eq!(words(&refused(&other, &header)), ("28000", NOT_ACCEPTED));
    // The other door goes by the address alone.
    let refusal = enter(&one, doors().sql, &header).err().expect("not on the list");
    assert_eq!(words(&refusal), ("28000", NOT_LISTED));
    // One endpoint leads to one cluster.
    let said = other.try_connect_endpoint(&vpce(1), &json!({})).refused(409);
    assert!(!said.contains(&one.name) && !said.contains(&one.id), "{said}");
}

/// Everything that a client reads of a refusal.
fn all_of(refusal: Refusal) -> (String, Vec<(char, String)>) {
    (refusal.message.clone(), refusal.fields.into_iter().collect())
}

pub fn endpoints_that_are_not_accepted_hear_the_same_whether_a_cluster_exists_or_not() {
    let door = doors().endpoint;
    let one = closed(cloud(), "hidden-one");
    let nobody = Cluster { handle: "hidden-two-9999".to_owned(), ..one.clone() };
    let (waiting, rejected, deleted, unknown) = (vpce(10), vpce(11), vpce(12), vpce(13));
    refused(&one, &through(&waiting));
    eventually("it waits", ANSWER_DEADLINE, || (one.endpoint_status(&waiting)? == WAITING).then_some(()));
    for id in [&rejected, &deleted] {
        one.connect_endpoint(id);
        enter(&one, door, &through(id)).expect("accepted");
    }
    one.decide_endpoint(&rejected, "REJECTED").ok();
    one.remove_endpoint(&deleted).ok();
    let mut heard = Vec::new();
    for id in [&unknown, &waiting, &rejected, &deleted] {
        for cluster in [&one, &nobody] {
            heard.push(all_of(refused(cluster, &through(id))));
            // In the ClientHello: nothing of TLS but an alert.
            let mut wire = behind(door, &through(id));
            assert_eq!(wire.ask_for_tls().expect("an answer"), b'S');
            let name = format!("{}.localhost", cluster.handle);
            let error = wire.handshake(cloud().trust(), &name).expect_err("refused before the handshake");
            assert!(error.to_string().contains("AccessDenied"), "{id}: {error}");
        }
    }
    assert_eq!(heard[0].0, NOT_ACCEPTED);
    assert!(heard.iter().all(|one| *one == heard[0]), "{heard:?}");
    // An endpoint of another cluster hears it too.
    let other = closed(cloud(), "hidden-other");
    other.connect_endpoint(&vpce(14));
    for cluster in [&one, &nobody] {
        assert_eq!(all_of(refused(cluster, &through(&vpce(14)))), heard[0]);
    }
}

pub fn t56_each_door_goes_by_what_it_establishes_and_by_nothing_else() {
    let doors = doors();
    let one = closed(cloud(), "every-mix");
    let (accepted, unknown) = (vpce(20), vpce(21));
    one.connect_endpoint(&accepted);
    one.allow("203.0.113.0/24");
    for (address, is_listed) in [("203.0.113.7", true), ("198.51.100.7", false)] {
        for (id, is_accepted) in [(Some(&accepted), true), (Some(&unknown), false), (None, false)] {
            let header = Header::from(address);
            let header = id.into_iter().fold(header, |header, id| header.through_aws(id));
            let mix = format!("{address} through {id:?}");
            let expect = |door: &str, what: Result<Wire, Refusal>, expected: Option<&str>| {
                let words = what.as_ref().err().map(|refusal| refusal.message.clone());
                assert_eq!(words.as_deref(), expected, "{mix} at {door}");
            };
            let by_list = (!is_listed).then_some(NOT_LISTED);
            expect("the balanced door", enter(&one, doors.sql, &header), by_list);
            match id {
                Some(_) => {
                    let by_id = (!is_accepted).then_some(NOT_ACCEPTED);
                    expect("the door for endpoints", enter(&one, doors.endpoint, &header), by_id);
                }
                None => {
                    let bytes = header.bytes();
                    assert_eq!(answer(doors.endpoint, BALANCER, &[&bytes]), Answer::Closed, "{mix}");
                }
            }
            // At the public door and at the one for certificates a header is nothing that begins a connection.
            let bytes = header.bytes();
            assert_eq!(answer(cloud().sql_address(), BALANCER, &[&bytes]), Answer::Refused, "{mix}");
            let mut wire = Wire::tcp_from(doors.endpoint_tls, Some(BALANCER)).expect("the door is there");
            wire.send_raw(&bytes).expect("the door listens");
            assert!(wire.handshake(cloud().trust(), "localhost").is_err(), "{mix}");
            // A peer whom nobody believes is not heard at all.
            let stranger = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
            for door in [doors.sql, doors.endpoint] {
                assert_eq!(answer(door, stranger, &[&bytes]), Answer::Closed, "{mix} from a stranger");
            }
        }
    }
}

pub fn an_endpoint_that_knocks_waits_to_be_accepted_and_there_is_a_most_of_them() {
    let door = doors().endpoint;
    let (one, without) =
        (cloud().cluster("knocked-at", &[]), cloud().cluster("no-service", &["--plan", "dedicated"]));
    let first = vpce(100);
    let status = |id: &str| one.endpoint_status(id);
    refused(&one, &through(&first));
    refused(&without, &through(&vpce(99)));
    eventually("it is remembered", ANSWER_DEADLINE, || (status(&first)? == WAITING).then_some(()));
    assert_eq!(one.endpoints().len(), 1);
    // Knocking again changes nothing; accepted, it is in; rejected, it is out and stays known.
    refused(&one, &through(&first));
    one.decide_endpoint(&first, "AVAILABLE").ok();
    enter(&one, door, &through(&first)).expect("accepted");
    one.decide_endpoint(&first, "REJECTED").ok();
    assert_eq!(words(&refused(&one, &through(&first))), ("28000", NOT_ACCEPTED));
    assert_eq!(status(&first).as_deref(), Some("STATUS_REJECTED"));
    // By its name in the ClientHello, too.
    let named = Caller::with(&one.password).naming(&format!("{}.localhost", one.handle));
    assert!(one.enter_over(behind(door, &through(&vpce(101))), &named).is_err());
    eventually("it is remembered", ANSWER_DEADLINE, || status(&vpce(101)));
    // More than there is room for: the rest is refused as before, and not remembered.
    let waiting = || one.endpoints().iter().filter(|(_, status)| status == WAITING).count();
    for number in 0..WAITING_MAX as u32 + 10 {
        refused(&one, &through(&vpce(200 + number)));
    }
    eventually("all places are taken", ANSWER_DEADLINE, || (waiting() == WAITING_MAX).then_some(()));
    refused(&one, &through(&vpce(300)));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((waiting(), status(&vpce(300))), (WAITING_MAX, None));
    // The owner can still name any endpoint, and make room.
    one.connect_endpoint(&vpce(300));
    enter(&one, door, &through(&vpce(300))).expect("accepted");
    one.remove_endpoint(&vpce(200)).ok();
    refused(&one, &through(&vpce(301)));
    eventually("there was room", ANSWER_DEADLINE, || (status(&vpce(301))? == WAITING).then_some(()));
    // Nothing is remembered at other clusters, without a service, or by the doors where an id is not believed.
    let spoofed = Header::from("203.0.113.7").through_aws(&vpce(302));
    assert!(enter(&without, doors().sql, &spoofed).is_err());
    assert_eq!(without.endpoints(), []);
    assert_eq!(status(&vpce(99)), None);
    let later = Duration::from_secs(5);
    eventually("the log says what to do", later, || {
        cloud().log().contains("waits for acceptance: chitin endpoint accept").then_some(())
    });
}

pub fn only_endpoints_of_trusted_owners_come_in() {
    let door = doors().endpoint;
    let one = closed(cloud(), "trusted-owners");
    let (trusted, stranger) = ("123456789012", "210987654321");
    let entry = one.trust_owner(trusted);
    let of = |owner: &str| json!({ "external_owner_id": owner });
    let add = |id: &str, owner: &str| one.try_connect_endpoint(id, &of(owner)).ok()["status"].clone();
    assert_eq!(add(&vpce(400), trusted), "STATUS_AVAILABLE");
    assert_eq!(add(&vpce(401), stranger), WAITING);
    assert_eq!(one.try_connect_endpoint(&vpce(402), &json!({})).ok()["status"], WAITING, "nobody's");
    let session = Watched::idle(enter(&one, door, &through(&vpce(400))).expect("its owner is trusted"));
    for id in [401, 402] {
        assert_eq!(words(&refused(&one, &through(&vpce(id)))), ("28000", NOT_ACCEPTED));
        one.decide_endpoint(&vpce(id), "AVAILABLE").refused(400);
    }
    one.trust_owner(stranger);
    one.decide_endpoint(&vpce(401), "AVAILABLE").ok();
    enter(&one, door, &through(&vpce(401))).expect("its owner is trusted now");
    // Whoever is trusted no more is out, and its sessions with it.
    one.distrust_owner(&entry);
    let begun = Instant::now();
    let Ended { at, refusal } = session.end();
    assert_eq!(words(&refusal), ("57P01", NO_LONGER_ACCEPTED));
    let allowed = allowed(Duration::from_secs(1)).as_millis();
    assert!(milliseconds(begun, at) <= allowed, "lived {} ms", milliseconds(begun, at));
    assert_eq!(words(&refused(&one, &through(&vpce(400)))), ("28000", NOT_ACCEPTED));
    enter(&one, door, &through(&vpce(401))).expect("the other owner's stays");
}

pub fn the_command_line_takes_an_endpoint_from_its_knock_to_its_end() {
    let door = doors().endpoint;
    let one = cloud().cluster("endpoint-commands", &["--plan", "dedicated"]);
    let chitin = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let finished = run(&mut cloud().command_of(&[&["endpoint"], &words[..]].concat()));
        assert!(finished.status.success(), "{words:?}: {finished:?}");
        format!("{}{}", finished.stdout, finished.stderr)
    };
    let (name, id) = (one.name.as_str(), vpce(700));
    let said = chitin(&format!("service {name} --create"));
    assert!(said.contains(&doors().endpoint.to_string()), "a customer learns where to connect: {said}");
    // The refusal says what the operator has to do, and that is what helps.
    let hint = refused(&one, &through(&id)).fields[&'H'].clone();
    let (_, command) = hint.split_once("chitin endpoint ").expect("a command");
    let command = command.replace("CLUSTER", name).replace("ENDPOINT-ID", &id);
    eventually("it waits", ANSWER_DEADLINE, || chitin(&format!("list {name}")).contains(&id).then_some(()));
    chitin(&command);
    let session = Watched::idle(enter(&one, door, &through(&id)).expect("accepted"));
    chitin(&format!("reject {name} {id}"));
    assert_eq!(words(&session.end().refusal), ("57P01", NO_LONGER_ACCEPTED));
    chitin(&format!("owner add {name} 123456789012"));
    chitin(&format!("accept {name} {id} --owner 123456789012"));
    let session = Watched::idle(enter(&one, door, &through(&id)).expect("accepted again"));
    assert!(chitin(&format!("list {name}")).contains("123456789012"));
    chitin(&format!("remove {name} {id}"));
    assert_eq!(words(&session.end().refusal), ("57P01", NO_LONGER_ACCEPTED));
    assert_eq!(one.endpoint_status(&id), None);
}

pub fn a_cancel_over_an_endpoint_that_is_not_accepted_is_silent() {
    let door = doors().endpoint;
    let one = closed(cloud(), "endpoint-cancel");
    one.connect_endpoint(&vpce(500));
    let mut wire = enter(&one, door, &through(&vpce(500))).expect("accepted");
    let (process, secret) = wire.cancel_key.clone().expect("a key");
    let cancel = |id: &str| {
        let mut other = behind(door, &through(id));
        assert_eq!(other.ask_for_tls().expect("an answer"), b'S');
        other.handshake(cloud().trust(), "localhost").expect("TLS comes before the key");
        let _ = other.send_raw(&cancel_request(process, &secret));
        assert!(other.is_closed_within(ANSWER_DEADLINE));
    };
    wire.send(b'Q', &text("select pg_sleep(1.5)")).expect("the session stands");
    std::thread::sleep(Duration::from_millis(200));
    cancel(&vpce(501));
    wire.results().expect("nobody else cancels");
    let mut watcher = enter(&one, door, &through(&vpce(500))).expect("accepted");
    wire.begin("select pg_sleep(600)", &mut watcher);
    cancel(&vpce(500));
    assert_eq!(wire.results().expect_err("cancelled").code, "57014");
}

/// What a private endpoint is called by this key: `certificate:` and the SHA-256 of its public half, as OpenSSL says it.
fn certificate_id(certificate: &Path) -> String {
    let pipe = "set -o pipefail; openssl x509 -in \"$0\" -pubkey -noout | openssl pkey -pubin -outform der | sha256sum";
    let said = run(Command::new("bash").args(["-c", pipe]).arg(certificate)).ok();
    format!("certificate:{}", said.split(' ').next().expect("a digest"))
}

/// The inside of a connecting proxy's TLS; the handshake itself may fail.
fn tunnel(identity: Option<&Identity>, held: Option<&Identity>) -> std::io::Result<Wire> {
    let root = cloud().root_certificate();
    let config = Arc::new(match (identity, held) {
        (None, _) => tls::client(&root, &[]),
        (Some(shown), None) => tls::client_with(&root, &shown.chain, &shown.key),
        (Some(shown), Some(held)) => tls::client_pretending(&root, &shown.chain, &held.key),
    });
    let mut wire = Wire::tcp_from(doors().endpoint_tls, None)?;
    wire.handshake(&config, "localhost")?;
    Ok(wire.inside())
}

pub fn t48_a_connecting_proxy_is_known_by_the_key_that_it_holds() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let authority = Authority::root(scratch.path(), "a customer");
    let (proxy, other) = (authority.issue(&Leaf::of("proxy")), self_signed(scratch.path(), "other"));
    let one = closed(cloud(), "proxy-by-key");
    let enter = |identity: &Identity| -> Result<Wire, Refusal> {
        one.enter_over(tunnel(Some(identity), None).expect("it holds its key"), &Caller::with(&one.password))
    };
    // The first try makes it known, with the id that OpenSSL counts for its key.
    let refusal = enter(&proxy).err().expect("not accepted");
    assert_eq!(words(&refusal), ("28000", NOT_ACCEPTED));
    let id = certificate_id(&proxy.certificate);
    eventually("it waits", ANSWER_DEADLINE, || (one.endpoint_status(&id)? == WAITING).then_some(()));
    one.decide_endpoint(&id, "AVAILABLE").ok();
    // Inside its TLS is PostgreSQL's own: with SCRAM bound to the certificate of that one.
    let mut wire = enter(&proxy).expect("accepted");
    assert_eq!(wire.value("select session_user"), "maria");
    // A renewed certificate of the same key is the same proxy, whoever signed it; another key is not.
    let renewed = authority.renew(&proxy, &Leaf::of("proxy of the next year"));
    assert_ne!(std::fs::read(&renewed.certificate).unwrap(), std::fs::read(&proxy.certificate).unwrap());
    enter(&renewed).expect("the same key");
    assert_eq!(words(&enter(&other).err().expect("another key")), ("28000", NOT_ACCEPTED));
    let namesake = authority.issue(&Leaf::of("proxy"));
    assert_eq!(words(&enter(&namesake).err().expect("another key")), ("28000", NOT_ACCEPTED));
    // Without a certificate there is nobody. In TLS 1.3 the client is done first: what it then hears counts.
    let mut nobody = tunnel(None, None).expect("the client's half of the handshake");
    assert!(nobody.ask_for_tls().is_err(), "a proxy without a certificate was heard");
    // A certificate whose key somebody else holds fails the handshake.
    for (shown, held) in [(&proxy, &other), (&proxy, &namesake)] {
        let is_heard = tunnel(Some(shown), Some(held)).and_then(|mut wire| wire.ask_for_tls());
        assert!(is_heard.is_err(), "a stolen certificate was believed");
    }
    // The tunnel is no replacement for the client's own TLS.
    let mut plain = tunnel(Some(&proxy), None).expect("accepted");
    let options = format!("--cluster={}", one.handle);
    let parameters = [("user", "maria"), ("database", "defaultdb"), ("options", options.as_str())];
    plain.send_raw(&startup(PROTOCOL_3_0, &parameters)).expect("the door listens");
    assert_eq!(words(&plain.expect_refusal()), ("28000", "server requires encryption"));
    let mut stuffed = tunnel(Some(&proxy), None).expect("accepted");
    stuffed.send_raw(&[&SSL_REQUEST[..], &message(b'Q', &text("select 1"))].concat()).expect("it listens");
    assert!(stuffed.read_exact(&mut [0]).is_err(), "a query stuffed behind SSLRequest was welcome");
    // Nor is a client's certificate at the public door a way in, or a header in front of the tunnel.
    let refusal = one.enter(&Caller::with(&one.password).and_holding(&proxy)).err().expect("not on the list");
    assert_eq!(words(&refusal), ("28000", NOT_LISTED));
    // Rejected, its sessions end, and so does the tunnel.
    one.decide_endpoint(&id, "REJECTED").ok();
    assert_eq!(words(&wire.expect_refusal()), ("57P01", NO_LONGER_ACCEPTED));
    assert!(wire.is_closed_within(AT_ONCE), "the tunnel stands without anybody in it");
}

pub fn a_real_connecting_proxy_carries_psql_by_its_key() {
    let world = world();
    let one = closed(&world.cloud, "haproxy-tls");
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let authority = Authority::root(scratch.path(), "a customer");
    let root = world.cloud.root_certificate();
    let together = |identity: &Identity, key: &Identity, name: &str| {
        let file = scratch.path().join(name);
        let read = |path: &Path| std::fs::read_to_string(path).expect("it was made");
        std::fs::write(&file, read(&identity.chain) + &read(&key.key)).expect("a scratch file");
        file
    };
    let server = |certificate: Option<&Path>| {
        let shown = certificate.map_or(String::new(), |file| format!(" crt {}", file.display()));
        format!(
            "{} ssl verify required ca-file {} sni str(localhost) verifyhost localhost ssl-min-ver TLSv1.3{shown}",
            world.doors.endpoint_tls,
            root.display()
        )
    };
    let (accepted, other) = (authority.issue(&Leaf::of("proxy")), authority.issue(&Leaf::of("proxy")));
    one.connect_endpoint(&certificate_id(&accepted.certificate));
    // A customer's network: the proxy in it, and a client who only sees the proxy.
    let (customer, client) = (world.hosts.host(), world.hosts.host());
    let psql = || {
        let arguments = ["-X", "-A", "-t", "-c", "select session_user"];
        run(&mut one.client_at(&client, "psql", customer.ipv4(), &arguments))
    };
    for (what, certificate, expected) in [
        ("accepted", Some(together(&accepted, &accepted, "accepted.pem")), Ok("maria\n")),
        ("another key", Some(together(&other, &other, "other.pem")), Err(NOT_ACCEPTED)),
        ("no certificate", None, Err("server closed the connection unexpectedly")),
    ] {
        let _proxy = Balancer::start(&customer, SQL_PORT, &server(certificate.as_deref()));
        let said = psql();
        match expected {
            Ok(rows) => assert_eq!(said.ok(), rows, "{what}"),
            Err(reason) => {
                let said = said.refused();
                assert!(said.contains(reason), "{what}: {said}");
            }
        }
    }
    // Past the proxy the client is a stranger, and its proxy's address opens nothing.
    let arguments = ["-X", "-c", "select 1"];
    for host in [&client, &customer] {
        let said = run(&mut one.client_at(host, "psql", world.home.ipv4(), &arguments)).refused();
        assert!(said.contains(NOT_LISTED), "{said}");
    }
}

pub fn t59_rejecting_or_removing_an_endpoint_cuts_its_sessions_within_200_ms() {
    let world = world();
    let (one, other) = (closed(&world.cloud, "cut-endpoint"), closed(&world.cloud, "uncut-endpoint"));
    let guest = world.hosts.host();
    one.allow(&format!("{}/32", guest.ipv4()));
    let enter = |one: &Cluster<'_>, id: &str| {
        let mut wire = world.balancer.connect(world.doors.endpoint, None).expect("the door is there");
        wire.send_raw(&through(id).bytes()).expect("the door listens");
        one.enter_over(wire, &Caller::with(&one.password))
    };
    let (goes, stays, elsewhere) = (vpce(600), vpce(601), vpce(602));
    one.connect_endpoint(&stays);
    other.connect_endpoint(&elsewhere);
    let bystanders = [
        Watched::idle(enter(&one, &stays).expect("accepted")),
        Watched::idle(enter(&other, &elsewhere).expect("accepted")),
        Watched::busy(world.enter(&one, &guest, guest.ipv4()).expect("listed")),
    ];
    let mut delays = Vec::new();
    for round in 0..6 {
        one.connect_endpoint(&goes);
        let session = || enter(&one, &goes).expect("accepted");
        let sessions = [
            Watched::idle(session()),
            Watched::busy(session()),
            Watched::copying_out(session()),
            Watched::copying_in(session()),
        ];
        match round % 2 {
            0 => one.decide_endpoint(&goes, "REJECTED").ok(),
            _ => one.remove_endpoint(&goes).ok(),
        };
        let begun = Instant::now();
        let ended = sessions.map(Watched::end);
        for Ended { refusal, .. } in &ended {
            assert_eq!(words(refusal), ("57P01", NO_LONGER_ACCEPTED), "round {round}");
        }
        let last = ended.iter().map(|ended| milliseconds(begun, ended.at)).max().expect("four sessions");
        let allowed = allowed(Duration::from_secs(1)).as_millis();
        assert!(last <= allowed, "round {round}: the last session lived {last} ms, {allowed} are allowed");
        delays.push(last);
        assert!(enter(&one, &goes).is_err(), "round {round}: let in again");
    }
    println!("  the last of four sessions was cut after {delays:?} ms");
    let allowed = allowed(Duration::from_millis(200)).as_millis();
    assert!(median(delays.clone()) <= allowed, "{delays:?}, {allowed} are allowed");
    assert!(bystanders.iter().all(Watched::is_open), "others were cut");
}
