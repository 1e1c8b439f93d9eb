//! A cloud without engines, and somebody with a key to it.

use std::sync::Arc;

use api::Capability;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request};
use control::{Settings, State, Stopping};
use identity::api_key::ApiKeyText;
use keys::{Authority, RootKey};
use model::{ClusterId, Observation, Phase, SystemClock};
use serde_json::{Value, json};
use store::{ApiKey, Store};
use tempfile::TempDir;
use time::OffsetDateTime;
use tower::ServiceExt;

use crate::double::{Engines, Nobody};

pub struct World {
    pub router: Router,
    pub store: Arc<Store>,
    pub engines: Arc<Engines>,
    pub key: String,
    pub folder: TempDir,
    pub stopping: Stopping,
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    /// Checks the form of an error and gives its status and gRPC code.
    pub fn refusal(&self) -> (u16, u64) {
        let body = self.json();
        assert!(body["message"].is_string() && body["details"] == json!([]), "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/json");
        (self.status, body["code"].as_u64().unwrap())
    }
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kek = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
        let store = Store::open(&folder.path().join("state.redb"), kek.sealer("state").unwrap()).unwrap();
        let sealer = kek.sealer("authority").unwrap();
        let root = Authority::open_or_create(folder.path(), &sealer, &SystemClock).unwrap();
        let engines = Arc::new(Engines::default());
        let settings = Settings {
            sql_host: "localhost".to_owned(),
            sql_port: 26_257,
            sql: "127.0.0.1:26257".to_owned(),
            http: "127.0.0.1:8080".to_owned(),
            ca_pem: root.root_pem().to_owned(),
            ca_path: Some("/srv/my data/ca.pem".to_owned()),
            http_port: 8_080,
            public_host: "cloud.example.org".to_owned(),
            endpoint: Some("192.0.2.1:26258".to_owned()),
            version: "0.1.0".to_owned(),
            allowlist_entries_max: 1_000,
        };
        let stopping = Stopping::default();
        let router = control::router(State {
            store: store.clone(),
            administration: engines.clone(),
            desk: Arc::new(Nobody),
            clock: Arc::new(SystemClock),
            settings: Arc::new(settings),
            stopping: stopping.clone(),
        });
        let key = new_key(&store, "admin");
        Self { router, store, engines, key, folder, stopping }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = to_bytes(body, 16 << 20).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Answer { status: head.status.as_u16(), headers: head.headers, text }
    }

    /// Sends as somebody with a fresh key, so that the rate is no part of the test.
    pub async fn raw(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("authorization", format!("Bearer {}", new_key(&self.store, "tester")));
        self.send(request.body(body.into()).unwrap()).await
    }

    pub async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.raw(method, &format!("/api/v1{path}"), body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Value::Null).await
    }

    pub async fn create(&self, name: &str) -> ClusterId {
        let answer = self.call("POST", "/clusters", serverless(name)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["id"].as_str().unwrap().parse().unwrap()
    }

    /// From now on the machine cannot have private networks.
    pub fn without_private_networks(&self) {
        self.engines.capabilities.lock().unwrap().push(Capability {
            name: "private networks".to_owned(),
            is_present: false,
            explanation: "Chitin may not make networks".to_owned(),
            next_step: Some("run it as root".to_owned()),
        });
    }

    /// A cluster as the reconciler leaves it.
    pub async fn made(&self, name: &str) -> ClusterId {
        let id = self.create(name).await;
        let seen = Observation {
            phase: Phase::Running,
            is_initialized: true,
            engine_version: Some("15.18".to_owned()),
            ..Observation::nothing_yet()
        };
        self.store.observe(id, seen).unwrap();
        id
    }
}

pub fn serverless(name: &str) -> Value {
    json!({"name": name, "provider": "GCP", "spec": {"plan": "BASIC", "serverless": {"regions": ["us-central1"]}}})
}

pub fn new_key(store: &Store, name: &str) -> String {
    let key = ApiKeyText::generate();
    let kept = ApiKey {
        id: key.id().to_owned(),
        name: name.to_owned(),
        digest: key.digest(),
        created_at: OffsetDateTime::now_utc(),
    };
    store.put_api_key(kept).unwrap();
    key.expose().to_owned()
}
