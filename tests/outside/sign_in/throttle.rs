//! The throttle: guessing becomes slow and is then refused, and its victim notices little. Each test has its own cloud.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use house::authority::{Authority, Leaf, self_signed};
use house::caller::fresh_address;
use house::cloud::PATIENCE;
use house::command::eventually;
use house::provider::Provider;
use house::{Caller, Cloud, Cluster, Options, Refusal, machine};
use serde_json::{Value, json};

const REFUSED: &str = "too many failed authentication attempts";

fn strict(more: &[&str]) -> Cloud {
    let mut arguments = vec!["--throttle-free", "4", "--throttle-base", "2s", "--throttle-max", "1m"];
    arguments.extend(["--fetch-allow", "127.0.0.0/8"]);
    arguments.extend(more);
    Cloud::start(Options::unencrypted(&arguments))
}

fn guess(one: &Cluster<'_>, from: IpAddr) -> Refusal {
    one.refusal_of("a guess", &Caller::with("a-wrong-guess").from(from))
}

/// For how many seconds a refusal says that nothing is listened to.
fn seconds_told(refusal: &Refusal) -> u64 {
    let hint = refusal.fields.get(&'H').expect("when to try again");
    hint.split(' ').find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("no seconds in {hint}"))
}

/// Guesses until the gateway no longer listens; how many it took, and how it was refused.
fn until_refused(one: &Cluster<'_>, from: IpAddr) -> (usize, Refusal) {
    for number in 0..40 {
        let refusal = guess(one, from);
        if refusal.message == REFUSED {
            assert_eq!(refusal.code, "28000", "{refusal:?}");
            return (number, refusal);
        }
        assert_eq!(refusal.code, "28P01", "{refusal:?}");
    }
    panic!("forty guesses, and none was refused");
}

fn lines(cloud: &Cloud) -> Vec<Value> {
    cloud.json(["throttle", "list"])["lines"].as_array().expect("a list").clone()
}

pub fn t67_guessing_is_refused_and_the_owner_gets_in_from_elsewhere() {
    let cloud = strict(&[]);
    let one = cloud.cluster("throttle-one", &[]);
    let (attacker, owner) = (fresh_address(), fresh_address());
    let right = |from: IpAddr| Caller::with(&one.password).from(from);
    let guesses = until_refused(&one, attacker).0;
    assert!((4..=12).contains(&guesses), "refused after {guesses} guesses");
    // While it is refused, the right password is of no use from there.
    let refusal = one.refusal_of("the right password from the attacker's address", &right(attacker));
    assert_eq!(refusal.message, REFUSED);
    let hint = refusal.fields.get(&'H').expect("when to try again").clone();
    assert!(hint.contains("Try again in"), "{hint}");
    // The owner is elsewhere: slowed a little at most, never refused, however long the attack goes on from anywhere.
    for round in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| guess(&one, attacker));
                scope.spawn(|| guess(&one, fresh_address()));
            }
        });
        let begun = Instant::now();
        let mut wire = one.welcome(&right(owner));
        machine::assert_within(Duration::from_secs(6), begun, &format!("round {round}: the owner waited"));
        assert_eq!(wire.value("select session_user"), "maria");
    }
    // Other users and other clusters are not touched.
    let other = one.with_new_user("second_person");
    let begun = Instant::now();
    other.welcome(&Caller::with(&other.password).from(owner));
    machine::assert_within(Duration::from_secs(2), begun, "somebody else waited");
    // It is shown, and can be forgiven.
    until_refused(&one, attacker);
    let shown = lines(&cloud);
    let is_of_attacker = |line: &&Value| line["address"] == attacker.to_string() && line["user"].is_null();
    let of_attacker = shown.iter().find(is_of_attacker).expect("the attacker's line");
    assert!(
        of_attacker["failures"].as_u64().unwrap() >= 4 && of_attacker["cluster"] == one.handle,
        "{of_attacker}"
    );
    assert_eq!(of_attacker["state"], "refused", "{of_attacker}");
    assert!(shown.iter().any(|line| line["user"] == "maria"), "{shown:?}");
    cloud.chitin(["throttle", "clear", "--address", &attacker.to_string()]).ok();
    cloud.chitin(["throttle", "clear", "--cluster", "throttle-one", "--user", "maria"]).ok();
    one.welcome(&right(attacker));
    assert!(!lines(&cloud).iter().any(|line| line["address"] == attacker.to_string()));
}

pub fn refusals_grow_and_end() {
    let cloud = strict(&[]);
    let one = cloud.cluster("throttle-grow", &[]);
    let attacker = fresh_address();
    let mut waits = Vec::new();
    for _ in 0..2 {
        // What it is told, in whole seconds: how late a guess comes after that is not the gateway's doing.
        let refusal = until_refused(&one, attacker).1;
        waits.push(seconds_told(&refusal));
        eventually("it listens again", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(100));
            (guess(&one, attacker).message != REFUSED).then_some(())
        });
    }
    println!("  refused for {} s, then for {} s", waits[0], waits[1]);
    assert!(waits[0] >= 1 && waits[1] > waits[0], "{waits:?}");
    // A success ends the counting for that user from that address.
    let owner = fresh_address();
    for _ in 0..4 {
        for _ in 0..2 {
            assert_eq!(guess(&one, owner).code, "28P01");
        }
        one.welcome(&Caller::with(&one.password).from(owner));
    }
}

pub fn a_neighbour_behind_the_same_address_does_not_lock_its_user_out() {
    let cloud = strict(&[]);
    let one = cloud.cluster("throttle-nat", &[]);
    let home = fresh_address();
    let right = Caller::with(&one.password).from(home);
    one.welcome(&right);
    let neighbour = one.with_user("neighbour", "");
    for _ in 0..12 {
        let _ = guess(&neighbour, home);
    }
    assert_eq!(guess(&neighbour, home).message, REFUSED);
    let begun = Instant::now();
    one.welcome(&right);
    machine::assert_within(Duration::from_secs(6), begun, "its user waited");
}

pub fn t66_only_wrong_proofs_are_counted() {
    let cloud = strict(&[]);
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let one = cloud.cluster("throttle-what", &["--plan", "dedicated", "--allow", "127.0.0.0/8"]);
    let right = || Caller::with(&one.password).from(fresh_address());
    let counted = || -> u64 { lines(&cloud).iter().filter_map(|line| line["failures"].as_u64()).sum() };
    let provider = Provider::start("ES256");
    provider.set_fault("*", &json!("down"));
    one.set_provider("corp", &provider.settings()).ok();
    // Its tests' own door stays open.
    let token = provider.token("maria");
    let root = Authority::root(scratch.path(), "root");
    let home = fresh_address();
    for _ in 0..6 {
        // A database that does not exist, a client that leaves, one that speaks nonsense, one that brings nothing.
        assert_eq!(one.refusal_of("no database", &right().to("no_such_database").from(home)).code, "3D000");
        let mut wire = one.knock_as(&Caller::default().from(home)).unwrap();
        wire.expect_message().unwrap();
        drop(wire);
        let mut wire = one.knock_as(&Caller::default().from(home)).unwrap();
        wire.expect_message().unwrap();
        wire.send(b'Q', b"select 1\0").unwrap();
        wire.expect_refusal();
        // Rules that let nobody in, a certificate that is needed, a provider that is down.
        for rules in [
            "host all all all reject\n",
            "host other all all cert\n",
            "host all all all cert\n",
            "host all all all jwt\n",
        ] {
            one.set_rules(rules);
            one.refusal_of(rules, &Caller::with(&token).from(home));
        }
        one.set_rules("");
        assert_eq!(counted(), 0, "{:?}", lines(&cloud));
    }
    one.welcome(&Caller::with(&one.password).from(home));
    // What is counted: a wrong password, somebody else's certificate, a forged token.
    one.set_authorities(&root.pem());
    let bob = root.issue(&Leaf::of("bob"));
    // Another one: that the first was down is remembered for a while.
    let provider = Provider::start("ES256");
    one.set_provider("corp", &provider.settings()).ok();
    let forged = provider.mint(&json!({ "claims": provider.claims("maria"), "key": "fresh", "kid": null }));
    let mut before = counted();
    for (rules, caller) in [
        ("host all all all scram-sha-256\n", Caller::with("wrong")),
        ("host all all all password\n", Caller::with("wrong")),
        ("host all all all cert\n", Caller::holding(&bob)),
        ("host all all all jwt\n", Caller::with(&forged)),
    ] {
        one.set_rules(rules);
        one.refusal_of(rules, &caller.from(fresh_address()));
        let now = counted();
        assert!(now > before, "{rules} was not counted: {:?}", lines(&cloud));
        before = now;
    }
    // A certificate of nobody is what libpq sends along unasked.
    one.set_rules("");
    one.welcome(&right().and_holding(&self_signed(scratch.path(), "maria")));
    assert_eq!(counted(), before);
}

pub fn the_throttle_bites_before_any_expensive_work() {
    let cloud = strict(&[]);
    let one = cloud.cluster("throttle-cheap", &[]);
    one.set_rules("host all all all password\n");
    one.sleep();
    let attacker = fresh_address();
    until_refused(&one, attacker);
    // What a refused attempt costs, handshake and all, against one that is looked at.
    let cost = |count: u64| {
        let before = machine::processor_milliseconds(cloud.pid());
        for _ in 0..count {
            let _ = guess(&one, attacker);
        }
        machine::processor_milliseconds(cloud.pid()) - before
    };
    let spent = cost(100);
    println!("  100 refused attempts cost {spent} ms of processor time");
    assert!(spent < 2_000, "{spent} ms");
    let mut wire = one.knock_as(&Caller::default().from(attacker)).unwrap();
    let refusal = wire.expect_message().expect_err("refused before any question");
    assert_eq!(refusal.message, REFUSED);
    assert_eq!(one.phase(), "asleep");
    // A cluster and a user that do not exist look the same.
    let mut unknown = one.with_user("nobody_here", "");
    unknown.handle = "no-such-cluster-78".to_owned();
    let other = fresh_address();
    let guesses = until_refused(&unknown, other).0;
    assert!((4..=12).contains(&guesses), "{guesses}");
}

pub fn t70_made_up_names_cost_no_memory_and_flush_nothing() {
    let cloud = strict(&[]);
    let one = cloud.cluster("throttle-flood", &[]);
    let attacker = fresh_address();
    until_refused(&one, attacker);
    let before = machine::resident_bytes(cloud.pid());
    // Six thousand instead of ten million, from many addresses, at clusters and as users that do not exist.
    std::thread::scope(|scope| {
        for thread in 0..24 {
            let one = &one;
            scope.spawn(move || {
                for number in 0..250 {
                    let mut asked = one.with_user(&format!("made_up_{thread}_{number}"), "x");
                    if number % 2 == 0 {
                        asked.handle = format!("made-up-{thread}-{number}-7");
                    }
                    let from = if number % 3 == 0 { attacker } else { fresh_address() };
                    let _ = asked.enter(&Caller::with("x").from(from));
                }
            });
        }
    });
    let grown = machine::resident_bytes(cloud.pid()).saturating_sub(before);
    println!("  memory grew by {} KiB", grown >> 10);
    assert!(grown < 48 << 20, "memory grew by {} MiB", grown >> 20);
    let shown = lines(&cloud);
    assert!(shown.len() <= 1_000, "what is shown is bounded: {}", shown.len());
    let line =
        shown.iter().find(|line| line["address"] == attacker.to_string() && line["cluster"] == one.handle);
    assert!(line.is_some(), "the attacker has flushed its own line");
    // Its pause may have passed by now. One that was flushed would have four guesses again.
    let again = [guess(&one, attacker).message, guess(&one, attacker).message];
    assert!(again.iter().any(|message| message == REFUSED), "{again:?}");
    one.welcome(&Caller::with(&one.password).from(fresh_address()));
}

pub fn the_throttle_is_listed_for_people_and_cleared() {
    let cloud = strict(&[]);
    let one = cloud.cluster("throttle-list", &[]);
    let said = cloud.chitin(["throttle", "list"]);
    assert!(said.stderr.contains("no failed sign-in"), "{said:?}");
    let from = fresh_address();
    let strange = one.with_user("\u{1b}[2Jevil", "");
    guess(&strange, from);
    guess(&one, from);
    let table = cloud.chitin(["throttle", "list"]).ok();
    assert!(
        table.contains(&one.handle) && table.contains("maria") && table.contains(&from.to_string()),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "a user's name cannot steer the terminal");
    assert_ne!(cloud.chitin(["throttle", "clear"]).code(), 0, "nothing is forgotten that was not named");
    cloud.chitin(["throttle", "clear", "--all"]).ok();
    assert!(lines(&cloud).is_empty());
    let answer =
        cloud.call("POST", "/api/v1/chitin/throttle/clear", Some(&json!({ "address": "not-an-address" })));
    assert_eq!(answer.status, 400);
}

pub fn the_defaults_bite() {
    // The shared cloud forgives on purpose; this one is as it comes.
    let cloud = Cloud::start(Options {
        environment: vec![("CHITIN_THROTTLE_FREE".into(), "5".into())],
        ..Options::unencrypted(&[])
    });
    let one = cloud.cluster("throttle-plain", &[]);
    let guesses = until_refused(&one, fresh_address()).0;
    assert!((5..=15).contains(&guesses), "{guesses}");
    one.welcome(&Caller::with(&one.password).from(fresh_address()));
}
