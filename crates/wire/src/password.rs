//! `PasswordMessage`: a password or a token in clear, inside TLS.

use crate::Malformed;

/// Longest message, header excluded: a signed token with many groups fits, a flood does not.
pub const PASSWORD_BYTES_MAX: usize = 16 * 1024 + 1;

/// Reads the body: text and its final zero. An empty password is well-formed; whoever checks it refuses it.
pub fn parse(body: &[u8]) -> Result<&str, Malformed> {
    let wrong = Malformed("invalid password packet size");
    let (last, text) = body.split_last().ok_or(wrong)?;
    if *last != 0 || text.contains(&0) {
        return Err(wrong);
    }
    std::str::from_utf8(text).map_err(|_| Malformed("the password is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_ends_with_its_only_zero() {
        assert_eq!(parse(b"secret\0"), Ok("secret"));
        assert_eq!(parse(b"\0"), Ok(""));
        for wrong in [b"".as_slice(), b"secret", b"sec\0ret\0", b"\xff\0"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
