//! The cloud's state: the wish (what should be true) and the observation (what was last seen true).
//!
//! Writes go through one durable, sealed file; readers use a snapshot in memory that no writer can block.

mod clusters;
#[cfg(test)]
mod fault_tests;
mod file;
#[cfg(test)]
mod integrity_tests;
mod key_services;
mod keys;
mod manifest;
mod medium;
mod organization;
mod providers;
mod secrets;
mod snapshot;
mod templates;
#[cfg(test)]
mod testing;
mod trouble;

pub use clusters::Draft;
pub use keys::{API_KEYS_MAX, ApiKey};
pub use providers::PROVISIONED_MAX;
pub use snapshot::{Entry, Reading, Snapshot};
pub use trouble::{Trouble, TroubleKind};

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::keys::Sealer;
use arc_swap::ArcSwap;
use model::{ClusterId, ClusterName};
use tokio::sync::watch;

pub use crate::file::StateLock;
use crate::file::{File, guarded};

/// Most clusters of one control plane.
pub const CLUSTERS_MAX: usize = 100_000;

/// Why the state could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or written; nothing was changed.
    #[error("the state in {} cannot be {action}: {reason}", path.display())]
    File {
        /// The state file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        reason: String,
    },
    /// Another program has it open; nothing was changed.
    #[error("the state in {} is in use by another Chitin; stop that one first", path.display())]
    InUse {
        /// The state file.
        path: PathBuf,
    },
    /// It failed while it was written, and what became of it is not known yet.
    #[error(
        "the state in {} failed while it was written ({reason}): whether the change counts is not known before the file can be \
         opened again, which is tried every second; it is undone then, and only a restart before that may keep it", path.display()
    )]
    Unsettled {
        /// The state file.
        path: PathBuf,
        /// Why it failed.
        reason: String,
    },
    /// Room is short on its file system, and the change can wait; nothing was changed.
    #[error(
        "the file system of the state in {} is nearly full ({reason}), so nothing is changed that makes the state grow; free some \
         space there. Clusters can be put to sleep and deleted meanwhile", path.display()
    )]
    Full {
        /// The state file.
        path: PathBuf,
        /// How much room there is.
        reason: String,
    },
    /// The file is not in its place any more; nothing was changed.
    #[error(
        "the state in {path} was removed or replaced while it is in use, so nothing is changed any more; copy it back while Chitin \
         still has it open: cp /proc/{pid}/fd/{descriptor} {path}", path = path.display()
    )]
    Removed {
        /// The state file.
        path: PathBuf,
        /// The program that has it open.
        pid: u32,
        /// Under this number.
        descriptor: i32,
    },
    /// Something was changed, moved, removed or put back behind our back, or sealed by another cloud's key.
    #[error(
        "the state in {} is damaged: {what}; restore the data directory from your backup",
        path.display()
    )]
    Tampered {
        /// The state file.
        path: PathBuf,
        /// What is wrong: which table, and which row where that can be known.
        what: String,
    },
    /// The file's own structure is broken.
    #[error(
        "the state in {} is damaged: {reason} (the file itself, not one value in it); restore the data directory from your backup",
        path.display()
    )]
    Corrupted {
        /// The state file.
        path: PathBuf,
        /// What its reader said.
        reason: String,
    },
    /// Another cluster has the name.
    #[error("a cluster named `{0}` already exists; choose another name or delete that cluster first")]
    NameTaken(ClusterName),
    /// There is no such cluster.
    #[error("cluster '{0}' not found")]
    NotFound(ClusterId),
    /// A bound of the control plane is reached.
    #[error("there are {limit} {what} already, which is the most; delete one first")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
}

/// The state of one cloud.
pub struct Store {
    path: PathBuf,
    file: File,
    snapshot: ArcSwap<Snapshot>,
    /// One writer at a time: a change is read, made durable and published as a whole.
    writer: Mutex<()>,
    /// Readings of roles that were begun.
    readings: AtomicU64,
    changes: watch::Sender<u64>,
}

impl Store {
    /// Opens the state file, or makes it. Values that do not open with the sealer are an error, and so are rows that are
    /// missing or older than they should be: state that somebody edited must not be acted upon.
    pub fn open(path: &Path, sealer: Sealer) -> Result<Arc<Self>, Error> {
        Self::open_locked(StateLock::take(path)?, sealer)
    }

    /// The same for whoever has taken the file's lock already.
    pub fn open_locked(lock: StateLock, sealer: Sealer) -> Result<Arc<Self>, Error> {
        let path = &lock.path().to_owned();
        let (file, snapshot) = guarded(path, || {
            let file = File::open(lock, sealer)?;
            // In this order: a value that does not open is named by its row.
            let snapshot = Snapshot::read(&file)?;
            file.check()?;
            Ok((file, snapshot))
        })?;
        let (changes, _) = watch::channel(0);
        Ok(Arc::new(Self {
            path: path.to_owned(),
            file,
            snapshot: ArcSwap::from_pointee(snapshot),
            writer: Mutex::new(()),
            readings: AtomicU64::new(0),
            changes,
        }))
    }

    /// The state as it is now. Immutable; it costs a pointer, never a lock.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Tells of every change by a number that grows.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Seals every value anew that is not under the root key's newest version: in one transaction, so all of them or none.
    /// Gives how many there were. Once more does nothing.
    pub fn reseal(&self) -> Result<u64, Error> {
        let _writer = self.write();
        self.file.reseal()
    }

    /// Fails where the state cannot be written now, before anything else is changed that must go with it.
    pub fn try_write(&self) -> Result<(), Error> {
        let _writer = self.write();
        self.file.try_write()
    }

    /// Transactions since the state was made. A number that is lower than one seen before says that the whole state was
    /// put back, which nothing in the state itself can say.
    pub fn commits(&self) -> u64 {
        self.file.commits()
    }

    /// What is wrong with the state itself, the worst first.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.file.troubles().all()
    }

    /// Looks whether all is well with the file, and puts right what can be: opens it again after an error, makes the reserve
    /// anew. To be called every few seconds; it waits for the disk.
    pub fn look_after(&self) {
        let _writer = self.write();
        let was_stuck = self.is_stuck();
        self.file.look_after();
        if was_stuck && !self.is_stuck() {
            // Whoever waits with a change may make it now.
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Raises the alarm that the disk knows of more than the state does.
    pub fn tell_that_it_is_older(&self, reason: String) {
        self.file.troubles().set(TroubleKind::Older, Some(reason));
    }

    /// Whether nothing can be changed at present, as far as is known.
    pub fn is_stuck(&self) -> bool {
        let stops = |kind| match kind {
            TroubleKind::Removed | TroubleKind::Unwritable => true,
            TroubleKind::Older | TroubleKind::Full => false,
        };
        self.troubles().iter().any(|trouble| stops(trouble.kind))
    }

    #[cfg(test)]
    fn with_medium<T>(&self, look: impl FnOnce(&medium::Medium) -> T) -> T {
        self.file.with_medium(look)
    }

    fn write(&self) -> MutexGuard<'_, ()> {
        // A panic in a writer leaves the file and the snapshot as they were before it.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, next: Snapshot) {
        self.snapshot.store(Arc::new(next));
        self.changes.send_modify(|count| *count += 1);
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}
