//! The cloud's root key at start: found, unlocked, or made for a new cloud; never made anew for one that has data.

pub mod command;
pub mod passphrase;
pub mod rotation;
mod service;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use keys::{KeyEncryption, KeyFile, Protection, Refusal, RootKey, Secret, SecretText};
use model::KeySpec;

use crate::paths::{Paths, Unsuitable};

/// The whole root key, as the text of a key file.
const CREDENTIAL_KEY: &str = "chitin-kek";
/// The passphrase of the key file.
const CREDENTIAL_PASSPHRASE: &str = "chitin-kek-passphrase";
/// How to reach the key service that wraps the key file.
const CREDENTIAL_SERVICE: &str = "chitin-key-service";
/// A credential is short; a longer one is not ours.
const CREDENTIAL_BYTES_MAX: u64 = 64 * 1024;

/// What unlocks a root key's file that is protected.
#[derive(Args, Clone, Debug, Default)]
pub struct Unlock {
    /// A file (mode 0600) with the passphrase of the root key
    #[arg(long, env = "CHITIN_PASSPHRASE_FILE", value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// A file (JSON, mode 0600) that says how to reach the key service that wraps the root key
    #[arg(long, env = "CHITIN_ROOT_KEY_SERVICE", value_name = "FILE")]
    pub root_key_service: Option<PathBuf>,
    /// What was typed at the terminal.
    #[arg(skip)]
    pub typed: Option<SecretText>,
    /// Where systemd hands credentials over.
    #[arg(skip = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from))]
    pub credentials: Option<PathBuf>,
}

/// Why there is no root key. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] keys::Error),
    /// The data directory cannot be used.
    #[error(transparent)]
    Data(#[from] Unsuitable),
    /// There is data and no key.
    #[error(
        "{} has a cloud's data and no root key; nothing can be opened without it. Put it back from your backup with: chitin key recover FILE",
        data.display()
    )]
    Lost {
        /// The data directory.
        data: PathBuf,
    },
    /// There are two, and only one can be right.
    #[error(
        "there are two root keys: the systemd credential `chitin-kek`, and the file {}; take away the one that does not belong to this cloud, or hand the file over to systemd with: chitin key protect --with credential",
        path.display()
    )]
    Two {
        /// The key file.
        path: PathBuf,
    },
    /// A passphrase cannot be used.
    #[error("{0}")]
    Passphrase(String),
    /// The key service cannot be used.
    #[error("{0}")]
    Service(String),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Key(refusal.into())
    }
}

/// Opens the cloud's root key, or makes one for a new cloud.
pub async fn open(paths: &Paths, unlock: &Unlock) -> Result<RootKey, Error> {
    let path = paths.key_encryption_key();
    let credential = unlock.credential(CREDENTIAL_KEY)?;
    let file = KeyFile::read(&path)?;
    match (file, credential) {
        (None, _) if paths.has_sealed_files() => Err(Error::Lost { data: paths.data().to_owned() }),
        (None, Some(credential)) => Ok(RootKey::create_from_credential(&path, &credential)?),
        (None, None) => Ok(RootKey::create(&path)?),
        (Some(file), Some(credential)) => match file.protection() {
            Protection::Credential { .. } => Ok(file.open_with_credential(&credential)?),
            Protection::File | Protection::Passphrase(_) | Protection::Service { .. } => {
                Err(Error::Two { path })
            }
        },
        (Some(file), None) => open_file(file, unlock).await,
    }
}

/// Opens a key file that is the cloud's own or a backup of it.
async fn open_file(file: KeyFile, unlock: &Unlock) -> Result<RootKey, Error> {
    match file.protection() {
        Protection::File | Protection::Credential { .. } => Ok(file.open()?),
        Protection::Passphrase(_) => match unlock.passphrase()? {
            // Off the threads that serve: it takes a moment and much memory by design.
            Some(passphrase) => {
                let opened = tokio::task::spawn_blocking(move || file.open_with_passphrase(&passphrase));
                Ok(opened.await.map_err(|cause| Error::Passphrase(cause.to_string()))??)
            }
            None => Ok(file.open()?),
        },
        Protection::Service { wrapped } => {
            let spec = wrapped.key.clone();
            match unlock.service(&spec)? {
                Some(service) => Ok(file.open_by_service(&*service).await?),
                None => Ok(file.open()?),
            }
        }
    }
}

impl Unlock {
    /// Asks for the passphrase at the terminal, if the cloud's key file needs one that was not given otherwise.
    /// To be called before there are threads: it waits for a person.
    pub fn ask_if_needed(&mut self, data: &Path) -> Result<(), Error> {
        let is_needed = self.passphrase_file.is_none()
            && self.credential(CREDENTIAL_PASSPHRASE)?.is_none()
            && KeyFile::read(&data.join("kek"))?
                .is_some_and(|file| matches!(file.protection(), Protection::Passphrase(_)));
        if is_needed && passphrase::is_somebody_there() {
            self.typed = Some(passphrase::ask("Passphrase of the root key: ").map_err(Error::Passphrase)?);
        }
        Ok(())
    }

    fn passphrase(&self) -> Result<Option<SecretText>, Error> {
        if let Some(path) = &self.passphrase_file {
            return passphrase::read(path).map(Some);
        }
        if let Some(credential) = self.credential(CREDENTIAL_PASSPHRASE)? {
            return passphrase::from_bytes(&credential).map(Some).ok_or_else(|| {
                Error::Passphrase(format!(
                    "the systemd credential `{CREDENTIAL_PASSPHRASE}` is no passphrase"
                ))
            });
        }
        Ok(self.typed.clone())
    }

    fn service(&self, spec: &KeySpec) -> Result<Option<Arc<dyn KeyEncryption>>, Error> {
        let text = match &self.root_key_service {
            Some(path) => Some(keys::read_private(path)?.ok_or_else(|| {
                Error::Service(format!("there is no file {}; see --root-key-service", path.display()))
            })?),
            None => self.credential(CREDENTIAL_SERVICE)?,
        };
        text.map(|text| service::open(&text, spec)).transpose()
    }

    /// A credential that systemd handed over.
    fn credential(&self, name: &'static str) -> Result<Option<Secret>, Error> {
        use std::io::Read;
        use std::os::unix::fs::MetadataExt;
        let Some(folder) = &self.credentials else {
            return Ok(None);
        };
        let path = folder.join(name);
        let refused = |reason: String| Refusal::Credential { name, reason };
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(refused(cause.to_string()).into()),
        };
        let facts = file.metadata().map_err(|cause| refused(cause.to_string()))?;
        let own = rustix::process::geteuid().as_raw();
        // A service's user reads its credentials by an access list, which shows as the group's bits (systemd.exec(5)).
        if facts.mode() & 0o007 != 0 || (facts.uid() != 0 && facts.uid() != own) {
            return Err(refused(format!("{} can be read by others", path.display())).into());
        }
        if facts.len() > CREDENTIAL_BYTES_MAX {
            return Err(refused("it is too long".to_owned()).into());
        }
        let mut bytes = Vec::new();
        file.take(CREDENTIAL_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|cause| refused(cause.to_string()))?;
        Ok(Some(Secret::new(bytes)))
    }
}
