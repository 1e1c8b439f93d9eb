//! Loop devices and mounts, by the kernel's own calls: a program for each would take longer than everything else about a volume.

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::{Error as IoError, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::syscall::{self, LoopFlags};
use crate::{Error, places};

/// For the kernel to mount a file system, which plays back its journal.
const MOUNT_MAX: Duration = Duration::from_secs(60);
/// How often a free loop device is asked for, where others take what was free.
const TRIES: u32 = 100;
/// Inode tables are marked as unused until they are used; the kernel would write hundreds of megabytes of zeros over them in the
/// background, and with that fill the sparse image. What cannot be written any more says so at once, instead of going on with
/// what may be wrong.
const OPTIONS: &CStr = c"noinit_itable,errors=remount-ro";
/// The same, and what is freed inside is given back to the disk below.
const IMAGE_OPTIONS: &CStr = c"noinit_itable,errors=remount-ro,discard";

/// Mounts the ext4 file system of a device. Anybody can go through the mount's root, nobody can list it.
///
/// # Errors
///
/// The kernel refuses it, or does not answer in time.
pub(super) fn mount_device(device: &Path, target: &Path) -> Result<(), Error> {
    mount_in_time(None, device, target, OPTIONS)
}

/// Mounts the ext4 file system of an image. The loop device frees itself with the mount, also when we are killed.
///
/// # Errors
///
/// There is no loop device, the kernel refuses the mount, or does not answer in time.
pub(super) fn mount_image(image: &Path, target: &Path) -> Result<(), Error> {
    let (device, name) = attach(image).map_err(Error::file("attach to a loop device", image))?;
    mount_in_time(Some(device), &name, target, IMAGE_OPTIONS)
}

/// In a thread of its own: a disk that does not answer must not stop whoever waits for the mount.
fn mount_in_time(
    held: Option<File>,
    device: &Path,
    target: &Path,
    options: &'static CStr,
) -> Result<(), Error> {
    // Searchable, so that the engine's user comes to its own folder inside; listable by nobody.
    places::make_folder(target, 0o711)?;
    let refused = || Error::file("mount", target);
    let (source, place) = (c_string(device), c_string(target));
    let (told, heard) = channel();
    let work = move || {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
        let mounted = mount(source, place, c"ext4", flags, options);
        // Until then the loop device would free itself.
        drop(held);
        told.send(mounted)
    };
    std::thread::Builder::new().name("mount".to_owned()).spawn(work).map_err(refused())?;
    let answer = heard.recv_timeout(MOUNT_MAX);
    let late = || IoError::new(ErrorKind::TimedOut, format!("no answer within {} s", MOUNT_MAX.as_secs()));
    answer.map_err(|_| refused()(late()))?.map_err(|cause| refused()(cause.into()))?;
    places::make_folder(target, 0o711)
}

/// Attaches an image to a free loop device. Past the page cache of the disk below: else every block is cached twice, and a
/// commit's flush takes twice as long. A disk that cannot works as before.
fn attach(image: &Path) -> Result<(File, PathBuf), IoError> {
    let file = open(image)?;
    let control = open(Path::new("/dev/loop-control"))?;
    for _ in 0..TRIES {
        let name = PathBuf::from(format!("/dev/loop{}", syscall::free_loop_device(&control)?));
        let device = open(&name)?;
        let attach = |flags| syscall::attach_loop_device(&device, &file, image, flags);
        let attached = match attach(LoopFlags::AutoClearDirect) {
            Err(cause) if Errno::from_io_error(&cause) == Some(Errno::INVAL) => attach(LoopFlags::AutoClear),
            tried => tried,
        };
        match attached {
            Ok(()) => return Ok((device, name)),
            // Somebody else was faster.
            Err(cause) if Errno::from_io_error(&cause) == Some(Errno::BUSY) => {}
            Err(cause) => return Err(cause),
        }
    }
    Err(IoError::other("others take every loop device that becomes free"))
}

/// Frees a loop device, at once or with its last user.
pub(super) fn detach(device: &Path) -> Result<(), IoError> {
    syscall::detach_loop_device(&open(device)?)
}

fn open(path: &Path) -> Result<File, IoError> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Of a path that was in use, so that it has no zero byte.
fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

/// Whether the reason for a refused mount is the file system itself, and not that there are no more loop devices, or no
/// memory.
pub(super) fn is_of_file_system(refused: &Error) -> bool {
    let Error::File { action: "mount", source, .. } = refused else {
        return false;
    };
    let of_file_system = [Errno::INVAL, Errno::UCLEAN, Errno::IO, Errno::BADMSG];
    Errno::from_io_error(source).is_some_and(|cause| of_file_system.contains(&cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::{is_root, mount_at};

    #[test]
    fn what_is_no_file_system_is_told_from_what_is_no_device() {
        let folder = tempfile::tempdir().unwrap();
        let (image, target) = (folder.path().join("image"), folder.path().join("files"));
        let missing = mount_image(&image, &target).unwrap_err();
        assert!(!is_of_file_system(&missing), "{missing}");
        File::create_new(&image).unwrap().set_len(64 << 20).unwrap();
        if !is_root() || !Path::new("/dev/loop-control").exists() {
            return crate::skipped::skipped("only root may mount images");
        }
        let empty = mount_image(&image, &target).unwrap_err();
        assert!(is_of_file_system(&empty), "{empty}");
        assert!(mount_at(&target).is_none());
        let directory = mount_device(folder.path(), &target).unwrap_err();
        assert!(!is_of_file_system(&directory), "{directory}");
    }
}
