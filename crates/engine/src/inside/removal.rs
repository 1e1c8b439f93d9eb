//! Removing a tree that an engine made: as deep and as wide as it likes, and changed by it while we are at it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, chmod, fchmod, fstat, openat2, unlinkat};
use rustix::io::Errno;

use super::{Inside, beneath, failed, folder_flags};
use crate::Error;
use crate::places::is_root;

/// Which folder it is, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    #[allow(clippy::useless_conversion, reason = "the types differ between processors")]
    fn of(folder: &OwnedFd) -> Result<Self, Errno> {
        let facts = fstat(folder)?;
        Ok(Self { device: facts.st_dev.into(), inode: facts.st_ino.into() })
    }
}

impl Inside {
    /// Removes what has this name, a folder with all in it; nothing of that name is no error. No link is followed, nothing
    /// that is mounted is entered, and however deep the tree is, two folders are open and sixteen bytes kept for each level.
    ///
    /// # Errors
    ///
    /// Where something cannot be removed, or somebody goes on making files or moves folders meanwhile.
    pub(crate) fn remove_tree(&self, name: impl AsRef<OsStr>) -> Result<(), Error> {
        let name = name.as_ref();
        self.try_remove_tree(name).map_err(failed("remove", &self.path.join(name)))
    }

    fn try_remove_tree(&self, name: &OsStr) -> Result<(), Errno> {
        let Some(mut here) = remove_or_enter(&self.folder, name)? else {
            return Ok(());
        };
        // Folders above `here`, the uppermost first; and the one that was emptied last, with how much was removed by then.
        let (mut above, mut emptied) = (Vec::new(), None);
        let mut removed = 0_u64;
        loop {
            if let Some(inner) = empty(&here, &mut removed)? {
                if emptied == Some((Identity::of(&inner)?, removed)) {
                    // It was empty, and yet could not be removed.
                    return Err(Errno::NOTEMPTY);
                }
                above.push(Identity::of(&here)?);
                here = inner;
                continue;
            }
            emptied = Some((Identity::of(&here)?, removed));
            let Some(expected) = above.pop() else {
                break;
            };
            let up = openat2(&here, "..", folder_flags(), Mode::empty(), beneath() - ResolveFlags::BENEATH)?;
            if Identity::of(&up)? != expected {
                // Moved elsewhere while we were in it: what is there is not ours to remove.
                return Err(Errno::STALE);
            }
            here = up;
        }
        match unlinkat(&self.folder, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed,
        }
    }
}

/// Removes what can be removed in a folder; returns the first folder in it that is not empty, opened.
fn empty(folder: &OwnedFd, removed: &mut u64) -> Result<Option<OwnedFd>, Errno> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name: OsString = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        if name == "." || name == ".." {
            continue;
        }
        if let Some(inner) = remove_or_enter(folder, &name)? {
            return Ok(Some(inner));
        }
        *removed += 1;
    }
    Ok(None)
}

/// Removes a file or an empty folder; opens a folder that is not empty.
fn remove_or_enter(folder: &OwnedFd, name: &OsStr) -> Result<Option<OwnedFd>, Errno> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(None),
        Err(Errno::ISDIR) => {}
        Err(other) => return Err(other),
    }
    match unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(other) => return Err(other),
    }
    let open = |flags| openat2(folder, name, flags, Mode::empty(), beneath());
    let inner = match open(folder_flags()) {
        Err(Errno::ACCESS) if !is_root() => {
            // Ours, but its mode keeps us out. By the kernel's link to what was opened, which is nothing else.
            let closed = open(OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
            chmod(format!("/proc/self/fd/{}", closed.as_raw_fd()), Mode::RWXU)?;
            open(folder_flags())?
        }
        opened => opened?,
    };
    if !is_root() {
        fchmod(&inner, Mode::RWXU)?;
    }
    Ok(Some(inner))
}
