//! How many sessions a cluster may have: chosen, the plan's own, and what an earlier version gave.

use serde_json::{Value, json};

use crate::world::{World, serverless};

#[tokio::test]
async fn the_number_of_sessions_can_be_chosen_within_bounds_and_given_back() {
    let world = World::new();
    let mut wanted = serverless("chosen-1");
    for wrong in [1, 9, 2_001] {
        wanted["spec"]["max_connections"] = json!(wrong);
        let refused = world.call("POST", "/clusters", wanted.clone()).await;
        assert_eq!(refused.refusal(), (400, 3));
        assert!(refused.json()["message"].as_str().unwrap().contains("10 to 2000"), "{}", refused.json());
    }
    wanted["spec"]["max_connections"] = json!(50);
    let made = world.call("POST", "/clusters", wanted).await.json();
    let id = made["id"].as_str().unwrap().to_owned();
    let number =
        async || world.get(&format!("/chitin/clusters/{id}")).await.json()["connections_max"].clone();
    assert_eq!(number().await, json!(50));
    let path = format!("/clusters/{id}");
    let change =
        async |count: u32| world.call("PATCH", &path, json!({"max_connections": count})).await.status;
    assert_eq!((change(9).await, number().await), (400, json!(50)));
    assert_eq!((change(2_000).await, number().await), (200, json!(2_000)));
    // What is not named stays.
    assert_eq!(world.call("PATCH", &path, json!({"labels": {"a": "b"}})).await.status, 200);
    assert_eq!(number().await, json!(2_000));
    assert_eq!((change(0).await, number().await), (200, json!(200)));
}

#[tokio::test]
async fn what_grew_and_what_an_earlier_version_gave_stays_until_somebody_chooses() {
    let world = World::new();
    let id = world.made("earlier-1").await;
    let entry = world.store.snapshot().get(&id).cloned().unwrap();
    assert_eq!(entry.cluster.connections_max(), 200);
    assert_eq!(entry.cluster.connections_grown(200), Some(400));
    for other in [100, 400, 2_000] {
        assert_eq!(entry.cluster.connections_grown(other), None, "its next start has another number already");
    }
    let mut document: Value = serde_json::to_value(&entry.cluster).unwrap();
    let again: model::Cluster = serde_json::from_value(document.clone()).unwrap();
    assert_eq!(again.connections_max(), 200);
    // As an earlier version wrote it.
    document.as_object_mut().unwrap().remove("connections_floor").unwrap();
    let mut earlier: model::Cluster = serde_json::from_value(document).unwrap();
    assert_eq!((earlier.connections_max(), earlier.connections_grown(2_000)), (2_000, None));
    earlier.asked.connections_max = Some(20);
    assert_eq!((earlier.connections_max(), earlier.connections_grown(20)), (20, None), "somebody chose");
    earlier.asked.connections_max = Some(0);
    assert_eq!(earlier.connections_max(), 10, "whatever was written down");

    let grown = |cluster: &mut model::Cluster| {
        cluster.connections_floor = Some(800);
        Ok::<(), store::Error>(())
    };
    world.store.edit(id, time::OffsetDateTime::now_utc(), grown).unwrap();
    let number =
        async || world.get(&format!("/chitin/clusters/{id}")).await.json()["connections_max"].clone();
    assert_eq!(number().await, json!(800));
    let path = format!("/clusters/{id}");
    assert_eq!(world.call("PATCH", &path, json!({"max_connections": 0})).await.status, 200);
    assert_eq!(number().await, json!(200));
}

#[tokio::test]
async fn sessions_that_were_used_up_are_an_alert_with_a_next_step() {
    let world = World::new();
    let id = world.made("used-up-1").await;
    let alerts = async || world.get("/chitin/status").await.json()["alerts"].clone();
    assert_eq!(alerts().await, json!([]));
    let at = time::OffsetDateTime::now_utc();
    world.store.note(id, |seen| seen.connections_used_up_at = Some(at)).unwrap();
    let told = alerts().await;
    assert_eq!(told[0]["cluster"], json!("used-up-1"));
    assert!(told[0]["what"].as_str().unwrap().contains("it may have 200"), "{told}");
    assert!(told[0]["next_step"].as_str().unwrap().contains("update used-up-1 --connections"), "{told}");
}

#[tokio::test]
async fn cancel_requests_in_plaintext_are_refused_from_the_start_where_that_is_asked_for() {
    let world = World::new();
    // Which it needs none of.
    world.without_private_networks();
    for (name, asked, takes) in
        [("takes-1", None, true), ("takes-2", Some(true), true), ("refuses-1", Some(false), false)]
    {
        let mut wanted = serverless(name);
        if let Some(asked) = asked {
            wanted["spec"]["plaintext_cancels"] = json!(asked);
        }
        let made = world.call("POST", "/clusters", wanted.clone()).await;
        assert_eq!(made.status, 200, "{}", made.text);
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let detail = world.get(&format!("/chitin/clusters/{id}")).await.json();
        assert_eq!(detail["plaintext_cancels"], json!(takes), "{name}");
        // Whoever asks once more for the same has the same.
        assert_eq!(world.call("POST", "/clusters", wanted).await.json()["id"], json!(id));
    }
}
