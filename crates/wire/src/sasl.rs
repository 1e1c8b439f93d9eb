//! SASL messages of a client (`p`), before it is known.

use crate::Malformed;
use crate::frame::Header;

/// Longest SASL message, header included.
pub const SASL_BYTES_MAX: usize = 4_096;

/// `SASLInitialResponse`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Initial<'a> {
    /// The mechanism that the client chose.
    pub mechanism: &'a [u8],
    /// Its first message.
    pub response: &'a [u8],
}

/// Checks that a header announces a SASL message of sane length, before its body is read.
pub fn expect(header: Header) -> Result<usize, Malformed> {
    expect_up_to(header, SASL_BYTES_MAX)
}

/// Like [`expect`], for answers that may be of another length, such as passwords and tokens. `bytes_max` bounds the body.
pub fn expect_up_to(header: Header, bytes_max: usize) -> Result<usize, Malformed> {
    if header.tag != b'p' {
        return Err(Malformed("expected SASL response"));
    }
    if header.body_bytes > bytes_max {
        return Err(Malformed("invalid length of SASL response"));
    }
    Ok(header.body_bytes)
}

impl<'a> Initial<'a> {
    /// Reads the body of a `SASLInitialResponse`.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let wrong = Malformed("malformed SASL initial response");
        let end = body.iter().position(|byte| *byte == 0).ok_or(wrong)?;
        let (mechanism, rest) = (&body[..end], &body[end + 1..]);
        let (length, response) = rest.split_first_chunk::<4>().ok_or(wrong)?;
        let length = i32::from_be_bytes(*length);
        // -1 means no first message; SCRAM always has one.
        if usize::try_from(length) != Ok(response.len()) {
            return Err(wrong);
        }
        Ok(Self { mechanism, response })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t13_inner_lengths_must_fit() {
        let good = b"SCRAM-SHA-256\0\0\0\0\x03abc";
        let read = Initial::parse(good).unwrap();
        assert_eq!((read.mechanism, read.response), (b"SCRAM-SHA-256".as_slice(), b"abc".as_slice()));
        for wrong in [
            b"".as_slice(),
            b"SCRAM-SHA-256",
            b"SCRAM-SHA-256\0",
            b"SCRAM-SHA-256\0\0\0\0",
            b"SCRAM-SHA-256\0\0\0\0\x04abc",
            b"SCRAM-SHA-256\0\0\0\0\x02abc",
            b"SCRAM-SHA-256\0\xff\xff\xff\xff",
            b"SCRAM-SHA-256\0\x7f\xff\xff\xffabc",
        ] {
            assert!(Initial::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn other_messages_and_long_ones_are_refused_before_they_are_read() {
        assert!(expect(Header { tag: b'Q', body_bytes: 5 }).is_err());
        assert!(expect(Header { tag: b'p', body_bytes: SASL_BYTES_MAX + 1 }).is_err());
        assert_eq!(expect(Header { tag: b'p', body_bytes: 5 }), Ok(5));
        assert_eq!(expect_up_to(Header { tag: b'p', body_bytes: 16_384 }, 16_384), Ok(16_384));
        assert!(expect_up_to(Header { tag: b'p', body_bytes: 16_385 }, 16_384).is_err());
        assert!(expect_up_to(Header { tag: b'Q', body_bytes: 5 }, 16_384).is_err());
    }
}
