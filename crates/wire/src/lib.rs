//! PostgreSQL's messages, and the PROXY header before them: bytes in, values out, every length bounded. No input or output
//! of its own.
//!
//! Source: PostgreSQL's manual, "Message Formats" (protocol 3.0 to 3.2) and `src/include/libpq/pqcomm.h`.

pub mod backend;
pub mod frame;
pub mod hello;
pub mod oauthbearer;
pub mod password;
pub mod proxy;
pub mod sasl;
pub mod startup;

/// Bytes that do not follow the protocol; the connection ends (SQLSTATE 08P01).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);
