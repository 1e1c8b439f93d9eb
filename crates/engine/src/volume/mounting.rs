//! Loop devices and mounts, by the kernel's own calls: a program for each would take longer than everything else about a volume.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{Error as IoError, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{Error, places, syscall};

/// For a disk to answer: a mount plays back the file system's journal.
const ANSWER_MAX: Duration = Duration::from_secs(50);
/// How often a free loop device is asked for, where others take what was free.
const TRIES: u32 = 100;
const TRY_PAUSE: Duration = Duration::from_millis(5);
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
/// The kernel refuses it, or does not answer in time. Nothing is mounted then.
pub(super) fn mount_device(device: &Path, target: &Path) -> Result<(), Error> {
    let (device, place) = (device.to_owned(), target.to_owned());
    in_time(target, ANSWER_MAX, move || mount_at(&device, &place, OPTIONS))
}

/// Mounts the ext4 file system of an image. The loop device frees itself with the mount, also when we are killed.
///
/// # Errors
///
/// As of [`mount_device`], and where there is no loop device.
pub(super) fn mount_image(image: &Path, target: &Path) -> Result<(), Error> {
    let (image, place) = (image.to_owned(), target.to_owned());
    in_time(target, ANSWER_MAX, move || {
        let (device, name) = attach(&image).map_err(Error::file("attach to a loop device", &image))?;
        let mounted = mount_at(&name, &place, IMAGE_OPTIONS);
        // Without a user before that, it would have freed itself.
        drop(device);
        mounted
    })
}

/// Does it in a thread of its own: a disk that does not answer must not stop whoever waits for it. What is mounted after nobody
/// waits any more is unmounted at once.
fn in_time(
    target: &Path,
    patience: Duration,
    work: impl FnOnce() -> Result<(), Error> + Send + 'static,
) -> Result<(), Error> {
    let refused = || Error::file("mount", target);
    let place = target.to_owned();
    let (told, heard) = channel();
    let is_given_up = Arc::new(Mutex::new(false));
    let given_up = is_given_up.clone();
    let work = move || {
        let done = work();
        let is_given_up = given_up.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_given_up && done.is_ok() {
            take_away(&place);
        }
        let _ = told.send(done);
    };
    std::thread::Builder::new().name("mount".to_owned()).spawn(work).map_err(refused())?;
    if let Ok(done) = heard.recv_timeout(patience) {
        return done;
    }
    let mut given_up = is_given_up.lock().unwrap_or_else(PoisonError::into_inner);
    if let Ok(done) = heard.try_recv() {
        return done;
    }
    *given_up = true;
    let late = format!("the disk gave no answer within {} seconds", patience.as_secs());
    Err(refused()(IoError::new(ErrorKind::TimedOut, late)))
}

fn mount_at(device: &Path, target: &Path, options: &CStr) -> Result<(), Error> {
    // Searchable, so that the engine's user comes to its own folder inside; listable by nobody.
    places::make_folder(target, 0o711)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    mount(device, target, c"ext4", flags, options)
        .map_err(|cause| Error::file("mount", target)(cause.into()))?;
    places::make_folder(target, 0o711).inspect_err(|_| take_away(target))
}

fn take_away(target: &Path) {
    if let Err(cause) = unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        tracing::error!(place = %target.display(), %cause, "a mount that nobody waits for could not be taken away");
    }
}

/// Attaches an image to a free loop device. Past the page cache of the disk below: else every block is cached twice, and a
/// commit's flush takes twice as long. A disk that cannot works all the same.
fn attach(image: &Path) -> Result<(File, PathBuf), IoError> {
    let file = open(OpenOptions::new().read(true).write(true), image)?;
    if !file.metadata()?.is_file() {
        return Err(IoError::other("it is no file"));
    }
    let control = open(OpenOptions::new().read(true).write(true), Path::new("/dev/loop-control"))?;
    let is_taken = |cause: &IoError| Errno::from_io_error(cause).is_some_and(|cause| TAKEN.contains(&cause));
    for _ in 0..TRIES {
        match try_attach(&control, &file, image) {
            // Somebody else was faster.
            Err(cause) if is_taken(&cause) => std::thread::sleep(TRY_PAUSE),
            ended => return ended,
        }
    }
    try_attach(&control, &file, image)
}

/// What a loop device says that somebody else has taken, or removed.
const TAKEN: &[Errno] = &[Errno::BUSY, Errno::AGAIN, Errno::NXIO, Errno::NOENT];

/// A free loop device that now has the file, open for reading alone: some kernels mount nothing that somebody has open for
/// writing.
fn try_attach(control: &File, file: &File, image: &Path) -> Result<(File, PathBuf), IoError> {
    let name = PathBuf::from(format!("/dev/loop{}", syscall::free_loop_device(control)?));
    let writer = open(OpenOptions::new().read(true).write(true), &name)?;
    syscall::attach_loop_device(&writer, file, image)?;
    let device = open(OpenOptions::new().read(true), &name)?;
    Ok((device, name))
}

/// Frees a loop device, at once or with its last user.
pub(super) fn detach(device: &Path) -> Result<(), IoError> {
    syscall::detach_loop_device(&open(OpenOptions::new().read(true), device)?)
}

fn open(options: &mut OpenOptions, path: &Path) -> Result<File, IoError> {
    options.custom_flags(libc::O_NOFOLLOW).open(path)
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
    use crate::places::is_root;

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
        assert!(places::mount_at(&target).is_none());
        let directory = mount_device(folder.path(), &target).unwrap_err();
        assert!(!is_of_file_system(&directory), "{directory}");
        // A link of somebody with access to the disk leads to no other's image or disk.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&image, &link).unwrap();
        for wrong in [&link, Path::new("/dev/null")] {
            let refused = mount_image(wrong, &target).unwrap_err();
            assert!(!is_of_file_system(&refused), "{refused}");
            assert!(refused.to_string().contains("loop device"), "{refused}");
        }
    }

    #[test]
    fn a_mount_that_comes_too_late_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let at_once = || Err(Error::Unready("no".to_owned()));
        let refused = in_time(folder.path(), ANSWER_MAX, at_once).unwrap_err();
        assert!(matches!(refused, Error::Unready(_)), "{refused}");
        if !is_root() {
            return crate::skipped::skipped("only root may mount");
        }
        let (go, wait) = channel();
        let (place, patience) = (folder.path().to_owned(), Duration::from_millis(10));
        let late = in_time(folder.path(), patience, move || {
            wait.recv().unwrap();
            mount("late", &place, c"tmpfs", MountFlags::empty(), None)
                .map_err(|cause| Error::file("mount", &place)(cause.into()))?;
            assert!(places::mount_at(&place).is_some());
            Ok(())
        });
        assert!(late.unwrap_err().to_string().contains("no answer"));
        go.send(()).unwrap();
        // The thread ends with the mount taken away again; until then its end of the channel is there.
        while go.send(()).is_ok() {
            std::thread::sleep(TRY_PAUSE);
        }
        let deadline = std::time::Instant::now() + ANSWER_MAX;
        while places::mount_at(folder.path()).is_some() {
            assert!(std::time::Instant::now() < deadline, "it stays");
            std::thread::sleep(TRY_PAUSE);
        }
    }
}
