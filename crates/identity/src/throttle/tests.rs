//! Tests of the throttle: people who mistype, neighbours, and attackers who know how it works.

use super::*;

const TARGET: &str = "shop-1";

fn at(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn attempt<'a>(user: &'a str, address: &str) -> Attempt<'a> {
    Attempt { cluster: TARGET, user, address: at(address) }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn throttle() -> (Throttle, Instant) {
    (Throttle::new(Settings::default()), Instant::now())
}

const GO: Verdict = Verdict::Go { wait: Duration::ZERO };

fn is_refused(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Refuse { .. })
}

fn fail(throttle: &Throttle, attempt: &Attempt<'_>, times: u32, now: Instant) {
    for _ in 0..times {
        throttle.failed(attempt, now);
    }
}

#[test]
fn failures_are_free_then_slow_then_refused_for_a_doubling_time() {
    let (throttle, now) = throttle();
    let maria = attempt("maria", "203.0.113.7");
    for _ in 0..5 {
        assert_eq!(throttle.check(&maria, now), GO);
        throttle.failed(&maria, now);
    }
    assert_eq!(throttle.check(&maria, now), GO);
    let mut now = now;
    for (failures, cost) in [(6_u32, 1_u64), (7, 2)] {
        throttle.failed(&maria, now);
        assert_eq!(throttle.check(&maria, now), Verdict::Go { wait: seconds(cost) }, "{failures}");
        now += seconds(10);
    }
    for (failures, cost) in [(8, 4), (9, 8), (10, 16), (11, 32)] {
        throttle.failed(&maria, now);
        assert_eq!(throttle.check(&maria, now), Verdict::Refuse { retry_after: seconds(cost) }, "{failures}");
        assert!(is_refused(throttle.check(&maria, now + seconds(cost - 1) + Duration::from_millis(999))));
        assert!(!is_refused(throttle.check(&maria, now + seconds(cost))));
        now += seconds(cost + 4);
    }
    fail(&throttle, &maria, 100, now);
    assert_eq!(throttle.check(&maria, now), Verdict::Refuse { retry_after: seconds(3_600) });
    assert!(is_refused(throttle.check(&maria, now + seconds(3_599))));
    // And it is forgotten.
    let later = now + seconds(3_600 * 2 + 5);
    assert_eq!(throttle.check(&maria, later), GO);
    throttle.failed(&maria, later);
    assert_eq!(throttle.list(later).iter().map(|line| line.failures).max(), Some(1));
}

#[test]
fn whoever_gets_in_has_nothing_left_to_pay() {
    let (throttle, now) = throttle();
    let maria = attempt("maria", "203.0.113.7");
    fail(&throttle, &maria, 7, now);
    throttle.succeeded(&maria, now);
    assert_eq!(throttle.check(&maria, now), GO);
    assert!(throttle.list(now).is_empty(), "{:?}", throttle.list(now));
    // Known, but guessing from there is still slowed and refused.
    fail(&throttle, &maria, 5, now);
    assert_eq!(throttle.check(&maria, now), GO);
    fail(&throttle, &maria, 10, now);
    assert!(is_refused(throttle.check(&maria, now)));
}

#[test]
fn t66_what_is_not_a_wrong_proof_counts_nothing() {
    let (throttle, now) = throttle();
    let maria = attempt("maria", "203.0.113.7");
    for _ in 0..1_000 {
        assert_eq!(throttle.check(&maria, now), GO);
    }
    assert!(throttle.list(now).is_empty());
    fail(&throttle, &maria, 12, now);
    let later = now + seconds(64);
    // Somebody who was let in and whose engine did not start is not held up for long.
    assert_eq!(throttle.check(&maria, later), GO);
    assert!(is_refused(throttle.check(&maria, later)));
    assert_eq!(throttle.check(&maria, later + seconds(2)), GO);
}

#[test]
fn t67_the_owner_gets_in_from_elsewhere_while_an_address_attacks() {
    let (throttle, now) = throttle();
    let attacker = attempt("maria", "198.51.100.66");
    fail(&throttle, &attacker, 50, now);
    assert!(is_refused(throttle.check(&attacker, now)));
    match throttle.check(&attempt("maria", "203.0.113.7"), now) {
        Verdict::Go { wait } => assert!(wait <= seconds(4), "{wait:?}"),
        refused @ Verdict::Refuse { .. } => panic!("{refused:?}"),
    }
    // From where it signed in before, the owner does not even wait.
    let home = attempt("maria", "203.0.113.8");
    throttle.succeeded(&home, now);
    assert_eq!(throttle.check(&home, now), GO);
    // Others of the cluster do not notice, and nor do other clusters.
    assert_eq!(throttle.check(&attempt("tom", "203.0.113.7"), now), GO);
    let elsewhere = Attempt { cluster: "other-2", ..attacker };
    assert_eq!(throttle.check(&elsewhere, now), GO);
}

#[test]
fn a_user_who_is_guessed_from_many_addresses_is_slowed_and_each_of_them_pays_at_once() {
    let (throttle, now) = throttle();
    for number in 0..=255_u8 {
        let address = IpAddr::from([198, 51, 100, number]);
        throttle.failed(&Attempt { cluster: TARGET, user: "maria", address }, now);
    }
    assert_eq!(throttle.check(&attempt("maria", "203.0.113.7"), now), Verdict::Go { wait: seconds(4) });
    // One typing error of the owner costs it a moment, guesses cost their address more and more.
    let owner = attempt("maria", "203.0.113.7");
    throttle.failed(&owner, now);
    assert_eq!(throttle.check(&owner, now), Verdict::Go { wait: seconds(4) });
    fail(&throttle, &owner, 3, now);
    assert!(is_refused(throttle.check(&owner, now)));
    let line = throttle.list(now).into_iter().find(|line| line.address.is_none()).unwrap();
    assert_eq!((line.user.as_deref(), line.failures, line.state), (Some("maria"), 260, State::Slowed));
}

#[test]
fn neighbours_behind_one_address_do_not_lock_out_who_was_there_before() {
    let (throttle, now) = throttle();
    let maria = attempt("maria", "203.0.113.7");
    throttle.succeeded(&maria, now);
    for user in ["a", "b", "c", "d"] {
        fail(&throttle, &attempt(user, "203.0.113.7"), 30, now);
    }
    assert_eq!(throttle.check(&maria, now), GO);
    assert!(is_refused(throttle.check(&attempt("e", "203.0.113.7"), now)));
}

#[test]
fn an_account_of_ones_own_does_not_wash_away_guesses_at_others() {
    let (throttle, now) = throttle();
    let (own, victim) = (attempt("mallory", "198.51.100.66"), attempt("maria", "198.51.100.66"));
    for _ in 0..20 {
        throttle.failed(&victim, now);
        throttle.succeeded(&own, now);
    }
    assert!(is_refused(throttle.check(&victim, now)));
    assert!(is_refused(throttle.check(&attempt("tom", "198.51.100.66"), now)));
}

#[test]
fn many_connections_at_once_do_not_get_more_guesses_than_one() {
    let (throttle, now) = throttle();
    let maria = attempt("maria", "198.51.100.66");
    fail(&throttle, &maria, 6, now);
    let waits: Vec<Duration> = (0..100)
        .filter_map(|_| match throttle.check(&maria, now) {
            Verdict::Go { wait } => Some(wait),
            Verdict::Refuse { .. } => None,
        })
        .collect();
    assert_eq!(waits, [seconds(1), seconds(2), seconds(3), seconds(4)]);
    fail(&throttle, &maria, 6, now);
    let later = now + seconds(100);
    assert_eq!((0..100).filter(|_| throttle.check(&maria, later) == GO).count(), 1);
}

#[test]
fn whoever_was_let_in_is_heard_unless_others_failed_meanwhile() {
    let (throttle, now) = throttle();
    let maria = attempt("maria", "203.0.113.7");
    // Whatever it had to pay, it is heard after it has paid, and heard once.
    for failures in 1..14 {
        throttle.failed(&maria, now);
        let mut then = now;
        let heard_at = loop {
            match throttle.check(&maria, then) {
                Verdict::Go { wait } => {
                    let heard_at = then;
                    then += wait;
                    break heard_at;
                }
                Verdict::Refuse { retry_after } => then += retry_after,
            }
        };
        assert_eq!(throttle.recheck(&maria, heard_at, then + seconds(1)), GO, "{failures}");
        throttle.clear(&Filter::default());
        fail(&throttle, &maria, failures, now);
    }
    // Many that were let in before anybody failed: the wrong proofs of the first count against the others.
    throttle.clear(&Filter::default());
    let heard = (0..50).filter(|_| {
        let is_heard = throttle.recheck(&maria, now, now + seconds(1)) == GO;
        if is_heard {
            throttle.failed(&maria, now + seconds(1));
        }
        is_heard
    });
    assert_eq!(heard.count(), 8);
    // And who was let in one by one, but waited to prove all at once, is looked at one by one.
    let later = now + seconds(60);
    let heard_at: Vec<Instant> = (0..8).map(|number| later + seconds(4 * number)).collect();
    for moment in &heard_at {
        assert!(!is_refused(throttle.check(&maria, *moment)));
    }
    let proving = later + seconds(40);
    let heard = heard_at.iter().filter(|moment| throttle.recheck(&maria, **moment, proving) == GO);
    assert_eq!(heard.count(), 1);
    // A neighbour at the same address as another user waits for it, too; others do not.
    assert!(is_refused(throttle.recheck(&attempt("bob", "203.0.113.7"), proving, proving)));
    assert_eq!(throttle.recheck(&attempt("maria", "203.0.113.8"), proving, proving), GO);
}

#[test]
fn addresses_are_counted_by_what_one_customer_has() {
    let (throttle, now) = throttle();
    fail(&throttle, &attempt("maria", "2001:db8:1:2::1"), 20, now);
    assert!(is_refused(throttle.check(&attempt("tom", "2001:db8:1:2:ffff::9"), now)), "the same /64");
    assert_eq!(throttle.check(&attempt("tom", "2001:db8:1:3::1"), now), GO);
    fail(&throttle, &attempt("maria", "::ffff:203.0.113.7"), 20, now);
    assert!(is_refused(throttle.check(&attempt("maria", "203.0.113.7"), now)), "IPv4 in IPv6 form is IPv4");
    let lines = throttle.list(now);
    let shown: Vec<&str> = lines.iter().filter_map(|line| line.address.as_deref()).collect();
    assert!(shown.contains(&"2001:db8:1:2::/64") && shown.contains(&"203.0.113.7"), "{shown:?}");
}

#[test]
fn an_address_that_makes_up_clusters_does_not_begin_anew_at_each() {
    let (throttle, now) = throttle();
    let names: Vec<String> = (0..1_000).map(|number| format!("made-up-{number}")).collect();
    let at_each = |address: &str| {
        let made_up = |name| Attempt { cluster: name, user: "maria", address: at(address) };
        names
            .iter()
            .filter(|name| {
                let attempt = made_up(name.as_str());
                let goes = !is_refused(throttle.check(&attempt, now));
                if goes {
                    throttle.failed(&attempt, now);
                }
                goes
            })
            .count()
    };
    assert!(at_each("198.51.100.66") <= 64 + 10);
    assert!(is_refused(throttle.check(&attempt("maria", "198.51.100.66"), now)), "nor at one that exists");
    assert_eq!(throttle.check(&attempt("maria", "203.0.113.7"), now), GO);
    // The /64s of one IPv6 site have 64 counts together.
    let sites = (0..500_u32).filter(|number| {
        let name = format!("other-{number}");
        let address: IpAddr = format!("2001:db8:7:{number:x}::1").parse().unwrap();
        let attempt = Attempt { cluster: &name, user: "maria", address };
        let goes = !is_refused(throttle.check(&attempt, now));
        if goes {
            throttle.failed(&attempt, now);
        }
        goes
    });
    assert!(sites.count() <= 64 + 10);
    let lines = throttle.list(now);
    assert!(
        lines.iter().any(|line| line.cluster == "*" && line.address.as_deref() == Some("2001:db8:7::/48"))
    );
    // The operator can forgive it by its address.
    let filter = Filter { address: Some(at("198.51.100.66")), ..Filter::default() };
    assert!(throttle.clear(&filter) > 64);
    assert_eq!(throttle.check(&attempt("maria", "198.51.100.66"), now), GO);
}

#[test]
fn t70_memory_is_bounded_and_made_up_names_do_not_wash_away_a_penalty() {
    let settings = Settings { entries_max: 5_000, ..Settings::default() };
    let (throttle, now) = (Throttle::new(settings), Instant::now());
    let attacker = attempt("maria", "198.51.100.66");
    fail(&throttle, &attacker, 20, now);
    let long = "x".repeat(10_000);
    for number in 0..100_000_u32 {
        let name = format!("made-up-{number}-{long:.100}");
        let address = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        throttle.failed(&Attempt { cluster: &name, user: &name, address }, now);
        if number % 100 == 0 {
            throttle.succeeded(&Attempt { cluster: TARGET, user: &name, address }, now);
        }
        if number % 10_000 == 0 {
            assert!(throttle.list(now).len() <= 3_000);
        }
    }
    // The attacker's own address, and from others too, which must wait as long as the user is being guessed.
    assert!(is_refused(throttle.check(&attacker, now)));
    assert_eq!(throttle.check(&attempt("maria", "203.0.113.7"), now), Verdict::Go { wait: seconds(4) });
    assert!(throttle.list(now).iter().all(|line| line.cluster.len() <= NAME_BYTES_MAX));
    let counts = throttle.counts();
    assert!(counts.known.len() <= 1_000 && counts.sites.len() <= 1_000 && counts.len() <= 3_000);
}

#[test]
fn t71_attempts_that_come_to_nothing_leave_nothing() {
    let (throttle, now) = throttle();
    for number in 0..1_000_u32 {
        let address = IpAddr::from(number.to_be_bytes());
        let _ = throttle.check(&Attempt { cluster: TARGET, user: "maria", address }, now);
    }
    let counts = throttle.counts();
    assert_eq!((counts.len(), counts.sites.len(), counts.known.len()), (0, 0, 0));
}

#[test]
fn typing_errors_of_a_whole_office_are_forgotten_one_by_one() {
    let (throttle, mut now) = throttle();
    for number in 0..200 {
        let user = format!("user-{number}");
        let attempt = attempt(&user, "203.0.113.7");
        assert!(!is_refused(throttle.check(&attempt, now)), "{number}");
        throttle.failed(&attempt, now);
        now += seconds(700);
    }
}

#[test]
fn lines_say_what_the_next_attempt_meets() {
    let (throttle, now) = throttle();
    let own = |lines: Vec<Line>| {
        lines
            .into_iter()
            .find(|line| line.user.is_none())
            .map(|line| (line.failures, line.state, line.remaining))
    };
    let maria = attempt("maria", "203.0.113.7");
    fail(&throttle, &maria, 5, now);
    assert_eq!(own(throttle.list(now)), Some((5, State::Counted, None)));
    throttle.failed(&maria, now);
    assert_eq!(own(throttle.list(now)), Some((6, State::Slowed, Some(seconds(1)))));
    fail(&throttle, &maria, 3, now);
    assert_eq!(own(throttle.list(now)), Some((9, State::Refused, Some(seconds(8)))));
    assert_eq!(own(throttle.list(now + seconds(8))), Some((9, State::Counted, None)));
    assert_eq!(throttle.list(now).len(), 3);
    assert_eq!(throttle.list(now + seconds(8_000)), []);
    assert_eq!(
        [State::Counted, State::Slowed, State::Refused].map(State::as_str),
        ["counted", "slowed", "refused"]
    );
}

#[test]
fn what_the_operator_forgives_is_forgiven_and_nothing_else() {
    let (throttle, now) = throttle();
    let (maria, tom) = (attempt("maria", "203.0.113.7"), attempt("tom", "198.51.100.66"));
    let other = Attempt { cluster: "other-2", ..maria };
    let begin = || {
        throttle.clear(&Filter::default());
        for attempt in [&maria, &tom, &other] {
            fail(&throttle, attempt, 20, now);
        }
    };
    let refused = || [&maria, &tom, &other].map(|attempt| is_refused(throttle.check(attempt, now)));
    begin();
    assert_eq!(refused(), [true, true, true]);
    assert_eq!(throttle.clear(&Filter::default()), 9);
    assert_eq!((refused(), throttle.list(now).len()), ([false; 3], 0));
    begin();
    assert_eq!(throttle.clear(&Filter { cluster: Some(TARGET.to_owned()), ..Filter::default() }), 6);
    assert_eq!(refused(), [false, false, true]);
    begin();
    // The address failed as her only, so it is free again, here and there.
    assert_eq!(throttle.clear(&Filter { user: Some("maria".to_owned()), ..Filter::default() }), 6);
    assert_eq!(refused(), [false, true, false]);
    begin();
    assert_eq!(throttle.clear(&Filter { address: Some(at("::ffff:198.51.100.66")), ..Filter::default() }), 3);
    assert_eq!(refused(), [true, false, true]);
    begin();
    fail(&throttle, &attempt("lea", "203.0.113.7"), 20, now);
    let filter = Filter { cluster: Some(TARGET.to_owned()), user: Some("maria".to_owned()), address: None };
    throttle.clear(&filter);
    assert!(is_refused(throttle.check(&maria, now)), "the address failed as somebody else too");
    assert_eq!(throttle.clear(&Filter { user: Some("nobody".to_owned()), ..Filter::default() }), 0);
}

#[test]
fn odd_settings_and_times_do_no_harm() {
    let settings = Settings {
        free_failures: 0,
        base: Duration::MAX,
        max: Duration::MAX,
        forget_after: Duration::ZERO,
        entries_max: 0,
        ..Settings::default()
    };
    let (throttle, now) = (Throttle::new(settings), Instant::now());
    let maria = attempt("maria", "203.0.113.7");
    fail(&throttle, &maria, 100, now);
    let _ = throttle.check(&maria, now);
    let _ = throttle.check(&maria, now.checked_sub(seconds(1)).unwrap_or(now));
    let none = Throttle::new(Settings { base: Duration::ZERO, ..Settings::default() });
    fail(&none, &maria, 100, now);
    assert_eq!(none.check(&maria, now), GO);
    let odd = Attempt { cluster: "", user: &"ä".repeat(100), address: at("::") };
    fail(&none, &odd, 10, now);
    assert!(none.list(now).iter().all(|line| line.user.as_ref().is_none_or(|user| user.len() <= 64)));
}
