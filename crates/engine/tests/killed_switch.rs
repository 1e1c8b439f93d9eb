//! Chitin is killed at every step of a copy and of a switch. The next start has everything, under one key or the other.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::path::Path;

use common::{
    EncryptingDisk, Holder, cluster_of, eventually, folder, next_of, open, processes_of, skipped, volume,
};
use model::{Cluster, Encryption};

/// Tells the process that is to be killed where to work and how.
const DATA: &str = "CHITIN_TEST_DATA";
const ENCRYPTION: &str = "CHITIN_TEST_ENCRYPTION";
const STEP: &str = "CHITIN_TEST_STEP";
/// What it says when it stands still.
const STOPPED: &str = "stopped at the step";
const ID: &str = "5d0c4a52-9d1c-4d0e-9c0e-3b1f5a7c2d11";
const CANARY: &str = "canary-of-the-killed-switch";
/// Every step, and whether the new key counts after it.
const STEPS: [(&str, bool); 10] = [
    ("copy-begun", false),
    ("copy-keyed", false),
    ("copy-made", false),
    ("copy-first-pass", false),
    ("switch-stopped", false),
    ("switch-copied", false),
    ("switch-synced", false),
    ("switch-marked", true),
    ("switch-shredded", true),
    ("switch-destroyed", true),
];

fn the_cluster() -> Cluster {
    cluster_of(ID.parse().unwrap(), 111)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started, and killed, by the tests beside it"]
async fn switches_until_it_is_killed() {
    let named = (std::env::var(DATA), std::env::var(ENCRYPTION), std::env::var(STEP));
    let (Ok(data), Ok(kind), Ok(step)) = named else {
        return;
    };
    let kinds = [Encryption::Fscrypt, Encryption::FscryptImage, Encryption::Gocryptfs, Encryption::None];
    let kind = kinds.into_iter().find(|known| known.as_str() == kind).unwrap();
    let stop = || {
        println!("{STOPPED}");
        loop {
            std::thread::park();
        }
    };
    fail::cfg_callback(step, stop).unwrap();
    let host = open(Path::new(&data), Some(kind)).await.unwrap();
    let cluster = the_cluster();
    host.start(&cluster).await.unwrap();
    host.copy_volume(&cluster).await.unwrap();
    host.switch_volume(&cluster, next_of(&host, &cluster)).await.unwrap();
    println!("never reached");
}

/// What the cluster's folder shows when the step was reached.
fn is_reached(step: &str, data: &Path, kind: Encryption) -> bool {
    let (old, new) = (volume(data, &the_cluster(), 0), volume(data, &the_cluster(), 1));
    let marker = || std::fs::read_to_string(old.join("complete.json")).unwrap_or_default();
    match step {
        "copy-begun" => true,
        "copy-keyed" | "copy-made" | "copy-first-pass" => new.join("key.json").exists(),
        "switch-stopped" | "switch-copied" | "switch-synced" => {
            new.join("key.json").exists() && (kind == Encryption::None || !is_engine_up(data))
        }
        "switch-marked" => marker().contains("\"generation\":1"),
        "switch-shredded" => marker().contains("\"generation\":1") && !old.join("key.json").exists(),
        _ => marker().contains("\"generation\":1") && !old.join("files").exists(),
    }
}

fn is_engine_up(data: &Path) -> bool {
    processes_of(data).iter().any(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "bwrap")
    })
}

/// Kills the process when it has stopped at the step.
fn kill_at(step: &str, data: &Path, kind: Encryption) {
    let mut holder = Holder::start(
        "switches_until_it_is_killed",
        &[(DATA, data.as_os_str()), (ENCRYPTION, kind.as_str().as_ref()), (STEP, step.as_ref())],
    );
    holder.await_word(STOPPED);
    assert!(is_reached(step, data, kind), "{step} was not reached");
    let said = holder.kill();
    assert!(!said.contains("never reached"), "{step} did not stop it");
    eventually("the killed program's engine ends with it", || !is_engine_up(data));
}

async fn survives_at(step: &str, is_new: bool, data: &Path, kind: Encryption) {
    let host = open(data, Some(kind)).await.unwrap();
    let cluster = the_cluster();
    host.create(&cluster).await.unwrap();
    host.administration(cluster.id).await.unwrap().write_canary(CANARY).await.unwrap();
    host.shutdown().await;
    drop(host);
    let old_key = std::fs::read(volume(data, &cluster, 0).join("key.json")).unwrap();
    kill_at(step, data, kind);

    let host = open(data, Some(kind)).await.unwrap();
    common::nothing_left(data);
    let (counts, other) = if is_new { (1, 0) } else { (0, 1) };
    let key = std::fs::read(volume(data, &cluster, counts).join("key.json")).unwrap();
    assert_eq!(key == old_key, !is_new, "{step}");
    assert!(!volume(data, &cluster, other).join("key.json").exists(), "{step}: a key is left");
    assert!(!volume(data, &cluster, other).join("files").exists(), "{step}: files are left");
    assert_eq!(host.volume_state(cluster.id).unwrap().is_unlocked, kind == Encryption::None, "{step}");
    host.start(&cluster).await.unwrap();
    let found = host.search(cluster.id, CANARY).await.unwrap();
    assert!(found.hits_in_plaintext > 0, "{step} {kind:?}: what was acknowledged is lost");
    assert_eq!(found.hits > 0, kind == Encryption::None, "{step} {kind:?}: {found:?}");
    host.destroy(&cluster).await.unwrap();
    assert!(host.on_disk().is_empty());
    common::nothing_left(data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_of_a_switch_leaves_a_whole_cluster_under_one_key() {
    let kind = match common::lacking_for_a_disk() {
        None => Encryption::FscryptImage,
        Some(reason) => {
            skipped(&format!("with fscrypt-image: {reason}"));
            Encryption::None
        }
    };
    for (step, is_new) in STEPS {
        let folder = folder();
        survives_at(step, is_new, folder.path(), kind).await;
    }
}

/// Where the kinds differ: with both volumes unlocked, and with two keys on the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_is_survived_by_every_kind_of_volume() {
    if let Some(reason) = common::lacking_for_a_disk() {
        return skipped(reason);
    }
    for (step, is_new) in [STEPS[3], STEPS[5], STEPS[7]] {
        let folder = folder();
        survives_at(step, is_new, folder.path(), Encryption::Gocryptfs).await;
        let disk = EncryptingDisk::mount();
        survives_at(step, is_new, &disk.data, Encryption::Fscrypt).await;
    }
}
