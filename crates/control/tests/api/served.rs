//! What is served is what the OpenAPI document says.

use axum::body::Body;
use axum::http::Request;

use crate::world::World;

#[tokio::test]
async fn every_call_of_the_document_is_served_and_no_other_method_is() {
    let world = World::new();
    let id = world.made("shop-one").await.to_string();
    let document = world.get("/openapi.json").await.json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path =
            path.replace("{cluster_id}", &id).replace("{cidr_ip}", "192.0.2.0").replace("{cidr_mask}", "24");
        let path = path.replace("{name}", "nobody").replace("{rule_id}", &id);
        let path = path.replace("{name}", "nobody").replace("{endpoint_id}", "vpce-0abcdef0");
        let path = path.replace("{owner_id}", "00000000-0000-4000-8000-000000000000");
        for method in ["get", "post", "put", "patch", "delete", "trace"] {
            if (method, path.ends_with(&id), methods.get(method)) == ("delete", true, methods.get("delete")) {
                continue;
            }
            let answer = world.raw(&method.to_uppercase(), &path, "{}").await;
            let is_served = methods.get(method).is_some();
            assert_eq!(
                answer.status == 405,
                !is_served,
                "{method} {path}: {} {}",
                answer.status,
                answer.text
            );
            if !is_served {
                answer.refusal();
                assert!(answer.headers.contains_key("allow"), "{method} {path}");
            }
            assert!(!answer.text.contains("nothing at this path"), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn calls_of_the_cloud_api_that_are_not_built_say_so() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let paths = [
        "/api/v1/api-keys".to_owned(),
        "/api/v1/folders/some/contents".to_owned(),
        "/api/v1/roles/someone/ORGANIZATION//ORG_ADMIN".to_owned(),
        "/api/v1/cluster-versions".to_owned(),
        "/api/v1/clusters/available-regions".to_owned(),
        format!("/api/v1/clusters/{id}/logexport"),
        format!("/api/v1/clusters/{id}/backups-config"),
        format!("/api/v1/clusters/{id}/networking/egress-private-endpoints"),
        "/api/scim/v2/Users".to_owned(),
    ];
    for path in paths {
        for method in ["GET", "POST", "DELETE"] {
            assert_eq!(world.raw(method, &path, "").await.refusal(), (501, 12), "{method} {path}");
        }
    }
    for path in ["/", "/api", "/api/v1", "/api/v1/nonsense", "/api/v2/clusters", "/favicon.ico"] {
        assert_eq!(world.raw("GET", path, "").await.refusal(), (404, 5), "{path}");
    }
}

#[tokio::test]
async fn every_answer_carries_the_headers_of_the_contract() {
    let world = World::new();
    let refused = world.send(Request::builder().uri("/nowhere").body(Body::empty()).unwrap()).await;
    let missing = world.raw("GET", "/nowhere", "").await;
    let good = world.get("/clusters").await;
    for answer in [refused, missing, good] {
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.headers["content-security-policy"], "sandbox");
        assert_eq!(answer.headers["cc-version"], "2024-09-16");
        for name in ["strict-transport-security", "x-content-type-options", "cache-control"] {
            assert!(answer.headers.contains_key(name), "{name}");
        }
    }
}

#[tokio::test]
async fn a_version_that_nobody_knows_is_refused() {
    let world = World::new();
    for (version, status) in [("2024-09-16", 200), ("latest", 200), ("2023-01-01", 400), ("x", 400)] {
        let request = Request::builder().uri("/api/v1/clusters").header("cc-version", version);
        let request = request.header("authorization", format!("Bearer {}", world.key));
        let answer = world.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, status, "{version}");
        assert!(status == 200 || answer.json()["message"] == "invalid Cc-Version");
    }
}

#[tokio::test]
async fn the_root_certificate_needs_no_key_and_nothing_else_goes_without() {
    let world = World::new();
    let ask = |method: &str, path: &str| {
        world.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap())
    };
    let root = ask("GET", "/clusters/whatever/cert").await;
    assert!(root.status == 200 && root.text.starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!(root.headers["content-type"], "text/plain; charset=utf-8");
    for (method, path) in
        [("POST", "/clusters/x/cert"), ("GET", "/clusters/x/cert/y"), ("GET", "/clusters//cert")]
    {
        assert_eq!(ask(method, path).await.refusal(), (401, 16), "{method} {path}");
    }
}
