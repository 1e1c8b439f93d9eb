//! The first bytes of a connection, and what follows a cancel request's first eight.

use wire::hello::{CANCEL_KEY_BYTES_MAX, CancelKey, HELLO_BYTES, Hello, STARTUP_BYTES_MAX};

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    if let Some(first) = bytes.first_chunk::<HELLO_BYTES>() {
        match Hello::parse(*first) {
            Ok(Hello::Startup { rest, .. }) => assert!(rest + HELLO_BYTES <= STARTUP_BYTES_MAX),
            Ok(Hello::Cancel { rest }) => assert!(rest <= CANCEL_KEY_BYTES_MAX + 4),
            Ok(Hello::Tls) => assert!(Hello::is_tls(first[0])),
            Ok(Hello::SslRequest | Hello::GssEncRequest) | Err(_) => {}
        }
    }
    if let Ok(key) = CancelKey::parse(bytes) {
        assert_eq!(CancelKey::parse(&key.to_request()[HELLO_BYTES..]), Ok(key));
    }
}
