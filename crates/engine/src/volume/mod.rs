//! One encrypted volume a cluster, by the best means that the machine has.

mod below;
mod check;
mod fscrypt;
mod gocryptfs;
mod image;
mod luks;
mod mounting;
mod space;
mod trouble;
mod wal;
mod watched;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keys::{DataKey, WrappedKey};
use model::{ClusterId, Encryption, StorageLimit};
use serde::Serialize;

pub use space::Measured;
pub(crate) use space::{Giving, Limits, is_tight, is_watched, measure, settle};
pub(crate) use watched::endless;

use crate::companion::{Companion, Told};
use crate::inside::Inside;
use crate::leftovers::{end_processes_of, shred};
use crate::places::{self, Owner, Places, make_folder, mounts_below, remove_folder};
use crate::process::{none_left, run};
use crate::{Error, control_file};

pub(crate) use trouble::{Trouble, look};
pub(crate) use wal::used_bytes as wal_used_bytes;

/// An unlocked volume.
#[derive(Debug)]
pub(crate) struct Unlocked {
    /// Where the engine's files lie in plaintext, as seen by those who may.
    pub(crate) base: PathBuf,
    lock: Lock,
    told: Told,
}

/// What locking must undo.
#[derive(Debug)]
enum Lock {
    Fscrypt(fscrypt::Unlocked),
    Image(image::Unlocked),
    Luks(luks::Unlocked),
    Gocryptfs(gocryptfs::Unlocked),
    None,
}

/// What is true of a volume at this moment, read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeState {
    /// How it is encrypted.
    pub encryption: Encryption,
    /// Whether its files can be read through the kernel now.
    pub is_unlocked: bool,
    /// Whether what the kernel shows at this moment bears that out. Never true of what is stated only.
    pub is_proven: bool,
    /// How contents and names are encrypted, where that can be seen now.
    pub cipher: Option<String>,
    /// What the kernel calls the key, where it has a name.
    pub key: Option<String>,
    /// What was seen.
    pub evidence: String,
}

impl VolumeState {
    /// Whether nothing of ours encrypts the files, so that there is nothing to lock.
    pub fn is_plain(&self) -> bool {
        match self.encryption {
            Encryption::None | Encryption::Attested => true,
            Encryption::Fscrypt | Encryption::FscryptImage | Encryption::Luks2 | Encryption::Gocryptfs => {
                false
            }
        }
    }
}

/// For FUSE's helper to unmount.
const UNMOUNT_MAX: Duration = Duration::from_secs(20);
/// For trying one kind of volume.
const TRIAL_MAX: Duration = Duration::from_secs(60);
/// For mounts and devices to be gone that nobody uses any more.
const GONE_MAX: Duration = Duration::from_secs(5);
const GONE_PAUSE: Duration = Duration::from_millis(10);
/// Names of what lies in a cluster's folder.
const FILES: &str = "files";

/// Where a volume's wrapped data key lies.
pub(crate) fn key_file(folder: &Path) -> PathBuf {
    folder.join("key.json")
}

/// A volume's data key as it lies on the disk.
pub(crate) fn wrapped_key(folder: &Path) -> Result<WrappedKey, Error> {
    let path = key_file(folder);
    let damaged = |reason| keys::Error::Damaged { path: path.clone(), reason };
    let text = keys::read_private(&path)?.ok_or_else(|| damaged("it is not there"))?;
    Ok(serde_json::from_slice(text.expose()).map_err(|_| damaged("it is not a wrapped key"))?)
}

/// Keeps a wrapped data key, whole or not at all.
pub(crate) fn keep_wrapped_key(folder: &Path, wrapped: &WrappedKey) -> Result<(), Error> {
    let text = serde_json::to_vec(wrapped).map_err(|cause| Error::Unready(cause.to_string()))?;
    Ok(keys::write_private(&key_file(folder), &text)?)
}

/// Overwrites and removes a volume's wrapped data key, also one that a crash left half replaced.
pub(crate) fn shred_key(folder: &Path) -> Result<(), Error> {
    shred(&key_file(folder)).and(shred(&folder.join("key.json.new")))
}

/// Takes the key out of a file system that outlives us, if it is there. The kernel says which key it is.
pub(crate) fn lock_native(folder: &Path) -> Result<(), Error> {
    fscrypt::lock(&folder.join(FILES))
}

/// A file as the kernel knows it, whatever it is called by now: its device and its number there.
pub(crate) type FileId = (u64, u64);

/// Locks a volume that somebody else unlocked, or of which something was lost: its key, its mount, its devices. What serves it
/// and works on it has been ended. The files are those of its images, where they are known: they may have been moved since.
pub(crate) fn lock_left(folder: &Path, kind: Encryption, files: &[FileId]) -> Result<(), Error> {
    let mounted = folder.join(FILES);
    match kind {
        Encryption::Fscrypt => fscrypt::lock_left(&mounted)?,
        // Before the mount goes: somebody else's copy of it shows nothing without the key. What is mounted inside first: it
        // holds files open, whose keys would stay.
        Encryption::FscryptImage => {
            put_away_below(&mounted);
            let parts =
                [(mounted, image::base(folder)), (folder.join(image::WAL_FILES), image::wal_base(folder))];
            for (_, base) in parts.iter().filter(|(mounted, _)| places::mount_at(mounted).is_some()) {
                let _ = fscrypt::lock_left(base);
            }
        }
        Encryption::Luks2 | Encryption::Gocryptfs | Encryption::Attested | Encryption::None => {}
    }
    put_away(folder);
    if kind == Encryption::Fscrypt {
        // It insisted; and where it was made half, there is nothing to be seen.
        return Ok(());
    }
    let deadline = Instant::now() + GONE_MAX;
    while let Some(reason) = still_unlocked(folder, kind, files) {
        if Instant::now() >= deadline {
            return Err(Error::file("lock", folder)(std::io::Error::other(reason)));
        }
        std::thread::sleep(GONE_PAUSE);
    }
    Ok(())
}

/// What the kernel says of a volume that should be locked and is not. The files are those of its images.
pub(crate) fn still_unlocked(folder: &Path, kind: Encryption, files: &[FileId]) -> Option<String> {
    let seen = match kind {
        Encryption::Fscrypt => fscrypt::seen(&folder.join(FILES)),
        Encryption::FscryptImage => image::seen(folder),
        Encryption::Luks2 => luks::seen(folder),
        Encryption::Gocryptfs => gocryptfs::seen(folder),
        // There is nothing to lock.
        Encryption::Attested | Encryption::None => return None,
    };
    if seen.is_unlocked { Some(seen.evidence) } else { image::attached(files) }
}

/// Makes an empty volume and unlocks it, with room for a write-ahead log of so many bytes beside what its limit gives. The
/// companion hears of it first.
pub(crate) fn create(
    companion: &Companion,
    folder: &Path,
    kind: Encryption,
    key: &DataKey,
    owner: Owner,
    (limit, wal_bytes): (StorageLimit, u64),
) -> Result<Unlocked, Error> {
    make_folder(folder, if places::is_root() { 0o711 } else { 0o700 })?;
    // Making it may unlock it already.
    companion.tell(folder, kind)?;
    match kind {
        Encryption::Fscrypt => fscrypt::create(&folder.join(FILES), key)?,
        Encryption::FscryptImage => image::create(folder, key, (limit, wal_bytes))?,
        Encryption::Gocryptfs => gocryptfs::create(folder, key)?,
        Encryption::Luks2 => luks::create(folder, key, limit)?,
        Encryption::Attested | Encryption::None => make_folder(&folder.join(FILES), 0o700)?,
    }
    let unlocked = unlock(companion, folder, kind, key, owner, limit)?;
    places::give(&unlocked.base, owner)?;
    if kind == Encryption::FscryptImage {
        places::give(&image::wal_base(folder), owner)?;
    }
    Ok(unlocked)
}

/// Unlocks a volume that exists, for its owner, with all the room that its limit gives. The companion hears of it first;
/// without one it stays locked.
pub(crate) fn unlock(
    companion: &Companion,
    folder: &Path,
    kind: Encryption,
    key: &DataKey,
    owner: Owner,
    limit: StorageLimit,
) -> Result<Unlocked, Error> {
    let told = companion.tell(folder, kind)?;
    let files = folder.join(FILES);
    let (base, lock) = match kind {
        Encryption::Fscrypt => (files.clone(), Lock::Fscrypt(fscrypt::unlock(&files, key)?)),
        Encryption::FscryptImage => {
            let unlocked = image::unlock(folder, key, owner)?;
            (image::base(folder), Lock::Image(unlocked))
        }
        Encryption::Gocryptfs => (files, Lock::Gocryptfs(gocryptfs::unlock(folder, key, owner)?)),
        Encryption::Luks2 => {
            let unlocked = luks::unlock(folder, key)?;
            (luks::base(folder), Lock::Luks(unlocked))
        }
        Encryption::Attested | Encryption::None => (files, Lock::None),
    };
    let unlocked = Unlocked { base, lock, told };
    // One whose control file cannot be read may have to recover as well.
    let recovers = !control_file::is_shut_down(&unlocked.base).unwrap_or(false);
    let given =
        space::begin(folder, kind, limit, recovers).and_then(|()| unlocked.separate_wal(folder, owner));
    match given {
        Ok(()) => Ok(unlocked),
        Err(cause) => {
            unlocked.lock()?;
            Err(cause)
        }
    }
}

impl Unlocked {
    /// Puts what must always be able to grow into the part of the volume that is for it alone, where the volume has one.
    /// Does nothing where it is there, or where the engine's folder was not made yet.
    pub(crate) fn separate_wal(&self, folder: &Path, owner: Owner) -> Result<(), Error> {
        match self.lock {
            Lock::Image(_) => wal::separate(&self.base, &image::wal_base(folder), owner),
            Lock::Fscrypt(_) | Lock::Luks(_) | Lock::Gocryptfs(_) | Lock::None => Ok(()),
        }
    }

    /// Makes an empty volume ready for a data directory, with its log in its own part from the beginning.
    pub(crate) fn prepare_empty(&self, folder: &Path, owner: Owner) -> Result<(), Error> {
        if let Lock::Image(_) = self.lock {
            wal::make_folders(&self.base)?;
        }
        self.separate_wal(folder, owner)
    }

    /// Makes an empty volume ready for a copy of another, with room for all of it, whatever the limit.
    pub(crate) fn receive(&self, folder: &Path, kind: Encryption, owner: Owner) -> Result<(), Error> {
        space::begin(folder, kind, StorageLimit::MAX, false)?;
        self.prepare_empty(folder, owner)
    }

    /// The files of its images, where it has some.
    pub(crate) fn files(&self) -> Vec<FileId> {
        match &self.lock {
            Lock::Image(unlocked) => unlocked.files(),
            Lock::Fscrypt(_) | Lock::Luks(_) | Lock::Gocryptfs(_) | Lock::None => Vec::new(),
        }
    }

    /// The process that serves it, where one does.
    pub(crate) fn server(&self) -> Option<u32> {
        match &self.lock {
            Lock::Gocryptfs(unlocked) => Some(unlocked.server()),
            Lock::Fscrypt(_) | Lock::Image(_) | Lock::Luks(_) | Lock::None => None,
        }
    }

    /// Returns when everything that was written to the volume in this folder is on the disk.
    pub(crate) fn sync(&self, folder: &Path) -> Result<(), Error> {
        // The volume first: what it writes then lies in a file of the folder, or in several.
        let wal = image::wal_base(folder);
        let wal = matches!(self.lock, Lock::Image(_)).then_some(wal.as_path());
        for place in wal.into_iter().chain([self.base.as_path(), folder]) {
            Inside::at(place)?.sync()?;
        }
        Ok(())
    }

    /// Ends what serves it, so that nobody waits for it any longer. Only for a volume that was lost.
    pub(crate) fn give_up(&mut self) {
        match &mut self.lock {
            Lock::Gocryptfs(unlocked) => unlocked.kill(),
            Lock::Fscrypt(_) | Lock::Image(_) | Lock::Luks(_) | Lock::None => {}
        }
    }

    /// Takes the key out of the kernel. An error means that it may still be there.
    pub(crate) fn lock(self) -> Result<(), Error> {
        match self.lock {
            Lock::Fscrypt(unlocked) => unlocked.lock(),
            Lock::Image(unlocked) => unlocked.lock(),
            Lock::Luks(unlocked) => unlocked.lock(),
            Lock::Gocryptfs(unlocked) => unlocked.lock(),
            Lock::None => Ok(()),
        }?;
        self.told.locked();
        Ok(())
    }
}

/// What was looked at for one kind of volume.
struct Seen {
    is_unlocked: bool,
    is_proven: bool,
    cipher: Option<String>,
    key: Option<String>,
    evidence: String,
}

impl Seen {
    /// Nothing of it can be read through the kernel.
    fn locked(evidence: String) -> Self {
        Self { is_unlocked: false, is_proven: true, cipher: None, key: None, evidence }
    }

    /// What is seen does not fit what the volume should be.
    fn wrong(evidence: String) -> Self {
        Self { is_unlocked: true, is_proven: false, cipher: None, key: None, evidence }
    }
}

/// What the kernel says of a volume now, locked or not; with what the operator says of the disk below.
pub(crate) fn state(folder: &Path, encryption: Encryption, attestation: Option<&str>) -> VolumeState {
    let Seen { is_unlocked, is_proven, cipher, key, evidence } = match encryption {
        Encryption::Fscrypt => fscrypt::seen(&folder.join(FILES)),
        Encryption::FscryptImage => image::seen(folder),
        Encryption::Luks2 => luks::seen(folder),
        Encryption::Gocryptfs => gocryptfs::seen(folder),
        Encryption::Attested => Seen::wrong(attested(folder, attestation)),
        Encryption::None => Seen::wrong("the files lie in plaintext".to_owned()),
    };
    VolumeState { encryption, is_unlocked, is_proven, cipher, key, evidence }
}

/// The operator's word, and beside it what the kernel shows. Never more than that: where the disk's key lies, and who
/// has it, cannot be seen from here.
fn attested(folder: &Path, attestation: Option<&str>) -> String {
    let said = attestation.map_or_else(
        || "stated by the operator when the cluster was made, not proven, and not stated now".to_owned(),
        |text| format!("stated by the operator, not proven: {text}"),
    );
    match below::crypt_devices(folder) {
        Some(devices) => format!("{said}; the kernel shows below the folder: {}", devices.join(", ")),
        None => format!("{said}; the kernel shows no encrypted disk below the folder"),
    }
}

/// Removes what a cluster left, locked or not: mounts, then files. Its key files are gone before this is called.
pub(crate) fn destroy_all(places: &Places, id: ClusterId) -> Result<(), Error> {
    let folder = places.cluster(id);
    put_away(&folder);
    remove_folder(&folder)
}

/// Destroys one volume of a cluster, locked or not: its key first. Safe to repeat.
pub(crate) fn destroy(places: &Places, id: ClusterId, generation: u32) -> Result<(), Error> {
    let folder = places.volume(id, generation);
    shred_key(&folder)?;
    // Without one, or in another kind of volume, there is no key of it to be taken out.
    let _ = lock_native(&folder);
    for name in [FILES, image::WAL_FILES, image::IMAGE, image::WAL, image::WAL_NEW, gocryptfs::CIPHER] {
        let path = folder.join(name);
        put_away(&path);
        remove_folder(&path)?;
    }
    // The first volume shares its folder with what belongs to the cluster.
    if generation == 0 { Ok(()) } else { remove_folder(&folder) }
}

/// Destroys every volume but the one that counts.
pub(crate) fn destroy_others(places: &Places, id: ClusterId, current: u32) -> Result<(), Error> {
    let others = places.generations(id).into_iter().filter(|generation| *generation != current);
    others.map(|generation| destroy(places, id, generation)).fold(Ok(()), Result::and)
}

/// Unmounts everything at or below a folder, whoever left it there.
pub(crate) fn put_away(folder: &Path) {
    unmount_all(folder, mounts_below(folder));
}

/// Unmounts everything below a folder, which may itself be where the operator mounted a disk of its own.
pub(crate) fn put_away_below(folder: &Path) {
    unmount_all(folder, mounts_below(folder).into_iter().filter(|mounted| mounted != folder).collect());
}

fn unmount_all(folder: &Path, mounts: Vec<PathBuf>) {
    for mounted in mounts {
        use rustix::mount::{UnmountFlags, unmount};
        let detached = unmount(&mounted, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        if detached.is_err() {
            // Without root only FUSE's own helper may unmount.
            let mut helper = std::process::Command::new("fusermount3");
            helper.args(["-u", "-z"]).arg(&mounted);
            let _ = run("fusermount3", helper, UNMOUNT_MAX);
        }
    }
    luks::close_below(folder);
    image::detach_loops_below(folder);
}

/// The best encryption that works here, found by using it; or why there is none.
pub(crate) fn probe(
    companion: &Arc<Companion>,
    places: &Places,
    wanted: Option<Encryption>,
) -> Result<Encryption, String> {
    let kinds = [Encryption::Fscrypt, Encryption::FscryptImage, Encryption::Luks2, Encryption::Gocryptfs];
    let mut reasons = Vec::new();
    for kind in kinds {
        if wanted.is_some_and(|wanted| wanted != kind) {
            continue;
        }
        match try_in_time(companion, places, kind) {
            Ok(()) => return Ok(kind),
            Err(reason) => reasons.push(format!("{}: {reason}", kind.as_str())),
        }
    }
    Err(if reasons.is_empty() { "none was wanted".to_owned() } else { reasons.join("; ") })
}

/// Tries in a thread of its own: a file system that does not answer must not stop Chitin.
fn try_in_time(companion: &Arc<Companion>, places: &Places, kind: Encryption) -> Result<(), String> {
    // A folder of its own for every trial: two on one name would tread on each other.
    let id = ClusterId::random();
    let (told, heard) = std::sync::mpsc::channel();
    let (own, minding) = (places.clone(), companion.clone());
    std::thread::Builder::new()
        .name("trial".to_owned())
        .spawn(move || told.send(try_out(&minding, &own, id, kind)))
        .map_err(|cause| none_left(&cause))?;
    heard.recv_timeout(TRIAL_MAX).unwrap_or_else(|_| {
        // Whoever waits for the file system is let go when its server is gone.
        end_processes_of(&places.cluster(id));
        let _ = destroy_all(places, id);
        companion.forget(&places.cluster(id));
        Err(format!("it did not answer within {} seconds", TRIAL_MAX.as_secs()))
    })
}

/// Makes, writes, locks, unlocks and reads a volume of this kind.
fn try_out(companion: &Companion, places: &Places, id: ClusterId, kind: Encryption) -> Result<(), String> {
    if matches!(kind, Encryption::FscryptImage | Encryption::Luks2) && !places::is_root() {
        return Err("only root may mount an image".to_owned());
    }
    let key = DataKey::random();
    let owner = Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let folder = places.cluster(id);
    let tried = (|| -> Result<(), Error> {
        let unlocked = create(companion, &folder, kind, &key, owner, (StorageLimit::MIN, 0))?;
        Inside::at(&unlocked.base)?.write("trial", "trial", owner)?;
        unlocked.lock()?;
        let unlocked = unlock(companion, &folder, kind, &key, owner, StorageLimit::MIN)?;
        let read = Inside::at(&unlocked.base).map(|base| base.read("trial"));
        unlocked.lock()?;
        let is_same = read?.is_some_and(|read| read == "trial");
        if is_same { Ok(()) } else { Err(Error::Unready("the trial file changed".to_owned())) }
    })();
    let removed = destroy_all(places, id);
    // Of a folder that is gone fscrypt has nothing more to tell.
    let is_open = || kind != Encryption::Fscrypt && still_unlocked(&folder, kind, &[]).is_some();
    if removed.is_ok() && !is_open() {
        // Also of a kind that could not be made, which was told before that was known.
        companion.forget(&folder);
    }
    tried.and(removed).map_err(|cause| cause.to_string())
}

/// Opens a folder for an ioctl on it; never through a link that somebody left there.
fn open_folder(path: &Path) -> Result<File, Error> {
    Ok(Inside::at(path)?.into_file())
}
