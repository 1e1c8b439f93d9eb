//! A provider's public keys (JWK Set, RFC 7517), each with the algorithms that it is for.

use base64::Engine;
use base64::alphabet;
use base64::engine::{
    DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::URL_SAFE_NO_PAD,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use super::ANSWER_BYTES_MAX;

/// Most keys of one set.
pub const KEYS_MAX: usize = 100;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// RFC 7515 wants no padding; some providers pad all the same.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why keys cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableKeys {
    /// The text is longer than is read.
    #[error("it is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    /// It is not a JWK Set.
    #[error("it is not a JWK Set: a JSON object with the list `keys`")]
    Form,
    /// There are too many keys.
    #[error("it has more than {KEYS_MAX} keys")]
    TooMany,
}

/// The keys of a provider that can be used here. Keys for encryption, of unknown types, too weak ones, symmetric ones and
/// private ones are left out: a set may hold them, and they never check a token.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    public: DecodingKey,
}

/// What a set has for a token.
pub(super) enum Found<'a> {
    /// The keys to try; more than one only if the provider gave several the same id.
    Keys(Vec<&'a DecodingKey>),
    /// No key has this id.
    Unknown,
    /// The key with this id is for other algorithms.
    Unfit,
    /// The token names no key, and none or several would fit.
    Ambiguous,
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<Value>,
}

impl KeySet {
    /// Reads a JWK Set. Keys that cannot be used are left out; a set without a usable key is still a set.
    pub fn parse(json: &[u8]) -> Result<Self, UnusableKeys> {
        if json.len() > ANSWER_BYTES_MAX {
            return Err(UnusableKeys::TooLong);
        }
        let set: RawSet = serde_json::from_slice(json).map_err(|_| UnusableKeys::Form)?;
        if set.keys.len() > KEYS_MAX {
            return Err(UnusableKeys::TooMany);
        }
        Ok(Self { keys: set.keys.into_iter().filter_map(read).collect() })
    }

    /// How many of the keys can be used.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key can be used.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a token names a key that is not there.
    pub(super) fn lacks(&self, id: Option<&str>) -> bool {
        id.is_some_and(|id| !self.keys.iter().any(|key| key.id.as_deref() == Some(id)))
    }

    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Found<'_> {
        if self.lacks(id) {
            return Found::Unknown;
        }
        let fits =
            |key: &&Key| key.algorithms.contains(&algorithm) && (id.is_none() || key.id.as_deref() == id);
        let keys: Vec<_> = self.keys.iter().filter(fits).map(|key| &key.public).collect();
        match (id, keys.len()) {
            (Some(_), 0) => Found::Unfit,
            (None, count) if count != 1 => Found::Ambiguous,
            _ => Found::Keys(keys),
        }
    }
}

fn read(value: Value) -> Option<Key> {
    let raw: RawKey = serde_json::from_value(value).ok()?;
    let is_for_signatures = raw.usage.as_deref().is_none_or(|usage| usage == "sig")
        && raw.key_ops.as_ref().is_none_or(|all| all.iter().any(|one| one == "verify"));
    // A private key that was published is anybody's.
    if !is_for_signatures || raw.d.is_some() {
        return None;
    }
    let (mut algorithms, public) = match (raw.kty.as_str(), raw.crv.as_deref()) {
        ("RSA", None) => (RSA.to_vec(), rsa(&raw)?),
        ("EC", Some("P-256")) => (vec![Algorithm::ES256], curve(&raw, 32)?),
        ("EC", Some("P-384")) => (vec![Algorithm::ES384], curve(&raw, 48)?),
        ("OKP", Some("Ed25519")) => {
            let x = exactly(raw.x.as_deref()?, 32)?;
            (vec![Algorithm::EdDSA], DecodingKey::from_ed_components(&URL_SAFE_NO_PAD.encode(x)).ok()?)
        }
        _ => return None,
    };
    if let Some(name) = &raw.alg {
        algorithms.retain(|algorithm| format!("{algorithm:?}") == *name);
    }
    (!algorithms.is_empty()).then_some(Key { id: raw.kid, algorithms, public })
}

fn rsa(raw: &RawKey) -> Option<DecodingKey> {
    let strip = |bytes: Vec<u8>| {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        bytes[zeros..].to_vec()
    };
    let n = strip(LENIENT.decode(raw.n.as_deref()?).ok()?);
    let e = strip(LENIENT.decode(raw.e.as_deref()?).ok()?);
    let bits = n.len() * 8 - usize::try_from(n.first()?.leading_zeros()).ok()?;
    // With the exponent 1, everything is its own signature; longer ones only cost time.
    let is_exponent = e.len() <= 4 && e.last()? % 2 == 1 && e != [1];
    ((2_048..=8_192).contains(&bits) && is_exponent).then(|| DecodingKey::from_rsa_raw_components(&n, &e))
}

fn curve(raw: &RawKey, bytes: usize) -> Option<DecodingKey> {
    let x = URL_SAFE_NO_PAD.encode(exactly(raw.x.as_deref()?, bytes)?);
    let y = URL_SAFE_NO_PAD.encode(exactly(raw.y.as_deref()?, bytes)?);
    DecodingKey::from_ec_components(&x, &y).ok()
}

fn exactly(text: &str, bytes: usize) -> Option<Vec<u8>> {
    LENIENT.decode(text).ok().filter(|decoded| decoded.len() == bytes)
}
