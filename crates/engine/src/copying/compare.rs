//! Whether a copy is one: every name, kind, length, owner and mode, and every byte that the last pass wrote.
//!
//! Not every byte of the volume: with the engine stopped that would take as long as the copy itself. What earlier passes
//! wrote was not changed since, by the kernel's word, and PostgreSQL checks the checksum of every page that it reads.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FileType, Stat, fadvise};

use super::is_temporary;
use crate::Error;
use crate::inside::{DEPTH_MAX, Inside};

const PIECE_BYTES: usize = 1 << 20;

/// Compares two trees that nobody writes; the bytes of `written` are read back from the disk.
pub(crate) fn compare(from: &Path, to: &Path, written: &HashSet<PathBuf>) -> Result<(), Error> {
    compare_folder(&Inside::at(from)?, &Inside::at(to)?, Path::new(""), written, 0)
}

fn compare_folder(
    from: &Inside,
    to: &Inside,
    folder: &Path,
    written: &HashSet<PathBuf>,
    depth: usize,
) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(differs(folder, "its folders are nested too deeply"));
    }
    let (ours, theirs) = (entries(to)?, entries(from)?);
    let one_of_them = "it is in one of them only";
    if let Some(odd) = ours.symmetric_difference(&theirs).next() {
        return Err(differs(&folder.join(odd), one_of_them));
    }
    for name in theirs {
        let path = folder.join(&name);
        let gone = || differs(&path, one_of_them);
        let original = from.look(&name)?.ok_or_else(gone)?;
        let copy = to.look(&name)?.ok_or_else(gone)?;
        let dress = |facts: &Stat| (facts.st_mode, facts.st_uid, facts.st_gid);
        if dress(&original) != dress(&copy) {
            return Err(differs(&path, "its kind, owner or mode is another"));
        }
        match FileType::from_raw_mode(original.st_mode) {
            FileType::Directory => {
                compare_folder(&from.below(&name)?, &to.below(&name)?, &path, written, depth + 1)?;
            }
            FileType::Symlink if from.link(&name)? != to.link(&name)? => {
                return Err(differs(&path, "it leads elsewhere"));
            }
            FileType::RegularFile if original.st_size != copy.st_size => {
                return Err(differs(&path, "its length is another"));
            }
            FileType::RegularFile if written.contains(&path) => {
                let (one, _) = from.file(&name)?.ok_or_else(gone)?;
                let (other, _) = to.file(&name)?.ok_or_else(gone)?;
                if !is_same(&one, &other, &path)? {
                    return Err(differs(&path, "its bytes are others"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Names of what is copied: sockets and temporary files are not.
fn entries(folder: &Inside) -> Result<HashSet<OsString>, Error> {
    let mut found = HashSet::new();
    for name in folder.names()? {
        let Some(facts) = folder.look(&name)? else {
            continue;
        };
        let kind = FileType::from_raw_mode(facts.st_mode);
        let is_copied = matches!(kind, FileType::Directory | FileType::RegularFile | FileType::Symlink);
        if is_copied && !is_temporary(&name) {
            found.insert(name);
        }
    }
    Ok(found)
}

fn is_same(one: &File, other: &File, path: &Path) -> Result<bool, Error> {
    // From the disk, not from the memory that was to be written there.
    let _ = fadvise(other, 0, None, Advice::DontNeed);
    let (mut left, mut right) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut at = 0;
    loop {
        let count = one.read_at(&mut left, at).map_err(Error::file("read", path))?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact_at(&mut right[..count], at).map_err(Error::file("read", path))?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
        at += count as u64;
    }
}

fn differs(path: &Path, how: &str) -> Error {
    Error::Refused(format!(
        "the copied volume is not what was copied, at {}: {how}; nothing was switched, copy it again",
        path.display()
    ))
}
