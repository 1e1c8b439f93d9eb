//! Files that hold secrets: made 0600 in one step, and refused when others could have read them.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{Error, Secret};

/// A secret file is short; a longer one is not ours.
const PRIVATE_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Reads a secret file, or `None` where there is none. A file that others can read is refused, as is one of another
/// owner: whoever could write it could choose our key.
pub fn read_private(path: &Path) -> Result<Option<Secret>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(missing) if missing.kind() == ErrorKind::NotFound => return Ok(None),
        Err(other) => return Err(Error::file("read", path)(other)),
    };
    let facts = file.metadata().map_err(Error::file("read", path))?;
    let mode = facts.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::TooOpen { path: path.to_owned(), mode });
    }
    let own = rustix::process::geteuid().as_raw();
    if facts.uid() != own && facts.uid() != 0 {
        return Err(Error::Damaged { path: path.to_owned(), reason: "it belongs to another user" });
    }
    if facts.len() > PRIVATE_FILE_BYTES_MAX {
        return Err(Error::Damaged { path: path.to_owned(), reason: "it is too long" });
    }
    let mut bytes = Vec::new();
    file.take(PRIVATE_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(Error::file("read", path))?;
    Ok(Some(Secret::new(bytes)))
}

/// Writes a secret file with mode 0600, whole or not at all, durable when it returns.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, bytes, 0o600)
}

/// Writes a public file with mode 0644, whole or not at all, durable when it returns.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, bytes, 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    // A crash may have left one; its mode is not to be trusted.
    match fs::remove_file(&beside) {
        Err(other) if other.kind() != ErrorKind::NotFound => {
            return Err(Error::file("replace", &beside)(other));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .map_err(Error::file("create", &beside))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::file("write", &beside))?;
    fs::rename(&beside, path).map_err(Error::file("write", path))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::file("sync", folder))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_file_is_private_from_its_first_moment_and_refused_once_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write_private(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_private(&path).unwrap().unwrap().expose(), b"secret");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read_private(&path), Err(Error::TooOpen { mode: 0o640, .. })));
        assert!(read_private(&folder.path().join("none")).unwrap().is_none());
    }

    #[test]
    fn a_leftover_of_a_crash_does_not_lend_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("key.new"), b"old").unwrap();
        fs::set_permissions(folder.path().join("key.new"), fs::Permissions::from_mode(0o666)).unwrap();
        write_private(&folder.path().join("key"), b"secret").unwrap();
        assert_eq!(fs::metadata(folder.path().join("key")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
