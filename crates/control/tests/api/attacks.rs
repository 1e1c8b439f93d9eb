//! Requests that were made to break something.

use axum::body::Body;
use axum::http::Request;
use identity::api_key::ApiKeyText;
use serde_json::{Value, json};

use crate::world::{World, new_key, serverless};

#[tokio::test]
async fn t74_every_call_without_a_valid_key_is_refused_and_changes_nothing() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let before = world.store.snapshot().get(&id).unwrap().cluster.clone();
    let stranger = ApiKeyText::generate();
    // The right public part with another secret.
    let forged = format!("{}{}", &world.key[..world.key.len() - 40], "A".repeat(40));
    let keys = [
        None,
        Some(String::new()),
        Some(format!("Bearer {}", stranger.expose())),
        Some(format!("Bearer {forged}")),
        Some(format!("Bearer {}", &world.key[..world.key.len() - 1])),
        Some(format!("Bearer {}x", world.key)),
        Some(format!("Basic {}", world.key)),
        Some(world.key.clone()),
        Some("Bearer ".to_owned()),
        Some(format!("Bearer {}", "A".repeat(10_000))),
    ];
    for operation in api::openapi::OPERATIONS {
        let path = operation.path.replace("{cluster_id}", &id.to_string()).replace(['{', '}'], "");
        let mut messages = Vec::new();
        for key in &keys {
            let mut request = Request::builder().method(operation.method.to_uppercase().as_str()).uri(&path);
            if let Some(key) = key {
                request = request.header("authorization", key);
            }
            let answer = world.send(request.body(Body::from("{}")).unwrap()).await;
            assert_eq!(answer.refusal(), (401, 16), "{operation:?} {key:?}");
            messages.push(answer.text);
        }
        assert!(messages.windows(2).all(|pair| pair[0] == pair[1]), "refusals tell keys apart");
    }
    let two = Request::builder().uri("/api/v1/clusters");
    let two = two.header("authorization", format!("Bearer {}", stranger.expose()));
    let two = two.header("authorization", format!("Bearer {}", world.key));
    assert_eq!(world.send(two.body(Body::empty()).unwrap()).await.refusal(), (401, 16));
    assert_eq!(world.store.snapshot().get(&id).unwrap().cluster, before);
    assert_eq!(world.store.snapshot().len(), 1);
}

#[tokio::test]
async fn a_removed_key_is_refused_at_once() {
    let world = World::new();
    let key = new_key(&world.store, "leaver");
    let ask = || {
        let request =
            Request::builder().uri("/api/v1/clusters").header("authorization", format!("bearer {key}"));
        world.send(request.body(Body::empty()).unwrap())
    };
    assert_eq!(ask().await.status, 200);
    world.store.remove_api_key(ApiKeyText::parse(&key).unwrap().id()).unwrap();
    assert_eq!(ask().await.refusal(), (401, 16));
}

#[tokio::test]
async fn an_oversize_or_broken_body_is_refused() {
    let world = World::new();
    let huge = world.raw("POST", "/api/v1/clusters", vec![b' '; 1024 * 1024 + 1]).await;
    assert_eq!(huge.refusal(), (400, 3));
    for broken in
        ["", "{", "nonsense", "\u{0}", "{\"name\":}", "[[[[[[", "{\"name\":\"a\"}garbage", "\"text\""]
    {
        assert_eq!(world.raw("POST", "/api/v1/clusters", broken).await.refusal(), (400, 3), "{broken}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(world.raw("POST", "/api/v1/clusters", deep).await.refusal(), (400, 3));
    let invalid = world.raw("POST", "/api/v1/clusters", vec![0xff, 0xfe, 0x00]).await;
    assert_eq!(invalid.refusal(), (400, 3));
    let missing_length =
        Request::builder().method("POST").uri("/api/v1/clusters").header("content-length", "99999999");
    let missing_length = missing_length.header("authorization", format!("Bearer {}", world.key));
    assert_eq!(world.send(missing_length.body(Body::empty()).unwrap()).await.refusal(), (400, 3));
}

#[tokio::test]
async fn errors_never_repeat_a_secret() {
    let world = World::new();
    let users = format!("/clusters/{}/sql-users", world.made("shop-one").await);
    let secret = "canary-4711";
    let bodies = [
        json!({"name": "admin", "password": secret}).to_string(),
        json!({"name": "maria", "password": {"text": secret}}).to_string(),
        json!({"name": "maria", "password": [secret]}).to_string(),
        json!({"name": {secret: 1}, "password": secret}).to_string(),
        json!(secret).to_string(),
        format!("{{\"name\":\"maria\",\"password\":\"{secret}"),
        format!("{{\"name\":\"maria\",\"password\":{secret}}}"),
    ];
    for body in bodies {
        let answer = world.raw("POST", &format!("/api/v1{users}"), body.clone()).await;
        assert_eq!(answer.refusal(), (400, 3), "{body}");
        assert!(!answer.text.contains("canary"), "{body}: {}", answer.text);
    }
    let request =
        Request::builder().uri("/api/v1/clusters").header("authorization", format!("Bearer {secret}"));
    assert!(!world.send(request.body(Body::empty()).unwrap()).await.text.contains("canary"));
}

#[tokio::test]
async fn path_tricks_reach_nothing() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let tricks = [
        format!("/api/v1/clusters/{id}/../../chitin/status"),
        format!("/api/v1/clusters/{id}%2Fsql-users"),
        format!("/api/v1/clusters/{id}/sql-users//password"),
        format!("/api/v1/clusters//{id}"),
        format!("/api/v1//clusters/{id}"),
        format!("/api/v1/clusters/{id}/"),
        format!("/api/v1/clusters/{id}%00"),
        "/api/v1/clusters/..".to_owned(),
        "/api/v1/clusters/%2e%2e/chitin/status".to_owned(),
        "/api/v1/clusters/%ff".to_owned(),
        "/api/v1/clusters/00000000-0000-0000-0000-000000000000".to_owned(),
        format!("/api/v1/clusters/{}", id.to_string().to_uppercase()),
        "/API/v1/clusters".to_owned(),
        "/etc/passwd".to_owned(),
        format!("/api/v1/clusters/{}", "x".repeat(8_000)),
    ];
    for path in tricks {
        let answer = world.raw("GET", &path, "").await;
        let (status, _) = answer.refusal();
        assert!(matches!(status, 400 | 404 | 405), "{path}: {status} {}", answer.text);
    }
}

#[tokio::test]
async fn a_leading_double_slash_is_tolerated() {
    let world = World::new();
    assert_eq!(world.raw("GET", "//api/v1/clusters", "").await.status, 200);
    let stranger = Request::builder().uri("//api/v1/clusters").body(Body::empty()).unwrap();
    assert_eq!(world.send(stranger).await.refusal(), (401, 16));
}

#[tokio::test]
async fn a_key_that_asks_too_often_waits_and_others_do_not() {
    let world = World::new();
    let ask = |key: String| {
        let request =
            Request::builder().uri("/api/v1/openapi.json").header("authorization", format!("Bearer {key}"));
        world.send(request.body(Body::empty()).unwrap())
    };
    let mut refused = None;
    for _ in 0..500 {
        let answer = ask(world.key.clone()).await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.unwrap();
    assert_eq!(refused.refusal(), (429, 8));
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(ask(new_key(&world.store, "other")).await.status, 200);
}

#[tokio::test]
async fn nobody_takes_a_name_that_is_in_use() {
    let world = World::new();
    let first = world.made("wanted-name").await;
    let mut squatter = serverless("wanted-name");
    squatter["spec"]["labels"] = json!({"mine": "now"});
    assert_eq!(world.call("POST", "/clusters", squatter.clone()).await.refusal(), (409, 6));
    world.store.wish(first, model::Wish::Deleted, time::OffsetDateTime::now_utc()).unwrap();
    assert_eq!(
        world.call("POST", "/clusters", squatter).await.refusal(),
        (409, 6),
        "not while it is being deleted"
    );
    let stale =
        world.call("PATCH", &format!("/clusters/{first}"), json!({"delete_protection": "ENABLED"})).await;
    assert_eq!(stale.refusal(), (404, 5));
    let wake = world.call("POST", &format!("/chitin/clusters/{first}/wake"), Value::Null).await;
    assert_eq!(wake.refusal(), (404, 5));
}

#[tokio::test]
async fn only_one_of_many_at_once_gets_a_name() {
    let world = std::sync::Arc::new(World::new());
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let world = world.clone();
        tasks.spawn(async move {
            let mut request = serverless("raced-for");
            request["spec"]["labels"] = json!({"racer": number.to_string()});
            world.call("POST", "/clusters", request).await.status
        });
    }
    let answers = tasks.join_all().await;
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|status| **status == 409).count(), 19);
}
