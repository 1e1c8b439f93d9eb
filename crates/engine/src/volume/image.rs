//! fscrypt inside an ext4 image of our own, for machines whose file system was made without encryption.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use keys::DataKey;
use model::StorageLimit;
use rustix::fs::{RenameFlags, renameat_with};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::trouble::{self, Trouble};
use super::{FILES, FileId, Seen, fscrypt, mounting, wal};
use crate::Error;
use crate::inside::Inside;
use crate::places::{self, Owner, mount_at, mounts_below};
use crate::process::run;

/// The image's largest size. It is sparse: what the cluster does not use costs nothing.
const IMAGE_BYTES_MAX: u64 = 1 << 40;
/// What a file of an ext4 below may have.
const FILE_BYTES_MAX: u64 = (16 << 40) - 4_096;
/// The smallest that is worth making.
const IMAGE_BYTES_MIN: u64 = 1 << 30;
/// For making a file system.
const TOOL_MAX: Duration = Duration::from_secs(60);
/// For a mount, and the loop device below it, to be free after its last user is gone.
const DETACH_MAX: Duration = Duration::from_secs(10);
const DETACH_PAUSE: Duration = Duration::from_millis(10);
pub(super) const IMAGE: &str = "image";
/// The image that has the write-ahead log alone, and where it is mounted.
pub(super) const WAL: &str = "wal";
pub(super) const WAL_NEW: &str = "wal.new";
pub(super) const WAL_FILES: &str = "wal-files";
/// The encrypted folder inside: the root of an ext4 file system cannot be one.
const INNER: &str = "v";

/// A mounted image whose key the kernel holds.
#[derive(Debug)]
struct Part {
    inner: fscrypt::Unlocked,
    image: PathBuf,
    file: FileId,
    mounted: PathBuf,
}

/// The two images of a volume.
#[derive(Debug)]
pub(super) struct Unlocked {
    data: Part,
    wal: Part,
}

pub(super) fn base(folder: &Path) -> PathBuf {
    folder.join(FILES).join(INNER)
}

/// The encrypted folder of the image for the write-ahead log.
pub(super) fn wal_base(folder: &Path) -> PathBuf {
    folder.join(WAL_FILES).join(INNER)
}

/// Makes an empty image file for data. It is sparse, and as large as the disk below, or as the limit: what holds a cluster to
/// that is the ballast in it, which can shrink and grow while the engine works.
pub(super) fn allocate(folder: &Path, limit: StorageLimit) -> Result<(), Error> {
    let image = folder.join(IMAGE);
    let room = places::disk_room(folder).map_err(Error::file("create", &image))?;
    let disk_bytes = room.total_bytes.clamp(IMAGE_BYTES_MIN, IMAGE_BYTES_MAX);
    let bytes = disk_bytes.max(limit.bytes()).min(FILE_BYTES_MAX);
    allocate_file(&image, bytes)
}

fn allocate_file(image: &Path, bytes: u64) -> Result<(), Error> {
    let failed = || Error::file("create", image);
    let file = File::create_new(image).map_err(failed())?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600))
        .map_err(|cause| failed()(cause.into()))?;
    file.set_len(bytes).map_err(failed())
}

/// Makes the images with the encryption feature, and the encrypted folder in each; leaves them unmounted. With room for a
/// write-ahead log of so many bytes.
pub(super) fn create(
    folder: &Path,
    key: &DataKey,
    (limit, wal_bytes): (StorageLimit, u64),
) -> Result<(), Error> {
    allocate(folder, limit)?;
    format(&folder.join(IMAGE), folder, FILES, key)?;
    create_wal(folder, key, wal_bytes)?;
    keep_wal(folder)
}

/// Makes the image for the write-ahead log, under another name until it is whole. It is as large as any limit allows, and
/// larger where that is needed for what is there already: what holds it to its limit is a ballast, as in the other.
fn create_wal(folder: &Path, key: &DataKey, wal_bytes: u64) -> Result<(), Error> {
    let made = folder.join(WAL_NEW);
    places::remove_folder(&made)?;
    allocate_file(&made, StorageLimit::MAX.wal_bytes().max(wal_bytes.saturating_mul(2)))?;
    format(&made, folder, WAL_FILES, key)
}

fn keep_wal(folder: &Path) -> Result<(), Error> {
    let opened = Inside::at(folder)?;
    renameat_with(&opened, WAL_NEW, &opened, WAL, RenameFlags::NOREPLACE)
        .map_err(|cause| Error::file("create", &folder.join(WAL))(cause.into()))?;
    opened.sync()
}

/// Gives a volume of an earlier version, which is unlocked, its image for the write-ahead log, with everything in it that
/// belongs there.
fn add_wal(folder: &Path, key: &DataKey, owner: Owner) -> Result<(), Error> {
    let base = base(folder);
    wal::must_be_here(&base, &folder.join(WAL))?;
    let wal_bytes = wal::used_bytes(&base)?;
    super::check::must_have_room(folder, wal_bytes)?;
    create_wal(folder, key, wal_bytes)?;
    let made = open(&folder.join(WAL_NEW), folder.join(WAL_FILES), key)?;
    let filled = wal::fill(&base, &wal_base(folder), owner);
    filled.and(made.lock())?;
    keep_wal(folder)
}

fn format(image: &Path, folder: &Path, at: &str, key: &DataKey) -> Result<(), Error> {
    // Inode tables and journal are not written: making a cluster must not write gigabytes of zeros.
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F", "-O", "encrypt", "-m", "0", "-b", "4096", "-i", "65536", "-J", "size=16"])
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"])
        .arg(image);
    run("mkfs.ext4", make, TOOL_MAX)?;
    let mounted = folder.join(at);
    mounting::mount_image(image, &mounted)?;
    let made =
        fscrypt::create(&mounted.join(INNER), key).and_then(|()| fscrypt::unlock(&mounted.join(INNER), key));
    let locked = made.and_then(fscrypt::Unlocked::lock);
    locked.and(take_down(&mounted, image, None))
}

/// Unlocks both images. A volume of an earlier version has one, and gets the other.
pub(super) fn unlock(folder: &Path, key: &DataKey, owner: Owner) -> Result<Unlocked, Error> {
    super::check::must_have_room(folder, 0)?;
    let data = open(&folder.join(IMAGE), folder.join(FILES), key)?;
    let wal = (|| {
        let image = folder.join(WAL);
        if !image.try_exists().map_err(Error::file("look at", &image))? {
            add_wal(folder, key, owner)?;
        }
        open(&image, folder.join(WAL_FILES), key)
    })();
    match wal {
        Ok(wal) => Ok(Unlocked { data, wal }),
        Err(cause) => {
            data.lock()?;
            Err(cause)
        }
    }
}

/// Checks an image where its file system says that something is wrong with it, mounts it and gives the kernel its key.
fn open(image: &Path, mounted: PathBuf, key: &DataKey) -> Result<Part, Error> {
    // Two mounts of one image write over each other, and so do a mount and a check.
    if let Some(device) = loops_below(image).next() {
        let attached = format!(
            "it is still attached to {}, by a mount that somebody else holds; end that, or restart the machine",
            device.display()
        );
        return Err(Error::file("unlock", image)(std::io::Error::other(attached)));
    }
    let file = file_id(image).map_err(Error::file("look at", image))?;
    super::check::mend(image)?;
    mounting::mount_image(image, &mounted).or_else(|refused| {
        if !mounting::is_of_file_system(&refused) {
            return Err(refused);
        }
        // A disk that failed may have kept it from writing down that it has errors.
        tracing::warn!(image = %image.display(), %refused, "the file system cannot be mounted; it is checked");
        super::check::check(image)?;
        mounting::mount_image(image, &mounted)
    })?;
    match fscrypt::unlock(&mounted.join(INNER), key) {
        Ok(inner) => Ok(Part { inner, image: image.to_owned(), file, mounted }),
        Err(cause) => {
            // Why it could not be unlocked is the better reason.
            let _ = take_down(&mounted, image, None);
            Err(cause)
        }
    }
}

fn file_id(path: &Path) -> std::io::Result<FileId> {
    // Not through a link, which whoever writes to the disk could lead to another's image.
    let facts = std::fs::symlink_metadata(path)?;
    Ok((facts.dev(), facts.ino()))
}

/// Whether one of these files is still attached to a loop device, and where it is by now.
pub(super) fn attached(files: &[FileId]) -> Option<String> {
    if files.is_empty() {
        return None;
    }
    loops().find_map(|(device, path)| {
        let is_one = file_id(&path).is_ok_and(|file| files.contains(&file));
        is_one.then(|| {
            format!(
                "its image is still attached to {}, and lies at {} by now; move the data directory back to where it was",
                device.display(),
                path.display()
            )
        })
    })
}

impl Unlocked {
    /// The files of both.
    pub(super) fn files(&self) -> Vec<FileId> {
        vec![self.data.file, self.wal.file]
    }

    /// Removes the keys, then the mounts. All are tried, whatever the others say.
    pub(super) fn lock(self) -> Result<(), Error> {
        uncover(&self.data.mounted);
        uncover(&self.wal.mounted);
        let (inside, wal) = (wal::unbind(&self.data.mounted), self.wal.lock());
        self.data.lock().and(wal).and(inside)
    }
}

impl Part {
    fn lock(self) -> Result<(), Error> {
        let (locked, down) = (self.inner.lock(), take_down(&self.mounted, &self.image, Some(self.file)));
        match locked {
            // No key can be removed from a file system that the kernel stopped writing to. It ends with the mount.
            Err(Error::File { source, .. }) if source.kind() == ErrorKind::ReadOnlyFilesystem => down,
            locked => locked.and(down),
        }
    }
}

/// Takes away what somebody mounted over an image: below that nothing could be unmounted.
pub(super) fn uncover(mounted: &Path) {
    let covers = mounts_below(mounted).iter().filter(|at| *at == mounted).skip(1).count();
    for _ in 0..covers {
        // What stays is told by what is tried next.
        let _ = unmount(mounted, UnmountFlags::DETACH);
    }
}

/// Unmounts, and returns when the image's loop device is free: what a dying mount still writes would go into an image
/// that somebody else has mounted by then.
fn take_down(mounted: &Path, image: &Path, file: Option<FileId>) -> Result<(), Error> {
    // Somebody else may have unmounted it.
    if mount_at(mounted).is_some() {
        let unmounted = unmount_wholly(mounted).or_else(|_| unmount(mounted, UnmountFlags::DETACH));
        unmounted.map_err(|cause| Error::file("unmount", mounted)(cause.into()))?;
    }
    if !is_detached(image) {
        return Err(Error::file("detach", image)(Errno::BUSY.into()));
    }
    let moved = attached(file.as_slice());
    moved.map_or(Ok(()), |reason| Err(Error::file("detach", image)(std::io::Error::other(reason))))
}

/// Unmounts when nobody uses it any more. A program that another thread is starting has copies of our open files until it
/// runs, so that the mount may be busy for a moment after we closed them all.
pub(super) fn unmount_wholly(mounted: &Path) -> Result<(), Errno> {
    let deadline = Instant::now() + DETACH_MAX;
    loop {
        match unmount(mounted, UnmountFlags::empty()) {
            Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(DETACH_PAUSE),
            ended => return ended,
        }
    }
}

/// What the kernel says of the mount, and of the encrypted folder inside.
pub(super) fn seen(folder: &Path) -> Seen {
    let loops: Vec<PathBuf> = loops_below(&folder.join(IMAGE)).collect();
    let is_mounted = mount_at(&folder.join(FILES)).is_some();
    if !is_mounted
        && (loops_below(&folder.join(WAL)).next().is_some() || mount_at(&folder.join(WAL_FILES)).is_some())
    {
        return Seen::wrong("the image of its write-ahead log is still attached or mounted".to_owned());
    }
    match mount_at(&folder.join(FILES)) {
        None if loops.is_empty() => {
            Seen::locked("nothing of its image is mounted, and its key died with the mount".to_owned())
        }
        None => Seen::wrong("its image is still attached to a loop device".to_owned()),
        Some(mounted)
            if mounted.kind == "ext4"
                && loops.iter().any(|device| mounted.source == device.to_string_lossy()) =>
        {
            let inner = fscrypt::seen(&base(folder));
            let evidence = format!("{}; in an ext4 image of its own on {}", inner.evidence, mounted.source);
            Seen { evidence, is_unlocked: true, ..inner }
        }
        Some(mounted) => {
            Seen::wrong(format!("{} ({}) is mounted there, not its image", mounted.source, mounted.kind))
        }
    }
}

/// Whether the image is mounted, and there.
pub(super) fn is_mounted(folder: &Path) -> Result<(), Trouble> {
    let source = trouble::mounted(folder, "ext4").map_err(Trouble::Lost)?;
    if loops_below(&folder.join(IMAGE)).any(|device| source == device.to_string_lossy()) {
        return Ok(());
    }
    let name = source.trim_start_matches("/dev/");
    let backing = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap_or_default();
    if Path::new(backing.trim_end()).starts_with(folder) {
        return Err(Trouble::Warned(format!(
            "its image is not in its folder any more (the kernel calls it {}): the data are gone for good when the engine \
             stops; copy them out first, for instance with pg_dump",
            backing.trim_end()
        )));
    }
    Err(Trouble::Lost(format!("{source} is mounted there, which is not its image")))
}

/// Frees loop devices whose file lies below the folder, and waits until they are gone.
pub(super) fn detach_loops_below(folder: &Path) {
    for device in loops_below(folder) {
        let _ = mounting::detach(&device);
    }
    is_detached(folder);
}

/// Waits until no loop device has a file at or below the path; whether that came.
fn is_detached(path: &Path) -> bool {
    let deadline = Instant::now() + DETACH_MAX;
    while loops_below(path).next().is_some() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(DETACH_PAUSE);
    }
    true
}

/// Loop devices whose file lies at or below the path.
fn loops_below(path: &Path) -> impl Iterator<Item = PathBuf> {
    loops().filter(move |(_, file)| file.starts_with(path)).map(|(device, _)| device)
}

/// All loop devices that have a file, and what that is called now.
fn loops() -> impl Iterator<Item = (PathBuf, PathBuf)> {
    std::fs::read_dir("/sys/block").into_iter().flatten().flatten().filter_map(|device| {
        let file = std::fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        Some((Path::new("/dev").join(device.file_name()), PathBuf::from(file.trim_end())))
    })
}

#[cfg(test)]
mod tests {
    use model::Encryption;

    use super::*;
    use crate::places::is_root;
    use crate::volume::space;

    fn owner() -> Owner {
        Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// Its log takes more than the part that its limit gives, and an earlier try to add the image was broken off.
    #[test]
    fn a_volume_of_an_earlier_version_gets_an_image_that_its_log_fits_into() {
        if !is_root() || !Path::new("/dev/loop-control").exists() {
            return crate::skipped::skipped("only root may mount images");
        }
        let place = tempfile::tempdir().unwrap();
        let (folder, key, limit) = (place.path(), DataKey::random(), StorageLimit::MIN);
        allocate(folder, limit).unwrap();
        format(&folder.join(IMAGE), folder, FILES, &key).unwrap();
        let data = open(&folder.join(IMAGE), folder.join(FILES), &key).unwrap();
        let log = base(folder).join("pg/pg_wal");
        std::fs::create_dir_all(&log).unwrap();
        let (segment, count) = (vec![0x55; 16 << 20], 20);
        assert!(count * (16 << 20) > limit.wal_bytes());
        for number in 0..count {
            std::fs::write(log.join(format!("{number:024}")), &segment).unwrap();
        }
        data.lock().unwrap();
        std::fs::write(folder.join(WAL_NEW), "half of an image").unwrap();

        for _ in 0..2 {
            let unlocked = unlock(folder, &key, owner()).unwrap();
            space::begin(folder, Encryption::FscryptImage, limit, false).unwrap();
            wal::separate(&base(folder), &wal_base(folder), owner()).unwrap();
            assert_eq!(std::fs::read_dir(&log).unwrap().count() as u64, count);
            assert!(
                std::fs::read(log.join(format!("{:024}", 7))).unwrap() == segment,
                "it is not what it was"
            );
            // What recovery needs, whatever the limit says.
            std::fs::write(log.join("new"), &segment).unwrap();
            std::fs::remove_file(log.join("new")).unwrap();
            unlocked.lock().unwrap();
            assert!(!folder.join(WAL_NEW).exists());
        }
        // Somebody attached it elsewhere.
        let device =
            Command::new("losetup").args(["--find", "--show"]).arg(folder.join(WAL)).output().unwrap();
        let refused = unlock(folder, &key, owner()).unwrap_err().to_string();
        detach_loops_below(folder);
        assert!(device.status.success() && refused.contains("still attached"), "{refused}");
        // Somebody took it away.
        std::fs::rename(folder.join(WAL), folder.join("away")).unwrap();
        let refused = unlock(folder, &key, owner()).unwrap_err().to_string();
        assert!(refused.contains("write-ahead log is missing"), "{refused}");
        assert!(!folder.join(WAL).exists(), "an empty one is in its place");
        std::fs::rename(folder.join("away"), folder.join(WAL)).unwrap();
        unlock(folder, &key, owner()).unwrap().lock().unwrap();
    }

    /// A new volume, unlocked, where this machine can have one.
    fn made() -> Option<(tempfile::TempDir, Unlocked)> {
        if !is_root() || !Path::new("/dev/loop-control").exists() {
            crate::skipped::skipped("only root may mount images");
            return None;
        }
        let (place, key) = (tempfile::tempdir().unwrap(), DataKey::random());
        create(place.path(), &key, (StorageLimit::MIN, 0)).unwrap();
        let unlocked = unlock(place.path(), &key, owner()).unwrap();
        Some((place, unlocked))
    }

    /// A predecessor's, with all that is mounted inside it, while somebody has a copy of a mount.
    #[test]
    fn no_copy_of_a_mount_shows_what_a_predecessor_left_unlocked() {
        let Some((place, unlocked)) = made() else { return };
        let (folder, copy) = (place.path(), tempfile::tempdir().unwrap());
        space::begin(folder, Encryption::FscryptImage, StorageLimit::MIN, false).unwrap();
        wal::make_folders(&base(folder)).unwrap();
        wal::separate(&base(folder), &wal_base(folder), owner()).unwrap();
        let bound = Command::new("mount").arg("--bind").args([&folder.join(WAL_FILES), copy.path()]).status();
        assert!(bound.unwrap().success());
        // As a kill leaves it.
        drop(unlocked);
        let left = crate::volume::lock_left(folder, Encryption::FscryptImage, &[]).unwrap_err().to_string();
        let seen = fscrypt::seen(&copy.path().join(INNER));
        assert!(unmount(copy.path(), UnmountFlags::empty()).is_ok());
        assert!(left.contains("still attached"), "{left}");
        assert!(!seen.is_unlocked, "{}", seen.evidence);
        assert!(is_detached(folder));
    }

    #[test]
    fn what_somebody_mounted_over_an_image_keeps_nothing_unlocked() {
        let Some((place, unlocked)) = made() else { return };
        let folder = place.path();
        for name in [FILES, WAL_FILES, FILES] {
            let mut over = Command::new("mount");
            over.args(["-t", "tmpfs", "over"]).arg(folder.join(name));
            assert!(over.status().unwrap().success());
        }
        unlocked.lock().unwrap();
        assert!(mounts_below(folder).is_empty() && loops_below(folder).next().is_none());
    }
}
