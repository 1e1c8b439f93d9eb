//! What is recorded of a change, and what never is. In a process of its own: whether a line is of interest is remembered
//! for all threads, and other tests have no use for it.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop at what should not happen")]

#[path = "api/double.rs"]
mod double;
#[path = "api/world.rs"]
#[expect(dead_code, reason = "shared with the other tests")]
mod world;

use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::Request;
use model::Origin;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use crate::world::World;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn t43_a_tunnel_s_private_key_is_in_no_log() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
    let _guard = tracing::subscriber::set_default(subscriber.with_writer(lines.clone()).finish());
    let world = World::new();
    let id = world.made("shop-one").await;
    let (network, peerings) =
        (format!("/chitin/clusters/{id}/network"), format!("/chitin/clusters/{id}/peerings"));
    world.call("PUT", &network, json!({"visibility": "PRIVATE"})).await;
    let tunnel = json!({"name": "home", "with": {"kind": "wireguard"}});
    let made = world.call("POST", &peerings, tunnel).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let kept = format!("{:?}", world.store.snapshot().get(&id).unwrap().cluster.network.peerings);
    world.get(&format!("{peerings}/home/config")).await;
    for wrong in [json!({"public_key": format!("{}x", double::KEY_CANARY)}), json!({})] {
        world.call("POST", &format!("{peerings}/home/accept"), wrong).await;
    }
    world.call("DELETE", &format!("{peerings}/home"), json!({})).await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains(&peerings)).count(), 4, "{text}");
    assert!(!text.contains(double::KEY_CANARY) && !kept.contains(double::KEY_CANARY), "{text}");
}

#[tokio::test(start_paused = true)]
async fn rejected_keys_leave_a_line_at_once_and_one_in_ten_seconds_and_never_the_key() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let world = World::new();
    let said = || {
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let rejected = text.lines().filter(|line| line.contains("rejected")).map(str::to_owned);
        rejected.collect::<Vec<_>>()
    };
    let pause = |seconds| tokio::time::sleep(std::time::Duration::from_secs(seconds));
    let from = Some("192.0.2.7".parse().unwrap());
    let shows = |shown: Option<String>, from: Option<std::net::IpAddr>| {
        let mut request = Request::get("/api/v1/clusters").body(Body::empty()).unwrap();
        if let Some(shown) = shown {
            request.headers_mut().insert("authorization", shown.parse().unwrap());
        }
        if let Some(from) = from {
            request.extensions_mut().insert(Origin::public(from));
        }
        world.send(request)
    };
    // The administrator's own but for the last letter.
    let mut wrong = world.key.clone();
    let last = if wrong.pop() == Some('a') { 'b' } else { 'a' };
    wrong.push(last);
    assert_eq!(shows(None, from).await.status, 401);
    assert!(said().is_empty(), "no key is no rejected one: {:?}", said());
    for count in 0..1_000_u32 {
        let key =
            if count % 2 == 0 { format!("Bearer {wrong}") } else { "Bearer canary-of-a-key".to_owned() };
        assert_eq!(shows(Some(key), from).await.status, 401);
    }
    let first = said();
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(first[0].contains("from=\"192.0.2.7\"") && first[0].contains("claimed=\"admin\""), "{first:?}");
    pause(11).await;
    assert!(said()[1].contains("keys=999 addresses=1"), "{:?}", said());
    pause(60).await;
    assert_eq!(said().len(), 2, "{:?}", said());
    shows(Some("Basic dXNlcjpjYW5hcnk=".to_owned()), None).await;
    assert!(said()[2].contains("operator socket") && said()[2].contains("unknown"), "{:?}", said());
    let all = said().join("\n");
    assert!(!all.contains("canary") && !all.contains(&wrong), "{all}");
}

#[tokio::test]
async fn every_change_leaves_one_line_without_secrets() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let world = World::new();
    let users = format!("/clusters/{}/sql-users", world.made("shop-one").await);
    world.call("POST", &users, json!({"name": "maria", "password": "canary-4711-long"})).await;
    world.call("POST", &users, json!({"name": "maria", "password": "canary-4711-long"})).await;
    world.get(&users).await;
    // A name with a line break must not become a line.
    world.call("DELETE", &format!("{users}/x%0Aaudit%3A%20forged"), json!({})).await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let audit: Vec<&str> = text.lines().filter(|line| line.contains(" audit: ")).collect();
    assert_eq!(audit.len(), 4, "{text}");
    assert!(audit[0].contains("status=200") && audit[0].contains("who=\"tester\""), "{text}");
    assert!(audit[2].contains("status=409") && audit[2].contains(&users), "{text}");
    assert!(!text.contains("canary") && !text.lines().any(|line| line.starts_with("audit")), "{text}");
}
