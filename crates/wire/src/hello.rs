//! The first bytes of a connection: a request for TLS, TLS itself, a cancel, or a startup message.

use crate::Malformed;

/// Bytes that are needed to know what a connection wants.
pub const HELLO_BYTES: usize = 8;
/// Longest startup packet, length included (PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`).
pub const STARTUP_BYTES_MAX: usize = 10_000;
/// Longest cancel key, in bytes (protocol 3.2).
pub const CANCEL_KEY_BYTES_MAX: usize = 256;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
/// First byte of a TLS handshake record (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// What the first bytes of a connection ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// A TLS handshake record: direct TLS.
    Tls,
    /// `SSLRequest`: the client waits for one byte.
    SslRequest,
    /// `GSSENCRequest`: the client waits for one byte.
    GssEncRequest,
    /// `CancelRequest`, with this many more bytes: process id and key.
    Cancel {
        /// Bytes that follow the first eight.
        rest: usize,
    },
    /// `StartupMessage`, with this many more bytes of parameters.
    Startup {
        /// Minor version of protocol 3.
        minor: u16,
        /// Bytes that follow the first eight.
        rest: usize,
    },
}

impl Hello {
    /// Whether the connection begins with TLS, known from its first byte.
    pub fn is_tls(first: u8) -> bool {
        first == TLS_HANDSHAKE
    }

    /// Reads the first eight bytes. A claimed length is checked before anybody allocates it.
    pub fn parse(bytes: [u8; HELLO_BYTES]) -> Result<Self, Malformed> {
        if Self::is_tls(bytes[0]) {
            return Ok(Self::Tls);
        }
        let word = |at: usize| bytes[at..].first_chunk::<4>().map_or(0, |word| u32::from_be_bytes(*word));
        let (length, code) = (word(0), word(4));
        let length = usize::try_from(length).map_err(|_| Malformed("invalid length of startup packet"))?;
        if !(HELLO_BYTES..=STARTUP_BYTES_MAX).contains(&length) {
            return Err(Malformed("invalid length of startup packet"));
        }
        let rest = length - HELLO_BYTES;
        match code {
            SSL_REQUEST if rest == 0 => Ok(Self::SslRequest),
            GSSENC_REQUEST if rest == 0 => Ok(Self::GssEncRequest),
            // Process id, then a key of 4 (3.0) to 256 (3.2) bytes.
            CANCEL_REQUEST if (8..=4 + CANCEL_KEY_BYTES_MAX).contains(&rest) => Ok(Self::Cancel { rest }),
            SSL_REQUEST | GSSENC_REQUEST | CANCEL_REQUEST => {
                Err(Malformed("invalid length of startup packet"))
            }
            _ if code >> 16 == 3 => Ok(Self::Startup { minor: (code & 0xffff) as u16, rest }),
            _ => Err(Malformed("unsupported frontend protocol: this server speaks 3.0 to 3.2")),
        }
    }
}

/// What names a running query: `CancelRequest` after its first eight bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelKey {
    /// The process id of `BackendKeyData`.
    pub process_id: u32,
    /// The secret of `BackendKeyData`.
    pub secret: Vec<u8>,
}

impl CancelKey {
    /// Reads what follows the first eight bytes of a cancel request.
    pub fn parse(rest: &[u8]) -> Result<Self, Malformed> {
        let (process_id, secret) =
            rest.split_first_chunk::<4>().ok_or(Malformed("invalid cancel request"))?;
        if secret.len() < 4 || secret.len() > CANCEL_KEY_BYTES_MAX {
            return Err(Malformed("invalid cancel request"));
        }
        Ok(Self { process_id: u32::from_be_bytes(*process_id), secret: secret.to_vec() })
    }

    /// The whole `CancelRequest` message, for the engine.
    pub fn to_request(&self) -> Vec<u8> {
        let length = HELLO_BYTES + 4 + self.secret.len();
        let mut message = Vec::with_capacity(length);
        message.extend_from_slice(&crate::frame::length_field(length));
        message.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
        message.extend_from_slice(&self.process_id.to_be_bytes());
        message.extend_from_slice(&self.secret);
        message
    }
}

/// A cancel key is a credential: whoever has it can stop somebody's query.
impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CancelKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(length: u32, code: u32) -> Result<Hello, Malformed> {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes[4..].copy_from_slice(&code.to_be_bytes());
        Hello::parse(bytes)
    }

    #[test]
    fn each_request_is_known_by_its_code() {
        assert_eq!(hello(8, SSL_REQUEST), Ok(Hello::SslRequest));
        assert_eq!(hello(8, GSSENC_REQUEST), Ok(Hello::GssEncRequest));
        assert_eq!(hello(16, CANCEL_REQUEST), Ok(Hello::Cancel { rest: 8 }));
        assert_eq!(hello(20, 3 << 16), Ok(Hello::Startup { minor: 0, rest: 12 }));
        assert_eq!(hello(20, 3 << 16 | 2), Ok(Hello::Startup { minor: 2, rest: 12 }));
        assert_eq!(Hello::parse([0x16, 3, 1, 0, 0, 0, 0, 0]), Ok(Hello::Tls));
    }

    #[test]
    fn t16_lengths_that_no_client_sends_are_refused() {
        for length in [0, 3, 7, 10_001, 0x7fff_ffff, 0xffff_ffff] {
            // A first byte of 0x16 would be TLS; none of these has it.
            assert!(hello(length, 3 << 16).is_err(), "{length}");
        }
        for version in [0, 2 << 16, 4 << 16, 0x1234_5678] {
            assert!(hello(20, version).is_err(), "{version}");
        }
    }

    #[test]
    fn t20_t63_cancel_lengths_are_bounded() {
        for (length, is_good) in [(12, false), (15, false), (16, true), (44, true), (268, true), (269, false)]
        {
            assert_eq!(hello(length, CANCEL_REQUEST).is_ok(), is_good, "{length}");
        }
        assert!(hello(0x7fff_ffff, CANCEL_REQUEST).is_err());
        assert!(CancelKey::parse(&[0; 7]).is_err());
        assert!(CancelKey::parse(&[0; 261]).is_err());
        let key = CancelKey { process_id: 7, secret: vec![1; 32] };
        assert_eq!(CancelKey::parse(&key.to_request()[8..]), Ok(key));
    }
}
