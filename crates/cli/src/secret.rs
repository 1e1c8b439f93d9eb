//! Secrets from files, or asked for on a terminal without showing them.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use api::{Password, SecretText};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::failure::{Failure, Kind};
use crate::text;

/// Longest secret that is read, in bytes: a service account's key file is the longest.
const SECRET_BYTES_MAX: usize = 64 * 1024;

/// Reads a whole file, or standard input for `-`, without the line's end. A file that others can read is refused, as the
/// cloud refuses such key files: whoever read it already has what it holds.
pub fn read(path: &Path) -> Result<Password, Failure> {
    let whole = text::read_private(path, SECRET_BYTES_MAX)?;
    let line = whole.trim_end_matches(['\n', '\r']);
    if line.is_empty() {
        return Err(Failure::new(Kind::Usage, format!("{} holds no secret", path.display())));
    }
    Ok(Password::new(SecretText::new(line.to_owned())))
}

/// Asks for a line without showing it; without a terminal there is nobody to ask.
pub fn ask(what: &str, option: &str) -> Result<Password, Failure> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Failure::new(
            Kind::Usage,
            format!("{what} is needed, and nobody is there to ask for it"),
        )
        .next(format!("put it into a file that only you can read, and say {option} FILE")));
    }
    write!(std::io::stderr(), "{what}: ")?;
    std::io::stderr().flush()?;
    let silence = Silence::begin()?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX));
    let line_end = |byte: &u8| *byte == b'\n';
    for byte in input.lock().bytes().take(SECRET_BYTES_MAX) {
        let byte = byte?;
        if line_end(&byte) {
            break;
        }
        bytes.push(byte);
    }
    drop(silence);
    writeln!(std::io::stderr())?;
    let typed = std::str::from_utf8(&bytes).unwrap_or_default();
    if typed.trim().is_empty() {
        return Err(Failure::new(Kind::Usage, format!("{what} was left empty; nothing was changed")));
    }
    Ok(Password::new(SecretText::new(typed.trim_end_matches('\r').to_owned())))
}

/// A terminal that does not show what is typed, until this is dropped.
#[derive(Debug)]
pub struct Silence(Termios);

impl Silence {
    /// Switches the echo of standard input off.
    pub fn begin() -> std::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_read_without_the_line_s_end_and_an_empty_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "canary-token\r\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path).unwrap().secret().expose(), "canary-token");
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(read(&path).unwrap_err().kind, Kind::Usage);
        std::fs::write(&path, "x".repeat(SECRET_BYTES_MAX + 1)).unwrap();
        assert!(!read(&path).unwrap_err().to_string().contains("xx"));
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "canary-token\n").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o610] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let refused = read(&path).unwrap_err();
            assert_eq!(refused.kind, Kind::Usage);
            let said = refused.to_string();
            // The words that key files are refused with.
            let words = format!("{} can be read by others (mode {mode:o}); run: chmod 600", path.display());
            assert!(said.contains(&words), "{said}");
            assert!(!said.contains("canary"), "{said}");
        }
        for mode in [0o600, 0o400] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(read(&path).is_ok(), "{mode:o}");
        }
        // By a link it is the same file.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&link).is_err());
    }

    #[test]
    fn nobody_is_asked_without_a_terminal() {
        if !std::io::stdin().is_terminal() {
            let refused = ask("the token", "--token-file").unwrap_err();
            assert!(refused.next.unwrap().contains("--token-file FILE"));
        }
    }
}
