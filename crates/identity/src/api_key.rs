//! API keys in the form of CockroachDB Cloud's: `CCDB1_<22 letters and digits>_<40 letters and digits>`.

use aws_lc_rs::{constant_time, digest};
use keys::SecretText;

const PREFIX: &str = "CCDB1_";
const ID_LENGTH: usize = 22;
const SECRET_LENGTH: usize = 40;
const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// An API key as its owner holds it.
#[derive(Clone, Debug)]
pub struct ApiKeyText {
    id: String,
    text: SecretText,
}

impl ApiKeyText {
    /// Makes a key with 238 bits of secret randomness.
    pub fn generate() -> Self {
        let id = crate::random_text(ID_LENGTH, ALPHABET);
        let text = SecretText::new(format!("{PREFIX}{id}_{}", crate::random_text(SECRET_LENGTH, ALPHABET)));
        Self { id, text }
    }

    /// Reads a key as a client sends it. Anything of another form is none.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != PREFIX.len() + ID_LENGTH + 1 + SECRET_LENGTH {
            return None;
        }
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let plain =
            |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_alphanumeric());
        (plain(id, ID_LENGTH) && plain(secret, SECRET_LENGTH))
            .then(|| Self { id: id.to_owned(), text: SecretText::new(text.to_owned()) })
    }

    /// The public part, by which the key is found.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole key, for the file that hands it to its owner.
    pub fn expose(&self) -> &str {
        self.text.expose()
    }

    /// What is kept of the key: SHA-256 of its text. Its randomness leaves nothing to guess, so no slow hash is needed.
    pub fn digest(&self) -> [u8; 32] {
        let mut value = [0; 32];
        value.copy_from_slice(digest::digest(&digest::SHA256, self.text.expose().as_bytes()).as_ref());
        value
    }

    /// Whether this is the key whose digest was kept. Constant time.
    pub fn matches(&self, kept: &[u8; 32]) -> bool {
        constant_time::verify_slices_are_equal(&self.digest(), kept).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_matches_its_own_digest_only() {
        let (one, two) = (ApiKeyText::generate(), ApiKeyText::generate());
        let read = ApiKeyText::parse(one.expose()).unwrap();
        assert_eq!(read.id(), one.id());
        assert!(read.matches(&one.digest()));
        assert!(!two.matches(&one.digest()));
    }

    #[test]
    fn other_forms_are_no_keys() {
        let good = ApiKeyText::generate().expose().to_owned();
        for wrong in [
            String::new(),
            good[1..].to_owned(),
            format!("{good}x"),
            good.replace("CCDB1", "CCDB2"),
            good.replace('_', "-"),
            "é".repeat(34) + "x",
        ] {
            assert!(ApiKeyText::parse(&wrong).is_none(), "{wrong}");
        }
    }
}
