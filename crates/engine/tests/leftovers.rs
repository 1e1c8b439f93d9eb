//! What a killed Chitin leaves is cleared by the next one, and nothing of its clusters is lost.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Host, HostConfig};
use keys::RootKey;
use model::{Cluster, ClusterId, Encryption, Plan, Power, Provider, Wish};
use time::OffsetDateTime;

/// Tells the process that is to be killed where to work and how.
const DATA: &str = "CHITIN_TEST_DATA";
const ENCRYPTION: &str = "CHITIN_TEST_ENCRYPTION";
const ROUTING_ID: &str = "CHITIN_TEST_ROUTING_ID";
const ID: &str = "6d0c4a52-9d1c-4d0e-9c0e-3b1f5a7c2d10";
const CANARY: &str = "canary-of-the-killed";

async fn open(data: &Path, encryption: Encryption) -> Arc<Host> {
    let kek = Arc::new(RootKey::open_or_create(&data.join("kek")).unwrap());
    let config = HostConfig {
        data: data.to_owned(),
        keys: kek,
        allow_unencrypted: encryption == Encryption::None,
        postgres_bin: None,
        encryption: Some(encryption),
        attestation: None,
    };
    Host::open(config).await.unwrap()
}

fn cluster(routing_id: u32) -> Cluster {
    let now = OffsetDateTime::UNIX_EPOCH;
    Cluster {
        id: ID.parse().unwrap(),
        routing_id: routing_id.try_into().unwrap(),
        name: "lazy-roach".parse().unwrap(),
        plan: Plan::Serverless,
        provider: Provider::Gcp,
        regions: vec!["local".to_owned()],
        labels: std::collections::BTreeMap::new(),
        asked: model::Asked::default(),
        sign_in: model::SignIn::default(),
        network: model::Network::default(),
        egress: model::Egress::default(),
        keys: model::KeyWish::default(),
        is_delete_protected: false,
        allowlist: Vec::new(),
        wish: Wish::Exists(Power::Running),
        revision: 1,
        created_at: now,
        updated_at: now,
        deleted_at: None,
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn mounts_below(folder: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = format!("{}/", folder.display());
    table
        .lines()
        .filter(|line| line.split(' ').nth(4).is_some_and(|place| place.starts_with(&folder)))
        .count()
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
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_a_cluster_until_it_is_killed", "--ignored", "--nocapture"])
        .env(DATA, data)
        .env(ENCRYPTION, encryption.as_str())
        .env(ROUTING_ID, routing_id.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(holder.stdout.take().unwrap());
    let is_ready = said.lines().map_while(Result::ok).any(|line| line.contains("the cluster is ready"));
    assert!(is_ready, "the process that was to be killed ended before");
    assert!(!processes_of(data, routing_id).is_empty());
    holder.kill().unwrap();
    holder.wait().unwrap();
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
    tokio::time::sleep(Duration::from_secs(120)).await;
}

async fn survives_a_kill(data: &Path, encryption: Encryption, routing_id: u32) {
    let cluster = cluster(routing_id);
    make_and_be_killed(data, encryption, routing_id);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !processes_of(data, routing_id).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        processes_of(data, routing_id),
        Vec::<u32>::new(),
        "engines die with the process that started them"
    );

    let host = open(data, encryption).await;
    assert_eq!(mounts_below(data), 0, "{encryption:?}: a mount is left");
    let state = host.volume_state(cluster.id).unwrap();
    assert_eq!(state.is_unlocked, encryption == Encryption::None, "{state:?}");
    host.start(&cluster).await.unwrap();
    let found = host.search(cluster.id, CANARY).await.unwrap();
    assert!(found.hits_in_plaintext > 0, "what was acknowledged is still there: {found:?}");
    assert_eq!(found.hits > 0, encryption == Encryption::None, "{found:?}");
    host.destroy(&cluster).await.unwrap();
    assert!(host.on_disk().is_empty());
    assert_eq!(mounts_below(data), 0);
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ce").tempdir_in("/tmp").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_chitin_leaves_nothing_that_the_next_does_not_clear() {
    let kinds: &[Encryption] = if is_root() {
        &[Encryption::FscryptImage, Encryption::Gocryptfs, Encryption::None]
    } else if std::fs::File::open("/dev/fuse").is_ok() {
        &[Encryption::Gocryptfs, Encryption::None]
    } else {
        &[Encryption::None]
    };
    for kind in kinds {
        let folder = folder();
        survives_a_kill(folder.path(), *kind, 71).await;
    }
}

/// A file system with the encryption feature, mounted as long as this lives.
struct EncryptingDisk(PathBuf);

impl Drop for EncryptingDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_killed_chitin_left_in_the_kernel_is_taken_out() {
    if !is_root() {
        eprintln!("not tried: only root may mount the file system that this needs");
        return;
    }
    let outer = folder();
    let (image, disk) = (outer.path().join("disk"), EncryptingDisk(outer.path().join("m")));
    std::fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
    std::fs::create_dir(&disk.0).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-O", "encrypt"]).arg(&image).status().unwrap();
    let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk.0).status().unwrap();
    assert!(made.success() && mounted.success());
    let data = disk.0.join("d");
    std::fs::create_dir(&data).unwrap();
    survives_a_kill(&data, Encryption::Fscrypt, 72).await;
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
