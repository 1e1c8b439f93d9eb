//! fscrypt inside an ext4 image of our own, for machines whose file system was made without encryption.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keys::DataKey;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::trouble::{self, Trouble};
use super::{FILES, Seen, fscrypt};
use crate::Error;
use crate::places::{make_folder, mount_at};
use crate::process::run;

/// The image's largest size. It is sparse: what the cluster does not use costs nothing.
const IMAGE_BYTES_MAX: u64 = 1 << 40;
/// The smallest that is worth making.
const IMAGE_BYTES_MIN: u64 = 1 << 30;
/// For making or mounting a file system.
const TOOL_MAX: Duration = Duration::from_secs(60);
/// For a mount, and the loop device below it, to be free after its last user is gone.
const DETACH_MAX: Duration = Duration::from_secs(10);
const DETACH_PAUSE: Duration = Duration::from_millis(10);
pub(super) const IMAGE: &str = "image";
/// The encrypted folder inside: the root of an ext4 file system cannot be one.
const INNER: &str = "v";

/// A mounted image whose key the kernel holds.
#[derive(Debug)]
pub(super) struct Unlocked {
    inner: fscrypt::Unlocked,
    image: PathBuf,
    mounted: PathBuf,
}

pub(super) fn base(folder: &Path) -> PathBuf {
    folder.join(FILES).join(INNER)
}

/// Makes an empty image file. It is sparse, and as large as the disk below: what fills up is the disk, and it says so
/// itself.
pub(super) fn allocate(folder: &Path) -> Result<(), Error> {
    let image = folder.join(IMAGE);
    let failed = || Error::file("create", &image);
    let room = rustix::fs::statvfs(folder).map_err(|cause| failed()(cause.into()))?;
    let bytes = (room.f_blocks * room.f_frsize).clamp(IMAGE_BYTES_MIN, IMAGE_BYTES_MAX);
    let file = File::create_new(&image).map_err(failed())?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600))
        .map_err(|cause| failed()(cause.into()))?;
    file.set_len(bytes).map_err(failed())
}

/// Makes the image with the encryption feature, and the encrypted folder in it; leaves it unmounted.
pub(super) fn create(folder: &Path, key: &DataKey) -> Result<(), Error> {
    allocate(folder)?;
    // Inode tables and journal are not written: making a cluster must not write gigabytes of zeros.
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F", "-O", "encrypt", "-m", "0", "-i", "65536", "-J", "size=16"])
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"])
        .arg(folder.join(IMAGE));
    run("mkfs.ext4", make, TOOL_MAX)?;
    let mounted = mount(folder)?;
    let made =
        fscrypt::create(&mounted.join(INNER), key).and_then(|()| fscrypt::unlock(&mounted.join(INNER), key));
    let locked = made.and_then(fscrypt::Unlocked::lock);
    locked.and(take_down(&mounted, &folder.join(IMAGE)))
}

pub(super) fn unlock(folder: &Path, key: &DataKey) -> Result<Unlocked, Error> {
    let mounted = mount(folder)?;
    match fscrypt::unlock(&mounted.join(INNER), key) {
        Ok(inner) => Ok(Unlocked { inner, image: folder.join(IMAGE), mounted }),
        Err(cause) => {
            // Why it could not be unlocked is the better reason.
            let _ = take_down(&mounted, &folder.join(IMAGE));
            Err(cause)
        }
    }
}

impl Unlocked {
    /// Removes the key, then the mount. Both are tried, whatever the first says.
    pub(super) fn lock(self) -> Result<(), Error> {
        let locked = self.inner.lock();
        locked.and(take_down(&self.mounted, &self.image))
    }
}

/// Unmounts, and returns when the image's loop device is free: what a dying mount still writes would go into an image
/// that somebody else has mounted by then.
fn take_down(mounted: &Path, image: &Path) -> Result<(), Error> {
    // Somebody else may have unmounted it.
    if mount_at(mounted).is_some() {
        let unmounted = unmount_wholly(mounted).or_else(|_| unmount(mounted, UnmountFlags::DETACH));
        unmounted.map_err(|cause| Error::file("unmount", mounted)(cause.into()))?;
    }
    if is_detached(image) { Ok(()) } else { Err(Error::file("detach", image)(Errno::BUSY.into())) }
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

/// Mounts the image. The loop device frees itself with the mount, also when we are killed.
fn mount(folder: &Path) -> Result<PathBuf, Error> {
    let target = folder.join(FILES);
    make_folder(&target, 0o711)?;
    let mut mount = Command::new("mount");
    mount
        .args(["-n", "-t", "ext4", "-o", "loop", "-o", super::MOUNT_OPTIONS])
        .arg(folder.join(IMAGE))
        .arg(&target);
    run("mount", mount, TOOL_MAX)?;
    // Past the page cache of the disk below: else every block is cached twice, and a commit's flush takes twice as long.
    // A disk that cannot works as before.
    for device in loops_below(&folder.join(IMAGE)) {
        let _ = Command::new("losetup").arg("--direct-io=on").arg(device).stderr(Stdio::null()).status();
    }
    // Searchable, so that the engine's user comes to its own folder inside; listable by nobody.
    make_folder(&target, 0o711)?;
    Ok(target)
}

/// Frees loop devices whose file lies below the folder, and waits until they are gone.
pub(super) fn detach_loops_below(folder: &Path) {
    for device in loops_below(folder) {
        let _ = Command::new("losetup").arg("-d").arg(device).stderr(Stdio::null()).status();
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
    std::fs::read_dir("/sys/block").into_iter().flatten().flatten().filter_map(move |device| {
        let file = std::fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        Path::new(file.trim_end()).starts_with(path).then(|| Path::new("/dev").join(device.file_name()))
    })
}
