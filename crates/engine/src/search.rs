//! Searching the bytes that lie on the disk, below the encryption.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use model::Encryption;
use rustix::fs::{FileType, SeekFrom};
use serde::Serialize;

use crate::Error;
use crate::inside::{DEPTH_MAX, ENTRIES_MAX, Inside};

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SearchReport {
    /// What was searched.
    pub place: String,
    /// How many bytes of it.
    pub bytes: u64,
    /// How often the text was there.
    pub hits: u64,
    /// How often it is in the files as the engine sees them: zero would mean that the search itself does not work.
    pub hits_in_plaintext: u64,
}

const PIECE_BYTES: usize = 1 << 20;

/// Searches what a thief of the disk would have, and the plaintext as a control.
///
/// # Errors
///
/// Where an engine has put something else in the place of its files, or so many or so deeply nested ones that no end is to be
/// seen.
pub(crate) fn search(
    folder: &Path,
    base: &Path,
    kind: Encryption,
    needle: &[u8],
) -> Result<SearchReport, Error> {
    if needle.is_empty() || needle.len() > 1_024 {
        return Err(Error::Refused("the text to search for has 1 to 1024 bytes".to_owned()));
    }
    // What is written but still in memory must be on the disk first.
    rustix::fs::sync();
    let mut raw = Search::new(needle);
    let place: String = match kind {
        Encryption::FscryptImage | Encryption::Luks2 => {
            let folder = Inside::at(folder)?;
            raw.named(&folder, OsStr::new("image"))?;
            raw.named(&folder, OsStr::new("wal"))?;
            "the volume's image".to_owned()
        }
        Encryption::Gocryptfs => {
            raw.tree(&Inside::open(folder, "cipher")?, 0)?;
            "gocryptfs's folder of ciphertext".to_owned()
        }
        Encryption::Attested => {
            raw.tree(&Inside::at(base)?, 0)?;
            "the cluster's files, above the disk that the operator says is encrypted".to_owned()
        }
        Encryption::None => {
            raw.tree(&Inside::at(base)?, 0)?;
            "the cluster's files".to_owned()
        }
        Encryption::Fscrypt => {
            let device = device_below(folder)?;
            let opened = File::open(&device).map_err(Error::file("search", &device))?;
            raw.data_of(opened, None, &device)?;
            format!("the allocated bytes of {}", device.display())
        }
    };
    let mut plaintext = Search::new(needle);
    plaintext.tree(&Inside::open(base, "pg")?.below("base")?, 0)?;
    Ok(SearchReport { place, bytes: raw.bytes, hits: raw.hits, hits_in_plaintext: plaintext.hits })
}

/// One search and what it found so far.
struct Search<'a> {
    needle: &'a [u8],
    bytes: u64,
    hits: u64,
    files: usize,
    /// Files with several names, which are searched once: a large one with a million names has no end.
    seen: HashSet<(u64, u64)>,
}

impl<'a> Search<'a> {
    fn new(needle: &'a [u8]) -> Self {
        Self { needle, bytes: 0, hits: 0, files: 0, seen: HashSet::new() }
    }

    /// Every plain file at or below a folder; links lead nowhere.
    fn tree(&mut self, folder: &Inside, depth: usize) -> Result<(), Error> {
        let refused = |reason: &str| {
            Error::Refused(format!("the search was broken off in {}: {reason}", folder.path().display()))
        };
        if depth > DEPTH_MAX {
            return Err(refused("its folders are nested too deeply"));
        }
        for name in folder.names()? {
            self.files += 1;
            if self.files > ENTRIES_MAX {
                return Err(refused("the volume has too many files"));
            }
            let Some(facts) = folder.look(&name)? else {
                continue;
            };
            match FileType::from_raw_mode(facts.st_mode) {
                FileType::Directory => {
                    // Engines remove folders and files while they work.
                    if let Some(inner) = folder.enter(&name)? {
                        self.tree(&inner, depth + 1)?;
                    }
                }
                FileType::RegularFile => self.named(folder, &name)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The file of this name, if it is one.
    #[allow(clippy::useless_conversion, reason = "the types differ between processors")]
    fn named(&mut self, folder: &Inside, name: &OsStr) -> Result<(), Error> {
        let Some((file, facts)) = folder.file(name)? else {
            return Ok(());
        };
        if u64::from(facts.st_nlink) > 1
            && !self.seen.insert((u64::from(facts.st_dev), u64::from(facts.st_ino)))
        {
            return Ok(());
        }
        self.data_of(file, u64::try_from(facts.st_size).ok(), &folder.path().join(name))
    }

    /// Reads a file's data, skipping its holes, as far as it reached when the search came to it; a device to its end.
    fn data_of(&mut self, mut file: File, bytes_max: Option<u64>, path: &Path) -> Result<(), Error> {
        let failed = || Error::file("search", path);
        let mut at = 0_u64;
        let mut piece = vec![0; PIECE_BYTES + self.needle.len()];
        loop {
            let (start, end) = match bytes_max {
                None => (at, u64::MAX),
                Some(bytes_max) => {
                    let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) else {
                        break;
                    };
                    let hole = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap_or(u64::MAX);
                    (start, hole.min(bytes_max))
                }
            };
            if end <= start {
                break;
            }
            rustix::fs::seek(&file, SeekFrom::Start(start)).map_err(|cause| failed()(cause.into()))?;
            let mut left = end - start;
            let mut kept = 0;
            while left > 0 {
                let room = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
                let count = file.read(&mut piece[kept..kept + room]).map_err(failed())?;
                if count == 0 {
                    return Ok(());
                }
                self.bytes += count as u64;
                left -= count as u64;
                let filled = kept + count;
                self.hits += occurrences(&piece[..filled], self.needle);
                // A text may lie across the border of two pieces.
                kept = filled.min(self.needle.len() - 1);
                piece.copy_within(filled - kept..filled, 0);
            }
            at = end;
        }
        Ok(())
    }
}

fn occurrences(bytes: &[u8], needle: &[u8]) -> u64 {
    let finder = memchr::memmem::Finder::new(needle);
    let (mut count, mut at) = (0, 0);
    // One may begin inside another.
    while let Some(found) = finder.find(&bytes[at..]) {
        count += 1;
        at += found + 1;
    }
    count
}

fn device_below(folder: &Path) -> Result<PathBuf, Error> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(folder).map_err(Error::file("search", folder))?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let target = std::fs::read_link(&link).map_err(Error::file("search", &link))?;
    let name = target.file_name().unwrap_or_default();
    Ok(Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};
    use std::os::unix::fs::symlink;

    use super::*;

    fn search_file(folder: &Path, name: &str, needle: &[u8]) -> (u64, u64) {
        let mut search = Search::new(needle);
        search.named(&Inside::at(folder).unwrap(), OsStr::new(name)).unwrap();
        (search.bytes, search.hits)
    }

    #[test]
    fn texts_that_begin_inside_each_other_count_each() {
        assert_eq!(occurrences(b"xaaaay", b"aa"), 3);
        assert_eq!(occurrences(b"xaaaay", b"b"), 0);
    }

    #[test]
    fn a_text_is_found_across_borders_and_behind_holes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("raw");
        let mut file = File::create(&path).unwrap();
        file.write_all(&vec![b'x'; PIECE_BYTES - 3]).unwrap();
        file.write_all(b"canary").unwrap();
        file.seek(std::io::SeekFrom::Start(1 << 30)).unwrap();
        file.write_all(b"ccanary").unwrap();
        drop(file);
        let (bytes, hits) = search_file(folder.path(), "raw", b"canary");
        assert_eq!(hits, 2);
        assert!(bytes < 1 << 24, "holes are skipped: {bytes}");
        assert_eq!(search_file(folder.path(), "raw", b"parrot").1, 0);
    }

    #[test]
    fn a_search_follows_no_link_reads_no_pipe_and_reads_each_file_once() {
        let (base, machine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tables = base.path().join("pg/base/5");
        std::fs::create_dir_all(&tables).unwrap();
        std::fs::write(machine.path().join("shadow"), "canary").unwrap();
        for (name, target) in
            [("1", machine.path().join("shadow")), ("2", machine.path().into()), ("3", "/proc".into())]
        {
            symlink(target, tables.join(name)).unwrap();
        }
        rustix::fs::mknodat(rustix::fs::CWD, tables.join("4"), FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        std::fs::write(tables.join("5"), "the canary").unwrap();
        std::fs::hard_link(tables.join("5"), tables.join("6")).unwrap();
        let search = |needle| search(base.path(), base.path(), Encryption::None, needle);
        let found = search(b"canary").unwrap();
        assert_eq!((found.hits, found.hits_in_plaintext, found.bytes), (1, 1, 10));

        // The folder itself becomes a link, as when the host's own processes were searched.
        std::fs::rename(base.path().join("pg/base"), base.path().join("pg/aside")).unwrap();
        symlink("/proc", base.path().join("pg/base")).unwrap();
        let refused = search(b"canary").unwrap_err().to_string();
        assert!(refused.contains("pg/base") && refused.contains("link"), "{refused}");
    }

    #[test]
    fn a_search_ends_however_deep_the_folders_are() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(base.path().join("pg/base").join("d/".repeat(DEPTH_MAX + 5))).unwrap();
        let refused = search(base.path(), base.path(), Encryption::None, b"x").unwrap_err().to_string();
        assert!(refused.contains("too deeply"), "{refused}");
    }
}
