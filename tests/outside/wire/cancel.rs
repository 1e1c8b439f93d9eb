//! Cancelling: the right key stops the right statement, and nothing else does anything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use house::Cluster;
use house::cloud::PATIENCE;
use house::command::{SetAtEnd, eventually};
use house::machine::assert_within;
use house::shared::{cloud, cluster};
use house::wire::AT_ONCE;
use house::wire::{Refusal, Wire, cancel_request, text};

/// Where a test's sessions and cancels come from if nothing is said.
const HERE: [u8; 4] = [127, 0, 0, 1];

fn key_of(wire: &Wire) -> (u32, Vec<u8>) {
    wire.cancel_key.clone().expect("a session has a cancel key")
}

/// Sends a cancel over TLS, as libpq 17 does, and waits until the gateway has closed.
fn cancel(process: u32, secret: &[u8]) -> Duration {
    cancel_from(HERE, process, secret)
}

/// The same from another address.
fn cancel_from(address: [u8; 4], process: u32, secret: &[u8]) -> Duration {
    let mut wire = cloud().encrypted_from(Some(address.into())).expect("TLS comes before the key");
    let begun = Instant::now();
    wire.send_raw(&cancel_request(process, secret)).unwrap();
    assert!(wire.is_closed_within(AT_ONCE), "a cancel was not answered by closing");
    begun.elapsed()
}

/// Sends a cancel in plaintext, as every libpq before 17 does.
fn cancel_in_plaintext(address: [u8; 4], process: u32, secret: &[u8]) {
    let mut plain = cloud().connect(cloud().sql_address(), Some(address.into())).expect("it listens");
    let _ = plain.send_raw(&cancel_request(process, secret));
    assert!(plain.is_closed_within(AT_ONCE), "a cancel was not answered by closing");
}

fn sleeper() -> (Wire, (u32, Vec<u8>)) {
    sleeper_of(cluster())
}

fn sleeper_of(one: &Cluster<'_>) -> (Wire, (u32, Vec<u8>)) {
    let mut wire = one.sign_in();
    let key = key_of(&wire);
    wire.begin("select pg_sleep(600)", &mut one.sign_in());
    (wire, key)
}

fn is_cancelled(result: Result<house::wire::Rows, Refusal>) -> bool {
    matches!(result, Err(refusal) if refusal.code == "57014")
}

pub fn a_cancel_from_another_connection_stops_the_statement() {
    let (mut wire, (process, secret)) = sleeper();
    cancel(process, &secret);
    assert!(is_cancelled(wire.results()));
    assert_eq!(wire.value("select 1"), "1", "the session lives on");
}

pub fn t60_a_late_cancel_never_hits_another_session() {
    // 300 races instead of a million: the cancel leaves as the statement ends and its session is replaced.
    let mut bystander = cluster().sign_in();
    bystander.send(b'Q', &text("select pg_sleep(600)")).unwrap();
    for round in 0..300_u64 {
        let mut wire = cluster().sign_in();
        let (process, secret) = key_of(&wire);
        wire.send(b'Q', &text("select 1")).unwrap();
        let racer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(round * 7 % 1_000));
            // Those that come too late have a wrong key, of which each network has so many.
            let network = u8::try_from(round / 50).expect("few networks");
            let from = [127, 60, network, 1].into();
            let mut wire = cloud().encrypted_from(Some(from)).expect("TLS comes before the key");
            let _ = wire.send_raw(&cancel_request(process, &secret));
            let _ = wire.is_closed_within(AT_ONCE);
        });
        let _ = wire.results();
        drop(wire);
        let mut next = cluster().sign_in();
        let result = next.query("select pg_sleep(0.002)");
        assert!(result.is_ok(), "round {round}: a stranger's cancel hit the next session: {result:?}");
        racer.join().unwrap();
        if round % 100 == 99 {
            assert!(bystander.is_silent(), "a bystander was cancelled");
        }
    }
}

pub fn t61_a_flood_of_wrong_cancels_leaves_room_for_queries_and_sign_ins() {
    let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let crowd = |last: u8| [127, 61, 0, last];
    std::thread::scope(|scope| {
        for last in 1..=2 {
            let (is_over, sent) = (&is_over, &sent);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let mut wire = cloud().encrypted_from(Some(crowd(last).into())).expect("TLS");
                    let number = u32::try_from(sent.fetch_add(1, Ordering::Relaxed)).unwrap_or(1);
                    let _ = wire.send_raw(&cancel_request(number, &[1, 2, 3, 4]));
                    let _ = wire.is_closed_within(AT_ONCE);
                }
            });
        }
        let _end = SetAtEnd(&is_over);
        let mut wire = cluster().sign_in();
        let mut rounds = 0;
        while rounds < 10 || sent.load(Ordering::Relaxed) <= 150 {
            let begun = Instant::now();
            assert_eq!(wire.value("select 1"), "1");
            assert_eq!(cluster().sign_in().value("select 2"), "2");
            assert_within(Duration::from_secs(2), begun, "a query and a sign-in");
            rounds += 1;
        }
    });
    // Who has tried so often is not listened to for a while, encrypted or not; others are, and its neighbours.
    for from in [crowd(1), crowd(2)] {
        for _ in 0..100 {
            cancel_in_plaintext(from, 7, &[1, 2, 3, 4]);
        }
    }
    let (mut wire, (process, secret)) = sleeper();
    cancel_from(crowd(1), process, &secret);
    assert!(wire.is_silent(), "an address that has tried enough keys went on trying");
    cancel_from(crowd(3), process, &secret);
    assert!(is_cancelled(wire.results()), "its neighbour did not try");
}

pub fn t62_cancel_keys_are_the_gateways_own_and_never_collide() {
    let mut keys = std::collections::BTreeSet::new();
    let mut wires = Vec::new();
    for _ in 0..60 {
        let mut wire = cluster().sign_in();
        let (process, secret) = key_of(&wire);
        // What it is for pg_terminate_backend, NOTIFY and pg_stat_activity.
        assert_eq!(wire.value("select pg_backend_pid()"), process.to_string());
        assert!(keys.insert(secret), "two sessions have one secret");
        wires.push(wire);
    }
}

pub fn the_process_that_a_client_is_told_is_its_own_for_every_function_of_postgresql() {
    let (mut listening, mut other) = (cluster().sign_in(), cluster().sign_in());
    let (process, _) = key_of(&listening);
    let shown = format!("select usename from pg_stat_activity where pid = {process}");
    assert_eq!(other.value(&shown), "maria");
    listening.query("listen own_process").unwrap();
    listening.query("notify own_process").unwrap();
    let told = listening.asides.iter().find(|message| message.tag == b'A').expect("a notification");
    assert_eq!(told.body[..4], process.to_be_bytes(), "who notified is the session itself");
    assert_eq!(other.value(&format!("select pg_terminate_backend({process})")), "t");
    let ended = eventually("the session ends", PATIENCE, || listening.query("select 1").err());
    assert_eq!(ended.code, "57P01", "{ended:?}");
}

pub fn t63_only_the_issued_key_works() {
    let (mut wire, (process, secret)) = sleeper();
    for length in [0, 4, 8, 32, 256, 257] {
        let mut wrong = secret.clone();
        wrong.resize(length, 0);
        if wrong == secret {
            wrong[0] ^= 1;
        }
        cancel(process, &wrong);
    }
    for bit in 0..8 {
        let mut wrong = secret.clone();
        *wrong.last_mut().unwrap() ^= 1 << bit;
        cancel(process, &wrong);
    }
    cancel(process ^ 1, &secret);
    assert!(wire.is_silent(), "a wrong key cancelled");
    cancel(process, &secret);
    assert!(is_cancelled(wire.results()));
}

pub fn t64_a_cancel_in_plaintext_counts_from_the_session_s_own_address_only_and_where_it_may() {
    let one = cloud().cluster("plain-cancels", &[]);
    let (mut wire, (process, secret)) = sleeper_of(&one);
    cancel_from([127, 64, 0, 1], process, &secret);
    assert!(
        is_cancelled(wire.results()),
        "nobody has seen the key, so it counts from everywhere that is let in"
    );
    wire.begin("select pg_sleep(600)", &mut one.sign_in());
    cancel_in_plaintext([127, 64, 0, 1], process, &secret);
    let mut forged = secret.clone();
    forged[0] ^= 1;
    cancel_in_plaintext(HERE, process, &forged);
    assert!(wire.is_silent(), "whoever read the key on its way cancelled a statement");
    cancel_in_plaintext(HERE, process, &secret);
    assert!(is_cancelled(wire.results()), "as Ctrl-C of every psql before 17 sends it");
    assert_eq!(wire.value("select 1"), "1", "the session lives on");

    cloud().chitin(["cluster", "update", "plain-cancels", "--plaintext-cancels", "off"]).ok();
    let detail = cloud().get(&format!("/api/v1/chitin/clusters/{}", one.id));
    assert_eq!(detail["plaintext_cancels"], false);
    wire.begin("select pg_sleep(600)", &mut one.sign_in());
    cancel_in_plaintext(HERE, process, &secret);
    assert!(wire.is_silent(), "the cluster refuses it");
    // Whoever has read it does not make it good by encrypting it.
    cancel_from([127, 64, 0, 1], process, &secret);
    assert!(wire.is_silent(), "a key that was seen in plaintext was taken from elsewhere");
    cancel(process, &secret);
    assert!(is_cancelled(wire.results()));
    cloud().chitin(["cluster", "update", "plain-cancels", "--plaintext-cancels", "on"]).ok();
    wire.begin("select pg_sleep(600)", &mut one.sign_in());
    cancel_in_plaintext(HERE, process, &secret);
    assert!(is_cancelled(wire.results()));
}

pub fn no_key_leads_outside_of_the_cluster_that_the_connection_names() {
    let other = cloud().cluster("not-its-own", &[]);
    let (mut wire, (process, secret)) = sleeper();
    let cancel_at = |handle: &str| {
        let mut named = cloud().connect(cloud().sql_address(), None).expect("it listens");
        assert_eq!(named.ask_for_tls().expect("an answer"), b'S');
        named.handshake(cloud().trust(), &format!("{handle}.localhost")).expect("TLS comes before the key");
        named.send_raw(&cancel_request(process, &secret)).unwrap();
        assert!(named.is_closed_within(AT_ONCE), "a cancel was not answered by closing");
    };
    cancel_at(&other.handle);
    cancel_at("nobody-here-7");
    assert!(wire.is_silent(), "another cluster's name led to this one");
    cancel_at(&cluster().handle);
    assert!(is_cancelled(wire.results()));
}

pub fn t65_right_and_wrong_keys_close_in_the_same_time() {
    let wire = cluster().sign_in();
    let (process, secret) = key_of(&wire);
    let wrong: Vec<u8> = secret.iter().map(|byte| byte ^ 0x55).collect();
    // What a right key sets going in the engine comes after the answer, and slows whoever is next on a small machine. So
    // the next is a right one as often as a wrong one, and only what shows in every round counts.
    let tells: Vec<f64> = (0..3)
        .map(|_| {
            let (mut right_times, mut wrong_times) = (Vec::new(), Vec::new());
            for network in 0..50 {
                // Of wrong keys each network has so many.
                let try_one = |secret: &[u8]| cancel_from([127, 65, network, 1], process, secret);
                right_times.push(try_one(&secret));
                wrong_times.push(try_one(&wrong));
                wrong_times.push(try_one(&wrong));
                right_times.push(try_one(&secret));
            }
            let pairs = right_times.iter().flat_map(|a| wrong_times.iter().map(move |b| a > b));
            pairs.filter(|won| *won).count() as f64 / 10_000.0
        })
        .collect();
    // With 100 of each, chance alone stays within 0.5 ± 0.17 but once in 30,000 rounds.
    let is_even = |tell: &f64| (0.33..=0.67).contains(tell);
    assert!(tells.iter().any(is_even), "the time tells a right key from a wrong one: {tells:?}");
}
