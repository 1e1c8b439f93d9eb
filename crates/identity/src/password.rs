//! Passwords: made for people who did not choose one, and checked when they did.

use keys::SecretText;
use zeroize::Zeroizing;
use zxcvbn::{Score, zxcvbn};

/// Shortest password that somebody may choose, in characters.
pub const LENGTH_MIN: usize = 8;
/// Longest password in bytes, as libpq and PostgreSQL's own SCRAM code bound it.
pub const BYTES_MAX: usize = 1_024;

/// Of a longer password only so many characters are looked at when it is guessed: the time to guess grows with the square.
const GUESSED_CHARS_MAX: usize = 100;
/// How many characters a password has at the least besides names that an attacker knows.
const REST_CHARS_MIN: usize = 5;
/// Most names that are looked for in a password, and their longest, in characters.
const WORDS_MAX: usize = 16;
const WORD_CHARS_MAX: usize = 64;

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
    /// It is guessed in fewer than 10⁸ tries, by what zxcvbn knows of how people choose.
    #[error(
        "the password is easily guessed: it is a common one, or made of words, names, dates, repetitions or keys beside \
         each other; choose a longer one, four or more unrelated words for instance, or let one be generated"
    )]
    Common,
}

/// Makes a password with 139 bits of randomness.
pub fn generate() -> SecretText {
    SecretText::new(crate::random_text(GENERATED_LENGTH, ALPHABET))
}

/// Checks a password that somebody chose for this user of this cluster: [`check`], and whether it is easily guessed.
/// `words` are what an attacker knows, such as the user's and the cluster's name; the first 16 are looked at.
///
/// Takes some milliseconds. A password of more than 100 characters is judged by the first 100.
pub fn check_for(password: &SecretText, words: &[&str]) -> Result<(), Unfit> {
    check(password)?;
    let text = password.expose();
    let end = text.char_indices().nth(GUESSED_CHARS_MAX).map_or(text.len(), |(end, _)| end);
    // Names are guessed in parts too: `shop` of `shop-17`.
    let parts = words.iter().flat_map(|word| word.split(|letter: char| !letter.is_alphanumeric()));
    let known: Vec<&str> = words
        .iter()
        .copied()
        .chain(parts)
        .filter(|word| word.len() >= 2 && word.chars().nth(WORD_CHARS_MAX).is_none())
        .take(WORDS_MAX)
        .collect();
    let is_names = rest_without(&text[..end], &known) < REST_CHARS_MIN;
    if is_names || zxcvbn(&text[..end], &known).score() < Score::Three { Err(Unfit::Common) } else { Ok(()) }
}

/// How many characters are left without the words: zxcvbn believes that several of them in a row are hard to guess.
fn rest_without(text: &str, words: &[&str]) -> usize {
    let mut longest: Vec<String> =
        words.iter().filter(|word| word.len() >= 3).map(|word| word.to_lowercase()).collect();
    longest.sort_by_key(|word| std::cmp::Reverse(word.len()));
    let mut rest = Zeroizing::new(text.to_lowercase());
    for word in longest {
        rest = Zeroizing::new(rest.replace(&word, ""));
    }
    rest.chars().count()
}

/// Checks the bounds of a password that somebody chose.
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

    fn judged(text: &str) -> Result<(), Unfit> {
        check_for(&SecretText::new(text.to_owned()), &["maria.muster", "shop-17"])
    }

    #[test]
    fn passwords_that_everybody_tries_first_are_refused() {
        for common in [
            "password",
            "Password1!",
            "P@ssw0rd",
            "12345678",
            "11111111",
            "qwertyuiop",
            "letmein123",
            "iloveyou1",
            "19850312",
            "abcabcabcabc",
            "maria.muster",
            "MariaMuster1",
            "shop-17shop-17",
            "mariashop17",
            "shopMaria2024",
        ] {
            assert_eq!(judged(common), Err(Unfit::Common), "{common}");
        }
        for good in [
            "correct horse battery staple",
            "x7#kQ!m2pL",
            "grüne Tomaten fliegen leise",
            "tr4mway-olive-78",
            "maria-x7#kQ!m2",
        ] {
            assert_eq!(judged(good), Ok(()), "{good}");
        }
        // Those of the tests from outside.
        for (user, cluster, text, is_good) in [
            ("ottokar", "passwords-common", "ottokar1", false),
            ("ottokar", "passwords-common", "ottokarottokar", false),
            ("ottokar", "passwords-common", "passwords-common", false),
            ("ottokar", "passwords-common", "19840101", false),
            ("ottokar", "passwords-common", "1234567890", false),
            ("ottokar", "passwords-common", "aaaaaaaaaaaa", false),
            ("ottokar", "passwords-common", "vrhelt-7okapi-Kanu", true),
            ("ottokar", "passwords-common", "dreizehn Blaumeisen im Regen", true),
            ("ottokar", "passwords-common", "Ωmega-Füße-Zürich-93", true),
            ("ottokar", "passwords-common", &"kq7Zr-p4Xv".repeat(10), true),
            ("app user/1", "shop-one", "canary-password-1", true),
            ("app user/1", "shop-one", "another-one-4711", true),
            ("maria", "shop-one", "long-enough-4711", true),
        ] {
            let verdict = check_for(&SecretText::new(text.to_owned()), &[user, cluster]);
            assert_eq!(verdict.is_ok(), is_good, "{text}");
        }
        assert_eq!(judged("kurz"), Err(Unfit::TooShort));
        assert_eq!(judged(&"x".repeat(1_025)), Err(Unfit::TooLong));
        assert_eq!(judged(generate().expose()), Ok(()));
        let text = Unfit::Common.to_string();
        assert!(text.contains("easily guessed") && text.contains("generated"), "{text}");
    }

    #[test]
    fn a_long_password_is_judged_in_no_time() {
        let start = std::time::Instant::now();
        for hard in ["a".repeat(1_024), "abcdefgh".repeat(128), "äöü".repeat(170), "p@55w0rd1!".repeat(100)]
        {
            let _ = judged(&hard);
        }
        assert_eq!(judged(&"1".repeat(1_000)), Err(Unfit::Common));
        let long = "w".repeat(10_000);
        let words: Vec<&str> = std::iter::repeat_n(long.as_str(), 1_000).collect();
        let _ = check_for(&generate(), &words);
        // Nobody would wait this long, on the slowest machine either.
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "{:?}", start.elapsed());
    }
}
