//! Texts from files and standard input, and texts of the cloud that go back into files.

use std::io::Read;
use std::path::Path;

use crate::failure::{Failure, Kind};

/// Reads a whole file, or standard input for `-`. What is longer than `bytes_max` is refused before it is sent.
pub fn read(path: &Path, bytes_max: usize) -> Result<String, Failure> {
    let name = path.display();
    let bytes = if path == Path::new("-") {
        take(std::io::stdin().lock(), bytes_max)
    } else {
        std::fs::File::open(path).and_then(|file| take(file, bytes_max))
    };
    let bytes =
        bytes.map_err(|error| Failure::new(Kind::Usage, format!("{name} cannot be read: {error}")))?;
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

/// A text of several lines as a terminal may see it: tabs stay, no other control character can steer it.
pub fn shown(text: &str) -> String {
    let plain: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    plain.trim_end().to_owned()
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
        assert_eq!(shown("host\tall\x1b[2J\n\n"), "host\tall[2J");
    }
}
