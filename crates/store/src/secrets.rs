//! Secrets of the cloud that stay what they are when the root key changes.

use ::keys::Secret;
use model::KeptSecret;

use crate::file::{Batch, Table};
use crate::{Error, Store};

impl Store {
    /// The secret of this name. Where there is none yet, the given one is kept from now on.
    pub fn kept_secret(&self, name: &'static str, first: &Secret) -> Result<Secret, Error> {
        let _writer = self.write();
        if let Some(kept) = self.file.read::<KeptSecret>(Table::Secrets, name)? {
            let bytes = hex::decode(kept.expose()).map_err(|_| Error::Tampered {
                path: self.path.clone(),
                what: format!("secrets {name} is no secret"),
            })?;
            return Ok(Secret::new(bytes));
        }
        let mut batch = Batch::default();
        let kept = KeptSecret::new(hex::encode(first.expose()));
        self.file.put(&mut batch, Table::Secrets, name, &kept)?;
        self.file.commit(batch)?;
        Ok(first.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::open;

    #[test]
    fn a_secret_is_kept_as_it_was_first() {
        let folder = tempfile::tempdir().unwrap();
        let (first, later) = (Secret::new(vec![1; 32]), Secret::new(vec![2; 32]));
        assert_eq!(open(folder.path()).kept_secret("salts", &first).unwrap().expose(), [1; 32]);
        assert_eq!(open(folder.path()).kept_secret("salts", &later).unwrap().expose(), [1; 32]);
        assert_eq!(open(folder.path()).kept_secret("others", &later).unwrap().expose(), [2; 32]);
        let raw = std::fs::read(folder.path().join("state.redb")).unwrap();
        let text = hex::encode([1; 32]);
        assert!(!raw.windows(64).any(|bytes| bytes == text.as_bytes()));
    }
}
