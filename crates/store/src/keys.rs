//! API keys: only a digest of each is kept.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use time::OffsetDateTime;

use crate::file::{Batch, Table};
use crate::{Error, Store};

/// Most API keys of one cloud.
pub const API_KEYS_MAX: usize = 10_000;

/// An API key without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// The public part of the key.
    pub id: String,
    /// Who it is for.
    pub name: String,
    /// SHA-256 of the whole key text. The key has 238 random bits, so no slow hash is needed.
    pub digest: [u8; 32],
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

impl Store {
    /// Keeps an API key; one with the same id is replaced.
    pub fn put_api_key(&self, key: ApiKey) -> Result<(), Error> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        if next.api_keys.len() >= API_KEYS_MAX && !next.api_keys.contains_key(&key.id) {
            return Err(Error::TooMany { what: "API keys", limit: API_KEYS_MAX });
        }
        let mut batch = Batch::growing();
        self.file.put(&mut batch, Table::ApiKeys, &key.id, &key)?;
        self.file.commit(batch)?;
        next.api_keys.insert(key.id.clone(), Arc::new(key));
        self.publish(next);
        Ok(())
    }

    /// Removes an API key; it is refused from now on.
    pub fn remove_api_key(&self, id: &str) -> Result<(), Error> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        if next.api_keys.remove(id).is_none() {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch.remove(Table::ApiKeys, id);
        self.file.commit(batch)?;
        self.publish(next);
        Ok(())
    }
}
