//! Authenticated encryption of small pieces of state, each bound to the place where it lies.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::Zeroizing;

use crate::{Error, Secret};

const VERSION: u8 = 1;
const TAG_LEN: usize = 16;

/// Seals and opens with AES-256-GCM under a key of its own purpose (HKDF-SHA-256 from the key-encryption key).
/// A random 96-bit nonce a seal is safe for 2^32 seals a purpose (NIST SP 800-38D, 8.3).
pub struct Sealer {
    key: RandomizedNonceKey,
    secret: Zeroizing<[u8; 32]>,
}

impl Sealer {
    pub(crate) fn derive(root: &[u8; 32], purpose: &str) -> Result<Self, Error> {
        struct Length;
        impl KeyType for Length {
            fn len(&self) -> usize {
                32
            }
        }
        let mut secret = Zeroizing::new([0; 32]);
        let info: [&[u8]; 2] = [b"chitin sealer v1 ", purpose.as_bytes()];
        Salt::new(HKDF_SHA256, &[])
            .extract(root)
            .expand(&info, Length)
            .and_then(|output| output.fill(secret.as_mut()))
            .map_err(|_| Error::Unsealable)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, secret.as_ref()).map_err(|_| Error::Unsealable)?;
        Ok(Self { key, secret })
    }

    /// Seals the bytes for this context; elsewhere they do not open.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut body = plain.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(context), &mut body)
            .map_err(|_| Error::Unsealable)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + body.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&body);
        Ok(sealed)
    }

    /// Opens what was sealed for this context.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Secret, Error> {
        if sealed.len() < 1 + NONCE_LEN + TAG_LEN || sealed[0] != VERSION {
            return Err(Error::Unsealable);
        }
        let (nonce, body) = sealed[1..].split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::Unsealable)?;
        let mut body = Zeroizing::new(body.to_vec());
        let plain =
            self.key.open_in_place(nonce, Aad::from(context), &mut body).map_err(|_| Error::Unsealable)?;
        Ok(Secret::new(plain.to_vec()))
    }

    /// A stable 32-byte value for the text, which nobody without the key can guess: HMAC-SHA-256.
    pub fn fingerprint(&self, text: &[&[u8]]) -> [u8; 32] {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, self.secret.as_ref());
        let mut mac = aws_lc_rs::hmac::Context::with_key(&key);
        for part in text {
            // Lengths keep ("ab","c") and ("a","bc") apart.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        let mut value = [0; 32];
        value.copy_from_slice(mac.sign().as_ref());
        value
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_open_only_in_their_place_and_unchanged() {
        let sealer = Sealer::derive(&[7; 32], "state").unwrap();
        let sealed = sealer.seal(b"cluster 2", b"verifier").unwrap();
        assert_eq!(sealer.open(b"cluster 2", &sealed).unwrap().expose(), b"verifier");
        assert!(sealer.open(b"cluster 3", &sealed).is_err());
        assert!(Sealer::derive(&[7; 32], "other").unwrap().open(b"cluster 2", &sealed).is_err());
        assert!(Sealer::derive(&[8; 32], "state").unwrap().open(b"cluster 2", &sealed).is_err());
        for position in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[position] ^= 1;
            assert!(sealer.open(b"cluster 2", &changed).is_err(), "byte {position}");
            assert!(sealer.open(b"cluster 2", &sealed[..position]).is_err(), "cut at {position}");
        }
    }

    #[test]
    fn fingerprints_keep_their_parts_apart() {
        let sealer = Sealer::derive(&[7; 32], "state").unwrap();
        assert_ne!(sealer.fingerprint(&[b"ab", b"c"]), sealer.fingerprint(&[b"a", b"bc"]));
        assert_eq!(sealer.fingerprint(&[b"ab"]), sealer.fingerprint(&[b"ab"]));
    }
}
