//! fscrypt: the file system encrypts the folder itself (kernel documentation, `filesystems/fscrypt.rst`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keys::DataKey;

use super::{Seen, open_folder};
use crate::Error;
use crate::places::make_folder;
use crate::syscall::{self, KeyIdentifier, KeyStatus};

/// Files that were just closed may be held for a moment longer by the kernel's own work, or by a program that another
/// thread is starting.
const BUSY_TRIES: u32 = 500;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// A folder whose key the kernel holds.
#[derive(Debug)]
pub(super) struct Unlocked {
    /// The folder's parent, open: it lies on the same file system and stays usable when the folder is locked.
    place: File,
    folder: PathBuf,
    identifier: KeyIdentifier,
}

/// Makes an empty encrypted folder. Fails where the file system cannot.
pub(super) fn create(folder: &Path, key: &DataKey) -> Result<(), Error> {
    make_folder(folder, 0o700)?;
    let opened = open_folder(folder)?;
    let refused = |cause| Error::file("encrypt", folder)(cause);
    let identifier = syscall::add_key(&opened, key.expose()).map_err(refused)?;
    syscall::set_policy(&opened, identifier).map_err(|cause| {
        let _ = syscall::remove_key(&opened, &identifier);
        Error::file("encrypt", folder)(cause)
    })
}

pub(super) fn unlock(folder: &Path, key: &DataKey) -> Result<Unlocked, Error> {
    let place = open_folder(folder.parent().unwrap_or(folder))?;
    let identifier = syscall::add_key(&place, key.expose()).map_err(Error::file("unlock", folder))?;
    Ok(Unlocked { place, folder: folder.to_owned(), identifier })
}

/// Removes the key of a folder that somebody else unlocked.
pub(super) fn lock(folder: &Path) -> Result<(), Error> {
    let policy = syscall::policy(&open_folder(folder)?).map_err(Error::file("look at", folder))?;
    let place = open_folder(folder.parent().unwrap_or(folder))?;
    Unlocked { place, folder: folder.to_owned(), identifier: policy.identifier }.lock()
}

/// The same for a folder that may not be there, or not be encrypted, since whoever made it was broken off.
pub(super) fn lock_left(folder: &Path) -> Result<(), Error> {
    let opened = match open_folder(folder) {
        Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    match syscall::policy(&opened) {
        Err(none) if none.raw_os_error() == Some(libc::ENODATA) => return Ok(()),
        Err(cause) => return Err(Error::file("look at", folder)(cause)),
        Ok(_) => {}
    }
    drop(opened);
    lock(folder)
}

impl Unlocked {
    /// Removes the key and insists that nothing of it is left.
    pub(super) fn lock(self) -> Result<(), Error> {
        let failed = || Error::file("lock", &self.folder);
        for _ in 0..BUSY_TRIES {
            if syscall::remove_key(&self.place, &self.identifier).map_err(failed())? {
                return Ok(());
            }
            std::thread::sleep(BUSY_PAUSE);
        }
        Err(failed()(std::io::Error::other(
            "files are still open, so the key is not wholly gone from the kernel",
        )))
    }
}

/// Whether the kernel holds the whole key of a folder; if not, why the folder is of no use.
pub(super) fn holds(folder: &Path) -> Result<(), String> {
    let asked = || -> Result<_, Error> {
        let policy = syscall::policy(&open_folder(folder)?).map_err(Error::file("look at", folder))?;
        let place = open_folder(folder.parent().unwrap_or(folder))?;
        syscall::key_status(&place, &policy.identifier).map_err(Error::file("look at", folder))
    };
    match asked() {
        Ok(KeyStatus::Present) => Ok(()),
        Ok(KeyStatus::Absent) => Err("somebody took its key out of the kernel".to_owned()),
        Ok(KeyStatus::IncompletelyRemoved) => {
            Err("somebody took its key out of the kernel; only files that are open can still be read"
                .to_owned())
        }
        Err(cause) => Err(format!("the kernel shows no encryption of the folder: {cause}")),
    }
}

/// What the kernel says of a folder's policy and of its key. Also a locked folder tells.
pub(super) fn seen(folder: &Path) -> Seen {
    let asked = || -> Result<_, Error> {
        let policy = syscall::policy(&open_folder(folder)?).map_err(Error::file("look at", folder))?;
        let place = open_folder(folder.parent().unwrap_or(folder))?;
        let status =
            syscall::key_status(&place, &policy.identifier).map_err(Error::file("look at", folder))?;
        Ok((policy, status))
    };
    let (policy, status) = match asked() {
        Ok(answer) => answer,
        Err(cause) => return Seen::wrong(format!("the kernel shows no encryption of the folder: {cause}")),
    };
    let cipher = format!("{} and {} for names", mode(policy.contents_mode), mode(policy.filenames_mode));
    let key = hex::encode(policy.identifier);
    let (is_unlocked, of_key) = match status {
        KeyStatus::Present => (true, "the kernel holds key"),
        KeyStatus::Absent => (false, "the kernel does not hold key"),
        KeyStatus::IncompletelyRemoved => (true, "open files still hold some of key"),
    };
    Seen {
        is_unlocked,
        is_proven: true,
        evidence: format!("fscrypt v2, {cipher}; {of_key} {key}"),
        cipher: Some(cipher),
        key: Some(key),
    }
}

/// The names of `FSCRYPT_MODE_*` (`include/uapi/linux/fscrypt.h`).
fn mode(number: u8) -> String {
    match number {
        1 => "AES-256-XTS".to_owned(),
        4 => "AES-256-CTS".to_owned(),
        5 => "AES-128-CBC".to_owned(),
        6 => "AES-128-CTS".to_owned(),
        9 => "Adiantum".to_owned(),
        10 => "AES-256-HCTR2".to_owned(),
        other => format!("mode {other}"),
    }
}
