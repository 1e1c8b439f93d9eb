//! SCRAM-SHA-256 as a client speaks it (RFC 5802, 7677), and as a liar does.

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::wire::Fault;

/// More than anybody configures; a hostile server could ask for minutes of work.
const ITERATIONS_MAX: u32 = 1_000_000;

/// What the client says about the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// SCRAM-SHA-256-PLUS, bound to this value.
    Bound(Vec<u8>),
    /// SCRAM-SHA-256 by a client that could bind but says the server does not offer it: a downgrade.
    Downgraded,
    /// SCRAM-SHA-256 by a client that cannot bind.
    Unsupported,
}

impl Binding {
    /// The mechanism that the client chooses.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::Bound(_) => "SCRAM-SHA-256-PLUS",
            Self::Downgraded | Self::Unsupported => "SCRAM-SHA-256",
        }
    }

    fn header(&self) -> &'static str {
        match self {
            Self::Bound(_) => "p=tls-server-end-point,,",
            Self::Downgraded => "y,,",
            Self::Unsupported => "n,,",
        }
    }

    fn encoded(&self) -> String {
        let mut bytes = self.header().as_bytes().to_vec();
        if let Self::Bound(value) = self {
            bytes.extend(value);
        }
        STANDARD.encode(bytes)
    }
}

/// The `tls-server-end-point` value of a certificate (RFC 5929, 4.1); none if its signature has no single hash.
pub fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = match parsed.signature_algorithm.algorithm.to_id_string().as_str() {
        // ECDSA and RSA with SHA-256; RSA with SHA-1, which the RFC replaces by SHA-256.
        "1.2.840.10045.4.3.2" | "1.2.840.113549.1.1.11" | "1.2.840.113549.1.1.5" => &digest::SHA256,
        "1.2.840.10045.4.3.3" | "1.2.840.113549.1.1.12" => &digest::SHA384,
        "1.2.840.10045.4.3.4" | "1.2.840.113549.1.1.13" => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

/// A client between its messages.
#[derive(Debug)]
pub struct Client {
    binding: Binding,
    first_bare: String,
    nonce: String,
}

/// What the server said of the user's verifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The nonce of both sides.
    pub nonce: String,
    /// The salt, in base64.
    pub salt: String,
    /// How often the password is hashed.
    pub iterations: u32,
    text: String,
}

/// The client's last message, and what the server must answer to have known the verifier.
#[derive(Debug)]
pub struct Proof {
    /// The message.
    pub message: String,
    /// The server's message that proves its side.
    pub expected: String,
}

impl Client {
    /// A client with a random nonce.
    pub fn new(binding: Binding) -> Result<Self, Fault> {
        let mut random = [0; 18];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| Fault::Setup("no randomness".to_owned()))?;
        let nonce = STANDARD.encode(random);
        Ok(Self { binding, first_bare: format!("n=,r={nonce}"), nonce })
    }

    /// The body of `SASLInitialResponse`.
    pub fn initial(&self) -> Vec<u8> {
        let first = format!("{}{}", self.binding.header(), self.first_bare);
        let mut body = self.binding.mechanism().as_bytes().to_vec();
        body.push(0);
        body.extend(u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes());
        body.extend(first.as_bytes());
        body
    }

    /// Reads the server's first message.
    pub fn challenge(&self, text: &[u8]) -> Result<Challenge, Fault> {
        let wrong = || Fault::Unexpected("the server's SCRAM message is malformed".to_owned());
        let text = std::str::from_utf8(text).map_err(|_| wrong())?;
        let mut fields = text.split(',');
        let mut field =
            |name: &str| fields.next().and_then(|field| field.strip_prefix(name)).ok_or_else(wrong);
        let (nonce, salt, iterations) = (field("r=")?, field("s=")?, field("i=")?);
        let iterations: u32 = iterations.parse().map_err(|_| wrong())?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(Fault::Unexpected("the server did not add to the nonce".to_owned()));
        }
        if !(1..=ITERATIONS_MAX).contains(&iterations) {
            return Err(wrong());
        }
        Ok(Challenge { nonce: nonce.to_owned(), salt: salt.to_owned(), iterations, text: text.to_owned() })
    }

    /// Proves knowledge of a password.
    pub fn prove(&self, challenge: &Challenge, password: &str) -> Result<Proof, Fault> {
        let wrong = || Fault::Unexpected("the server's SCRAM message is malformed".to_owned());
        let salt = STANDARD.decode(&challenge.salt).map_err(|_| wrong())?;
        let iterations = NonZeroU32::new(challenge.iterations).ok_or_else(wrong)?;
        let mut salted = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password.as_bytes(), &mut salted);
        let mac = |key: &[u8], data: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data);
        let client_key = mac(&salted, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
        let without_proof = format!("c={},r={}", self.binding.encoded(), challenge.nonce);
        let signed = format!("{},{},{without_proof}", self.first_bare, challenge.text);
        let signature = mac(stored_key.as_ref(), signed.as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let server_key = mac(&salted, b"Server Key");
        let server_signature = mac(server_key.as_ref(), signed.as_bytes());
        Ok(Proof {
            message: format!("{without_proof},p={}", STANDARD.encode(proof)),
            expected: format!("v={}", STANDARD.encode(server_signature)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_7677_comes_out() {
        let client = Client {
            binding: Binding::Unsupported,
            first_bare: "n=user,r=rOprNGfwEbeRWgbNEkqO".to_owned(),
            nonce: "rOprNGfwEbeRWgbNEkqO".to_owned(),
        };
        let first = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let proof = client.prove(&client.challenge(first).unwrap(), "pencil").unwrap();
        assert!(
            proof.message.ends_with(",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="),
            "{}",
            proof.message
        );
        assert_eq!(proof.expected, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_server_that_repeats_the_nonce_or_asks_for_endless_work_is_found() {
        let client = Client::new(Binding::Unsupported).unwrap();
        let nonce = client.nonce.clone();
        for wrong in [
            format!("r={nonce},s=AAAA,i=4096"),
            "r=other,s=AAAA,i=4096".to_owned(),
            format!("r={nonce}x,s=AAAA,i=4000000000"),
            format!("r={nonce}x,s=AAAA,i=0"),
            format!("r={nonce}x,i=4096"),
        ] {
            assert!(client.challenge(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
