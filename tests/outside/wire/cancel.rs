//! Cancelling: the right key stops the right statement, and nothing else does anything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use house::command::SetAtEnd;
use house::machine::assert_within;
use house::shared::{cloud, cluster};
use house::wire::AT_ONCE;
use house::wire::{Refusal, Wire, cancel_request, text};

fn key_of(wire: &Wire) -> (u32, Vec<u8>) {
    wire.cancel_key.clone().expect("a session has a cancel key")
}

/// Sends a cancel over TLS, as libpq 17 does, and waits until the gateway has closed.
fn cancel(process: u32, secret: &[u8]) -> Duration {
    let mut wire = cloud().encrypted();
    let begun = Instant::now();
    wire.send_raw(&cancel_request(process, secret)).unwrap();
    assert!(wire.is_closed_within(AT_ONCE), "a cancel was not answered by closing");
    begun.elapsed()
}

fn sleeper() -> (Wire, (u32, Vec<u8>)) {
    let mut wire = cluster().sign_in();
    let key = key_of(&wire);
    wire.begin("select pg_sleep(600)", &mut cluster().sign_in());
    (wire, key)
}

fn is_cancelled(result: Result<house::wire::Rows, Refusal>) -> bool {
    matches!(result, Err(refusal) if refusal.code == "57014")
}

fn still_sleeps(wire: &mut Wire) -> bool {
    wire.socket().set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let mut byte = [0];
    let answer = std::io::Read::read(wire, &mut byte);
    wire.socket().set_read_timeout(Some(house::wire::ANSWER_DEADLINE)).unwrap();
    answer.is_err()
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
            let mut wire = cloud().encrypted();
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
            assert!(still_sleeps(&mut bystander), "a bystander was cancelled");
        }
    }
}

pub fn t61_a_flood_of_wrong_cancels_leaves_room_for_queries_and_sign_ins() {
    let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let mut wire = cloud().encrypted();
                    let number = u32::try_from(sent.fetch_add(1, Ordering::Relaxed)).unwrap_or(1);
                    let _ = wire.send_raw(&cancel_request(number, &[1, 2, 3, 4]));
                }
            });
        }
        let _end = SetAtEnd(&is_over);
        let mut wire = cluster().sign_in();
        let mut rounds = 0;
        while rounds < 10 || sent.load(Ordering::Relaxed) <= 50 {
            let begun = Instant::now();
            assert_eq!(wire.value("select 1"), "1");
            assert_eq!(cluster().sign_in().value("select 2"), "2");
            assert_within(Duration::from_secs(2), begun, "a query and a sign-in");
            rounds += 1;
        }
    });
}

pub fn t62_cancel_keys_are_the_gateways_own_and_never_collide() {
    let mut keys = std::collections::BTreeSet::new();
    let mut wires = Vec::new();
    for _ in 0..60 {
        let mut wire = cluster().sign_in();
        let key = key_of(&wire);
        assert_ne!(
            wire.value("select pg_backend_pid()"),
            key.0.to_string(),
            "the engine's own number is shown"
        );
        assert!(keys.insert(key), "two sessions have one key");
        wires.push(wire);
    }
    let numbers: Vec<u32> = keys.iter().map(|key| key.0).collect();
    assert!(
        numbers.windows(2).any(|pair| pair[1] - pair[0] > 1_000),
        "process numbers can be counted up: {numbers:?}"
    );
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
    assert!(still_sleeps(&mut wire), "a wrong key cancelled");
    cancel(process, &secret);
    assert!(is_cancelled(wire.results()));
}

pub fn t64_a_cancel_in_plaintext_does_nothing() {
    let (mut wire, (process, secret)) = sleeper();
    let mut plain = Wire::tcp(cloud().sql_address());
    let _ = plain.send_raw(&cancel_request(process, &secret));
    assert!(plain.is_closed_within(AT_ONCE));
    assert!(still_sleeps(&mut wire), "plaintext cancelled a statement");
    cancel(process, &secret);
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
            for _ in 0..50 {
                right_times.push(cancel(process, &secret));
                wrong_times.push(cancel(process, &wrong));
                wrong_times.push(cancel(process, &wrong));
                right_times.push(cancel(process, &secret));
            }
            let pairs = right_times.iter().flat_map(|a| wrong_times.iter().map(move |b| a > b));
            pairs.filter(|won| *won).count() as f64 / 10_000.0
        })
        .collect();
    // With 100 of each, chance alone stays within 0.5 ± 0.17 but once in 30,000 rounds.
    let is_even = |tell: &f64| (0.33..=0.67).contains(tell);
    assert!(tells.iter().any(is_even), "the time tells a right key from a wrong one: {tells:?}");
}
