//! The body of a SASL initial response.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::sasl::Initial;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(initial) = Initial::parse(bytes) {
        assert_eq!(initial.mechanism.len() + 5 + initial.response.len(), bytes.len());
    }
});
