//! One file of a volume: looked at, read and written without filling its holes.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    Advice, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, fadvise, fchmod, fchown, fdatasync,
    futimens, openat, seek,
};
use rustix::io::Errno;

use super::Stopped;
use crate::Error;
use crate::inside::Inside;
use crate::places::is_root;

/// Between two looks whether the copy is given up.
const PIECE_BYTES: usize = 1 << 20;
/// Written before the disk must have it. A copy that fills the memory with unwritten pages would make the engine's own
/// commits wait behind them.
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;
/// A file that changed within this before its look may change again and look the same.
const QUIET_NANOSECONDS: i128 = 2_000_000_000;

/// What tells that a file is not what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    inode: u64,
    bytes: i64,
    modified: i128,
    changed: i128,
}

impl Look {
    #[allow(clippy::useless_conversion, reason = "the types differ between processors")]
    pub(super) fn of(facts: &Stat) -> Self {
        let at = |seconds: i64, nanoseconds: i128| i128::from(seconds) * 1_000_000_000 + nanoseconds;
        Self {
            inode: facts.st_ino,
            bytes: facts.st_size,
            modified: at(facts.st_mtime, i128::from(facts.st_mtime_nsec)),
            changed: at(facts.st_ctime, i128::from(facts.st_ctime_nsec)),
        }
    }

    /// Whether it had not changed for a while when it was looked at, after `now`.
    pub(super) fn is_quiet(&self, now: i128) -> bool {
        self.modified.max(self.changed) + QUIET_NANOSECONDS < now
    }
}

/// The time by which the kernel stamps files, in nanoseconds.
pub(super) fn now() -> i128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

/// Makes or empties a file of the copy, which no engine has seen yet.
pub(super) fn open_target(folder: &Inside, name: &OsString) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

/// Copies the first `bytes` of a file, and its holes as holes. What is written behind them meanwhile is for the next pass.
pub(super) fn copy(
    source: &File,
    target: &File,
    bytes: u64,
    is_given_up: &AtomicBool,
    path: &Path,
) -> Result<(), Stopped> {
    let failed = |action| Error::file(action, path);
    // What we read once must not push out what the engine reads often.
    let _ = fadvise(source, 0, None, Advice::NoReuse);
    let mut piece = vec![0; PIECE_BYTES];
    let (mut at, mut unsynced_bytes) = (0_u64, 0_u64);
    while at < bytes {
        let start = match seek(source, SeekFrom::Data(at)) {
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            // A file system that knows no holes shows data only.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            found => found.map_err(|cause| failed("read")(cause.into()))?,
        };
        let end = seek(source, SeekFrom::Hole(start)).unwrap_or(bytes).min(bytes);
        if end <= start {
            break;
        }
        at = start;
        while at < end {
            if is_given_up.load(Ordering::Relaxed) {
                return Err(Stopped::GivenUp);
            }
            let room = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let count = source.read_at(&mut piece[..room], at).map_err(failed("read"))?;
            if count == 0 {
                // It became shorter, so it has changed, and the next pass sees that.
                return target.set_len(at).map_err(|cause| failed("write")(cause).into());
            }
            target.write_all_at(&piece[..count], at).map_err(failed("write"))?;
            at += count as u64;
            unsynced_bytes += count as u64;
            if unsynced_bytes >= UNSYNCED_BYTES_MAX {
                fdatasync(target).map_err(|cause| failed("write")(cause.into()))?;
                let _ = fadvise(target, 0, None, Advice::DontNeed);
                unsynced_bytes = 0;
            }
        }
    }
    target.set_len(bytes).map_err(|cause| failed("write")(cause).into())
}

/// Gives a file or folder of the copy the owner, mode and times of its original.
#[allow(clippy::useless_conversion, reason = "the types differ between processors")]
pub(super) fn dress(target: impl AsFd, facts: &Stat) -> Result<(), Errno> {
    if is_root() {
        fchown(&target, Some(Uid::from_raw(facts.st_uid)), Some(Gid::from_raw(facts.st_gid)))?;
    }
    // After the owner: changing that may take bits away.
    fchmod(&target, Mode::from_raw_mode(facts.st_mode & 0o7777))?;
    let at = |tv_sec, tv_nsec: u64| Timespec { tv_sec, tv_nsec: i64::try_from(tv_nsec).unwrap_or(0) };
    futimens(
        &target,
        &Timestamps {
            last_access: at(facts.st_atime, facts.st_atime_nsec),
            last_modification: at(facts.st_mtime, facts.st_mtime_nsec),
        },
    )
}
