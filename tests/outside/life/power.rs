//! Sleeping and waking: who causes it, and how often.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use house::cloud::PATIENCE;
use house::command::eventually;
use house::{Cloud, Options};

/// Whether the bytes are in any file below; holes of sparse files are skipped, or a volume's image would take hours.
fn is_anywhere_below(below: &Path, needle: &[u8]) -> bool {
    let entries = std::fs::read_dir(below).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => is_anywhere_below(&entry.path(), needle),
        Ok(kind) if kind.is_file() => is_in_file(&entry.path(), needle),
        _ => false,
    })
}

fn is_in_file(path: &Path, needle: &[u8]) -> bool {
    use rustix::fs::{SeekFrom, seek};
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path).expect("the data directory is ours");
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        let end = seek(&file, SeekFrom::Hole(start)).expect("every file ends in a hole");
        let mut from = start;
        while from < end {
            // Pieces overlap, so that nothing hides on their border.
            let mut piece = vec![0; usize::try_from((end - from).min(1 << 20)).expect("a megabyte")];
            let count = file.read_at(&mut piece, from).expect("it can be read");
            if piece[..count].windows(needle.len()).any(|bytes| bytes == needle) {
                return true;
            }
            if count < piece.len() || from + count as u64 >= end {
                break;
            }
            from += (count - needle.len()) as u64;
        }
        at = end;
    }
    false
}

fn files_named(below: &Path, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(below) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_named(&path, name));
        } else if entry.file_name() == name {
            found.push(path);
        }
    }
    found
}

pub fn an_idle_serverless_cluster_sleeps_and_a_sign_in_wakes_it() {
    let cloud = Cloud::start(Options::with(&["--idle-after", "4s"]));
    let one = cloud.cluster("sleepy-one", &[]);
    let busy = cloud.cluster("dedicated-one", &["--plan", "dedicated", "--allow", "127.0.0.0/8"]);
    let mut wire = one.sign_in();
    wire.query("create table kept (x int); insert into kept values (7)").unwrap();
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(one.phase(), "running", "a cluster with a session does not sleep");
    drop(wire);
    eventually("the idle cluster sleeps", PATIENCE, || (one.phase() == "asleep").then_some(()));
    assert_eq!(busy.phase(), "running", "a dedicated cluster never sleeps by itself");
    assert!(one.engine_processes().is_empty(), "{:?}", one.engine_processes());
    assert_eq!(one.sign_in().value("select x from kept"), "7");
    assert_eq!(one.phase(), "running");
}

pub fn t68_failed_sign_ins_never_wake_a_sleeping_cluster() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("sound-asleep", &[]);
    one.sign_in().query("create role sleeper_b login password 'pass-word-1'").unwrap();
    one.sleep();
    // 600 instead of 100,000: wrong passwords, unknown users, half handshakes, scans and health checks.
    for round in 0..200 {
        let person = if round % 2 == 0 { one.user.as_str() } else { "nobody" };
        assert_eq!(one.with_user(person, "wrong").try_sign_in().err().expect("wrong").code, "28P01");
        drop(one.knock());
        drop(cloud.encrypted());
    }
    assert_eq!(one.phase(), "asleep");
    assert!(one.engine_processes().is_empty());
    assert_eq!(one.sign_in().value("select 1"), "1");
}

pub fn t69_a_hundred_sign_ins_at_once_are_one_start() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("crowd-wakes", &[]);
    one.sleep();
    let begun = Instant::now();
    let starts: Vec<String> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| {
                    let mut wire = one.sign_in();
                    let started = wire.value("select pg_postmaster_start_time()");
                    // Everybody stays until all are in.
                    std::thread::sleep(Duration::from_secs(2));
                    assert_eq!(wire.value("select 1"), "1");
                    started
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().expect("served")).collect()
    });
    assert!(starts.iter().all(|started| *started == starts[0]), "the engine started more than once");
    println!("  a hundred signed in and stayed two seconds within {:.1} s", begun.elapsed().as_secs_f64());
}

pub fn the_first_answer_of_a_sleeping_cluster_is_quick() {
    let cloud = Cloud::plain();
    let begun = Instant::now();
    let one = cloud.cluster("quick-awake", &[]);
    let made = begun.elapsed();
    let mut times = Vec::new();
    for _ in 0..3 {
        one.sleep();
        let begun = Instant::now();
        assert_eq!(one.sign_in().value("select 1"), "1");
        times.push(begun.elapsed());
    }
    println!("  from asleep to the first answer: {times:?}; to make it took {made:?}");
    // How fast it is, bench/ tells. Here: a start is not all the work of making a cluster, which begins with one.
    assert!(times.iter().min().unwrap() < &made, "{times:?}, and {made:?} to make it");
}

pub fn a_sleeping_clusters_files_cannot_be_read() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("locked-away", &[]);
    one.sign_in()
        .query("create table secret (x text); insert into secret values ('canary-4711-in-the-coal')")
        .unwrap();
    one.sleep();
    let found = files_named(&cloud.data(), "PG_VERSION");
    assert!(found.is_empty(), "file names of the engine are readable while it sleeps: {found:?}");
    assert!(!is_anywhere_below(&cloud.data(), b"canary-4711-in-the-coal"), "the canary lies in plain text");
    let control = cloud.data().join("control");
    std::fs::write(&control, "canary-4711-in-the-coal").expect("written");
    assert!(is_anywhere_below(&cloud.data(), b"canary-4711-in-the-coal"), "the search itself works");
    std::fs::remove_file(&control).expect("removed");
    assert_eq!(one.sign_in().value("select x from secret"), "canary-4711-in-the-coal");
}

pub fn t73_sleep_and_delete_take_effect_at_once() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("soon-gone", &[]);
    let mut wire = one.sign_in();
    let files_before = std::fs::read_dir(cloud.data()).expect("the data directory").count();
    assert!(files_before > 0);
    let begun = Instant::now();
    let deleting = std::thread::scope(|scope| {
        let deletion = scope.spawn(|| cloud.chitin(["cluster", "delete", "soon-gone", "--yes"]));
        eventually("the open session is cut", PATIENCE, || wire.query("select 1").err());
        eventually("nobody signs in any more", PATIENCE, || one.try_sign_in().err());
        deletion.join().expect("the command ends")
    });
    deleting.ok();
    println!("  deleted in {:.1} s", begun.elapsed().as_secs_f64());
    eventually("no process of it is left", PATIENCE, || one.engine_processes().is_empty().then_some(()));
    let refusal = one.try_sign_in().err().expect("deleted");
    assert_eq!(refusal.code, "28P01", "a deleted cluster looks like one that never was: {refusal:?}");
    assert_eq!(cloud.chitin(["cluster", "show", "soon-gone"]).code(), 4);
    let left = files_named(&cloud.data(), "PG_VERSION");
    assert!(left.is_empty(), "{left:?}");
    let number = one.handle.rsplit_once('-').unwrap().1.to_owned();
    let again = cloud.cluster("soon-gone", &[]);
    assert_ne!(again.handle.rsplit_once('-').unwrap().1, number, "a routing id is never used twice");
}
