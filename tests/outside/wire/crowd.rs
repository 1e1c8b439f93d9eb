//! Many clients, honest and not: memory, descriptors and counters return to where they were.

use std::time::Duration;

use house::cloud::PATIENCE;
use house::command::eventually;
use house::machine;
use house::scram::{self, Exchange};
use house::shared::{cloud, cluster};
use house::wire::{SSL_REQUEST, Wire};

pub fn t26_thousands_of_sign_ins_leave_memory_flat() {
    let sign_in = |count: u32| (0..count).for_each(|_| drop(cluster().sign_in()));
    // 1,500 instead of a million; the first 500 warm the allocator and the caches.
    sign_in(500);
    std::thread::sleep(Duration::from_millis(500));
    let before = machine::resident_bytes(cloud().pid());
    sign_in(1_000);
    std::thread::sleep(Duration::from_millis(500));
    let grown = machine::resident_bytes(cloud().pid()).saturating_sub(before);
    assert!(grown < 4 << 20, "1,000 sign-ins left {} KiB behind", grown >> 10);
}

pub fn t70_made_up_names_are_forgotten() {
    let ask = |from: u32, count: u32| {
        for number in from..from + count {
            let mut stranger = cluster().with_user(&format!("stranger_{number}"), "wrong");
            if number % 2 == 0 {
                stranger.handle = format!("made-up-{number}-{}", number + 1_000);
            }
            assert_eq!(stranger.try_sign_in().err().expect("a stranger").code, "28P01");
        }
    };
    ask(0, 300);
    let before = machine::resident_bytes(cloud().pid());
    // 1,500 instead of ten million names.
    ask(300, 1_500);
    let grown = machine::resident_bytes(cloud().pid()).saturating_sub(before);
    assert!(grown < 4 << 20, "1,500 made-up names left {} KiB behind", grown >> 10);
}

pub fn t71_clients_that_die_at_any_step_free_everything() {
    let shared = cluster();
    let mut admin = shared.sign_in();
    admin.query("create role t71_two login connection limit 2 password 'pass-word-1'").unwrap();
    let person = shared.with_user("t71_two", "pass-word-1");
    let descriptors = machine::open_descriptors(cloud().pid());
    for round in 0..20 {
        drop(Wire::tcp(cloud().sql_address()));
        let mut wire = Wire::tcp(cloud().sql_address());
        let _ = wire.send_raw(&SSL_REQUEST[..5]);
        drop(wire);
        let mut wire = Wire::tcp(cloud().sql_address());
        let _ = wire.ask_for_tls();
        drop(wire);
        drop(cloud().encrypted());
        drop(person.knock());
        let mut wire = person.knock();
        wire.expect_message().unwrap();
        scram::ask(&mut wire, &Exchange::bound("x")).unwrap();
        drop(wire);
        // Right up to the welcome, and gone before the engine is reached. Two at a time is the limit, so
        // a session that were counted and forgotten would keep everybody out from the third round on.
        let mut wire = person.knock();
        wire.expect_message().unwrap();
        let result = scram::prove(&mut wire, &Exchange::bound(&person.password));
        drop(wire);
        if let Err(refusal) = result {
            assert_eq!(refusal.code, "53300", "round {round}: {refusal:?}");
        }
    }
    eventually("both places are free again", PATIENCE, || {
        let pair = (person.try_sign_in().ok()?, person.try_sign_in().ok()?);
        Some(pair)
    });
    eventually("descriptors are closed", PATIENCE, || {
        (machine::open_descriptors(cloud().pid()) <= descriptors + 20).then_some(())
    });
}

pub fn two_thousand_idle_connections_are_held_and_all_answer() {
    machine::raise_descriptor_limit();
    // Over four clusters, because an engine takes a few megabytes for each session.
    let clusters: Vec<_> = (0..4)
        .map(|number| cloud().cluster(&format!("crowd-{number}-idle"), &["--connections", "600"]))
        .collect();
    let before = machine::resident_bytes(cloud().pid());
    let mut wires: Vec<Wire> = Vec::with_capacity(2_000);
    for _ in 0..500 {
        for one in &clusters {
            wires.push(one.sign_in());
        }
    }
    let each = machine::resident_bytes(cloud().pid()).saturating_sub(before) / 2_000;
    println!("  an idle client costs {} KiB of the gateway", each >> 10);
    assert!(each < 64 << 10, "an idle client costs {} KiB of the gateway", each >> 10);
    for wire in &mut wires {
        assert_eq!(wire.value("select 1"), "1");
    }
    drop(wires);
    for one in &clusters {
        cloud().chitin(["cluster", "delete", &one.name, "--yes"]).ok();
    }
}
