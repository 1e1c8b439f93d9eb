//! The open state file and the room that is kept free for it.
//!
//! The file stays open, and locked, for as long as the state is in use: the library on top can be closed and opened again
//! after an I/O error, and no other program gets in between or is mistaken for it. The reserve is a file beside it that is
//! given up when the file system is full, so that clusters can still be put to sleep and deleted. A check of free space alone
//! would not do: what others write in the next moment takes the last of it.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, fstatvfs};

/// Bytes of the reserve, where the file system is large.
const RESERVE_BYTES_MAX: u64 = 8 << 20;
/// Bytes of the reserve on the smallest file system.
const RESERVE_BYTES_MIN: u64 = 256 << 10;
/// The reserve is this part of a small file system.
const RESERVE_PART: u64 = 16;

/// The state file, open and locked.
#[derive(Debug)]
pub(crate) struct Medium {
    file: File,
    path: PathBuf,
    reserve: PathBuf,
    /// Whether the change that is written may use up the reserve.
    may_use_reserve: AtomicBool,
    /// A sync failed: the kernel may keep what it could not write as if it had been.
    has_lost: AtomicBool,
    #[cfg(test)]
    pub(crate) faults: tests::Faults,
}

/// How the library sees it.
#[derive(Debug)]
pub(crate) struct Backend(pub(crate) Arc<Medium>);

impl Medium {
    /// Opens and locks what lies at the path.
    pub(crate) fn open(path: &Path) -> io::Result<Arc<Self>> {
        let file = File::options().read(true).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    ErrorKind::ResourceBusy,
                    "another program has it open; stop that one first",
                ));
            }
            // The data directory's own lock is what is left where a file system has none.
            Err(TryLockError::Error(cause)) if cause.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(cause)) => return Err(cause),
        }
        let mut reserve = path.as_os_str().to_owned();
        reserve.push(".reserve");
        Ok(Arc::new(Self {
            file,
            path: path.to_owned(),
            reserve: reserve.into(),
            may_use_reserve: AtomicBool::new(false),
            has_lost: AtomicBool::new(false),
            #[cfg(test)]
            faults: tests::Faults::default(),
        }))
    }

    /// The number under which this program has it open.
    pub(crate) fn descriptor(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Whether the path still leads to this file. An error is no answer.
    pub(crate) fn is_in_place(&self) -> io::Result<bool> {
        let own = self.file.metadata()?;
        // The operator's own link may lead to it.
        match std::fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
            Err(cause) if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
            Err(cause) => Err(cause),
        }
    }

    /// Has what is read from now on come from the disk, as far as the kernel does that. Says whether no sync has failed, so that
    /// what was written can be counted on wherever it is read from (fsync(2), errors of writeback).
    pub(crate) fn forget_what_is_in_memory(&self) -> bool {
        if !self.has_lost.load(Ordering::Relaxed) {
            return true;
        }
        if let Err(cause) = fadvise(&self.file, 0, None, Advice::DontNeed) {
            tracing::debug!(%cause, "the state cannot be read past the memory");
        }
        false
    }

    /// What is there has been written again, and synced.
    pub(crate) fn count_on_memory(&self) {
        self.has_lost.store(false, Ordering::Relaxed);
    }

    /// Says whether the next change may use up the reserve.
    pub(crate) fn permit_reserve(&self, may: bool) {
        self.may_use_reserve.store(may, Ordering::Relaxed);
    }

    /// Why changes that make the state grow are refused; `None` while there is room for them. Makes the reserve anew where
    /// that is possible.
    pub(crate) fn shortage(&self) -> Option<String> {
        let (size, free) = match fstatvfs(&self.file) {
            Ok(facts) => {
                let total = facts.f_blocks.saturating_mul(facts.f_frsize);
                let size = (total / RESERVE_PART).clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX);
                (size, facts.f_bavail.saturating_mul(facts.f_frsize))
            }
            Err(cause) => return Some(format!("its free space cannot be read: {cause}")),
        };
        let is_whole = std::fs::metadata(&self.reserve).is_ok_and(|kept| kept.len() >= size);
        if !is_whole {
            // What lies in the state's place then is not ours to write to, and that it was removed is told by itself.
            if !self.is_in_place().unwrap_or(false) {
                return None;
            }
            if free < 2 * size {
                return Some(format!("{free} bytes are free, and its reserve of {size} is used up"));
            }
            if let Err(cause) = self.make_reserve(size) {
                self.release_reserve();
                return Some(format!("its reserve of {size} bytes cannot be made: {cause}"));
            }
            return None;
        }
        (free < size).then(|| format!("{free} bytes are free beside its reserve of {size}"))
    }

    fn make_reserve(&self, size: u64) -> io::Result<()> {
        self.release_reserve();
        let file = File::options().write(true).create_new(true).mode(0o600).open(&self.reserve)?;
        match fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let zeros = vec![0; 1 << 16];
                let mut at = 0;
                while at < size {
                    file.write_all_at(&zeros, at)?;
                    at += zeros.len() as u64;
                }
            }
            Err(cause) => return Err(cause.into()),
        }
        file.sync_all()
    }

    /// Gives the reserve up. Says whether there was one.
    fn release_reserve(&self) -> bool {
        std::fs::remove_file(&self.reserve).is_ok()
    }

    /// Writes; where there is no room, once more with that of the reserve.
    pub(crate) fn with_room(&self, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
        match write() {
            Err(full) if is_full(&full) && self.may_use_reserve.load(Ordering::Relaxed) => {
                if self.release_reserve() {
                    tracing::warn!("the file system of the state is full; the reserve is used");
                    write()
                } else {
                    Err(full)
                }
            }
            written => written,
        }
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        // Closing is not enough: a program that another thread is starting has a copy of the open file until it runs.
        let _ = self.file.unlock();
    }
}

fn is_full(cause: &io::Error) -> bool {
    matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        #[cfg(test)]
        self.0.faults.meet()?;
        self.0.with_room(|| self.0.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        #[cfg(test)]
        let synced = self.0.faults.meet_at_sync().and_then(|()| self.0.file.sync_data());
        #[cfg(not(test))]
        let synced = self.0.file.sync_data();
        // Not tried again: what a failed sync has lost, a second one does not bring back.
        synced.inspect_err(|_| self.0.has_lost.store(true, Ordering::Relaxed))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        self.0.faults.meet()?;
        self.0.with_room(|| self.0.file.write_all_at(data, offset))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// What a test has go wrong.
    #[derive(Debug, Default)]
    pub(crate) struct Faults {
        /// Every write fails.
        pub(crate) writes: AtomicBool,
        /// So many syncs go well, then every write and every sync fails; counted from one, 0 is never.
        pub(crate) after_syncs: AtomicUsize,
        /// After the sync that fails everything goes well again.
        pub(crate) only_once: AtomicBool,
    }

    impl Faults {
        pub(super) fn meet(&self) -> io::Result<()> {
            if self.writes.load(Ordering::Relaxed) { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
        }

        pub(super) fn meet_at_sync(&self) -> io::Result<()> {
            self.meet()?;
            // The data get to the disk, and then it is gone: the caller hears of a failure all the same.
            match self.after_syncs.load(Ordering::Relaxed) {
                0 => Ok(()),
                1 => {
                    self.after_syncs.store(0, Ordering::Relaxed);
                    self.writes.store(!self.only_once.load(Ordering::Relaxed), Ordering::Relaxed);
                    Err(io::Error::from_raw_os_error(5))
                }
                left => {
                    self.after_syncs.store(left - 1, Ordering::Relaxed);
                    Ok(())
                }
            }
        }
    }
}
