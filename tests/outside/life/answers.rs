//! Engines that live and are of no use: nobody can open a session, or one of their processes does not go on.

use std::time::{Duration, Instant};

use house::cloud::PATIENCE;
use house::command::eventually;
use house::ledger::Ledger;
use house::{Cloud, Cluster, Options};
use rustix::process::Signal;

/// Less than PostgreSQL's own minute for a shutdown that somebody holds up.
const BOUND: Duration = Duration::from_secs(40);

fn await_again(cloud: &Cloud, one: &Cluster<'_>) {
    let alert = eventually("the operator is told", PATIENCE, || {
        let alerts = cloud.json(["status"])["alerts"].clone();
        let is_it = |alert: &&serde_json::Value| {
            alert["cluster"] == one.name.as_str()
                && alert["what"].to_string().contains("did not answer any more")
        };
        alerts.as_array()?.iter().find(is_it).cloned()
    });
    assert!(alert["since"].is_string(), "{alert}");
    let mut back = eventually("it is started again", PATIENCE, || one.try_sign_in().ok());
    assert_eq!(back.value("select x from t"), "42");
}

pub fn an_engine_that_lives_and_does_not_answer_is_started_again() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let (stopped, closed) = (cloud.cluster("stopped", &[]), cloud.cluster("without-a-socket", &[]));
    for one in [&stopped, &closed] {
        one.sign_in().query("create table t as select 42 as x").expect("a table");
    }
    let ledgers = [&stopped, &closed].map(Ledger::open);
    let [of_stopped, of_closed] = &ledgers;
    of_stopped.during(|| of_closed.during(|| stop_both(&cloud, &stopped, &closed)));
    ledgers.iter().for_each(Ledger::is_kept);
}

/// Stops the first process of one's engine, takes the other's socket away, and waits until both were started again.
fn stop_both(cloud: &Cloud, stopped: &Cluster<'_>, closed: &Cluster<'_>) {
    stopped.postmaster().signal(Signal::STOP);
    let number = closed.handle.rsplit_once('-').expect("a handle ends with its number").1;
    let run = cloud.data().join("run").join(number);
    let sockets = std::fs::read_dir(&run).expect("its folder").flatten().map(|entry| entry.path());
    for socket in sockets.filter(|path| path.to_string_lossy().contains(".s.PGSQL")) {
        std::fs::remove_file(socket).expect("it is there");
    }
    await_again(cloud, stopped);
    await_again(cloud, closed);
}

pub fn a_session_that_was_stopped_holds_up_neither_sleep_nor_deletion() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    for name in ["goes-to-sleep", "is-deleted"] {
        let one = cloud.cluster(name, &[]);
        let mut session = one.sign_in();
        session.query("create table t as select 42 as x").expect("a table");
        one.process_of(&mut session).signal(Signal::STOP);
        let begun = Instant::now();
        if name == "is-deleted" {
            cloud.chitin(["cluster", "delete", name, "--yes"]).ok();
            eventually("it is gone", PATIENCE, || one.engine_processes().is_empty().then_some(()));
        } else {
            one.sleep();
        }
        let took = begun.elapsed();
        assert!(took < BOUND, "{name}: {took:?}");
        if name == "goes-to-sleep" {
            assert_eq!(one.sign_in().value("select x from t"), "42", "what was acknowledged is there");
        }
    }
}
