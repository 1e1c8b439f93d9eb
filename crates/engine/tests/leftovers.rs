//! What a killed Chitin leaves is cleared by the next one, and nothing of its clusters is lost.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{EncryptingDisk, Holder, eventually, folder, mounts_below, place, skipped};
use engine::Host;
use model::{Cluster, ClusterId, Encryption};

/// Tells the process that is to be killed where to work and how.
const DATA: &str = "CHITIN_TEST_DATA";
const ENCRYPTION: &str = "CHITIN_TEST_ENCRYPTION";
const ROUTING_ID: &str = "CHITIN_TEST_ROUTING_ID";
const ID: &str = "6d0c4a52-9d1c-4d0e-9c0e-3b1f5a7c2d10";
const CANARY: &str = "canary-of-the-killed";

async fn open(data: &Path, encryption: Encryption) -> Arc<Host> {
    common::open(data, Some(encryption)).await.unwrap()
}

fn cluster(routing_id: u32) -> Cluster {
    common::cluster_of(ID.parse().unwrap(), routing_id)
}

/// A routing id that no other run of these tests has: processes are told by the user that it gives them.
fn routing_id(number: u32) -> u32 {
    10_000_000 + std::process::id() % 8_000_000 * 10 + number
}

/// Processes that run as the cluster's own user, or name the folder.
fn processes_of(folder: &Path, routing_id: u32) -> Vec<u32> {
    let uid = format!("Uid:\t{}\t", 1_900_000_000 + routing_id);
    let folder = format!("{}/clusters", folder.display());
    let is_of = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&folder) || status.contains(&uid)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_of).collect()
}

/// Runs [`holds_a_cluster_until_it_is_killed`] in a process of its own and kills it.
fn make_and_be_killed(data: &Path, encryption: Encryption, routing_id: u32) {
    let number = routing_id.to_string();
    let environment =
        [(DATA, data.as_os_str()), (ENCRYPTION, encryption.as_str().as_ref()), (ROUTING_ID, number.as_ref())];
    let mut holder = Holder::start("holds_a_cluster_until_it_is_killed", &environment);
    holder.await_word("the cluster is ready");
    assert!(!processes_of(data, routing_id).is_empty());
    holder.kill();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started, and killed, by the tests beside it"]
async fn holds_a_cluster_until_it_is_killed() {
    let (Ok(data), Ok(kind)) = (std::env::var(DATA), std::env::var(ENCRYPTION)) else {
        return;
    };
    let kinds = [Encryption::Fscrypt, Encryption::FscryptImage, Encryption::Gocryptfs, Encryption::None];
    let kind = kinds.into_iter().find(|known| known.as_str() == kind).unwrap();
    let host = open(Path::new(&data), kind).await;
    let cluster = cluster(std::env::var(ROUTING_ID).unwrap().parse().unwrap());
    host.create(&cluster).await.unwrap();
    host.administration(cluster.id).await.unwrap().write_canary(CANARY).await.unwrap();
    println!("the cluster is ready");
    std::future::pending::<()>().await;
}

async fn survives_a_kill(data: &Path, encryption: Encryption, routing_id: u32) {
    let cluster = cluster(routing_id);
    make_and_be_killed(data, encryption, routing_id);
    eventually("engines die with the process that started them", || {
        processes_of(data, routing_id).is_empty()
    });

    let host = open(data, encryption).await;
    assert_eq!(mounts_below(data), Vec::<String>::new(), "{encryption:?}: a mount is left");
    let state = host.volume_state(cluster.id).unwrap();
    assert_eq!(state.is_unlocked, encryption == Encryption::None, "{state:?}");
    host.start(&cluster).await.unwrap();
    let found = host.search(cluster.id, CANARY).await.unwrap();
    assert!(found.hits_in_plaintext > 0, "what was acknowledged is still there: {found:?}");
    assert_eq!(found.hits > 0, encryption == Encryption::None, "{found:?}");
    host.destroy(&cluster).await.unwrap();
    assert!(host.on_disk().is_empty());
    common::nothing_left(data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_chitin_leaves_nothing_that_the_next_does_not_clear() {
    for kind in common::kinds().into_iter().chain([Encryption::None]) {
        let folder = folder();
        survives_a_kill(folder.path(), kind, routing_id(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_killed_chitin_left_in_the_kernel_is_taken_out() {
    if let Some(reason) = common::lacking_for_a_disk() {
        return skipped(reason);
    }
    let disk = EncryptingDisk::mount();
    survives_a_kill(&disk.data, Encryption::Fscrypt, routing_id(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_made_clusters_go_and_a_damaged_one_stays_without_stopping_the_others() {
    let folder = folder();
    let clusters = folder.path().join("clusters");
    let (half, damaged) = (ClusterId::random(), ClusterId::random());
    for id in [half, damaged] {
        std::fs::create_dir_all(clusters.join(id.to_string()).join("files/pg")).unwrap();
        std::fs::write(clusters.join(id.to_string()).join("key.json"), b"{}").unwrap();
    }
    std::fs::write(clusters.join(damaged.to_string()).join("complete.json"), b"nonsense").unwrap();
    let host = open(folder.path(), Encryption::None).await;
    assert_eq!(host.on_disk(), [damaged], "nobody was told that the half-made one exists");
    let whole = cluster(73);
    host.create(&whole).await.unwrap();
    assert!(host.is_running(whole.id));
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_stops_waiting_does_not_break_the_work_off() {
    let folder = folder();
    let host = open(folder.path(), Encryption::None).await;
    let wanted = cluster(74);
    let impatient = tokio::time::timeout(Duration::from_millis(50), host.create(&wanted)).await;
    assert!(impatient.is_err(), "no cluster is made that fast");
    // Waits for its turn behind the first, and finds it made.
    host.create(&wanted).await.unwrap();
    assert!(host.is_running(wanted.id));
    host.destroy(&wanted).await.unwrap();
    assert!(host.on_disk().is_empty());
}

/// While a file of it is open, and while its folder lies elsewhere, the kernel has it unlocked; so every answer says it.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_could_not_be_locked_counts_as_unlocked_until_it_is() {
    if let Some(reason) = common::lacking_for_a_disk() {
        return skipped(reason);
    }
    let place = place(Some(Encryption::FscryptImage)).await;
    let cluster = common::cluster(151);
    place.host.create(&cluster).await.unwrap();
    let own = common::volume(place.folder.path(), &cluster, 0);
    let held = std::fs::File::open(own.join("files/v/pg/PG_VERSION")).unwrap();
    for _ in 0..2 {
        let refused = place.host.stop(cluster.id).await.unwrap_err().to_string();
        assert!(
            refused.contains("still") || refused.contains("open") || refused.contains("busy"),
            "{refused}"
        );
        assert!(place.host.volume_state(cluster.id).unwrap().is_unlocked);
        assert_eq!(place.host.still_unlocked().await.len(), 1);
        assert!(place.host.start(&cluster).await.is_err(), "it is not used beside whoever holds it");
    }
    drop(held);
    place.host.stop(cluster.id).await.unwrap();
    assert_eq!(place.host.still_unlocked().await, []);
    common::nothing_left(place.folder.path());

    place.host.start(&cluster).await.unwrap();
    let elsewhere = place.folder.path().join("elsewhere");
    std::fs::rename(&own, &elsewhere).unwrap();
    for _ in 0..2 {
        assert!(place.host.stop(cluster.id).await.is_err());
        let left = place.host.still_unlocked().await;
        assert!(left[0].1.contains("move the data directory back"), "{left:?}");
    }
    std::fs::rename(&elsewhere, &own).unwrap();
    place.host.stop(cluster.id).await.unwrap();
    common::nothing_left(place.folder.path());
    place.host.start(&cluster).await.unwrap();
    place.host.shutdown().await;
}
