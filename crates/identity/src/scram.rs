//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS as a server (RFC 5802, RFC 7677, RFC 5929), against PostgreSQL's verifiers.
//!
//! Nothing here runs PBKDF2 for a client: a proof is checked with four hashes.

mod stand_in;

use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keys::SecretText;

pub use stand_in::{Form, Forms};

/// Iterations of the verifiers that we make: PostgreSQL's default.
pub const ITERATIONS_DEFAULT: u32 = 4_096;
/// Most iterations that a verifier may ask of a client: more would make signing in an attack on the client.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// Longest salt in bytes.
pub const SALT_BYTES_MAX: usize = 64;
/// Longest message of a client in bytes.
pub const MESSAGE_BYTES_MAX: usize = 2_048;

const NONCE_BYTES: usize = 18;
const SALT_BYTES: usize = 16;
const CLIENT_NONCE_BYTES_MAX: usize = 256;

/// What the engine keeps of a password: enough to check it, not to sign in with it elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

/// Why a verifier cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableVerifier {
    /// It is not of the form `SCRAM-SHA-256$iterations:salt$stored:server`.
    #[error("it is not a SCRAM-SHA-256 verifier")]
    Form,
    /// It asks for more iterations than {ITERATIONS_MAX}, or for none.
    #[error("its iteration count is not between 1 and {ITERATIONS_MAX}")]
    Iterations,
    /// Its salt is empty or too long.
    #[error("its salt is not between 1 and {SALT_BYTES_MAX} bytes long")]
    Salt,
}

impl Verifier {
    /// Reads the text that PostgreSQL keeps in `pg_authid.rolpassword`.
    pub fn parse(text: &str) -> Result<Self, UnusableVerifier> {
        let form = UnusableVerifier::Form;
        let rest = text.strip_prefix("SCRAM-SHA-256$").ok_or(form)?;
        let (head, keys) = rest.split_once('$').ok_or(form)?;
        let (iterations, salt) = head.split_once(':').ok_or(form)?;
        let (stored, server) = keys.split_once(':').ok_or(form)?;
        let key = |text: &str| STANDARD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let stored_key = key(stored).ok_or(form)?;
        let server_key = key(server).ok_or(form)?;
        let iterations = iterations.parse().map_err(|_| UnusableVerifier::Iterations)?;
        if !(1..=ITERATIONS_MAX).contains(&iterations) {
            return Err(UnusableVerifier::Iterations);
        }
        let salt = STANDARD.decode(salt).map_err(|_| form)?;
        if salt.is_empty() || salt.len() > SALT_BYTES_MAX {
            return Err(UnusableVerifier::Salt);
        }
        Ok(Self { iterations, salt, stored_key, server_key })
    }

    /// Makes a verifier with a random salt, so that the password itself never reaches the engine or a log.
    pub fn from_password(password: &SecretText) -> Self {
        let mut salt = vec![0; SALT_BYTES];
        keys::fill_random(&mut salt);
        Self::derive(password, salt, ITERATIONS_DEFAULT)
    }

    fn derive(password: &SecretText, salt: Vec<u8>, iterations: u32) -> Self {
        // PostgreSQL falls back to the raw bytes where SASLprep does not apply (RFC 4013; src/common/saslprep.c).
        let prepared = stringprep::saslprep(password.expose()).unwrap_or(password.expose().into());
        let mut salted = zeroize::Zeroizing::new([0_u8; 32]);
        let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, prepared.as_bytes(), salted.as_mut());
        let client_key = zeroize::Zeroizing::new(mac(salted.as_ref(), b"Client Key"));
        let server_key = mac(salted.as_ref(), b"Server Key");
        Self { iterations, salt, stored_key: sha256(client_key.as_ref()), server_key }
    }

    /// How often a client must hash its password.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    /// Whether the password in clear is the one that the verifier was made of. Costs the verifier's iterations of
    /// PBKDF2, whatever the answer: not for a thread that serves others.
    pub fn fits(&self, password: &SecretText) -> bool {
        let tried = Self::derive(password, self.salt.clone(), self.iterations);
        // PostgreSQL takes no empty password, whatever the verifier says (`CheckPasswordAuth`).
        same(&tried.stored_key, &self.stored_key) & !password.expose().is_empty()
    }
}

/// PostgreSQL's own form.
impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { iterations, salt, stored_key, server_key } = self;
        let (salt, stored, server) =
            (STANDARD.encode(salt), STANDARD.encode(stored_key), STANDARD.encode(server_key));
        write!(f, "SCRAM-SHA-256${iterations}:{salt}${stored}:{server}")
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

/// A mechanism that a client may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Without channel binding.
    Sha256,
    /// Bound to the TLS channel.
    Sha256Plus,
}

impl Mechanism {
    /// The registered name; names are compared exactly (RFC 4422, 3.1).
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha256Plus => "SCRAM-SHA-256-PLUS",
        }
    }

    /// The mechanism of this name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        [Self::Sha256, Self::Sha256Plus].into_iter().find(|mechanism| mechanism.name().as_bytes() == name)
    }
}

/// Why an exchange ended without a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The message does not follow the protocol.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The client says that we offer no channel binding, and we do: somebody in between removed the offer (RFC 5802, 6).
    #[error("the client believes that this server has no channel binding, but it does")]
    Downgrade,
    /// The client bound to another TLS channel than ours: somebody is in between.
    #[error("SCRAM channel binding check failed")]
    BoundElsewhere,
    /// The proof is wrong.
    #[error("the proof is wrong")]
    WrongProof,
}

/// An exchange that waits for the client's proof.
pub struct Exchange {
    verifier: Verifier,
    /// What `c=` must be, to the letter.
    binding: String,
    nonce: String,
    /// client-first-message-bare and server-first-message.
    signed: String,
}

impl Exchange {
    /// Takes the client-first-message and answers with the server-first-message. `channel` is the channel binding data
    /// if PLUS was offered.
    pub fn begin(
        mechanism: Mechanism,
        client_first: &[u8],
        channel: Option<&[u8]>,
        verifier: Verifier,
    ) -> Result<(Self, String), Refusal> {
        Self::begin_with(mechanism, client_first, channel, verifier, &nonce())
    }

    fn begin_with(
        mechanism: Mechanism,
        client_first: &[u8],
        channel: Option<&[u8]>,
        verifier: Verifier,
        server_nonce: &str,
    ) -> Result<(Self, String), Refusal> {
        let malformed = Refusal::Malformed;
        if client_first.len() > MESSAGE_BYTES_MAX {
            return Err(malformed("too long"));
        }
        let text = std::str::from_utf8(client_first).map_err(|_| malformed("not UTF-8"))?;
        let (flag, rest) = text.split_once(',').ok_or(malformed("no GS2 header"))?;
        let (authzid, bare) = rest.split_once(',').ok_or(malformed("no GS2 header"))?;
        let mut bound = format!("{flag},{authzid},").into_bytes();
        match (mechanism, flag, channel) {
            (Mechanism::Sha256, "n", _) | (Mechanism::Sha256, "y", None) => {}
            (Mechanism::Sha256, "y", Some(_)) => return Err(Refusal::Downgrade),
            (Mechanism::Sha256Plus, "p=tls-server-end-point", Some(data)) => bound.extend_from_slice(data),
            (Mechanism::Sha256Plus, "p=tls-server-end-point", None) => {
                return Err(malformed("channel binding was not offered"));
            }
            (_, flag, _) if flag.starts_with("p=") => return Err(malformed("channel binding type")),
            _ => return Err(malformed("the channel binding flag does not fit the mechanism")),
        }
        if !authzid.is_empty() {
            return Err(malformed("an authorization identity is not supported"));
        }
        if bare.starts_with("m=") {
            return Err(malformed("a mandatory extension is not supported"));
        }
        // The name here is ignored, as PostgreSQL does: the startup message said who signs in.
        let after_name = bare.strip_prefix("n=").ok_or(malformed("no user name"))?;
        let (_, after_name) = after_name.split_once(',').ok_or(malformed("no nonce"))?;
        let client_nonce = after_name.strip_prefix("r=").ok_or(malformed("no nonce"))?;
        // A comma would begin an extension, and none is defined.
        if !is_printable(client_nonce)
            || client_nonce.is_empty()
            || client_nonce.len() > CLIENT_NONCE_BYTES_MAX
        {
            return Err(malformed("nonce"));
        }
        let nonce = format!("{client_nonce}{server_nonce}");
        let server_first =
            format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        let signed = format!("{bare},{server_first}");
        Ok((Self { verifier, binding: STANDARD.encode(bound), nonce, signed }, server_first))
    }

    /// Checks the client-final-message and answers with the server-final-message.
    pub fn finish(self, client_final: &[u8]) -> Result<String, Refusal> {
        let malformed = Refusal::Malformed;
        if client_final.len() > MESSAGE_BYTES_MAX {
            return Err(malformed("too long"));
        }
        let text = std::str::from_utf8(client_final).map_err(|_| malformed("not UTF-8"))?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(malformed("no proof"))?;
        let binding = without_proof.strip_prefix("c=").ok_or(malformed("no channel binding"))?;
        let (binding, nonce) = binding.split_once(",r=").ok_or(malformed("no nonce"))?;
        if !same(binding.as_bytes(), self.binding.as_bytes()) {
            return Err(Refusal::BoundElsewhere);
        }
        if !same(nonce.as_bytes(), self.nonce.as_bytes()) {
            return Err(malformed("nonce"));
        }
        let proof = STANDARD.decode(proof).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let proof = zeroize::Zeroizing::new(proof.ok_or(malformed("proof"))?);

        let message = format!("{},{without_proof}", self.signed);
        let signature = mac(&self.verifier.stored_key, message.as_bytes());
        let mut client_key = zeroize::Zeroizing::new([0_u8; 32]);
        for (key, (proof, signature)) in client_key.iter_mut().zip(proof.iter().zip(signature)) {
            *key = proof ^ signature;
        }
        if !same(&sha256(client_key.as_ref()), &self.verifier.stored_key) {
            return Err(Refusal::WrongProof);
        }
        Ok(format!("v={}", STANDARD.encode(mac(&self.verifier.server_key, message.as_bytes()))))
    }
}

fn nonce() -> String {
    let mut bytes = [0; NONCE_BYTES];
    keys::fill_random(&mut bytes);
    STANDARD.encode(bytes)
}

/// RFC 5802, section 7: printable ASCII except a comma.
fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, 0x21..=0x7e) && byte != b',')
}

fn same(one: &[u8], other: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(one, other).is_ok()
}

fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut value = [0; 32];
    value.copy_from_slice(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref());
    value
}

fn sha256(message: &[u8]) -> [u8; 32] {
    let mut value = [0; 32];
    value.copy_from_slice(digest::digest(&digest::SHA256, message).as_ref());
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";

    fn pencil(iterations: u32, salt: &[u8]) -> Verifier {
        Verifier::derive(&SecretText::new("pencil".into()), salt.to_vec(), iterations)
    }

    /// The client's side, for tests.
    fn prove(password: &str, bare: &str, server_first: &str, c: &str) -> String {
        let field = |name: &str| server_first.split(',').find_map(|part| part.strip_prefix(name)).unwrap();
        let salt = STANDARD.decode(field("s=")).unwrap();
        let mut salted = [0; 32];
        let rounds = NonZeroU32::new(field("i=").parse().unwrap()).unwrap();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
        let client_key = mac(&salted, b"Client Key");
        let without_proof = format!("c={c},r={}", field("r="));
        let signature =
            mac(&sha256(&client_key), format!("{bare},{server_first},{without_proof}").as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, sign)| key ^ sign).collect();
        format!("{without_proof},p={}", STANDARD.encode(proof))
    }

    #[test]
    fn a_password_in_clear_fits_its_own_verifier_only() {
        let verifier = pencil(4_096, b"0123456789abcdef");
        assert!(verifier.fits(&SecretText::new("pencil".into())));
        for wrong in ["Pencil", "pencil ", "", "penci"] {
            assert!(!verifier.fits(&SecretText::new(wrong.into())), "{wrong}");
        }
        let empty = Verifier::derive(&SecretText::new(String::new()), b"salt".to_vec(), 1);
        assert!(!empty.fits(&SecretText::new(String::new())), "an empty password signs nobody in");
    }

    #[test]
    fn the_example_of_rfc_7677_is_answered_to_the_letter() {
        let verifier = pencil(4_096, &STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap());
        let first = format!("n,,n=user,r={CLIENT_NONCE}");
        let (exchange, server_first) =
            Exchange::begin_with(Mechanism::Sha256, first.as_bytes(), None, verifier, SERVER_NONCE).unwrap();
        assert_eq!(
            server_first,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let last = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(
            exchange.finish(last.as_bytes()).unwrap(),
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
    }

    #[test]
    fn a_wrong_password_and_a_stand_in_are_refused_alike() {
        for verifier in [pencil(4_096, b"salt-salt"), Verifier::stand_in(&[3; 32], Form::default())] {
            let first = "n,,n=,r=abc";
            let (exchange, server_first) =
                Exchange::begin(Mechanism::Sha256, first.as_bytes(), None, verifier).unwrap();
            let last = prove("wrong", "n=,r=abc", &server_first, "biws");
            assert_eq!(exchange.finish(last.as_bytes()), Err(Refusal::WrongProof));
        }
    }

    #[test]
    fn t33_short_and_long_salts_and_counts_sign_in() {
        for (salt, iterations) in [(1, 1), (16, 4_096), (32, 1), (64, 4_096)] {
            let verifier = Verifier::parse(&pencil(iterations, &vec![7; salt]).to_string()).unwrap();
            let (exchange, server_first) =
                Exchange::begin(Mechanism::Sha256, b"n,,n=,r=abc", None, verifier).unwrap();
            let last = prove("pencil", "n=,r=abc", &server_first, "biws");
            assert!(exchange.finish(last.as_bytes()).unwrap().starts_with("v="), "{salt} {iterations}");
        }
    }

    #[test]
    fn t32_a_verifier_that_would_exhaust_the_client_is_not_used() {
        let text = pencil(1, b"salt").to_string();
        assert!(Verifier::parse(&text.replace("$1:", "$1000000:")).is_ok());
        for count in ["0", "1000001", "1000000000", "4294967296", "-1", "1e6"] {
            let refused = Verifier::parse(&text.replace("$1:", &format!("${count}:")));
            assert_eq!(refused, Err(UnusableVerifier::Iterations), "{count}");
        }
    }

    #[test]
    fn plus_binds_to_our_channel_exactly() {
        let channel: &[u8] = &[9; 32];
        let first = "p=tls-server-end-point,,n=,r=abc";
        let c = STANDARD.encode([b"p=tls-server-end-point,,".as_slice(), channel].concat());
        let elsewhere = STANDARD.encode([b"p=tls-server-end-point,,".as_slice(), &[8; 32]].concat());
        let begin = || {
            Exchange::begin(Mechanism::Sha256Plus, first.as_bytes(), Some(channel), pencil(1, b"salt"))
                .unwrap()
        };
        let (exchange, server_first) = begin();
        assert!(exchange.finish(prove("pencil", "n=,r=abc", &server_first, &c).as_bytes()).is_ok());
        // The right password through a man in the middle, with no binding, or with none where there should be one.
        for wrong in [elsewhere.as_str(), "biws", "eSws", "cD10bHMtc2VydmVyLWVuZC1wb2ludCws", ""] {
            let (exchange, server_first) = begin();
            let last = prove("pencil", "n=,r=abc", &server_first, wrong);
            assert_eq!(exchange.finish(last.as_bytes()), Err(Refusal::BoundElsewhere), "{wrong}");
        }
    }

    #[test]
    fn t27_t28_t35_flags_and_forms_that_do_not_fit_are_refused() {
        let begin = |mechanism, first: &str, channel| {
            Exchange::begin(mechanism, first.as_bytes(), channel, pencil(1, b"salt")).map(drop)
        };
        let channel = Some([9_u8; 32].as_slice());
        assert_eq!(begin(Mechanism::Sha256, "y,,n=,r=abc", channel), Err(Refusal::Downgrade));
        assert_eq!(begin(Mechanism::Sha256, "y,,n=,r=abc", None), Ok(()));
        for (mechanism, first) in [
            (Mechanism::Sha256Plus, "n,,n=,r=abc"),
            (Mechanism::Sha256Plus, "y,,n=,r=abc"),
            (Mechanism::Sha256Plus, "p=tls-unique,,n=,r=abc"),
            (Mechanism::Sha256, "p=tls-server-end-point,,n=,r=abc"),
            (Mechanism::Sha256, "n,a=admin,n=,r=abc"),
            (Mechanism::Sha256, "n,,m=x,n=,r=abc"),
            (Mechanism::Sha256, "n,,n=,r="),
            (Mechanism::Sha256, "n,,n=,r=ab,c"),
            (Mechanism::Sha256, "n,,n=,r=ab c"),
            (Mechanism::Sha256, "n,,r=abc"),
            (Mechanism::Sha256, "n,"),
            (Mechanism::Sha256, ""),
        ] {
            assert!(matches!(begin(mechanism, first, channel), Err(Refusal::Malformed(_))), "{first}");
        }
        assert_eq!(Mechanism::from_name(b"scram-sha-256"), None);
        assert_eq!(Mechanism::from_name(b"SCRAM-SHA-256-PLUS"), Some(Mechanism::Sha256Plus));
    }

    #[test]
    fn t35_a_nonce_of_another_exchange_is_refused() {
        let (exchange, server_first) =
            Exchange::begin(Mechanism::Sha256, b"n,,n=,r=abc", None, pencil(1, b"salt")).unwrap();
        let (_, other_first) =
            Exchange::begin(Mechanism::Sha256, b"n,,n=,r=abc", None, pencil(1, b"salt")).unwrap();
        assert_ne!(server_first, other_first);
        let last = prove("pencil", "n=,r=abc", &other_first, "biws");
        assert_eq!(exchange.finish(last.as_bytes()), Err(Refusal::Malformed("nonce")));
    }

    #[test]
    fn verifiers_read_back_what_they_write() {
        let made = Verifier::from_password(&SecretText::new("pässwörd".into()));
        assert_eq!(Verifier::parse(&made.to_string()), Ok(made));
        for wrong in ["", "md5abc", "SCRAM-SHA-256$4096:c2FsdA==", "SCRAM-SHA-256$4096:c2FsdA==$AA==:AA=="] {
            assert_eq!(Verifier::parse(wrong), Err(UnusableVerifier::Form), "{wrong}");
        }
    }
}
