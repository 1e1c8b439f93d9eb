//! A real OpenBao: keys of its transit engine wrap data keys, and what it refuses is told apart.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keys::{DataKey, KeyEncryption, KeyFailure};
use model::{KeptSecret, KeyCredentials, KeyService, KeyType};
use reqwest::Method;
use serde_json::{Value, json};

use crate::ports::two_free_ports;
use crate::world::{
    Loopback, Program, TestClock, client, installed, kind_of, open, place, ready, service, spec,
};

const ROOT: &str = "root-token-of-the-test";
const POLICY: &str = r#"
path "transit/keys/shop" { capabilities = ["read"] }
path "transit/encrypt/shop" { capabilities = ["update"] }
path "transit/decrypt/shop" { capabilities = ["update"] }
"#;

struct Bao {
    address: String,
    ca_pem: Option<String>,
    _program: Program,
}

impl Bao {
    /// With a transit engine and the key `shop` of this type.
    async fn start(key_type: &str) -> Self {
        Self::start_with(key_type, false).await
    }

    async fn start_with(key_type: &str, is_tls: bool) -> Self {
        // It takes the port after the one where it answers too.
        let (home, port) = (tempfile::tempdir().unwrap(), two_free_ports().port());
        let mut command = Command::new(installed("bao"));
        command
            .env("HOME", home.path())
            .args(["server", if is_tls { "-dev-tls" } else { "-dev" }, "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={ROOT}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"));
        if is_tls {
            command.arg(format!("-dev-tls-cert-dir={}", home.path().display()));
        }
        let ca_path = home.path().join("vault-ca.pem");
        let program = Program::start(&mut command, home);
        let mut ca_pem = None;
        if is_tls {
            for _ in 0..300 {
                ca_pem = std::fs::read_to_string(&ca_path).ok().filter(|pem| pem.contains("-----END"));
                if ca_pem.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(ca_pem.is_some(), "no certificate at {}", ca_path.display());
        }
        let address = format!("{}://127.0.0.1:{port}", if is_tls { "https" } else { "http" });
        ready(&format!("{address}/v1/sys/health"), ca_pem.as_deref()).await;
        let bao = Self { address, ca_pem, _program: program };
        bao.admin(Method::POST, "sys/mounts/transit", &json!({"type": "transit"})).await;
        bao.admin(Method::POST, "transit/keys/shop", &json!({"type": key_type})).await;
        bao.policy(POLICY).await;
        bao
    }

    async fn admin(&self, method: Method, path: &str, body: &Value) -> Value {
        let request = client(self.ca_pem.as_deref())
            .request(method, format!("{}/v1/{path}", self.address))
            .header("x-vault-token", ROOT)
            .json(body);
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    async fn policy(&self, text: &str) {
        self.admin(Method::PUT, "sys/policies/acl/shop", &json!({"policy": text})).await;
    }

    /// A token with the policy, for so long.
    async fn token(&self, ttl: &str) -> KeptSecret {
        self.token_with(&json!({"policies": ["shop"], "ttl": ttl, "no_parent": true})).await
    }

    async fn token_with(&self, body: &Value) -> KeptSecret {
        let made = self.admin(Method::POST, "auth/token/create", body).await;
        KeptSecret::new(made["auth"]["client_token"].as_str().unwrap().to_owned())
    }

    async fn app_role(&self, ttl: &str) -> KeyCredentials {
        self.admin(Method::POST, "sys/auth/approle", &json!({"type": "approle"})).await;
        let body = json!({"token_policies": ["shop"], "token_ttl": ttl});
        self.admin(Method::POST, "auth/approle/role/chitin", &body).await;
        let role = self.admin(Method::GET, "auth/approle/role/chitin/role-id", &json!({})).await;
        let secret = self.admin(Method::POST, "auth/approle/role/chitin/secret-id", &json!({})).await;
        KeyCredentials::VaultAppRole {
            role_id: role["data"]["role_id"].as_str().unwrap().to_owned(),
            secret_id: KeptSecret::new(secret["data"]["secret_id"].as_str().unwrap().to_owned()),
            mount: "approle".into(),
        }
    }

    fn service(&self, credentials: KeyCredentials) -> KeyService {
        KeyService { ca_pem: self.ca_pem.clone(), ..service(KeyType::Vault, &self.address, credentials) }
    }

    async fn key(&self) -> Arc<dyn KeyEncryption> {
        let token = self.token("1h").await;
        open(&self.service(KeyCredentials::VaultToken(token)), &spec(KeyType::Vault, "transit/keys/shop"))
    }
}

#[tokio::test]
async fn a_transit_key_wraps_and_opens_for_its_own_cluster_only() {
    let bao = Bao::start("aes256-gcm96").await;
    let key = bao.key().await;
    let (mine, data_key) = (place(), DataKey::random());
    let wrapped = key.wrap(&data_key, &mine).await.unwrap();
    assert_eq!((wrapped.key_id.as_str(), wrapped.key_version.as_str()), ("transit/keys/shop", "1"));
    assert_eq!(key.unwrap(&wrapped, &mine).await.unwrap().expose(), data_key.expose());
    assert_eq!(kind_of(key.unwrap(&wrapped, &place()).await), "does not open");

    let mut flipped = wrapped.clone();
    let last = flipped.wrapped.pop().unwrap();
    flipped.wrapped.insert(flipped.wrapped.len() - 8, if last == 'A' { 'B' } else { 'A' });
    assert_eq!(kind_of(key.unwrap(&flipped, &mine).await), "does not open");
    for text in ["", "vault:v1:", "vault:v1:AAAA", "vault:v9:AAAA"] {
        let foreign = keys::WrappedKey { wrapped: text.to_owned(), ..wrapped.clone() };
        assert_eq!(kind_of(key.unwrap(&foreign, &mine).await), "does not open", "{text}");
    }
}

#[tokio::test]
async fn a_rotated_transit_key_wraps_with_its_new_version_and_opens_what_the_old_one_wrapped() {
    let bao = Bao::start("chacha20-poly1305").await;
    let key = bao.key().await;
    let (mine, data_key) = (place(), DataKey::random());
    let old = key.wrap(&data_key, &mine).await.unwrap();
    bao.admin(Method::POST, "transit/keys/shop/rotate", &json!({})).await;
    let new = key.wrap(&data_key, &mine).await.unwrap();
    assert_eq!((old.key_version.as_str(), new.key_version.as_str()), ("1", "2"));
    for wrapped in [&old, &new] {
        assert_eq!(key.unwrap(wrapped, &mine).await.unwrap().expose(), data_key.expose());
    }
    // The service says that versions so old may not be used any more.
    bao.admin(Method::POST, "transit/keys/shop/config", &json!({"min_decryption_version": 2})).await;
    assert_eq!(kind_of(key.unwrap(&old, &mine).await), "denied");
    assert_eq!(kind_of(key.unwrap(&new, &mine).await), "opens");
}

#[tokio::test]
async fn what_a_policy_forbids_is_denied_and_opens_again_when_it_is_allowed() {
    let bao = Bao::start("aes256-gcm96").await;
    let key = bao.key().await;
    let mine = place();
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    bao.policy(r#"path "transit/keys/other" { capabilities = ["read"] }"#).await;
    let denied = key.unwrap(&wrapped, &mine).await.unwrap_err();
    assert!(matches!(denied, KeyFailure::Denied { .. }), "{denied}");
    assert!(denied.to_string().contains("update on transit/decrypt/shop"), "{denied}");
    assert_eq!(kind_of(key.wrap(&DataKey::random(), &mine).await), "denied");
    bao.policy(POLICY).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
}

#[tokio::test]
async fn a_deleted_key_is_denied_and_not_made_anew() {
    let bao = Bao::start("aes256-gcm96").await;
    // Who may create could make a key by encrypting with it.
    bao.policy(r#"path "transit/*" { capabilities = ["create", "read", "update"] }"#).await;
    let key = bao.key().await;
    let mine = place();
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    bao.admin(Method::POST, "transit/keys/shop/config", &json!({"deletion_allowed": true})).await;
    bao.admin(Method::DELETE, "transit/keys/shop", &json!({})).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "denied");
    assert_eq!(kind_of(key.wrap(&DataKey::random(), &mine).await), "denied");
    let left = client(None)
        .get(format!("{}/v1/transit/keys/shop", bao.address))
        .header("x-vault-token", ROOT)
        .send()
        .await
        .unwrap();
    assert_eq!(left.status(), 404, "the key was made anew");
    // Another key of the same name is not the same key.
    bao.admin(Method::POST, "transit/keys/shop", &json!({"type": "aes256-gcm96"})).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "does not open");
    bao.admin(Method::DELETE, "sys/mounts/transit", &json!({})).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "denied");
}

#[tokio::test]
async fn keys_that_cannot_bind_a_data_key_to_its_cluster_are_refused_with_what_to_make() {
    let bao = Bao::start("rsa-2048").await;
    let key = bao.key().await;
    let refused = key.wrap(&DataKey::random(), &place()).await.unwrap_err();
    assert!(matches!(refused, KeyFailure::Unusable { .. }), "{refused}");
    assert!(refused.to_string().contains("make one of the type aes256-gcm96"), "{refused}");
}

#[tokio::test]
async fn a_sealed_or_an_absent_vault_is_unreachable() {
    let bao = Bao::start("aes256-gcm96").await;
    let key = bao.key().await;
    let mine = place();
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    bao.admin(Method::PUT, "sys/seal", &json!({})).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "unreachable");
    drop(bao);
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "unreachable");
}

#[tokio::test]
async fn approle_signs_in_again_when_its_token_has_ended_and_denies_no_key_when_it_may_not() {
    let bao = Bao::start("aes256-gcm96").await;
    let service = bao.service(bao.app_role("1h").await);
    let (fetcher, clock) = (Arc::<Loopback>::default(), TestClock::new());
    let spec = spec(KeyType::Vault, "transit/keys/shop");
    let key = keys::service::open(&service, &spec, fetcher.clone(), clock.clone()).unwrap();
    let mine = place();
    let sign_ins = || {
        let fetches = fetcher.fetches.lock().unwrap();
        fetches.iter().filter(|fetch| fetch.url.ends_with("/auth/approle/login")).count()
    };
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
    assert_eq!(sign_ins(), 1, "the token is kept");

    clock.advance(time::Duration::minutes(50));
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
    assert_eq!(sign_ins(), 2, "before the token ends, another is asked for");

    // As if it had ended early.
    let accessors = bao.admin(Method::from_bytes(b"LIST").unwrap(), "auth/token/accessors", &json!({})).await;
    for accessor in accessors["data"]["keys"].as_array().unwrap() {
        let found =
            bao.admin(Method::POST, "auth/token/lookup-accessor", &json!({"accessor": accessor})).await;
        if found["data"]["path"] == "auth/approle/login" {
            bao.admin(Method::POST, "auth/token/revoke-accessor", &json!({"accessor": accessor})).await;
        }
    }
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
    assert_eq!(sign_ins(), 3);

    // What the role may is taken away: a fresh sign-in shows that the refusal is about the key.
    bao.policy(r#"path "transit/keys/other" { capabilities = ["read"] }"#).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "denied");
    bao.policy(POLICY).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");

    // The role is taken away with all it gave.
    bao.admin(Method::DELETE, "sys/auth/approle", &json!({})).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "unauthenticated");
    assert!(
        fetcher.fetches.lock().unwrap().iter().all(|fetch| fetch.cluster == mine.cluster()),
        "each fetch is on the cluster's behalf"
    );
}

#[tokio::test]
async fn a_wrong_secret_id_denies_no_key_and_is_never_repeated() {
    let bao = Bao::start("aes256-gcm96").await;
    let KeyCredentials::VaultAppRole { role_id, mount, .. } = bao.app_role("1h").await else {
        unreachable!("it is AppRole");
    };
    let secret_id = KeptSecret::new("canary-canary-canary".into());
    let service = bao.service(KeyCredentials::VaultAppRole { role_id, secret_id, mount });
    let key = open(&service, &spec(KeyType::Vault, "transit/keys/shop"));
    let refused = key.wrap(&DataKey::random(), &place()).await.unwrap_err();
    assert!(matches!(refused, KeyFailure::Unauthenticated { .. }), "{refused}");
    assert!(!format!("{refused:?} {key:?}").contains("canary"), "{refused:?} {key:?}");
}

#[tokio::test]
async fn a_token_that_was_given_is_renewed_while_it_is_used_and_denies_no_key_when_it_is_revoked() {
    let bao = Bao::start("aes256-gcm96").await;
    let token = bao.token("12s").await;
    let (fetcher, clock) = (Arc::<Loopback>::default(), TestClock::new());
    let service = bao.service(KeyCredentials::VaultToken(token.clone()));
    let spec = spec(KeyType::Vault, "transit/keys/shop");
    let key = keys::service::open(&service, &spec, fetcher.clone(), clock.clone()).unwrap();
    let mine = place();
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    let renewals =
        || fetcher.fetches.lock().unwrap().iter().filter(|f| f.url.ends_with("/renew-self")).count();
    // In its second half, by the service's clock.
    while renewals() == 0 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        clock.advance(time::Duration::seconds(8));
        assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
    }
    let seen = bao.admin(Method::POST, "auth/token/lookup", &json!({"token": token.expose()})).await;
    assert!(seen["data"]["last_renewal"].is_string(), "{seen}");
    assert!(fetcher.count.load(Ordering::SeqCst) < 80, "it is not asked at every turn");

    bao.admin(Method::POST, "auth/token/revoke", &json!({"token": token.expose()})).await;
    let refused = key.unwrap(&wrapped, &mine).await.unwrap_err();
    assert!(matches!(refused, KeyFailure::Unauthenticated { .. }), "{refused}");
    assert!(!refused.to_string().contains(token.expose()), "{refused}");
}

#[tokio::test]
async fn a_revoked_token_and_a_policy_that_was_removed_are_told_apart_whatever_the_token_may_look_at() {
    let bao = Bao::start("aes256-gcm96").await;
    let mine = place();
    // With the default policy a token may look at itself; without it, at nothing but what its own policy names.
    for no_default_policy in [false, true] {
        let body = json!({"policies": ["shop"], "ttl": "1h", "no_parent": true,
            "no_default_policy": no_default_policy});
        let token = bao.token_with(&body).await;
        let service = bao.service(KeyCredentials::VaultToken(token.clone()));
        let key = open(&service, &spec(KeyType::Vault, "transit/keys/shop"));
        let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
        // Whoever takes the right to the key away must be believed, and so must whoever removes the key.
        bao.policy(r#"path "secret/data/other" { capabilities = ["read"] }"#).await;
        assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "denied", "{no_default_policy}");
        bao.policy(POLICY).await;
        assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
        bao.admin(Method::POST, "auth/token/revoke", &json!({"token": token.expose()})).await;
        let ended = key.unwrap(&wrapped, &mine).await.unwrap_err();
        assert!(matches!(ended, KeyFailure::Unauthenticated { .. }), "{no_default_policy}: {ended}");
        assert!(ended.to_string().contains("give the key service one that is valid"), "{ended}");
    }
    // And what never was a token.
    let typo = KeyCredentials::VaultToken(KeptSecret::new("canary-canary".into()));
    let key = open(&bao.service(typo), &spec(KeyType::Vault, "transit/keys/shop"));
    let refused = key.wrap(&DataKey::random(), &mine).await.unwrap_err();
    assert!(matches!(refused, KeyFailure::Unauthenticated { .. }), "{refused}");
    assert!(!refused.to_string().contains("canary"), "{refused}");
}

#[tokio::test]
async fn a_key_in_a_namespace_is_found_there_only() {
    let bao = Bao::start("aes256-gcm96").await;
    bao.admin(Method::POST, "sys/namespaces/team", &json!({})).await;
    bao.admin(Method::POST, "team/sys/mounts/transit", &json!({"type": "transit"})).await;
    bao.admin(Method::POST, "team/transit/keys/inside", &json!({"type": "aes256-gcm96"})).await;
    let token = KeyCredentials::VaultToken(KeptSecret::new(ROOT.into()));
    let outside = bao.service(token);
    let inside = KeyService { namespace: Some("team".into()), ..outside.clone() };
    let spec = spec(KeyType::Vault, "transit/keys/inside");
    let mine = place();
    let wrapped = open(&inside, &spec).wrap(&DataKey::random(), &mine).await.unwrap();
    assert_eq!(kind_of(open(&inside, &spec).unwrap(&wrapped, &mine).await), "opens");
    assert_eq!(kind_of(open(&outside, &spec).unwrap(&wrapped, &mine).await), "denied");
}

#[tokio::test]
async fn over_tls_only_the_certificates_that_were_given_are_trusted() {
    let bao = Bao::start_with("aes256-gcm96", true).await;
    let key = bao.key().await;
    let mine = place();
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");

    let token = KeyCredentials::VaultToken(bao.token("1h").await);
    let without = KeyService { ca_pem: None, ..bao.service(token) };
    let stranger = open(&without, &spec(KeyType::Vault, "transit/keys/shop"));
    assert_eq!(kind_of(stranger.unwrap(&wrapped, &mine).await), "unreachable");
}
