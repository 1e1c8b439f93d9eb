//! Passwords: made for people who did not choose one, and checked when they did.

use keys::SecretText;

/// Shortest password that somebody may choose, in characters.
pub const LENGTH_MIN: usize = 8;
/// Longest password in bytes, as libpq and PostgreSQL's own SCRAM code bound it.
pub const BYTES_MAX: usize = 1_024;

/// Without characters that people confuse or that need escaping in a URL or a shell.
const ALPHABET: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789";
/// 24 of 57 characters: 139 bits.
const GENERATED_LENGTH: usize = 24;

/// Why a password was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is too short.
    #[error("the password is too short: at least {LENGTH_MIN} characters are needed")]
    TooShort,
    /// It is too long.
    #[error("the password is too long: at most {BYTES_MAX} bytes are allowed")]
    TooLong,
    /// It has a zero byte, which no client can send.
    #[error("the password holds a zero byte, which no PostgreSQL client can send")]
    ZeroByte,
}

/// Makes a password with 139 bits of randomness.
pub fn generate() -> SecretText {
    SecretText::new(crate::random_text(GENERATED_LENGTH, ALPHABET))
}

/// Checks a password that somebody chose.
pub fn check(password: &SecretText) -> Result<(), Unfit> {
    let text = password.expose();
    if text.chars().count() < LENGTH_MIN {
        return Err(Unfit::TooShort);
    }
    if text.len() > BYTES_MAX {
        return Err(Unfit::TooLong);
    }
    if text.contains('\0') {
        return Err(Unfit::ZeroByte);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_passwords_are_long_plain_and_different() {
        let (one, two) = (generate(), generate());
        assert_eq!(one.expose().len(), GENERATED_LENGTH);
        assert!(one.expose().bytes().all(|byte| ALPHABET.contains(&byte)));
        assert_ne!(one.expose(), two.expose());
        assert_eq!(check(&one), Ok(()));
    }

    #[test]
    fn chosen_passwords_keep_the_bounds() {
        assert_eq!(check(&SecretText::new("1234567".into())), Err(Unfit::TooShort));
        assert_eq!(check(&SecretText::new("x".repeat(1_025))), Err(Unfit::TooLong));
        assert_eq!(check(&SecretText::new("12345678\0".into())), Err(Unfit::ZeroByte));
        assert_eq!(check(&SecretText::new("pässwörd".into())), Ok(()));
    }
}
