//! The file that keeps the root key: how it is protected, in a text that says so itself.
//!
//! ```text
//! chitin-kek-2
//! {"protection":"file"}
//! root 2 <64 hex digits>
//! root 1 <64 hex digits>
//! ```
//!
//! Protected, the lines of the roots are sealed (AES-256-GCM; the second line is associated data) and stand as one line of
//! base64. A lone root of version 1 without protection is `chitin-kek-1 <64 hex digits>`, as it always was.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::passphrase::Derivation;
use super::version::Version;
use super::{ROOTS_MAX, Refusal};
use crate::aead::Aead;
use crate::{Secret, WrappedKey};

const FIRST: &str = "chitin-kek-1 ";
const SECOND: &str = "chitin-kek-2";

/// How a root key's file is protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "protection", rename_all = "snake_case")]
pub enum Protection {
    /// By its mode alone.
    File,
    /// By a passphrase.
    Passphrase(Derivation),
    /// By a key that a service keeps.
    Service {
        /// The wrapped data key under which the roots are sealed.
        wrapped: WrappedKey,
    },
    /// It is not here: systemd hands it to the program as the credential `chitin-kek`.
    Credential {
        /// The id of the root that the credential must hold.
        id: String,
    },
}

impl Protection {
    /// A word for people.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Passphrase(_) => "passphrase",
            Self::Service { .. } => "service",
            Self::Credential { .. } => "credential",
        }
    }
}

/// What a root key's file holds, before it is unlocked.
pub(crate) struct Text {
    pub(crate) protection: Protection,
    body: Body,
}

enum Body {
    Roots(Vec<Version>),
    Sealed(Vec<u8>),
    Nothing,
}

impl Text {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
        if let Some(digits) = text.trim_end().strip_prefix(FIRST) {
            let body = Body::Roots(vec![root(1, digits)?]);
            return Ok(Self { protection: Protection::File, body });
        }
        let mut lines = text.lines();
        if lines.next() != Some(SECOND) {
            return Err("it does not begin as a key file");
        }
        let protection: Protection = lines
            .next()
            .and_then(|line| serde_json::from_str(line).ok())
            .ok_or("it does not say how it is protected")?;
        let rest: Vec<&str> = lines.collect();
        let body = match (&protection, &rest[..]) {
            (Protection::File, lines) => Body::Roots(roots(lines)?),
            (Protection::Passphrase(_) | Protection::Service { .. }, [sealed]) => {
                Body::Sealed(STANDARD.decode(sealed).map_err(|_| "its sealed part is not base64")?)
            }
            (Protection::Credential { .. }, []) => Body::Nothing,
            (Protection::Passphrase(_) | Protection::Service { .. } | Protection::Credential { .. }, _) => {
                return Err("it has another number of lines than it should");
            }
        };
        Ok(Self { protection, body })
    }

    /// The roots of a file that its mode alone protects.
    pub(crate) fn plain(self) -> Option<Vec<Version>> {
        match self.body {
            Body::Roots(roots) => Some(roots),
            Body::Sealed(_) | Body::Nothing => None,
        }
    }

    /// The roots under this key; `None` if it is not the one, or the file was changed.
    pub(crate) fn open(&self, key: &[u8; 32]) -> Option<Result<Vec<Version>, &'static str>> {
        let Body::Sealed(sealed) = &self.body else {
            return None;
        };
        let plain = Aead::new(key).ok()?.open(context(&self.protection)?.as_bytes(), sealed).ok()?;
        let Ok(text) = std::str::from_utf8(plain.expose()) else {
            return Some(Err("its sealed part is not text"));
        };
        Some(roots(&text.lines().collect::<Vec<_>>()))
    }
}

/// The text of a file without roots.
pub(crate) fn marker(protection: &Protection) -> Result<Secret, Refusal> {
    let line = line_of(protection).ok_or(Refusal::Unwritable)?;
    Ok(Secret::new(format!("{SECOND}\n{line}\n").into_bytes()))
}

/// The text of a file with these roots, newest first: in plain where there is no key.
pub(crate) fn write<'a>(
    protection: &Protection,
    key: Option<&[u8; 32]>,
    roots: impl Iterator<Item = &'a Version>,
) -> Result<Secret, Refusal> {
    let mut lines = Zeroizing::new(String::with_capacity(ROOTS_MAX * 96));
    let mut count = 0;
    let mut is_first = false;
    for root in roots {
        let digits = Zeroizing::new(hex::encode(root.expose()));
        lines.push_str("root ");
        lines.push_str(&root.number.to_string());
        lines.push(' ');
        lines.push_str(&digits);
        lines.push('\n');
        count += 1;
        is_first = root.number == 1;
    }
    let line = line_of(protection).ok_or(Refusal::Unwritable)?;
    let mut text = Zeroizing::new(String::with_capacity(lines.len() * 2 + line.len() + 256));
    match key {
        // What older versions of the program can read is written as long as it says everything.
        None if count == 1 && is_first => {
            text.push_str(FIRST);
            text.push_str(lines.trim_start_matches("root 1 "));
        }
        None => {
            text.push_str(SECOND);
            text.push('\n');
            text.push_str(&line);
            text.push('\n');
            text.push_str(&lines);
        }
        Some(key) => {
            let mut sealed = Vec::new();
            let context = context(protection).ok_or(Refusal::Unwritable)?;
            Aead::new(key)
                .and_then(|key| key.seal_onto(&mut sealed, context.as_bytes(), lines.as_bytes()))
                .map_err(|_| Refusal::Unwritable)?;
            text.push_str(SECOND);
            text.push('\n');
            text.push_str(&line);
            text.push('\n');
            text.push_str(&STANDARD.encode(sealed));
            text.push('\n');
        }
    }
    Ok(Secret::new(text.as_bytes().to_vec()))
}

fn line_of(protection: &Protection) -> Option<String> {
    serde_json::to_string(protection).ok()
}

fn context(protection: &Protection) -> Option<String> {
    Some(format!("{SECOND}\n{}", line_of(protection)?))
}

fn roots(lines: &[&str]) -> Result<Vec<Version>, &'static str> {
    if lines.is_empty() || lines.len() > ROOTS_MAX {
        return Err("it holds no root key, or too many");
    }
    let mut roots: Vec<Version> = Vec::with_capacity(lines.len());
    for line in lines {
        let mut words = line.split(' ');
        let (Some("root"), Some(number), Some(digits), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err("a line is no root key");
        };
        let number: u32 = number.parse().map_err(|_| "a root key has no number")?;
        if number == 0 || roots.last().is_some_and(|newer| number >= newer.number) {
            return Err("its root keys are not in order");
        }
        roots.push(root(number, digits)?);
    }
    Ok(roots)
}

fn root(number: u32, digits: &str) -> Result<Version, &'static str> {
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(digits, bytes.as_mut()).map_err(|_| "it does not hold 64 hex digits")?;
    Version::new(number, bytes).map_err(|_| "its root key cannot be used")
}
