//! When Chitin is killed, in whatever way, a process of its own locks what was unlocked. And what happens to a volume while its
//! engine runs is noticed.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    EncryptingDisk, Holder, Place, SOON, companions_of, eventually, folder, is_root, key_of, kinds, place,
    skipped, volume,
};
use engine::{Capability, Error, Host, Looked};
use model::{Cluster, Encryption};
use rustix::process::{Pid, Signal, kill_process};

/// Tell the process that is to be killed where to work and how.
const DATA: &str = "CHITIN_TEST_DATA";
const ENCRYPTION: &str = "CHITIN_TEST_ENCRYPTION";
const ROUTING_ID: &str = "CHITIN_TEST_ROUTING_ID";
const WITHOUT_COMPANION: &str = "CHITIN_TEST_COMPANION_KILLED";
const ID: &str = "7e1f5b63-1e2d-4c1f-8d1f-4c206b8d3e21";
const RESTLESS: &str = "CHITIN_TEST_RESTLESS";
const CANARY: &str = "canary-of-the-companion";

/// With a routing id that no other run of these tests has, and that both processes agree on.
fn cluster() -> Cluster {
    let own = 10_000_000 + std::process::id() % 8_000_000 * 10 + 7;
    let told = std::env::var(ROUTING_ID).ok().and_then(|text| text.parse().ok());
    common::cluster_of(ID.parse().unwrap(), told.unwrap_or(own))
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started, and killed, by the tests beside it"]
async fn holds_an_unlocked_cluster_until_it_is_killed() {
    let (Ok(data), Ok(kind)) = (std::env::var(DATA), std::env::var(ENCRYPTION)) else {
        return;
    };
    let known = [Encryption::Fscrypt, Encryption::FscryptImage, Encryption::Gocryptfs, Encryption::None];
    let kind = known.into_iter().find(|known| known.as_str() == kind).unwrap();
    let host = common::open(Path::new(&data), Some(kind)).await.unwrap();
    host.create(&cluster()).await.unwrap();
    if std::env::var_os(WITHOUT_COMPANION).is_some() {
        let first = companions_of(std::process::id());
        for pid in &first {
            common::kill(*pid);
        }
        eventually("another companion is there", || {
            let now = companions_of(std::process::id());
            now.len() == 1 && now != first && matches!(host.companion(), Capability::Present { .. })
        });
    }
    println!("the cluster is ready");
    if std::env::var_os(RESTLESS).is_none() {
        std::future::pending::<()>().await;
    }
    loop {
        host.stop(cluster().id).await.unwrap();
        host.start(&cluster()).await.unwrap();
    }
}

fn holder(data: &Path, kind: Encryption, more: &[(&str, &str)]) -> Holder {
    let number = cluster().routing_id.to_string();
    let mut environment =
        vec![(DATA, data.as_os_str()), (ENCRYPTION, kind.as_str().as_ref()), (ROUTING_ID, number.as_ref())];
    environment.extend(more.iter().map(|(name, value)| (*name, (*value).as_ref())));
    let mut holder = Holder::start("holds_an_unlocked_cluster_until_it_is_killed", &environment);
    holder.await_word("the cluster is ready");
    assert_eq!(companions_of(holder.pid()).len(), 1);
    holder
}

/// What is still open below a data directory: mounts, devices, and processes of engines and volumes.
fn open_below(data: &Path) -> Vec<String> {
    let clusters = data.join("clusters");
    let mut open = common::mounts_below(&clusters);
    let devices = common::loops_of(&clusters.display().to_string());
    open.extend((devices > 0).then(|| format!("{devices} loop devices")));
    open.extend(common::processes_of(data).iter().map(|pid| format!("process {pid}")));
    open
}

/// Waits until nothing is open any more, and says how long that took.
#[track_caller]
fn is_locked_by_itself(what: &str, data: &Path) {
    let begun = Instant::now();
    eventually(what, || open_below(data).is_empty());
    println!("  {what}: locked after {} ms", begun.elapsed().as_millis());
}

#[test]
fn nothing_stays_unlocked_when_chitin_is_killed() {
    for kind in kinds().into_iter().chain([Encryption::None]) {
        let folder = folder();
        let holder = holder(folder.path(), kind, &[]);
        assert!(!open_below(folder.path()).is_empty(), "{kind:?}: nothing is open, so nothing can be shown");
        holder.kill();
        is_locked_by_itself(kind.as_str(), folder.path());
    }
}

#[test]
fn nothing_stays_unlocked_when_its_whole_process_group_is_killed() {
    for kind in kinds() {
        let folder = folder();
        holder(folder.path(), kind, &[]).kill_group();
        is_locked_by_itself(kind.as_str(), folder.path());
    }
}

#[test]
fn a_companion_that_was_started_anew_locks_what_was_unlocked_before_it() {
    for kind in kinds() {
        let folder = folder();
        holder(folder.path(), kind, &[(WITHOUT_COMPANION, "1")]).kill();
        is_locked_by_itself(kind.as_str(), folder.path());
    }
}

/// Also between a mount and its key, and while a tool of ours is at work.
#[test]
fn a_kill_at_any_moment_of_unlocking_and_locking_leaves_nothing_open() {
    for kind in kinds() {
        let folder = folder();
        for round in 0..6_u64 {
            let holder = holder(folder.path(), kind, &[(RESTLESS, "1")]);
            std::thread::sleep(Duration::from_millis(round * round * 37));
            holder.kill();
            is_locked_by_itself(kind.as_str(), folder.path());
            // And it stays so: nothing that was on its way comes later.
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(open_below(folder.path()), Vec::<String>::new(), "{kind:?}");
        }
    }
}

#[test]
fn the_key_of_an_encrypted_folder_leaves_the_kernel_when_chitin_is_killed() {
    if let Some(reason) = common::lacking_for_a_disk() {
        return skipped(reason);
    }
    let disk = EncryptingDisk::mount();
    let files = volume(&disk.data, &cluster(), 0).join("files");
    for is_group in [false, true] {
        let holder = holder(&disk.data, Encryption::Fscrypt, &[]);
        assert_eq!(key_of(&files, false), "present");
        assert!(files.join("pg/PG_VERSION").exists());
        let begun = Instant::now();
        if is_group {
            holder.kill_group()
        } else {
            holder.kill()
        };
        eventually("the key is gone", || key_of(&files, false) == "absent");
        println!("  fscrypt: locked after {} ms", begun.elapsed().as_millis());
        assert!(!files.join("pg/PG_VERSION").exists(), "its names can still be read");
        assert!(open_below(&disk.data).is_empty());
    }
}

#[test]
fn without_root_nothing_stays_unlocked_either() {
    if !is_root() {
        return skipped("this is no root, so every other test shows it");
    }
    let folder = folder();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Where that user gets at it.
    let program = folder.path().join("tests");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    // On machines where FUSE is root's alone, a device of their own for the user's processes; and none of the mounts that the
    // tests beside this one have, or they could not be taken down.
    let steps = r#"cut -d' ' -f5 /proc/self/mountinfo | grep "^${TMPDIR:-/tmp}/ce" | while read -r place; do umount -l "$place"; done
        mknod -m 666 "$0" c 10 229 && mount --bind "$0" /dev/fuse && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", steps]).arg(folder.path().join("fuse"));
    command
        .args(["setpriv", "--reuid", common::NOBODY, "--regid", common::NOBODY, "--clear-groups"])
        .arg(&program);
    command.env_remove("CHITIN_TESTS_SKIPPED").current_dir("/tmp");
    let tried = command
        .args(["--exact", "--nocapture", "nothing_stays_unlocked_when_chitin_is_killed"])
        .args(["nothing_stays_unlocked_when_its_whole_process_group_is_killed"])
        .args(["a_companion_that_was_started_anew_locks_what_was_unlocked_before_it"])
        .args(["a_volume_that_is_lost_while_its_engine_runs_is_noticed_and_comes_back"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&tried.stdout).into_owned() + &String::from_utf8_lossy(&tried.stderr);
    println!("{said}");
    assert!(tried.status.success() && said.contains("4 passed"), "{said}");
    assert!(said.contains("gocryptfs: locked after"), "nothing was tried: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_right_after_a_kill_waits_until_everything_is_locked() {
    for kind in kinds() {
        let folder = folder();
        for _ in 0..3 {
            holder(folder.path(), kind, &[]).kill();
            let host = common::open(folder.path(), Some(kind)).await.unwrap();
            assert_eq!(open_below(folder.path()), Vec::<String>::new(), "{kind:?}: it began before");
            host.start(&cluster()).await.unwrap();
            assert!(host.is_running(cluster().id));
            // Nobody locks what this one has unlocked.
            host.administration(cluster().id).await.unwrap().write_canary(CANARY).await.unwrap();
            let companion = companion_of(&host, &cluster()).await;
            host.close().await;
            assert!(!companions_of(std::process::id()).contains(&companion), "it ends with the program");
        }
    }
}

/// Of our own host, whatever others this process has: the one that says that it knows the cluster.
async fn companion_of(host: &Arc<Host>, cluster: &Cluster) -> u32 {
    let evidence = host.sandbox_evidence(cluster.id).await.unwrap();
    let row = evidence.into_iter().find(|row| row.claim.contains("Chitin is killed")).unwrap();
    assert_eq!(row.is_proven, Some(true), "{row:?}");
    row.evidence.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_companion_is_replaced_and_what_it_should_know_is_told_anew() {
    let Place { folder: _folder, host } = place(Some(Encryption::None)).await;
    let cluster = common::cluster(141);
    host.create(&cluster).await.unwrap();
    let first = companion_of(&host, &cluster).await;
    // It has nothing that could be taken from it: a line, the kernel's word on us, a lock, and where it says what it did.
    let process = Path::new("/proc").join(first.to_string());
    let open = std::fs::read_dir(process.join("fd")).unwrap().count();
    assert!(open <= 6, "{open} descriptors");
    let environment = std::fs::read(process.join("environ")).unwrap();
    let names = environment.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    assert!(
        names.into_iter().all(|word| word.starts_with(b"PATH=") || word.starts_with(b"CHITIN_COMPANION="))
    );
    // Root in a container may not (CAP_SYS_RESOURCE).
    let lower = Command::new("sh").args(["-c", "echo -1000 2>/dev/null >/proc/self/oom_score_adj"]).status();
    let score = std::fs::read_to_string(process.join("oom_score_adj")).unwrap();
    assert_eq!(score.trim() == "-1000", lower.unwrap().success(), "{score}");
    // What ends other programs does not end it.
    for ending in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1] {
        signal(first, ending);
    }
    assert_eq!(companion_of(&host, &cluster).await, first);
    common::kill(first);
    let begun = Instant::now();
    eventually("another is there", || match host.companion() {
        Capability::Present { how } => !how.contains(&format!("process {first} ")),
        Capability::Missing { .. } => false,
    });
    println!("  replaced after {} ms", begun.elapsed().as_millis());
    assert_ne!(companion_of(&host, &cluster).await, first);
    assert!(host.is_running(cluster.id), "what runs goes on");
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_unlocked_while_the_companion_does_not_answer() {
    let Some(kind) = kinds().pop() else { return };
    let Place { folder, host } = place(Some(kind)).await;
    let cluster = common::cluster(142);
    host.create(&cluster).await.unwrap();
    let companion = companion_of(&host, &cluster).await;
    host.stop(cluster.id).await.unwrap();
    signal(companion, Signal::STOP);
    let refused = host.start(&cluster).await.unwrap_err();
    assert!(matches!(&refused, Error::NoCompanion { .. }), "{refused}");
    assert!(refused.to_string().contains("nothing is unlocked"), "{refused}");
    // A server that the stop ended may be there for a moment more.
    eventually("nothing is open", || open_below(folder.path()).is_empty());
    // It was ended, and the next try has another.
    eventually("the one that stood still is gone", || {
        !Path::new(&format!("/proc/{companion}/cmdline")).exists()
    });
    // Where that one is slow to begin it is tried once more, as the cloud does.
    let begun = Instant::now();
    while let Err(refused) = host.start(&cluster).await {
        assert!(matches!(&refused, Error::NoCompanion { .. }) && begun.elapsed() < SOON, "{refused}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_cannot_have_a_companion_does_not_open() {
    let folder = folder();
    let mut launcher = common::launcher();
    launcher.program = "/bin/true".into();
    let refused = common::open_launched(folder.path(), launcher).await.unwrap_err();
    assert!(matches!(&refused, Error::NoCompanion { .. }), "{refused}");
}

/// Looks until there is an answer.
async fn looked(host: &Host, cluster: &Cluster, patience: Duration) -> Looked {
    let begun = Instant::now();
    let mut look = host.look_at_volume(cluster.id).unwrap();
    loop {
        match host.see(look, patience) {
            Looked::Waiting(again) => look = again,
            done => return done,
        }
        assert!(begun.elapsed() < SOON, "no answer");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Does something to a volume that is in use, sees that it is noticed, and that everything is locked and comes back.
async fn is_noticed(
    host: &Arc<Host>,
    data: &Path,
    cluster: &Cluster,
    what: &str,
    patience: Duration,
    harm: impl FnOnce(),
) {
    assert!(matches!(looked(host, cluster, SOON).await, Looked::Well), "{what}: before");
    harm();
    let found = looked(host, cluster, patience).await;
    let Looked::Lost(reason) = found else { panic!("{what}: {found:?}") };
    println!("  {what}: {reason}");
    assert!(!host.is_running(cluster.id), "{what}: it counts as running");
    assert_eq!(host.lost(cluster.id).as_deref(), Some(reason.as_str()));
    host.stop(cluster.id).await.unwrap();
    // The kernel forgets a process that was killed a moment later.
    eventually(what, || open_below(data).is_empty());
    host.start(cluster).await.unwrap();
    assert!(host.lost(cluster.id).is_none());
    let found = host.search(cluster.id, CANARY).await.unwrap();
    assert!(found.hits_in_plaintext > 0, "{what}: what was acknowledged is gone: {found:?}");
}

fn servers_of(data: &Path) -> Vec<u32> {
    let is_server = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "gocryptfs")
    };
    common::processes_of(data).into_iter().filter(is_server).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_lost_while_its_engine_runs_is_noticed_and_comes_back() {
    for kind in kinds() {
        let Place { folder, host } = place(Some(kind)).await;
        let cluster = common::cluster(143);
        host.create(&cluster).await.unwrap();
        host.administration(cluster.id).await.unwrap().write_canary(CANARY).await.unwrap();
        let (data, files) = (folder.path(), volume(folder.path(), &cluster, 0).join("files"));
        let unmount = || {
            let gone = Command::new("umount").arg("-l").arg(&files).status().unwrap().success();
            let helped = || Command::new("fusermount3").args(["-u", "-z"]).arg(&files).status();
            assert!(gone || helped().unwrap().success());
        };
        is_noticed(&host, data, &cluster, "it was unmounted", SOON, unmount).await;
        if kind == Encryption::Gocryptfs {
            let kill = || servers_of(data).into_iter().for_each(common::kill);
            is_noticed(&host, data, &cluster, "gocryptfs was killed", SOON, kill).await;
            let stop = || servers_of(data).into_iter().for_each(|pid| signal(pid, Signal::STOP));
            let patience = Duration::from_secs(1);
            is_noticed(&host, data, &cluster, "gocryptfs stands still", patience, stop).await;
        } else {
            let inner = files.join("v");
            let take = || assert_ne!(key_of(&inner, true), "present");
            is_noticed(&host, data, &cluster, "the key was taken", SOON, take).await;
            let over = || {
                let done = Command::new("mount").args(["-t", "tmpfs", "x"]).arg(&files).status();
                assert!(done.unwrap().success());
            };
            is_noticed(&host, data, &cluster, "something was mounted over it", SOON, over).await;
        }
        host.destroy(&cluster).await.unwrap();
        common::nothing_left(data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_somebody_takes_out_of_the_kernel_is_noticed() {
    if let Some(reason) = common::lacking_for_a_disk() {
        return skipped(reason);
    }
    let disk = EncryptingDisk::mount();
    let host = common::open(&disk.data, Some(Encryption::Fscrypt)).await.unwrap();
    let cluster = common::cluster(144);
    host.create(&cluster).await.unwrap();
    host.administration(cluster.id).await.unwrap().write_canary(CANARY).await.unwrap();
    let files = volume(&disk.data, &cluster, 0).join("files");
    let take = || assert_ne!(key_of(&files, true), "present");
    is_noticed(&host, &disk.data, &cluster, "the key was taken", SOON, take).await;
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_removed_is_told_and_its_engine_goes_on() {
    if let Some(reason) = common::lacking_for_a_disk() {
        return skipped(reason);
    }
    let Place { folder, host } = place(Some(Encryption::FscryptImage)).await;
    let cluster = common::cluster(145);
    host.create(&cluster).await.unwrap();
    std::fs::remove_file(volume(folder.path(), &cluster, 0).join("image")).unwrap();
    let found = looked(&host, &cluster, SOON).await;
    let Looked::Warned(reason) = found else { panic!("{found:?}") };
    assert!(reason.contains("pg_dump"), "{reason}");
    assert!(host.is_running(cluster.id), "its data would be gone for good");
    host.destroy(&cluster).await.unwrap();
}
