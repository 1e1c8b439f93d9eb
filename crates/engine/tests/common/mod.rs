//! What the tests of volumes share: a host with a data directory of its own, a cluster, a disk that can encrypt.
#![allow(dead_code, reason = "no test uses all of it")]

#[path = "../../../../tests/folder.rs"]
mod folder;
#[path = "../../../../tests/launcher.rs"]
mod launcher;
#[path = "../../../../tests/skipped.rs"]
mod skipped;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use engine::{Administration, Error, Host, HostConfig, Launcher, VolumeRecord};
use keys::RootKey;
use model::{Cluster, ClusterId, Encryption, Plan, Power, Provider, RoleName, VolumeId, Wish};
use time::OffsetDateTime;

pub use folder::Folder;
pub use launcher::{default_major, launcher, no_record, postgres};
pub use skipped::skipped;

/// For what comes on the slowest machine too; whatever takes as long never comes.
pub const SOON: Duration = Duration::from_secs(120);

/// An OS user that nothing belongs to.
pub const NOBODY: &str = "65534";

/// Of some password.
pub const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

/// A host and its data directory.
pub struct Place {
    pub folder: Folder,
    pub host: Arc<Host>,
}

/// Opens a host that encrypts in this way, with the key file that lies in its data directory.
pub async fn open(folder: &Path, encryption: Option<Encryption>) -> Result<Arc<Host>, Error> {
    open_allowing(folder, encryption, encryption == Some(Encryption::None)).await
}

/// The same, with or without the operator's word for clusters in plaintext.
pub async fn open_allowing(
    folder: &Path,
    encryption: Option<Encryption>,
    allow_unencrypted: bool,
) -> Result<Arc<Host>, Error> {
    let keys = Arc::new(RootKey::open_or_create(&folder.join("kek")).unwrap());
    open_host(folder, encryption, allow_unencrypted, keys).await
}

/// Opens a host whose keys are these.
pub async fn open_with(
    folder: &Path,
    encryption: Option<Encryption>,
    keys: Arc<dyn keys::KeyRing>,
) -> Result<Arc<Host>, Error> {
    open_host(folder, encryption, encryption == Some(Encryption::None), keys).await
}

/// Runs tests of this binary once more as the user nobody, with these arguments, and expects so many to pass.
#[track_caller]
pub fn pass_as_nobody(arguments: &[&str], count: usize) {
    let folder = folder();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // Where that user gets at it.
    let program = folder.path().join("tests");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(&program).current_dir("/tmp");
    let tried = command.args(arguments).env_remove("CHITIN_TESTS_SKIPPED").output().unwrap();
    let said = String::from_utf8_lossy(&tried.stdout).into_owned() + &String::from_utf8_lossy(&tried.stderr);
    assert!(tried.status.success() && said.contains(&format!("{count} passed")), "{said}");
}

/// Opens a host that remembers its templates there.
pub async fn open_recorded(folder: &Path, record: Arc<dyn VolumeRecord>) -> Result<Arc<Host>, Error> {
    let keys = Arc::new(RootKey::open_or_create(&folder.join("kek")).unwrap());
    open_by(folder, Some(Encryption::None), true, keys, (launcher(), record)).await
}

/// Opens a host whose programs are started by something else.
pub async fn open_launched(folder: &Path, launcher: Launcher) -> Result<Arc<Host>, Error> {
    let keys = Arc::new(RootKey::open_or_create(&folder.join("kek")).unwrap());
    open_by(folder, Some(Encryption::None), true, keys, (launcher, no_record())).await
}

async fn open_host(
    folder: &Path,
    encryption: Option<Encryption>,
    allow_unencrypted: bool,
    keys: Arc<dyn keys::KeyRing>,
) -> Result<Arc<Host>, Error> {
    open_by(folder, encryption, allow_unencrypted, keys, (launcher(), no_record())).await
}

async fn open_by(
    folder: &Path,
    encryption: Option<Encryption>,
    allow_unencrypted: bool,
    keys: Arc<dyn keys::KeyRing>,
    (launcher, record): (Launcher, Arc<dyn VolumeRecord>),
) -> Result<Arc<Host>, Error> {
    let config = HostConfig {
        data: folder.to_owned(),
        keys,
        allow_unencrypted,
        postgres: postgres(),
        default_major: default_major(),
        encryption,
        attestation: Some("a disk of the test".to_owned()),
        launcher,
        record,
    };
    Host::open(config).await
}

/// A folder of a test's own.
pub fn folder() -> Folder {
    Folder::new()
}

/// Asks until it is so.
#[track_caller]
pub fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends a process at once.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// A test of the same binary in a process of its own, to be killed.
pub struct Holder {
    child: Child,
    lines: Receiver<String>,
    said: String,
}

impl Holder {
    /// Starts it with this environment.
    pub fn start(test: &str, environment: &[(&str, &OsStr)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .envs(environment.iter().copied())
            // A group of its own, as a shell gives to each job.
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| told.send(line).is_ok()));
        Self { child, lines, said: String::new() }
    }

    /// Waits until it has said this.
    pub fn await_word(&mut self, word: &str) {
        let until = Instant::now() + SOON;
        while !self.said.contains(word) {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            self.said += &line.unwrap_or_else(|_| panic!("it did not say `{word}` but:\n{}", self.said));
            self.said.push('\n');
        }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it and everything of its process group.
    pub fn kill_group(self) -> String {
        let group = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        self.after_its_end()
    }

    /// Kills it; returns everything that it said.
    pub fn kill(mut self) -> String {
        assert!(self.child.try_wait().unwrap().is_none(), "it ended before it was killed: {}", self.said);
        self.child.kill().unwrap();
        self.after_its_end()
    }

    fn after_its_end(mut self) -> String {
        self.child.wait().unwrap();
        let rest: Vec<String> = self.lines.iter().collect();
        std::mem::take(&mut self.said) + &rest.join("\n")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
        storage_floor: None,
        connections_floor: None,
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

/// The volume that a cluster would be switched to; one that does not exist where nothing was copied.
pub fn next_of(host: &Host, cluster: &Cluster) -> VolumeId {
    let nothing = VolumeId { encryption: Encryption::None, generation: 99 };
    host.copied(cluster.id).unwrap_or(nothing)
}

/// Makes the SQL user that [`session`] signs in.
pub async fn maria(administration: &Administration) {
    administration.create_user(&"maria".parse().unwrap(), VERIFIER).await.unwrap();
}

/// A session as a SQL user, as the gateway attaches it.
pub async fn session(host: &Host, id: ClusterId, user: &str, database: &str) -> tokio_postgres::Client {
    let role: RoleName = user.parse().unwrap();
    host.admit(id, &role).await.unwrap();
    attach(host, id, user, database).await.unwrap()
}

/// The same for any role, admitted or not; as the internal superuser it stands for code in an engine that was taken over.
pub async fn attach(
    host: &Host,
    id: ClusterId,
    user: &str,
    database: &str,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let stream = host.connector(id).unwrap().connect().await.unwrap();
    let mut config = tokio_postgres::Config::new();
    let (client, connection) =
        config.user(user).dbname(database).connect_raw(stream, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Whether we may mount.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What this machine lacks to mount a file system of ours that encrypts.
pub fn lacking_for_a_disk() -> Option<&'static str> {
    let features = Path::new("/sys/fs/ext4/features");
    if !is_root() {
        Some("only root may mount a file system")
    } else if !Path::new("/dev/loop-control").exists() {
        Some("there are no loop devices")
    } else if features.exists() && !features.join("encryption").exists() {
        Some("this kernel's ext4 has no fscrypt")
    } else {
        None
    }
}

/// What this machine lacks for a LUKS2 volume.
pub fn lacking_for_luks() -> Option<&'static str> {
    if !is_root() {
        Some("only root may open a crypt device")
    } else if !Path::new("/dev/loop-control").exists() {
        Some("there are no loop devices")
    // Not by its node in /dev, which cryptsetup makes also where nothing is behind it.
    } else if !Command::new("dmsetup").arg("version").output().is_ok_and(|said| said.status.success()) {
        Some("this kernel has no device mapper, or there is no dmsetup")
    } else {
        None
    }
}

/// The kinds of encryption that this machine gives for any data directory; those that it does not are written down.
pub fn kinds() -> Vec<Encryption> {
    let no_fuse = File::open("/dev/fuse").err().map(|_| "there is no FUSE");
    let all = [(Encryption::FscryptImage, lacking_for_a_disk()), (Encryption::Gocryptfs, no_fuse)];
    let is_there = |(kind, lacking): (Encryption, Option<&str>)| {
        if let Some(reason) = lacking {
            skipped(&format!("with {}: {reason}", kind.as_str()));
            return None;
        }
        Some(kind)
    };
    all.into_iter().filter_map(is_there).collect()
}

/// The folder of a cluster's volume.
pub fn volume(data: &Path, cluster: &Cluster, generation: u32) -> PathBuf {
    let own = data.join("clusters").join(cluster.id.to_string());
    if generation == 0 { own } else { own.join(format!("volume-{generation}")) }
}

/// The plain files of a folder and of all in it, in no order.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_below(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// No mount, no loop device and no process of the folder is left.
#[track_caller]
pub fn nothing_left(folder: &Path) {
    assert_eq!(mounts_below(&folder.join("clusters")), Vec::<String>::new(), "a mount is left");
    let below = format!("{}/clusters", folder.display());
    // The kernel frees a loop device, and forgets a process that was killed, a moment after its last user is gone.
    eventually("the loop devices are free", || loops_of(&below) == 0);
    eventually("the processes are gone", || processes_of(folder).is_empty());
}

/// Mount points at or below a folder.
pub fn mounts_below(folder: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let places = table.lines().filter_map(|line| line.split(' ').nth(4));
    places.filter(|place| Path::new(place).starts_with(folder)).map(str::to_owned).collect()
}

/// How many loop devices have their file below.
pub fn loops_of(below: &str) -> usize {
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

/// The numbers of companions whose Chitin is this process.
pub fn companions_of(chitin: u32) -> Vec<u32> {
    let parent = format!("PPid:\t{chitin}\n");
    let is_one = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.starts_with(b"chitin: companion\0")
            && std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| text.contains(&parent))
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_one).collect()
}

/// What the kernel says of the key of an encrypted folder; with `remove` it is taken out first, as `fscrypt lock` does it.
pub fn key_of(folder: &Path, remove: bool) -> String {
    // FS_IOC_GET_ENCRYPTION_POLICY_EX, FS_IOC_REMOVE_ENCRYPTION_KEY, FS_IOC_GET_ENCRYPTION_KEY_STATUS of linux/fscrypt.h.
    let script = r#"
import fcntl, os, struct, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
place = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)
policy = bytearray(struct.pack("Q", 24) + bytes(24))
fcntl.ioctl(folder, 0xc0096616, policy)
os.close(folder)
specifier = struct.pack("II", 2, 0) + policy[16:32] + bytes(16)
if sys.argv[2] == "remove":
    fcntl.ioctl(place, 0xc0406618, bytearray(specifier + bytes(24)))
status = bytearray(specifier + bytes(88))
fcntl.ioctl(place, 0xc080661a, status)
print({1: "absent", 2: "present", 3: "incompletely removed"}[struct.unpack_from("I", status, 64)[0]])
"#;
    let mut asked = Command::new("python3");
    let said =
        asked.args(["-c", script]).arg(folder).arg(if remove { "remove" } else { "look" }).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8_lossy(&said.stdout).trim().to_owned()
}

/// A file system with the encryption feature in a file, mounted as long as this lives. Only root can.
pub struct EncryptingDisk {
    /// A data directory on it.
    pub data: PathBuf,
    /// The bytes of the disk.
    pub image: PathBuf,
    mounted: PathBuf,
    _folder: Folder,
}

impl EncryptingDisk {
    /// Makes and mounts it.
    pub fn mount() -> Self {
        let folder = folder();
        let (image, mounted) = (folder.path().join("disk"), folder.path().join("m"));
        File::create(&image).unwrap().set_len(2 << 30).unwrap();
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
