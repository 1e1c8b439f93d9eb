//! Passwords for people and users who did not choose one.

use api::SecretText;

use crate::failure::{Failure, Kind};

/// Without characters that people confuse or that need escaping in a URL or a shell.
const ALPHABET: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789";
/// 24 of 57 characters: 139 bits.
const LENGTH: usize = 24;

/// Makes a password with 139 bits of randomness.
pub fn generate() -> Result<SecretText, Failure> {
    let mut text = String::with_capacity(LENGTH);
    while text.len() < LENGTH {
        let mut byte = [0];
        aws_lc_rs::rand::fill(&mut byte)
            .map_err(|_| Failure::new(Kind::Failed, "the machine gives no randomness"))?;
        // Six bits; a number beyond the alphabet is drawn again, so that every character is equally likely.
        if let Some(character) = ALPHABET.get(usize::from(byte[0] & 63)) {
            text.push(char::from(*character));
        }
    }
    Ok(SecretText::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_never_the_same_and_use_the_whole_alphabet() {
        let all: String = (0..200).map(|_| generate().unwrap().expose().to_owned()).collect();
        assert_eq!(all.len(), 200 * LENGTH);
        assert!(ALPHABET.iter().all(|character| all.contains(char::from(*character))));
        assert_ne!(generate().unwrap().expose(), generate().unwrap().expose());
    }
}
