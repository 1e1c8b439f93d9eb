//! Startup parameters, and an engine's error message.

use wire::backend::EngineError;
use wire::hello::HELLO_BYTES;
use wire::startup::{Startup, encode};

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    if let Some((minor, rest)) = bytes.split_first()
        && let Ok(startup) = Startup::parse(u16::from(*minor), rest)
    {
        assert!(startup.minor() <= 2);
        let _ = startup.negotiation();
        let plain: Vec<(&str, &str)> = startup.parameters().collect();
        let again = Startup::parse(0, &encode(plain.iter().copied())[HELLO_BYTES..]);
        // What we send on to an engine reads back as the same parameters.
        assert!(again.is_ok_and(|again| again.parameters().eq(plain.iter().copied())));
    }
    let error = EngineError::parse(bytes);
    assert_eq!(error.code.len(), 5);
}
