//! Stable values that nobody without the key can guess.

use aws_lc_rs::hmac;

use crate::Secret;

/// Makes values that depend on a text and a secret: HMAC-SHA-256.
pub struct Fingerprints(hmac::Key);

impl Fingerprints {
    /// With this secret; another one makes other values.
    pub fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.expose()))
    }

    /// The value of these parts. The lengths keep ("ab", "c") and ("a", "bc") apart.
    pub fn of(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = hmac::Context::with_key(&self.0);
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        let mut value = [0; 32];
        value.copy_from_slice(mac.sign().as_ref());
        value
    }
}

impl std::fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fingerprints")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_keep_their_parts_apart_and_depend_on_the_secret() {
        let of = |secret: u8, parts: &[&[u8]]| Fingerprints::new(&Secret::new(vec![secret; 32])).of(parts);
        assert_ne!(of(7, &[b"ab", b"c"]), of(7, &[b"a", b"bc"]));
        assert_eq!(of(7, &[b"ab"]), of(7, &[b"ab"]));
        assert_ne!(of(7, &[b"ab"]), of(8, &[b"ab"]));
    }
}
