//! Files in a folder that an engine owns, touched by us: links that the engine may have put there lead nowhere.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchown, openat, renameat, unlinkat};

use crate::Error;
use crate::places::{Owner, is_root};

/// Of a file that is read; nothing that we read there is longer.
const READ_BYTES_MAX: u64 = 1 << 20;

/// An open folder of an engine's.
///
/// An engine that was taken over could put a link to the machine's own files where we write as root. So every name is
/// resolved below the open folder, and links are refused.
#[derive(Debug)]
pub(crate) struct Inside {
    folder: OwnedFd,
    path: PathBuf,
}

impl Inside {
    /// Opens a folder directly below a volume's base. The base cannot be exchanged by the engine, the folder can.
    pub(crate) fn open(base: &Path, name: &str) -> Result<Self, Error> {
        let path = base.join(name);
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(base, flags, Mode::empty())
            .and_then(|base| openat(&base, name, flags, Mode::empty()))
            .map_err(|cause| Error::file("open", &path)(cause.into()))?;
        Ok(Self { folder, path })
    }

    /// Opens a folder in this one.
    pub(crate) fn below(&self, name: &str) -> Result<Self, Error> {
        let path = self.path.join(name);
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(&self.folder, name, flags, Mode::empty())
            .map_err(|cause| Error::file("open", &path)(cause.into()))?;
        Ok(Self { folder, path })
    }

    /// Makes an empty file, instead of whatever was there.
    pub(crate) fn create(&self, name: &str, owner: Owner) -> Result<File, Error> {
        let failed = |cause: rustix::io::Errno| Error::file("create", &self.path.join(name))(cause.into());
        self.remove(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.folder, name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        if is_root() {
            fchown(&file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid))).map_err(failed)?;
        }
        Ok(File::from(file))
    }

    /// Writes a file in one step: whoever reads it sees the old text or the new.
    pub(crate) fn write(&self, name: &str, text: &str, owner: Owner) -> Result<(), Error> {
        let path = self.path.join(name);
        let failed = || Error::file("write", &path);
        let beside = format!("{name}.new");
        self.create(&beside, owner)?.write_all(text.as_bytes()).map_err(failed())?;
        renameat(&self.folder, &beside, &self.folder, name).map_err(|cause| failed()(cause.into()))
    }

    /// Reads the beginning of a plain file; nothing else is opened, not even to wait for it.
    pub(crate) fn read(&self, name: &str) -> Option<String> {
        self.read_bytes(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The same, whatever is in it.
    pub(crate) fn read_bytes(&self, name: &str) -> Option<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.folder, name, flags, Mode::empty()).ok()?);
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(READ_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Removes a file; one that is not there is no error.
    pub(crate) fn remove(&self, name: &str) {
        // What could not be removed shows when the name is used.
        let _ = unlinkat(&self.folder, name, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_that_an_engine_left_are_not_followed() {
        let (base, machine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let owner =
            Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let victim = machine.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        std::fs::create_dir(base.path().join("pg")).unwrap();
        for name in ["a.conf", "a.conf.new", "b.log"] {
            symlink(&victim, base.path().join("pg").join(name)).unwrap();
        }
        let inside = Inside::open(base.path(), "pg").unwrap();
        assert_eq!(inside.read("a.conf"), None);
        inside.write("a.conf", "ours", owner).unwrap();
        inside.create("b.log", owner).unwrap().write_all(b"ours").unwrap();
        assert_eq!(inside.read("a.conf").as_deref(), Some("ours"));
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");

        symlink(machine.path(), base.path().join("log")).unwrap();
        assert!(Inside::open(base.path(), "log").is_err());
    }
}
