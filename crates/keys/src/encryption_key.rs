//! The key-encryption key (KEK): one file of 256 random bits that wraps every data key.

use std::path::Path;

use async_trait::async_trait;
use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::{Cluster, ClusterId, KeySpec};
use zeroize::Zeroizing;

use crate::private_file::{read_private, write_private};
use crate::secret::fill_random;
use crate::{Binding, DataKey, Error, KeyEncryption, KeyFailure, KeyRing, Sealer, WrappedKey};

const PREFIX: &str = "chitin-kek-1 ";
const ALGORITHM: &str = "AES-256-GCM";
const VERSION: &str = "1";

/// Wraps data keys and derives the keys that seal the cloud's own state.
pub struct KeyEncryptionKey {
    id: String,
    root: Zeroizing<[u8; 32]>,
    wrapper: Sealer,
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

    /// A sealer whose key is good for this purpose only.
    pub fn sealer(&self, purpose: &str) -> Result<Sealer, Error> {
        Sealer::derive(&self.root, &format!("purpose {purpose}"))
    }

    fn context(&self, place: &Binding) -> String {
        format!("{} under {} version {VERSION}", place.context(), self.id)
    }
}

#[async_trait]
impl KeyEncryption for KeyEncryptionKey {
    async fn wrap(&self, key: &DataKey, place: &Binding) -> Result<WrappedKey, KeyFailure> {
        let sealed = self.wrapper.seal(self.context(place).as_bytes(), key.expose());
        let sealed = sealed.map_err(|cause| KeyFailure::Unusable {
            key: KeySpec::root().to_string(),
            reason: cause.to_string(),
        })?;
        Ok(WrappedKey {
            key: KeySpec::root(),
            key_id: self.id.clone(),
            key_version: VERSION.to_owned(),
            algorithm: ALGORITHM.to_owned(),
            wrapped: STANDARD.encode(sealed),
        })
    }

    async fn unwrap(&self, wrapped: &WrappedKey, place: &Binding) -> Result<DataKey, KeyFailure> {
        if wrapped.key_id != self.id || wrapped.key_version != VERSION || wrapped.algorithm != ALGORITHM {
            return Err(KeyFailure::Unusable {
                key: KeySpec::root().to_string(),
                reason: format!(
                    "the data key is wrapped by root key {}, and this cloud has root key {}; restore the key file that \
                     belongs to this data",
                    wrapped.key_id, self.id
                ),
            });
        }
        let does_not_open = || KeyFailure::DoesNotOpen { key: KeySpec::root().to_string() };
        let sealed = STANDARD.decode(&wrapped.wrapped).map_err(|_| does_not_open())?;
        let plain =
            self.wrapper.open(self.context(place).as_bytes(), &sealed).map_err(|_| does_not_open())?;
        DataKey::from_bytes(plain.expose()).ok_or_else(does_not_open)
    }
}

/// The ring of a cloud without keys of customers'.
#[async_trait]
impl KeyRing for KeyEncryptionKey {
    async fn wrap(&self, cluster: &Cluster, key: &DataKey) -> Result<WrappedKey, KeyFailure> {
        KeyEncryption::wrap(self, key, &Binding::Volume(cluster.id)).await
    }

    async fn unwrap(&self, cluster: ClusterId, wrapped: &WrappedKey) -> Result<DataKey, KeyFailure> {
        KeyEncryption::unwrap(self, wrapped, &Binding::Volume(cluster)).await
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

    #[tokio::test]
    async fn a_wrapped_key_opens_for_its_own_cluster_only() {
        let folder = tempfile::tempdir().unwrap();
        let kek = KeyEncryptionKey::open_or_create(&folder.path().join("kek")).unwrap();
        let (place, other) = (Binding::Volume(ClusterId::random()), Binding::Volume(ClusterId::random()));
        let key = DataKey::random();
        let wrapped = KeyEncryption::wrap(&kek, &key, &place).await.unwrap();
        assert_eq!(KeyEncryption::unwrap(&kek, &wrapped, &place).await.unwrap().expose(), key.expose());
        assert!(matches!(
            KeyEncryption::unwrap(&kek, &wrapped, &other).await,
            Err(KeyFailure::DoesNotOpen { .. })
        ));

        let again = KeyEncryptionKey::open_or_create(&folder.path().join("kek")).unwrap();
        assert_eq!(KeyEncryption::unwrap(&again, &wrapped, &place).await.unwrap().expose(), key.expose());
    }

    #[tokio::test]
    async fn another_cloud_s_key_is_named_and_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = KeyEncryptionKey::open_or_create(&folder.path().join("one")).unwrap();
        let second = KeyEncryptionKey::open_or_create(&folder.path().join("two")).unwrap();
        let place = Binding::Volume(ClusterId::random());
        let wrapped = KeyEncryption::wrap(&first, &DataKey::random(), &place).await.unwrap();
        let refused = KeyEncryption::unwrap(&second, &wrapped, &place).await.unwrap_err().to_string();
        assert!(refused.contains(first.id()) && refused.contains(second.id()), "{refused}");
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
