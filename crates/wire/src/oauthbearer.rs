//! OAUTHBEARER's messages (RFC 7628), as PostgreSQL 18 speaks them (`src/backend/libpq/auth-oauth.c`).

use std::fmt::Write as _;

use crate::Malformed;

/// The mechanism's name in SASL.
pub const MECHANISM: &str = "OAUTHBEARER";

/// Separates the fields (RFC 7628, section 3.1: `kvsep`).
const SEPARATOR: char = '\x01';
/// No channel binding and no authorization identity. OAUTHBEARER knows none, and who a client is says its token alone.
const HEADER: &str = "n,,";

/// What a client begins with. Its token is a secret, so it does not print.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Initial<'a> {
    /// The client has no token and asks where to get one.
    Discovery,
    /// A bearer token (RFC 6750, section 2.1), not empty; its length is bounded by the message's.
    Token(&'a str),
}

impl std::fmt::Debug for Initial<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Discovery => "Discovery",
            Self::Token(_) => "Token",
        })
    }
}

/// Reads the client's first message: `n,,^Aauth=Bearer TOKEN^A^A`, where `^A` is the byte 1. Fields with other names are
/// skipped (RFC 7628, section 3.1); a second `auth` is refused, because two readers could choose differently.
pub fn parse(message: &[u8]) -> Result<Initial<'_>, Malformed> {
    let wrong = Malformed("malformed OAUTHBEARER message");
    let text = std::str::from_utf8(message).map_err(|_| wrong)?;
    match text.as_bytes().first() {
        Some(b'p' | b'y') => return Err(Malformed("OAUTHBEARER does not support channel binding")),
        Some(b'n') => {}
        Some(_) | None => return Err(wrong),
    }
    if text.starts_with("n,a=") {
        return Err(Malformed("client uses authorization identity, but it is not supported"));
    }
    let fields = text.strip_prefix(HEADER).and_then(|rest| rest.strip_prefix(SEPARATOR)).ok_or(wrong)?;
    // Each field ends with a separator, and one more ends the message.
    let fields = fields.strip_suffix(SEPARATOR).ok_or(wrong)?;
    let mut found = None;
    for field in fields.split_terminator(SEPARATOR) {
        let (name, value) = field.split_once('=').ok_or(wrong)?;
        if name.is_empty()
            || !name.bytes().all(|byte| byte.is_ascii_alphabetic())
            || !value.bytes().all(is_value)
        {
            return Err(wrong);
        }
        if name == "auth" && found.replace(value).is_some() {
            return Err(Malformed("OAUTHBEARER message has several auth values"));
        }
    }
    if !fields.is_empty() && !fields.ends_with(SEPARATOR) {
        return Err(wrong);
    }
    match found {
        None => Err(Malformed("OAUTHBEARER message does not contain an auth value")),
        Some("") => Ok(Initial::Discovery),
        Some(credentials) => token(credentials).map(Initial::Token),
    }
}

/// RFC 7628, section 3.1: printable ASCII, spaces, tabs and line ends.
fn is_value(byte: u8) -> bool {
    matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n')
}

/// The token after the scheme's name, which is compared without case (RFC 9110, section 11.1).
fn token(credentials: &str) -> Result<&str, Malformed> {
    let wrong = Malformed("malformed OAuth bearer token");
    let (scheme, rest) = credentials.split_once(' ').ok_or(wrong)?;
    let token = rest.trim_start_matches(' ');
    // RFC 6750, section 2.1: `b64token`.
    let plain = token.trim_end_matches('=');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    let is_good = scheme.eq_ignore_ascii_case("Bearer") && !plain.is_empty() && plain.bytes().all(is_plain);
    is_good.then_some(token).ok_or(wrong)
}

/// The server's refusal (RFC 7628, section 3.2.2), in JSON: where to get a token that would do, and with which scopes
/// (separated by spaces). `configuration` is the URL of a `.well-known/openid-configuration`.
pub fn failure(configuration: Option<&str>, scope: Option<&str>) -> String {
    let mut json = String::from(r#"{"status":"invalid_token""#);
    for (name, value) in [("openid-configuration", configuration), ("scope", scope)] {
        if let Some(value) = value {
            json.push_str(",\"");
            json.push_str(name);
            json.push_str("\":\"");
            escape(&mut json, value);
            json.push('"');
        }
    }
    json.push('}');
    json
}

fn escape(json: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '"' | '\\' => json.extend(['\\', character]),
            control if control.is_control() => {
                // Infallible: the target is a string.
                let _ = write!(json, "\\u{:04x}", u32::from(control));
            }
            other => json.push(other),
        }
    }
}

/// Checks what a client must say to a [`failure`] (RFC 7628, section 3.2.3): one separator and nothing else.
pub fn check_dummy(message: &[u8]) -> Result<(), Malformed> {
    if message == b"\x01" {
        Ok(())
    } else {
        Err(Malformed("malformed OAUTHBEARER message: client did not send a kvsep response"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_libpq_sends_it() {
        let token = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln";
        let message = format!("n,,\x01auth=Bearer {token}\x01\x01");
        assert_eq!(parse(message.as_bytes()), Ok(Initial::Token(token)));
        // The example of RFC 7628, section 4.1, without its authorization identity.
        let long = b"n,,\x01host=server.example.com\x01port=143\x01auth=bearer  vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01";
        assert_eq!(parse(long), Ok(Initial::Token("vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==")));
    }

    #[test]
    fn an_empty_auth_asks_for_discovery() {
        assert_eq!(parse(b"n,,\x01auth=\x01\x01"), Ok(Initial::Discovery));
    }

    #[test]
    fn messages_of_another_form_are_refused() {
        for wrong in [
            b"".as_slice(),
            b"n",
            b"n,,",
            b"n,,\x01",
            b"n,,\x01\x01",
            b"n,,\x01\x01\x01",
            b"n,,\x01auth=Bearer abc",
            b"n,,\x01auth=Bearer abc\x01",
            b"n,,auth=Bearer abc\x01\x01",
            b"n,,\x01auth=Bearer abc\x01\x01\x01",
            b"n,,\x01auth=Bearer abc\x01\x01rest",
            b"n,,\x01auth=Bearer abc\x01\x01host=a\x01\x01",
            b"n,,\x01auth=Bearer\x01\x01",
            b"n,,\x01auth=Bearer \x01\x01",
            b"n,,\x01auth=Bearer ==\x01\x01",
            b"n,,\x01auth=Bearer a=b\x01\x01",
            b"n,,\x01auth=Bearer a b\x01\x01",
            b"n,,\x01auth=Basic abc\x01\x01",
            b"n,,\x01auth=abc\x01\x01",
            b"n,,\x01auth\x01\x01",
            b"n,,\x01=x\x01auth=Bearer abc\x01\x01",
            b"n,,\x01a1=x\x01auth=Bearer abc\x01\x01",
            b"n,,\x01host=a\x01\x01",
            b"n,,\x01host=a\0b\x01auth=Bearer abc\x01\x01",
            b"n,,\x01auth=Bearer \xff\x01\x01",
            b"n,,\x01auth=Bearer \xc3\xa4\x01\x01",
            b"x,,\x01auth=Bearer abc\x01\x01",
        ] {
            assert!(parse(wrong).is_err(), "{:?}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn two_tokens_in_one_message_are_refused() {
        assert!(parse(b"n,,\x01auth=Bearer abc\x01auth=Bearer def\x01\x01").is_err());
        assert!(parse(b"n,,\x01auth=\x01auth=Bearer def\x01\x01").is_err());
    }

    #[test]
    fn t35_identities_beside_the_token_and_channel_bindings_are_refused() {
        for wrong in [
            b"n,a=root,\x01auth=Bearer abc\x01\x01".as_slice(),
            b"y,,\x01auth=Bearer abc\x01\x01",
            b"p=tls-exporter,,\x01auth=Bearer abc\x01\x01",
        ] {
            assert!(parse(wrong).is_err());
        }
    }

    #[test]
    fn t43_tokens_do_not_print() {
        assert_eq!(format!("{:?}", parse(b"n,,\x01auth=Bearer abc\x01\x01")), "Ok(Token)");
    }

    #[test]
    fn refusals_are_json() {
        assert_eq!(failure(None, None), r#"{"status":"invalid_token"}"#);
        assert_eq!(
            failure(Some("https://a.example/.well-known/openid-configuration"), Some("openid \"x\\\n")),
            r#"{"status":"invalid_token","openid-configuration":"https://a.example/.well-known/openid-configuration","scope":"openid \"x\\\u000a"}"#
        );
    }

    #[test]
    fn only_one_separator_answers_a_refusal() {
        assert_eq!(check_dummy(b"\x01"), Ok(()));
        for wrong in [b"".as_slice(), b"\x01\x01", b"\0", b"n,,\x01auth=Bearer abc\x01\x01"] {
            assert!(check_dummy(wrong).is_err());
        }
    }
}
