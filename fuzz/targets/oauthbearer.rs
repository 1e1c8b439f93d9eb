//! What a client of OAUTHBEARER says.

use wire::oauthbearer::{Initial, check_dummy, parse};

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    if let Ok(Initial::Token(token)) = parse(bytes) {
        assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
        // The same token, said in the plainest way, is read as the same.
        let plain = format!("n,,\x01auth=Bearer {token}\x01\x01");
        assert_eq!(parse(plain.as_bytes()), Ok(Initial::Token(token)));
    }
    assert_eq!(check_dummy(bytes).is_ok(), bytes == b"\x01");
}
