//! Texts from files and standard input, and texts of the cloud that go back into files.

use std::fmt::Display;
use std::fs::File;
use std::io::{Read, StdinLock};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, fstat};

use crate::failure::{Failure, Kind};

/// Reads a whole file, or standard input for `-`. What is longer than `bytes_max` is refused before it is sent.
pub fn read(path: &Path, bytes_max: usize) -> Result<String, Failure> {
    let from: Box<dyn Read> =
        if path == Path::new("-") { Box::new(std::io::stdin().lock()) } else { Box::new(open(path)?) };
    whole(path, from, bytes_max)
}

/// Like [`read`], and refuses a file that others can read.
pub fn read_private(path: &Path, bytes_max: usize) -> Result<String, Failure> {
    let from: Box<dyn Read> = if path == Path::new("-") {
        Box::new(private_input()?)
    } else {
        // The file that was looked at is the one that is read.
        let file = open(path)?;
        let name = path.display();
        if let Some(mode) = open_to_others(&file).map_err(|error| unreadable(&name, &error))? {
            return Err(Failure::new(
                Kind::Usage,
                format!("{name} can be read by others (mode {mode:o}); run: chmod 600 {name}"),
            ));
        }
        Box::new(file)
    };
    whole(path, from, bytes_max)
}

/// Standard input, for a secret: a file that was put there and that others can read is refused.
pub fn private_input() -> Result<StdinLock<'static>, Failure> {
    let input = std::io::stdin();
    if let Some(mode) = open_to_others(&input).map_err(|error| unreadable(&"-", &error))? {
        return Err(Failure::new(
            Kind::Usage,
            format!("the file on standard input can be read by others (mode {mode:o}); run: chmod 600 FILE"),
        ));
    }
    Ok(input.lock())
}

/// The mode of a file that others than its owner can read or write. A pipe or a terminal has none that would say who reads
/// what goes through it.
fn open_to_others(file: impl AsFd) -> rustix::io::Result<Option<u32>> {
    let facts = fstat(file)?;
    let mode = facts.st_mode & 0o777;
    Ok((FileType::from_raw_mode(facts.st_mode).is_file() && mode & 0o077 != 0).then_some(mode))
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| unreadable(&path.display(), &error))
}

fn unreadable(name: &dyn Display, error: &dyn Display) -> Failure {
    Failure::new(Kind::Usage, format!("{name} cannot be read: {error}"))
}

fn whole(path: &Path, from: impl Read, bytes_max: usize) -> Result<String, Failure> {
    let name = path.display();
    let bytes = take(from, bytes_max).map_err(|error| unreadable(&name, &error))?;
    if bytes.len() > bytes_max {
        return Err(Failure::new(Kind::Usage, format!("{name} is longer than {bytes_max} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| {
        Failure::new(Kind::Usage, format!("{name} is not text")).next(
            "certificates and revocation lists are taken in PEM; openssl x509 or crl -outform PEM makes it",
        )
    })
}

fn take(from: impl Read, bytes_max: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    from.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A text of several lines as a terminal may see it: lines and tabs stay, nothing else in it can steer the terminal.
pub fn shown(text: &str) -> String {
    model::escaped_but(text.trim_end(), &['\n', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rules");
        std::fs::write(&path, "host all all all cert\n").unwrap();
        assert_eq!(read(&path, 22).unwrap(), "host all all all cert\n");
        assert_eq!(read(&path, 21).unwrap_err().kind, Kind::Usage);
        std::fs::write(&path, [0x30, 0x82, 0xff]).unwrap();
        assert!(read(&path, 100).unwrap_err().next.unwrap().contains("PEM"));
        assert_eq!(read(&folder.path().join("none"), 100).unwrap_err().kind, Kind::Usage);
    }

    #[test]
    fn a_text_keeps_its_columns_and_cannot_steer_the_terminal() {
        assert_eq!(shown("host\tall\x1b[2J\n\n"), "host\tall\\u{1b}[2J");
    }
}
