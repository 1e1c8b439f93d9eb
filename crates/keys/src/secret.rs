//! Secrets: wiped when dropped, silent when printed.

use std::fmt;

use aws_lc_rs::rand;
use zeroize::Zeroizing;

/// Secret bytes.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for the one place that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Secret text, such as a password.
#[derive(Clone)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText")
    }
}

/// The 512-bit key of one cluster's volume.
///
/// The bytes stay where they are when the key is handed on: a move of the bytes themselves would leave a copy behind that
/// nobody wipes.
pub struct DataKey(Box<Zeroizing<[u8; 64]>>);

impl DataKey {
    /// Draws a new key from the operating system's randomness.
    pub fn random() -> Self {
        let mut key = Self::empty();
        fill_random(&mut key.0[..]);
        key
    }

    /// The bytes, for the kernel or the file system that encrypts with them.
    pub fn expose(&self) -> &[u8; 64] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut key = Self::empty();
        (bytes.len() == key.0.len()).then(|| key.0.copy_from_slice(bytes))?;
        Some(key)
    }

    fn empty() -> Self {
        Self(Box::new(Zeroizing::new([0; 64])))
    }
}

impl Clone for DataKey {
    fn clone(&self) -> Self {
        let mut key = Self::empty();
        key.0.copy_from_slice(self.expose());
        key
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey")
    }
}

/// Fills the buffer with randomness. A machine without randomness must not go on: nothing it makes would be secret.
pub fn fill_random(buffer: &mut [u8]) {
    #[expect(clippy::expect_used, reason = "the library documents that its generator cannot fail on Linux")]
    rand::fill(buffer).expect("the operating system gives randomness");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let text = format!(
            "{:?} {:?} {:?}",
            Secret::new(b"hunter2".to_vec()),
            SecretText::new("hunter2".into()),
            DataKey::random()
        );
        assert_eq!(text, "Secret SecretText DataKey");
    }

    #[test]
    fn two_data_keys_differ() {
        assert_ne!(DataKey::random().expose(), DataKey::random().expose());
    }
}
