//! Who can see a cluster: visibility and the addresses of private networks.

use std::sync::Arc;

use model::{ClusterId, NetworkSeen, PeeringPhase};
use serde_json::{Value, json};

use crate::world::{World, serverless};

/// A request for a private cluster of either plan.
fn private(name: &str, plan: &str, range: Option<&str>) -> Value {
    let mut settings = match plan {
        "serverless" => json!({"regions": ["us-central1"]}),
        _ => json!({"region_nodes": {"us-central1": 1}}),
    };
    settings["network_visibility"] = json!("PRIVATE");
    if let Some(range) = range {
        settings["cidr_range"] = json!(range);
    }
    json!({"name": name, "provider": "GCP", "spec": {plan: settings}})
}

fn own(id: ClusterId) -> String {
    format!("/chitin/clusters/{id}/network")
}

fn range_of(world: &World, id: ClusterId) -> Option<String> {
    world.store.snapshot().get(&id).unwrap().cluster.network.range.map(|range| range.to_string())
}

#[tokio::test]
async fn a_private_cluster_of_either_plan_gets_a_range_that_nobody_has() {
    let world = World::new();
    let mut made = Vec::new();
    for (name, plan, given, expected) in [
        ("first-one", "serverless", None, "10.224.0.0/24"),
        ("second-one", "dedicated", None, "10.224.1.0/24"),
        ("wide-one", "dedicated", Some("10.224.2.0/23"), "10.224.2.0/23"),
        ("third-one", "serverless", Some(""), "10.224.4.0/24"),
        ("far-one", "dedicated", Some("172.28.0.0/14"), "172.28.0.0/14"),
        ("six-one", "serverless", Some("fd00:77::/64"), "fd00:77::/64"),
    ] {
        let answer = world.call("POST", "/clusters", private(name, plan, given)).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text);
        let cluster = answer.json();
        assert_eq!(
            (&cluster["network_visibility"], &cluster["cidr_range"]),
            (&json!("PRIVATE"), &json!(expected))
        );
        assert_eq!(cluster["regions"][0]["internal_dns"], cluster["sql_dns"]);
        made.push(cluster["id"].as_str().unwrap().to_owned());
    }
    let public = world.call("POST", "/clusters", serverless("public-one")).await.json();
    assert_eq!((&public["network_visibility"], &public["cidr_range"]), (&json!("PUBLIC"), &json!("")));
    assert_eq!(public["regions"][0]["internal_dns"], "");
    // A gap is used again.
    world.store.forget(made[0].parse().unwrap()).unwrap();
    let again = world.call("POST", "/clusters", private("fourth-one", "serverless", None)).await.json();
    assert_eq!(again["cidr_range"], "10.224.0.0/24");
}

#[tokio::test]
async fn a_create_that_is_sent_again_gets_the_first_cluster_and_its_range() {
    let world = World::new();
    for range in [None, Some("10.9.0.0/16")] {
        let name = if range.is_some() { "twice-given" } else { "twice-found" };
        let request = private(name, "serverless", range);
        let first = world.call("POST", "/clusters", request.clone()).await.json();
        assert_eq!(world.call("POST", "/clusters", request).await.json(), first);
        let other = private(name, "serverless", Some("10.10.0.0/16"));
        assert_eq!(world.call("POST", "/clusters", other).await.refusal(), (409, 6));
        assert_eq!(world.call("POST", "/clusters", serverless(name)).await.refusal(), (409, 6));
    }
    assert_eq!(world.store.snapshot().len(), 2);
}

#[tokio::test]
async fn ranges_that_are_not_private_too_wide_too_narrow_or_taken_are_refused() {
    let world = World::new();
    world.call("POST", "/clusters", private("secret-tenant", "serverless", Some("10.50.0.0/16"))).await;
    for (range, why) in [
        ("203.0.113.0/24", "private addresses"),
        ("10.0.0.0/30", "8 to 29"),
        ("fd00::/121", "48 to 120"),
        ("10.50.7.1/24", "did you mean 10.50.7.0/24"),
        ("nonsense", "not a CIDR range"),
        ("10.50.0.0/16", "overlaps 10.50.0.0/16"),
        ("10.50.255.248/29", "overlaps 10.50.0.0/16"),
        ("10.0.0.0/8", "overlaps 10.50.0.0/16"),
    ] {
        let refused =
            world.call("POST", "/clusters", private("other-tenant", "dedicated", Some(range))).await;
        assert_eq!(refused.refusal(), (400, 3), "{range}");
        assert!(refused.text.contains(why), "{range}: {}", refused.text);
        assert!(!refused.text.contains("secret-tenant"), "another customer's name: {}", refused.text);
    }
    let mut wrong = private("other-tenant", "serverless", None);
    wrong["spec"]["serverless"]["network_visibility"] = json!("HIDDEN");
    assert_eq!(world.call("POST", "/clusters", wrong).await.refusal(), (400, 3));
    assert_eq!(world.store.snapshot().len(), 1);
}

#[tokio::test]
async fn of_many_that_want_one_range_at_once_only_one_gets_it() {
    let world = Arc::new(World::new());
    let switched = world.made("switched-one").await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..12 {
        let world = world.clone();
        tasks.spawn(async move {
            let request = private(&format!("racer-{number}"), "serverless", Some("10.77.0.0/24"));
            world.call("POST", "/clusters", request).await.status
        });
    }
    let put = json!({"visibility": "PRIVATE", "cidr_range": "10.77.0.128/25"});
    let path = own(switched);
    let (edited, created) = tokio::join!(world.call("PUT", &path, put), tasks.join_all());
    let won = created.iter().filter(|status| **status == 200).count() + usize::from(edited.status == 200);
    assert_eq!(won, 1, "{created:?} {}", edited.status);
    // And of those who leave the choice, each gets its own.
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..12 {
        let world = world.clone();
        tasks.spawn(async move {
            let answer = world
                .call("POST", "/clusters", private(&format!("chooser-{number}"), "dedicated", None))
                .await;
            answer.json()["cidr_range"].as_str().unwrap().to_owned()
        });
    }
    let ranges: std::collections::BTreeSet<String> = tasks.join_all().await.into_iter().collect();
    assert_eq!(ranges.len(), 12, "{ranges:?}");
}

#[tokio::test]
async fn a_living_cluster_becomes_private_and_public_again() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let shown = world.get(&own(id)).await.json();
    let nothing = json!({"visibility": "PUBLIC", "sql_port": 26257, "http_port": 8080, "state": "none", "peerings": []});
    assert_eq!(shown, nothing);
    let private = world.call("PUT", &own(id), json!({"visibility": "PRIVATE"})).await.json();
    assert_eq!(
        private,
        json!({"visibility": "PRIVATE", "cidr_range": "10.224.0.0/24", "front_door": "10.224.0.1",
               "sql_port": 26257, "http_port": 8080, "internal_dns": "shop-one-2.localhost", "state": "pending",
               "peerings": []})
    );
    assert_eq!(world.get(&own(id)).await.json(), private);
    // Again it changes nothing, another range moves it, and one that is named and kept is no change.
    let revision = || world.store.snapshot().get(&id).unwrap().cluster.revision;
    let before = revision();
    for same in
        [json!({"visibility": "PRIVATE"}), json!({"visibility": "PRIVATE", "cidr_range": "10.224.0.0/24"})]
    {
        assert_eq!(world.call("PUT", &own(id), same).await.json(), private);
    }
    assert_eq!(revision(), before);
    let moved = json!({"visibility": "PRIVATE", "cidr_range": "192.168.7.0/24"});
    assert_eq!(world.call("PUT", &own(id), moved).await.json()["front_door"], "192.168.7.1");
    let both = json!({"visibility": "PUBLIC", "cidr_range": "192.168.8.0/24"});
    let both = world.call("PUT", &own(id), both).await.json();
    assert_eq!((&both["visibility"], &both["cidr_range"]), (&json!("PUBLIC"), &json!("192.168.8.0/24")));
    let cluster = world.get(&format!("/clusters/{id}")).await.json();
    assert_eq!(
        (&cluster["network_visibility"], &cluster["cidr_range"]),
        (&json!("PUBLIC"), &json!("192.168.8.0/24"))
    );
    assert_eq!(world.call("PUT", &own(id), json!({"visibility": "PUBLIC"})).await.json(), nothing);
    for wrong in [
        json!({}),
        json!({"visibility": "HIDDEN"}),
        json!({"visibility": "PRIVATE", "cidr_range": 7}),
        json!([]),
    ] {
        assert_eq!(world.call("PUT", &own(id), wrong).await.refusal(), (400, 3));
    }
    let nobody = ClusterId::random();
    assert_eq!(world.get(&own(nobody)).await.refusal(), (404, 5));
    assert_eq!(world.call("PUT", &own(nobody), json!({"visibility": "PRIVATE"})).await.refusal(), (404, 5));
}

#[tokio::test]
async fn a_range_stays_while_something_is_joined_with_it() {
    let world = World::new();
    let id = world.made("shop-one").await;
    world.call("PUT", &own(id), json!({"visibility": "PRIVATE"})).await;
    let peerings = format!("/chitin/clusters/{id}/peerings");
    let office = json!({"name": "office", "with": {"kind": "namespace", "namespace": "office"}});
    assert_eq!(world.call("POST", &peerings, office).await.status, 200);
    for visibility in ["PRIVATE", "PUBLIC"] {
        let moved = json!({"visibility": visibility, "cidr_range": "10.225.0.0/24"});
        let refused = world.call("PUT", &own(id), moved).await;
        assert_eq!(refused.refusal(), (400, 9));
        assert!(refused.text.contains("delete the peerings first"), "{}", refused.text);
    }
    let public = world.call("PUT", &own(id), json!({"visibility": "PUBLIC"})).await.json();
    assert_eq!(public["cidr_range"], "10.224.0.0/24", "kept for the peering");
    world.call("DELETE", &format!("{peerings}/office"), Value::Null).await;
    let dropped = world.call("PUT", &own(id), json!({"visibility": "PUBLIC"})).await.json();
    assert_eq!(dropped.get("cidr_range"), None);
    assert_eq!(range_of(&world, id), None);
}

#[tokio::test]
async fn what_was_seen_is_shown() {
    let world = World::new();
    let id = world.made("shop-one").await;
    world.call("PUT", &own(id), json!({"visibility": "PRIVATE"})).await;
    let office = json!({"name": "office", "with": {"kind": "namespace", "namespace": "office"}});
    world.call("POST", &format!("/chitin/clusters/{id}/peerings"), office).await;
    let door = Some("10.224.0.1".parse().unwrap());
    let failed = PeeringPhase::Failed { reason: "no such namespace".to_owned() };
    let peerings = [("office".parse().unwrap(), failed), ("old".parse().unwrap(), PeeringPhase::Active)];
    let seen = NetworkSeen { front_door: door, reason: None, peerings: peerings.into() };
    world.store.observe_network(id, seen.clone()).unwrap();
    let shown = world.get(&own(id)).await.json();
    assert_eq!(shown["state"], "active");
    let pending = json!({"name": "office", "state": "pending"});
    assert_eq!(shown["peerings"], json!([pending, {"name": "old", "state": "deleting"}]), "not accepted yet");
    world.call("POST", &format!("/chitin/clusters/{id}/peerings/office/accept"), Value::Null).await;
    let failed = json!({"name": "office", "state": "failed", "reason": "no such namespace"});
    assert_eq!(world.get(&own(id)).await.json()["peerings"][0], failed);

    let broken = NetworkSeen { front_door: None, reason: Some("no /dev/net/tun".to_owned()), ..seen.clone() };
    world.store.observe_network(id, broken).unwrap();
    let shown = world.get(&own(id)).await.json();
    assert_eq!((&shown["state"], &shown["reason"]), (&json!("failed"), &json!("no /dev/net/tun")));
    let elsewhere = NetworkSeen { front_door: Some("10.1.0.1".parse().unwrap()), ..seen };
    world.store.observe_network(id, elsewhere).unwrap();
    assert_eq!(
        world.get(&own(id)).await.json()["state"],
        "pending",
        "it listens where it shall not any more"
    );
    world.call("DELETE", &format!("/chitin/clusters/{id}/peerings/office"), Value::Null).await;
    world.call("PUT", &own(id), json!({"visibility": "PUBLIC"})).await;
    assert_eq!(world.get(&own(id)).await.json()["state"], "deleting");
}

#[tokio::test]
async fn a_machine_that_cannot_have_private_networks_says_so() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let with_range = world.made("shop-two").await;
    world.call("PUT", &own(with_range), json!({"visibility": "PRIVATE"})).await;
    world.without_private_networks();
    let office = json!({"name": "office", "with": {"kind": "namespace", "namespace": "office"}});
    let mut range_only = serverless("range-only");
    range_only["spec"]["serverless"]["cidr_range"] = json!("10.1.0.0/16");
    for (method, path, body) in [
        ("POST", "/clusters".to_owned(), private("private-one", "serverless", None)),
        ("POST", "/clusters".to_owned(), private("private-one", "dedicated", Some("10.1.0.0/16"))),
        ("POST", "/clusters".to_owned(), range_only),
        ("PUT", own(id), json!({"visibility": "PRIVATE"})),
        ("PUT", own(id), json!({"visibility": "PUBLIC", "cidr_range": "10.1.0.0/16"})),
        ("POST", format!("/chitin/clusters/{with_range}/peerings"), office),
    ] {
        let refused = world.call(method, &path, body).await;
        assert_eq!(refused.refusal(), (400, 9), "{method} {path}");
        for part in ["cannot have private networks", "may not make networks", "run it as root"] {
            assert!(refused.text.contains(part), "{part}: {}", refused.text);
        }
    }
    assert_eq!(range_of(&world, id), None);
    // Nothing that needs no network is in the way, and the way back is open.
    assert_eq!(world.call("POST", "/clusters", serverless("public-one")).await.status, 200);
    let back = world.call("PUT", &own(with_range), json!({"visibility": "PUBLIC"})).await;
    assert_eq!((back.status, range_of(&world, with_range)), (200, None));
}

#[tokio::test]
async fn a_private_cluster_s_connection_string_leads_inside_and_a_public_one_s_does_not() {
    let world = World::new();
    let string = async |id: &str| {
        let path = format!("/clusters/{id}/connection-string?sql_user=maria");
        world.get(&path).await.json()["connection_string"].as_str().unwrap().to_owned()
    };
    for (name, range, address) in
        [("four-one", "10.77.0.0/24", "10.77.0.1"), ("six-one", "fd00:77::/64", "fd00%3A77%3A%3A1")]
    {
        let made = world.call("POST", "/clusters", private(name, "serverless", Some(range))).await.json();
        let id = made["id"].as_str().unwrap();
        assert!(string(id).await.ends_with(&format!("&hostaddr={address}")), "{}", string(id).await);
        let public = json!({"visibility": "PUBLIC", "cidr_range": range});
        assert_eq!(world.call("PUT", &own(id.parse().unwrap()), public).await.status, 200);
        assert!(!string(id).await.contains("hostaddr"));
    }
}
