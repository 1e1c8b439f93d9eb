//! Why a root key is not opened or changed. Each text says what to do, and none holds a secret.

use std::path::PathBuf;

use super::passphrase::PASSPHRASE_CHARACTERS_MIN;
use crate::KeyFailure;

/// Why a root key is not opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A passphrase is needed and there is none.
    #[error(
        "the root key in {} is protected by a passphrase, and none was given; name a file that holds it with --passphrase-file, hand it over as the systemd credential `chitin-kek-passphrase`, or start on a terminal",
        path.display()
    )]
    NeedsPassphrase {
        /// The key file.
        path: PathBuf,
    },
    /// It does not open.
    #[error(
        "the root key in {} does not open: the passphrase is another one, or the file was changed; try again, or put your backup back with: chitin key recover FILE",
        path.display()
    )]
    WrongPassphrase {
        /// The key file.
        path: PathBuf,
    },
    /// A key service is needed and none was named.
    #[error(
        "the root key in {} is wrapped by {key}; name the file that says how to reach it with --root-key-service, or hand it over as the systemd credential `chitin-key-service`",
        path.display()
    )]
    NeedsService {
        /// The key file.
        path: PathBuf,
        /// Which key.
        key: String,
    },
    /// The service does not unwrap it.
    #[error(
        "the root key in {} stays locked: {cause}. Let the key be used again there, or put your backup back with: chitin key recover FILE",
        path.display()
    )]
    Service {
        /// The key file.
        path: PathBuf,
        /// What the service said.
        cause: KeyFailure,
    },
    /// What the service unwrapped does not open the file.
    #[error(
        "the root key in {} does not open with what the key service unwrapped: the file was changed; put your backup back with: chitin key recover FILE",
        path.display()
    )]
    WrongService {
        /// The key file.
        path: PathBuf,
    },
    /// A service was to wrap the root key and did not.
    #[error("the root key was not wrapped and stays protected as it was: {0}")]
    NotWrapped(KeyFailure),
    /// The credential is missing.
    #[error(
        "the root key of this cloud is the systemd credential `chitin-kek`, which was not handed over; start Chitin as the service with LoadCredentialEncrypted=chitin-kek, or put your backup back with: chitin key recover FILE (move {} away first)",
        path.display()
    )]
    NeedsCredential {
        /// The key file.
        path: PathBuf,
    },
    /// The credential holds another cloud's key.
    #[error(
        "the systemd credential `chitin-kek` holds root key {found}, and this cloud has root key {wanted}; hand over the right one"
    )]
    OtherCredential {
        /// What it holds.
        found: String,
        /// What it should.
        wanted: String,
    },
    /// The credential cannot be used.
    #[error("the systemd credential `{name}` cannot be used: {reason}")]
    Credential {
        /// Which.
        name: &'static str,
        /// Why not, and what to do.
        reason: String,
    },
    /// A credential cannot be written.
    #[error(
        "the root key is a systemd credential, which Chitin cannot write; stop the cloud, run `chitin key protect --with file`, start it and rotate, then protect it by a credential again"
    )]
    InCredential,
    /// The costs in the file are not ours.
    #[error(
        "the way from the passphrase to the key is not one that Chitin writes: the file was changed; put your backup back with: chitin key recover FILE"
    )]
    Derivation,
    /// A passphrase that is easily guessed.
    #[error(
        "the passphrase is too short or too long; take {PASSPHRASE_CHARACTERS_MIN} characters or more, for instance five words drawn by chance"
    )]
    PoorPassphrase,
    /// Too many versions are still in use.
    #[error(
        "the root key has as many versions in use as can be kept; wait until every cluster is under the newest one (`chitin key list` shows it)"
    )]
    TooManyVersions,
    /// The library refused.
    #[error("the root key could not be made ready for its file; nothing was changed")]
    Unwritable,
}
