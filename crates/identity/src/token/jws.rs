//! The outer form of a token: header, claims and signature (RFC 7515, compact serialization), before anything is trusted.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::{Kind, TokenRefused};

/// Longest token in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Longest key id in bytes.
const KEY_ID_BYTES_MAX: usize = 512;

/// A token that was read and not yet believed. Addresses and keys that its header brings along (`jku`, `jwk`, `x5u`, `x5c`)
/// are not even read.
pub(super) struct Unverified<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) claims: Map<String, Value>,
    key_id: Option<String>,
    kind: Option<String>,
    message: &'a str,
    signature: &'a str,
}

impl<'a> Unverified<'a> {
    /// Reads a token's form. `None` for anything that is not a JWT with a public-key signature.
    pub(super) fn parse(token: &'a str) -> Option<Self> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let header = part(header)?;
        let algorithm = algorithm(header.get("alg")?.as_str()?)?;
        // RFC 7515, section 4.1.11: an extension that is not understood must not be passed over, and none is understood.
        if header.contains_key("crit") || signature.is_empty() {
            return None;
        }
        let key_id = text(&header, "kid")?;
        if key_id.as_ref().is_some_and(|id| id.len() > KEY_ID_BYTES_MAX) {
            return None;
        }
        Some(Self {
            algorithm,
            claims: part(claims)?,
            key_id,
            kind: text(&header, "typ")?,
            message,
            signature,
        })
    }

    /// The `iss` claim.
    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    /// The `kid` header.
    pub(super) fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// Whether this key made the signature. A key of another type than the algorithm's never did.
    pub(super) fn is_signed_by(&self, key: &DecodingKey) -> bool {
        jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), key, self.algorithm)
            .unwrap_or(false)
    }

    /// Refuses tokens that providers sign for something else than saying who somebody is (RFC 8725, section 3.11), and
    /// those that only count together with a key of their holder (RFC 9449 and RFC 8705: `cnf`), which is not proven here.
    pub(super) fn check_purpose(&self, kind: Kind<'_>) -> Result<(), TokenRefused> {
        let named = self.kind.as_deref().map(str::to_ascii_lowercase);
        let named = named.as_deref().map(|kind| kind.strip_prefix("application/").unwrap_or(kind));
        let fits = match named {
            None | Some("jwt" | "jose") => true,
            // RFC 9068: an access token, which is no ID token.
            Some("at+jwt") => matches!(kind, Kind::Password),
            Some(_) => false,
        };
        // A logout token (OpenID Connect Back-Channel Logout, section 2.4) looks like an ID token but for this.
        if !fits || self.claims.contains_key("events") {
            return Err(TokenRefused::Untrusted("the token was made for another purpose".to_owned()));
        }
        if matches!(kind, Kind::Password) && self.claims.contains_key("cnf") {
            return Err(TokenRefused::Untrusted("the token is bound to a key of its holder".to_owned()));
        }
        Ok(())
    }
}

/// The algorithms that count. Those with a shared secret do not: whoever can check such a token can make one.
fn algorithm(name: &str) -> Option<Algorithm> {
    let algorithm = Algorithm::from_str(name).ok()?;
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => None,
        Algorithm::RS256
        | Algorithm::RS384
        | Algorithm::RS512
        | Algorithm::PS256
        | Algorithm::PS384
        | Algorithm::PS512
        | Algorithm::ES256
        | Algorithm::ES384
        | Algorithm::EdDSA => Some(algorithm),
    }
}

fn part(encoded: &str) -> Option<Map<String, Value>> {
    object(&URL_SAFE_NO_PAD.decode(encoded).ok()?)
}

/// An optional text of a header; the outer `None` where it is of another type.
#[expect(clippy::option_option, reason = "a wrong type is not the same as nothing")]
fn text(header: &Map<String, Value>, name: &str) -> Option<Option<String>> {
    match header.get(name) {
        None => Some(None),
        Some(Value::String(text)) => Some(Some(text.clone())),
        Some(_) => None,
    }
}

/// Reads a JSON object in which no name stands twice: two readers could take different ones (RFC 7519, section 4).
pub(super) fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    struct Unique(Map<String, Value>);
    struct Reader;

    impl<'de> Visitor<'de> for Reader {
        type Value = Unique;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object in which no name stands twice")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Unique, A::Error> {
            let mut map = Map::new();
            while let Some((name, value)) = access.next_entry::<String, Value>()? {
                if map.insert(name, value).is_some() {
                    return Err(A::Error::custom("a name stands twice"));
                }
            }
            Ok(Unique(map))
        }
    }

    impl<'de> Deserialize<'de> for Unique {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Reader)
        }
    }

    serde_json::from_slice::<Unique>(bytes).ok().map(|unique| unique.0)
}
