//! The body of a SASL initial response.

use wire::sasl::Initial;

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    if let Ok(initial) = Initial::parse(bytes) {
        assert_eq!(initial.mechanism.len() + 5 + initial.response.len(), bytes.len());
    }
}
