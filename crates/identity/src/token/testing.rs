//! A provider made up for tests: keys, tokens, answers and a clock that can be set.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256,
};
use aws_lc_rs::{hmac, signature};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keys::SecretText;
use model::{Clock, Fetch, FetchFailure, Fetched, Fetcher, IdentityProvider};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::datetime;

use super::{Claims, Kind, TokenRefused, Tokens};

pub(crate) const NOW: OffsetDateTime = datetime!(2026-05-01 12:00 UTC);
pub(crate) const ISSUER: &str = "https://issuer.example";
pub(crate) const KEYS_URL: &str = "https://issuer.example/keys";
pub(crate) const DISCOVERY_URL: &str = "https://issuer.example/.well-known/openid-configuration";

/// A clock that tests set.
#[derive(Debug)]
pub(crate) struct TestClock(Mutex<OffsetDateTime>);

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(NOW)))
    }

    pub(crate) fn advance(&self, by: time::Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for TestClock {
    fn now(&self) -> OffsetDateTime {
        *self.0.lock().unwrap()
    }
}

type Reply = Result<Fetched, FetchFailure>;

/// Answers as it was told, and counts.
#[derive(Default)]
pub(crate) struct TestFetcher {
    replies: Mutex<HashMap<String, Reply>>,
    pub(crate) asked: Mutex<Vec<Fetch>>,
    pub(crate) count: AtomicUsize,
    /// Each answer takes that long.
    pub(crate) delay: Mutex<Duration>,
}

impl TestFetcher {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn answer(&self, url: &str, body: &Value) {
        self.reply(url, Ok(fetched(200, body.to_string().into_bytes())));
    }

    pub(crate) fn reply(&self, url: &str, reply: Reply) {
        self.replies.lock().unwrap().insert(url.to_owned(), reply);
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// What was asked last.
    pub(crate) fn last(&self) -> Fetch {
        self.asked.lock().unwrap().last().cloned().unwrap()
    }
}

pub(crate) fn fetched(status: u16, body: Vec<u8>) -> Fetched {
    Fetched { status, kind: "application/json".into(), max_age: None, body }
}

#[async_trait]
impl Fetcher for TestFetcher {
    async fn fetch(&self, fetch: Fetch) -> Reply {
        self.count.fetch_add(1, Ordering::SeqCst);
        let (bytes_max, url) = (fetch.bytes_max, fetch.url.clone());
        self.asked.lock().unwrap().push(fetch);
        let delay = *self.delay.lock().unwrap();
        if delay > Duration::ZERO {
            tokio::time::sleep(delay).await;
        }
        let reply = self.replies.lock().unwrap().get(&url).cloned();
        let reply = reply.unwrap_or_else(|| Err(FetchFailure::Failed("connection refused".into())))?;
        if reply.body.len() > bytes_max { Err(FetchFailure::TooLong(bytes_max)) } else { Ok(reply) }
    }
}

/// A provider's key.
pub(crate) enum Signer {
    Rsa(RsaKeyPair),
    Es256(EcdsaKeyPair),
    Es384(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Signer {
    pub(crate) fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    pub(crate) fn es256() -> Self {
        Self::Es256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub(crate) fn es384() -> Self {
        Self::Es384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap())
    }

    pub(crate) fn ed() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::Es256(_) => "ES256",
            Self::Es384(_) => "ES384",
            Self::Ed(_) => "EdDSA",
        }
    }

    pub(crate) fn jwk(&self, id: Option<&str>) -> Value {
        let point = |pair: &EcdsaKeyPair, curve: &str| {
            let bytes = pair.public_key().as_ref()[1..].to_vec();
            let (x, y) = bytes.split_at(bytes.len() / 2);
            json!({"kty": "EC", "crv": curve, "x": text(x), "y": text(y)})
        };
        let mut jwk = match self {
            Self::Rsa(pair) => {
                let key = pair.public_key();
                let n = key.modulus().big_endian_without_leading_zero().to_vec();
                let e = key.exponent().big_endian_without_leading_zero().to_vec();
                json!({"kty": "RSA", "n": text(n), "e": text(e)})
            }
            Self::Es256(pair) => point(pair, "P-256"),
            Self::Es384(pair) => point(pair, "P-384"),
            Self::Ed(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key().as_ref())})
            }
        };
        jwk["use"] = "sig".into();
        if let Some(id) = id {
            jwk["kid"] = id.into();
        }
        jwk
    }

    /// The public key as people publish it, which attackers use as a secret.
    pub(crate) fn public_der(&self) -> Vec<u8> {
        let Self::Rsa(pair) = self else { panic!("an RSA key is needed") };
        let der: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        der.as_ref().to_vec()
    }

    pub(crate) fn sign(&self, message: &[u8], algorithm: &str) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair) => {
                let mut made = vec![0; pair.public_modulus_len()];
                let padding: &dyn signature::RsaEncoding =
                    if algorithm == "PS256" { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                pair.sign(padding, &random, message, &mut made).unwrap();
                made
            }
            Self::Es256(pair) | Self::Es384(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with this header and these claims, signed by this key whatever the header says.
    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> SecretText {
        let message = message(header, claims);
        let made = self.sign(message.as_bytes(), header["alg"].as_str().unwrap_or_default());
        SecretText::new(format!("{message}.{}", text(made)))
    }

    pub(crate) fn token(&self, id: &str, claims: &Value) -> SecretText {
        self.token_with(&json!({"alg": self.algorithm(), "typ": "JWT", "kid": id}), claims)
    }
}

pub(crate) fn text(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", text(header.to_string()), text(claims.to_string()))
}

/// A token with a shared secret.
pub(crate) fn hs256(secret: &[u8], header: &Value, claims: &Value) -> SecretText {
    let message = message(header, claims);
    let made = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    SecretText::new(format!("{message}.{}", text(made)))
}

/// Claims that count.
pub(crate) fn claims() -> Value {
    let now = NOW.unix_timestamp();
    json!({"iss": ISSUER, "aud": "chitin", "sub": "maria", "exp": now + 600, "iat": now, "nbf": now})
}

/// The good claims with some changed; `null` takes one away.
pub(crate) fn claims_with(changes: &Value) -> Value {
    let mut all = claims();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            all.as_object_mut().unwrap().remove(name);
        } else {
            all[name] = value.clone();
        }
    }
    all
}

pub(crate) fn provider() -> IdentityProvider {
    IdentityProvider {
        name: "corp".parse().unwrap(),
        cluster: None,
        issuer: ISSUER.into(),
        client_id: Some("client-7".into()),
        client_secret: None,
        audiences: vec!["chitin".into()],
        claim: "sub".into(),
        jwks: None,
        jwks_uri: Some(KEYS_URL.into()),
        ca_pem: None,
        scopes: vec!["openid".into()],
        clock_skew_seconds: 30,
        group_claim: None,
        group_roles: std::collections::BTreeMap::new(),
        provisions: false,
        updated_at: NOW,
    }
}

/// A provider with one RSA key, `a`, and all that checks its tokens.
pub(crate) struct World {
    pub(crate) clock: Arc<TestClock>,
    pub(crate) fetcher: Arc<TestFetcher>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) provider: Arc<IdentityProvider>,
    pub(crate) signer: Signer,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Signer::rsa(), provider())
    }

    pub(crate) fn with(signer: Signer, provider: IdentityProvider) -> Self {
        let (clock, fetcher) = (TestClock::new(), TestFetcher::new());
        fetcher.answer(KEYS_URL, &json!({"keys": [signer.jwk(Some("a"))]}));
        let tokens = Arc::new(Tokens::new(fetcher.clone(), clock.clone()));
        Self { clock, fetcher, tokens, provider: Arc::new(provider), signer }
    }

    pub(crate) async fn verify(&self, token: &SecretText) -> Result<Claims, TokenRefused> {
        self.tokens.verify(std::slice::from_ref(&self.provider), token, Kind::Password).await
    }

    pub(crate) async fn with_claims(&self, changes: &Value) -> Result<Claims, TokenRefused> {
        self.verify(&self.signer.token("a", &claims_with(changes))).await
    }
}
