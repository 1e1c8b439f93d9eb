//! Requests while the program stops.

use model::Wish;
use serde_json::{Value, json};
use tokio::time::{Duration, sleep};

use crate::world::{Answer, World, serverless};

/// Checks the form of a refusal while the program stops, and gives its text.
fn told(answer: &Answer) -> String {
    let body = answer.json();
    assert_eq!((answer.status, &body["code"]), (503, &json!(14)), "{}", answer.text);
    assert_eq!(body["details"][0]["@type"], "type.googleapis.com/google.rpc.ErrorInfo");
    assert_eq!(body["details"][0]["reason"], api::STOPPING);
    let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    body["message"].as_str().unwrap().to_owned()
}

/// Begins a deletion, does something while it is under way, and gives the answer to it.
async fn deleted_while(world: &World, meanwhile: impl AsyncFnOnce(model::ClusterId)) -> Answer {
    let id = world.made("my-shop").await;
    let path = format!("/clusters/{id}");
    let deletion = world.call("DELETE", &path, Value::Null);
    let meanwhile = async {
        until_wished(world, id).await;
        meanwhile(id).await;
    };
    tokio::join!(deletion, meanwhile).0
}

async fn until_wished(world: &World, id: model::ClusterId) {
    while world.store.snapshot().get(&id).is_some_and(|entry| entry.cluster.wish != Wish::Deleted) {
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_was_begun_is_finished_and_what_is_new_is_refused_in_words() {
    let world = World::new();
    let deleted = deleted_while(&world, async |id| {
        world.stopping.refuse_new();
        for (method, path) in [("GET", "/clusters"), ("POST", "/clusters"), ("GET", "/chitin/status")] {
            let refused = world.call(method, path, serverless("too-late")).await;
            let message = told(&refused);
            assert!(
                message.contains("Chitin is stopping") && message.contains("nothing was changed"),
                "{message}"
            );
        }
        // Who has no key hears what he always hears.
        let stranger = axum::http::Request::builder().uri("/api/v1/clusters").body(axum::body::Body::empty());
        assert_eq!(world.send(stranger.unwrap()).await.status, 401);
        let page = axum::http::Request::builder().uri("/oidc/v1/login").body(axum::body::Body::empty());
        let page = world.send(page.unwrap()).await;
        assert_eq!((page.status, page.headers.contains_key("retry-after")), (503, true), "{}", page.text);
        assert!(page.text.contains("is stopping"), "{}", page.text);
        let waits = tokio::time::timeout(Duration::from_millis(50), world.stopping.idle()).await;
        assert!(waits.is_err(), "the deletion is still under way");
        world.store.forget(id).unwrap();
    })
    .await;
    assert_eq!((deleted.status, &deleted.json()["state"]), (200, &json!("DELETED")), "{}", deleted.text);
    assert!(world.store.snapshot().by_name(&"too-late".parse().unwrap()).is_none());
    world.stopping.idle().await;
}

#[tokio::test]
async fn a_request_that_is_not_finished_says_whether_it_goes_on() {
    let world = World::new();
    let unfinished = deleted_while(&world, async |_| world.stopping.give_up()).await;
    let message = told(&unfinished);
    for part in
        ["did not finish", "the deletion is on record", "goes on at the next start", "chitin cluster list"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    world.stopping.idle().await;
}
