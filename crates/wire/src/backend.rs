//! Messages of a server: those that we send, and those of an engine that we must understand.

use crate::Malformed;
use crate::frame::{HEADER_BYTES, length_field};

/// A message under construction.
pub struct Message(Vec<u8>);

impl Message {
    /// Begins a message of this type.
    pub fn new(tag: u8) -> Self {
        Self(vec![tag, 0, 0, 0, 0])
    }

    /// Appends a 32-bit number.
    pub fn put_u32(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    /// Appends bytes as they are.
    pub fn put_bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Appends text and its final zero. A zero inside would end it early, so it ends there.
    pub fn put_text(&mut self, text: &str) {
        self.0.extend(text.bytes().take_while(|byte| *byte != 0));
        self.0.push(0);
    }

    /// The message with its length.
    pub fn finish(mut self) -> Vec<u8> {
        let length = length_field(self.0.len() - 1);
        self.0[1..5].copy_from_slice(&length);
        self.0
    }
}

/// How bad an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The session ends.
    Fatal,
    /// The statement ends.
    Error,
    /// Nothing ends.
    Warning,
    /// Something that people should know.
    Notice,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Fatal => "FATAL",
            Self::Error => "ERROR",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
        }
    }
}

/// What `ErrorResponse` and `NoticeResponse` carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How bad it is.
    pub severity: Severity,
    /// SQLSTATE (PostgreSQL's manual, appendix A).
    pub code: &'static str,
    /// What was refused and why.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

impl Report {
    /// An `ErrorResponse`.
    pub fn to_error(&self) -> Vec<u8> {
        self.encode(b'E')
    }

    /// A `NoticeResponse`.
    pub fn to_notice(&self) -> Vec<u8> {
        self.encode(b'N')
    }

    fn encode(&self, tag: u8) -> Vec<u8> {
        let mut message = Message::new(tag);
        let severity = self.severity.as_str();
        let fields = [
            (b'S', Some(severity)),
            (b'V', Some(severity)),
            (b'C', Some(self.code)),
            (b'M', Some(self.message.as_str())),
            (b'H', self.hint.as_deref()),
        ];
        for (field, text) in fields {
            if let Some(text) = text {
                message.put_bytes(&[field]);
                message.put_text(text);
            }
        }
        message.put_bytes(&[0]);
        message.finish()
    }
}

/// An error of an engine, as far as we use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineError {
    /// SQLSTATE; `XX000` where the engine sent none that can be one.
    pub code: String,
    /// Its text.
    pub message: String,
}

impl EngineError {
    /// Reads the body of an `ErrorResponse`. It never fails: whatever an engine sends is an error (T15).
    pub fn parse(mut body: &[u8]) -> Self {
        let mut error =
            Self { code: "XX000".to_owned(), message: "the engine refused without a reason".to_owned() };
        while let Some((field, rest)) = body.split_first() {
            if *field == 0 {
                break;
            }
            let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
            let text = String::from_utf8_lossy(&rest[..end]);
            match field {
                b'C' if text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                    error.code = text.into_owned();
                }
                b'M' => error.message = text.into_owned(),
                _ => {}
            }
            body = rest.get(end + 1..).unwrap_or_default();
        }
        error
    }
}

/// Longest error that clients take for one (`MAX_ERRLEN` of libpq).
const ERROR_BYTES_MAX: u32 = 30_000;

/// Whether a server's first message begins an error of protocol 2, whose text follows the `E` at once: with that a postmaster
/// says that it cannot start a process, before it knows which protocol it is asked in. As libpq tells it.
pub fn is_protocol_2_error([tag, a, b, c, d]: [u8; HEADER_BYTES]) -> bool {
    tag == b'E' && u32::from_be_bytes([a, b, c, d]) > ERROR_BYTES_MAX
}

/// `AuthenticationOk`.
pub fn authentication_ok() -> Vec<u8> {
    authentication(0, &[])
}

/// `AuthenticationCleartextPassword`.
pub fn authentication_cleartext_password() -> Vec<u8> {
    authentication(3, &[])
}

/// `AuthenticationSASL` with the mechanisms on offer, best first.
pub fn authentication_sasl(mechanisms: &[&str]) -> Vec<u8> {
    let mut names = Vec::new();
    for name in mechanisms {
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    names.push(0);
    authentication(10, &names)
}

/// `AuthenticationSASLContinue`.
pub fn authentication_sasl_continue(data: &[u8]) -> Vec<u8> {
    authentication(11, data)
}

/// `AuthenticationSASLFinal`.
pub fn authentication_sasl_final(data: &[u8]) -> Vec<u8> {
    authentication(12, data)
}

/// `BackendKeyData`.
pub fn key_data(process_id: u32, secret: &[u8]) -> Vec<u8> {
    let mut message = Message::new(b'K');
    message.put_u32(process_id);
    message.put_bytes(secret);
    message.finish()
}

/// The kind of an `Authentication…` message, from its body.
pub fn authentication_kind(body: &[u8]) -> Result<u32, Malformed> {
    body.first_chunk::<4>().map(|kind| u32::from_be_bytes(*kind)).ok_or(Malformed("authentication message"))
}

fn authentication(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut message = Message::new(b'R');
    message.put_u32(kind);
    message.put_bytes(data);
    message.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_their_length() {
        assert_eq!(authentication_ok(), b"R\0\0\0\x08\0\0\0\0");
        assert_eq!(authentication_sasl(&["A", "B"]), b"R\0\0\0\x0d\0\0\0\x0aA\0B\0\0");
        assert_eq!(key_data(7, &[1, 2, 3, 4]), b"K\0\0\0\x0c\0\0\0\x07\x01\x02\x03\x04");
    }

    #[test]
    fn a_report_reads_back_and_text_cannot_smuggle_fields() {
        let report = Report {
            severity: Severity::Fatal,
            code: "28P01",
            message: "no\0CXX000".to_owned(),
            hint: Some("next".to_owned()),
        };
        let read = EngineError::parse(&report.to_error()[5..]);
        assert_eq!((read.code.as_str(), read.message.as_str()), ("28P01", "no"));
    }

    #[test]
    fn t15_an_engine_s_malformed_error_is_still_an_error() {
        for body in [b"".as_slice(), b"\0", b"C", b"C\0", b"Mno end", b"C12345678\0Mx\0", b"\xff\xff\xff"] {
            let read = EngineError::parse(body);
            assert_eq!(read.code, "XX000", "{body:?}");
            assert!(!read.message.is_empty());
        }
    }
}
