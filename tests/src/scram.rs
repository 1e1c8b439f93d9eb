//! SCRAM-SHA-256 from the client's side (RFC 5802, RFC 7677), with every field open to a liar.

use std::num::NonZeroU32;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::{hmac, pbkdf2, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::wire::{Message, Refusal, Wire, message, text};

/// With channel binding.
pub const PLUS: &str = "SCRAM-SHA-256-PLUS";
/// Without.
pub const PLAIN: &str = "SCRAM-SHA-256";

/// One exchange; what is not set is done right.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The password.
    pub password: String,
    /// The mechanism's name as sent.
    pub mechanism: String,
    /// The gs2 header as sent.
    pub header: String,
    /// What the client proves to have seen of the server; `None` takes the true value where the header asks.
    pub binding: Option<Vec<u8>>,
    /// The whole `c=` value, when it should not follow from header and binding.
    pub channel_field: Option<String>,
    /// Text before `n=` in the client's first message.
    pub extension: String,
    /// The client's nonce; `None` draws one.
    pub nonce: Option<String>,
    /// The nonce in the client's final message; `None` takes the one that the server sent.
    pub final_nonce: Option<String>,
    /// Sends every message byte by byte.
    pub is_slow: bool,
}

impl Exchange {
    /// Does everything right, with channel binding.
    pub fn bound(password: &str) -> Self {
        Self {
            password: password.to_owned(),
            mechanism: PLUS.to_owned(),
            header: "p=tls-server-end-point,,".to_owned(),
            binding: None,
            channel_field: None,
            extension: String::new(),
            nonce: None,
            final_nonce: None,
            is_slow: false,
        }
    }

    /// Does everything right, without channel binding, as a client that does not know it.
    pub fn unbound(password: &str) -> Self {
        Self { mechanism: PLAIN.to_owned(), header: "n,,".to_owned(), ..Self::bound(password) }
    }
}

/// What the exchange showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The salt, in base64 as sent.
    pub salt: String,
    /// The iteration count.
    pub iterations: u32,
    /// Both nonces.
    pub nonce: String,
}

/// Mechanisms in an AuthenticationSASL message.
pub fn mechanisms(request: &Message) -> Vec<String> {
    assert_eq!((request.tag, &request.body[..4]), (b'R', &[0, 0, 0, 10][..]), "not AuthenticationSASL");
    request.body[4..]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref().to_vec()
}

/// A fresh nonce.
pub fn fresh_nonce() -> String {
    let mut bytes = [0; 18];
    rand::fill(&mut bytes).expect("the system has randomness");
    BASE64.encode(bytes)
}

fn put(wire: &mut Wire, body: &[u8], is_slow: bool) -> Result<(), Refusal> {
    let bytes = message(b'p', body);
    let pieces = if is_slow { bytes.chunks(1) } else { bytes.chunks(bytes.len()) };
    for piece in pieces {
        wire.send_raw(piece).map_err(|error| Refusal::closed(&error.to_string()))?;
    }
    Ok(())
}

/// The body of a SASLInitialResponse.
pub fn initial_response(mechanism: &str, data: &str) -> Vec<u8> {
    let mut body = text(mechanism);
    body.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
    body.extend(data.as_bytes());
    body
}

/// The server's challenge to a client's first message.
pub fn ask(wire: &mut Wire, exchange: &Exchange) -> Result<(Challenge, String, String), Refusal> {
    let nonce = exchange.nonce.clone().unwrap_or_else(fresh_nonce);
    let bare = format!("{}n=,r={nonce}", exchange.extension);
    let body = initial_response(&exchange.mechanism, &format!("{}{bare}", exchange.header));
    put(wire, &body, exchange.is_slow)?;
    let answer = wire.expect_message()?;
    assert_eq!(&answer.body[..4], &[0, 0, 0, 11], "not AuthenticationSASLContinue: {answer:?}");
    let server_first = String::from_utf8(answer.body[4..].to_vec()).expect("SCRAM is ASCII");
    let field = |letter: &str| {
        server_first
            .split(',')
            .find_map(|part| part.strip_prefix(letter))
            .expect("the field is there")
            .to_owned()
    };
    let iterations = field("i=").parse().expect("a number");
    let challenge = Challenge { salt: field("s="), iterations, nonce: field("r=") };
    Ok((challenge, bare, server_first))
}

/// Makes the exchange after AuthenticationSASL came; checks the server's signature as a client must.
pub fn prove(wire: &mut Wire, exchange: &Exchange) -> Result<Challenge, Refusal> {
    let (challenge, bare, server_first) = ask(wire, exchange)?;
    let salt = BASE64.decode(&challenge.salt).expect("the salt is base64");
    let mut salted = [0; 32];
    let iterations = NonZeroU32::new(challenge.iterations).expect("at least one iteration");
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, exchange.password.as_bytes(), &mut salted);
    let channel = exchange.channel_field.clone().unwrap_or_else(|| {
        let mut data = exchange.header.as_bytes().to_vec();
        if exchange.header.starts_with("p=") {
            let truth = || crate::tls::server_end_point(&wire.server_certificate()).unwrap_or_default();
            data.extend(exchange.binding.clone().unwrap_or_else(truth));
        }
        BASE64.encode(data)
    });
    let nonce = exchange.final_nonce.clone().unwrap_or_else(|| challenge.nonce.clone());
    let without_proof = format!("c={channel},r={nonce}");
    let client_key = hmac_sha256(&salted, b"Client Key");
    let stored_key = digest(&SHA256, &client_key);
    let auth_message = format!("{bare},{server_first},{without_proof}");
    let signature = hmac_sha256(stored_key.as_ref(), auth_message.as_bytes());
    let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, sign)| key ^ sign).collect();
    let last = format!("{without_proof},p={}", BASE64.encode(proof));
    put(wire, last.as_bytes(), exchange.is_slow)?;
    let answer = wire.expect_message()?;
    assert_eq!(&answer.body[..4], &[0, 0, 0, 12], "not AuthenticationSASLFinal: {answer:?}");
    let expected = hmac_sha256(&hmac_sha256(&salted, b"Server Key"), auth_message.as_bytes());
    let expected = format!("v={}", BASE64.encode(expected));
    assert_eq!(
        String::from_utf8_lossy(&answer.body[4..]),
        expected,
        "the server did not prove that it knows us"
    );
    let welcome = wire.expect_message()?;
    assert_eq!(welcome.body, [0, 0, 0, 0], "not AuthenticationOk: {welcome:?}");
    Ok(challenge)
}

/// A PostgreSQL verifier for the password, as `CREATE ROLE … PASSWORD` takes it.
pub fn verifier(password: &str, salt: &[u8], iterations: u32) -> String {
    let mut salted = [0; 32];
    let count = NonZeroU32::new(iterations).expect("at least one iteration");
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, count, salt, password.as_bytes(), &mut salted);
    let stored_key = digest(&SHA256, &hmac_sha256(&salted, b"Client Key"));
    let server_key = hmac_sha256(&salted, b"Server Key");
    format!(
        "SCRAM-SHA-256${iterations}:{}${}:{}",
        BASE64.encode(salt),
        BASE64.encode(stored_key),
        BASE64.encode(server_key)
    )
}
