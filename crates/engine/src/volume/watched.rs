//! What a volume stores that no file system of its own holds back: its files, counted one by one.
//!
//! An engine that was taken over hides from such a count: in folders without end, in files without number, in files that it has
//! removed and holds open or mapped. The first two are an error, which again and again counts as more than the limit; the last are
//! found by what its processes have open. What it gives another name while it is counted is missed: a count is no wall.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use model::{Enforcement, Fullness, StorageLimit, StorageUse};
use rustix::fs::FileType;

use crate::Error;
use crate::inside::{DEPTH_MAX, Inside};

/// Names in one volume. A cluster with half a million tables has fewer.
const NAMES_MAX: usize = 2_000_000;

/// What was counted of a volume.
#[derive(Debug, Default)]
struct Count {
    bytes: u64,
    names: usize,
    /// Files with several names are counted once.
    seen: HashSet<(u64, u64)>,
}

/// Counts what a volume stores.
///
/// # Errors
///
/// It cannot be counted in an end.
pub(super) fn usage(
    base: &Path,
    folder: &Path,
    processes: &[u32],
    limit: StorageLimit,
) -> Result<StorageUse, Error> {
    let mut count = Count::default();
    count.tree(&Inside::at(base)?, 0)?;
    count.removed(&[base, folder], processes);
    Ok(used(count.bytes, limit))
}

/// What a volume counts as that cannot be counted: more than its limit.
pub(crate) fn endless(limit: StorageLimit) -> StorageUse {
    used(limit.stopped_at_bytes(), limit)
}

fn used(used_bytes: u64, limit: StorageLimit) -> StorageUse {
    let limit_bytes = limit.bytes();
    StorageUse {
        limit_bytes,
        used_bytes,
        data_limit_bytes: limit_bytes,
        wal_used_bytes: None,
        wal_limit_bytes: None,
        enforcement: Enforcement::Watched,
        fullness: if used_bytes >= limit_bytes {
            Fullness::Full
        } else {
            Fullness::of(used_bytes, limit_bytes)
        },
    }
}

/// Why a volume cannot be counted in an end.
fn has_no_end(folder: &Inside, reason: &str) -> Error {
    Error::Refused(format!("what is stored in {} cannot be counted: {reason}", folder.path().display()))
}

impl Count {
    fn tree(&mut self, folder: &Inside, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(has_no_end(folder, "its folders are nested too deeply"));
        }
        let names = folder.names_up_to(NAMES_MAX.saturating_sub(self.names))?;
        let names = names.ok_or_else(|| has_no_end(folder, "it has too many files"))?;
        self.names += names.len();
        for name in names {
            // Engines remove folders and files while they work.
            let Some(facts) = folder.look(&name)? else {
                continue;
            };
            let kind = FileType::from_raw_mode(facts.st_mode);
            #[allow(clippy::useless_conversion, reason = "the types differ between processors")]
            let (links, file) =
                (u64::from(facts.st_nlink), (u64::from(facts.st_dev), u64::from(facts.st_ino)));
            if kind == FileType::Directory || links < 2 || self.seen.insert(file) {
                self.add(u64::try_from(facts.st_blocks).unwrap_or(0));
            }
            if kind == FileType::Directory
                && let Some(inner) = folder.enter(&name)?
            {
                self.tree(&inner, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Adds files of the volume that have no name any more, and that one of the processes holds open.
    fn removed(&mut self, places: &[&Path], processes: &[u32]) {
        let devices: Vec<u64> = places.iter().filter_map(|place| device_of(place)).collect();
        for process in processes {
            // Its threads may have descriptors of their own.
            let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
            let mapped = Path::new("/proc").join(process.to_string()).join("map_files");
            let open = threads
                .map(|thread| thread.path().join("fd"))
                .chain([mapped])
                .flat_map(|links| std::fs::read_dir(links).into_iter().flatten().flatten());
            for facts in open.filter_map(|file| std::fs::metadata(file.path()).ok()) {
                let is_removed = facts.is_file() && facts.nlink() == 0 && devices.contains(&facts.dev());
                if is_removed && self.seen.insert((facts.dev(), facts.ino())) {
                    self.add(facts.blocks());
                }
            }
        }
    }

    fn add(&mut self, blocks: u64) {
        self.bytes = self.bytes.saturating_add(blocks.saturating_mul(512));
    }
}

/// The device of a folder of ours.
#[allow(clippy::useless_conversion, reason = "the types differ between processors")]
fn device_of(place: &Path) -> Option<u64> {
    Some(u64::from(rustix::fs::fstat(Inside::at(place).ok()?).ok()?.st_dev))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    const MIB: usize = 1 << 20;

    fn used(folder: &Path) -> StorageUse {
        usage(folder, folder, &[std::process::id()], StorageLimit::MIN).unwrap()
    }

    fn write(path: &Path) -> File {
        let mut file = File::create_new(path).unwrap();
        file.write_all(&vec![0x55; MIB]).unwrap();
        file.sync_all().unwrap();
        file
    }

    #[test]
    fn a_removed_file_counts_as_long_as_it_is_open_and_several_names_count_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = write(&path);
        std::fs::hard_link(&path, folder.path().join("again")).unwrap();
        let whole = used(folder.path()).used_bytes;
        assert!((MIB as u64..2 * MIB as u64).contains(&whole), "{whole}");
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(folder.path().join("again")).unwrap();
        assert_eq!(used(folder.path()).used_bytes, whole);
        drop(file);
        assert!(used(folder.path()).used_bytes < MIB as u64);
    }

    #[test]
    fn what_has_no_end_is_no_number_and_counts_as_more_than_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(used(folder.path()).fullness, Fullness::Ample);
        let deep = (0..=DEPTH_MAX + 1).fold(folder.path().to_owned(), |path, _| path.join("d"));
        std::fs::create_dir_all(deep).unwrap();
        let refused = usage(folder.path(), folder.path(), &[], StorageLimit::MIN).unwrap_err();
        assert!(refused.to_string().contains("nested too deeply"), "{refused}");
        let counted = endless(StorageLimit::MIN);
        assert_eq!(counted.fullness, Fullness::Full);
        assert!(counted.used_bytes >= StorageLimit::MIN.stopped_at_bytes());
    }

    /// Engines remove folders while they work.
    #[test]
    fn a_folder_that_was_removed_since_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone");
        std::fs::create_dir(&path).unwrap();
        let gone = Inside::at(&path).unwrap();
        std::fs::remove_dir(&path).unwrap();
        assert!(gone.names().unwrap().is_empty());
    }

    #[test]
    fn names_without_number_are_no_number() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            File::create_new(folder.path().join(name)).unwrap();
        }
        let mut count = Count { names: NAMES_MAX - 2, ..Count::default() };
        let refused = count.tree(&Inside::at(folder.path()).unwrap(), 0).unwrap_err();
        assert!(refused.to_string().contains("too many files"), "{refused}");
    }
}
