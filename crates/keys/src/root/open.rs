//! From the file of a root key to the root key.

use std::path::{Path, PathBuf};

use super::file::Text;
use super::{Kept, Protection, Refusal, RootKey, unlocking_key};
use crate::private_file::read_private;
use crate::root::version::Version;
use crate::{Binding, Error, KeyEncryption, Secret, SecretText};

/// The file of a root key that was read and is not unlocked yet.
pub struct KeyFile {
    path: PathBuf,
    text: Text,
}

impl KeyFile {
    /// Reads the file; `None` where there is none. One that others can read is refused.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let Some(bytes) = read_private(path)? else {
            return Ok(None);
        };
        let text = Text::parse(bytes.expose()).map_err(damaged(path))?;
        Ok(Some(Self { path: path.to_owned(), text }))
    }

    /// How it is protected.
    pub fn protection(&self) -> &Protection {
        &self.text.protection
    }

    /// Opens a file that its mode alone protects. For the others the error names what is needed.
    pub fn open(self) -> Result<RootKey, Error> {
        let path = self.path;
        let needs = match &self.text.protection {
            Protection::File => None,
            Protection::Passphrase(_) => Some(Refusal::NeedsPassphrase { path: path.clone() }),
            Protection::Service { wrapped } => {
                Some(Refusal::NeedsService { path: path.clone(), key: wrapped.key.to_string() })
            }
            Protection::Credential { .. } => Some(Refusal::NeedsCredential { path: path.clone() }),
        };
        if let Some(needs) = needs {
            return Err(needs.into());
        }
        let roots = self.text.plain().ok_or_else(|| damaged(&path)("it holds no root key"))?;
        finish(Kept { path, protection: Protection::File, key: None }, roots)
    }

    /// Opens it with the passphrase. Takes a moment by design.
    pub fn open_with_passphrase(self, passphrase: &SecretText) -> Result<RootKey, Error> {
        let Protection::Passphrase(derivation) = &self.text.protection else {
            return self.open();
        };
        let key = derivation.key(passphrase)?;
        let roots =
            self.text.open(&key).ok_or_else(|| Refusal::WrongPassphrase { path: self.path.clone() })?;
        let roots = roots.map_err(damaged(&self.path))?;
        finish(Kept { path: self.path, protection: self.text.protection, key: Some(key) }, roots)
    }

    /// Opens it with the key that a service keeps.
    pub async fn open_by_service(self, service: &dyn KeyEncryption) -> Result<RootKey, Error> {
        let Protection::Service { wrapped } = &self.text.protection else {
            return self.open();
        };
        let unwrapped = service.unwrap(wrapped, &Binding::Root).await;
        let unwrapped = unwrapped.map_err(|cause| Refusal::Service { path: self.path.clone(), cause })?;
        let key = unlocking_key(&unwrapped)?;
        let roots = self.text.open(&key).ok_or_else(|| Refusal::WrongService { path: self.path.clone() })?;
        let roots = roots.map_err(damaged(&self.path))?;
        finish(Kept { path: self.path, protection: self.text.protection, key: Some(key) }, roots)
    }

    /// Opens it with the credential `chitin-kek`, which holds the text of a key file.
    pub fn open_with_credential(self, credential: &Secret) -> Result<RootKey, Error> {
        let Protection::Credential { id } = &self.text.protection else {
            return self.open();
        };
        let wanted = id.clone();
        let root = from_credential(self.path, credential)?;
        if root.id() != wanted {
            return Err(Refusal::OtherCredential { found: root.id(), wanted }.into());
        }
        Ok(root)
    }
}

/// The root key in a credential, for a cloud whose key file is at `path`.
pub(super) fn from_credential(path: PathBuf, credential: &Secret) -> Result<RootKey, Error> {
    let unusable = |reason: &str| Refusal::Credential {
        name: "chitin-kek",
        reason: format!("{reason}; make it from what `chitin key protect --with credential` wrote"),
    };
    let text = Text::parse(credential.expose()).map_err(unusable)?;
    let roots = text.plain().ok_or_else(|| unusable("it is protected once more"))?;
    let mut root = finish(Kept { path, protection: Protection::File, key: None }, roots)?;
    let id = root.id();
    root.kept_mut().protection = Protection::Credential { id };
    Ok(root)
}

fn finish(kept: Kept, roots: Vec<Version>) -> Result<RootKey, Error> {
    let path = kept.path.clone();
    RootKey::new(kept, roots).ok_or_else(|| damaged(&path)("it holds no root key"))
}

fn damaged(path: &Path) -> impl Fn(&'static str) -> Error {
    let path = path.to_owned();
    move |reason| Error::Damaged { path: path.clone(), reason }
}

impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyFile").field("path", &self.path).finish_non_exhaustive()
    }
}
