//! AES-256-GCM with random nonces, and keys for one purpose each out of a root key.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::Zeroizing;

use crate::{Error, Secret};

/// Bytes that sealing adds: the nonce before, the tag after.
pub(crate) const OVERHEAD_BYTES: usize = NONCE_LEN + 16;

/// One key. A random 96-bit nonce a seal is safe for 2^32 seals a key (NIST SP 800-38D, 8.3).
pub(crate) struct Aead(RandomizedNonceKey);

impl Aead {
    pub(crate) fn new(key: &[u8; 32]) -> Result<Self, Error> {
        RandomizedNonceKey::new(&AES_256_GCM, key).map(Self).map_err(|_| Error::Unsealable)
    }

    /// Appends the nonce, the encrypted bytes and the tag.
    pub(crate) fn seal_onto(&self, sealed: &mut Vec<u8>, context: &[u8], plain: &[u8]) -> Result<(), Error> {
        let mut body = Vec::with_capacity(plain.len() + OVERHEAD_BYTES);
        body.extend_from_slice(plain);
        let nonce =
            self.0.seal_in_place_append_tag(Aad::from(context), &mut body).map_err(|_| Error::Unsealable)?;
        sealed.reserve(NONCE_LEN + body.len());
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&body);
        Ok(())
    }

    /// Opens what [`Self::seal_onto`] appended, for the same context.
    pub(crate) fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Secret, Error> {
        if sealed.len() < OVERHEAD_BYTES {
            return Err(Error::Unsealable);
        }
        let (nonce, body) = sealed.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::Unsealable)?;
        let mut body = Zeroizing::new(body.to_vec());
        let plain =
            self.0.open_in_place(nonce, Aad::from(context), &mut body).map_err(|_| Error::Unsealable)?;
        Ok(Secret::new(plain.to_vec()))
    }
}

/// A key that is good for one purpose only: HKDF-SHA-256 (RFC 5869) from the root. What names the purpose must differ for
/// each.
pub(crate) fn derive(root: &[u8], purpose: &[&[u8]]) -> Result<Zeroizing<[u8; 32]>, Error> {
    struct Length;
    impl KeyType for Length {
        fn len(&self) -> usize {
            32
        }
    }
    let mut key = Zeroizing::new([0; 32]);
    Salt::new(HKDF_SHA256, &[])
        .extract(root)
        .expand(purpose, Length)
        .and_then(|output| output.fill(key.as_mut()))
        .map_err(|_| Error::Unsealable)?;
    Ok(key)
}
