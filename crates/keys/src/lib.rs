//! Secrets that do not print, the root key, data keys, sealed state, the cloud's own certificates, and those of
//! clients with their revocation.

mod aead;
mod authority;
mod binding;
mod certificate;
pub mod client;
mod fingerprint;
pub mod ocsp;
mod private_file;
mod ring;
mod root;
mod rotating;
mod sealer;
mod secret;
pub mod service;
mod signed;
#[cfg(test)]
mod testing;

pub use authority::{Authority, ROOT_VALIDITY, SERVER_VALIDITY};
pub use binding::{ChannelBinding, Unbindable};
pub use certificate::ServerCertificate;
pub use fingerprint::Fingerprints;
pub use private_file::{read_private, write_atomically, write_private};
pub use ring::{Binding, KeyEncryption, KeyFailure, KeyRing, WrappedKey};
pub use root::{
    Derivation, KeyFile, PASSPHRASE_BYTES_MAX, PASSPHRASE_CHARACTERS_MIN, Protect, Protection, ROOTS_MAX,
    Refusal, RootKey,
};
pub use rotating::RotatingKey;
pub use sealer::Sealer;
pub use secret::{DataKey, Secret, SecretText, fill_random};

use std::path::{Path, PathBuf};

/// What can go wrong with keys and certificates. No variant carries a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("could not {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A secret file is open to others.
    #[error("{} can be read by others (mode {mode:o}); run: chmod 600 {}", path.display(), path.display())]
    TooOpen {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged: {reason}; restore it from your backup of the data directory", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Sealed bytes do not open: another key, another place, or changed bytes.
    #[error("sealed data does not open: it was changed, moved, or sealed with another key")]
    Unsealable,
    /// The root key is not opened or changed.
    #[error(transparent)]
    Root(#[from] Refusal),
    /// A certificate cannot be made or used.
    #[error("certificate: {0}")]
    Certificate(String),
}

impl Error {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}
