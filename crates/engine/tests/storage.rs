//! One tenant that stores without end, a machine whose disk is full, and what it costs the others.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{cluster, eventually, lacking_for_a_disk, place, session, skipped, volume};
use engine::{Host, Measured};
use model::{Cluster, ClusterId, Encryption, Enforcement, Fullness, StorageLimit};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

const MIB: i64 = 1_024;

/// A serverless cluster with this limit.
fn limited(routing_id: u32, mib: i64) -> Cluster {
    let mut cluster = cluster(routing_id);
    cluster.asked.storage_mib_limit = Some(mib);
    cluster
}

/// Measures again and again, as the reconciler does, as long as it lives.
struct Watch {
    limit_bytes: Arc<AtomicU64>,
    is_frozen: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    fn over(host: &Arc<Host>, cluster: &Cluster) -> Self {
        let limit_bytes = Arc::new(AtomicU64::new(cluster.storage().bytes()));
        let is_frozen = Arc::new(AtomicBool::new(false));
        let (host, id) = (host.clone(), cluster.id);
        let (limit, frozen) = (limit_bytes.clone(), is_frozen.clone());
        let task = tokio::spawn(async move {
            loop {
                let limit = StorageLimit::from_bytes(limit.load(Ordering::Relaxed)).unwrap();
                host.set_frozen(frozen.load(Ordering::Relaxed));
                let _ = host.storage(id, limit).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { limit_bytes, is_frozen, task }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn measured(host: &Arc<Host>, id: ClusterId, limit: StorageLimit) -> Measured {
    host.storage(id, limit).await.unwrap().unwrap()
}

/// Stores until that is refused; returns how it was refused.
async fn fill(client: &Client, table: &str) -> tokio_postgres::Error {
    loop {
        let more = format!("INSERT INTO {table} SELECT repeat('x', 900) FROM generate_series(1, 20000)");
        if let Err(refused) = client.batch_execute(&more).await {
            return refused;
        }
    }
}

/// Gives back space, as soon as there is room for what that needs.
async fn give_back(client: &Client, sql: &str) {
    let begun = std::time::Instant::now();
    while let Err(refused) = client.batch_execute(sql).await {
        assert_eq!(refused.code(), Some(&SqlState::DISK_FULL), "{refused:?}");
        assert!(begun.elapsed() < common::SOON, "{sql} finds no room: {refused:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Stores until it is refused although all of the limit was given.
async fn fill_wholly(client: &Client, table: &str) {
    for _ in 0..8 {
        let refused = fill(client, table).await;
        let refused = refused.as_db_error().unwrap_or_else(|| panic!("the session broke: {refused:?}"));
        assert_eq!(refused.code(), &SqlState::DISK_FULL, "{refused}");
        assert!(refused.hint().is_some_and(|hint| hint.contains("free disk space")), "{refused:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// When the engine last came up after a crash of one of its processes, or was started.
async fn born(client: &Client) -> String {
    client.query_one("SELECT pg_postmaster_start_time()::text || pg_backend_pid()", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cluster_refuses_what_grows_and_lets_everything_else_go_on() {
    if let Some(reason) = lacking_for_a_disk() {
        return skipped(reason);
    }
    let place = place(Some(Encryption::FscryptImage)).await;
    let (full, other) = (limited(11, MIB), limited(12, MIB));
    for cluster in [&full, &other] {
        place.host.create(cluster).await.unwrap();
        common::maria(&place.host.administration(cluster.id).await.unwrap()).await;
    }
    let watch = Watch::over(&place.host, &full);
    let client = session(&place.host, full.id, "maria", "defaultdb").await;
    let beside = session(&place.host, other.id, "maria", "defaultdb").await;
    beside.batch_execute("CREATE TABLE t (x text)").await.unwrap();
    client
        .batch_execute("CREATE TABLE kept (x int); INSERT INTO kept SELECT generate_series(1, 1000)")
        .await
        .unwrap();
    client.batch_execute("CREATE TABLE t (x text); CREATE UNLOGGED TABLE u (x text)").await.unwrap();
    let began = born(&client).await;
    fill_wholly(&client, "t").await;

    let limit = full.storage();
    let found = measured(&place.host, full.id, limit).await.usage;
    assert_eq!((found.fullness, found.enforcement), (Fullness::Full, Enforcement::Enforced), "{found:?}");
    assert!(
        found.used_bytes <= limit.data_bytes() && found.wal_used_bytes.unwrap() < limit.wal_bytes(),
        "{found:?}"
    );
    let on_disk: u64 = ["image", "wal"]
        .iter()
        .map(|name| {
            std::fs::metadata(volume(place.folder.path(), &full, 0).join(name)).unwrap().blocks() * 512
        })
        .sum();
    assert!(on_disk <= limit.bytes() + (64 << 20), "it takes {on_disk} bytes of the machine's disk");

    // What grows is refused by every way.
    for grows in [
        "CREATE TABLE v AS SELECT repeat('x', 900) AS x FROM generate_series(1, 200000)",
        "CREATE INDEX ON t (x)",
    ] {
        let refused = client.batch_execute(grows).await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::DISK_FULL), "{grows}: {refused:?}");
    }
    // Reading, and what gives back, goes on; also a checkpoint, with new transactions to write down.
    assert_eq!(number(&client, "SELECT count(*) FROM kept").await, 1_000);
    let rows = number(&client, "SELECT count(*) FROM t").await;
    for _ in 0..500 {
        client.batch_execute("DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 1)").await.unwrap();
    }
    place.host.administration(full.id).await.unwrap().checkpoint().await.unwrap();
    assert_eq!(number(&client, "SELECT count(*) FROM t").await, rows - 500);
    client.batch_execute("DELETE FROM t").await.unwrap();
    // Somebody stored up to the last block again and again, so the next step is some seconds away.
    give_back(&client, "VACUUM t").await;
    beside
        .batch_execute("INSERT INTO t SELECT repeat('x', 900) FROM generate_series(1, 10000)")
        .await
        .unwrap();

    // It recovers by itself.
    eventually("there is room again", || {
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(measured(&place.host, full.id, limit)).usage.fullness
                != Fullness::Full
        })
    });
    client
        .batch_execute("INSERT INTO t SELECT repeat('x', 900) FROM generate_series(1, 10000)")
        .await
        .unwrap();

    // A larger limit counts at once, on the living cluster.
    fill_wholly(&client, "u").await;
    watch.limit_bytes.store(2 << 30, Ordering::Relaxed);
    eventually("it has grown", || {
        tokio::task::block_in_place(|| {
            let larger = StorageLimit::from_gib(2).unwrap();
            tokio::runtime::Handle::current().block_on(measured(&place.host, full.id, larger)).usage.fullness
                == Fullness::Ample
        })
    });
    client
        .batch_execute("INSERT INTO u SELECT repeat('x', 900) FROM generate_series(1, 20000)")
        .await
        .unwrap();
    // A machine that has nothing left lets nobody grow.
    watch.is_frozen.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(fill(&client, "u").await.code(), Some(&SqlState::DISK_FULL));
    watch.is_frozen.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.batch_execute("TRUNCATE u; DROP TABLE t").await.unwrap();
    client
        .batch_execute("INSERT INTO u SELECT repeat('x', 900) FROM generate_series(1, 10000)")
        .await
        .unwrap();
    assert_eq!(born(&client).await, began, "the engine was started again");

    // What was freed goes back to the machine.
    place.host.administration(full.id).await.unwrap().checkpoint().await.unwrap();
    let image = volume(place.folder.path(), &full, 0).join("image");
    eventually("the image shrinks on the disk below", || {
        std::fs::metadata(&image).unwrap().blocks() * 512 < 300 << 20
    });
    drop(watch);
    place.host.shutdown().await;
    common::nothing_left(place.folder.path());
}

/// As after a limit that was lowered, or when limits came to clusters that had none.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_far_above_its_limit_wakes_and_can_be_emptied() {
    if let Some(reason) = lacking_for_a_disk() {
        return skipped(reason);
    }
    let place = place(Some(Encryption::FscryptImage)).await;
    let mut cluster = limited(11, 4 * MIB);
    place.host.create(&cluster).await.unwrap();
    common::maria(&place.host.administration(cluster.id).await.unwrap()).await;
    let client = session(&place.host, cluster.id, "maria", "defaultdb").await;
    let more = "INSERT INTO t SELECT repeat('x', 900) FROM generate_series(1, 1200000)";
    client.batch_execute(&format!("CREATE UNLOGGED TABLE t (x text); {more}")).await.unwrap();
    drop(client);
    cluster.asked.storage_mib_limit = Some(MIB);
    let mut used_before = 0;
    for _ in 0..3 {
        place.host.stop(cluster.id).await.unwrap();
        place.host.start(&cluster).await.unwrap();
        let found = measured(&place.host, cluster.id, cluster.storage()).await.usage;
        assert!(found.used_bytes > cluster.storage().bytes() + (64 << 20), "{found:?}");
        assert_eq!(found.fullness, Fullness::Full);
        let client = session(&place.host, cluster.id, "maria", "defaultdb").await;
        let refused = fill(&client, "t").await;
        assert_eq!(refused.code(), Some(&SqlState::DISK_FULL), "{refused:?}");
        let grown = measured(&place.host, cluster.id, cluster.storage()).await.usage.used_bytes;
        assert!(used_before == 0 || grown < used_before + (4 << 20), "{grown} after {used_before}");
        used_before = grown;
    }
    let _watch = Watch::over(&place.host, &cluster);
    let client = session(&place.host, cluster.id, "maria", "defaultdb").await;
    // It makes the first page of an index.
    give_back(&client, "TRUNCATE t").await;
    eventually("there is room again", || {
        tokio::task::block_in_place(|| {
            let looked = measured(&place.host, cluster.id, cluster.storage());
            tokio::runtime::Handle::current().block_on(looked).usage.fullness == Fullness::Ample
        })
    });
    client
        .batch_execute("INSERT INTO t SELECT repeat('x', 900) FROM generate_series(1, 10000)")
        .await
        .unwrap();
    place.host.shutdown().await;
}

/// Somebody with the disk puts an older image of the write-ahead log in the place of the newer, or takes it away.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_does_not_belong_to_the_data_starts_nothing() {
    if let Some(reason) = lacking_for_a_disk() {
        return skipped(reason);
    }
    let place = place(Some(Encryption::FscryptImage)).await;
    let cluster = limited(11, MIB);
    place.host.create(&cluster).await.unwrap();
    common::maria(&place.host.administration(cluster.id).await.unwrap()).await;
    let own = volume(place.folder.path(), &cluster, 0);
    let copy = |from: &str, to: &str| {
        let copied = std::process::Command::new("cp")
            .arg("--sparse=always")
            .args([own.join(from), own.join(to)])
            .status();
        assert!(copied.unwrap().success());
    };
    place.host.stop(cluster.id).await.unwrap();
    copy("wal", "older");
    place.host.start(&cluster).await.unwrap();
    let client = session(&place.host, cluster.id, "maria", "defaultdb").await;
    client
        .batch_execute("CREATE TABLE t (x int); INSERT INTO t SELECT generate_series(1, 200000)")
        .await
        .unwrap();
    client.batch_execute("CHECKPOINT").await.unwrap_or_default();
    drop(client);
    place.host.stop(cluster.id).await.unwrap();
    std::fs::rename(own.join("wal"), own.join("newer")).unwrap();
    let refused = place.host.start(&cluster).await.unwrap_err().to_string();
    assert!(refused.contains("write-ahead log is missing"), "{refused}");
    copy("older", "wal");
    let refused = place.host.start(&cluster).await.unwrap_err().to_string();
    assert!(refused.contains("the engine does not answer"), "{refused}");
    std::fs::rename(own.join("newer"), own.join("wal")).unwrap();
    place.host.start(&cluster).await.unwrap();
    let client = session(&place.host, cluster.id, "maria", "defaultdb").await;
    assert_eq!(number(&client, "SELECT count(*) FROM t").await, 200_000);
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_files_of_a_session_have_a_limit_that_no_tenant_changes() {
    let place = place(common::kinds().first().copied()).await;
    let cluster = limited(11, MIB);
    place.host.create(&cluster).await.unwrap();
    common::maria(&place.host.administration(cluster.id).await.unwrap()).await;
    let client = session(&place.host, cluster.id, "maria", "defaultdb").await;
    for attempt in [
        "SET temp_file_limit = -1",
        "ALTER DATABASE defaultdb SET temp_file_limit = -1",
        "ALTER ROLE maria SET temp_file_limit = -1",
    ] {
        let refused = client.batch_execute(attempt).await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{attempt}: {refused:?}");
    }
    let sort = "SELECT count(*) FROM (SELECT repeat('x', 900) || g AS x FROM generate_series(1, 400000) g ORDER BY 1 OFFSET 1) s";
    let refused = client.batch_execute(sort).await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::CONFIGURATION_LIMIT_EXCEEDED), "{refused:?}");
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_lies_in_its_own_part_and_nothing_is_left_of_it_when_the_cluster_sleeps() {
    if let Some(reason) = lacking_for_a_disk() {
        return skipped(reason);
    }
    let place = place(Some(Encryption::FscryptImage)).await;
    let mut cluster = limited(11, 10 * MIB);
    place.host.create(&cluster).await.unwrap();
    let own = volume(place.folder.path(), &cluster, 0);
    let larger = cluster.storage().wal_bytes();
    cluster.asked.storage_mib_limit = Some(MIB);
    // The engine counts on what there was when it started.
    let lowered = measured(&place.host, cluster.id, cluster.storage()).await.usage;
    assert_eq!((lowered.limit_bytes, lowered.wal_limit_bytes), (1 << 30, Some(larger)));
    for _ in 0..2 {
        let mounts = common::mounts_below(&own.join("files"));
        let is_mounted = |name: &str| mounts.iter().any(|at| Path::new(at).ends_with(name));
        assert!(is_mounted("pg/pg_wal") && is_mounted("pg/pg_xact"), "{mounts:?}");
        let segments = std::fs::read_dir(own.join("wal-files/v/pg_wal")).unwrap().count();
        assert!(segments > 1, "the write-ahead log lies elsewhere");
        place.host.stop(cluster.id).await.unwrap();
        common::nothing_left(place.folder.path());
        place.host.start(&cluster).await.unwrap();
        let found = measured(&place.host, cluster.id, cluster.storage()).await.usage;
        assert_eq!(found.wal_limit_bytes, Some(cluster.storage().wal_bytes()));
    }
    place.host.shutdown().await;
}

/// What its log says of a table is done again before it is known that it was dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_cluster_that_dropped_a_table_recovers_after_a_kill() {
    if let Some(reason) = lacking_for_a_disk() {
        return skipped(reason);
    }
    let place = place(Some(Encryption::FscryptImage)).await;
    let full = limited(11, MIB);
    place.host.create(&full).await.unwrap();
    common::maria(&place.host.administration(full.id).await.unwrap()).await;
    let client = session(&place.host, full.id, "maria", "defaultdb").await;
    client.batch_execute("CREATE TABLE t (x text); CREATE TABLE kept (x text)").await.unwrap();
    let _watch = Watch::over(&place.host, &full);
    assert_eq!(fill(&client, "t").await.code(), Some(&SqlState::DISK_FULL));
    let last = "DELETE FROM t WHERE ctid = (SELECT max(ctid) FROM t)";
    // A session that is the first since autovacuum was there needs room, which it is given when it was refused.
    let begun = std::time::Instant::now();
    let administration = loop {
        match place.host.administration(full.id).await {
            Ok(administration) => break administration,
            Err(refused) => assert!(begun.elapsed() < common::SOON, "{refused}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    administration.checkpoint().await.unwrap();
    client.batch_execute(&format!("{last}; DROP TABLE t")).await.unwrap();
    client
        .batch_execute("INSERT INTO kept SELECT repeat('x', 900) FROM generate_series(1, 20000)")
        .await
        .unwrap();
    let sandbox = common::processes_of(place.folder.path());
    assert!(!sandbox.is_empty());
    sandbox.into_iter().for_each(common::kill);
    eventually("the engine has ended", || !place.host.is_running(full.id));
    place.host.start(&full).await.unwrap();
    let client = session(&place.host, full.id, "maria", "defaultdb").await;
    assert_eq!(number(&client, "SELECT count(*) FROM kept").await, 20_000);
    let found = measured(&place.host, full.id, full.storage()).await.usage;
    assert!(found.used_bytes < full.storage().data_bytes(), "{found:?}");
    place.host.shutdown().await;
}

/// As an engine that was taken over makes its folders.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_cannot_be_counted_counts_as_above_its_limit() {
    let place = place(Some(Encryption::None)).await;
    let cluster = limited(11, MIB);
    place.host.create(&cluster).await.unwrap();
    let found = measured(&place.host, cluster.id, cluster.storage()).await.usage;
    assert_eq!((found.fullness, found.enforcement), (Fullness::Ample, Enforcement::Watched));
    let own = volume(place.folder.path(), &cluster, 0).join("files/pg");
    std::fs::create_dir_all((0..40).fold(own.clone(), |path, _| path.join("d"))).unwrap();
    for _ in 0..5 {
        assert!(place.host.storage(cluster.id, cluster.storage()).await.is_err(), "it may be chance");
    }
    let found = measured(&place.host, cluster.id, cluster.storage()).await.usage;
    assert!(found.used_bytes >= cluster.storage().stopped_at_bytes(), "{found:?}");
    std::fs::remove_dir_all(own.join("d")).unwrap();
    let found = measured(&place.host, cluster.id, cluster.storage()).await.usage;
    assert_eq!(found.fullness, Fullness::Ample);
    place.host.shutdown().await;
}

/// The disk below is filled by somebody else, while a client counts what was acknowledged to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_really_full_loses_nothing_that_was_acknowledged() {
    if let Some(reason) = lacking_for_a_disk() {
        return skipped(reason);
    }
    let disk = common::EncryptingDisk::mount();
    let host = common::open(&disk.data, Some(Encryption::FscryptImage)).await.unwrap();
    let cluster = limited(11, 10 * MIB);
    host.create(&cluster).await.unwrap();
    common::maria(&host.administration(cluster.id).await.unwrap()).await;
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    client.batch_execute("CREATE TABLE t (x int PRIMARY KEY, filler text)").await.unwrap();
    let filler = disk.data.join("filler");
    let mut acknowledged = 0_i32;
    let refused = loop {
        let row = "INSERT INTO t SELECT $1, repeat(md5(random()::text), 200)";
        match tokio::time::timeout(common::SOON, client.execute(row, &[&acknowledged])).await {
            Ok(Ok(_)) => acknowledged += 1,
            Ok(Err(refused)) => break refused.to_string(),
            Err(_) => break "no answer".to_owned(),
        }
        if acknowledged == 500 {
            take_all(&filler);
        }
        assert!(acknowledged < 1_000_000, "a full disk refuses nothing");
    };
    // As the reconciler does it: a file system that cannot be written to, or an engine that ended, is stopped at once.
    host.stop_at_once(cluster.id).await.unwrap();
    assert!(acknowledged >= 500, "{refused}");
    // As long as the disk is full nothing is touched: a journal that is played back in part would do harm.
    let refused = host.start(&cluster).await.unwrap_err().to_string();
    assert!(refused.contains("the disk below is full"), "{refused}");
    let refused = host.create(&limited(12, MIB)).await.unwrap_err().to_string();
    assert!(refused.contains("the machine keeps"), "{refused}");
    std::fs::remove_file(&filler).unwrap();
    host.start(&cluster).await.unwrap();
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    let kept = number(&client, "SELECT count(*) FROM t").await;
    assert!(
        (i64::from(acknowledged)..=i64::from(acknowledged) + 1).contains(&kept),
        "{kept} of {acknowledged} are left"
    );
    assert_eq!(number(&client, "SELECT max(x)::int8 + 1 FROM t").await, kept, "a row in between is lost");
    host.shutdown().await;
    drop(disk);
}

/// Takes what a disk has left.
fn take_all(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create_new(path).unwrap();
    let piece = vec![0x55; 1 << 20];
    while file.write_all(&piece).is_ok() {}
    let _ = file.write_all(&piece[..4_096]);
    let _ = file.sync_all();
}

/// Its superblock says that it had errors, as after a disk that failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_with_errors_is_checked_before_it_is_used_again() {
    use std::os::unix::fs::FileExt;
    if let Some(reason) = lacking_for_a_disk() {
        return skipped(reason);
    }
    let place = place(Some(Encryption::FscryptImage)).await;
    let cluster = limited(11, MIB);
    place.host.create(&cluster).await.unwrap();
    place.host.stop(cluster.id).await.unwrap();
    let own = volume(place.folder.path(), &cluster, 0);
    let state = |name: &str| {
        let mut state = [0; 2];
        std::fs::File::open(own.join(name)).unwrap().read_exact_at(&mut state, 1_024 + 0x3A).unwrap();
        u16::from_le_bytes(state)
    };
    for name in ["image", "wal"] {
        let spoil = std::process::Command::new("debugfs")
            .args(["-w", "-R", "set_super_value state 3"])
            .arg(own.join(name))
            .output();
        assert!(spoil.unwrap().status.success() && state(name) & 2 != 0);
    }
    place.host.start(&cluster).await.unwrap();
    place.host.stop(cluster.id).await.unwrap();
    assert_eq!((state("image") & 2, state("wal") & 2), (0, 0), "it was used with its errors");
    place.host.shutdown().await;
}
