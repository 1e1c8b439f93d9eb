//! The key-encryption key (KEK): one file of 256 random bits that wraps every data key.

use std::path::Path;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::ClusterId;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::private_file::{read_private, write_private};
use crate::secret::fill_random;
use crate::{DataKey, Error, Sealer};

const PREFIX: &str = "chitin-kek-1 ";
const ALGORITHM: &str = "AES-256-GCM";

/// Wraps data keys and derives the keys that seal the cloud's own state.
pub struct KeyEncryptionKey {
    id: String,
    root: Zeroizing<[u8; 32]>,
    wrapper: Sealer,
}

/// A data key that only its key-encryption key can open, and only for its own cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// The key-encryption key's id.
    pub key_id: String,
    /// The key-encryption key's version.
    pub key_version: u32,
    /// How the data key is wrapped.
    pub algorithm: String,
    /// The wrapped key in base64.
    pub wrapped: String,
}

impl KeyEncryptionKey {
    /// Opens the key file, or makes it (mode 0600) where there is none. A file that others can read is refused.
    pub fn open_or_create(path: &Path) -> Result<Self, Error> {
        if let Some(text) = read_private(path)? {
            let damaged = |reason| Error::Damaged { path: path.to_owned(), reason };
            let text = std::str::from_utf8(text.expose()).map_err(|_| damaged("it is not text"))?;
            let digits = text
                .trim_end()
                .strip_prefix(PREFIX)
                .ok_or_else(|| damaged("it does not begin as a key file"))?;
            let mut root = Zeroizing::new([0; 32]);
            hex::decode_to_slice(digits, root.as_mut())
                .map_err(|_| damaged("it does not hold 64 hex digits"))?;
            return Self::from_root(root);
        }
        let mut root = Zeroizing::new([0; 32]);
        fill_random(root.as_mut());
        let text = Zeroizing::new(format!("{PREFIX}{}\n", hex::encode(root.as_ref())));
        write_private(path, text.as_bytes())?;
        Self::from_root(root)
    }

    fn from_root(root: Zeroizing<[u8; 32]>) -> Result<Self, Error> {
        let wrapper = Sealer::derive(&root, "data keys")?;
        let mut named = Zeroizing::new(b"chitin kek id".to_vec());
        named.extend_from_slice(root.as_ref());
        let id = hex::encode(&digest::digest(&digest::SHA256, &named).as_ref()[..8]);
        Ok(Self { id, root, wrapper })
    }

    /// A name for the key that does not give it away.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Wraps a data key for one cluster; it does not open for another.
    pub fn wrap(&self, key: &DataKey, cluster: ClusterId) -> Result<WrappedKey, Error> {
        let sealed = self.wrapper.seal(self.context(cluster).as_bytes(), key.expose())?;
        Ok(WrappedKey {
            key_id: self.id.clone(),
            key_version: 1,
            algorithm: ALGORITHM.to_owned(),
            wrapped: STANDARD.encode(sealed),
        })
    }

    /// Opens a wrapped data key of this cluster.
    pub fn unwrap(&self, wrapped: &WrappedKey, cluster: ClusterId) -> Result<DataKey, Error> {
        if wrapped.key_id != self.id || wrapped.key_version != 1 || wrapped.algorithm != ALGORITHM {
            return Err(Error::OtherKey { wanted: wrapped.key_id.clone(), have: self.id.clone() });
        }
        let sealed = STANDARD.decode(&wrapped.wrapped).map_err(|_| Error::Unsealable)?;
        let plain = self.wrapper.open(self.context(cluster).as_bytes(), &sealed)?;
        DataKey::from_bytes(plain.expose()).ok_or(Error::Unsealable)
    }

    /// A sealer whose key is good for this purpose only.
    pub fn sealer(&self, purpose: &str) -> Result<Sealer, Error> {
        Sealer::derive(&self.root, &format!("purpose {purpose}"))
    }

    fn context(&self, cluster: ClusterId) -> String {
        format!("data key of cluster {cluster} under {} version 1", self.id)
    }
}

impl std::fmt::Debug for KeyEncryptionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyEncryptionKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_opens_for_its_own_cluster_only() {
        let folder = tempfile::tempdir().unwrap();
        let kek = KeyEncryptionKey::open_or_create(&folder.path().join("kek")).unwrap();
        let (cluster, other) = (ClusterId::random(), ClusterId::random());
        let key = DataKey::random();
        let wrapped = kek.wrap(&key, cluster).unwrap();
        assert_eq!(kek.unwrap(&wrapped, cluster).unwrap().expose(), key.expose());
        assert!(matches!(kek.unwrap(&wrapped, other), Err(Error::Unsealable)));

        let again = KeyEncryptionKey::open_or_create(&folder.path().join("kek")).unwrap();
        assert_eq!(again.unwrap(&wrapped, cluster).unwrap().expose(), key.expose());
    }

    #[test]
    fn another_cloud_s_key_is_named_and_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = KeyEncryptionKey::open_or_create(&folder.path().join("one")).unwrap();
        let second = KeyEncryptionKey::open_or_create(&folder.path().join("two")).unwrap();
        let cluster = ClusterId::random();
        let wrapped = first.wrap(&DataKey::random(), cluster).unwrap();
        assert!(matches!(second.unwrap(&wrapped, cluster), Err(Error::OtherKey { .. })));
    }

    #[test]
    fn a_damaged_key_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kek");
        for damaged in ["", "chitin-kek-1 00", "chitin-kek-1 zz", "hello"] {
            write_private(&path, damaged.as_bytes()).unwrap();
            assert!(
                matches!(KeyEncryptionKey::open_or_create(&path), Err(Error::Damaged { .. })),
                "{damaged}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
        }
    }
}
