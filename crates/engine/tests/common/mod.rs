//! What the tests of volumes share: a host with a data directory of its own, a cluster, a disk that can encrypt.
#![allow(dead_code, reason = "no test uses all of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use engine::{Administration, Error, Host, HostConfig};
use keys::RootKey;
use model::{Cluster, ClusterId, Encryption, Plan, Power, Provider, RoleName, Wish};
use time::OffsetDateTime;

/// Of some password.
pub const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

/// A host and its data directory.
pub struct Place {
    pub folder: tempfile::TempDir,
    pub host: Arc<Host>,
}

/// Opens a host that encrypts in this way, with the key file that lies in its data directory.
pub async fn open(folder: &Path, encryption: Option<Encryption>) -> Result<Arc<Host>, Error> {
    let kek = Arc::new(RootKey::open_or_create(&folder.join("kek")).unwrap());
    let config = HostConfig {
        data: folder.to_owned(),
        keys: kek,
        allow_unencrypted: encryption == Some(Encryption::None),
        postgres_bin: None,
        encryption,
        attestation: Some("a disk of the test".to_owned()),
    };
    Host::open(config).await
}

/// A folder directly below `/tmp`, and short: a socket's path ends at 107 bytes.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ce").tempdir_in("/tmp").unwrap()
}

/// A host on a folder of its own.
pub async fn place(encryption: Option<Encryption>) -> Place {
    let folder = folder();
    let host = open(folder.path(), encryption).await.unwrap();
    Place { folder, host }
}

/// A cluster's document.
pub fn cluster(routing_id: u32) -> Cluster {
    cluster_of(ClusterId::random(), routing_id)
}

/// A cluster's document with an id that two processes agree on.
pub fn cluster_of(id: ClusterId, routing_id: u32) -> Cluster {
    let now = OffsetDateTime::UNIX_EPOCH;
    Cluster {
        id,
        routing_id: routing_id.try_into().unwrap(),
        name: "lazy-roach".parse().unwrap(),
        plan: Plan::Serverless,
        provider: Provider::Gcp,
        regions: vec!["local".to_owned()],
        labels: std::collections::BTreeMap::new(),
        is_delete_protected: false,
        allowlist: Vec::new(),
        asked: model::Asked::default(),
        sign_in: model::SignIn::default(),
        network: model::Network::default(),
        egress: model::Egress::default(),
        keys: model::KeyWish::default(),
        wish: Wish::Exists(Power::Running),
        revision: 1,
        created_at: now,
        updated_at: now,
        deleted_at: None,
    }
}

/// Makes the SQL user that [`session`] signs in.
pub async fn maria(administration: &Administration) {
    administration.create_user(&"maria".parse().unwrap(), VERIFIER).await.unwrap();
}

/// A session as a SQL user, as the gateway attaches it.
pub async fn session(host: &Host, id: ClusterId, user: &str, database: &str) -> tokio_postgres::Client {
    let role: RoleName = user.parse().unwrap();
    host.admit(id, &role).await.unwrap();
    let run = host.socket(id).unwrap().parent().unwrap().to_owned();
    let mut config = tokio_postgres::Config::new();
    let (client, connection) =
        config.host_path(run).user(user).dbname(database).connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Whether we may mount.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The kinds of encryption that this machine gives for any data directory.
pub fn kinds() -> &'static [Encryption] {
    if is_root() {
        &[Encryption::FscryptImage, Encryption::Gocryptfs]
    } else if std::fs::File::open("/dev/fuse").is_ok() {
        &[Encryption::Gocryptfs]
    } else {
        &[]
    }
}

/// The folder of a cluster's volume.
pub fn volume(data: &Path, cluster: &Cluster, generation: u32) -> PathBuf {
    let own = data.join("clusters").join(cluster.id.to_string());
    if generation == 0 { own } else { own.join(format!("volume-{generation}")) }
}

/// No mount, no loop device and no process of the folder is left.
pub fn nothing_left(folder: &Path) {
    let below = format!("{}/clusters", folder.display());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&below), "a mount is left");
    // The kernel frees a loop device a moment after its last user is gone.
    for _ in 0..100 {
        if loops_of(&below) == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(loops_of(&below), 0, "a loop device is left");
    assert_eq!(processes_of(folder), Vec::<u32>::new(), "a process is left");
}

fn loops_of(below: &str) -> usize {
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
    let backing =
        |device: std::fs::DirEntry| std::fs::read_to_string(device.path().join("loop/backing_file"));
    devices.filter_map(|device| backing(device).ok()).filter(|file| file.starts_with(below)).count()
}

/// Processes but our own that name a cluster of the folder.
pub fn processes_of(folder: &Path) -> Vec<u32> {
    let folder = format!("{}/clusters", folder.display());
    let names = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() && String::from_utf8_lossy(&words).contains(&folder)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(names).collect()
}

/// A file system with the encryption feature in a file, mounted as long as this lives. Only root can.
pub struct EncryptingDisk {
    /// A data directory on it.
    pub data: PathBuf,
    /// The bytes of the disk.
    pub image: PathBuf,
    mounted: PathBuf,
    _folder: tempfile::TempDir,
}

impl EncryptingDisk {
    /// Makes and mounts it.
    pub fn mount() -> Self {
        let folder = folder();
        let (image, mounted) = (folder.path().join("disk"), folder.path().join("m"));
        std::fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
        std::fs::create_dir(&mounted).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-O", "encrypt"]).arg(&image).status().unwrap();
        let done = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted).status().unwrap();
        assert!(made.success() && done.success());
        let data = mounted.join("d");
        std::fs::create_dir(&data).unwrap();
        Self { data, image, mounted, _folder: folder }
    }
}

impl Drop for EncryptingDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mounted).status();
    }
}
