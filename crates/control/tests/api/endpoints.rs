//! Private endpoints as the Cloud API's clients, an owner and an attacker ask for them.

use model::{ClusterId, ENDPOINTS_MAX, EndpointConnection, EndpointId, EndpointState, TRUSTED_OWNERS_MAX};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::world::{Answer, World};

const ONE: &str = "vpce-0abcdef0";
const TWO: &str = "vpce-0abcdef1";
const OWNER: &str = "012345678901";
const OTHER: &str = "109876543210";
const KEY: &str = "wireguard:AAEC+wQFBgcICQoLDA0ODxAREhMUFRYXGBk/GxwdHh8=";

fn of(id: ClusterId, what: &str) -> String {
    format!("/clusters/{id}/networking/{what}")
}

async fn connections(world: &World, id: ClusterId) -> Vec<Value> {
    let list = world.get(&of(id, "private-endpoint-connections")).await.json();
    list["connections"].as_array().unwrap().clone()
}

async fn add(world: &World, id: ClusterId, endpoint: &str, owner: Option<&str>) -> Answer {
    let mut body = json!({"endpoint_id": endpoint});
    if let Some(owner) = owner {
        body["external_owner_id"] = json!(owner);
    }
    world.call("POST", &of(id, "private-endpoint-connections"), body).await
}

async fn decide(world: &World, id: ClusterId, endpoint: &str, body: Value) -> Answer {
    let path = of(id, &format!("aws-endpoint-connections/{}", api::encode_segment(endpoint)));
    world.call("PATCH", &path, body).await
}

async fn trust(world: &World, id: ClusterId, owner: &str) -> Answer {
    let body = json!({"type": "AWS_ACCOUNT_ID", "external_owner_id": owner});
    world.call("POST", &of(id, "private-endpoint-trusted-owners"), body).await
}

async fn distrust(world: &World, id: ClusterId, entry: &Answer) -> Answer {
    let entry = entry.json()["trusted_owner"]["id"].as_str().unwrap().to_owned();
    world.call("DELETE", &of(id, &format!("private-endpoint-trusted-owners/{entry}")), Value::Null).await
}

async fn status(world: &World, id: ClusterId, endpoint: &str) -> String {
    let all = connections(world, id).await;
    let found = all.iter().find(|one| one["endpoint_id"] == endpoint).expect("the endpoint");
    found["status"].as_str().unwrap().to_owned()
}

/// An endpoint that came by itself, as the gateway records it.
fn came(world: &World, id: ClusterId, endpoint: &str, ago: Duration) {
    let now = OffsetDateTime::now_utc();
    let waiting = EndpointConnection {
        id: endpoint.parse().unwrap(),
        owner: None,
        state: EndpointState::PendingAcceptance,
        created_at: now - ago,
    };
    let record = |cluster: &mut model::Cluster| {
        cluster.network.endpoints.push(waiting);
        Ok::<(), store::Error>(())
    };
    world.store.edit(id, now, record).unwrap();
}

async fn made_by(world: &World, name: &str, provider: &str, plan: &str) -> ClusterId {
    let settings = match plan {
        "serverless" => json!({"regions": ["here", "there"], "primary_region": "there"}),
        _ => json!({"region_nodes": {"here": 3}}),
    };
    let request = json!({"name": name, "provider": provider, "spec": {plan: settings}});
    let answer = world.call("POST", "/clusters", request).await;
    answer.json()["id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_service_exists_by_itself_or_is_made_as_official_clients_make_it() {
    let world = World::new();
    let (serverless, dedicated) = (
        made_by(&world, "shop-one", "AWS", "serverless").await,
        made_by(&world, "shop-two", "AWS", "dedicated").await,
    );
    let services = world.get(&of(serverless, "private-endpoint-services")).await.json();
    let service = &services["services"][1];
    assert_eq!(services["services"].as_array().unwrap().len(), 2, "one a region");
    assert_eq!(
        (&service["region_name"], &service["status"], &service["name"], &service["availability_zone_ids"]),
        (&json!("there"), &json!("AVAILABLE"), &json!("com.chitin.shop-one-2"), &json!([]))
    );
    assert_eq!(service["aws"]["service_name"], "com.chitin.shop-one-2");
    assert_eq!(service["aws"]["service_id"], service["endpoint_service_id"]);
    assert_eq!(service["listener"], "192.0.2.1:26258");
    let dns = |cluster: &Value| cluster["regions"][0]["private_endpoint_dns"].clone();

    let path = of(dedicated, "private-endpoint-services");
    assert_eq!(world.get(&path).await.json(), json!({"services": []}));
    let before = world.get(&format!("/clusters/{dedicated}")).await.json();
    assert_eq!(dns(&before), "");
    // No body and no Content-Type; sent again, the same.
    let made = world.raw("POST", &format!("/api/v1{path}"), "").await;
    assert_eq!((made.status, made.json()["services"][0]["region_name"].clone()), (200, json!("here")));
    assert_eq!(world.raw("POST", &format!("/api/v1{path}"), "").await.json(), made.json());
    assert_eq!(world.get(&path).await.json(), made.json());
    let after = world.get(&format!("/clusters/{dedicated}")).await.json();
    assert_eq!(dns(&after), after["sql_dns"]);
    let again =
        world.raw("POST", &format!("/api/v1{}", of(serverless, "private-endpoint-services")), "").await;
    assert_eq!(again.json(), services);
    let gcp = made_by(&world, "shop-six", "GCP", "serverless").await;
    let gcp = world.get(&of(gcp, "private-endpoint-services")).await.json();
    assert_eq!(gcp["services"][0].get("aws"), None);
}

#[tokio::test]
async fn without_a_service_the_next_step_is_said() {
    let world = World::new();
    let id = made_by(&world, "shop-one", "AWS", "dedicated").await;
    let refused = add(&world, id, ONE, None).await;
    assert_eq!(refused.refusal(), (400, 9));
    assert!(refused.text.contains("chitin endpoint service shop-one --create"), "{}", refused.text);
    came(&world, id, ONE, Duration::ZERO);
    assert_eq!(decide(&world, id, ONE, json!({"status": "AVAILABLE"})).await.refusal(), (400, 9));
    assert_eq!(status(&world, id, ONE).await, "STATUS_PENDING_ACCEPTANCE");
}

#[tokio::test]
async fn an_endpoint_is_added_listed_and_removed_in_the_contracts_shape() {
    let world = World::new();
    let id = made_by(&world, "shop-one", "AWS", "serverless").await;
    let added = add(&world, id, ONE, None).await;
    assert_eq!(
        added.json(),
        json!({"endpoint_id": ONE, "cloud_provider": "AWS", "region_name": "there", "region": "there",
               "endpoint_service_id": id.to_string(), "service_name": "com.chitin.shop-one-2",
               "status": "STATUS_AVAILABLE"})
    );
    let revision = || world.store.snapshot().get(&id).unwrap().cluster.revision;
    let before = revision();
    assert_eq!(add(&world, id, ONE, None).await.json(), added.json());
    assert_eq!(revision(), before, "sent again, it changes nothing");
    for endpoint in [KEY, "psc:7", "azure:7", &format!("certificate:{}", "0a".repeat(32))] {
        assert_eq!(add(&world, id, endpoint, None).await.status, 200, "{endpoint}");
    }
    assert_eq!(connections(&world, id).await.len(), 5);
    let older = world.get(&of(id, "aws-endpoint-connections")).await.json();
    assert_eq!(
        older["connections"][0],
        json!({"region_name": "there", "cloud_provider": "AWS", "status": "AVAILABLE", "endpoint_id": ONE,
               "service_id": id.to_string()})
    );
    assert_eq!(older["connections"].as_array().unwrap().len(), 5);
    // A key has `/`, `+`, `=` and `:` in it.
    for endpoint in [KEY, ONE] {
        let path = of(id, &format!("private-endpoint-connections/{}", api::encode_segment(endpoint)));
        let gone = world.call("DELETE", &path, Value::Null).await;
        assert_eq!((gone.status, gone.json()), (200, json!({})), "{endpoint}");
        assert_eq!(world.call("DELETE", &path, Value::Null).await.refusal(), (404, 5));
    }
    assert_eq!(connections(&world, id).await.len(), 3);
}

#[tokio::test]
async fn a_bare_number_is_read_and_shown_in_the_words_of_the_clusters_provider() {
    let world = World::new();
    for (name, provider, long, kept) in [
        ("shop-gcp", "GCP", "psc:18446744073709551615", EndpointId::Gcp(u64::MAX)),
        ("shop-azure", "AZURE", "azure:4294967295", EndpointId::Azure(u32::MAX)),
    ] {
        let id = made_by(&world, name, provider, "serverless").await;
        let number = long.split_once(':').unwrap().1;
        let added = add(&world, id, number, None).await;
        assert_eq!(added.json()["endpoint_id"], number, "official clients look for what they sent");
        assert_eq!(world.store.snapshot().get(&id).unwrap().cluster.network.endpoints[0].id, kept);
        assert_eq!(add(&world, id, long, None).await.json(), added.json(), "the same endpoint");
        assert_eq!(connections(&world, id).await.len(), 1);
        assert_eq!(decide(&world, id, number, json!({"status": "REJECTED"})).await.status, 200);
        assert_eq!(status(&world, id, number).await, "STATUS_REJECTED");
        let path = of(id, &format!("private-endpoint-connections/{number}"));
        assert_eq!(world.call("DELETE", &path, Value::Null).await.status, 200);
        assert_eq!(add(&world, id, "007", None).await.refusal(), (400, 3));
    }
    let aws = made_by(&world, "shop-aws", "AWS", "serverless").await;
    assert_eq!(add(&world, aws, "7", None).await.refusal(), (400, 3));
}

#[tokio::test]
async fn an_endpoint_that_came_by_itself_is_accepted_or_rejected_while_it_is_fresh() {
    let world = World::new();
    let id = made_by(&world, "shop-one", "AWS", "serverless").await;
    came(&world, id, ONE, Duration::days(6));
    came(&world, id, TWO, Duration::days(8));
    assert_eq!(status(&world, id, ONE).await, "STATUS_PENDING_ACCEPTANCE");
    assert_eq!(status(&world, id, TWO).await, "STATUS_EXPIRED");
    let older = world.get(&of(id, "aws-endpoint-connections")).await.json();
    assert_eq!(older["connections"][1]["status"], "EXPIRED");
    let accepted = decide(&world, id, ONE, json!({"status": "AVAILABLE"})).await;
    assert_eq!(accepted.json()["status"], "PENDING_ACCEPTANCE", "as the contract says, from before");
    assert_eq!(status(&world, id, ONE).await, "STATUS_AVAILABLE");
    let rejected = decide(&world, id, ONE, json!({"status": "REJECTED"})).await;
    assert_eq!(rejected.json()["status"], "AVAILABLE");
    assert_eq!(status(&world, id, ONE).await, "STATUS_REJECTED");
    assert_eq!(decide(&world, id, ONE, json!({"status": "AVAILABLE"})).await.status, 200);

    let late = decide(&world, id, TWO, json!({"status": "AVAILABLE"})).await;
    assert_eq!(late.refusal(), (400, 9));
    assert!(late.text.contains(&format!("chitin endpoint add shop-one {TWO}")), "{}", late.text);
    assert_eq!(add(&world, id, TWO, None).await.json()["status"], "STATUS_AVAILABLE");
    for wrong in [json!({}), json!({"status": "PENDING"}), json!({"status": "EXPIRED"}), json!([])] {
        assert_eq!(decide(&world, id, ONE, wrong).await.refusal(), (400, 3));
    }
    for path in ["aws-endpoint-connections", "private-endpoint-connections"] {
        let method = if path.starts_with("aws") { "PATCH" } else { "DELETE" };
        for (endpoint, expected) in [("vpce-0000000f", 404), ("nonsense", 400), ("%2e%2e%2f", 400)] {
            let path = of(id, &format!("{path}/{endpoint}"));
            let answer = world.call(method, &path, json!({"status": "AVAILABLE"})).await;
            assert_eq!(answer.refusal().0, expected, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn only_endpoints_of_trusted_owners_are_accepted() {
    let world = World::new();
    let id = made_by(&world, "shop-one", "AWS", "serverless").await;
    let entry = trust(&world, id, OWNER).await;
    let owner = entry.json()["trusted_owner"].clone();
    assert_eq!(
        (&owner["type"], &owner["external_owner_id"], &owner["cluster_id"]),
        (&json!("AWS_ACCOUNT_ID"), &json!(OWNER), &json!(id.to_string()))
    );
    let one = of(id, &format!("private-endpoint-trusted-owners/{}", owner["id"].as_str().unwrap()));
    assert_eq!(world.get(&one).await.json(), entry.json());
    let list = world.get(&of(id, "private-endpoint-trusted-owners")).await.json();
    assert_eq!(list, json!({"trusted_owners": [owner]}), "the same to the digit");
    assert_eq!(trust(&world, id, OWNER).await.json(), entry.json(), "sent again, the first result");

    for (endpoint, said, expected) in [
        (ONE, None, "STATUS_PENDING_ACCEPTANCE"),
        (TWO, Some(OTHER), "STATUS_PENDING_ACCEPTANCE"),
        (KEY, Some(OWNER), "STATUS_AVAILABLE"),
    ] {
        let added = add(&world, id, endpoint, said).await.json();
        assert_eq!((&added["status"], added["external_owner_id"].as_str()), (&json!(expected), said));
    }
    let available = json!({"status": "AVAILABLE"});
    let unsaid = decide(&world, id, ONE, available.clone()).await;
    assert_eq!(unsaid.refusal(), (400, 9));
    assert!(
        unsaid.text.contains(&format!("chitin endpoint accept shop-one {ONE} --owner")),
        "{}",
        unsaid.text
    );
    let untrusted = decide(&world, id, TWO, available.clone()).await;
    assert_eq!(untrusted.refusal(), (400, 9));
    assert!(untrusted.text.contains(&format!("endpoint owner add shop-one {OTHER}")), "{}", untrusted.text);
    let said = json!({"status": "AVAILABLE", "external_owner_id": OWNER});
    assert_eq!(decide(&world, id, ONE, said).await.status, 200);
    assert_eq!(status(&world, id, ONE).await, "STATUS_AVAILABLE");
    trust(&world, id, OTHER).await;
    assert_eq!(decide(&world, id, TWO, available).await.status, 200);
    // Named as somebody else's, it must be acceptable as that.
    let moved = add(&world, id, TWO, Some("555555555555")).await.json();
    assert_eq!(moved["status"], "STATUS_PENDING_ACCEPTANCE");
    for wrong in ["", "*", "12345678901", "0123456789012", "01234567890x", "०१२३४५६७८९०१"]
    {
        assert_eq!(add(&world, id, ONE, Some(wrong)).await.refusal(), (400, 3), "{wrong}");
        let body = json!({"status": "AVAILABLE", "external_owner_id": wrong});
        assert_eq!(decide(&world, id, ONE, body).await.refusal(), (400, 3), "{wrong}");
        if wrong != "*" {
            assert_eq!(trust(&world, id, wrong).await.refusal(), (400, 3), "{wrong}");
        }
    }
    let kind = json!({"type": "GCP_PROJECT", "external_owner_id": OWNER});
    let refused = world.call("POST", &of(id, "private-endpoint-trusted-owners"), kind).await;
    assert_eq!(refused.refusal(), (400, 3));
}

#[tokio::test]
async fn an_owner_that_is_trusted_no_more_loses_its_endpoints() {
    let world = World::new();
    let id = made_by(&world, "shop-one", "AWS", "serverless").await;
    let (one, other, everybody) =
        (trust(&world, id, OWNER).await, trust(&world, id, OTHER).await, trust(&world, id, "*").await);
    add(&world, id, ONE, Some(OWNER)).await;
    add(&world, id, TWO, Some(OTHER)).await;
    assert_eq!(add(&world, id, KEY, None).await.json()["status"], "STATUS_AVAILABLE", "everybody is trusted");
    assert_eq!(distrust(&world, id, &one).await.json(), one.json());
    assert_eq!(status(&world, id, ONE).await, "STATUS_AVAILABLE", "everybody still is");
    assert_eq!(distrust(&world, id, &one).await.refusal(), (404, 5));
    assert_eq!(distrust(&world, id, &everybody).await.status, 200);
    assert_eq!(status(&world, id, ONE).await, "STATUS_REJECTED", "it lived by `*` alone");
    assert_eq!(status(&world, id, KEY).await, "STATUS_REJECTED");
    assert_eq!(status(&world, id, TWO).await, "STATUS_AVAILABLE");
    assert_eq!(distrust(&world, id, &other).await.status, 200);
    assert_eq!(status(&world, id, TWO).await, "STATUS_REJECTED");
    assert_eq!(
        world.get(&of(id, "private-endpoint-trusted-owners")).await.json(),
        json!({"trusted_owners": []})
    );
    assert_eq!(add(&world, id, TWO, None).await.json()["status"], "STATUS_AVAILABLE", "without any, all are");
    for wrong in ["nonsense", "00000000-0000-4000-8000-000000000000", "%00"] {
        let path = of(id, &format!("private-endpoint-trusted-owners/{wrong}"));
        for method in ["GET", "DELETE"] {
            assert_eq!(world.call(method, &path, Value::Null).await.refusal(), (404, 5), "{method} {wrong}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_leads_to_one_cluster_and_nobody_learns_to_which() {
    let world = World::new();
    let (one, two) = (
        made_by(&world, "secret-tenant", "AWS", "serverless").await,
        made_by(&world, "shop-two", "GCP", "serverless").await,
    );
    came(&world, two, ONE, Duration::ZERO);
    assert_eq!(add(&world, one, ONE, None).await.status, 200);
    assert_eq!(add(&world, one, "psc:7", None).await.status, 200);
    for refused in [
        add(&world, two, ONE, None).await,
        add(&world, two, "7", None).await,
        decide(&world, two, ONE, json!({"status": "AVAILABLE"})).await,
    ] {
        assert_eq!(refused.refusal(), (409, 6));
        assert!(refused.text.contains("this endpoint is connected already"), "{}", refused.text);
        assert!(
            !refused.text.contains("secret") && !refused.text.contains(&one.to_string()),
            "{}",
            refused.text
        );
    }
    assert_eq!(status(&world, two, ONE).await, "STATUS_PENDING_ACCEPTANCE");
    // Nor by removing or rejecting what is another's.
    let path = of(two, "private-endpoint-connections/7");
    assert_eq!(world.call("DELETE", &path, Value::Null).await.refusal(), (404, 5));
    assert_eq!(decide(&world, two, "7", json!({"status": "REJECTED"})).await.refusal(), (404, 5));
    assert_eq!(decide(&world, two, ONE, json!({"status": "REJECTED"})).await.status, 200, "its own entry");
    assert_eq!(status(&world, one, ONE).await, "STATUS_AVAILABLE");
    decide(&world, one, ONE, json!({"status": "REJECTED"})).await;
    assert_eq!(add(&world, two, ONE, None).await.status, 200, "it is free again");
    assert_eq!(decide(&world, one, ONE, json!({"status": "AVAILABLE"})).await.refusal(), (409, 6));
}

#[tokio::test]
async fn of_many_clusters_that_add_an_endpoint_at_once_only_one_gets_it() {
    let world = std::sync::Arc::new(World::new());
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..10 {
        let id = made_by(&world, &format!("racer-{number}"), "AWS", "serverless").await;
        let world = world.clone();
        tasks.spawn(async move { add(&world, id, ONE, None).await.status });
    }
    let answers = tasks.join_all().await;
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|status| **status == 409).count(), 9, "{answers:?}");
}

#[tokio::test]
async fn there_is_a_most_of_endpoints_and_owners() {
    let world = World::new();
    let id = made_by(&world, "shop-one", "AWS", "serverless").await;
    for number in 0..ENDPOINTS_MAX {
        assert_eq!(add(&world, id, &format!("psc:{number}"), None).await.status, 200);
    }
    let refused = add(&world, id, "psc:1000", None).await;
    assert_eq!(refused.refusal(), (400, 9));
    assert!(refused.text.contains("remove one first"), "{}", refused.text);
    assert_eq!(add(&world, id, "psc:5", None).await.status, 200, "one that is there");
    for number in 0..TRUSTED_OWNERS_MAX {
        assert_eq!(trust(&world, id, &format!("{number:012}")).await.status, 200);
    }
    assert_eq!(trust(&world, id, "*").await.refusal(), (400, 9));
}

#[tokio::test]
async fn nothing_is_asked_of_clusters_that_are_not_there() {
    let world = World::new();
    let (gone, nobody) = (made_by(&world, "shop-one", "AWS", "serverless").await, ClusterId::random());
    world.store.wish(gone, model::Wish::Deleted, OffsetDateTime::now_utc()).unwrap();
    let owner = json!({"type": "AWS_ACCOUNT_ID", "external_owner_id": "*"});
    for id in [gone, nobody] {
        for (method, path, body) in [
            ("GET", "private-endpoint-services".to_owned(), Value::Null),
            ("POST", "private-endpoint-services".to_owned(), Value::Null),
            ("GET", "private-endpoint-connections".to_owned(), Value::Null),
            ("POST", "private-endpoint-connections".to_owned(), json!({"endpoint_id": ONE})),
            ("DELETE", format!("private-endpoint-connections/{ONE}"), Value::Null),
            ("GET", "aws-endpoint-connections".to_owned(), Value::Null),
            ("PATCH", format!("aws-endpoint-connections/{ONE}"), json!({"status": "AVAILABLE"})),
            ("GET", "private-endpoint-trusted-owners".to_owned(), Value::Null),
            ("POST", "private-endpoint-trusted-owners".to_owned(), owner.clone()),
        ] {
            let answer = world.call(method, &of(id, &path), body).await;
            assert_eq!(answer.refusal(), (404, 5), "{method} {path}");
        }
    }
    let live = made_by(&world, "shop-two", "AWS", "serverless").await;
    for wrong in
        ["", "nonsense", "vpce-XYZ", "wireguard:short", "certificate:00", "psc:-1", "vpce-0abcdef0\n"]
    {
        assert_eq!(add(&world, live, wrong, None).await.refusal(), (400, 3), "{wrong}");
    }
    assert_eq!(add(&world, live, &"9".repeat(100_000), None).await.refusal(), (400, 3));
}
