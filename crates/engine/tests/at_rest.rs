//! What a thief of the disk finds, and what somebody does who can write to it.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use common::{
    EncryptingDisk, Place, cluster, files_below, folder, kinds, open, place, session, skipped, volume,
};
use engine::Host;
use keys::RootKey;
use model::{Cluster, Encryption};
use regex::bytes::Regex;

/// Where a canary was written to.
const WAYS: [&str; 6] = ["row", "unlogged", "dropped", "sort", "log", "name"];

/// More than the longest text that is searched for.
const LONGEST_BYTES: u64 = 1_024;

fn canary(way: &str) -> String {
    format!("canary-{way}-4be1d07c9a")
}

/// Writes a canary by every way on which PostgreSQL writes what a tenant said.
async fn write_canaries(host: &Host, cluster: &Cluster) {
    let administration = host.administration(cluster.id).await.unwrap();
    common::maria(&administration).await;
    let client = session(host, cluster.id, "maria", "defaultdb").await;
    let [row, unlogged, dropped, sort, log, name] = WAYS.map(canary);
    client
        .batch_execute(&format!(
            "CREATE TABLE t (x text); INSERT INTO t VALUES ('{row}');
             CREATE UNLOGGED TABLE u (x text); INSERT INTO u VALUES ('{unlogged}');
             CREATE TABLE d (x text); INSERT INTO d VALUES ('{dropped}');
             CREATE TABLE \"{name}\" (x text);"
        ))
        .await
        .unwrap();
    administration.checkpoint().await.unwrap();
    // A sort that does not fit into memory writes its rows to files. Their bytes stay on the disk when these are gone.
    client
        .batch_execute(&format!(
            "SET work_mem = '64kB';
             SELECT count(*) FROM (SELECT '{sort}' || g || repeat('x', 200) AS x FROM generate_series(1, 20000) g
                                   ORDER BY 1 DESC OFFSET 1) s;
             DROP TABLE d"
        ))
        .await
        .unwrap();
    // The engine's own log.
    client.batch_execute(&format!("DO $$ BEGIN RAISE LOG '{log}'; END $$")).await.unwrap();
    administration.checkpoint().await.unwrap();
}

/// Which canaries the bytes of a file, or of all files of a folder, hold.
fn found_below(path: &Path) -> Vec<&'static str> {
    let files = if path.is_file() { vec![path.to_owned()] } else { files_below(path) };
    let any = Regex::new(&WAYS.map(canary).join("|")).unwrap();
    let hits: HashSet<Vec<u8>> = files.iter().flat_map(|file| hits_in(file, &any)).collect();
    let mut found: Vec<&str> = WAYS.into_iter().filter(|way| hits.contains(canary(way).as_bytes())).collect();
    found.sort_unstable();
    found
}

/// What the bytes of a file hold of a pattern; holes hold nothing.
fn hits_in(path: &Path, pattern: &Regex) -> HashSet<Vec<u8>> {
    let file = File::open(path).unwrap();
    let (mut hits, mut at, mut piece) = (HashSet::new(), 0, vec![0; 4 << 20]);
    while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let count = file.read_at(&mut piece, start).unwrap();
        hits.extend(pattern.find_iter(&piece[..count]).map(|hit| hit.as_bytes().to_vec()));
        if count < piece.len() {
            break;
        }
        // It may lie across the border of two pieces.
        at = start + count as u64 - LONGEST_BYTES;
    }
    hits
}

/// Whether the bytes of a file hold this.
fn holds(path: &Path, needle: &str) -> bool {
    !hits_in(path, &Regex::new(&regex::escape(needle)).unwrap()).is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_byte_that_a_tenant_wrote_is_in_the_data_directory_of_a_sleeping_cluster() {
    for kind in kinds() {
        let Place { folder, host } = place(Some(kind)).await;
        let cluster = cluster(121);
        host.create(&cluster).await.unwrap();
        write_canaries(&host, &cluster).await;
        host.stop(cluster.id).await.unwrap();
        rustix::fs::sync();
        assert_eq!(found_below(folder.path()), Vec::<&str>::new(), "{kind:?}");
        host.destroy(&cluster).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_encryption_the_same_search_finds_them() {
    let Place { folder, host } = place(Some(Encryption::None)).await;
    let cluster = cluster(122);
    host.create(&cluster).await.unwrap();
    write_canaries(&host, &cluster).await;
    host.stop(cluster.id).await.unwrap();
    let found = found_below(folder.path());
    for way in ["row", "unlogged", "log", "name"] {
        assert!(found.contains(&way), "{way} was not found, so the search proves nothing: {found:?}");
    }
    host.destroy(&cluster).await.unwrap();
}

/// Also what files left behind that are gone: the whole device below the file system is read.
#[tokio::test(flavor = "multi_thread")]
async fn no_byte_is_on_the_disk_below_an_encrypted_folder_and_removed_files_are_there_without() {
    if let Some(reason) = common::lacking_for_a_disk() {
        return skipped(reason);
    }
    for kind in [Encryption::Fscrypt, Encryption::None] {
        let disk = EncryptingDisk::mount();
        let host = open(&disk.data, Some(kind)).await.unwrap();
        let cluster = cluster(123);
        host.create(&cluster).await.unwrap();
        write_canaries(&host, &cluster).await;
        host.stop(cluster.id).await.unwrap();
        rustix::fs::sync();
        let found = found_below(&disk.image);
        if kind == Encryption::None {
            for way in ["dropped", "log", "row", "unlogged"] {
                assert!(found.contains(&way), "{way} was not found, so the search proves nothing: {found:?}");
            }
        } else {
            assert_eq!(found, Vec::<&str>::new());
        }
        host.destroy(&cluster).await.unwrap();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    let done = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_data_directory_opens_with_its_key_file_only() {
    for kind in kinds() {
        let Place { folder, host } = place(Some(kind)).await;
        let cluster = cluster(124);
        host.create(&cluster).await.unwrap();
        host.administration(cluster.id).await.unwrap().write_canary("stolen").await.unwrap();
        host.shutdown().await;
        let thief = common::folder();
        let stolen = thief.path().join("d");
        copy_folder(folder.path(), &stolen);
        std::fs::remove_file(stolen.join("kek")).unwrap();
        let opened = open(&stolen, Some(kind)).await.unwrap();
        let refused = opened.start(&cluster).await.unwrap_err().to_string();
        assert!(refused.contains("root key"), "{kind:?}: {refused}");
        drop(opened);
        // The control: with the key file the very same copy opens.
        std::fs::copy(folder.path().join("kek"), stolen.join("kek")).unwrap();
        let opened = open(&stolen, Some(kind)).await.unwrap();
        opened.start(&cluster).await.unwrap();
        assert!(opened.search(cluster.id, "stolen").await.unwrap().hits_in_plaintext > 0);
        opened.destroy(&cluster).await.unwrap();
        host.destroy(&cluster).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_cluster_opens_from_no_copy_of_its_volume_and_others_still_do() {
    for kind in kinds() {
        let Place { folder, host } = place(Some(kind)).await;
        let (cluster, other) = (cluster(125), cluster(126));
        host.create(&cluster).await.unwrap();
        host.create(&other).await.unwrap();
        host.shutdown().await;
        let own = volume(folder.path(), &cluster, 0);
        let (kept, backup) = (common::folder(), common::folder());
        copy_folder(&own, &kept.path().join("c"));
        host.destroy(&cluster).await.unwrap();

        // A backup of everything but the key: with the cloud's own root key it opens nothing.
        copy_folder(&kept.path().join("c"), &own);
        std::fs::rename(own.join("key.json"), backup.path().join("key.json")).unwrap();
        let refused = host.start(&cluster).await.unwrap_err().to_string();
        assert!(refused.contains("key.json"), "{kind:?}: {refused}");
        // Another cluster's key is no help either.
        std::fs::copy(volume(folder.path(), &other, 0).join("key.json"), own.join("key.json")).unwrap();
        assert!(host.start(&cluster).await.is_err(), "{kind:?}");
        // The control: with its key it would have opened.
        std::fs::copy(backup.path().join("key.json"), own.join("key.json")).unwrap();
        host.start(&cluster).await.unwrap();
        host.start(&other).await.unwrap();
        host.destroy(&cluster).await.unwrap();
        host.destroy(&other).await.unwrap();
    }
}

/// The key's bytes are looked for on the disk itself: a file that is only unlinked leaves them there.
#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_cluster_s_wrapped_key_is_overwritten_on_the_disk() {
    if let Some(reason) = common::lacking_for_a_disk() {
        return skipped(reason);
    }
    let disk = EncryptingDisk::mount();
    let host = open(&disk.data, Some(Encryption::Fscrypt)).await.unwrap();
    let cluster = cluster(127);
    host.create(&cluster).await.unwrap();
    let key = std::fs::read_to_string(volume(&disk.data, &cluster, 0).join("key.json")).unwrap();
    let wrapped: serde_json::Value = serde_json::from_str(&key).unwrap();
    let wrapped = wrapped["wrapped"].as_str().unwrap();
    let is_there = || {
        rustix::fs::sync();
        holds(&disk.image, wrapped)
    };
    assert!(is_there(), "the search itself works");
    host.destroy(&cluster).await.unwrap();
    assert!(!is_there(), "the wrapped key can still be read from the disk");
}

/// Where a table's first block lies, as the file system says.
fn first_block(file: &Path) -> u64 {
    let output = Command::new("filefrag").args(["-e", "-b1"]).arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line =
        text.lines().find(|line| line.trim_start().starts_with("0:")).unwrap_or_else(|| panic!("{text}"));
    // After two colons, up to the dots; large numbers leave no space between.
    line.splitn(3, ':').nth(2).and_then(|ends| ends.split("..").next()).unwrap().trim().parse().unwrap()
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.sync_all().unwrap();
}

async fn a_table(host: &Host, cluster: &Cluster) -> String {
    let administration = host.administration(cluster.id).await.unwrap();
    common::maria(&administration).await;
    let client = session(host, cluster.id, "maria", "defaultdb").await;
    client
        .batch_execute(
            "CREATE TABLE t AS SELECT g AS id, md5(g::text) AS body FROM generate_series(1, 20000) g",
        )
        .await
        .unwrap();
    administration.checkpoint().await.unwrap();
    let path = client.query_one("SELECT pg_relation_filepath('t')", &[]).await.unwrap();
    path.get::<_, String>(0)
}

/// Reads every row. Fails, or says how many are not what was written.
async fn wrong_rows(host: &Host, cluster: &Cluster) -> Result<i64, String> {
    let client = session(host, cluster.id, "maria", "defaultdb").await;
    let rows = client.query("SELECT id, body, md5(id::text) = body FROM t", &[]).await;
    let rows = rows.map_err(|cause| cause.as_db_error().map_or(cause.to_string(), ToString::to_string))?;
    assert_eq!(rows.len(), 20_000, "rows are missing and nobody said so");
    Ok(rows.iter().map(|row| i64::from(!row.get::<_, bool>(2))).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_was_flipped_below_the_encryption_is_an_error_and_never_a_row() {
    for kind in kinds() {
        let Place { folder, host } = place(Some(kind)).await;
        let cluster = cluster(128);
        host.create(&cluster).await.unwrap();
        let path = a_table(&host, &cluster).await;
        assert_eq!(wrong_rows(&host, &cluster).await, Ok(0));
        let own = volume(folder.path(), &cluster, 0);
        let (raw, at) = if kind == Encryption::FscryptImage {
            let table = own.join("files/v/pg").join(&path);
            (own.join("image"), first_block(&table) + 8 * 8192 + 5_000)
        } else {
            // Its name is encrypted, but its inode shows through.
            let inode = std::fs::metadata(own.join("files/pg").join(&path)).unwrap().ino();
            let files = files_below(&own.join("cipher"));
            let raw = files.into_iter().find(|file| std::fs::metadata(file).unwrap().ino() == inode);
            (raw.unwrap(), 8 * 8192 + 5_000)
        };
        host.stop(cluster.id).await.unwrap();
        flip(&raw, at);
        host.start(&cluster).await.unwrap();
        let refused = wrong_rows(&host, &cluster).await.unwrap_err();
        // gocryptfs refuses the block, of which PostgreSQL 18 reads several at once, the engine the page.
        let expected: &[&str] = match kind {
            Encryption::Gocryptfs => &["could not read block 8", "could not read blocks 8.."],
            _ => &["invalid page"],
        };
        assert!(expected.iter().any(|words| refused.contains(words)), "{kind:?}: {refused}");
        // Flipped back, all is well: it was this bit.
        host.stop(cluster.id).await.unwrap();
        flip(&raw, at);
        host.start(&cluster).await.unwrap();
        assert_eq!(wrong_rows(&host, &cluster).await, Ok(0), "{kind:?}");
        host.destroy(&cluster).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bits_flipped_in_the_image_s_own_structures_never_become_rows() {
    if let Some(reason) = common::lacking_for_a_disk() {
        return skipped(reason);
    }
    let Place { folder, host } = place(Some(Encryption::FscryptImage)).await;
    let cluster = cluster(129);
    host.create(&cluster).await.unwrap();
    a_table(&host, &cluster).await;
    host.stop(cluster.id).await.unwrap();
    let image = volume(folder.path(), &cluster, 0).join("image");
    // The superblock, the table of groups, the first inodes.
    for at in [1_024 + 0x04, 1_024 + 0x60, 4_096 + 0x08, 4_096 + 0x20] {
        flip(&image, at);
        match host.start(&cluster).await {
            // It was refused, or what was flipped does not matter to what is read.
            Err(refused) => assert!(!refused.to_string().is_empty()),
            Ok(_) => assert!(wrong_rows(&host, &cluster).await.is_ok_and(|wrong| wrong == 0), "at {at}"),
        }
        let _ = host.stop(cluster.id).await;
        flip(&image, at);
    }
    host.destroy(&cluster).await.unwrap();
}

/// How often the bytes are in our own writable memory.
fn in_own_memory(needle: &[u8]) -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut count = 0;
    let mut piece = vec![0_u8; 1 << 20];
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw")))
    {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (mut at, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        while at < end {
            let room = usize::try_from(end - at).unwrap().min(piece.len());
            // A mapping may end meanwhile.
            let Ok(read) = memory.read_at(&mut piece[..room], at) else {
                break;
            };
            // What was read lies in our own buffer too.
            let own = piece.as_ptr() as u64..piece.as_ptr() as u64 + piece.len() as u64;
            let places = piece[..read].windows(needle.len()).enumerate();
            count += places
                .filter(|(offset, bytes)| *bytes == needle && !own.contains(&(at + *offset as u64)))
                .count();
            if read == 0 {
                break;
            }
            at += if read == room && at + (room as u64) < end {
                room as u64 - needle.len() as u64
            } else {
                read as u64
            };
        }
        piece.fill(0);
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn after_locking_the_kernel_denies_the_key_and_our_memory_does_not_hold_it() {
    for kind in kinds() {
        let Place { folder, host } = place(Some(kind)).await;
        let cluster = cluster(130);
        host.create(&cluster).await.unwrap();
        let open = host.volume_state(cluster.id).unwrap();
        assert!(open.is_unlocked && open.is_proven && open.cipher.is_some(), "{open:?}");
        assert!(open.evidence.contains("AES-256"), "{open:?}");
        host.stop(cluster.id).await.unwrap();
        let locked = host.volume_state(cluster.id).unwrap();
        assert!(!locked.is_unlocked && locked.is_proven, "{locked:?}");
        assert_eq!(common::processes_of(folder.path()), Vec::<u32>::new(), "nobody who holds the key runs");

        let kek = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
        let text = std::fs::read(volume(folder.path(), &cluster, 0).join("key.json")).unwrap();
        let wrapped = serde_json::from_slice(&text).unwrap();
        let key = keys::KeyRing::unwrap(&kek, cluster.id, &wrapped).await.unwrap();
        let mut needle = key.expose().to_vec();
        // The control: the key that is held now is found. Then the needle itself must not be found instead.
        assert!(in_own_memory(&needle) >= 2, "{kind:?}: the search itself works");
        drop(key);
        let shown = in_own_memory(&needle);
        needle.fill(0);
        assert_eq!(shown, 1, "{kind:?}: only the needle of this search is left");
        host.destroy(&cluster).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_tells_that_a_locked_folder_is_encrypted_and_that_it_has_no_key() {
    if let Some(reason) = common::lacking_for_a_disk() {
        return skipped(reason);
    }
    let disk = EncryptingDisk::mount();
    let host = open(&disk.data, Some(Encryption::Fscrypt)).await.unwrap();
    let cluster = cluster(131);
    host.create(&cluster).await.unwrap();
    let open = host.volume_state(cluster.id).unwrap();
    assert!(open.is_proven && open.evidence.contains("the kernel holds key"), "{open:?}");
    host.stop(cluster.id).await.unwrap();
    let locked = host.volume_state(cluster.id).unwrap();
    assert!(!locked.is_unlocked && locked.is_proven, "{locked:?}");
    assert!(locked.evidence.contains("the kernel does not hold key"), "{locked:?}");
    assert_eq!((&open.key, &open.cipher), (&locked.key, &locked.cipher), "the same policy");
    // Somebody puts a plain folder in its place: the kernel is asked, not the marker.
    let files = volume(&disk.data, &cluster, 0).join("files");
    std::fs::rename(&files, files.with_extension("aside")).unwrap();
    std::fs::create_dir(&files).unwrap();
    let fooled = host.volume_state(cluster.id).unwrap();
    assert!(!fooled.is_proven, "{fooled:?}");
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_vouches_for_never_counts_as_proven() {
    let Place { folder: _folder, host } = place(Some(Encryption::Attested)).await;
    let cluster = cluster(132);
    assert_eq!(host.create(&cluster).await.unwrap().volume.encryption, Encryption::Attested);
    let state = host.volume_state(cluster.id).unwrap();
    assert!(!state.is_proven && state.is_unlocked, "{state:?}");
    assert!(state.evidence.contains("not proven: a disk of the test"), "{state:?}");
    host.administration(cluster.id).await.unwrap().write_canary("canary-attested").await.unwrap();
    let report = host.search(cluster.id, "canary-attested").await.unwrap();
    assert!(report.hits > 0 && report.place.contains("operator says"), "{report:?}");
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attested_needs_a_statement() {
    let folder = folder();
    let config = engine::HostConfig {
        data: folder.path().to_owned(),
        keys: std::sync::Arc::new(RootKey::open_or_create(&folder.path().join("kek")).unwrap()),
        allow_unencrypted: false,
        postgres: common::postgres(),
        default_major: common::default_major(),
        encryption: Some(Encryption::Attested),
        attestation: None,
        launcher: common::launcher(),
        record: common::no_record(),
    };
    let host = Host::open(config).await.unwrap();
    let refused = host.create(&cluster(133)).await.unwrap_err().to_string();
    assert!(refused.contains("--attestation"), "{refused}");
}
