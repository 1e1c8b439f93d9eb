//! Passphrases: from a file that nobody else can read, or typed without an echo. Never from an argument or the
//! environment, which others on the machine can read.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use cli::Silence;
use keys::{PASSPHRASE_BYTES_MAX, Secret, SecretText};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zeroize::Zeroizing;

use super::Error;

/// For a person to type a line.
const TYPING_MAX: Duration = Duration::from_secs(300);

/// Whether somebody can be asked.
pub fn is_somebody_there() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Reads a passphrase from a file. One that others can read is refused. One line end at its end does not count.
pub fn read(path: &Path) -> Result<SecretText, Error> {
    let bytes = keys::read_private(path)?.ok_or_else(|| {
        Error::Passphrase(format!("there is no passphrase file {}; see --passphrase-file", path.display()))
    })?;
    from_bytes(&bytes).ok_or_else(|| {
        Error::Passphrase(format!(
            "{} holds no passphrase: one line of text of at most {PASSPHRASE_BYTES_MAX} bytes",
            path.display()
        ))
    })
}

/// One line of text.
pub fn from_bytes(bytes: &Secret) -> Option<SecretText> {
    let text = std::str::from_utf8(bytes.expose()).ok()?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    let is_line = !text.is_empty() && text.len() <= PASSPHRASE_BYTES_MAX && !text.contains(['\n', '\0']);
    is_line.then(|| SecretText::new(text.to_owned()))
}

/// Asks at the terminal, without an echo.
pub fn ask(question: &str) -> Result<SecretText, String> {
    let stdin = std::io::stdin();
    let _silence =
        Silence::begin().map_err(|cause| format!("the terminal cannot be made silent: {cause}"))?;
    let mut error = std::io::stderr();
    let _ = write!(error, "{question}").and_then(|()| error.flush());
    let limit = Timespec { tv_sec: TYPING_MAX.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
    let mut waiting = [PollFd::new(&stdin, PollFlags::IN)];
    if poll(&mut waiting, Some(&limit)).map_err(|cause| cause.to_string())? == 0 {
        return Err("nobody typed a passphrase within five minutes".to_owned());
    }
    let mut line = Zeroizing::new(String::with_capacity(PASSPHRASE_BYTES_MAX + 2));
    stdin.lock().read_line(&mut line).map_err(|cause| format!("the terminal could not be read: {cause}"))?;
    let _ = writeln!(error);
    from_bytes(&Secret::new(line.as_bytes().to_vec())).ok_or_else(|| "that is no passphrase".to_owned())
}

/// Asks twice, for a passphrase that is newly set.
pub fn ask_twice() -> Result<SecretText, String> {
    let first = ask("New passphrase: ")?;
    let second = ask("The same again: ")?;
    if first.expose() == second.expose() {
        Ok(first)
    } else {
        Err("the two passphrases differ; nothing was changed".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_passphrase_file_is_private_and_holds_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        for (text, wanted) in [
            ("correct horse\n", Some("correct horse")),
            ("correct horse\r\n", Some("correct horse")),
            ("correct horse", Some("correct horse")),
            (" spaces count ", Some(" spaces count ")),
            ("", None),
            ("\n", None),
            ("two\nlines\n", None),
        ] {
            keys::write_private(&path, text.as_bytes()).unwrap();
            assert_eq!(
                read(&path).ok().map(|read| read.expose().to_owned()),
                wanted.map(str::to_owned),
                "{text:?}"
            );
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod 600"));
        assert!(read(&folder.path().join("none")).is_err());
        keys::write_private(&path, &vec![b'x'; PASSPHRASE_BYTES_MAX + 1]).unwrap();
        assert!(read(&path).is_err());
    }
}
