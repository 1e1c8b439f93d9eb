//! Names of keys, and what key services answer: the first two bytes choose the provider and the HTTP status, the others are
//! the URI that an operator sets and the body that a stranger sends.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keys::{Binding, DataKey, KeyEncryption, WrappedKey};
use model::{
    ClusterId, Fetch, FetchFailure, Fetched, Fetcher, KeptSecret, KeyCredentials, KeyService, KeySpec,
    KeyType, SystemClock,
};
use time::OffsetDateTime;
use tokio::runtime::Runtime;

const KINDS: [KeyType; 6] =
    [KeyType::Null, KeyType::Aws, KeyType::Gcp, KeyType::Azure, KeyType::Vault, KeyType::Pkcs11];
const STATUSES: [u16; 10] = [200, 200, 200, 400, 401, 403, 404, 429, 503, 302];
const CANARY: &str = "canary-of-the-operator";

/// Answers everything with the same.
#[derive(Default)]
struct Same(Mutex<(u16, Vec<u8>)>);

#[async_trait]
impl Fetcher for Same {
    async fn fetch(&self, _: Fetch) -> Result<Fetched, FetchFailure> {
        let (status, body) = self.0.lock().unwrap().clone();
        Ok(Fetched { status, kind: String::new(), max_age: None, body })
    }
}

struct World {
    runtime: Runtime,
    fetcher: Arc<Same>,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World {
        runtime: tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap(),
        fetcher: Arc::default(),
    });
}

/// A key of the provider's with a name that is well formed, and something that it could have wrapped.
fn key(kind: KeyType, fetcher: Arc<Same>) -> (Arc<dyn KeyEncryption>, WrappedKey) {
    let secret = || KeptSecret::new(CANARY.into());
    let arn = "arn:aws:kms:eu-central-1:111122223333:key/1";
    let (uri, principal, address, credentials, algorithm, wrapped) = match kind {
        KeyType::Aws => {
            let credentials = KeyCredentials::AwsAccessKey {
                access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
                secret_access_key: secret(),
                session_token: Some(secret()),
                external_id: None,
            };
            (arn, "arn:aws:iam::111122223333:role/r", "", credentials, "SYMMETRIC_DEFAULT", "AAAA")
        }
        _ => {
            let token = KeyCredentials::VaultToken(secret());
            ("transit/keys/a", "", "https://vault.example", token, "vault-transit", "vault:v1:AAAA")
        }
    };
    let kind = if kind == KeyType::Aws { kind } else { KeyType::Vault };
    let service = KeyService {
        name: "a".parse().unwrap(),
        kind,
        address: address.into(),
        ca_pem: None,
        namespace: None,
        credentials,
        updated_at: OffsetDateTime::UNIX_EPOCH,
    };
    let spec = KeySpec { kind, uri: uri.into(), service: None, ..KeySpec::root() };
    // Without the role, what KMS answers is reached; with it, what STS answers.
    let is_role = fetcher.0.lock().unwrap().1.first() == Some(&b'<');
    let auth_principal = if is_role { principal.into() } else { String::new() };
    let spec = KeySpec { auth_principal, ..spec };
    let wrapped = WrappedKey {
        key: spec.clone(),
        key_id: uri.into(),
        key_version: if kind == KeyType::Aws { String::new() } else { "1".into() },
        algorithm: algorithm.into(),
        wrapped: wrapped.into(),
    };
    (keys::service::open(&service, &spec, fetcher, Arc::new(SystemClock)).unwrap(), wrapped)
}

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    let [kind, status, rest @ ..] = bytes else { return };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    if let Ok(text) = std::str::from_utf8(rest) {
        let is_right = keys::service::check(kind, text, "").is_ok();
        assert!(!is_right || !text.contains([' ', '\n', '?', '#']), "{text}");
    }
    WORLD.with_borrow(|World { runtime, fetcher }| {
        *fetcher.0.lock().unwrap() = (STATUSES[usize::from(*status) % STATUSES.len()], rest.to_vec());
        let (key, wrapped) = key(kind, fetcher.clone());
        let place = Binding::Volume(ClusterId::random());
        runtime.block_on(async {
            let wrapping = key.wrap(&DataKey::random(), &place).await;
            let unwrapping = key.unwrap(&wrapped, &place).await;
            for text in [format!("{wrapping:?}"), format!("{unwrapping:?}")] {
                assert!(!text.contains(CANARY) && text.len() < 20_000, "{text}");
            }
        });
    });
}
