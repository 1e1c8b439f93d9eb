//! Who may come near at all: the allowlist, live.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use house::cloud::PATIENCE;
use house::command::eventually;
use house::machine::assert_within;
use house::wire::AT_ONCE;
use house::wire::{cancel_request, text};
use house::{Cloud, Options};

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ABROAD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

pub fn t59_an_allowlist_entry_opens_and_its_removal_cuts_open_sessions() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = cloud.cluster("listed-one", &["--plan", "dedicated", "--allow", "127.0.0.1/32"]);
    assert!(one.try_sign_in_from(HOME).is_ok());
    let refusal = one.try_sign_in_from(ABROAD).err().expect("not on the list");
    assert_ne!(refusal.code, "53300", "{refusal:?}");
    cloud.chitin(["allowlist", "add", "listed-one", "127.0.0.2/32"]).ok();
    let guest = || one.try_sign_in_from(ABROAD).ok();
    let mut idle = eventually("let in", PATIENCE, guest);
    let mut busy = guest().expect("let in");
    let mut copying = guest().expect("let in");
    busy.send(b'Q', &text("select pg_sleep(600)")).unwrap();
    copying
        .send(b'Q', &text("copy (select repeat('x', 100) from (select generate_series(1, 100000000)) as many) to stdout"))
        .unwrap();
    let mut native = one.sign_in();
    cloud.chitin(["allowlist", "remove", "listed-one", "127.0.0.2/32"]).ok();
    let begun = Instant::now();
    for (what, wire) in [("idle", &mut idle), ("busy", &mut busy)] {
        let refusal = wire.expect_refusal();
        assert_within(Duration::from_millis(1_500), begun, what);
        assert!(["57P01", "28000", "closed"].contains(&refusal.code.as_str()), "{what}: {refusal:?}");
    }
    assert!(copying.is_closed_within(AT_ONCE), "the session in COPY lives on");
    assert!(guest().is_none(), "a removed address is let in");
    assert_eq!(native.value("select 1"), "1", "others are untouched");
}

pub fn t12_a_stricter_allowlist_ends_old_sessions_within_a_second() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = cloud.cluster("stricter-one", &[]);
    let mut guest = one.try_sign_in_from(ABROAD).expect("a serverless cluster begins open");
    cloud.chitin(["allowlist", "add", "stricter-one", "127.0.0.1/32"]).ok();
    for entry in cloud.json(["allowlist", "list", "stricter-one"]).as_array().expect("a list") {
        let address = entry["cidr_ip"].as_str().expect("an address");
        let range = format!("{address}/{}", entry["cidr_mask"].as_u64().expect("a mask"));
        if range != "127.0.0.1/32" {
            cloud.chitin(["allowlist", "remove", "stricter-one", &range]).ok();
        }
    }
    let begun = Instant::now();
    guest.expect_refusal();
    assert_within(Duration::from_millis(1_500), begun, "the session ends");
    assert!(one.try_sign_in_from(HOME).is_ok());
    assert!(one.try_sign_in_from(ABROAD).is_err());
}

pub fn t57_a_dedicated_cluster_begins_closed_and_bad_rules_are_refused() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let made = cloud.chitin(["cluster", "create", "closed-one", "--plan", "dedicated"]).ok();
    let password = cloud.user("closed-one", "maria");
    let mut one = cloud.cluster("opened-one", &[]);
    let url = cloud.chitin(["cluster", "url", "closed-one", "maria"]).ok();
    one.handle =
        url.split_once("cluster%3D").expect("named").1.split(['&', '\n']).next().expect("named").to_owned();
    let refusal = one.with_user("maria", &password).try_sign_in().err().expect("closed");
    println!("  created closed: {made:?}; refused with {} {:?}", refusal.code, refusal.message);
    for wrong in ["10.1.2.3/8", "not-an-address", "10.0.0.0/33", "fe80::1%lo/128", "", "1.2.3.4/0"] {
        let refused = cloud.chitin(["allowlist", "add", "closed-one", wrong]);
        assert!([1, 2].contains(&refused.code()), "{wrong:?} was taken with code {}", refused.code());
    }
    cloud.chitin(["allowlist", "add", "closed-one", "::ffff:127.0.0.1/128"]).ok();
    let wire = eventually("let in", PATIENCE, || one.with_user("maria", &password).try_sign_in().ok());
    drop(wire);
}

pub fn t58_what_is_closed_stays_closed_and_no_text_shows_the_inside() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let closed = cloud.cluster("denied-one", &["--plan", "dedicated", "--allow", "127.0.0.0/8"]);
    let open = cloud.cluster("opened-two", &[]);
    cloud.chitin(["allowlist", "edit", "denied-one", "127.0.0.0/8", "--sql", "false"]).ok();
    let is_refused = || {
        let refusal = closed.try_sign_in().err().expect("the entry gives no right to SQL");
        assert_eq!(refusal.code, "28000", "{refusal:?}");
    };
    is_refused();
    // An entry without an end holds for ever: over a change of another entry, and over a restart.
    cloud.chitin(["allowlist", "add", "denied-one", "203.0.113.0/24"]).ok();
    cloud.chitin(["allowlist", "remove", "denied-one", "203.0.113.0/24"]).ok();
    is_refused();
    cloud.stop();
    cloud.boot();
    is_refused();
    drop(open.sign_in());
    for named in [
        "opened-two-0",
        "opened-two-1",
        "opened-two-00",
        "opened-two--1",
        "opened-two-4294967296",
        "-2",
        "%n%n",
        "'",
    ] {
        let mut knock = open.knock_with(&[("options", &format!("--cluster={named}"))]);
        let refusal = knock.expect_refusal();
        assert_eq!(refusal.code, "08004", "{named}: {refusal:?}");
        assert_eq!(refusal.message, format!("invalid cluster identifier '{named}'"));
        let said = format!("{refusal:?}").to_lowercase();
        for inside in ["panick", ".rs", "/tmp", "parse", "unwrap", "u32"] {
            assert!(!said.contains(inside), "{named}: {said}");
        }
    }
}

pub fn t64_a_cancel_from_outside_the_allowlist_or_for_another_cluster_is_silent() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = cloud.cluster("cancel-one", &["--plan", "dedicated", "--allow", "127.0.0.1/32"]);
    // Another cluster lets everybody in, so that a stranger to this one gets as far as a cancel.
    cloud.cluster("open-one", &[]);
    let mut wire = one.sign_in();
    let (process, secret) = wire.cancel_key.clone().expect("a key");
    wire.send(b'Q', &text("select pg_sleep(3)")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut stranger = cloud.encrypted_from(Some(ABROAD)).expect("TLS comes before the cluster is known");
    let _ = stranger.send_raw(&cancel_request(process, &secret));
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stranger, &mut answer);
    assert!(answer.is_empty(), "a cancel is never answered: {answer:?}");
    assert!(wire.results().is_ok(), "a stranger's address cancelled the statement");
}
