//! Killed at any moment: every acknowledged commit is there, and nothing half made stays.

use std::time::Duration;

use house::cloud::PATIENCE;
use house::command::eventually;
use house::ledger::Ledger;
use house::{Cloud, machine};
use rustix::process::Signal;

/// Strikes while every writer writes.
fn under_load(ledger: &Ledger<'_>, blow: impl FnOnce()) {
    ledger.during(|| {
        blow();
        std::thread::sleep(Duration::from_millis(300));
    });
}

pub fn kill_9_of_chitin_under_load_loses_no_acknowledged_commit() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("killed-cloud", &[]);
    let ledger = Ledger::open(&one);
    for _ in 0..2 {
        under_load(&ledger, || cloud.kill());
        eventually("engines end with the program", PATIENCE, || {
            machine::processes_naming(&cloud.data()).is_empty().then_some(())
        });
        cloud.boot();
        ledger.is_kept();
    }
    cloud.stop();
}

pub fn t23_kill_9_of_the_engine_under_load_loses_no_acknowledged_commit() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("killed-engine", &[]);
    let ledger = Ledger::open(&one);
    for _ in 0..2 {
        under_load(&ledger, || one.postmaster().signal(Signal::KILL));
        ledger.is_kept();
    }
    let mut others = one.sign_in();
    assert_eq!(others.value("select 1"), "1");
}

pub fn a_crashed_session_of_the_engine_is_survived() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("crash-session", &[]);
    let mut wire = one.sign_in();
    wire.query("create table kept (x int); insert into kept values (1)").unwrap();
    one.process_of(&mut wire).signal(Signal::KILL);
    let refusal = wire.query("select 1").unwrap_err();
    assert!(["57P02", "57P01", "closed", "08006"].contains(&refusal.code.as_str()), "{refusal:?}");
    let mut wire = eventually("the engine recovers", PATIENCE, || one.try_sign_in().ok());
    assert_eq!(wire.value("select x from kept"), "1");
}

pub fn kill_9_while_a_cluster_is_made_leaves_nothing_half_made() {
    let cloud = Cloud::plain();
    let mut made = 0;
    for (round, wait) in [50, 300, 700, 1_200, 2_000].into_iter().enumerate() {
        let name = format!("half-made-{round}");
        let mut command = cloud.command(["cluster", "create", &name]);
        let mut making = command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the command starts");
        std::thread::sleep(Duration::from_millis(wait));
        cloud.kill();
        let _ = making.kill();
        let _ = making.wait();
        cloud.boot();
        // Either it was wished for, and is finished now; or it was not, and is unknown.
        let finished = eventually("finished or unknown", PATIENCE, || {
            let shown = cloud.chitin(["cluster", "show", &name, "--output", "json"]);
            match shown.code() {
                4 => Some(false),
                0 => shown.stdout.contains("\"CREATED\"").then_some(true),
                _ => None,
            }
        });
        println!("  killed after {wait} ms: {}", if finished { "finished" } else { "unknown" });
        if finished {
            made += 1;
            let password = cloud.user(&name, "maria");
            let url = cloud.chitin(["cluster", "url", &name, "maria"]).ok();
            let mut command = std::process::Command::new("psql");
            command.args(["-X", "-A", "-t", "-c", "select 1", url.trim()]).env("PGPASSWORD", password);
            assert_eq!(house::command::run(&mut command).ok(), "1\n");
        }
    }
    // Nothing else is there, and of what new ones are copied from one archive.
    let names = |folder: &str| {
        let folder = std::fs::read_dir(cloud.data().join(folder)).expect("a folder").flatten();
        folder.filter(|entry| entry.file_name() != "templates").count()
    };
    eventually("nothing is left", PATIENCE, || {
        (names("clusters") == made && names("clusters/templates") <= 1).then_some(())
    });
    cloud.stop();
}

pub fn kill_9_while_a_cluster_is_deleted_finishes_the_deletion() {
    let cloud = Cloud::plain();
    for (round, wait) in [20, 150, 500].into_iter().enumerate() {
        let name = format!("half-gone-{round}");
        let one = cloud.cluster(&name, &[]);
        let mut command = cloud.command(["cluster", "delete", &name, "--yes"]);
        let mut deleting = command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the command starts");
        std::thread::sleep(Duration::from_millis(wait));
        cloud.kill();
        let _ = deleting.kill();
        let _ = deleting.wait();
        cloud.boot();
        if cloud.chitin(["cluster", "show", &name]).code() == 0 {
            // The kill came before the wish was stored: then it is whole, and can be deleted now.
            assert_eq!(one.sign_in().value("select 1"), "1");
            cloud.chitin(["cluster", "delete", &name, "--yes"]).ok();
        }
        assert_eq!(one.try_sign_in().err().expect("deleted").code, "28P01");
    }
    cloud.stop();
}

pub fn a_restart_keeps_clusters_users_and_rows() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("stays-here", &["--plan", "dedicated", "--allow", "127.0.0.0/8"]);
    one.sign_in().query("create table kept (x int); insert into kept values (42)").unwrap();
    let certificate = std::fs::read(cloud.root_certificate()).expect("the root certificate");
    cloud.stop();
    cloud.boot();
    assert_eq!(one.sign_in().value("select x from kept"), "42");
    assert_eq!(std::fs::read(cloud.root_certificate()).expect("the root certificate"), certificate);
}

pub fn a_stop_drains_and_tells_open_sessions() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("drained-one", &[]);
    let mut idle = one.sign_in();
    let mut working = one.sign_in();
    working.query("create table kept (x int)").unwrap();
    std::thread::scope(|scope| {
        working.begin("insert into kept select 1 from pg_sleep(5)", &mut one.sign_in());
        let work = scope.spawn(move || working.results());
        let taken = cloud.stop();
        println!("  stopped within {:.1} s", taken.as_secs_f64());
        let end = idle.query("select 1").unwrap_err();
        assert!(["57P01", "closed"].contains(&end.code.as_str()), "{end:?}");
        work.join().expect("the thread ends").expect("a statement that runs is let finish");
    });
    cloud.boot();
    assert_eq!(one.sign_in().value("select count(*) from kept"), "1");
}
