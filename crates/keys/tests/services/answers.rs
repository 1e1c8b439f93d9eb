//! Answers that no real service gives on demand: refusals by the gate, redirects, pages of proxies, rubbish, echoes of what
//! was sent. Every provider that speaks HTTP must take them as what they are, and never as a service's word about a key.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keys::{Binding, DataKey, KeyEncryption, WrappedKey};
use model::{
    Fetch, FetchFailure, Fetched, Fetcher, KeptSecret, KeyCredentials, KeySpec, KeyType, SystemClock,
};

use crate::google::Google;
use crate::world::{kind_of, place, service, spec};

const CANARY: &str = "canary-canary-canary-canary-canary-canary";
const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd";
const GOOGLE_KEY: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/k";

type Reply = Result<Fetched, FetchFailure>;

/// Answers everything with the same, except what gives a token of Google's.
struct Same {
    reply: Reply,
    fetches: Mutex<Vec<Fetch>>,
}

#[async_trait]
impl Fetcher for Same {
    async fn fetch(&self, fetch: Fetch) -> Reply {
        let is_token = fetch.url.ends_with("/token");
        self.fetches.lock().unwrap().push(fetch);
        if is_token {
            return Ok(answer(200, r#"{"access_token": "canary-canary", "expires_in": 3599}"#));
        }
        self.reply.clone()
    }
}

fn answer(status: u16, body: &str) -> Fetched {
    Fetched { status, kind: String::new(), max_age: None, body: body.as_bytes().to_vec() }
}

fn providers(google: &Google) -> [(KeySpec, KeyCredentials, &'static str); 4] {
    let secret = || KeptSecret::new(CANARY.to_owned());
    let aws = || KeyCredentials::AwsAccessKey {
        access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
        secret_access_key: secret(),
        session_token: Some(secret()),
        external_id: None,
    };
    let role = "arn:aws:iam::111122223333:role/keys".to_owned();
    [
        (
            spec(KeyType::Vault, "transit/keys/shop"),
            KeyCredentials::VaultToken(secret()),
            "https://vault.example",
        ),
        (spec(KeyType::Aws, ARN), aws(), ""),
        (KeySpec { auth_principal: role, ..spec(KeyType::Aws, ARN) }, aws(), ""),
        (spec(KeyType::Gcp, GOOGLE_KEY), KeyCredentials::GcpServiceAccount(google.key_file.clone()), ""),
    ]
}

/// A wrapped key that looks as the provider's own do.
fn wrapped(spec: &KeySpec) -> WrappedKey {
    let (algorithm, version, text) = match spec.kind {
        KeyType::Vault => ("vault-transit", "1", "vault:v1:AAAA"),
        KeyType::Aws => ("SYMMETRIC_DEFAULT", "", "AAAA"),
        _ => ("GOOGLE_SYMMETRIC_ENCRYPTION", "1", "AAAA"),
    };
    WrappedKey {
        key: spec.clone(),
        key_id: spec.uri.clone(),
        key_version: version.to_owned(),
        algorithm: algorithm.to_owned(),
        wrapped: text.to_owned(),
    }
}

/// What each provider makes of the reply, when it unwraps and when it wraps.
async fn all(reply: Reply, check: impl Fn(&'static str, &KeySpec)) {
    let google = Google::start().await;
    for (spec, credentials, address) in providers(&google) {
        let fetcher = Arc::new(Same { reply: reply.clone(), fetches: Mutex::default() });
        let service = service(spec.kind, address, credentials);
        let key: Arc<dyn KeyEncryption> =
            keys::service::open(&service, &spec, fetcher.clone(), Arc::new(SystemClock)).unwrap();
        let mine: Binding = place();
        let unwrapped = key.unwrap(&wrapped(&spec), &mine).await.map(|_| ());
        let wrapped = key.wrap(&DataKey::random(), &mine).await.map(|_| ());
        for result in [unwrapped, wrapped] {
            let printed = format!("{result:?}");
            assert!(!printed.contains("canary") && printed.len() < 1_500, "{printed}");
            check(kind_of(result), &spec);
        }
        for fetch in fetcher.fetches.lock().unwrap().iter() {
            assert!(!format!("{fetch:?}").contains("canary"), "{fetch:?}");
            assert_eq!(fetch.cluster, mine.cluster(), "the cluster's egress policy judges {}", fetch.url);
            assert!(fetch.bytes_max <= 64 * 1024 && fetch.time_max.as_secs() <= 10);
        }
    }
}

fn is(wanted: &'static str) -> impl Fn(&'static str, &KeySpec) {
    move |found, spec| assert_eq!(found, wanted, "{spec}")
}

#[tokio::test]
async fn what_the_gate_refuses_or_does_not_reach_says_nothing_of_the_key() {
    for failure in [
        FetchFailure::Refused("the cluster's egress policy does not name kms.example".into()),
        FetchFailure::Failed("connection refused".into()),
        FetchFailure::TimedOut,
    ] {
        all(Err(failure), is("unreachable")).await;
    }
    all(Err(FetchFailure::TooLong(65_536)), is("unusable")).await;
}

#[tokio::test]
async fn redirects_pages_of_proxies_and_failures_are_nobody_s_word_about_a_key() {
    for status in [301, 302, 307, 308] {
        all(Ok(answer(status, r#"{"errors": ["permission denied"]}"#)), is("unreachable")).await;
    }
    for status in [400, 401, 403, 404, 407, 429, 500, 502, 503] {
        for body in ["<html>Forbidden by the proxy</html>", "", "{}", "[]", "\u{0}\u{1}"] {
            all(Ok(answer(status, body)), is("unreachable")).await;
        }
    }
}

/// Answers a question about a Vault's key with one refusal, and what is asked about the token with others.
struct Telling {
    look_up: Fetched,
    preflight: Fetched,
}

#[async_trait]
impl Fetcher for Telling {
    async fn fetch(&self, fetch: Fetch) -> Reply {
        Ok(match fetch.url.strip_prefix("https://vault.example/v1/").unwrap() {
            "auth/token/lookup-self" => self.look_up.clone(),
            "sys/internal/ui/mounts/sys" => self.preflight.clone(),
            _ => answer(403, DENIED),
        })
    }
}

const DENIED: &str = r#"{"errors": ["1 error occurred:\n\t* permission denied\n\n"]}"#;

#[tokio::test]
async fn a_refusal_counts_for_the_key_unless_the_service_says_that_it_does_not_know_the_token() {
    let preflight = r#"{"errors": ["preflight capability check returned 403, please ensure client's policies grant access to path \"sys/\""]}"#;
    let newer = r#"{"errors": ["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]}"#;
    let older = r#"{"errors": ["bad token"]}"#;
    let itself = r#"{"data": {"ttl": 0}}"#;
    let sealed = r#"{"errors": ["Vault is sealed"]}"#;
    let none = r#"{"errors": ["unsupported path"]}"#;
    let page = "<html>Forbidden by the proxy</html>";
    for (look_up, preflight, wanted) in [
        ((200, itself), (500, ""), "denied"),
        ((403, newer), (500, ""), "unauthenticated"),
        ((403, older), (500, ""), "unauthenticated"),
        ((403, DENIED), (403, preflight), "denied"),
        ((403, DENIED), (200, "{}"), "denied"),
        ((403, DENIED), (403, r#"{"errors": ["permission denied"]}"#), "unauthenticated"),
        ((403, DENIED), (403, newer), "unauthenticated"),
        // It does not tell: then the key counts as taken away.
        ((403, DENIED), (404, none), "denied"),
        ((403, DENIED), (400, none), "denied"),
        // Nothing is known, and it is asked again.
        ((403, DENIED), (503, sealed), "unreachable"),
        ((503, sealed), (200, "{}"), "unreachable"),
        ((403, DENIED), (403, page), "unreachable"),
        ((403, page), (200, "{}"), "unreachable"),
        ((302, ""), (200, "{}"), "unreachable"),
    ] {
        let token = KeyCredentials::VaultToken(KeptSecret::new(CANARY.to_owned()));
        let of = |(status, body)| answer(status, body);
        let fetcher = Arc::new(Telling { look_up: of(look_up), preflight: of(preflight) });
        let spec = spec(KeyType::Vault, "transit/keys/shop");
        let service = service(spec.kind, "https://vault.example", token);
        let key = keys::service::open(&service, &spec, fetcher, Arc::new(SystemClock)).unwrap();
        let refused = key.unwrap(&wrapped(&spec), &place()).await.map(|_| ());
        assert!(!format!("{refused:?}").contains("canary"), "{refused:?}");
        assert_eq!(kind_of(refused), wanted, "{look_up:?} {preflight:?}");
    }
}

#[tokio::test]
async fn a_success_that_is_no_answer_is_never_taken_for_a_key() {
    for body in [
        "",
        "{}",
        "null",
        "<html>",
        r#"{"data": {"type": "aes256-gcm96", "ciphertext": "plain", "plaintext": 1}}"#,
        r#"{"CiphertextBlob": "%%%", "KeyId": 7, "Plaintext": null}"#,
        r#"{"name": "x", "ciphertext": "AAAA", "ciphertextCrc32c": "0", "plaintext": "AAAA"}"#,
    ] {
        all(Ok(answer(200, body)), |found, spec| {
            assert!(found == "unusable" || found == "unreachable", "{found} {spec}");
        })
        .await;
    }
    // A plaintext that is too short to be a data key.
    let short = r#"{"data": {"plaintext": "AAAA"}, "Plaintext": "AAAA", "KeyId": "arn:aws:kms:eu-central-1:111122223333:key/1234abcd", "plaintext": "AAAA", "plaintextCrc32c": "0"}"#;
    all(Ok(answer(200, short)), |found, spec| assert_ne!(found, "opens", "{spec}")).await;
}

#[tokio::test]
async fn a_service_that_repeats_our_secrets_does_not_get_them_into_our_texts() {
    // A list of errors of Vault's, an error of KMS and one of Google's, each with all it was sent.
    let echo = format!(
        r#"{{"errors": ["you sent {CANARY}"], "__type": "x#ValidationException",
            "message": "you sent {CANARY}\nx-amz-security-token:{CANARY}",
            "error": {{"code": 400, "status": "INVALID_ARGUMENT", "message": "no"}}}}"#
    );
    all(Ok(answer(400, &echo)), is("unusable")).await;
}

/// Never answers before its time is over.
#[derive(Default)]
struct Silent;

#[async_trait]
impl Fetcher for Silent {
    async fn fetch(&self, fetch: Fetch) -> Reply {
        tokio::time::sleep(fetch.time_max).await;
        Err(FetchFailure::TimedOut)
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_clusters_do_not_wait_behind_each_other_for_a_service_that_is_silent() {
    let google = Google::start().await;
    for (spec, credentials, address) in providers(&google) {
        let service = service(spec.kind, address, credentials);
        let key = keys::service::open(&service, &spec, Arc::new(Silent), Arc::new(SystemClock)).unwrap();
        let begun = tokio::time::Instant::now();
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (key, wrapped) = (key.clone(), wrapped(&spec));
            asked.spawn(async move { kind_of(key.unwrap(&wrapped, &place()).await) });
        }
        while let Some(answered) = asked.join_next().await {
            assert_eq!(answered.unwrap(), "unreachable", "{spec}");
        }
        assert!(begun.elapsed().as_secs() <= 60, "{spec}: {:?}", begun.elapsed());
    }
}
