//! Searching the bytes that lie on the disk, below the encryption.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use model::Encryption;
use rustix::fs::SeekFrom;
use serde::Serialize;

use crate::Error;

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
    let (place, raw): (String, Vec<PathBuf>) = match kind {
        Encryption::FscryptImage | Encryption::Luks2 => {
            ("the volume's image".to_owned(), vec![folder.join("image")])
        }
        Encryption::Gocryptfs => {
            ("gocryptfs's folder of ciphertext".to_owned(), files_below(&folder.join("cipher")))
        }
        Encryption::Attested => (
            "the cluster's files, above the disk that the operator says is encrypted".to_owned(),
            files_below(base),
        ),
        Encryption::None => ("the cluster's files".to_owned(), files_below(base)),
        Encryption::Fscrypt => {
            let device = device_below(folder)?;
            (format!("the allocated bytes of {}", device.display()), vec![device])
        }
    };
    let (mut bytes, mut hits) = (0, 0);
    for path in raw {
        let (searched, found) = search_file(&path, needle)?;
        bytes += searched;
        hits += found;
    }
    let mut hits_in_plaintext = 0;
    for path in files_below(&base.join("pg/base")) {
        hits_in_plaintext += search_file(&path, needle)?.1;
    }
    Ok(SearchReport { place, bytes, hits, hits_in_plaintext })
}

/// Reads a file's data, skipping its holes.
fn search_file(path: &Path, needle: &[u8]) -> Result<(u64, u64), Error> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        // Engines remove files while they work.
        Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => return Ok((0, 0)),
        Err(other) => return Err(Error::file("search", path)(other)),
    };
    let failed = || Error::file("search", path);
    let is_device = file.metadata().map_err(failed())?.file_type().is_block_device();
    let (mut bytes, mut hits, mut at) = (0_u64, 0_u64, 0_u64);
    let mut piece = vec![0; PIECE_BYTES + needle.len()];
    loop {
        let (start, end) = if is_device {
            (at, u64::MAX)
        } else {
            let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) else {
                break;
            };
            (start, rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap_or(u64::MAX))
        };
        rustix::fs::seek(&file, SeekFrom::Start(start)).map_err(|cause| failed()(cause.into()))?;
        let mut left = end - start;
        let mut kept = 0;
        while left > 0 {
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let count = file.read(&mut piece[kept..kept + room]).map_err(failed())?;
            if count == 0 {
                return Ok((bytes, hits));
            }
            bytes += count as u64;
            left -= count as u64;
            let filled = kept + count;
            hits += occurrences(&piece[..filled], needle);
            // A text may lie across the border of two pieces.
            kept = filled.min(needle.len() - 1);
            piece.copy_within(filled - kept..filled, 0);
        }
        at = end;
    }
    Ok((bytes, hits))
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

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
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

    use super::*;

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
        let (bytes, hits) = search_file(&path, b"canary").unwrap();
        assert_eq!(hits, 2);
        assert!(bytes < 1 << 24, "holes are skipped: {bytes}");
        assert_eq!(search_file(&path, b"parrot").unwrap().1, 0);
    }
}
