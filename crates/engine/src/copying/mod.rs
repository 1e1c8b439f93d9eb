//! Copying the files of one volume into another while an engine may be writing them, as rsync does: pass after pass, each
//! for what changed since the one before. Only a pass over a volume that nobody writes makes a copy that counts.

mod compare;
mod file;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Uid, chownat, mkdirat, symlinkat};

use crate::Error;
use crate::inside::{DEPTH_MAX, ENTRIES_MAX, Inside, failed};
use crate::jail::VOLUME;
use crate::places::is_root;
use file::Look;

pub(crate) use compare::compare;

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
    let (source, target) = (Inside::at(from)?, Inside::at(to)?);
    let facts = source.facts()?;
    pass.folder(&source, &target, Path::new(""), 0)?;
    // Also the volume's own root, which nobody above it sets.
    file::dress(&target, &facts).map_err(failed("protect", to))?;
    Ok(pass.passed)
}

/// The bytes that the files of a volume take on the disk.
pub(crate) fn used_bytes(base: &Inside) -> Result<u64, Error> {
    fn add(folder: &Inside, depth: usize) -> Result<u64, Error> {
        let mut bytes = 0;
        for name in folder.names()? {
            let Some(facts) = folder.look(&name)? else {
                continue;
            };
            bytes += stored_bytes(&facts);
            if FileType::from_raw_mode(facts.st_mode) == FileType::Directory
                && depth < DEPTH_MAX
                && let Some(inner) = folder.enter(&name)?
            {
                bytes += add(&inner, depth + 1)?;
            }
        }
        Ok(bytes)
    }
    add(base, 0)
}

struct Pass<'a> {
    looks: &'a mut Looks,
    progress: &'a Progress,
    is_given_up: &'a AtomicBool,
    passed: Passed,
    entries: usize,
}

impl Pass<'_> {
    /// Both trees, whose folders are at `path` in each.
    fn folder(&mut self, from: &Inside, to: &Inside, path: &Path, depth: usize) -> Result<(), Stopped> {
        if depth > DEPTH_MAX {
            return Err(refused(path, "its folders are nested too deeply").into());
        }
        let mut kept = HashSet::new();
        for name in from.names()? {
            self.check()?;
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(refused(path, "the volume has too many files").into());
            }
            if is_temporary(&name) {
                continue;
            }
            let Some(facts) = from.look(&name)? else {
                continue;
            };
            let inner = path.join(&name);
            let is_kept = match FileType::from_raw_mode(facts.st_mode) {
                FileType::Directory => self.inner_folder(from, to, &name, &inner, depth)?,
                FileType::RegularFile => self.file(from, to, &name, &inner)?,
                FileType::Symlink => link(from, to, &name, &facts, &inner)?,
                // Sockets and pipes are made anew by who needs them.
                _ => false,
            };
            if is_kept {
                kept.insert(name);
            }
        }
        for name in to.names()? {
            if !kept.contains(&name) {
                self.looks.0.remove(&path.join(&name));
                to.remove_tree(&name)?;
            }
        }
        Ok(())
    }

    fn inner_folder(
        &mut self,
        from: &Inside,
        to: &Inside,
        name: &OsString,
        path: &Path,
        depth: usize,
    ) -> Result<bool, Stopped> {
        let Some(source) = from.enter(name)? else {
            return Ok(false);
        };
        let facts = source.facts()?;
        let mut there = to.enter(name)?;
        if there.is_none() {
            // Nothing, or something else of that name.
            to.remove_tree(name)?;
            mkdirat(to, name, Mode::RWXU).map_err(failed("create", path))?;
            there = to.enter(name)?;
        }
        let target = there.ok_or_else(|| refused(path, "somebody else changes the copy"))?;
        self.folder(&source, &target, path, depth + 1)?;
        file::dress(&target, &facts).map_err(failed("protect", path))?;
        Ok(true)
    }

    /// Copies a file, unless it looks as it did when it was copied. False if it is gone.
    fn file(&mut self, from: &Inside, to: &Inside, name: &OsString, path: &Path) -> Result<bool, Stopped> {
        let now = file::now();
        let Some((source, facts)) = from.file(name)? else {
            return Ok(false);
        };
        let look = Look::of(&facts);
        let there = to.look(name)?;
        if there.is_some_and(|copy| FileType::from_raw_mode(copy.st_mode) != FileType::RegularFile) {
            to.remove_tree(name)?;
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
fn link(from: &Inside, to: &Inside, name: &OsString, facts: &Stat, path: &Path) -> Result<bool, Stopped> {
    let Some(target) = from.link(name)? else {
        return Ok(false);
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
    to.remove_tree(name)?;
    symlinkat(&target, to, name).map_err(failed("create", path))?;
    if is_root() {
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

/// What a file takes on the disk, which the kernel counts in blocks of 512 bytes.
#[allow(clippy::useless_conversion, reason = "the types differ between processors")]
fn stored_bytes(facts: &Stat) -> u64 {
    u64::try_from(facts.st_blocks).unwrap_or(0) * 512
}

fn refused(path: &Path, reason: &str) -> Error {
    Error::Refused(format!("the volume cannot be copied at {}: {reason}", path.display()))
}
