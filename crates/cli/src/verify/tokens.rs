//! Attacks with tokens: expired, forged, unsigned, for another audience, for another user.

use api::PutIdentityProvider;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::row::{Row, Verdict};
use super::session::offer_token;
use super::stage::{Stage, USER};
use super::wire::Fault;

const FEATURE: &str = "OpenID Connect";
/// Nobody can have a certificate for it, and it is never asked: the keys are given.
const ISSUER: &str = "https://issuer.verify.invalid";
const AUDIENCE: &str = "chitin-verify";
const KEY_ID: &str = "verify";

/// Every attack of this file.
pub async fn attack(stage: &Stage<'_>) -> Vec<Row> {
    vec![
        Verdict::from(tokens(stage).await)
            .on(FEATURE, "a good token signs in; expired, forged, unsigned and foreign ones do not"),
    ]
}

async fn tokens(stage: &Stage<'_>) -> Result<Verdict, Fault> {
    let (key, other) = (key()?, key()?);
    let provider = PutIdentityProvider {
        issuer: ISSUER.to_owned(),
        audiences: vec![AUDIENCE.to_owned()],
        jwks: Some(json!({ "keys": [public(&key)] }).to_string()),
        ..PutIdentityProvider::default()
    };
    let api = &stage.cloud.api;
    api.put_provider(Some(stage.id), "verify", &provider)
        .await
        .map_err(|error| Fault::Setup(error.to_string()))?;

    let now = OffsetDateTime::now_utc().unix_timestamp();
    let claims = |change: &[(&str, Value)]| {
        let mut claims =
            json!({"iss": ISSUER, "aud": AUDIENCE, "sub": USER, "iat": now - 60, "exp": now + 600});
        for (name, value) in change {
            claims[name] = value.clone();
        }
        claims
    };
    let good = sign(&key, "ES256", &claims(&[]))?;
    match offer_token(&stage.target, USER, &good).await? {
        Ok(who) if who == USER => {}
        Ok(who) => return Ok(Verdict::failed(format!("a token for {USER} signed in as {who}"))),
        Err(refusal) => return Ok(Verdict::failed(format!("a good token was refused: {refusal}"))),
    }
    let unsigned = {
        let signed = sign(&key, "none", &claims(&[]))?;
        let end = signed.rfind('.').map_or(signed.len(), |dot| dot + 1);
        signed[..end].to_owned()
    };
    let attacks = [
        (
            "expired",
            USER,
            sign(&key, "ES256", &claims(&[("exp", json!(now - 600)), ("iat", json!(now - 900))]))?,
        ),
        ("not valid yet", USER, sign(&key, "ES256", &claims(&[("nbf", json!(now + 600))]))?),
        ("signed by somebody else", USER, sign(&other, "ES256", &claims(&[]))?),
        ("unsigned", USER, unsigned),
        ("for another audience", USER, sign(&key, "ES256", &claims(&[("aud", json!("somebody-else"))]))?),
        (
            "of another issuer",
            USER,
            sign(&key, "ES256", &claims(&[("iss", json!("https://other.verify.invalid"))]))?,
        ),
        ("for another user", USER, sign(&key, "ES256", &claims(&[("sub", json!("somebody"))]))?),
        ("for root", "root", sign(&key, "ES256", &claims(&[("sub", json!("root"))]))?),
    ];
    for (what, user, token) in &attacks {
        match offer_token(&stage.target, user, token).await? {
            Ok(who) => return Ok(Verdict::failed(format!("a token {what} was let in as {who}"))),
            Err(refusal) if refusal.code.starts_with("28") => {}
            Err(refusal) => return Ok(Verdict::failed(format!("{what}: unexpected answer {refusal}"))),
        }
    }
    let names: Vec<&str> = attacks.iter().map(|(what, ..)| *what).collect();
    Ok(Verdict::proven(format!("good one in; refused: {}", names.join(", "))))
}

fn key() -> Result<EcdsaKeyPair, Fault> {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
        .map_err(|_| Fault::Setup("no key for tokens could be made".to_owned()))
}

/// The public key as a JWK (RFC 7518, section 6.2.1).
fn public(key: &EcdsaKeyPair) -> Value {
    // An uncompressed point: 4, x, y.
    let point = key.public_key().as_ref();
    let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len().saturating_sub(1) / 2);
    json!({
        "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KEY_ID,
        "x": BASE64URL.encode(x), "y": BASE64URL.encode(y),
    })
}

fn sign(key: &EcdsaKeyPair, algorithm: &str, claims: &Value) -> Result<String, Fault> {
    let head = json!({"alg": algorithm, "typ": "JWT", "kid": KEY_ID});
    let signed = format!("{}.{}", BASE64URL.encode(head.to_string()), BASE64URL.encode(claims.to_string()));
    let signature = key
        .sign(&SystemRandom::new(), signed.as_bytes())
        .map_err(|_| Fault::Setup("a token could not be signed".to_owned()))?;
    Ok(format!("{signed}.{}", BASE64URL.encode(signature.as_ref())))
}
