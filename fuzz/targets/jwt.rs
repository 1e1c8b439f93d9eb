//! Tokens and key sets of strangers; and signed tokens with a stranger's header and claims (two JSON texts around a zero
//! byte), so that also what comes after the signature is reached.

use std::sync::LazyLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use identity::token::{KeySet, Kind, check};
use model::IdentityProvider;
use time::OffsetDateTime;

static KEY: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap());
static KEYS: LazyLock<KeySet> = LazyLock::new(|| {
    let x = URL_SAFE_NO_PAD.encode(KEY.public_key().as_ref());
    let json = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"a","x":"{x}"}}]}}"#);
    KeySet::parse(json.as_bytes()).unwrap()
});
static PROVIDER: LazyLock<IdentityProvider> = LazyLock::new(|| IdentityProvider {
    name: "corp".parse().unwrap(),
    cluster: None,
    issuer: "i".into(),
    client_id: Some("c".into()),
    client_secret: None,
    audiences: vec!["p".into()],
    claim: "sub".into(),
    jwks: None,
    jwks_uri: None,
    ca_pem: None,
    scopes: vec![],
    clock_skew_seconds: 30,
    group_claim: Some("g".into()),
    group_roles: Default::default(),
    provisions: false,
    updated_at: OffsetDateTime::UNIX_EPOCH,
});

const KINDS: [Kind<'static>; 2] = [Kind::Password, Kind::IdToken { nonce: "n", access_token: None }];

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    if let Ok(keys) = KeySet::parse(bytes) {
        assert!(keys.len() <= identity::token::KEYS_MAX);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        for kind in KINDS {
            assert!(check(&PROVIDER, &KEYS, text, kind, OffsetDateTime::UNIX_EPOCH).is_err());
        }
    }
    let middle = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (header, claims) = (&bytes[..middle], bytes.get(middle + 1..).unwrap_or_default());
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(KEY.sign(message.as_bytes())));
    for kind in KINDS {
        match check(&PROVIDER, &KEYS, &token, kind, OffsetDateTime::UNIX_EPOCH) {
            Ok(principals) => assert!(!principals.is_empty() && principals.iter().all(|one| !one.is_empty())),
            Err(refused) => {
                let detail = refused.detail().unwrap_or_default();
                assert!(!detail.chars().any(char::is_control), "{detail:?}");
            }
        }
    }
}
