//! Storage limits as an operator and a tenant see them.

use std::path::Path;

use house::cloud::PATIENCE;
use house::command::{eventually, run};
use house::{Cloud, Options, Wire};

const FILL: &str = "insert into t select repeat('x', 900) from generate_series(1, 50000)";

/// What the alerts of the status say.
fn alerts(cloud: &Cloud) -> String {
    cloud.json(["status"])["alerts"].to_string()
}

/// Waits until an alert says this.
fn await_alert(cloud: &Cloud, text: &str) {
    eventually(text, PATIENCE, || alerts(cloud).contains(text).then_some(()));
}

/// Stores until that is refused.
fn fill(session: &mut Wire) -> String {
    loop {
        if let Err(refused) = session.query(FILL) {
            return refused.code;
        }
    }
}

/// A volume in an image of its own, which root can make.
pub fn a_full_cluster_is_told_refuses_what_grows_and_grows_when_it_may() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("filled", &["--storage", "1"]);
    if !cloud.data().join("clusters").join(&one.id).join("image").exists() {
        house::runner::skip("no volume of this machine has a file system of its own");
    }
    let mut session = one.sign_in();
    session.query("create table t (x text)").expect("a table");
    assert_eq!(fill(&mut session), "53100");
    await_alert(&cloud, "what grows is refused");
    assert!(cloud.chitin(["status"]).ok().contains("CRITICAL"), "the status begins with it");
    assert!(cloud.chitin(["cluster", "show", "filled"]).ok().contains("FULL"), "so does the cluster");
    session.value("select count(*) from t");
    cloud.chitin(["cluster", "update", "filled", "--storage", "3"]).ok();
    let grown = || session.query(FILL).ok().map(drop);
    eventually("a larger limit counts on the living cluster", PATIENCE, grown);
    eventually("the alert is gone", PATIENCE, || (!alerts(&cloud).contains("is refused")).then_some(()));
    session.query("truncate t").expect("it goes on");
    let shown = cloud.chitin(["cluster", "show", "filled"]).ok();
    assert!(shown.contains("at most 3072 MiB, enforced"), "{shown}");
    let row = one.proof("cannot take the disk of the others");
    assert_eq!(row["outcome"], "proven", "{row}");
    assert!(
        row["evidence"].as_str().is_some_and(|said| said.starts_with("enforced by its own file system")),
        "{row}"
    );
}

/// Where nothing holds a volume back, it is watched: first it is read-only for who does not insist, then it is stopped.
pub fn a_cluster_that_no_file_system_holds_back_is_stopped_from_writing_in_time() {
    if !Path::new("/dev/fuse").exists() {
        house::runner::skip("there is no FUSE");
    }
    let cloud = Cloud::start(Options::with(&["--encryption", "gocryptfs"]));
    let one = cloud.cluster("watched", &["--storage", "1"]);
    let mut session = one.sign_in();
    session.query("create table t (x text)").expect("a table");
    // The session is cut, or the next statement is refused.
    let code = fill(&mut session);
    assert!(["57P01", "25006", "08006", "00000"].contains(&code.as_str()) || code.is_empty(), "{code}");
    await_alert(&cloud, "read-only unless they say otherwise");
    let refused = eventually("a new session is told", PATIENCE, || {
        one.try_sign_in().ok()?.query("insert into t values ('x')").err()
    });
    assert_eq!(refused.code, "25006", "{refused:?}");
    // Who wants to delete can.
    let mut session = one.sign_in();
    session.query("set default_transaction_read_only = off").expect("a setting");
    session.query("delete from t where ctid in (select ctid from t limit 1)").expect("deletion goes on");
    // Who goes on storing is stopped, and the machine's disk is left alone.
    fill(&mut session);
    await_alert(&cloud, "is stopped");
    let refused =
        eventually("nobody gets in", PATIENCE, || one.try_sign_in().err().filter(|no| no.code == "53100"));
    assert!(refused.message.contains("more than its limit"), "{refused:?}");
    cloud.chitin(["cluster", "update", "watched", "--storage", "4"]).ok();
    let mut session = eventually("it comes back with a larger limit", PATIENCE, || one.try_sign_in().ok());
    session.query("truncate t").expect("it writes as before");
    let row = one.proof("cannot take the disk of the others");
    assert_eq!(row["outcome"], "missing", "{row}");
    assert!(row["evidence"].as_str().is_some_and(|said| said.starts_with("watched, not enforced")), "{row}");
    let taken = run(std::process::Command::new("du").arg("-sm").arg(cloud.data())).ok();
    let mib: u64 = taken.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a number");
    assert!(mib < 2_500, "it took {mib} MiB");
}

/// The loop device of a cluster's image.
fn device(image: &Path) -> String {
    let told =
        run(std::process::Command::new("losetup").args(["--noheadings", "-O", "NAME", "-j"]).arg(image)).ok();
    told.trim().trim_start_matches("/dev/").to_owned()
}

/// The kernel's own way to have an error in ext4: it stops writing to the file system, as after a disk that failed.
pub fn a_file_system_that_went_read_only_is_checked_and_comes_back_by_itself() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("read-only", &[]);
    let image = cloud.data().join("clusters").join(&one.id).join("image");
    if !image.exists() {
        house::runner::skip("no volume of this machine has a file system of its own");
    }
    let mut session = one.sign_in();
    session.query("create table t as select generate_series(1, 1000) as x").expect("a table");
    for part in ["image", "wal"] {
        let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", device(&image.with_file_name(part)));
        std::fs::write(&trigger, "1").expect("the kernel has it");
        eventually("it is told", PATIENCE, || {
            let log = cloud.log();
            (log.matches("its file system is checked, and it is started again").count()
                > usize::from(part == "wal")
                && log.matches("the file system was checked").count() > usize::from(part == "wal"))
            .then_some(())
        });
        let back = || {
            let mut session = one.try_sign_in().ok()?;
            session.query("insert into t values (0)").ok()?;
            Some(session)
        };
        let mut session = eventually("it writes again", PATIENCE, back);
        assert_eq!(session.value("select count(distinct x) from t"), "1001");
        eventually("the alert is gone", PATIENCE, || {
            (!alerts(&cloud).contains("stopped writing")).then_some(())
        });
    }
}
