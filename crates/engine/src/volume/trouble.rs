//! What can happen to a volume while its engine runs: what serves it ends, somebody unmounts it or takes its key.

use std::path::Path;

use model::Encryption;

use super::{FILES, fscrypt, gocryptfs, image, luks};
use crate::places::mount_at;

/// What was found wrong with a volume that should be unlocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It cannot be worked on any more: the engine is to be ended and what is left is to be locked.
    Lost(String),
    /// It works, and it must be looked at; ending the engine would make it worse.
    Warned(String),
}

/// Asks the kernel whether a volume is as it was unlocked. May wait for as long as what serves the volume likes: to be called in
/// a thread that nobody waits for.
///
/// What is asked is asked of the folders around the engine's files, which are not the engine's to change.
pub(crate) fn look(folder: &Path, base: &Path, kind: Encryption) -> Result<(), Trouble> {
    match kind {
        Encryption::Fscrypt => fscrypt::holds(&folder.join(FILES)).map_err(Trouble::Lost)?,
        Encryption::FscryptImage => {
            image::is_mounted(folder)?;
            fscrypt::holds(base).map_err(Trouble::Lost)?;
            fscrypt::holds(&image::wal_base(folder))
                .map_err(|reason| Trouble::Lost(format!("of its write-ahead log: {reason}")))?;
        }
        Encryption::Luks2 => luks::is_open(folder).map_err(Trouble::Lost)?,
        Encryption::Gocryptfs => gocryptfs::is_mounted(folder).map_err(Trouble::Lost)?,
        Encryption::Attested | Encryption::None => {}
    }
    // Also asks whoever serves it. What a file system says of itself is looked at here.
    rustix::fs::statvfs(base).map(drop).map_err(|cause| {
        let cause = std::io::Error::from(cause);
        Trouble::Lost(match kind {
            Encryption::Gocryptfs => format!("the gocryptfs process that serves it has ended ({cause})"),
            Encryption::Fscrypt
            | Encryption::FscryptImage
            | Encryption::Luks2
            | Encryption::Attested
            | Encryption::None => format!("its file system does not answer: {cause}"),
        })
    })
}

/// Whether a file system of the kind is mounted in the volume's folder; if so, from where.
pub(super) fn mounted(folder: &Path, kind: &str) -> Result<String, String> {
    match mount_at(&folder.join(FILES)) {
        Some(mounted) if mounted.kind == kind => Ok(mounted.source),
        Some(mounted) => Err(format!("{} ({}) was mounted over it", mounted.source, mounted.kind)),
        None => Err("somebody unmounted it".to_owned()),
    }
}
