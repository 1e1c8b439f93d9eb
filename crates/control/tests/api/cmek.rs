//! Customer-managed keys, as customers set them, and as attackers and races try to.

use std::sync::Arc;

use api::{CmekKeySpec, CopyProgress, KeyFacts};
use model::{ClusterId, KeyOutage, KeySpec, KeyType, KeysSeen};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::key_services::{aws, set, vault};
use crate::world::{Answer, World};

const REGION: &str = "us-central1";

fn key(uri: &str) -> Value {
    json!({"type": "VAULT_TRANSIT", "uri": uri, "auth_principal": ""})
}

fn specs(key: &Value) -> Value {
    json!({"region_specs": [{"region": REGION, "key_spec": key}]})
}

fn refused(answer: &Answer, why: &str) {
    assert!((400..500).contains(&answer.refusal().0), "{}", answer.text);
    assert!(answer.text.contains(why), "{why}: {}", answer.text);
}

fn wish(world: &World, id: ClusterId) -> model::KeyWish {
    world.store.snapshot().get(&id).unwrap().cluster.keys.clone()
}

/// What the keeper of keys writes when it has met every demand.
fn settle(world: &World, id: ClusterId) {
    let wish = wish(world, id);
    let met = |seen: &mut KeysSeen| {
        *seen = KeysSeen {
            wrapped_by: Some(wish.spec()),
            rewraps: wish.rewraps,
            data_keys: wish.data_keys,
            is_locked_away: wish.is_revoked,
            ..KeysSeen::default()
        };
    };
    world.store.observe_keys(id, met).unwrap();
}

async fn with_vault() -> (World, ClusterId, String) {
    let world = World::new();
    let id = world.made("shop-one").await;
    assert_eq!(set(&world, "vault", vault()).await.status, 200);
    (world, id, format!("/clusters/{id}/cmek"))
}

#[tokio::test]
async fn a_key_is_enabled_rotated_and_revoked_in_the_contract_s_words() {
    let (world, id, path) = with_vault().await;
    assert_eq!(world.get(&path).await.json(), json!({"status": "DISABLED", "region_infos": []}));
    let asked = world.call("POST", &path, specs(&key("transit/keys/shop"))).await;
    assert_eq!(asked.status, 200, "{}", asked.text);
    let info = asked.json();
    assert_eq!(info["status"], "ENABLING");
    assert_eq!(
        (&info["region_infos"][0]["region"], &info["region_infos"][0]["status"]),
        (&json!(REGION), &json!("ENABLING"))
    );
    let told = &info["region_infos"][0]["key_infos"][0];
    assert_eq!(told["spec"]["uri"], "transit/keys/shop");
    assert_eq!(told["spec"]["service"], "vault", "the only one of its kind");
    let shown = world.get(&format!("/clusters/{id}")).await.json();
    assert_eq!(
        (&shown["operation_status"], &shown["state"]),
        (&json!("CRDB_CMEK_OPERATION_RUNNING"), &json!("CREATED"))
    );

    settle(&world, id);
    assert_eq!(world.get(&path).await.json()["status"], "ENABLED");
    let since = wish(&world, id).cmek_since;
    let same = world.call("PUT", &path, specs(&key("transit/keys/shop"))).await.json();
    assert_eq!((same["status"].as_str(), wish(&world, id).rewraps), (Some("ROTATING"), 2));
    assert_eq!(wish(&world, id).cmek_since, since, "the same key is as old as before");
    settle(&world, id);
    world.call("PUT", &path, specs(&key("transit/keys/two"))).await;
    let spec = KeySpec {
        kind: KeyType::Vault,
        uri: "transit/keys/two".to_owned(),
        auth_principal: String::new(),
        service: Some("vault".parse().unwrap()),
    };
    assert_eq!(wish(&world, id).cmek, Some(spec));
    settle(&world, id);

    for _ in 0..2 {
        let revoked = world.call("PATCH", &path, json!({"action": "REVOKE"})).await;
        assert_eq!((revoked.status, revoked.json()["status"].as_str()), (200, Some("REVOKING")));
    }
    settle(&world, id);
    assert_eq!(world.get(&path).await.json()["status"], "REVOKED");
    assert_eq!(world.get(&format!("/clusters/{id}")).await.json()["state"], "LOCKED");
    let before = wish(&world, id);
    for method in ["POST", "PUT"] {
        refused(&world.call(method, &path, specs(&key("transit/keys/two"))).await, "chitin key restore");
        let root = json!({"type": "NULL_KMS"});
        refused(&world.call(method, &path, specs(&root)).await, "chitin key restore");
    }
    assert_eq!(wish(&world, id), before, "nobody goes around a revocation");
    let own = format!("/chitin/clusters/{id}/keys");
    refused(&world.call("POST", &format!("{own}/data-key/rotate"), Value::Null).await, "chitin key restore");
    for _ in 0..2 {
        assert_eq!(
            world.call("POST", &format!("{own}/restore"), Value::Null).await.json()["is_revoked"],
            false
        );
    }
    assert!(!wish(&world, id).is_revoked);
}

#[tokio::test]
async fn a_repeated_post_is_no_conflict_and_another_key_is() {
    let (world, id, path) = with_vault().await;
    let wanted = specs(&key("transit/keys/shop"));
    for _ in 0..3 {
        assert_eq!(world.call("POST", &path, wanted.clone()).await.status, 200);
    }
    assert_eq!(wish(&world, id).rewraps, 1, "said three times, done once");
    let other = world.call("POST", &path, specs(&key("transit/keys/other"))).await;
    assert_eq!(other.refusal(), (409, 6), "{}", other.text);
    assert_eq!(wish(&world, id).cmek.unwrap().uri, "transit/keys/shop");
    // The root key is no key of the customer's: there is nothing to revoke, and enabling begins anew.
    world.call("PUT", &path, specs(&json!({"type": "NULL_KMS"}))).await;
    refused(&world.call("PATCH", &path, json!({"action": "REVOKE"})).await, "no key of the customer's");
    assert_eq!(world.call("POST", &path, specs(&key("transit/keys/other"))).await.status, 200);
}

#[tokio::test]
async fn every_region_is_named_and_all_have_one_key() {
    let (world, _, _) = with_vault().await;
    let body = json!({"name": "two-regions", "provider": "GCP", "spec": {"plan": "STANDARD", "serverless":
        {"regions": ["eu-one", "us-one"], "primary_region": "eu-one"}}});
    let id: ClusterId =
        world.call("POST", "/clusters", body).await.json()["id"].as_str().unwrap().parse().unwrap();
    let path = format!("/clusters/{id}/cmek");
    let both = |one: &str, two: &str| {
        json!({"region_specs": [
        {"region": "eu-one", "key_spec": key(one)}, {"region": "us-one", "key_spec": key(two)}]})
    };
    let early = world.call("POST", &path, both("transit/keys/a", "transit/keys/a")).await;
    refused(&early, "still being created");
    let seen = model::Observation {
        phase: model::Phase::Asleep,
        is_initialized: true,
        ..model::Observation::nothing_yet()
    };
    world.store.observe(id, seen).unwrap();
    let of = |region: &str, uri: &str| json!({"region_specs": [{"region": region, "key_spec": key(uri)}]});
    for method in ["POST", "PUT"] {
        refused(&world.call(method, &path, both("transit/keys/a", "transit/keys/b")).await, "one key");
        refused(
            &world.call(method, &path, of("eu-one", "transit/keys/a")).await,
            "leaves the region us-one out",
        );
        refused(&world.call(method, &path, of("canary", "transit/keys/a")).await, "eu-one, us-one");
        refused(&world.call(method, &path, json!({"region_specs": []})).await, "empty");
        refused(&world.call(method, &path, json!({})).await, "missing field");
    }
    let twice = json!({"region_specs": [{"region": "eu-one", "key_spec": key("transit/keys/a")},
        {"region": "eu-one", "key_spec": key("transit/keys/a")}]});
    refused(&world.call("POST", &path, twice).await, "twice");
    assert_eq!(wish(&world, id), model::KeyWish::default());
    assert_eq!(world.call("POST", &path, both("transit/keys/a", "transit/keys/a")).await.status, 200);
    let regions = world.get(&path).await.json()["region_infos"].as_array().unwrap().len();
    assert_eq!(regions, 2);
    // Only what changes is named later; the other region keeps its key, and that must be the same.
    assert_eq!(world.call("PUT", &path, of("us-one", "transit/keys/a")).await.status, 200);
    refused(&world.call("PUT", &path, of("us-one", "transit/keys/b")).await, "one key");
    assert_eq!(world.call("PUT", &path, both("transit/keys/b", "transit/keys/b")).await.status, 200);
}

#[tokio::test]
async fn the_service_is_named_where_there_are_several() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let path = format!("/clusters/{id}/cmek");
    let wanted = specs(&key("transit/keys/shop"));
    refused(&world.call("POST", &path, wanted.clone()).await, "chitin key service set");
    for name in ["one", "two"] {
        set(&world, name, vault()).await;
    }
    set(&world, "cloud", aws()).await;
    refused(&world.call("POST", &path, wanted).await, "(one, two)");
    let named = |service: &str| {
        let mut key = key("transit/keys/shop");
        key["service"] = json!(service);
        specs(&key)
    };
    refused(&world.call("POST", &path, named("three")).await, "no key service 'three'");
    refused(&world.call("POST", &path, named("cloud")).await, "AWS_KMS");
    refused(&world.call("POST", &path, named("../one")).await, "key service name");
    assert_eq!(world.call("POST", &path, named("two")).await.status, 200);
    // From then on the cluster's own service is meant.
    assert_eq!(world.call("PUT", &path, specs(&key("transit/keys/next"))).await.status, 200);
    assert_eq!(wish(&world, id).cmek.unwrap().service.unwrap().as_str(), "two");
}

#[tokio::test]
async fn names_that_could_reach_elsewhere_are_refused_and_not_kept() {
    let (world, id, path) = with_vault().await;
    let long = format!("transit/keys/{}", "a".repeat(100_000));
    for uri in [
        "",
        "transit/keys/../../sys",
        "transit/keys/..%2f..%2fsys",
        "transit/keys/a?x=1",
        "transit/keys/a#b",
        "transit/keys/a\nb",
        "transit/keys/a\u{0}b",
        "transit/keys/a b",
        "/transit/keys/a",
        "https://thief.example.org/transit/keys/a",
        "transit\\keys\\a",
        long.as_str(),
    ] {
        for method in ["POST", "PUT"] {
            let answer = world.call(method, &path, specs(&key(uri))).await;
            assert_eq!(answer.refusal(), (400, 3), "{uri:.40} {}", answer.text);
            assert!(answer.text.len() < 2_000, "what was sent is not repeated at length");
        }
    }
    let azure = json!({"type": "AZURE_KEY_VAULT", "uri": "https://a.vault.azure.net/keys/k"});
    assert_eq!(world.call("POST", &path, specs(&azure)).await.refusal(), (501, 12));
    for body in [
        specs(&json!({"type": "NULL_KMS", "uri": "a"})),
        specs(&json!({"type": "NULL_KMS", "service": "vault"})),
        specs(&json!({"type": "ROT13", "uri": "a"})),
        json!({"region_specs": "all"}),
    ] {
        assert_eq!(world.call("POST", &path, body).await.refusal(), (400, 3));
    }
    for body in [json!({"action": "RESTORE"}), json!({}), json!({"action": null})] {
        assert_eq!(world.call("PATCH", &path, body).await.refusal(), (400, 3));
    }
    refused(&world.call("PATCH", &path, json!({"action": "REVOKE"})).await, "no key of the customer's");
    let nobody = ClusterId::random();
    for (method, path) in [
        ("GET", format!("/clusters/{nobody}/cmek")),
        ("GET", format!("/chitin/clusters/{nobody}/keys")),
        ("POST", format!("/chitin/clusters/{nobody}/keys/restore")),
        ("POST", format!("/chitin/clusters/{nobody}/keys/data-key/rotate")),
    ] {
        assert_eq!(world.call(method, &path, Value::Null).await.refusal(), (404, 5), "{path}");
    }
    assert_eq!(wish(&world, id), model::KeyWish::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_posts_at_once_one_key_wins_and_every_put_is_counted() {
    const RACERS: u64 = 8;
    let (world, id, path) = with_vault().await;
    let world = Arc::new(world);
    let race = |method: &'static str| {
        let racers = (0..RACERS).map(|number| {
            let (world, path) = (world.clone(), path.clone());
            tokio::spawn(async move {
                let body = specs(&key(&format!("transit/keys/racer-{number}")));
                world.call(method, &path, body).await.status
            })
        });
        racers.collect::<Vec<_>>()
    };
    let mut won = 0;
    for racer in race("POST") {
        match racer.await.unwrap() {
            200 => won += 1,
            status => assert_eq!(status, 409),
        }
    }
    assert_eq!((won, wish(&world, id).rewraps), (1, 1));
    for racer in race("PUT") {
        assert_eq!(racer.await.unwrap(), 200);
    }
    assert_eq!(wish(&world, id).rewraps, 1 + RACERS);
    let cut = {
        let (world, path) = (world.clone(), path.clone());
        tokio::spawn(async move { world.call("PATCH", &path, json!({"action": "REVOKE"})).await.status })
    };
    let puts = race("PUT");
    assert_eq!(cut.await.unwrap(), 200);
    for racer in puts {
        racer.await.unwrap();
    }
    assert!(wish(&world, id).is_revoked, "no racing change takes a revocation back");
}

#[tokio::test]
async fn a_data_key_rotates_once_at_a_time_and_tells_how_far_it_is() {
    let (world, id, _) = with_vault().await;
    let path = format!("/chitin/clusters/{id}/keys");
    *world.engines.key_facts.lock().unwrap() = KeyFacts {
        wrapped_by: Some(CmekKeySpec::from(&KeySpec::root())),
        progress: Some(CopyProgress { done_bytes: 3, total_bytes: 10 }),
        ..KeyFacts::default()
    };
    let rotating = world.call("POST", &format!("{path}/data-key/rotate"), Value::Null).await;
    assert_eq!(rotating.json()["is_data_key_rotating"], true, "{}", rotating.text);
    refused(&world.call("POST", &format!("{path}/data-key/rotate"), Value::Null).await, "already");
    assert_eq!(wish(&world, id).data_keys, 1);
    let shown = world.get(&path).await.json();
    assert_eq!(shown["facts"]["progress"], json!({"done_bytes": 3, "total_bytes": 10}));
    settle(&world, id);
    assert_eq!(world.get(&path).await.json()["is_data_key_rotating"], false);
    assert_eq!(world.call("POST", &format!("{path}/data-key/rotate"), Value::Null).await.status, 200);
}

#[tokio::test]
async fn what_is_wrong_with_keys_is_an_alert_with_a_next_step_and_the_worst_comes_first() {
    let (world, id, path) = with_vault().await;
    let alerts = async || world.get("/chitin/status").await.json()["alerts"].clone();
    assert_eq!(alerts().await, json!([]));
    world.call("POST", &path, specs(&key("transit/keys/shop"))).await;
    let ill = |seen: &mut KeysSeen| {
        seen.outage = Some(KeyOutage {
            since: OffsetDateTime::UNIX_EPOCH,
            reason: "connection refused".to_owned(),
            are_credentials_refused: false,
        });
        seen.denied = Some("permission denied".to_owned());
        (seen.failure, seen.failed_demand) = (Some("no such key".to_owned()), 1);
    };
    world.store.observe_keys(id, ill).unwrap();
    world.call("PATCH", &path, json!({"action": "REVOKE"})).await;
    let told = alerts().await;
    let told = told.as_array().unwrap();
    let severities: Vec<&str> = told.iter().map(|alert| alert["severity"].as_str().unwrap()).collect();
    assert_eq!(severities, ["critical", "critical", "warning", "warning"]);
    let find = |part: &str| {
        let found = told.iter().find(|alert| alert["what"].as_str().unwrap().contains(part));
        found.unwrap_or_else(|| panic!("{part}: {told:?}"))
    };
    assert!(find("was revoked")["next_step"].as_str().unwrap().contains("chitin key restore shop-one"));
    assert!(
        find("permission denied")["next_step"].as_str().unwrap().contains("chitin key service test vault")
    );
    assert_eq!(find("connection refused")["since"], "1970-01-01T00:00:00Z");
    assert!(find("connection refused")["what"].as_str().unwrap().contains("does not answer"));
    assert_eq!(find("no such key")["cluster"], "shop-one");
    // A service that answers and does not let us in needs other credentials, not to be brought back.
    let not_let_in = |seen: &mut KeysSeen| {
        seen.outage = Some(KeyOutage {
            since: OffsetDateTime::UNIX_EPOCH,
            reason: "the token has ended".to_owned(),
            are_credentials_refused: true,
        });
        seen.denied = None;
    };
    world.store.observe_keys(id, not_let_in).unwrap();
    let told = alerts().await;
    let told = told.as_array().unwrap().iter();
    let refused = told.filter(|alert| alert["what"].as_str().unwrap().contains("the token has ended"));
    let refused: Vec<_> = refused.collect();
    let text = |member: &str| refused[0][member].as_str().unwrap();
    assert_eq!((refused.len(), text("severity")), (1, "warning"));
    assert!(text("what").contains("does not accept the credentials"), "{refused:?}");
    assert!(text("next_step").contains("chitin key service set vault"), "{refused:?}");

    let list = world.get("/chitin/keys").await.json();
    assert_eq!(list["root_key"]["version"], 1);
    assert!(list["clusters"][0]["next_step"].as_str().unwrap().contains("chitin key restore"));
}

#[tokio::test]
async fn the_root_key_is_described_and_rotated() {
    let world = World::new();
    let root = world.get("/chitin/root-key").await.json();
    assert_eq!((&root["version"], &root["protection"]), (&json!(1), &json!("file")));
    let rotated = world.call("POST", "/chitin/root-key/rotate", Value::Null).await;
    assert_eq!((rotated.status, &rotated.json()["version"]), (200, &json!(2)));
}
