//! A cluster gets a new data key while it works: nothing is lost, nothing of the old volume is left, nobody waits.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use common::{EncryptingDisk, Place, SOON, cluster, folder, next_of, open, place, session, skipped, volume};
use engine::{Copied, Error};
use keys::{DataKey, KeyFailure, KeyRing, RootKey, WrappedKey};
use model::{Cluster, ClusterId, Encryption};

fn key_text(folder: &Path, cluster: &Cluster, generation: u32) -> Option<String> {
    std::fs::read_to_string(volume(folder, cluster, generation).join("key.json")).ok()
}

/// Everything that a cluster's folder holds but the jail's `etc`.
fn left(folder: &Path, cluster: &Cluster) -> Vec<String> {
    let entries = std::fs::read_dir(volume(folder, cluster, 0)).unwrap().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name != "etc").collect();
    names.sort();
    names
}

/// When each file below a folder was last written or given away.
fn stamps(folder: &Path) -> std::collections::HashMap<std::path::PathBuf, (i64, i64)> {
    let mut found = std::collections::HashMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let facts = entry.metadata().unwrap();
        if facts.is_dir() {
            found.extend(stamps(&entry.path()));
        } else {
            found.insert(entry.path(), (facts.ctime(), facts.ctime_nsec()));
        }
    }
    found
}

async fn gets_a_new_key_while_it_works(data: &Path, kind: Encryption, routing_id: u32) {
    let host = open(data, Some(kind)).await.unwrap();
    let cluster = cluster(routing_id);
    host.create(&cluster).await.unwrap();
    let administration = host.administration(cluster.id).await.unwrap();
    common::maria(&administration).await;
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    client
        .batch_execute(
            "CREATE TABLE t AS SELECT g, repeat(md5(g::text), 20) AS body FROM generate_series(1, 20000) g;
             CREATE UNLOGGED TABLE u AS SELECT 7 AS x; CREATE INDEX ON t (g)",
        )
        .await
        .unwrap();
    let old_key = key_text(data, &cluster, 0).unwrap();
    let sum = "SELECT md5(string_agg(g || body, ',' ORDER BY g)) FROM t";
    // It works on while it is copied.
    let writing = tokio::spawn(async move {
        let mut count = 20_000;
        loop {
            count += 1;
            let line = format!("INSERT INTO t VALUES ({count}, 'late')");
            if client.batch_execute(&line).await.is_err() {
                return count;
            }
            if count % 50 == 0 {
                client.batch_execute("CHECKPOINT").await.ok();
            }
        }
    });
    assert!(!host.is_copied(cluster.id));
    assert!(
        matches!(host.switch_volume(&cluster, next_of(&host, &cluster)).await, Err(Error::Refused(_))),
        "nothing was copied yet"
    );
    assert_eq!(host.copy_volume(&cluster).await.unwrap(), Copied::Done);
    assert!(host.is_running(cluster.id), "the engine was not held up");
    let progress = host.copy_progress(cluster.id).unwrap();
    assert!(progress.done_bytes == progress.total_bytes && progress.total_bytes > 1 << 20, "{progress:?}");
    assert!(host.is_copied(cluster.id));
    assert_eq!(host.volume_state(cluster.id).unwrap().encryption, kind);

    let wanted = administration.write_canary("canary-before-the-switch").await;
    wanted.unwrap();
    drop(administration);
    host.switch_volume(&cluster, next_of(&host, &cluster)).await.unwrap();
    assert!(!host.is_running(cluster.id));
    assert!(writing.await.unwrap() > 20_001, "it wrote while it was copied");
    assert_eq!(left(data, &cluster), ["complete.json", "volume-1"], "{kind:?}");
    let new_key = key_text(data, &cluster, 1).unwrap();
    assert_ne!(old_key, new_key);

    host.start(&cluster).await.unwrap();
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    let count = client.query_one("SELECT count(*), count(*) FILTER (WHERE body = 'late') FROM t", &[]);
    let count = count.await.unwrap();
    let (all, late): (i64, i64) = (count.get(0), count.get(1));
    assert!(all == 20_000 + late && late > 0, "{all} {late}");
    let before = client.query_one(sum, &[]).await.unwrap().get::<_, String>(0);
    let unlogged = client.query_one("SELECT x FROM u", &[]).await.unwrap();
    assert_eq!(unlogged.get::<_, i32>(0), 7, "the engine ended cleanly, so unlogged tables are kept");
    let found = host.search(cluster.id, "canary-before-the-switch").await.unwrap();
    assert!(found.hits_in_plaintext > 0, "{found:?}");
    assert_eq!(found.hits > 0, kind == Encryption::None, "{found:?}");
    drop(client);

    // Once more, asleep: the second generation goes the same way.
    host.stop(cluster.id).await.unwrap();
    assert_eq!(host.copy_volume(&cluster).await.unwrap(), Copied::Done);
    assert_eq!(host.volume_state(cluster.id).unwrap().is_unlocked, kind == Encryption::None);
    host.switch_volume(&cluster, next_of(&host, &cluster)).await.unwrap();
    assert_eq!(left(data, &cluster), ["complete.json", "volume-2"]);
    host.start(&cluster).await.unwrap();
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    assert_eq!(client.query_one(sum, &[]).await.unwrap().get::<_, String>(0), before);
    drop(client);
    host.destroy(&cluster).await.unwrap();
    assert!(host.on_disk().is_empty());
    common::nothing_left(data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_gets_a_new_data_key_while_it_works() {
    for (kind, routing_id) in [Encryption::None].into_iter().chain(common::kinds()).zip(101..) {
        let folder = folder();
        gets_a_new_key_while_it_works(folder.path(), kind, routing_id).await;
    }
    if let Some(reason) = common::lacking_for_a_disk() {
        skipped(&format!("with fscrypt: {reason}"));
    } else {
        let disk = EncryptingDisk::mount();
        gets_a_new_key_while_it_works(&disk.data, Encryption::Fscrypt, 105).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_wants_the_cluster_does_not_wait_for_its_copy() {
    let Place { folder, host } = place(Some(Encryption::None)).await;
    let cluster = cluster(106);
    host.create(&cluster).await.unwrap();
    common::maria(&host.administration(cluster.id).await.unwrap()).await;
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    client
        .batch_execute(
            "CREATE TABLE t AS SELECT g, repeat(md5(g::text), 40) AS body FROM generate_series(1, 200000) g",
        )
        .await
        .unwrap();
    drop(client);
    // What was written a moment ago is copied again in any case.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let (other, wanted) = (host.clone(), cluster.clone());
    let copying = tokio::spawn(async move { other.copy_volume(&wanted).await });
    let begun = Instant::now();
    while host.copy_progress(cluster.id).is_none_or(|progress| progress.done_bytes <= 1 << 20) {
        assert!(begun.elapsed() < SOON && !copying.is_finished(), "the copy was not seen under way");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(matches!(host.copy_volume(&cluster).await, Err(Error::Refused(_))), "one at a time");
    host.stop(cluster.id).await.unwrap();
    assert_eq!(copying.await.unwrap().unwrap(), Copied::GivenUp);
    assert!(!host.is_copied(cluster.id));
    assert!(host.switch_volume(&cluster, next_of(&host, &cluster)).await.is_err(), "half a copy is none");
    // What was copied serves the next try, which writes none of it again.
    let copied = volume(folder.path(), &cluster, 1).join("files/pg");
    let before = stamps(&copied);
    assert!(!before.is_empty());
    host.start(&cluster).await.unwrap();
    assert_eq!(host.copy_volume(&cluster).await.unwrap(), Copied::Done);
    host.switch_volume(&cluster, next_of(&host, &cluster)).await.unwrap();
    host.start(&cluster).await.unwrap();
    let after = stamps(&copied);
    assert!(before.iter().any(|(path, stamp)| after.get(path) == Some(stamp)), "{before:?} {after:?}");
    host.destroy(&cluster).await.unwrap();
    assert!(host.on_disk().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_crashed_recovers_before_its_volume_is_switched() {
    let Place { folder, host } = place(Some(Encryption::None)).await;
    let cluster = cluster(107);
    host.create(&cluster).await.unwrap();
    common::maria(&host.administration(cluster.id).await.unwrap()).await;
    assert_eq!(host.copy_volume(&cluster).await.unwrap(), Copied::Done);
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    // Acknowledged, but in the WAL only.
    client.batch_execute("CREATE TABLE t AS SELECT 'late' AS x").await.unwrap();
    for pid in common::processes_of(folder.path()) {
        common::kill(pid);
    }
    host.switch_volume(&cluster, next_of(&host, &cluster)).await.unwrap();
    host.start(&cluster).await.unwrap();
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    assert_eq!(client.query_one("SELECT x FROM t", &[]).await.unwrap().get::<_, String>(0), "late");
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_moves_out_of_plaintext_into_an_encrypted_volume() {
    let Some(kind) = common::kinds().first().copied() else {
        return skipped("nothing encrypts here");
    };
    let Place { folder, host } = place(Some(Encryption::None)).await;
    let cluster = cluster(108);
    host.create(&cluster).await.unwrap();
    host.administration(cluster.id).await.unwrap().write_canary("canary-once-plain").await.unwrap();
    assert!(host.search(cluster.id, "canary-once-plain").await.unwrap().hits > 0);
    host.shutdown().await;
    drop(host);
    let host = common::open_allowing(folder.path(), Some(kind), true).await.unwrap();
    assert_eq!(host.copy_volume(&cluster).await.unwrap(), Copied::Done);
    host.switch_volume(&cluster, next_of(&host, &cluster)).await.unwrap();
    let state = host.volume_state(cluster.id).unwrap();
    assert!(state.encryption == kind && state.is_proven && !state.is_unlocked, "{state:?}");
    host.start(&cluster).await.unwrap();
    let found = host.search(cluster.id, "canary-once-plain").await.unwrap();
    assert!(found.hits == 0 && found.hits_in_plaintext > 0, "{found:?}");
    assert_eq!(left(folder.path(), &cluster), ["complete.json", "volume-1"]);
    host.destroy(&cluster).await.unwrap();
}

/// Whoever had the earlier key-encryption key must not be able to open the copy either.
#[tokio::test(flavor = "multi_thread")]
async fn wrapping_the_data_key_anew_reaches_the_copy_too() {
    let Place { folder, host } = place(Some(Encryption::None)).await;
    let cluster = cluster(109);
    host.create(&cluster).await.unwrap();
    host.stop(cluster.id).await.unwrap();
    assert_eq!(host.copy_volume(&cluster).await.unwrap(), Copied::Done);
    let keys = || [0, 1].map(|generation| key_text(folder.path(), &cluster, generation).unwrap());
    let [old, old_next] = keys();
    host.rewrap(&cluster).await.unwrap();
    let [new, new_next] = keys();
    assert!(old != new && old_next != new_next);
    host.switch_volume(&cluster, next_of(&host, &cluster)).await.unwrap();
    host.start(&cluster).await.unwrap();
    host.destroy(&cluster).await.unwrap();
    assert!(host.on_disk().is_empty());
}

/// A ring whose key can be had, or not for a reason.
#[derive(Debug)]
struct Moody {
    root: RootKey,
    failure: Mutex<Option<KeyFailure>>,
}

impl Moody {
    fn asked(&self) -> Result<(), KeyFailure> {
        self.failure.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl KeyRing for Moody {
    async fn wrap(&self, cluster: &Cluster, key: &DataKey) -> Result<WrappedKey, KeyFailure> {
        self.asked()?;
        KeyRing::wrap(&self.root, cluster, key).await
    }

    async fn unwrap(&self, cluster: ClusterId, wrapped: &WrappedKey) -> Result<DataKey, KeyFailure> {
        self.asked()?;
        KeyRing::unwrap(&self.root, cluster, wrapped).await
    }
}

/// Whoever mistyped a token, or let one end, costs nobody a copy that took hours.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_kept_while_nothing_is_known_of_its_key() {
    let folder = folder();
    let root = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
    let ring = Arc::new(Moody { root, failure: Mutex::default() });
    let host = common::open_with(folder.path(), Some(Encryption::None), ring.clone()).await.unwrap();
    let cluster = cluster(111);
    host.create(&cluster).await.unwrap();
    host.stop(cluster.id).await.unwrap();
    assert_eq!(host.copy_volume(&cluster).await.unwrap(), Copied::Done);
    let (key, reason) = ("transit/keys/shop".to_owned(), "the token has ended".to_owned());
    for silence in [
        KeyFailure::Unauthenticated { key: key.clone(), reason: reason.clone() },
        KeyFailure::Unreachable { key: key.clone(), reason: reason.clone() },
    ] {
        *ring.failure.lock().unwrap() = Some(silence.clone());
        let refused = host.copy_volume(&cluster).await.unwrap_err();
        assert!(matches!(&refused, Error::DataKey(cause) if *cause == silence), "{refused}");
        assert!(host.is_copied(cluster.id), "{silence}");
    }
    // A key that is taken away takes the copy with it.
    *ring.failure.lock().unwrap() = Some(KeyFailure::Denied { key, reason });
    assert!(host.copy_volume(&cluster).await.is_err());
    assert!(!host.is_copied(cluster.id));
    *ring.failure.lock().unwrap() = None;
    host.destroy(&cluster).await.unwrap();
    assert!(host.on_disk().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_key_was_exchanged_is_not_switched_to() {
    let Some(kind) = common::kinds().first().copied() else {
        return skipped("nothing encrypts here");
    };
    let Place { folder, host } = place(Some(kind)).await;
    let cluster = cluster(110);
    host.create(&cluster).await.unwrap();
    host.administration(cluster.id).await.unwrap().write_canary("kept").await.unwrap();
    assert_eq!(host.copy_volume(&cluster).await.unwrap(), Copied::Done);
    // A wrapped key of this very cluster, which opens, but is not the copy's.
    let [own, next] = [0, 1].map(|generation| volume(folder.path(), &cluster, generation).join("key.json"));
    std::fs::copy(&own, &next).unwrap();
    assert!(host.switch_volume(&cluster, next_of(&host, &cluster)).await.is_err());
    assert!(!host.is_copied(cluster.id), "the next copy begins anew");
    host.start(&cluster).await.unwrap();
    assert!(host.search(cluster.id, "kept").await.unwrap().hits_in_plaintext > 0, "nothing was lost");
    assert_eq!(host.copy_volume(&cluster).await.unwrap(), Copied::Done);
    host.switch_volume(&cluster, next_of(&host, &cluster)).await.unwrap();
    host.start(&cluster).await.unwrap();
    host.destroy(&cluster).await.unwrap();
    common::nothing_left(folder.path());
}
