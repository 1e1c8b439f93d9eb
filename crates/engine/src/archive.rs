//! A folder in one file, of which each part is compared with what it was before anything in it is believed.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write};
use std::path::{Component, Path, PathBuf};

use aws_lc_rs::digest;
use rustix::fs::FileType;
use tar::{Archive, Builder, EntryType, Header};

use crate::Error;
use crate::inside::{DEPTH_MAX, Inside};
use crate::places::Owner;

/// What is read, compared and believed at once.
const PART_BYTES: usize = 1 << 20;

/// Writes all files of a folder and of those in it into an archive, but not those that are left out; hands back the digests of
/// its parts. Modes and owners are not kept.
pub(crate) fn pack(
    folder: &Inside,
    archive: &mut File,
    is_left_out: impl Fn(&Path) -> bool,
) -> Result<Vec<String>, Error> {
    let mut parts = Parts { archive, pending: Vec::new(), digests: Vec::new() };
    let mut builder = Builder::new(&mut parts);
    pack_folder(&mut builder, folder, Path::new(""), &is_left_out)?;
    let written = builder.into_inner().map(|_| ()).and_then(|()| parts.end());
    written.map_err(Error::file("pack", folder.path()))
}

fn pack_folder(
    builder: &mut Builder<&mut Parts<'_>>,
    folder: &Inside,
    above: &Path,
    is_left_out: &impl Fn(&Path) -> bool,
) -> Result<(), Error> {
    let failed = || Error::file("pack", folder.path());
    let mut names = folder.names()?;
    names.sort();
    for name in names {
        let path = above.join(&name);
        if is_left_out(&path) {
            continue;
        }
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        let kind = folder.look(&name)?.map(|facts| FileType::from_raw_mode(facts.st_mode));
        if kind == Some(FileType::Directory) && path.components().count() < DEPTH_MAX {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            builder.append_data(&mut header, &path, io::empty()).map_err(failed())?;
            pack_folder(builder, &folder.below(&name)?, &path, is_left_out)?;
        } else if let Some((file, facts)) = folder.file(&name)? {
            header.set_entry_type(EntryType::Regular);
            let size = u64::try_from(facts.st_size).unwrap_or(0);
            header.set_size(size);
            builder.append_data(&mut header, &path, file.take(size)).map_err(failed())?;
        } else {
            return Err(failed()(io::Error::other(format!("{} is no plain file", path.display()))));
        }
    }
    Ok(())
}

/// Reads an archive whose parts should have these digests, and goes back to its beginning.
///
/// # Errors
///
/// It is another one, or cannot be read.
pub(crate) fn check(archive: &mut File, digests: &[String]) -> io::Result<()> {
    io::copy(&mut Checked::new(&mut *archive, digests), &mut io::sink())?;
    archive.rewind()
}

/// Fills an empty folder with what is in an archive whose parts have these digests.
///
/// # Errors
///
/// The archive is another one ([`io::ErrorKind::InvalidData`]); what came before the first part that differs is in the folder by
/// then. Or it cannot be read, or the folder not be written.
pub(crate) fn unpack(archive: File, digests: &[String], folder: &Inside, owner: Owner) -> Result<(), Error> {
    let failed = || Error::file("copy into", folder.path());
    let mut archive = Archive::new(Checked::new(archive, digests));
    // The folders on the way to where it is: an archive goes down into each before the next.
    let mut way: Vec<(PathBuf, Inside)> = Vec::new();
    for entry in archive.entries().map_err(failed())? {
        let mut entry = entry.map_err(failed())?;
        let path = entry.path().map_err(failed())?.into_owned();
        let (above, name) = split(&path).ok_or_else(|| failed()(odd(&path)))?;
        while way.last().is_some_and(|(at, _)| at != above) {
            way.pop();
        }
        let within = match way.last() {
            Some((_, within)) => within,
            None if above == Path::new("") => folder,
            None => return Err(failed()(odd(&path))),
        };
        match entry.header().entry_type() {
            EntryType::Directory => {
                let made = within.make_folder(name, 0o700, owner)?;
                way.push((path, made));
            }
            EntryType::Regular => {
                io::copy(&mut entry, &mut within.create(name, owner)?).map_err(failed())?;
            }
            _ => return Err(failed()(odd(&path))),
        }
    }
    Ok(())
}

/// The folder and the name in it, of a path that leads down and nowhere else.
fn split(path: &Path) -> Option<(&Path, &str)> {
    let leads_down = path.components().all(|part| matches!(part, Component::Normal(_)));
    let depth = path.components().count();
    (leads_down && depth <= DEPTH_MAX).then_some((path.parent()?, path.file_name()?.to_str()?))
}

fn odd(path: &Path) -> io::Error {
    let name = path.to_string_lossy();
    let what = format!("the archive has something in it that no data directory has: {}", name.escape_debug());
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn sum(part: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, part))
}

/// Writes an archive and takes the digests of its parts.
struct Parts<'a> {
    archive: &'a mut File,
    pending: Vec<u8>,
    digests: Vec<String>,
}

impl Parts<'_> {
    fn put(&mut self) -> io::Result<()> {
        self.archive.write_all(&self.pending)?;
        self.digests.push(sum(&self.pending));
        self.pending.clear();
        Ok(())
    }

    fn end(mut self) -> io::Result<Vec<String>> {
        if !self.pending.is_empty() {
            self.put()?;
        }
        self.archive.sync_all()?;
        Ok(self.digests)
    }
}

impl Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PART_BYTES - self.pending.len());
        self.pending.extend_from_slice(&bytes[..count]);
        if self.pending.len() == PART_BYTES {
            self.put()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads an archive and hands out no byte of a part that has another digest.
struct Checked<'a, R> {
    archive: R,
    digests: std::slice::Iter<'a, String>,
    part: Vec<u8>,
    at: usize,
}

impl<'a, R: Read> Checked<'a, R> {
    fn new(archive: R, digests: &'a [String]) -> Self {
        Self { archive, digests: digests.iter(), part: Vec::new(), at: 0 }
    }
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.at == self.part.len() {
            let Some(wanted) = self.digests.next() else {
                return Ok(0);
            };
            let mut part = Vec::with_capacity(PART_BYTES);
            (&mut self.archive).take(PART_BYTES as u64).read_to_end(&mut part)?;
            if sum(&part) != *wanted {
                let another = "the archive is not the one that was made";
                return Err(io::Error::new(io::ErrorKind::InvalidData, another));
            }
            (self.part, self.at) = (part, 0);
        }
        let count = bytes.len().min(self.part.len() - self.at);
        bytes[..count].copy_from_slice(&self.part[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(files: &[(&str, usize)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text: Vec<u8> = (0..=250_u8).cycle().take(*bytes).collect();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn packed(from: &Path) -> (tempfile::NamedTempFile, Vec<String>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let is_left_out = |path: &Path| path == Path::new("pg_wal/one");
        let digests = pack(&Inside::at(from).unwrap(), &mut file.reopen().unwrap(), is_left_out).unwrap();
        (file, digests)
    }

    fn unpacked(archive: &Path, digests: &[String]) -> Result<tempfile::TempDir, Error> {
        let to = tempfile::tempdir().unwrap();
        unpack(File::open(archive).unwrap(), digests, &Inside::at(to.path()).unwrap(), Owner::own())?;
        Ok(to)
    }

    const FILES: &[(&str, usize)] = &[
        ("PG_VERSION", 3),
        ("base/1/1259", 3 * PART_BYTES),
        ("base/1/112", 0),
        ("pg_wal/one", 9),
        ("pg_wal/two/x", 1),
    ];

    #[test]
    fn what_was_packed_is_there_again_but_for_what_is_left_out() {
        let from = folder_with(FILES);
        std::fs::create_dir(from.path().join("pg_dynshmem")).unwrap();
        let (archive, digests) = packed(from.path());
        let length = archive.as_file().metadata().unwrap().len();
        assert_eq!(digests.len() as u64, length.div_ceil(PART_BYTES as u64));
        let to = unpacked(archive.path(), &digests).unwrap();
        for (path, bytes) in FILES {
            let copy = std::fs::read(to.path().join(path));
            match copy {
                Ok(copy) => {
                    assert_eq!(copy.len(), *bytes, "{path}");
                    assert_eq!(copy, std::fs::read(from.path().join(path)).unwrap(), "{path}");
                }
                Err(_) => assert_eq!(*path, "pg_wal/one"),
            }
        }
        assert!(to.path().join("pg_dynshmem").is_dir());
    }

    #[test]
    fn of_an_archive_that_was_changed_no_changed_byte_is_copied() {
        let from = folder_with(FILES);
        let (archive, digests) = packed(from.path());
        let whole = std::fs::read(archive.path()).unwrap();
        for at in [0, 157, 600, PART_BYTES, 2 * PART_BYTES + 9, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(archive.path(), &changed).unwrap();
            let refused = unpacked(archive.path(), &digests).map(drop);
            let is_refused = matches!(&refused, Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::InvalidData);
            assert!(is_refused, "byte {at}: {refused:?}");
        }
        for length in [0, 100, PART_BYTES, whole.len() / 2] {
            std::fs::write(archive.path(), &whole[..length]).unwrap();
            assert!(unpacked(archive.path(), &digests).is_err(), "cut to {length}");
        }
        std::fs::write(archive.path(), &whole).unwrap();
        assert!(unpacked(archive.path(), &digests[1..]).is_err());
        unpacked(archive.path(), &digests).unwrap();
    }

    /// Reads half of what it has, and fails.
    struct Failing(io::Cursor<Vec<u8>>);

    impl Read for Failing {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let half = self.0.get_ref().len() as u64 / 2;
            if self.0.position() >= half {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            self.0.read(bytes)
        }
    }

    #[test]
    fn after_an_error_no_byte_is_handed_out_that_was_not_compared() {
        let digests = [sum(b"whole")];
        let mut checked = Checked::new(Failing(io::Cursor::new(b"planted!".to_vec())), &digests);
        for _ in 0..2 {
            let mut bytes = [0; 16];
            let read = checked.read(&mut bytes);
            assert!(!matches!(read, Ok(1..)), "{read:?} {bytes:?}");
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_none() {
        for path in ["../up", "/etc/passwd", "base/../../up", "", "."] {
            assert_eq!(split(Path::new(path)), None, "{path}");
        }
        assert_eq!(split(Path::new("base/1/112")), Some((Path::new("base/1"), "112")));
    }

    #[test]
    fn a_link_is_not_packed() {
        let from = folder_with(FILES);
        std::os::unix::fs::symlink("/etc/shadow", from.path().join("base/shadow")).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let refused = pack(&Inside::at(from.path()).unwrap(), &mut file, |_| false).unwrap_err().to_string();
        assert!(refused.contains("no plain file"), "{refused}");
    }
}
