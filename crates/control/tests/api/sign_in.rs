//! How people sign in, as an administrator sets it: providers, revocation, throttle, users of providers.

use std::sync::atomic::Ordering;

use api::ThrottleLine;
use axum::http::Request;
use control::{ClearThrottle, Refusal};
use model::Provisioned;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::world::{Answer, World, new_key};

const PASSWORD: &str = "long-enough-4711";

fn corp() -> Value {
    json!({
        "issuer": "https://login.example.org",
        "client_id": "chitin",
        "client_secret": "canary-4711",
        "audiences": ["sql"],
        "group_claim": "groups",
        "group_roles": {"dba": "admin", "sales": "readers"},
        "provisions": true,
    })
}

fn with(mut body: Value, member: &str, value: Value) -> Value {
    body[member] = value;
    body
}

fn without(mut body: Value, member: &str) -> Value {
    body.as_object_mut().unwrap().remove(member);
    body
}

fn refused(answer: Answer, why: &str) {
    assert_eq!(answer.refusal(), (400, 3), "{}", answer.text);
    assert!(answer.text.contains(why), "{why}: {}", answer.text);
    assert!(!answer.text.contains("canary"), "{}", answer.text);
}

#[tokio::test]
async fn a_provider_is_kept_shown_without_its_secret_and_removed() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let made = world.call("PUT", "/chitin/providers/corp", corp()).await;
    let shown = made.json();
    assert_eq!((made.status, &shown["has_client_secret"]), (200, &json!(true)), "{}", made.text);
    assert_eq!((&shown["claim"], &shown["scopes"]), (&json!("sub"), &json!(["openid"])));
    assert_eq!((&shown["clock_skew_seconds"], shown.get("cluster_id")), (&json!(30), None));
    let own = with(corp(), "issuer", json!("https://own.example.org"));
    let own = world.call("PUT", &format!("/chitin/clusters/{id}/providers/corp"), own).await.json();
    assert_eq!(own["cluster_id"], json!(id.to_string()));
    let list = world.get(&format!("/chitin/clusters/{id}/providers")).await;
    assert_eq!(list.json()["providers"], json!([own]), "the cluster's own hides the cloud's of its name");
    let cloud = world.get("/chitin/providers").await;
    assert_eq!(cloud.json()["providers"], json!([shown]));
    for answer in [made, list, cloud] {
        assert!(!answer.text.contains("canary"), "{}", answer.text);
    }
    let removed = world.call("DELETE", &format!("/chitin/clusters/{id}/providers/corp"), Value::Null).await;
    assert_eq!((removed.status, removed.json()["issuer"].clone()), (200, json!("https://own.example.org")));
    assert!(!removed.text.contains("canary"));
    let again = world.call("DELETE", &format!("/chitin/clusters/{id}/providers/corp"), Value::Null).await;
    assert_eq!(again.refusal(), (404, 5));
    let inherited = world.get(&format!("/chitin/clusters/{id}/providers")).await.json();
    assert_eq!(inherited["providers"], json!([shown]));
    let nobody = model::ClusterId::random();
    let nowhere = world.call("PUT", &format!("/chitin/clusters/{nobody}/providers/corp"), corp()).await;
    assert_eq!(nowhere.refusal(), (404, 5));
}

#[tokio::test]
async fn a_client_secret_stays_until_it_is_replaced_and_goes_to_no_other_issuer() {
    let world = World::new();
    let path = "/chitin/providers/corp";
    let kept = || world.store.snapshot().own_providers(None)[0].client_secret.clone();
    world.call("PUT", path, corp()).await;
    let same = without(corp(), "client_secret");
    assert_eq!(world.call("PUT", path, same.clone()).await.status, 200);
    assert_eq!(kept().as_deref(), Some("canary-4711"));
    let elsewhere = with(same.clone(), "issuer", json!("https://thief.example.org"));
    refused(world.call("PUT", path, elsewhere.clone()).await, "the issuer changes");
    assert_eq!(world.store.snapshot().own_providers(None)[0].issuer, "https://login.example.org");
    let with_new = with(elsewhere, "client_secret", json!("another"));
    assert_eq!(world.call("PUT", path, with_new).await.status, 200);
    assert_eq!(kept().as_deref(), Some("another"));
    let back = with(same, "client_secret", json!(""));
    assert_eq!(world.call("PUT", path, back).await.json()["has_client_secret"], false);
    assert_eq!(kept(), None);
}

#[tokio::test]
async fn a_provider_is_tried_before_it_counts_unless_somebody_insists() {
    let world = World::new();
    let id = world.create("lazy-roach").await;
    let path = format!("/chitin/clusters/{id}/providers/corp");
    for path in ["/chitin/providers/corp", &path] {
        assert_eq!(world.call("PUT", path, corp()).await.status, 200);
    }
    let before = [world.store.snapshot().own_providers(None), world.store.snapshot().own_providers(Some(id))];
    *world.engines.provider_refusal.lock().unwrap() = Some(Refusal::wrong_state("invalid_client; --force"));
    let mut typo = corp();
    typo["client_secret"] = json!("canary-typo");
    for path in ["/chitin/providers/corp", &path, "/chitin/providers/new"] {
        let refused = world.call("PUT", path, typo.clone()).await;
        assert_eq!(refused.refusal(), (400, 9), "{}", refused.text);
        assert!(
            refused.text.contains("invalid_client") && !refused.text.contains("canary"),
            "{}",
            refused.text
        );
    }
    assert_eq!(
        [world.store.snapshot().own_providers(None), world.store.snapshot().own_providers(Some(id))],
        before
    );
    {
        let tried = world.engines.tried_providers.lock().unwrap();
        let secrets: Vec<_> = tried.iter().skip(2).map(|one| one.client_secret.as_deref()).collect();
        assert_eq!(secrets, [Some("canary-typo"); 3], "the new one is tried");
        assert_eq!(tried[3].cluster, Some(id), "on its cluster's behalf");
    }
    // What is not even well formed is asked of nobody.
    let mut wrong = corp();
    wrong["issuer"] = json!("login");
    assert_eq!(world.call("PUT", "/chitin/providers/corp", wrong).await.refusal(), (400, 3));
    typo["force"] = json!(true);
    assert_eq!(world.call("PUT", "/chitin/providers/corp", typo).await.status, 200);
    let kept = world.store.snapshot().own_providers(None)[0].client_secret.clone();
    assert_eq!(kept.as_deref(), Some("canary-typo"));
    assert_eq!(world.engines.tried_providers.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn a_provider_that_could_let_anybody_or_nobody_in_is_refused() {
    let world = World::new();
    let public = json!({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}).to_string();
    let shared = json!({"keys": [{"kty": "oct", "k": "canary"}]}).to_string();
    let private = json!({"keys": [{"kty": "RSA", "n": "AQAB", "d": "canary"}]}).to_string();
    let many: Vec<String> = (0..33).map(|number| number.to_string()).collect();
    let roles = |group: &str, role: &str| with(corp(), "group_roles", json!({group: role}));
    let cases = [
        (with(corp(), "issuer", json!("http://login.example.org")), "must be https"),
        (with(corp(), "issuer", json!("https://canary@login.example.org")), "a user or a password"),
        (with(corp(), "issuer", json!("")), "issuer"),
        (without(corp(), "issuer"), "missing field"),
        (with(corp(), "jwks", json!(shared)), "`oct`"),
        (with(corp(), "jwks", json!(private)), "private key"),
        (with(corp(), "jwks", json!("canary")), "not JSON"),
        (with(with(corp(), "jwks", json!(public)), "jwks_uri", json!("https://a.example/k")), "two sources"),
        (with(corp(), "jwks_uri", json!("http://10.0.0.1/keys")), "must be https"),
        (with(corp(), "ca_pem", json!("canary")), "ca_pem"),
        (with(corp(), "scopes", json!(["email"])), "`openid`"),
        (with(corp(), "scopes", json!(["openid", "a b"])), "scopes"),
        (with(corp(), "clock_skew_seconds", json!(301)), "300"),
        (with(corp(), "audiences", json!([""])), "an audience"),
        (with(corp(), "audiences", json!(many)), "at most 32"),
        (with(corp(), "claim", json!("a\nb")), "claim"),
        (with(corp(), "client_secret", json!("canary\n")), "client_secret"),
        (with(corp(), "client_id", json!("")), "needs its `client_id`"),
        (without(corp(), "group_claim"), "group_claim"),
        (roles("dba", "chitin"), "reserved"),
        (roles("dba", "pg_execute_server_program"), "reserved"),
        (roles("dba", "root"), "reserved"),
        (roles("dba", ""), "a role"),
        (with(corp(), "group_roles", json!({"dba": "a", "DBA": "b"})), "upper and lower case"),
        (json!({"issuer": "https://a.example"}), "no token could be meant"),
    ];
    for (body, why) in cases {
        refused(world.call("PUT", "/chitin/providers/corp", body).await, why);
    }
    for name in ["2corp", "a%20b", "a%2Fb", "%C3%A4", &"a".repeat(64)] {
        refused(world.call("PUT", &format!("/chitin/providers/{name}"), corp()).await, "provider's name");
    }
    assert!(world.store.snapshot().own_providers(None).is_empty());
}

#[tokio::test]
async fn the_seventeenth_provider_is_refused_and_a_known_one_still_changes() {
    let world = World::new();
    for number in 0..16 {
        let made = world.call("PUT", &format!("/chitin/providers/corp{number}"), corp()).await;
        assert_eq!(made.status, 200, "{}", made.text);
    }
    assert_eq!(world.call("PUT", "/chitin/providers/more", corp()).await.refusal(), (400, 9));
    assert_eq!(world.call("PUT", "/chitin/providers/corp3", corp()).await.status, 200);
}

#[tokio::test]
async fn revocation_is_asked_for_as_the_administrator_says() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let path = format!("/chitin/clusters/{id}/ocsp");
    let off = json!({"mode": "off", "accept_without_responder": false, "timeout_ms": 3000});
    assert_eq!(world.get(&path).await.json(), off);
    let wanted = json!({"mode": "strict", "responder_url": "http://ocsp.example.org/a",
        "accept_without_responder": true, "timeout_ms": 500});
    assert_eq!(world.call("PUT", &path, wanted.clone()).await.json(), wanted);
    assert_eq!(world.get(&path).await.json(), wanted);
    let kept = world.store.snapshot().get(&id).unwrap().cluster.sign_in.ocsp.clone();
    assert_eq!(
        (kept.mode, kept.responder.as_deref()),
        (model::OcspMode::Strict, Some("http://ocsp.example.org/a"))
    );
    for wrong in [
        json!({"mode": "maybe"}),
        json!({}),
        with(wanted.clone(), "timeout_ms", json!(99)),
        with(wanted.clone(), "timeout_ms", json!(10_001)),
        with(wanted.clone(), "timeout_ms", json!(-1)),
        with(wanted.clone(), "responder_url", json!("ldap://ocsp.example.org")),
        with(wanted.clone(), "responder_url", json!("http://canary@ocsp.example.org")),
    ] {
        refused(world.call("PUT", &path, wrong).await, "");
    }
    assert_eq!(world.get(&path).await.json(), wanted);
    assert_eq!(world.call("PUT", &path, json!({"mode": "off", "responder_url": ""})).await.json(), off);
}

fn line(user: Option<&str>, address: Option<&str>, failures: u32) -> ThrottleLine {
    ThrottleLine {
        cluster: Some("shop-one-2".to_owned()),
        user: user.map(str::to_owned),
        address: address.map(str::to_owned),
        failures,
        state: "slowed".to_owned(),
        until: Some(OffsetDateTime::UNIX_EPOCH),
    }
}

#[tokio::test]
async fn the_worst_failures_are_listed_first_and_the_list_is_bounded() {
    let world = World::new();
    let many = (0..1_200).map(|number| line(Some(&format!("user-{number}")), None, number));
    world.engines.throttle.lock().unwrap().extend(many);
    let listed = world.get("/chitin/throttle").await.json();
    let lines = listed["lines"].as_array().unwrap();
    assert_eq!((lines.len(), &listed["total"]), (1_000, &json!(1_200)));
    let first = json!({"cluster": "shop-one-2", "user": "user-1199", "failures": 1199, "state": "slowed",
        "until": "1970-01-01T00:00:00Z"});
    assert_eq!(lines[0], first);
}

#[tokio::test]
async fn failures_are_forgotten_by_cluster_user_and_address() {
    let world = World::new();
    let id = world.made("shop-one").await.to_string();
    let path = "/chitin/throttle/clear";
    world.engines.throttle.lock().unwrap().push(line(None, Some("203.0.113.7"), 9));
    let cleared = world.call("POST", path, json!({"cluster": "shop-one", "user": "maria"})).await;
    assert_eq!(cleared.json(), json!({"cleared": 1}));
    for cluster in [id.as_str(), "shop-one-2", "never-was-77"] {
        assert_eq!(world.call("POST", path, json!({"cluster": cluster})).await.json(), json!({"cleared": 0}));
    }
    world.call("POST", path, json!({"address": "::ffff:203.0.113.7"})).await;
    world.call("POST", path, json!({})).await;
    let asked = world.engines.cleared.lock().unwrap().clone();
    let cluster = |text: &str| ClearThrottle { cluster: Some(text.to_owned()), ..ClearThrottle::default() };
    assert_eq!(
        asked,
        [
            ClearThrottle { user: Some("maria".to_owned()), ..cluster("shop-one-2") },
            cluster("shop-one-2"),
            cluster("shop-one-2"),
            cluster("never-was-77"),
            ClearThrottle { address: Some("203.0.113.7".parse().unwrap()), ..ClearThrottle::default() },
            ClearThrottle::default(),
        ]
    );
    for wrong in [
        json!({"address": "203.0.113.0/24"}),
        json!({"address": ""}),
        json!({"user": ""}),
        json!({"cluster": "x".repeat(300)}),
        json!({"user": 1}),
    ] {
        refused(world.call("POST", path, wrong).await, "");
    }
    assert_eq!(world.engines.cleared.lock().unwrap().len(), 6, "nothing was cleared by a mistake");
}

#[tokio::test]
async fn a_user_of_a_provider_shows_its_source_and_gets_no_password() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let users = format!("/clusters/{id}/sql-users");
    for name in ["maria", "tom"] {
        world.call("POST", &users, json!({"name": name, "password": PASSWORD})).await;
    }
    let made = Provisioned { source: "oidc:https://a".to_owned(), at: OffsetDateTime::UNIX_EPOCH };
    world.store.put_provisioned(id, "maria", made.clone()).unwrap();
    let listed = world.get(&users).await.json();
    assert_eq!(listed["users"], json!([{"name": "maria", "source": "oidc:https://a"}, {"name": "tom"}]));
    let before = world.engines.users.lock().unwrap()["maria"].clone();
    let change = |name: &str| format!("{users}/{name}/password");
    let refused = world.call("PUT", &change("maria"), json!({"password": PASSWORD})).await;
    assert_eq!(refused.refusal(), (400, 9));
    assert_eq!(refused.json()["message"], "cannot alter PASSWORD option for provisioned user maria");
    assert_eq!(world.engines.users.lock().unwrap()["maria"], before);
    assert_eq!(world.call("PUT", &change("tom"), json!({"password": PASSWORD})).await.status, 200);

    world.call("DELETE", &format!("{users}/maria"), Value::Null).await;
    assert_eq!(world.store.snapshot().provisioned(id, "maria"), None, "the name is free again");
    // Removed by SQL, the source is still known when somebody makes the user anew.
    world.store.put_provisioned(id, "maria", made).unwrap();
    world.call("POST", &users, json!({"name": "maria", "password": PASSWORD})).await;
    assert_eq!(world.call("PUT", &change("maria"), json!({"password": PASSWORD})).await.status, 200);
}

#[tokio::test]
async fn what_the_state_does_not_take_is_undone_in_the_engine() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let users = format!("/clusters/{id}/sql-users");
    let made = Provisioned { source: "oidc:https://a".to_owned(), at: OffsetDateTime::UNIX_EPOCH };
    for name in ["maria", "tom"] {
        world.store.put_provisioned(id, name, made.clone()).unwrap();
    }
    world.engines.users.lock().unwrap().insert("tom".to_owned(), "a verifier".to_owned());
    // With a key from before, because the state takes no other meanwhile.
    let key = new_key(&world.store, "operator");
    let call = async |method: &str, path: &str, body: &Value| {
        let request = Request::builder().method(method).uri(format!("/api/v1{path}"));
        let request = request.header("authorization", format!("Bearer {key}"));
        let body = if body.is_null() { String::new() } else { body.to_string() };
        world.send(request.body(body.into()).unwrap()).await
    };
    // The state cannot be written: its file is not where it was.
    let (state, aside) = (world.folder.path().join("state.redb"), world.folder.path().join("aside"));
    std::fs::rename(&state, &aside).unwrap();
    let request = json!({"name": "maria", "password": PASSWORD});
    let refused = call("POST", &users, &request).await;
    assert_eq!(refused.status, 503);
    assert!(refused.json()["message"].as_str().unwrap().starts_with("nothing was changed: "));
    assert!(!world.engines.users.lock().unwrap().contains_key("maria"), "the answer was true");
    // Where it cannot be undone, the answer says what there is, and what to do.
    world.engines.keeps_users.store(true, Ordering::Relaxed);
    let told = call("POST", &users, &request).await.json()["message"].as_str().unwrap().to_owned();
    assert!(!told.contains("nothing was changed"), "{told}");
    for part in [
        "user maria was made, and could not be removed again",
        "does not answer",
        "remove it, and create it again",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(world.engines.users.lock().unwrap().contains_key("maria"));
    world.engines.keeps_users.store(false, Ordering::Relaxed);
    assert_eq!(call("DELETE", &format!("{users}/maria"), &Value::Null).await.status, 200);
    // Who is dropped is gone, whatever the state says of it; that follows.
    assert_eq!(call("DELETE", &format!("{users}/tom"), &Value::Null).await.status, 200);
    assert!(!world.engines.users.lock().unwrap().contains_key("tom"));
    let status = call("GET", "/chitin/status", &Value::Null).await.json();
    assert!(status["alerts"][0]["what"].as_str().unwrap().contains("removed or replaced"), "{status}");
    assert!(status["alerts"][0]["since"].is_string(), "{status}");

    std::fs::rename(&aside, &state).unwrap();
    assert_eq!(world.call("POST", &users, request).await.status, 200);
    let change = json!({"password": PASSWORD});
    assert_eq!(world.call("PUT", &format!("{users}/maria/password"), change).await.status, 200);
    assert_eq!(world.get("/chitin/status").await.json()["alerts"], json!([]));
}
