//! A key out of a passphrase: Argon2id (RFC 9106).

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Refusal;
use crate::SecretText;
use crate::secret::fill_random;

/// Fewest characters of a passphrase that is newly set. Whoever has the file can guess as fast as they can pay for.
pub const PASSPHRASE_CHARACTERS_MIN: usize = 12;
/// Longest passphrase, in bytes.
pub const PASSPHRASE_BYTES_MAX: usize = 1_024;

/// RFC 9106, section 4, the second recommended option: 64 MiB, three passes, four lanes.
const MEMORY_KIBIBYTES: u32 = 65_536;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// What is read from a file is bounded, so that a file that somebody changed cannot take the machine's memory or time.
const MEMORY_KIBIBYTES_MIN: u32 = 8_192;
const MEMORY_KIBIBYTES_MAX: u32 = 1_048_576;
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 16;
const SALT_BYTES: usize = 16;

/// How a key comes out of a passphrase. Nothing of it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derivation {
    /// Always `argon2id-19`.
    function: String,
    memory_kibibytes: u32,
    passes: u32,
    lanes: u32,
    salt: String,
}

impl Derivation {
    /// With a new salt and today's costs.
    pub(crate) fn random() -> Self {
        let mut salt = [0; SALT_BYTES];
        fill_random(&mut salt);
        Self {
            function: NAME.to_owned(),
            memory_kibibytes: MEMORY_KIBIBYTES,
            passes: PASSES,
            lanes: LANES,
            salt: STANDARD_NO_PAD.encode(salt),
        }
    }

    /// The key; takes about a tenth of a second by design.
    pub(crate) fn key(&self, passphrase: &SecretText) -> Result<Zeroizing<[u8; 32]>, Refusal> {
        let salt = STANDARD_NO_PAD.decode(&self.salt).map_err(|_| Refusal::Derivation)?;
        let is_bounded = self.function == NAME
            && (MEMORY_KIBIBYTES_MIN..=MEMORY_KIBIBYTES_MAX).contains(&self.memory_kibibytes)
            && (1..=PASSES_MAX).contains(&self.passes)
            && (1..=LANES_MAX).contains(&self.lanes)
            && salt.len() == SALT_BYTES;
        if !is_bounded {
            return Err(Refusal::Derivation);
        }
        let mut key = Zeroizing::new([0; 32]);
        let params = Params::new(self.memory_kibibytes, self.passes, self.lanes, Some(key.len()))
            .map_err(|_| Refusal::Derivation)?;
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.expose().as_bytes(), &salt, key.as_mut())
            .map_err(|_| Refusal::Derivation)?;
        Ok(key)
    }
}

const NAME: &str = "argon2id-19";

/// Whether a passphrase may be set.
pub(crate) fn check(passphrase: &SecretText) -> Result<(), Refusal> {
    let text = passphrase.expose();
    if text.chars().count() < PASSPHRASE_CHARACTERS_MIN || text.len() > PASSPHRASE_BYTES_MAX {
        return Err(Refusal::PoorPassphrase);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase() -> SecretText {
        SecretText::new("correct horse battery".to_owned())
    }

    #[test]
    fn costs_beyond_the_bounds_are_refused_before_they_are_paid() {
        let good = Derivation { memory_kibibytes: MEMORY_KIBIBYTES_MIN, passes: 1, ..Derivation::random() };
        // Processor time of this thread, so that nobody beside it counts.
        let spent = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            std::time::Duration::try_from(time).unwrap()
        };
        let began = spent();
        assert!(good.key(&passphrase()).is_ok());
        let cheapest = spent().saturating_sub(began);
        let began = spent();
        let bad = [
            Derivation { memory_kibibytes: u32::MAX, ..good.clone() },
            Derivation { memory_kibibytes: MEMORY_KIBIBYTES_MIN - 1, ..good.clone() },
            Derivation { passes: PASSES_MAX + 1, ..good.clone() },
            Derivation { passes: 0, ..good.clone() },
            Derivation { lanes: LANES_MAX + 1, ..good.clone() },
            Derivation { salt: String::new(), ..good.clone() },
            Derivation { salt: "?".to_owned(), ..good.clone() },
            Derivation { function: "argon2d-19".to_owned(), ..good.clone() },
        ];
        for bad in bad {
            assert!(matches!(bad.key(&passphrase()), Err(Refusal::Derivation)), "{bad:?}");
        }
        let refused = spent().saturating_sub(began);
        assert!(refused < cheapest, "eight refusals took {refused:?}, the cheapest derivation {cheapest:?}");
    }

    #[test]
    fn the_key_is_the_one_that_argon2_s_own_program_makes() {
        // printf 'correct horse battery' | argon2 0123456789abcdef -id -k 8192 -t 2 -p 1 -l 32 -r
        let derivation = Derivation {
            memory_kibibytes: 8_192,
            passes: 2,
            lanes: 1,
            salt: STANDARD_NO_PAD.encode("0123456789abcdef"),
            ..Derivation::random()
        };
        let key = derivation.key(&passphrase()).unwrap();
        assert_eq!(hex::encode(key.as_ref()), ARGON2_SAID);
    }

    const ARGON2_SAID: &str = "fcc8751d131567ba103a16c5475a6d72ecce5a7f5f586e4dba4b0d4fdc1119f3";

    #[test]
    fn short_passphrases_are_not_set() {
        for (text, is_good) in
            [("", false), ("eleven char", false), ("twelve chars", true), ("zwölf zeiche", true)]
        {
            assert_eq!(check(&SecretText::new(text.to_owned())).is_ok(), is_good, "{text}");
        }
        assert!(check(&SecretText::new("x".repeat(PASSPHRASE_BYTES_MAX + 1))).is_err());
    }
}
