//! Folders and files that an engine may have written, touched by us: what it may have put there leads nowhere.
//!
//! The only way in which Chitin opens, lists, measures, copies or removes anything in an engine's folders. An engine that was
//! taken over can put a link to the machine's own files where we read or write as root, exchange a folder for one while we
//! are at it, or leave a pipe that nobody ever writes to. So each name is resolved below a folder that is held open
//! (`openat2`, Linux 5.6), through no link, no magic link and no mount, and what is not a plain file is not read.
//! `tests/tests/tidy.rs` finds files that are opened in another way.

mod removal;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, fchmod, fchown, fstat, mkdirat,
    openat2, readlinkat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use crate::Error;
use crate::places::{Owner, is_root};

/// Folders in folders. PostgreSQL's own lie four deep; more is not its work.
pub(crate) const DEPTH_MAX: usize = 32;
/// Names in one folder, and files of one volume.
pub(crate) const ENTRIES_MAX: usize = 4_000_000;
/// The write-ahead log, and the small files in which a checkpoint writes what transactions and subscriptions have become. We mount
/// another part of the volume over these folders of a data directory.
pub(crate) const MOUNTED: &[&str] = &["pg_wal", "pg_xact", "pg_multixact", "pg_subtrans", "pg_logical"];
/// Of the names in one folder. Those that PostgreSQL gives have some twenty bytes.
const NAMES_BYTES_MAX: usize = 128 << 20;
/// Of a file that is read as a whole; nothing that we read there is longer.
const READ_BYTES_MAX: u64 = 1 << 20;

/// An open folder in which an engine may have done anything.
#[derive(Debug)]
pub(crate) struct Inside {
    folder: OwnedFd,
    path: PathBuf,
}

impl Inside {
    /// Opens a folder of ours: one that no engine can exchange, because it lies in a folder that is not the engine's.
    pub(crate) fn at(path: &Path) -> Result<Self, Error> {
        let folder = rustix::fs::open(path, folder_flags(), Mode::empty()).map_err(failed("open", path))?;
        Ok(Self { folder, path: path.to_owned() })
    }

    /// Opens a folder directly below a volume's base. The base cannot be exchanged by the engine, the folder can.
    pub(crate) fn open(base: &Path, name: &str) -> Result<Self, Error> {
        Self::at(base)?.below(name)
    }

    /// Opens a folder in this one.
    ///
    /// # Errors
    ///
    /// Where there is none of that name, or a link or a mount is in its place.
    pub(crate) fn below(&self, name: impl AsRef<OsStr>) -> Result<Self, Error> {
        let path = self.path.join(name.as_ref());
        let folder = self.opened_folder(name.as_ref()).map_err(failed("open", &path))?;
        Ok(Self { folder, path })
    }

    /// The same of a folder that was just listed; `None` if it is gone or is no folder any more.
    pub(crate) fn enter(&self, name: impl AsRef<OsStr>) -> Result<Option<Self>, Error> {
        let path = self.path.join(name.as_ref());
        match self.opened_folder(name.as_ref()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            opened => Ok(Some(Self { folder: opened.map_err(failed("open", &path))?, path })),
        }
    }

    fn opened_folder(&self, name: &OsStr) -> Result<OwnedFd, Errno> {
        match self.opened(name, folder_flags()) {
            // Of our own making: engines cannot mount.
            Err(Errno::XDEV) if MOUNTED.iter().any(|folder| name == *folder) => {
                let across = beneath().difference(ResolveFlags::NO_XDEV);
                openat2(&self.folder, name, folder_flags(), Mode::empty(), across)
            }
            opened => opened,
        }
    }

    /// Opens whatever has this name in this folder, with these flags: no link, nothing in another mount.
    pub(crate) fn opened(&self, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat2(&self.folder, name, flags | OFlags::CLOEXEC, Mode::empty(), beneath())
    }

    /// Where it was opened; only to be told.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The open folder itself.
    pub(crate) fn into_file(self) -> File {
        File::from(self.folder)
    }

    /// What the kernel says of the folder itself.
    pub(crate) fn facts(&self) -> Result<Stat, Error> {
        fstat(&self.folder).map_err(failed("look at", &self.path))
    }

    /// The names in the folder, in no order.
    pub(crate) fn names(&self) -> Result<Vec<OsString>, Error> {
        let too_many = || io::Error::other("it has more files than any engine makes");
        self.names_up_to(ENTRIES_MAX)?.ok_or_else(|| Error::file("list", &self.path)(too_many()))
    }

    /// The same; `None` if there are more, or if they are longer than any engine makes them.
    pub(crate) fn names_up_to(&self, count_max: usize) -> Result<Option<Vec<OsString>>, Error> {
        let entries = Dir::read_from(&self.folder).map_err(failed("list", &self.path))?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        for entry in entries {
            let entry = match entry {
                // The folder itself was removed.
                Err(Errno::NOENT) => break,
                entry => entry.map_err(failed("list", &self.path))?,
            };
            let name = entry.file_name().to_bytes().to_vec();
            if name == b"." || name == b".." {
                continue;
            }
            bytes += name.len();
            if found.len() >= count_max || bytes > NAMES_BYTES_MAX {
                return Ok(None);
            }
            found.push(OsString::from_vec(name));
        }
        Ok(Some(found))
    }

    /// What has this name, without following a link; `None` if nothing has.
    pub(crate) fn look(&self, name: impl AsRef<OsStr>) -> Result<Option<Stat>, Error> {
        let name = name.as_ref();
        match statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            seen => Ok(Some(seen.map_err(failed("look at", &self.path.join(name)))?)),
        }
    }

    /// Where a link leads; `None` if it is gone or none any more.
    pub(crate) fn link(&self, name: impl AsRef<OsStr>) -> Result<Option<PathBuf>, Error> {
        let name = name.as_ref();
        match readlinkat(&self.folder, name, Vec::new()) {
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            read => {
                let target = read.map_err(failed("read", &self.path.join(name)))?;
                Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes()))))
            }
        }
    }

    /// Opens a plain file to be read, and says how long it is now; `None` if it is gone or something else. Nothing else is
    /// opened, not even to wait for it.
    pub(crate) fn file(&self, name: impl AsRef<OsStr>) -> Result<Option<(File, Stat)>, Error> {
        let path = self.path.join(name.as_ref());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match self.opened(name.as_ref(), flags) {
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::XDEV) => return Ok(None),
            opened => opened.map_err(failed("read", &path))?,
        };
        let facts = fstat(&file).map_err(failed("look at", &path))?;
        let is_plain = FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile;
        Ok(is_plain.then(|| (File::from(file), facts)))
    }

    /// Opens a plain file to be overwritten, and says how long it is; `None` if there is none.
    pub(crate) fn file_to_overwrite(&self, name: impl AsRef<OsStr>) -> Result<Option<(File, u64)>, Error> {
        let path = self.path.join(name.as_ref());
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match self.opened(name.as_ref(), flags) {
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::XDEV | Errno::ISDIR) => return Ok(None),
            opened => opened.map_err(failed("open", &path))?,
        };
        let facts = fstat(&file).map_err(failed("look at", &path))?;
        let is_plain = FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile;
        Ok(is_plain.then(|| (File::from(file), u64::try_from(facts.st_size).unwrap_or(0))))
    }

    /// Reads the beginning of a plain file.
    pub(crate) fn read(&self, name: &str) -> Option<String> {
        self.read_bytes(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The same, whatever is in it.
    pub(crate) fn read_bytes(&self, name: &str) -> Option<Vec<u8>> {
        let (file, _) = self.file(name).ok()??;
        let mut bytes = Vec::new();
        file.take(READ_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Makes an empty file, instead of whatever was there.
    pub(crate) fn create(&self, name: &str, owner: Owner) -> Result<File, Error> {
        self.remove_tree(name)?;
        let path = self.path.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat2(&self.folder, name, flags, Mode::RUSR | Mode::WUSR, beneath())
            .map_err(failed("create", &path))?;
        give(&file, owner).map_err(failed("hand over", &path))?;
        Ok(File::from(file))
    }

    /// Writes a file in one step: whoever reads it sees the old text or the new.
    pub(crate) fn write(&self, name: &str, text: &str, owner: Owner) -> Result<(), Error> {
        let path = self.path.join(name);
        let beside = format!("{name}.new");
        self.create(&beside, owner)?.write_all(text.as_bytes()).map_err(Error::file("write", &path))?;
        let replace = || renameat(&self.folder, &beside, &self.folder, name);
        let replaced = match replace() {
            // A folder, which no file can replace.
            Err(Errno::ISDIR) => {
                self.remove_tree(name)?;
                replace()
            }
            replaced => replaced,
        };
        replaced.map_err(failed("write", &path))
    }

    /// Makes a folder with this mode, or gives one that is there this mode; its owner is this one.
    pub(crate) fn make_folder(&self, name: &str, mode: u32, owner: Owner) -> Result<Self, Error> {
        let path = self.path.join(name);
        match mkdirat(&self.folder, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(other) => return Err(failed("create", &path)(other)),
        }
        let made = self.below(name)?;
        made.dress(mode)?;
        give(&made.folder, owner).map_err(failed("hand over", &path))?;
        Ok(made)
    }

    /// Gives the folder itself this mode.
    pub(crate) fn dress(&self, mode: u32) -> Result<(), Error> {
        fchmod(&self.folder, Mode::from_raw_mode(mode)).map_err(failed("protect", &self.path))
    }

    /// Gives the folder itself to an engine's user.
    pub(crate) fn give(&self, owner: Owner) -> Result<(), Error> {
        give(&self.folder, owner).map_err(failed("hand over", &self.path))
    }

    /// Removes a file; one that is not there is no error.
    pub(crate) fn remove(&self, name: &str) {
        // What could not be removed shows when the name is used.
        let _ = unlinkat(&self.folder, name, AtFlags::empty());
    }

    /// Returns when the file system has everything on the disk.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        rustix::fs::syncfs(&self.folder).map_err(failed("sync", &self.path))
    }
}

impl AsFd for Inside {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// Whether anything has this name in the root of a process, where links lead as they do for that process.
pub(crate) fn is_there_below(root: &Path, name: &str) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    // Of the kernel's own making: it leads to the root of whoever has that number, or nowhere.
    let found = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty()).and_then(|root| {
        openat2(&root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    });
    match found {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(other) => Err(other.into()),
    }
}

fn give(target: impl AsFd, owner: Owner) -> Result<(), Errno> {
    if !is_root() {
        // Everything is ours already.
        return Ok(());
    }
    fchown(target, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// How every name is resolved.
fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
}

/// Says what was refused, and why where the kernel's own words would not tell.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |cause| {
        let why = match cause {
            // A folder that is a link is the second.
            Errno::LOOP | Errno::NOTDIR => {
                "a link, or something else that it should not be, is in its place, and no link is followed there; the \
                 engine may have been taken over: keep the cluster stopped and look at its files"
            }
            Errno::XDEV => "something else is mounted there; unmount it, then try again",
            Errno::NOSYS => "this kernel has no openat2; Linux 5.6 or newer is needed",
            other => return Error::file(action, &path)(other.into()),
        };
        let kind = io::Error::from(cause).kind();
        Error::file(action, &path)(io::Error::new(kind, why))
    }
}
