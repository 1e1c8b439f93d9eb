//! Key services as they are: OpenBao, SoftHSM2, AWS by moto, and a small Google of our own, because none is published.

#![expect(clippy::unwrap_used, reason = "what helps a test may fail as a test does")]

mod answers;
mod aws;
mod gcp;
mod google;
mod pkcs11;
#[path = "../../../../tests/src/ports.rs"]
mod ports;
mod transit;
mod world;
