//! The disk below all clusters has nothing left to give, and has again.

use std::fs;
use std::path::Path;
use std::process::Command;

use house::cloud::PATIENCE;
use house::command::{eventually, run};
use house::ledger::Ledger;
use house::{Cloud, Cluster, Options, Wire};

use super::disk::{goes_inside, leaves_nothing};

/// Of the disk.
const DISK_MIB: u64 = 6 << 10;
const FILL: &str = "insert into t select repeat('x', 900) from generate_series(1, 20000)";

/// Moves the data directory onto a small disk of its own.
fn move_to_small_disk(cloud: &Cloud) {
    let (data, real, image) = (cloud.data(), cloud.scratch().join("large"), cloud.scratch().join("disk"));
    fs::rename(&data, &real).expect("the same file system");
    fs::create_dir(&data).expect("a new directory");
    run(Command::new("truncate").arg("-s").arg(format!("{DISK_MIB}M")).arg(&image)).ok();
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image)).ok();
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&data)).ok();
    fs::remove_dir(data.join("lost+found")).expect("every new file system has it");
    run(Command::new("cp").args(["-a", "--no-target-directory"]).arg(&real).arg(&data)).ok();
}

fn free_mib(at: &Path) -> u64 {
    let facts = rustix::fs::statvfs(at).expect("it can be asked");
    (facts.f_bavail * facts.f_frsize) >> 20
}

/// What the machine keeps: a tenth of a disk that is so small.
fn reserve_mib(at: &Path) -> u64 {
    let facts = rustix::fs::statvfs(at).expect("it can be asked");
    (facts.f_blocks * facts.f_frsize / 10) >> 20
}

/// Takes all of the disk but so much. Nothing is written for it.
fn leave(data: &Path, mib: u64) {
    let bytes = (free_mib(data) - mib) << 20;
    run(Command::new("fallocate").arg("-l").arg(bytes.to_string()).arg(data.join("filler"))).ok();
}

fn is_refused_as_read_only(one: &Cluster<'_>) -> Option<()> {
    let refused = one.try_sign_in().ok()?.query("insert into t values ('x')").err()?;
    (refused.code == "25006").then_some(())
}

/// Says that it may write, and stores until it is told that it must not.
fn insist(mut session: Wire) -> String {
    session.query("set default_transaction_read_only = off").expect("a setting");
    loop {
        if let Err(refused) = session.query(FILL) {
            return refused.code;
        }
    }
}

pub fn a_watched_cluster_stores_nothing_more_while_the_machine_has_no_room_and_goes_on_when_it_has() {
    if goes_inside(
        "faults::room::a_watched_cluster_stores_nothing_more_while_the_machine_has_no_room_and_goes_on_when_it_has",
    ) {
        return;
    }
    // No file system holds a cluster without encryption back, as none holds one with gocryptfs.
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let (one, quiet) = (cloud.cluster("keeps-storing", &["--storage", "1"]), cloud.cluster("is-quiet", &[]));
    cloud.stop();
    move_to_small_disk(&cloud);
    cloud.boot();
    let mut session = eventually("it starts", PATIENCE, || one.try_sign_in().ok());
    session.query("create table t (x text)").expect("a table");
    session.query(FILL).expect("there is room");
    let mut neighbour = quiet.sign_in();
    neighbour.query("create table t as select 42 as x").expect("a table");

    let ledger = Ledger::open(&quiet);
    ledger.during(|| run_out_of_room(&cloud, &one, &quiet, session));
    ledger.is_kept();
    assert!(one.sign_in().value("select count(*) >= 19990 from t") == "t", "what was acknowledged is there");
    leaves_nothing(&cloud, &[cloud.data()]);
}

/// Takes the room, sees what becomes of who goes on storing and of its neighbour, and gives it back.
fn run_out_of_room(cloud: &Cloud, one: &Cluster<'_>, quiet: &Cluster<'_>, mut session: Wire) {
    let reserve = reserve_mib(&cloud.data());
    leave(&cloud.data(), reserve - 10);
    eventually("the machine notices", PATIENCE, || {
        cloud.log().contains("the machine's reserve of disk space is reached").then_some(())
    });
    // Whoever was storing is sent away, and who comes back reads, and deletes where he says so.
    eventually("the session was cut", PATIENCE, || session.query("select 1").err().map(drop));
    eventually("new transactions are read-only", PATIENCE, || is_refused_as_read_only(one));
    let mut session = one.sign_in();
    assert_eq!(session.value("select count(*) from t"), "20000");
    session.query("set default_transaction_read_only = off").expect("a setting");
    session.query("delete from t where ctid in (select ctid from t limit 10)").expect("deletion goes on");
    // Nothing new is made either.
    let refused = cloud.chitin(["cluster", "create", "one-more"]);
    assert!(!refused.status.success(), "{refused:?}");

    // Who goes on storing all the same is stopped long before the disk is full, and nobody else is.
    let before = free_mib(&cloud.data());
    let code = insist(session);
    assert!(!code.is_empty(), "it was told");
    eventually("the operator is told", PATIENCE, || {
        let alerts = cloud.json(["status"])["alerts"].to_string();
        alerts.contains("went on storing when the machine's disk had nothing left to give").then_some(())
    });
    let refused =
        eventually("nobody gets in", PATIENCE, || one.try_sign_in().err().filter(|no| no.code == "53100"));
    assert!(refused.message.contains("was stopped"), "{refused:?}");
    eventually("it has stopped", PATIENCE, || one.engine_processes().is_empty().then_some(()));
    // Whoever stores goes on until it is noticed, and on a busy machine that is later; the ledger writes a little as well.
    let after = free_mib(&cloud.data());
    assert!(after > reserve / 8, "{after} MiB of {before} are left of the reserve");
    let mut neighbour = eventually("the other one can be read", PATIENCE, || quiet.try_sign_in().ok());
    assert_eq!(neighbour.value("select x from t"), "42");

    // A restart forgets nothing of it.
    cloud.kill();
    cloud.boot();
    assert_eq!(one.try_sign_in().err().map(|no| no.code).as_deref(), Some("53100"));

    // With room again everything goes on by itself.
    fs::remove_file(cloud.data().join("filler")).expect("the filler");
    let write = |of: &Cluster<'_>| {
        let mut session = of.try_sign_in().ok()?;
        session.query("create table again (x int); drop table again").ok()
    };
    for of in [one, quiet] {
        eventually("it writes as before", PATIENCE, || write(of));
    }
    eventually("the alerts end", PATIENCE, || {
        (!cloud.json(["status"])["alerts"].to_string().contains("nothing left to give")).then_some(())
    });
}
