//! Clusters through the API: made, listed, changed, deleted.

use std::time::Duration;

use model::Wish;
use serde_json::{Value, json};

use crate::world::{World, serverless};

#[tokio::test]
async fn a_cluster_is_created_shown_listed_and_the_instant_never_changes() {
    let world = World::new();
    let made = world.call("POST", "/clusters", serverless("tfbasic-1")).await.json();
    assert_eq!(made["state"], "CREATING");
    assert_eq!(made["plan"], "BASIC");
    assert_eq!(made["config"]["serverless"]["routing_id"], "tfbasic-1-2");
    assert!(made["config"].get("dedicated").is_none());
    assert!(made["config"]["serverless"].get("usage_limits").is_none(), "what was not given is not answered");
    assert!(made.as_object().unwrap().values().all(|value| !value.is_null()));
    for field in ["creator_id", "operation_status", "upgrade_status", "cidr_range", "cockroach_version"] {
        assert!(made[field].is_string(), "{field}");
    }
    let path = format!("/clusters/{}", made["id"].as_str().unwrap());
    let shown = world.get(&path).await.json();
    let listed = world.get("/clusters?pagination.page=&pagination.limit=500").await.json();
    assert_eq!(shown, made);
    assert_eq!(listed["clusters"], json!([made]));
    let changed = world.call("PATCH", &path, json!({"labels": {"env": "rev1"}})).await.json();
    assert_eq!(changed["created_at"], made["created_at"]);
    assert_eq!(changed["labels"], json!({"env": "rev1"}));
}

#[tokio::test]
async fn serverless_starts_open_unless_told_otherwise_and_dedicated_starts_closed() {
    let world = World::new();
    let mut closed = serverless("closed-one");
    closed["spec"]["serverless"]["with_empty_ip_allowlist"] = json!(true);
    let dedicated = json!({"name": "big-cluster", "provider": "AWS", "spec": {"plan": "ADVANCED", "dedicated": {
        "region_nodes": {"us-east-1": 3}, "hardware": {"machine_spec": {"num_virtual_cpus": 4}, "storage_gib": 15}}}});
    for (request, expected) in [(serverless("open-one"), 2), (closed, 0), (dedicated.clone(), 0)] {
        let made = world.call("POST", "/clusters", request).await.json();
        let id = made["id"].as_str().unwrap();
        let list = world.get(&format!("/clusters/{id}/networking/allowlist")).await.json();
        assert_eq!(list["allowlist"].as_array().unwrap().len(), expected, "{made}");
        assert_eq!(list["propagating"], false);
    }
    let big = world.call("POST", "/clusters", dedicated).await.json();
    assert_eq!(big["config"]["dedicated"]["num_virtual_cpus"], 4);
    assert_eq!(big["regions"][0]["node_count"], 3);
}

#[tokio::test]
async fn limits_are_answered_as_strings_exactly_as_given() {
    let world = World::new();
    let mut request = serverless("limited-1");
    request["spec"]["serverless"]["usage_limits"] = json!({"request_unit_limit": "10000000"});
    let made = world.call("POST", "/clusters", request).await.json();
    let limits = |cluster: &Value| cluster["config"]["serverless"].get("usage_limits").cloned();
    assert_eq!(limits(&made), Some(json!({"request_unit_limit": "10000000"})));
    let path = format!("/clusters/{}", made["id"].as_str().unwrap());
    let change = json!({"serverless": {"primary_region": "", "usage_limits": {}}});
    assert_eq!(limits(&world.call("PATCH", &path, change).await.json()), None);
}

#[tokio::test]
async fn a_repeated_create_gives_the_first_result_and_another_content_is_refused() {
    let world = World::new();
    let first = world.create("twice-sent").await;
    assert_eq!(world.create("twice-sent").await, first);
    assert_eq!(world.store.snapshot().len(), 1);
    let mut squatter = serverless("twice-sent");
    squatter["provider"] = json!("AWS");
    assert_eq!(world.call("POST", "/clusters", squatter).await.refusal(), (409, 6));
}

#[tokio::test]
async fn wrong_requests_are_refused_in_the_contracts_words() {
    let world = World::new();
    let with = |path: &[&str], value: Value| {
        let mut request = serverless("some-cluster");
        let mut place = &mut request;
        for key in path {
            place = &mut place[*key];
        }
        *place = value;
        request
    };
    let cases = [
        (with(&["name"], json!("short")), (400, 3)),
        (with(&["name"], json!("Upper-Case")), (400, 3)),
        (with(&["name"], json!("../../etc/x")), (400, 3)),
        (with(&["provider"], json!("HAHA")), (400, 3)),
        (with(&["spec", "plan"], json!("FREE")), (400, 3)),
        (with(&["spec", "plan"], json!("ADVANCED")), (400, 3)),
        (with(&["spec", "dedicated"], json!({})), (400, 3)),
        (with(&["spec", "serverless", "regions"], json!([])), (400, 3)),
        (with(&["spec", "serverless", "regions"], json!(["a", "b"])), (400, 3)),
        (with(&["spec", "labels"], json!({"UPPER": "x"})), (400, 3)),
        (with(&["spec", "parent_id"], json!("7a1b")), (501, 12)),
        (with(&["spec", "customer_cloud_account"], json!({})), (501, 12)),
        (json!([]), (400, 3)),
    ];
    for (request, expected) in cases {
        let answer = world.call("POST", "/clusters", request.clone()).await;
        assert_eq!(answer.refusal(), expected, "{request}");
    }
    let haha = world.call("POST", "/clusters", with(&["provider"], json!("HAHA"))).await;
    assert!(haha.text.contains("proto: (line 1:") && haha.text.contains("HAHA"), "{}", haha.text);
    let promise = json!({"name": "version-one", "provider": "GCP", "spec": {"dedicated": {
        "region_nodes": {"us-east1": 1}, "cockroach_version": "v25.2"}}});
    assert_eq!(world.call("POST", "/clusters", promise).await.refusal(), (501, 12));
    assert!(world.store.snapshot().is_empty());
}

#[tokio::test]
async fn a_protected_cluster_is_not_deleted() {
    let world = World::new();
    let path = format!("/clusters/{}", world.made("protected").await);
    let protect = json!({"delete_protection": "ENABLED"});
    assert_eq!(world.call("PATCH", &path, protect).await.json()["delete_protection"], "ENABLED");
    assert_eq!(world.call("DELETE", &path, Value::Null).await.refusal(), (400, 9));
    assert_eq!(world.get(&path).await.json()["state"], "CREATED");
}

#[tokio::test]
async fn a_deletion_is_answered_when_the_cluster_is_gone() {
    let world = World::new();
    let id = world.made("short-lived").await;
    let store = world.store.clone();
    let reconciler = tokio::spawn(async move {
        let mut changes = store.changes();
        while store.snapshot().get(&id).is_some_and(|entry| entry.cluster.wish != Wish::Deleted) {
            changes.changed().await.unwrap();
        }
        store.forget(id).unwrap();
    });
    let path = format!("/clusters/{id}");
    let deleted = world.call("DELETE", &path, Value::Null).await;
    reconciler.await.unwrap();
    assert_eq!((deleted.status, deleted.json()["state"].clone()), (200, json!("DELETED")));
    assert_eq!(world.get(&path).await.json()["state"], "DELETED");
    assert_eq!(world.get("/clusters").await.json()["clusters"], json!([]));
    let all = world.get("/clusters?show_inactive=true").await.json();
    assert_eq!(all["clusters"][0]["state"], "DELETED");
    for (method, rest) in
        [("DELETE", ""), ("GET", "/sql-users"), ("GET", "/networking/allowlist"), ("PATCH", "")]
    {
        let answer = world.call(method, &format!("{path}{rest}"), json!({})).await;
        assert_eq!(answer.refusal(), (404, 5), "{method} {rest}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_takes_long_says_that_it_goes_on() {
    let world = World::new();
    let id = world.made("slow-to-go").await;
    let path = format!("/clusters/{id}");
    let answer = world.call("DELETE", &path, Value::Null);
    let answer = tokio::time::timeout(Duration::from_secs(90), answer).await.unwrap();
    assert_eq!(answer.refusal(), (503, 14));
    assert_eq!(world.store.snapshot().get(&id).unwrap().cluster.wish, Wish::Deleted);
}

#[tokio::test]
async fn pages_show_every_cluster_once_in_both_orders() {
    let world = World::new();
    for number in 0..5 {
        world.create(&format!("cluster-{number}")).await;
    }
    for order in ["ASC", "DESC"] {
        let (mut token, mut names) = (String::new(), Vec::new());
        loop {
            let query = format!("pagination.limit=2&pagination.sort_order={order}&pagination.page={token}");
            let page = world.get(&format!("/clusters?{query}")).await.json();
            names.extend(
                page["clusters"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|item| item["name"].as_str().unwrap().to_owned()),
            );
            match page["pagination"]["next_page"].as_str() {
                Some(next) => next.clone_into(&mut token),
                None => break,
            }
        }
        let mut expected: Vec<String> = (0..5).map(|number| format!("cluster-{number}")).collect();
        if order == "DESC" {
            expected.reverse();
        }
        assert_eq!(names, expected);
    }
    for query in ["page=garbage", "page=00ff", "limit=-1", "limit=x", "sort_order=SIDEWAYS", "sort_by=COLOUR"]
    {
        assert_eq!(world.get(&format!("/clusters?pagination.{query}")).await.refusal(), (400, 3), "{query}");
    }
}

#[tokio::test]
async fn a_cluster_moves_between_basic_and_standard_only() {
    let world = World::new();
    let path = format!("/clusters/{}", world.made("growing-up").await);
    assert_eq!(world.call("PATCH", &path, json!({"plan": "STANDARD"})).await.json()["plan"], "STANDARD");
    assert_eq!(world.call("PATCH", &path, json!({"plan": "ADVANCED"})).await.refusal(), (400, 3));
    assert_eq!(world.call("PATCH", &path, json!({"dedicated": {}})).await.refusal(), (400, 3));
    assert_eq!(world.call("PATCH", &path, json!({"cockroach_version": "v25.2"})).await.refusal(), (501, 12));
    let half = json!({"labels": {"a": "b"}, "serverless": {"regions": ["elsewhere"]}});
    assert_eq!(world.call("PATCH", &path, half).await.refusal(), (400, 3));
    assert_eq!(world.get(&path).await.json()["labels"], json!({}), "a refused change changes nothing");
}

#[tokio::test]
async fn a_cluster_can_be_made_for_a_while_and_kept_longer() {
    let world = World::new();
    let request = |seconds: u32| {
        json!({"name": "thrown-away", "provider": "GCP", "spec": {
            "plan": "BASIC", "serverless": {"regions": ["local"]}, "expires_in_seconds": seconds}})
    };
    for wrong in [0, 29, 2_592_001] {
        assert_eq!(world.call("POST", "/clusters", request(wrong)).await.refusal(), (400, 3), "{wrong}");
    }
    let made = world.call("POST", "/clusters", request(60)).await.json();
    let again = world.call("POST", "/clusters", request(60)).await.json();
    assert_eq!(made["id"], again["id"], "whoever asks again gets the first");
    let id: model::ClusterId = made["id"].as_str().unwrap().parse().unwrap();
    let end = || world.store.snapshot().get(&id).unwrap().cluster.asked.expires_at;
    let first = end().unwrap();
    let path = format!("/chitin/clusters/{id}/expiry");
    let put = world.call("PUT", &path, json!({"expires_in_seconds": 3_600})).await.json();
    assert!(end().unwrap() > first && put["expires_at"].is_string());
    for wrong in [json!({"expires_in_seconds": 5}), json!({"seconds": 60})] {
        assert_eq!(world.call("PUT", &path, wrong.clone()).await.refusal(), (400, 3), "{wrong}");
    }
    assert_eq!(world.call("PUT", &path, json!({})).await.json(), json!({}));
    assert_eq!(end(), None, "it stays until somebody deletes it");
}

#[tokio::test]
async fn where_clusters_stand_is_listed_by_page_and_broken_ones_say_why() {
    let world = World::new();
    let (well, broken) = (world.made("shop-one").await, world.made("shop-two").await);
    let reason = "it does not start".to_owned();
    let seen = model::Observation {
        phase: model::Phase::Broken { reason: reason.clone() },
        is_initialized: true,
        ..model::Observation::nothing_yet()
    };
    world.store.observe(broken, seen).unwrap();
    let mut listed = Vec::new();
    let mut path = "/chitin/clusters?pagination.limit=1".to_owned();
    loop {
        let page = world.get(&path).await.json();
        listed.extend(page["clusters"].as_array().unwrap().clone());
        let Some(next) = page["pagination"]["next_page"].as_str() else { break };
        path = format!("/chitin/clusters?pagination.limit=1&pagination.page={next}");
    }
    let mut expected = vec![
        json!({"id": well, "phase": "running"}),
        json!({"id": broken, "phase": {"broken": {"reason": reason}}}),
    ];
    expected.sort_by_key(|one| one["id"].as_str().unwrap().to_owned());
    assert_eq!(listed, expected);
}
