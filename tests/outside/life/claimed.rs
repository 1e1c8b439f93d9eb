//! A data directory is one cloud's alone, whatever an administrator removes from it while the cloud runs.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use house::cloud::PATIENCE;
use house::command::{SetAtEnd, eventually, run};
use house::machine::{Process, processes_naming};
use house::{Cloud, Options, Wire};
use rustix::fs::{FlockOperation, flock};

/// The signs by which a second program knows the first one.
const SIGNS: [&str; 3] = ["lock", "companion.lock", "state.redb"];

fn is_refused(cloud: &Cloud, what: &str) {
    let said = cloud.refuses_to_start(&[], &[]);
    let process = format!("in use by another Chitin (process {})", cloud.pid());
    assert!(said.contains(&process), "{what}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
}

/// Writes rows until it is told to stop. Every one that was acknowledged is counted.
fn write(session: &mut Wire, is_over: &AtomicBool, acknowledged: &AtomicU64) {
    while !is_over.load(Ordering::Relaxed) {
        let next = acknowledged.load(Ordering::Relaxed) + 1;
        session.query(&format!("insert into written values ({next})")).expect("nothing happens to it");
        acknowledged.store(next, Ordering::Relaxed);
    }
}

pub fn a_second_start_is_refused_whatever_was_removed_and_the_first_one_s_sessions_live_on() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("stays-mine", &[]);
    let mut session = one.sign_in();
    session.query("create table written (number bigint primary key)").expect("a table");
    let (is_over, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let engines = one.engine_processes();
    std::thread::scope(|scope| {
        let end = SetAtEnd(&is_over);
        let writer = scope.spawn(|| write(&mut session, &is_over, &acknowledged));
        let removed: [&[&str]; 5] = [&[], &SIGNS[..1], &SIGNS[1..2], &SIGNS[2..], &SIGNS];
        for signs in removed {
            let place = |sign: &str| (cloud.data().join(sign), cloud.scratch().join(sign));
            for sign in signs {
                let (from, to) = place(sign);
                fs::rename(from, to).unwrap_or_else(|cause| panic!("{sign}: {cause}"));
            }
            let before = acknowledged.load(Ordering::Relaxed);
            is_refused(&cloud, &format!("without {signs:?}"));
            eventually("the session goes on", PATIENCE, || {
                (acknowledged.load(Ordering::Relaxed) > before + 5 || writer.is_finished()).then_some(())
            });
            assert!(!writer.is_finished(), "without {signs:?} the second one did something to the session");
            for sign in signs {
                let (to, from) = place(sign);
                fs::rename(from, to).unwrap_or_else(|cause| panic!("{sign}: {cause}"));
            }
        }
        drop(end);
    });
    assert_eq!(one.engine_processes(), engines, "it is the same engine");
    // What was removed for good is no obstacle for the first one, and none for its next start.
    for sign in &SIGNS[..2] {
        fs::remove_file(cloud.data().join(sign)).expect("it is there");
    }
    is_refused(&cloud, "without both lock files");
    cloud.kill();
    cloud.boot();
    let last = acknowledged.load(Ordering::Relaxed);
    let count = one.sign_in().value(&format!("select count(*) from written where number <= {last}"));
    assert_eq!(count, last.to_string(), "acknowledged rows are missing");
}

pub fn a_start_in_another_folder_at_the_same_place_leaves_the_first_one_s_engines_alive() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = cloud.cluster("moved-away", &[]);
    let mut session = one.sign_in();
    session.query("create table t as select 42 as x").expect("a table");
    let engines = one.engine_processes();
    let [data, aside, copy] = [cloud.data(), cloud.scratch().join("aside"), cloud.scratch().join("copy")];
    // No lock of the first one's is in it, and its engines name the folder.
    eventually("nothing changes while it is copied", PATIENCE, || {
        let _ = fs::remove_dir_all(&copy);
        let copied = run(Command::new("cp").args(["-a", "--sparse=always"]).arg(&data).arg(&copy));
        copied.status.success().then_some(())
    });
    fs::rename(&data, &aside).expect("the same file system");
    fs::rename(&copy, &data).expect("the same file system");
    is_refused(&cloud, "in a copy of its folder");
    // The first one may just write to the folders of its clusters there.
    eventually("it can be removed", PATIENCE, || fs::remove_dir_all(&data).ok());
    fs::create_dir(&data).expect("an empty folder");
    is_refused(&cloud, "in an empty folder");
    assert!(!data.join("state.redb.reserve").exists(), "the first one has written to it");
    fs::remove_dir_all(&data).expect("nobody writes to it");
    fs::rename(&aside, &data).expect("the same file system");
    assert_eq!(session.value("select x from t"), "42", "the session lives on");
    assert_eq!(one.engine_processes(), engines);
}

/// A process like those that a killed Chitin leaves.
struct Left(Child);

impl Left {
    fn below(data: &Path) -> Self {
        let mut jail = Command::new("bwrap");
        jail.args(["--die-with-parent", "--dev-bind", "/", "/", "--setenv", "OF"])
            .arg(data.join("clusters/of-a-killed-one"));
        let jail = jail.args(["--", "sleep", "600"]).spawn().expect("bwrap is there");
        eventually("it runs", PATIENCE, || {
            let is_asleep = |child: &Process| child.command_line().starts_with("sleep");
            house::machine::descendants(jail.id()).iter().any(is_asleep).then_some(())
        });
        Self(jail)
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().expect("ours").is_none()
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn locked(path: &Path) -> File {
    let file = File::open(path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
    flock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
    file
}

pub fn nothing_is_cleared_while_the_folder_or_the_state_is_locked_by_somebody() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    cloud.stop();
    let mut left = Left::below(&cloud.data());
    let us = format!("in use by another Chitin (process {})", std::process::id());
    // Each by itself: as where a file system has no locks of folders, and as an earlier version takes it.
    for sign in ["", "lock", "state.redb"] {
        let held = locked(&cloud.data().join(sign));
        let said = cloud.refuses_to_start(&[], &[]);
        assert!(said.contains(&us), "{sign}: {said}");
        assert!(left.is_alive(), "with {sign:?} locked, something was cleared away");
        drop(held);
    }
    cloud.boot();
    eventually("what is nobody's is cleared away", PATIENCE, || (!left.is_alive()).then_some(()));
}

pub fn a_start_waits_for_a_companion_whose_lock_file_was_removed() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    cloud.stop();
    // As the companion of a Chitin that was killed has it until everything is locked.
    let held = locked(&cloud.data().join("clusters"));
    fs::remove_file(cloud.data().join("companion.lock")).expect("it is there");
    let mut left = Left::below(&cloud.data());
    std::thread::scope(|scope| {
        let start = scope.spawn(|| cloud.boot());
        let is_companion = |process: &Process| process.command_line().starts_with("chitin: companion");
        // It has made its lock file, and is not ready all the same.
        eventually("the new one's companion is there", PATIENCE, || {
            let found = processes_naming(Path::new("chitin: companion"));
            let lock = fs::canonicalize(cloud.data().join("companion.lock")).ok()?;
            let has_it_open = |process: &Process| {
                let open = fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten();
                open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path == lock)
            };
            found.iter().any(|process| is_companion(process) && has_it_open(process)).then_some(())
        });
        for _ in 0..20 {
            assert!(left.is_alive() && !start.is_finished(), "it does not wait");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        drop(held);
        start.join().expect("it starts once nobody locks volumes any more");
    });
    eventually("what is nobody's is cleared away", PATIENCE, || (!left.is_alive()).then_some(()));
}
