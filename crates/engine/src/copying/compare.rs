//! Whether a copy is one: every name, kind, length, owner and mode, and every byte that the last pass wrote.
//!
//! Not every byte of the volume: with the engine stopped that would take as long as the copy itself. What earlier passes
//! wrote was not changed since, by the kernel's word, and PostgreSQL checks the checksum of every page that it reads.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use super::is_temporary;
use crate::Error;

const PIECE_BYTES: usize = 1 << 20;

/// Compares two trees that nobody writes; the bytes of `written` are read back from the disk.
pub(crate) fn compare(from: &Path, to: &Path, written: &HashSet<PathBuf>) -> Result<(), Error> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let (ours, theirs) = (entries(&to.join(&folder))?, entries(&from.join(&folder))?);
        if let Some(odd) = ours.symmetric_difference(&theirs).next() {
            return Err(differs(&folder.join(odd), "it is in one of them only"));
        }
        for name in theirs {
            let path = folder.join(name);
            let (original, copy) = (facts(&from.join(&path))?, facts(&to.join(&path))?);
            if (original.mode(), original.uid(), original.gid()) != (copy.mode(), copy.uid(), copy.gid()) {
                return Err(differs(&path, "its kind, owner or mode is another"));
            }
            if original.is_dir() {
                folders.push(path);
            } else if original.is_symlink() {
                let read = |tree: &Path| std::fs::read_link(tree.join(&path)).ok();
                if read(from) != read(to) {
                    return Err(differs(&path, "it leads elsewhere"));
                }
            } else if original.len() != copy.len() {
                return Err(differs(&path, "its length is another"));
            } else if written.contains(&path) && !is_same(&from.join(&path), &to.join(&path))? {
                return Err(differs(&path, "its bytes are others"));
            }
        }
    }
    Ok(())
}

/// Names of what is copied: sockets and temporary files are not.
fn entries(folder: &Path) -> Result<HashSet<std::ffi::OsString>, Error> {
    let mut found = HashSet::new();
    for entry in std::fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let entry = entry.map_err(Error::file("list", folder))?;
        let kind = entry.file_type().map_err(Error::file("look at", &entry.path()))?;
        if (kind.is_dir() || kind.is_file() || kind.is_symlink()) && !is_temporary(&entry.file_name()) {
            found.insert(entry.file_name());
        }
    }
    Ok(found)
}

fn facts(path: &Path) -> Result<std::fs::Metadata, Error> {
    std::fs::symlink_metadata(path).map_err(Error::file("look at", path))
}

fn is_same(original: &Path, copy: &Path) -> Result<bool, Error> {
    let open = |path: &Path| File::open(path).map_err(Error::file("read", path));
    let (one, other) = (open(original)?, open(copy)?);
    // From the disk, not from the memory that was to be written there.
    let _ = fadvise(&other, 0, None, Advice::DontNeed);
    let (mut left, mut right) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut at = 0;
    loop {
        let count = one.read_at(&mut left, at).map_err(Error::file("read", original))?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact_at(&mut right[..count], at).map_err(Error::file("read", copy))?;
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
