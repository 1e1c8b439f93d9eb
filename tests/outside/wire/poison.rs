//! A tenant who tries to make others' clusters show: its engine is slow, its verifiers are dear, and it signs in again and
//! again, while a stranger measures.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use house::cloud::Options;
use house::machine::Process;
use house::scram::{self, Exchange};
use house::{Cloud, Cluster};
use rustix::process::{Pid, Signal, kill_process};

use super::sign_in::{refusal_time, superiority};

/// Refusals of each kind.
const COUNT: usize = 300;
/// For so long the tenant's engine stands still, again and again: longer than any look-up is levelled to.
const STILL: Duration = Duration::from_millis(45);

/// Stops and continues every process of the engine, until it is told to end.
fn stutter(engine: &[Process], is_over: &AtomicBool) {
    let signal = |signal| {
        for process in engine {
            // A session's may have ended meanwhile.
            let _ = kill_process(Pid::from_raw(process.pid.cast_signed()).expect("not zero"), signal);
        }
    };
    while !is_over.load(Ordering::Relaxed) {
        signal(Signal::STOP);
        thread::sleep(STILL);
        signal(Signal::CONT);
        thread::sleep(Duration::from_millis(4));
    }
}

/// Fails to sign in again and again, and says how often a look-up took as long as the engine stood still.
fn sign_in_again_and_again(one: &Cluster<'_>, is_over: &AtomicBool) -> usize {
    let mut slow = 0;
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut wire = one.knock();
        wire.expect_message().unwrap();
        scram::ask(&mut wire, &Exchange::unbound("wrong")).unwrap();
        slow += usize::from(begun.elapsed() >= STILL);
    }
    slow
}

pub fn t31_a_tenant_with_a_slow_engine_makes_no_other_cluster_show() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let (mine, running) = (cloud.cluster("poisoner", &[]), cloud.cluster("victim-runs", &[]));
    let sleeping = cloud.cluster("victim-sleeps", &[]);
    let verifier = scram::verifier("word", b"0123456789abcdef", 1_000_000);
    mine.sign_in().query(&format!("alter role maria password '{verifier}'")).unwrap();
    // A session keeps a serverless cluster from falling asleep.
    let _awake = (mine.with_new_user("awake").sign_in(), running.with_new_user("awake").sign_in());
    sleeping.sleep();
    let unknown = Cluster { handle: "no-such-cluster-79".to_owned(), ..running.clone() };
    let people = [
        ("a running cluster", running.with_user("maria", "wrong")),
        ("an unknown user of it", running.with_user("nobody_here", "wrong")),
        ("a sleeping cluster", sleeping.with_user("maria", "wrong")),
        ("an unknown user of that", sleeping.with_user("nobody_here", "wrong")),
        ("an unknown cluster", unknown.with_user("maria", "wrong")),
    ];
    let engine: Vec<Process> = (mine.engine_processes().iter())
        .flat_map(|process| [vec![*process], house::machine::descendants(process.pid)].concat())
        .filter(|process| process.command_line().contains("postgres"))
        .collect();
    assert!(engine.len() > 1, "the tenant's engine is found: {engine:?}");

    let is_over = AtomicBool::new(false);
    let mut times: Vec<Vec<u128>> = vec![Vec::new(); people.len()];
    let slow = thread::scope(|scope| {
        scope.spawn(|| stutter(&engine, &is_over));
        let tenant = scope.spawn(|| sign_in_again_and_again(&mine, &is_over));
        for turn in 0..COUNT {
            // They take turns in different orders, so that a busy machine, and what came just before, weigh on all alike.
            for place in 0..people.len() {
                let person = if turn % 2 == 0 { place } else { people.len() - 1 - place };
                let person = (person + turn / 2) % people.len();
                times[person].push(refusal_time(&people[person].1));
            }
        }
        is_over.store(true, Ordering::Relaxed);
        tenant.join().expect("the tenant's attempts")
    });
    assert!(slow > COUNT / 10, "the tenant's own look-ups are slow: {slow}");
    assert_eq!((running.phase(), sleeping.phase()), ("running".to_owned(), "asleep".to_owned()));
    for (index, (what, _)) in people.iter().enumerate().skip(1) {
        let tell = superiority(&times[0], &times[index]);
        println!("  {what} against {}: {tell:.3} (a half is no difference)", people[0].0);
        // With 300 values each, chance alone stays within 0.5 ± 0.12 but once in three million runs.
        assert!((0.38..=0.62).contains(&tell), "{what} can be told by time: {tell:.3}");
    }
}
