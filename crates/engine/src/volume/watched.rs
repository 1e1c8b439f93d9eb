//! What a volume stores that no file system of its own holds back: its files, counted one by one.
//!
//! An engine that was taken over hides from such a count: in folders without end, in files without number, in files that it has
//! removed and holds open. The first two count as more than the limit, the last are found by the descriptors of its processes.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use model::{Enforcement, Fullness, StorageLimit, StorageUse};
use rustix::fs::FileType;

use crate::Error;
use crate::inside::{DEPTH_MAX, Inside};

/// Names in one volume. A cluster with a million tables has fewer.
const NAMES_MAX: usize = 4_000_000;
/// Processes of one engine that are looked at: its sessions, its workers, and what serves its volume.
const PROCESSES_MAX: usize = 4_096;

/// What was counted of a volume.
#[derive(Debug, Default)]
struct Count {
    bytes: u64,
    names: usize,
    /// Files with several names are counted once.
    seen: HashSet<(u64, u64)>,
    /// Why there is more than was counted.
    endless: Option<&'static str>,
}

/// Counts what a volume stores. What has no end counts as more than any limit lets run.
pub(super) fn usage(
    base: &Path,
    folder: &Path,
    processes: &[u32],
    limit: StorageLimit,
) -> Result<StorageUse, Error> {
    let mut count = Count::default();
    count.tree(&Inside::at(base)?, 0)?;
    count.removed(&[base, folder], processes);
    if let Some(reason) = count.endless {
        tracing::error!(volume = %folder.display(), reason, "what the cluster stores has no end; it counts as more than its limit");
        count.bytes = count.bytes.max(limit.stopped_at_bytes());
    }
    let (used_bytes, limit_bytes) = (count.bytes, limit.bytes());
    let fullness =
        if used_bytes >= limit_bytes { Fullness::Full } else { Fullness::of(used_bytes, limit_bytes) };
    Ok(StorageUse {
        limit_bytes,
        used_bytes,
        data_limit_bytes: limit_bytes,
        wal_used_bytes: None,
        enforcement: Enforcement::Watched,
        fullness,
    })
}

impl Count {
    fn tree(&mut self, folder: &Inside, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            self.endless = Some("its folders are nested too deeply");
        }
        if self.endless.is_some() {
            return Ok(());
        }
        let Some(names) = folder.names_up_to(NAMES_MAX.saturating_sub(self.names))? else {
            self.endless = Some("it has too many files");
            return Ok(());
        };
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
        for process in processes.iter().take(PROCESSES_MAX) {
            let open = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
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
    fn what_has_no_end_counts_as_more_than_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(used(folder.path()).fullness, Fullness::Ample);
        let deep = (0..=DEPTH_MAX + 1).fold(folder.path().to_owned(), |path, _| path.join("d"));
        std::fs::create_dir_all(deep).unwrap();
        let found = used(folder.path());
        assert_eq!(found.fullness, Fullness::Full);
        assert!(found.used_bytes >= StorageLimit::MIN.stopped_at_bytes());
    }

    #[test]
    fn names_without_number_count_as_more_than_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            File::create_new(folder.path().join(name)).unwrap();
        }
        let mut count = Count { names: NAMES_MAX - 2, ..Count::default() };
        count.tree(&Inside::at(folder.path()).unwrap(), 0).unwrap();
        assert_eq!(count.endless, Some("it has too many files"));
    }
}
