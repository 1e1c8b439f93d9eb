//! Key services: set by an operator, and attacked for their secrets.

use control::Refusal;
use model::{KeyCredentials, KeyType};
use serde_json::{Value, json};

use crate::world::{Answer, World};

const CANARY: &str = "canary-4711";

pub fn vault() -> Value {
    json!({"type": "VAULT_TRANSIT", "address": "https://vault.example.org:8200", "credentials": {"token": CANARY}})
}

pub fn aws() -> Value {
    json!({"type": "AWS_KMS", "credentials":
        {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": CANARY}})
}

fn role() -> Value {
    json!({"type": "VAULT_TRANSIT", "address": "https://vault.example.org:8200",
        "credentials": {"role_id": "role-one", "secret_id": CANARY}})
}

pub async fn set(world: &World, name: &str, service: Value) -> Answer {
    world.call("PUT", &format!("/chitin/key-services/{name}"), service).await
}

fn with(mut body: Value, member: &str, value: Value) -> Value {
    body[member] = value;
    body
}

fn without(mut body: Value, member: &str) -> Value {
    body.as_object_mut().unwrap().remove(member);
    body
}

fn kept(world: &World, name: &str) -> model::KeyService {
    (**world.store.snapshot().key_service(&name.parse().unwrap()).unwrap()).clone()
}

fn refused(answer: &Answer, why: &str) {
    assert_eq!(answer.refusal(), (400, 3), "{}", answer.text);
    assert!(answer.text.contains(why), "{why}: {}", answer.text);
    assert!(!answer.text.contains("canary"), "{}", answer.text);
}

#[tokio::test]
async fn a_service_is_kept_shown_without_its_secret_and_removed() {
    let world = World::new();
    let made = set(&world, "vault", vault()).await;
    assert_eq!(made.status, 200, "{}", made.text);
    assert_eq!(made.json()["sign_in"], "token");
    let role = set(&world, "role", role()).await;
    assert_eq!(
        (&role.json()["principal"], &role.json()["role_mount"]),
        (&json!("role-one"), &json!("approle"))
    );
    let list = world.get("/chitin/key-services").await;
    let names: Vec<Value> =
        list.json()["key_services"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["role", "vault"]);
    let one = world.get("/chitin/key-services/vault").await;
    let removed = world.call("DELETE", "/chitin/key-services/vault", Value::Null).await;
    assert_eq!((removed.status, &removed.json()["name"]), (200, &json!("vault")));
    let again = world.call("DELETE", "/chitin/key-services/vault", Value::Null).await;
    assert_eq!(again.refusal(), (404, 5));
    assert_eq!(world.get("/chitin/key-services/vault").await.refusal(), (404, 5));
    for answer in [made, role, list, one, removed, again] {
        assert!(!answer.text.contains("canary"), "{}", answer.text);
    }
}

#[tokio::test]
async fn a_kept_secret_goes_to_no_other_place() {
    let world = World::new();
    set(&world, "vault", vault()).await;
    let same = without(vault(), "credentials");
    assert_eq!(set(&world, "vault", same.clone()).await.status, 200);
    let KeyCredentials::VaultToken(token) = kept(&world, "vault").credentials else { panic!() };
    assert_eq!(token.expose(), CANARY);
    let before = kept(&world, "vault");
    let own = rcgen::generate_simple_self_signed(vec!["thief".to_owned()]).unwrap().cert.pem();
    for elsewhere in [
        with(same.clone(), "address", json!("https://thief.example.org")),
        with(same.clone(), "address", json!("https://vault.example.org:8201")),
        with(same.clone(), "namespace", json!("thief")),
        with(same.clone(), "ca_pem", json!(own)),
    ] {
        refused(&set(&world, "vault", elsewhere.clone()).await, "again");
        let empty = with(elsewhere, "credentials", json!({}));
        refused(&set(&world, "vault", empty).await, "again");
    }
    refused(&set(&world, "vault", aws()).await, "keeps its type");
    assert_eq!(kept(&world, "vault"), before);
    // With the secret said anew, it may move.
    let moved = with(vault(), "address", json!("https://new.example.org"));
    assert_eq!(set(&world, "vault", moved).await.status, 200);

    set(&world, "role", role()).await;
    let only_id = |id: &str| with(role(), "credentials", json!({"role_id": id}));
    assert_eq!(set(&world, "role", only_id("role-one")).await.status, 200);
    refused(&set(&world, "role", only_id("role-two")).await, "secret_id");
    let mount = with(role(), "credentials", json!({"role_id": "role-one", "role_mount": "thief"}));
    refused(&set(&world, "role", mount).await, "secret_id");

    set(&world, "cloud", aws()).await;
    let only_id = |id: &str| with(aws(), "credentials", json!({"access_key_id": id}));
    assert_eq!(set(&world, "cloud", only_id("AKIAIOSFODNN7EXAMPLE")).await.status, 200);
    refused(&set(&world, "cloud", only_id("AKIAIOSFODNN7OTHERONE")).await, "secret_access_key");
    let endpoint = with(only_id("AKIAIOSFODNN7EXAMPLE"), "address", json!("https://thief.example.org"));
    refused(&set(&world, "cloud", endpoint).await, "secret_access_key");
}

#[tokio::test]
async fn what_is_no_service_is_refused_without_repeating_a_secret() {
    let world = World::new();
    let token = |text: &str| with(vault(), "credentials", json!({"token": text}));
    for wrong in [
        without(vault(), "credentials"),
        without(vault(), "type"),
        with(vault(), "type", json!("NULL_KMS")),
        with(vault(), "type", json!("AZURE_KEY_VAULT")),
        with(vault(), "type", json!(CANARY)),
        with(vault(), "address", json!("")),
        with(vault(), "address", json!("http://vault.example.org")),
        with(vault(), "address", json!("https://canary@vault.example.org")),
        with(vault(), "address", json!("file:///etc/passwd")),
        with(vault(), "address", json!(format!("https://{}", "a".repeat(10_000)))),
        with(vault(), "namespace", json!("a\nb")),
        with(vault(), "ca_pem", json!(CANARY)),
        with(vault(), "credentials", json!(CANARY)),
        with(vault(), "credentials", json!({"token": [CANARY]})),
        with(vault(), "credentials", json!({"token": CANARY, "role_id": "r", "secret_id": CANARY})),
        with(vault(), "credentials", json!({"pin": CANARY})),
        with(vault(), "credentials", json!({"role_id": "r"})),
        token(""),
        token("canary\r\nX-Vault-Token: root"),
        token(&"canary".repeat(100_000)),
        with(aws(), "credentials", json!({"secret_access_key": CANARY})),
        json!({"type": "GCP_CLOUD_KMS", "credentials": {"credentials_json": CANARY}}),
        json!({"type": "PKCS11", "address": "../canary.so", "credentials": {"pin": CANARY}}),
    ] {
        let answer = set(&world, "wrong", wrong.clone()).await;
        let (status, _) = answer.refusal();
        assert_eq!(status, 400, "{wrong:.100} {}", answer.text);
        let is_type = wrong["type"] == json!(CANARY);
        assert!(is_type || !answer.text.contains("canary"), "{}", answer.text);
    }
    for name in ["a%2Fb", "..", "A", "%00", &"a".repeat(65)] {
        let answer = set(&world, name, vault()).await;
        assert!([(400, 3), (404, 5)].contains(&answer.refusal()), "{name}: {}", answer.text);
    }
    assert_eq!(world.store.snapshot().key_services().count(), 0);
}

#[tokio::test]
async fn a_service_that_a_cluster_needs_stays() {
    let world = World::new();
    let id = world.made("shop-one").await;
    set(&world, "vault", vault()).await;
    set(&world, "next", vault()).await;
    let to = |service: &str| {
        json!({"region_specs": [{"region": "us-central1", "key_spec":
            {"type": "VAULT_TRANSIT", "uri": "transit/keys/shop", "service": service}}]})
    };
    let path = format!("/clusters/{id}/cmek");
    assert_eq!(world.call("POST", &path, to("vault")).await.status, 200);
    let remove = |name: &'static str| world.call("DELETE", name, Value::Null);
    let needed = remove("/chitin/key-services/vault").await;
    assert_eq!(needed.refusal(), (400, 9), "{}", needed.text);
    assert!(needed.text.contains("shop-one"), "{}", needed.text);
    // On the way to another, both are needed.
    let wrapped_by = world.store.snapshot().get(&id).unwrap().cluster.keys.cmek.clone();
    world.store.observe_keys(id, |seen| (seen.wrapped_by, seen.rewraps) = (wrapped_by, 1)).unwrap();
    assert_eq!(world.call("PUT", &path, to("next")).await.status, 200);
    for name in ["/chitin/key-services/vault", "/chitin/key-services/next"] {
        assert_eq!(world.call("DELETE", name, Value::Null).await.refusal(), (400, 9), "{name}");
    }
    let wrapped_by = world.store.snapshot().get(&id).unwrap().cluster.keys.cmek.clone();
    world.store.observe_keys(id, |seen| (seen.wrapped_by, seen.rewraps) = (wrapped_by, 2)).unwrap();
    assert_eq!(remove("/chitin/key-services/vault").await.status, 200);
}

#[tokio::test]
async fn a_key_is_tried_for_a_cluster_and_a_refusal_is_passed_on() {
    let world = World::new();
    let id = world.made("shop-one").await;
    set(&world, "vault", vault()).await;
    let path = "/chitin/key-services/vault/test";
    let tested = world.call("POST", path, json!({"uri": "transit/keys/shop", "cluster": "shop-one"})).await;
    assert_eq!(tested.json()["key_spec"]["uri"], "transit/keys/shop", "{}", tested.text);
    assert_eq!(world.call("POST", path, json!({"uri": "transit/keys/shop"})).await.status, 200);
    let tried: Vec<_> = world
        .engines
        .tried_keys
        .lock()
        .unwrap()
        .iter()
        .map(|(spec, cluster)| (spec.kind, spec.service.clone().unwrap().to_string(), *cluster))
        .collect();
    let vault = "vault".to_owned();
    assert_eq!(tried, [(KeyType::Vault, vault.clone(), Some(id)), (KeyType::Vault, vault, None)]);
    refused(&world.call("POST", path, json!({"uri": "transit/keys/../../sys"})).await, "");
    let nobody = json!({"uri": "transit/keys/shop", "cluster": "canary-cluster"});
    assert_eq!(world.call("POST", path, nobody).await.refusal(), (404, 5));
    let missing = world.call("POST", "/chitin/key-services/none/test", json!({"uri": "a/keys/b"})).await;
    assert_eq!(missing.refusal(), (404, 5));
    assert_eq!(world.engines.tried_keys.lock().unwrap().len(), 2, "nothing wrong was tried");
    *world.engines.key_refusal.lock().unwrap() = Some(Refusal::wrong_state("permission denied"));
    let denied = world.call("POST", path, json!({"uri": "transit/keys/shop"})).await;
    assert_eq!(denied.refusal(), (400, 9));
    assert!(denied.text.contains("permission denied"));
}

/// A cluster whose data key is wrapped by this key of the service `vault`.
async fn wrapped(world: &World, cluster: &str, uri: &str, denied: Option<&str>) -> model::ClusterId {
    let id = world.made(cluster).await;
    let spec = model::KeySpec {
        kind: KeyType::Vault,
        uri: uri.to_owned(),
        auth_principal: String::new(),
        service: Some("vault".parse().unwrap()),
    };
    let seen = |seen: &mut model::KeysSeen| {
        (seen.wrapped_by, seen.denied) = (Some(spec), denied.map(str::to_owned));
    };
    world.store.observe_keys(id, seen).unwrap();
    id
}

#[tokio::test]
async fn new_credentials_are_tried_on_the_keys_in_use_before_they_replace_the_old_ones() {
    let world = World::new();
    set(&world, "vault", vault()).await;
    set(&world, "other", vault()).await;
    assert!(world.engines.tried_services.lock().unwrap().is_empty(), "nothing is used through them yet");
    let first = wrapped(&world, "shop-aaa", "transit/keys/shop", None).await;
    wrapped(&world, "shop-bbb", "transit/keys/shop", None).await;
    let second = wrapped(&world, "shop-ccc", "transit/keys/next", None).await;
    let barred = wrapped(&world, "shop-abc", "transit/keys/barred", Some("it is disabled")).await;
    world.made("shop-ddd").await;

    // A typo over good credentials: they stay, and the refusal says how to insist.
    *world.engines.key_refusal.lock().unwrap() = Some(Refusal::wrong_state("the token has ended; --force"));
    let before = kept(&world, "vault");
    let typo = with(vault(), "credentials", json!({"token": "canary-typo"}));
    let refused = set(&world, "vault", typo.clone()).await;
    assert_eq!(refused.refusal(), (400, 9), "{}", refused.text);
    assert!(refused.text.contains("--force") && !refused.text.contains("canary"), "{}", refused.text);
    assert_eq!(kept(&world, "vault"), before);
    {
        let tried = world.engines.tried_services.lock().unwrap();
        let [(service, keys)] = tried.as_slice() else { panic!("{tried:?}") };
        let KeyCredentials::VaultToken(token) = &service.credentials else { panic!() };
        assert_eq!(token.expose(), "canary-typo", "the new ones are tried");
        let keys: Vec<_> =
            keys.iter().map(|key| (key.cluster, key.spec.uri.as_str(), key.is_denied)).collect();
        assert_eq!(
            keys,
            [
                (first, "transit/keys/shop", false),
                (second, "transit/keys/next", false),
                (barred, "transit/keys/barred", true)
            ],
            "each key once"
        );
    }
    // Who uses none of its keys is not asked for them.
    assert_eq!(set(&world, "other", typo.clone()).await.status, 200);
    // Whoever insists gets it, untried.
    let forced = set(&world, "vault", with(typo.clone(), "force", json!(true))).await;
    assert_eq!(forced.status, 200, "{}", forced.text);
    let KeyCredentials::VaultToken(token) = kept(&world, "vault").credentials else { panic!() };
    assert_eq!(token.expose(), "canary-typo");
    assert_eq!(world.engines.tried_services.lock().unwrap().len(), 1);
    // And what works is set.
    *world.engines.key_refusal.lock().unwrap() = None;
    assert_eq!(set(&world, "vault", vault()).await.status, 200);
    assert_eq!(world.engines.tried_services.lock().unwrap().len(), 2);
    assert_eq!(set(&world, "vault", with(vault(), "force", json!("yes"))).await.refusal(), (400, 3));
}

#[tokio::test]
async fn a_crowd_of_keys_is_tried_up_to_a_bound_and_those_that_work_come_first() {
    let world = World::new();
    set(&world, "vault", vault()).await;
    wrapped(&world, "shop-000", "transit/keys/denied", Some("it is disabled")).await;
    for number in 1..40 {
        wrapped(&world, &format!("shop-{number:03}"), &format!("transit/keys/shop-{number}"), None).await;
    }
    assert_eq!(set(&world, "vault", vault()).await.status, 200);
    let tried = world.engines.tried_services.lock().unwrap();
    assert_eq!(tried[0].1.len(), 16);
    assert!(tried[0].1.iter().all(|key| !key.is_denied));
}
