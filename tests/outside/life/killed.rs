//! A killed program leaves nothing open, and what happens to a volume while the cluster runs is noticed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use house::cloud::PATIENCE;
use house::command::eventually;
use house::machine::{self, Process};
use house::{Cloud, Cluster, Options};
use rustix::process::Signal;

fn servers(cloud: &Cloud) -> Vec<Process> {
    let mut found = machine::processes_naming(&cloud.data().join("clusters"));
    found.retain(|process| {
        std::fs::read_to_string(format!("/proc/{}/comm", process.pid))
            .is_ok_and(|name| name.trim() == "gocryptfs")
    });
    found
}

/// A cluster with a row in it, whose volume is unlocked now.
fn unlocked<'cloud>(cloud: &'cloud Cloud, name: &str) -> Cluster<'cloud> {
    let one = cloud.cluster(name, &[]);
    one.sign_in().query("create table t as select 42 as x").expect("a table");
    assert!(!cloud.mounts().is_empty(), "nothing is mounted, so nothing can be shown");
    one
}

/// Kills the program alone, and waits until nothing of the cloud is left on the machine.
fn is_locked_after_a_kill(cloud: &Cloud, what: &str) {
    let (companion, of_the_cloud) = (cloud.companion(), cloud.processes());
    let begun = Instant::now();
    cloud.kill_at_once();
    eventually("everything is locked", PATIENCE, || {
        let left = machine::leftovers(&cloud.data(), &of_the_cloud);
        left.is_empty().then_some(())
    });
    println!("  {what}: locked {} ms after the kill", begun.elapsed().as_millis());
    assert!(!companion.is_alive(), "it has nothing left to do");
    let said = eventually("the companion says what it did", PATIENCE, || {
        cloud.log().lines().rev().find(|line| line.starts_with("companion: ")).map(str::to_owned)
    });
    assert!(said.contains("were locked in"), "{said}");
}

fn kinds() -> [Options; 2] {
    // What this machine gives by itself, and what an ordinary user has too.
    [Options::default(), Options::with(&["--encryption", "gocryptfs"])]
}

pub fn a_killed_cloud_leaves_nothing_unlocked() {
    for (options, what) in kinds().into_iter().zip(["the default", "gocryptfs"]) {
        let cloud = Cloud::start(options);
        let one = unlocked(&cloud, "left-open");
        is_locked_after_a_kill(&cloud, what);
        cloud.boot();
        assert_eq!(
            eventually("it starts", PATIENCE, || one.try_sign_in().ok()).value("select x from t"),
            "42"
        );
    }
}

pub fn a_cloud_that_is_killed_and_started_at_once_again_and_again_never_meets_its_companion() {
    for options in kinds() {
        let cloud = Cloud::start(options);
        let one = unlocked(&cloud, "at-once");
        for _ in 0..5 {
            cloud.kill_at_once();
            cloud.boot();
            let mut session = eventually("it starts", PATIENCE, || one.try_sign_in().ok());
            assert_eq!(session.value("select x from t"), "42");
        }
        // Nobody locks under it what it has unlocked.
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(one.sign_in().value("select x from t"), "42");
        cloud.companion();
    }
}

pub fn a_companion_that_is_killed_is_said_and_replaced_and_locks_everything_all_the_same() {
    let cloud = Cloud::plain();
    let one = unlocked(&cloud, "minded");
    let mut session = one.sign_in();
    let first = cloud.companion();
    first.signal(Signal::KILL);
    let second = eventually("another is there", PATIENCE, || {
        let found = cloud
            .processes()
            .into_iter()
            .find(|process| *process != first && process.command_line().starts_with("chitin: companion"))?;
        let capabilities = cloud.json(["status"]).to_string();
        capabilities.contains(&format!("process {} locks", found.pid)).then_some(found)
    });
    assert!(cloud.log().contains("the companion ended unexpectedly"), "{}", cloud.log_end());
    assert_eq!(session.value("select x from t"), "42", "sessions go on");
    assert_eq!(cloud.companion(), second);
    drop(session);
    is_locked_after_a_kill(&cloud, "with another companion");
    cloud.boot();
    // A stop in good order ends it too.
    let third = cloud.companion();
    cloud.stop();
    assert!(!third.is_alive());
    assert!(
        !cloud.log_end().lines().any(|line| line.starts_with("companion: ") && line.contains("could not"))
    );
}

pub fn a_gocryptfs_that_is_killed_is_noticed_and_its_cluster_comes_back_by_itself() {
    let cloud = Cloud::start(Options::with(&["--encryption", "gocryptfs"]));
    let one = unlocked(&cloud, "served");
    let other = unlocked(&cloud, "not-concerned");
    let (mut session, mut neighbour) = (one.sign_in(), other.sign_in());
    let of_one = servers(&cloud).into_iter().find(|process| process.command_line().contains(&one.id));
    let begun = Instant::now();
    of_one.expect("a server").signal(Signal::KILL);
    let told = eventually("the session hears why", PATIENCE, || session.query("select 1").err());
    println!("  noticed after {} ms", begun.elapsed().as_millis());
    // Whoever asks in the moment before it is noticed hears it from the engine itself, in its words, or that it ended for that.
    assert_ne!(told.code, "42P01", "{told:?}");
    let is_said = ["volume was lost", "engine ended"].iter().any(|words| told.message.contains(words));
    assert!(told.code != "57P01" || is_said, "{told:?}");
    eventually("the log says why", PATIENCE, || {
        cloud.log().contains("the cluster's volume is lost").then_some(())
    });
    let mut back = eventually("it comes back by itself", PATIENCE, || one.try_sign_in().ok());
    assert_eq!(back.value("select x from t"), "42");
    assert_eq!(neighbour.value("select x from t"), "42", "others are not concerned");
    assert_eq!(one.phase(), "running");
    let alerts = cloud.json(["status"])["alerts"].to_string();
    assert!(!alerts.contains("volume"), "{alerts}");
}

pub fn a_gocryptfs_that_stands_still_is_told_and_goes_on() {
    let cloud = Cloud::start(Options::with(&["--encryption", "gocryptfs"]));
    let one = unlocked(&cloud, "stands-still");
    let mut session = one.sign_in();
    let backend = session.value("select pg_backend_pid()");
    let server = servers(&cloud).into_iter().find(|process| process.command_line().contains(&one.id));
    let server = server.expect("a server");
    server.signal(Signal::STOP);
    let begun = Instant::now();
    eventually("the log says that it does not answer", PATIENCE, || {
        cloud.log().contains("the cluster's volume does not answer").then_some(())
    });
    println!("  told after {} ms", begun.elapsed().as_millis());
    server.signal(Signal::CONT);
    eventually("the log says that it answers", PATIENCE, || {
        cloud.log().contains("the cluster's volume answers again").then_some(())
    });
    // A machine that is overloaded is no reason to end an engine.
    assert_eq!(session.value("select x from t"), "42");
    assert_eq!(session.value("select pg_backend_pid()"), backend);
    assert!(!cloud.log().contains("the cluster's volume is lost"), "{}", cloud.log_end());
}

pub fn an_idle_session_hears_that_the_volume_was_lost() {
    let cloud = Cloud::plain();
    let one = unlocked(&cloud, "taken-away");
    let mut session = one.sign_in();
    assert_eq!(session.value("select 1"), "1");
    let place: PathBuf = cloud.mounts().into_iter().next().expect("a mount").into();
    let mut unmount = std::process::Command::new("nsenter");
    unmount.args(["-t", &cloud.pid().to_string(), "-m", "umount", "-l"]).arg(&place);
    assert!(unmount.status().expect("nsenter").success());
    eventually("the log says why", PATIENCE, || cloud.log().contains("somebody unmounted it").then_some(()));
    // The engine still has the mount, so sessions go on until they are cut.
    let told = eventually("the session is cut", PATIENCE, || session.query("select 1").err());
    assert_eq!(told.code, "57P01", "{told:?}");
    assert!(told.message.contains("volume was lost"), "{told:?}");
    let mut back = eventually("it comes back by itself", PATIENCE, || one.try_sign_in().ok());
    assert_eq!(back.value("select x from t"), "42");
}
