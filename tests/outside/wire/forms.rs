//! What a client is shown before it has proven anything: iterations, salt, and how long it takes when many ask at once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use house::Cluster;
use house::command::eventually;
use house::scram::{self, Exchange};
use house::shared::{cloud, cluster};
use house::wire::{PROTOCOL_3_0, Wire, startup};

use super::sign_in::superiority;

/// Names that nobody has.
const MADE_UP: [&str; 12] =
    ["ann", "bea", "cora", "dora", "ed", "fay", "gus", "hal", "ida", "jon", "kai", "lea"];

/// The salt and the iterations that somebody is shown who names this user.
fn shown(asked: &Cluster<'_>, user: &str) -> (String, u32) {
    let mut wire = asked.with_user(user, "wrong").knock();
    wire.expect_message().unwrap();
    let challenge = scram::ask(&mut wire, &Exchange::bound("wrong")).unwrap().0;
    (challenge.salt, challenge.iterations)
}

/// Iterations and length of the salt.
fn form(asked: &Cluster<'_>, user: &str) -> (u32, usize) {
    let (salt, iterations) = shown(asked, user);
    (iterations, BASE64.decode(salt).expect("base64").len())
}

fn set_verifier(admin: &mut Wire, statement: &str, (iterations, salt_bytes): (u32, usize)) {
    let verifier = scram::verifier("a-password-9", &vec![7; salt_bytes], iterations);
    admin.query(&format!("{statement} login password '{verifier}'")).unwrap();
}

pub fn t31_iterations_and_salts_of_any_form_tell_nobody_who_exists() {
    let one = cloud().cluster("forms-one", &[]);
    let (own, usual) = ((20_000, 24), (4_096, 16));
    let mut admin = one.sign_in();
    assert_eq!(form(&one, "nobody_here"), usual, "as maria's, who is the only one");
    set_verifier(&mut admin, "alter role maria", own);
    assert_eq!(form(&one, "maria"), own, "a user is shown its own at once");
    eventually("made-up names have the users' only form", Duration::from_secs(30), || {
        MADE_UP.iter().all(|name| form(&one, name) == own).then_some(())
    });

    // Users of both kinds, so names of both kinds; each keeps its own.
    for number in 0..2 {
        set_verifier(&mut admin, &format!("create role other_{number}"), usual);
    }
    set_verifier(&mut admin, "create role third", own);
    let both = BTreeSet::from([own, usual]);
    let running = eventually("made-up names have both forms", Duration::from_secs(30), || {
        let forms: BTreeSet<(u32, usize)> = MADE_UP.iter().map(|name| form(&one, name)).collect();
        (forms == both).then(|| MADE_UP.map(|name| shown(&one, name)))
    });
    assert_eq!(MADE_UP.map(|name| shown(&one, name)), running, "they change between attempts");
    // Also while the cluster sleeps, and for a role that may not sign in.
    admin.query("create role retired nologin password 'something-long'").unwrap();
    assert!(both.contains(&form(&one, "retired")));
    drop(admin);
    one.sleep();
    assert_eq!(MADE_UP.map(|name| shown(&one, name)), running, "they change when the cluster sleeps");
    assert_eq!(form(&one, "maria"), own);
    let unknown = Cluster { handle: "no-such-cluster-81".to_owned(), ..one.clone() };
    assert_eq!(form(&unknown, "maria"), usual, "a cluster that does not exist is like most");
}

/// Nanoseconds from many startup messages at once until all of them are answered.
fn answered_after(asked: &Cluster<'_>) -> u128 {
    const AT_ONCE: usize = 100;
    let own = asked.parameters();
    let all: Vec<(&str, &str)> = own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let message = startup(PROTOCOL_3_0, &all);
    let mut wires: Vec<Wire> = (0..AT_ONCE).map(|_| cloud().encrypted()).collect();
    let begun = Instant::now();
    for wire in &mut wires {
        wire.send_raw(&message).unwrap();
    }
    for wire in &mut wires {
        wire.expect_message().unwrap();
    }
    begun.elapsed().as_nanos()
}

pub fn t31_many_who_ask_at_once_do_not_make_a_running_cluster_show() {
    let running = cluster().with_user("maria", "wrong");
    let _awake = cluster().sign_in();
    let unknown = Cluster { handle: "no-such-cluster-82".to_owned(), ..running.clone() };
    let (mut of_running, mut of_unknown) = (Vec::new(), Vec::new());
    for turn in 0..30 {
        if turn % 2 == 0 {
            of_running.push(answered_after(&running));
        }
        of_unknown.push(answered_after(&unknown));
        if turn % 2 == 1 {
            of_running.push(answered_after(&running));
        }
    }
    let tell = superiority(&of_running, &of_unknown);
    println!("  100 at once, a running cluster against none: {tell:.3} (a half is no difference)");
    // One question to the engine for each of them made every value of the running cluster larger. What is left on a quiet machine,
    // 0.55 to 0.75, are some microseconds for each of a hundred.
    assert!((0.14..=0.86).contains(&tell), "a running cluster can be told by many at once: {tell:.3}");
}
