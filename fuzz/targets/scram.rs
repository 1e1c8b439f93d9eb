//! SCRAM messages of a client against a verifier that nothing fits, and verifiers as text.

use identity::scram::{Exchange, Form, ITERATIONS_MAX, Mechanism, Verifier};

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    let middle = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (first, last) = (&bytes[..middle], bytes.get(middle + 1..).unwrap_or_default());
    for (mechanism, channel) in [
        (Mechanism::Sha256, None),
        (Mechanism::Sha256, Some([7; 32])),
        (Mechanism::Sha256Plus, Some([7; 32])),
    ] {
        let channel = channel.as_ref().map(|data: &[u8; 32]| data.as_slice());
        let nobody = Verifier::stand_in(&[3; 32], Form::default());
        let begun = Exchange::begin(mechanism, first, channel, nobody);
        if let Ok((exchange, _)) = begun {
            assert!(exchange.finish(last).is_err(), "nothing fits a stand-in");
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(verifier) = Verifier::parse(text)
    {
        assert_eq!(Verifier::parse(&verifier.to_string()), Ok(verifier));
        assert!(ITERATIONS_MAX >= 1);
    }
}
