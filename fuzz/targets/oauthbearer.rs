//! What a client of OAUTHBEARER says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::oauthbearer::{Initial, check_dummy, parse};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Initial::Token(token)) = parse(bytes) {
        assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
        // The same token, said in the plainest way, is read as the same.
        let plain = format!("n,,\x01auth=Bearer {token}\x01\x01");
        assert_eq!(parse(plain.as_bytes()), Ok(Initial::Token(token)));
    }
    assert_eq!(check_dummy(bytes).is_ok(), bytes == b"\x01");
});
