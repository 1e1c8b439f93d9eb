//! One SQL engine per cluster: real PostgreSQL in a sandbox of its own, its files in an encrypted volume of its own.

mod administration;
mod archive;
mod budget;
mod cgroup;
mod claim;
mod companion;
mod connector;
mod control_file;
mod copying;
mod evidence;
#[cfg(test)]
mod false_engine;
#[cfg(test)]
#[path = "../../../tests/folder.rs"]
mod folder;
mod foreign_data;
mod host;
mod initialize;
mod inner_network;
mod inside;
mod jail;
mod launch;
mod leftovers;
mod own_database;
mod pinned;
mod places;
mod postgres;
mod postmaster_pid;
mod posture;
mod process;
mod provision;
mod roles;
mod running;
mod search;
mod session;
mod settings;
#[cfg(test)]
#[path = "../../../tests/skipped.rs"]
mod skipped;
mod syscall;
mod users;
mod volume;

pub use administration::{Administration, Database};
pub use cgroup::MemoryKills;
pub use claim::{Claim, holder};
pub use connector::Connector;
pub use evidence::{Evidence, shortage_protection};
pub use foreign_data::Subscriptions;
pub use host::{
    Copied, CopyProgress, Host, HostConfig, Installed, KeyUse, Look, Looked, MachineRoom, Made, OnDisk,
    Started, StateMark, Version, VolumeRecord,
};
pub use launch::{Launcher, launch_if_asked, protect_in_shortage};
pub use pinned::pinned_settings;
pub use postgres::MAJOR_VERSIONS;
pub use posture::{Capability, Posture};
pub use roles::{RoleNow, VERIFIERS_SAMPLED, VerifierForm};
pub use running::Run;
pub use search::SearchReport;
pub use users::User;
pub use volume::{Measured, VolumeState};

use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// What can go wrong with an engine. Every text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No PostgreSQL of a supported version.
    #[error(
        "no PostgreSQL 14 to 18 was found in {searched}; install one: apt-get install postgresql (Debian, Ubuntu) or dnf install postgresql-server (Fedora, RHEL), or name its folder: chitin start --postgres DIR"
    )]
    NoPostgres {
        /// Where it was looked for.
        searched: String,
    },
    /// A cluster's version of PostgreSQL is not installed.
    #[error(
        "PostgreSQL {major} is not installed here, or not so that it can be used (installed: {installed}), and what was made with one \
         major version runs on no other; install it (apt-get install postgresql-{major}), or name the folder that it is in (chitin start \
         --postgres DIR); it is noticed by itself"
    )]
    VersionGone {
        /// The major version.
        major: u32,
        /// The versions that are.
        installed: String,
    },
    /// The sandbox program is missing or does not work.
    #[error(
        "the engine's sandbox cannot be made: {reason}; install it with: apt-get install bubblewrap util-linux"
    )]
    NoSandbox {
        /// Why not.
        reason: String,
    },
    /// This machine cannot encrypt, and the operator did not allow to go without.
    #[error(
        "this machine cannot encrypt a cluster's files ({reason}); start Chitin as root, or install gocryptfs and fuse3 (apt-get install gocryptfs fuse3), or, if you accept files in plaintext, start with --allow-unencrypted"
    )]
    NoEncryption {
        /// What was tried.
        reason: String,
    },
    /// Nobody would lock volumes if this program were killed.
    #[error(
        "nothing is unlocked while there is no companion process, which locks everything should Chitin be killed: {reason}; it \
         is tried again by itself"
    )]
    NoCompanion {
        /// Why not.
        reason: String,
    },
    /// Another Chitin uses the data directory.
    #[error(
        "{} is in use by another Chitin{}; stop that one first, or choose another --data", path.display(), in_words(*process)
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Its process, where that is known.
        process: Option<u32>,
    },
    /// A file or folder could not be used.
    #[error("could not {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A program that we need failed.
    #[error("{program} failed: {reason}")]
    Program {
        /// Which.
        program: &'static str,
        /// Its last words.
        reason: String,
    },
    /// No further engine may run.
    #[error(
        "the engine was not started, because {max} run, and the limit on open files leaves no room for another: let one of the \
         others sleep, or raise it (LimitNOFILE= of a systemd unit, ulimit -Hn) and start Chitin again"
    )]
    TooManyEngines {
        /// How many may.
        max: usize,
    },
    /// The engine could not start a process for a session.
    #[error(
        "the engine could not start a process for a session of ours ({reason}): let the cluster have fewer sessions at a time, or \
         raise the limit that is reached (TasksMax= of a systemd unit, pids.max of a control group, ulimit -u), or give \
         the machine more memory"
    )]
    NoProcess {
        /// What it said.
        reason: String,
    },
    /// The program may open nothing more.
    #[error(
        "no connection to the engine could be opened ({0}): the limit on open files is reached; raise it (LimitNOFILE= of a \
         systemd unit, ulimit -Hn) and start Chitin again"
    )]
    NoDescriptors(std::io::Error),
    /// The engine was not started.
    #[error(
        "the engine was not started, because no thread could watch over it: {reason}; it is tried again by itself"
    )]
    NotWatched {
        /// Why not.
        reason: String,
    },
    /// A key problem.
    #[error(transparent)]
    Key(#[from] keys::Error),
    /// The data key was not wrapped or unwrapped.
    #[error(transparent)]
    DataKey(#[from] keys::KeyFailure),
    /// The engine did not become ready, or does not answer.
    #[error("the engine does not answer: {0}")]
    Unready(String),
    /// The cluster's engine is not running.
    #[error("the cluster's engine is not running")]
    Asleep,
    /// There is no such user or database.
    #[error("{what} '{name}' not found")]
    NotFound {
        /// User or database.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There is one of that name already.
    #[error("{what} '{name}' already exists")]
    AlreadyExists {
        /// User or database.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// What lies on the disk is not the volume that is on record.
    #[error("the cluster's volume is refused: {reason}")]
    VolumeRefused {
        /// Why, and what to do.
        reason: String,
    },
    /// The disk has no room for a second volume beside the first.
    #[error(
        "the volume takes {used_bytes} bytes, so encrypting it anew needs {needed_bytes} free bytes with what the machine keeps for what runs, and {free_bytes} are free; free some space in {}, then try again", path.display()
    )]
    NoRoom {
        /// What the volume takes now.
        used_bytes: u64,
        /// What a copy needs.
        needed_bytes: u64,
        /// What is there.
        free_bytes: u64,
        /// Where.
        path: PathBuf,
    },
    /// The machine's reserve is reached.
    #[error(
        "the disk below {} has {free_bytes} free bytes, and the machine keeps {reserve_bytes} of it for what runs; free some space there, or delete a cluster, then try again", path.display()
    )]
    ReserveReached {
        /// Where.
        path: PathBuf,
        /// What is there.
        free_bytes: u64,
        /// What must stay.
        reserve_bytes: u64,
    },
    /// The engine's answer was not taken.
    #[error("the engine's answer has more than {limit} {what}, and was not taken")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// How much is taken.
        limit: usize,
    },
    /// The engine refuses the change.
    #[error("{0}")]
    Refused(String),
}

fn in_words(process: Option<u32>) -> String {
    process.map(|process| format!(" (process {process})")).unwrap_or_default()
}

impl Error {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// Whether nothing could be opened because this program, or the machine, has as much open as it may.
    pub(crate) fn is_want_of_descriptors(&self) -> bool {
        let (Self::File { source, .. } | Self::NoDescriptors(source)) = self else {
            return false;
        };
        is_want_of_descriptors(source)
    }
}

fn is_want_of_descriptors(cause: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(cause), Some(Errno::MFILE | Errno::NFILE))
}

/// Gives the process a mount namespace of its own, so that the volumes of clusters are seen by nobody else and vanish
/// with it, whatever way it ends. To be called first in `main`, while there is one thread; does nothing without root.
pub fn isolate_mounts() -> std::io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    syscall::unshare_mounts()?;
    // Nothing of ours goes out; what the operator mounts later still comes in.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    Ok(())
}
