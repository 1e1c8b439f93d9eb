//! The machine's clock is set while a cloud runs, forward and back, also where it was wrong from the first start on.

use house::clock::Clock;
use house::cloud::{Cluster, PATIENCE};
use house::command::{eventually, run};
use house::ledger::Ledger;
use house::runner::skip;
use house::{Cloud, Options};

/// Set where the machine is the tests' own, as by `tests/vm`.
const OWN_MACHINE: &str = "CHITIN_TESTS_OWN_MACHINE";
const HOUR: i64 = 3_600;
const YEAR: i64 = 365 * 24 * HOUR;

fn with(clock: &Clock) -> Options {
    Options { clock: Some(clock.clone()), ..Options::unencrypted(&[]) }
}

/// Everybody who checks certificates gets in, at once: the command line over its socket and over TCP, a client of the API with
/// the root that it was given, and SQL clients that check the root's span too, as libpq does.
fn everybody_gets_in(cluster: &Cluster<'_>, when: &str) {
    let cloud = cluster.cloud;
    cloud.chitin(["cluster", "list"]).ok();
    let url = format!("https://localhost:{}", cloud.http_address().port());
    let ca = cloud.root_certificate();
    let key = std::fs::read_to_string(cloud.data().join("admin-key")).expect("the administrator's key");
    let mut command = cloud.program(house::cloud::program());
    command.args(["cluster", "list", "--url", &url, "--ca"]).arg(ca).env("CHITIN_API_KEY", key.trim());
    run(&mut command).ok();
    // Not by a client in this process, whose clock is right.
    let mut command = cloud.program("curl");
    command.arg("--cacert").arg(cloud.root_certificate());
    command.args(["-H", &format!("Authorization: Bearer {}", key.trim())]).arg(cloud.web("/api/v1/clusters"));
    house::api::curl(&mut command, None).ok();
    assert_eq!(cluster.psql("select 7").ok().trim(), "7", "{when}");
}

/// The log says that the clock was set this way, for the so-manieth time.
fn the_log_says(cloud: &Cloud, direction: &str, times: usize) {
    let text = format!("the machine's clock was set {direction}");
    eventually(&format!("{text}, {times} times"), PATIENCE, || {
        (cloud.log().matches(&text).count() >= times).then_some(())
    });
}

pub fn a_clock_that_is_put_right_again_locks_nobody_out() {
    // The first start is a year ahead: the root is made then.
    let clock = Clock::ahead(YEAR);
    let cloud = Cloud::start(with(&clock));
    let cluster = cloud.cluster("time-traveller", &[]);
    let root = std::fs::read_to_string(cloud.root_certificate()).expect("the root");
    everybody_gets_in(&cluster, "a year ahead");

    clock.set(0);
    everybody_gets_in(&cluster, "put right");
    cluster.sign_in();
    the_log_says(&cloud, "back", 1);
    assert!(cloud.log().contains("the machine's certificate would not be valid yet: it is issued anew"));

    // Ahead and right again while it runs, as a bad time server does it, and behind.
    let ledger = Ledger::open(&cluster);
    ledger.during(|| {
        clock.set(YEAR);
        everybody_gets_in(&cluster, "a year ahead again");
        the_log_says(&cloud, "forward", 1);
        clock.set(-YEAR);
        everybody_gets_in(&cluster, "a year behind");
        clock.set(0);
        everybody_gets_in(&cluster, "right in the end");
    });
    ledger.is_kept();
    assert_eq!(std::fs::read_to_string(cloud.root_certificate()).expect("the root"), root, "pinned once");
    cloud.stop();
    cloud.boot();
    everybody_gets_in(&cluster, "after a restart");
}

pub fn a_start_some_hours_ahead_that_is_corrected_locks_nobody_out() {
    let clock = Clock::ahead(0);
    let cloud = Cloud::start(with(&clock));
    let cluster = cloud.cluster("summer-time", &[]);
    cloud.stop();
    clock.set(3 * HOUR);
    cloud.boot();
    everybody_gets_in(&cluster, "three hours ahead");
    clock.set(0);
    everybody_gets_in(&cluster, "put right");
    cluster.sign_in();
}

pub fn the_kernel_says_at_once_that_the_machine_s_clock_was_set() {
    if std::env::var_os(OWN_MACHINE).is_none() {
        skip("the clock is everybody's on this machine; tests/vm sets that of a virtual machine");
    }
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let cluster = cloud.cluster("really-turned", &[]);
    let set = |by: &str| drop(run(std::process::Command::new("date").args(["--set", by])).ok());
    for (by, direction) in [("+400 days", "forward"), ("-400 days", "back")] {
        set(by);
        the_log_says(&cloud, direction, 1);
        let log = cloud.log();
        let line = log.lines().find(|line| line.contains(&format!("clock was set {direction}")));
        let line = line.unwrap_or_default();
        assert!(line.contains("was_told=true"), "not found by looking at it now and then: {line}");
        everybody_gets_in(&cluster, by);
    }
}
