//! Copying the files of one volume into another while an engine may be writing them, as rsync does: pass after pass, each
//! for what changed since the one before. Only a pass over a volume that nobody writes makes a copy that counts.

mod compare;
mod file;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chmodat, chownat, mkdirat, openat, readlinkat,
    statat, symlinkat,
};
use rustix::io::Errno;

use crate::Error;
use crate::jail::VOLUME;
use crate::places::is_root;
use file::Look;

pub(crate) use compare::compare;

/// Folders in folders. PostgreSQL's own lie four deep; more is not its work.
const DEPTH_MAX: usize = 32;
/// Files and folders of one volume: what is remembered of each stays in memory until the switch.
const ENTRIES_MAX: usize = 4_000_000;

/// What the copied files looked like before they were read, so that a later pass knows what changed.
#[derive(Debug, Default)]
pub(crate) struct Looks(HashMap<PathBuf, Look>);

/// How far a copy is, written by the one who copies and read by those who ask.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) done_bytes: AtomicU64,
    pub(crate) total_bytes: AtomicU64,
}

/// What one pass did.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// Files that it wrote.
    pub(crate) written: HashSet<PathBuf>,
    /// Their bytes.
    pub(crate) written_bytes: u64,
}

/// Why a pass ended early.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// Somebody wanted the volume for something else.
    GivenUp,
    /// It cannot be copied.
    Failed(Error),
}

impl From<Error> for Stopped {
    fn from(cause: Error) -> Self {
        Self::Failed(cause)
    }
}

/// One pass: afterwards `to` has what `from` had, as far as nothing changed meanwhile.
pub(crate) fn pass(
    from: &Path,
    to: &Path,
    looks: &mut Looks,
    progress: &Progress,
    is_given_up: &AtomicBool,
) -> Result<Passed, Stopped> {
    let mut pass = Pass { looks, progress, is_given_up, passed: Passed::default(), entries: 0 };
    let (source, target) = (open(from)?, open(to)?);
    let facts = rustix::fs::fstat(&source).map_err(failed("look at", from))?;
    pass.folder(&source, &target, Path::new(""), 0)?;
    // Also the volume's own root, which nobody above it sets.
    file::dress(&target, &facts).map_err(failed("protect", to))?;
    Ok(pass.passed)
}

/// The bytes that the files of a volume take on the disk.
pub(crate) fn used_bytes(base: &Path) -> Result<u64, Error> {
    fn add(folder: &OwnedFd, path: &Path, depth: usize) -> Result<u64, Error> {
        let mut bytes = 0;
        for name in names(folder, path)? {
            let Some(facts) = look(folder, &name, path)? else {
                continue;
            };
            bytes += stored_bytes(&facts);
            if FileType::from_raw_mode(facts.st_mode) == FileType::Directory
                && depth < DEPTH_MAX
                && let Some(inner) = enter(folder, &name, path)?
            {
                bytes += add(&inner, &path.join(&name), depth + 1)?;
            }
        }
        Ok(bytes)
    }
    add(&open(base)?, base, 0)
}

struct Pass<'a> {
    looks: &'a mut Looks,
    progress: &'a Progress,
    is_given_up: &'a AtomicBool,
    passed: Passed,
    entries: usize,
}

impl Pass<'_> {
    /// Every name is resolved below an open folder and no link is followed: an engine that was taken over could
    /// exchange a folder for a link while we read as root.
    fn folder(&mut self, from: &OwnedFd, to: &OwnedFd, path: &Path, depth: usize) -> Result<(), Stopped> {
        if depth > DEPTH_MAX {
            return Err(refused(path, "its folders are nested too deeply").into());
        }
        let mut kept = HashSet::new();
        for name in names(from, path)? {
            self.check()?;
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(refused(path, "the volume has too many files").into());
            }
            if is_temporary(&name) {
                continue;
            }
            let Some(facts) = look(from, &name, path)? else {
                continue;
            };
            let inner = path.join(&name);
            let is_kept = match FileType::from_raw_mode(facts.st_mode) {
                FileType::Directory => self.inner_folder(from, to, &name, &inner, depth)?,
                FileType::RegularFile => self.file(from, to, &name, &inner)?,
                FileType::Symlink => link(from, to, &name, &inner)?,
                // Sockets and pipes are made anew by who needs them.
                _ => false,
            };
            if is_kept {
                kept.insert(name);
            }
        }
        for name in names(to, path)? {
            if !kept.contains(&name) {
                self.looks.0.remove(&path.join(&name));
                remove(to, &name, path)?;
            }
        }
        Ok(())
    }

    fn inner_folder(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &OsString,
        path: &Path,
        depth: usize,
    ) -> Result<bool, Stopped> {
        let Some(source) = enter(from, name, path)? else {
            return Ok(false);
        };
        let facts = rustix::fs::fstat(&source).map_err(failed("look at", path))?;
        let mut there = enter(to, name, path)?;
        if there.is_none() {
            // Nothing, or something else of that name.
            remove(to, name, path)?;
            mkdirat(to, name, Mode::RWXU).map_err(failed("create", path))?;
            there = enter(to, name, path)?;
        }
        let target = there.ok_or_else(|| refused(path, "somebody else changes the copy"))?;
        self.folder(&source, &target, path, depth + 1)?;
        file::dress(&target, &facts).map_err(failed("protect", path))?;
        Ok(true)
    }

    /// Copies a file, unless it looks as it did when it was copied. False if it is gone.
    fn file(&mut self, from: &OwnedFd, to: &OwnedFd, name: &OsString, path: &Path) -> Result<bool, Stopped> {
        let now = file::now();
        let Some(source) = file::open_source(from, name).map_err(failed("read", path))? else {
            return Ok(false);
        };
        let facts = rustix::fs::fstat(&source).map_err(failed("look at", path))?;
        let look = Look::of(&facts);
        let there = self::look(to, name, path)?;
        if there.is_some_and(|copy| FileType::from_raw_mode(copy.st_mode) != FileType::RegularFile) {
            remove(to, name, path)?;
        }
        let is_there = there.is_some_and(|copy| copy.st_size == facts.st_size);
        if !is_there || self.looks.0.get(path) != Some(&look) {
            self.looks.0.remove(path);
            let target = file::open_target(to, name).map_err(failed("create", path))?;
            file::copy(&source, &target, u64::try_from(facts.st_size).unwrap_or(0), self.is_given_up, path)?;
            file::dress(&target, &facts).map_err(failed("protect", path))?;
            // A file that was written a moment ago could be written again without looking different.
            if look.is_quiet(now) {
                self.looks.0.insert(path.to_owned(), look);
            }
            self.passed.written_bytes += stored_bytes(&facts);
            self.passed.written.insert(path.to_owned());
        }
        self.progress.done_bytes.fetch_add(stored_bytes(&facts), Ordering::Relaxed);
        Ok(true)
    }

    fn check(&self) -> Result<(), Stopped> {
        if self.is_given_up.load(Ordering::Relaxed) { Err(Stopped::GivenUp) } else { Ok(()) }
    }
}

/// Copies a link as it is. A tablespace must lie inside the volume, as the engine sees it: what lies elsewhere would not
/// be encrypted anew, and nobody would notice.
fn link(from: &OwnedFd, to: &OwnedFd, name: &OsString, path: &Path) -> Result<bool, Stopped> {
    let target = match readlinkat(from, name, Vec::new()) {
        Err(Errno::NOENT | Errno::INVAL) => return Ok(false),
        read => PathBuf::from(OsString::from_vec(read.map_err(failed("read", path))?.into_bytes())),
    };
    let is_inside = target.starts_with(VOLUME)
        && !target.components().any(|part| part == std::path::Component::ParentDir);
    if path.parent().is_some_and(|folder| folder.ends_with("pg_tblspc")) && !is_inside {
        let reason = format!(
            "the tablespace lies at {}, outside of the volume; move its tables with ALTER TABLE ... SET TABLESPACE \
             pg_default and drop it",
            target.display()
        );
        return Err(refused(path, &reason).into());
    }
    remove(to, name, path)?;
    symlinkat(&target, to, name).map_err(failed("create", path))?;
    if is_root() {
        let facts = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at", path))?;
        let (uid, gid) = (Uid::from_raw(facts.st_uid), Gid::from_raw(facts.st_gid));
        chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("hand over", path))?;
    }
    Ok(true)
}

/// What PostgreSQL removes by itself when it starts; `pg_basebackup` leaves the same out.
fn is_temporary(name: &OsString) -> bool {
    name.as_encoded_bytes().starts_with(b"pgsql_tmp")
}

/// Removes from the copy, which no engine has seen yet.
fn remove(folder: &OwnedFd, name: &OsString, path: &Path) -> Result<(), Error> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(other) => return Err(failed("remove", path)(other)),
    }
    // A folder without rights could not be emptied.
    let _ = chmodat(folder, name, Mode::RWXU, AtFlags::empty());
    if let Some(inner) = enter(folder, name, path)? {
        for inside in names(&inner, path)? {
            remove(&inner, &inside, &path.join(&inside))?;
        }
    }
    rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR).map_err(failed("remove", path))
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, folder_flags(), Mode::empty()).map_err(failed("open", path))
}

/// Opens a folder in a folder; `None` if it is gone or is no folder any more.
fn enter(folder: &OwnedFd, name: &OsString, path: &Path) -> Result<Option<OwnedFd>, Error> {
    match openat(folder, name, folder_flags(), Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        opened => Ok(Some(opened.map_err(failed("open", path))?)),
    }
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn look(folder: &OwnedFd, name: &OsString, path: &Path) -> Result<Option<Stat>, Error> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        seen => Ok(Some(seen.map_err(failed("look at", &path.join(name)))?)),
    }
}

fn names(folder: &OwnedFd, path: &Path) -> Result<Vec<OsString>, Error> {
    let entries = Dir::read_from(folder).map_err(failed("list", path))?;
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed("list", path))?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            found.push(OsString::from_vec(name));
        }
        if found.len() > ENTRIES_MAX {
            return Err(refused(path, "the folder has too many files"));
        }
    }
    Ok(found)
}

/// What a file takes on the disk, which the kernel counts in blocks of 512 bytes.
#[allow(clippy::useless_conversion, reason = "the types differ between processors")]
fn stored_bytes(facts: &Stat) -> u64 {
    u64::try_from(facts.st_blocks).unwrap_or(0) * 512
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |cause| Error::file(action, &path)(cause.into())
}

fn refused(path: &Path, reason: &str) -> Error {
    Error::Refused(format!("the volume cannot be copied at {}: {reason}", path.display()))
}
