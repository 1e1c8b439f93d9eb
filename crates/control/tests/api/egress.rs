//! What may leave a cluster, as operators, Terraform and attackers say it.

use serde_json::{Value, json};

use crate::world::{Answer, World, serverless};

fn rule(name: &str, kind: &str, destination: &str, ports: &[u16]) -> Value {
    json!({"name": name, "type": kind, "destination": destination, "description": "", "ports": ports})
}

/// A refusal after which clients give up: those letters would make them wait for hours.
fn refused(answer: &Answer) -> (u16, u64) {
    assert!(!answer.text.to_ascii_lowercase().contains("lock"), "{}", answer.text);
    assert_ne!(answer.status, 503);
    answer.refusal()
}

#[tokio::test]
async fn a_rule_is_added_shown_edited_and_removed() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let rules = format!("/clusters/{id}/networking/egress-rules");
    let added =
        world.call("POST", &rules, rule("buckets", "FQDN", "storage.googleapis.com", &[443, 80])).await;
    assert_eq!(added.status, 200, "{}", added.text);
    let added = added.json();
    assert_eq!(added["Rule"], added["rule"], "clients read one or the other");
    let made = &added["Rule"];
    assert_eq!(made["cluster_id"], id.to_string());
    assert_eq!((&made["state"], &made["crl_managed"]), (&json!("ACTIVE"), &json!(false)));
    assert_eq!(made["ports"], json!([443, 80]));

    let path = format!("{rules}/{}", made["id"].as_str().unwrap());
    let shown = world.get(&path).await.json();
    assert_eq!(shown, json!({"rule": made}), "to the digit of its instant");
    let edit =
        json!({"description": "backups", "destination": "s3.amazonaws.com", "type": "FQDN", "ports": [443]});
    let edited = world.call("PATCH", &path, edit).await.json();
    assert_eq!(edited["Rule"], edited["rule"]);
    assert_eq!(edited["rule"]["destination"], "s3.amazonaws.com");
    assert_eq!(
        (&edited["rule"]["created_at"], &edited["rule"]["name"]),
        (&made["created_at"], &json!("buckets"))
    );
    let unchanged = world.call("PATCH", &path, json!({})).await.json();
    assert_eq!(unchanged, edited, "what is absent stays");
    let to_range = json!({"type": "CIDR", "destination": "192.0.2.0/24"});
    assert_eq!(world.call("PATCH", &path, to_range).await.json()["rule"]["type"], "CIDR");
    let every_port = world.call("PATCH", &path, json!({"ports": []})).await.json();
    assert!(every_port["rule"].get("ports").is_none(), "{every_port}");

    let removed = world.call("DELETE", &format!("{path}?idempotency_key=x"), Value::Null).await.json();
    assert_eq!(removed["Rule"], every_port["rule"]);
    for (method, path) in [("GET", &path), ("PATCH", &path), ("DELETE", &path)] {
        assert_eq!(refused(&world.call(method, path, json!({})).await), (404, 5), "{method}");
    }
    assert_eq!(world.get(&rules).await.json()["rules"], json!([]));
}

#[tokio::test]
async fn what_was_written_is_answered_as_it_was_written() {
    let world = World::new();
    let rules = format!("/clusters/{}/networking/egress-rules", world.made("shop-one").await);
    for (kind, destination) in [
        ("FQDN", "Storage.Example.COM"),
        ("FQDN", "a.example."),
        ("CIDR", "192.0.2.7"),
        ("CIDR", "::ffff:192.0.2.0/120"),
    ] {
        let made = world.call("POST", &rules, rule(destination, kind, destination, &[])).await.json();
        assert_eq!(made["rule"]["destination"], destination, "Terraform compares it: {made}");
        assert!(made["rule"].get("ports").is_none(), "what was not given is not answered");
    }
    // Compared is what they mean.
    for (kind, destination) in
        [("FQDN", "storage.example.com."), ("CIDR", "192.0.2.0/24"), ("CIDR", "192.0.2.7/32")]
    {
        let again = world.call("POST", &rules, rule("again", kind, destination, &[])).await;
        assert_eq!(refused(&again), (409, 6), "{destination}");
    }
}

#[tokio::test]
async fn rules_are_listed_by_name_and_page() {
    let world = World::new();
    let rules = format!("/clusters/{}/networking/egress-rules", world.made("shop-one").await);
    for name in ["c", "a", "b"] {
        world.call("POST", &rules, rule(name, "FQDN", &format!("{name}.example"), &[])).await;
    }
    let page = world.get(&format!("{rules}?pagination.limit=2")).await.json();
    assert_eq!((&page["rules"][0]["name"], &page["rules"][1]["name"]), (&json!("a"), &json!("b")));
    let next = page["pagination"]["next_page"].as_str().unwrap();
    let rest = world.get(&format!("{rules}?pagination.page={next}")).await.json();
    assert_eq!((rest["rules"].as_array().unwrap().len(), &rest["rules"][0]["name"]), (1, &json!("c")));
}

#[tokio::test]
async fn a_policy_is_set_and_shown_with_the_cluster() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let cluster = format!("/clusters/{id}");
    assert_eq!(world.get(&cluster).await.json()["egress_traffic_policy"], "ALLOW_ALL");
    let policy = format!("{cluster}/networking/egress-rules/egress-traffic-policy");
    for (allow_all, expected) in [(false, "DEFAULT_DENY"), (false, "DEFAULT_DENY"), (true, "ALLOW_ALL")] {
        let set = world.call("POST", &policy, json!({"allow_all": allow_all, "idempotency_key": "k"})).await;
        assert_eq!((set.status, set.json()), (200, json!({})));
        assert_eq!(world.get(&cluster).await.json()["egress_traffic_policy"], expected);
        let own = world.get(&format!("/chitin/clusters/{id}/egress")).await.json();
        assert_eq!(own["policy"], expected);
    }
    for wrong in [json!({}), json!({"allow_all": "yes"}), json!([])] {
        assert_eq!(refused(&world.call("POST", &policy, wrong).await), (400, 3));
    }
}

#[tokio::test]
async fn a_cluster_may_start_with_nothing_allowed_to_leave() {
    let world = World::new();
    let mut request = serverless("closed-one");
    request["spec"]["serverless"]["restrict_egress_traffic"] = json!(true);
    let made = world.call("POST", "/clusters", request).await.json();
    assert_eq!(made["egress_traffic_policy"], "DEFAULT_DENY");
    for (name, restrict, expected) in
        [("closed-two", json!(true), "DEFAULT_DENY"), ("opened-one", json!(false), "ALLOW_ALL")]
    {
        let request = json!({"name": name, "provider": "GCP", "spec": {"dedicated": {
            "region_nodes": {"us-east1": 1}, "restrict_egress_traffic": restrict}}});
        let made = world.call("POST", "/clusters", request).await;
        assert_eq!(made.status, 200, "{}", made.text);
        assert_eq!(made.json()["egress_traffic_policy"], expected);
    }
}

#[tokio::test]
async fn a_repeated_request_with_its_key_finds_the_first_rule() {
    let world = World::new();
    let rules = format!("/clusters/{}/networking/egress-rules", world.made("shop-one").await);
    let mut request = rule("buckets", "FQDN", "a.example", &[443]);
    request["idempotency_key"] = json!("0b7e");
    let first = world.call("POST", &rules, request.clone()).await.json();
    let again = world.call("POST", &rules, request.clone()).await.json();
    assert_eq!(again, first);
    assert_eq!(world.get(&rules).await.json()["rules"].as_array().unwrap().len(), 1);
    let mut other = request.clone();
    other["destination"] = json!("b.example");
    assert_eq!(refused(&world.call("POST", &rules, other).await), (409, 6), "a key belongs to one rule");
    request["idempotency_key"] = json!("k".repeat(129));
    assert_eq!(refused(&world.call("POST", &rules, request.clone()).await), (400, 3));
    request.as_object_mut().unwrap().remove("idempotency_key");
    assert_eq!(refused(&world.call("POST", &rules, request).await), (409, 6));
    let shown = world.get(&rules).await;
    assert!(!shown.text.contains("0b7e"), "keys are not shown");
}

#[tokio::test]
async fn rules_that_promise_nothing_are_refused() {
    let world = World::new();
    let rules = format!("/clusters/{}/networking/egress-rules", world.made("shop-one").await);
    let wrong = [
        ("FQDN", "localhost", "dot"),
        ("FQDN", "*.example.com", "wildcards"),
        ("FQDN", "169.254.169.254", "CIDR"),
        ("FQDN", "127.1", "CIDR"),
        ("FQDN", "https://a.example/", "storage.example.com"),
        ("FQDN", "bücher.example", "xn--"),
        ("FQDN", "a.exam\nple", "storage.example.com"),
        ("FQDN", "", "storage.example.com"),
        ("CIDR", "10.1.2.3/8", "did you mean 10.0.0.0/8?"),
        ("CIDR", "a.example", "CIDR range"),
        ("CIDR", "10.0.0.0/33", "CIDR range"),
        ("CIDR", "169.254.169.254", "metadata"),
        ("CIDR", "169.254.0.0/16", "metadata"),
        ("CIDR", "::ffff:169.254.169.254", "metadata"),
        ("CIDR", "64:ff9b::a9fe:a9fe", "metadata"),
        ("CIDR", "168.63.129.16/32", "never reached"),
        ("CIDR", "fd00:ec2::254", "never reached"),
        ("CIDR", "fe80::/10", "link-local"),
        ("CIDR", "224.0.0.0/4", "multicast"),
        ("CIDR", "0.0.0.0/8", "this host"),
        ("cidr", "192.0.2.0/24", "FQDN or CIDR"),
        ("", "192.0.2.0/24", "FQDN or CIDR"),
    ];
    for (kind, destination, expected) in wrong {
        let answer = world.call("POST", &rules, rule("one", kind, destination, &[])).await;
        assert_eq!(refused(&answer), (400, 3), "{destination}");
        assert!(answer.text.contains(expected), "{destination}: {}", answer.text);
    }
    for ports in [
        json!([0]),
        json!([65_536]),
        json!([-1]),
        json!([443, 443]),
        json!(["443"]),
        json!(443),
        json!(vec![1; 65]),
    ] {
        let mut request = rule("one", "FQDN", "a.example", &[]);
        request["ports"] = ports.clone();
        assert_eq!(refused(&world.call("POST", &rules, request).await), (400, 3), "{ports}");
    }
    for name in ["", " a", "a\u{0}", "a\nb", &"x".repeat(65)] {
        assert_eq!(
            refused(&world.call("POST", &rules, rule(name, "FQDN", "a.example", &[])).await),
            (400, 3),
            "{name:?}"
        );
    }
    let mut long = rule("one", "FQDN", "a.example", &[]);
    long["description"] = json!("x".repeat(1_025));
    assert_eq!(refused(&world.call("POST", &rules, long).await), (400, 3));
    for missing in ["name", "type", "destination"] {
        let mut request = rule("one", "FQDN", "a.example", &[]);
        request.as_object_mut().unwrap().remove(missing);
        assert_eq!(refused(&world.call("POST", &rules, request).await), (400, 3), "{missing}");
    }
    assert_eq!(world.get(&rules).await.json()["rules"], json!([]));
    for path in ["x", "..", "00000000-0000-0000-0000-00000000000g"] {
        let answer = world.call("PATCH", &format!("{rules}/{path}"), json!({})).await;
        assert!(matches!(refused(&answer), (400, 3) | (404, 5)), "{path}: {}", answer.text);
    }
}

#[tokio::test]
async fn an_edit_that_makes_two_rules_one_is_refused() {
    let world = World::new();
    let rules = format!("/clusters/{}/networking/egress-rules", world.made("shop-one").await);
    world.call("POST", &rules, rule("one", "FQDN", "a.example", &[443, 80])).await;
    let second = world.call("POST", &rules, rule("two", "FQDN", "b.example", &[80, 443])).await.json();
    let path = format!("{rules}/{}", second["rule"]["id"].as_str().unwrap());
    let same = json!({"destination": "A.example"});
    assert_eq!(refused(&world.call("PATCH", &path, same).await), (409, 6));
    let half = json!({"type": "CIDR"});
    assert_eq!(refused(&world.call("PATCH", &path, half).await), (400, 3));
    let never = json!({"type": "CIDR", "destination": "169.254.169.254/32"});
    assert_eq!(refused(&world.call("PATCH", &path, never).await), (400, 3));
    assert_eq!(world.get(&path).await.json()["rule"], second["rule"], "a refused edit changes nothing");
    let taken = world.call("POST", &rules, rule("two", "FQDN", "c.example", &[])).await;
    assert_eq!(refused(&taken), (409, 6));
}

#[tokio::test]
async fn no_final_refusal_can_be_made_to_look_like_a_reason_to_wait() {
    let world = World::new();
    let id = world.made("my-blocks").await;
    let rules = format!("/clusters/{id}/networking/egress-rules");
    let named = rule("the lock", "FQDN", "block.example", &[]);
    assert_eq!(world.call("POST", &rules, named.clone()).await.status, 200);
    let attempts = [
        named,
        rule("the lock", "FQDN", "clock.example", &[]),
        rule("a", "CIDR", "POLICY_UPDATING", &[]),
        rule("a", "CIDR", "cluster is locked by /32", &[]),
        rule("a", "FQDN", "b_lock", &[]),
        rule("a", "blocked", "a.example", &[]),
        json!({"name": "a", "type": "FQDN", "destination": ["locked"]}),
    ];
    for request in attempts {
        let answer = world.call("POST", &rules, request.clone()).await;
        let (status, _) = refused(&answer);
        assert!(status == 400 || status == 409, "{request}: {}", answer.text);
        assert!(!answer.text.contains("POLICY_UPDATING"), "{}", answer.text);
    }
    for path in [format!("{rules}/lock"), format!("/clusters/{id}/networking/egress-rules/block-lock")] {
        refused(&world.get(&path).await);
    }
}

#[tokio::test]
async fn a_cluster_has_so_many_rules_and_no_more() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let rules = format!("/clusters/{id}/networking/egress-rules");
    let first = world.call("POST", &rules, rule("first", "CIDR", "192.0.2.0/24", &[])).await.json();
    let now = time::OffsetDateTime::now_utc();
    let filled = world.store.edit(id, now, |cluster| -> Result<(), store::Error> {
        let one = cluster.egress.rules[0].clone();
        for number in 1..200 {
            cluster.egress.rules.push(model::EgressRule {
                id: uuid::Uuid::new_v4(),
                name: format!("rule {number}").parse().unwrap(),
                destination: model::EgressDestination::Cidr(format!("10.0.0.{number}").parse().unwrap()),
                ..one.clone()
            });
        }
        Ok(())
    });
    filled.unwrap();
    let more = rule("more", "FQDN", "a.example", &[]);
    assert_eq!(refused(&world.call("POST", &rules, more.clone()).await), (400, 9));
    let path = format!("{rules}/{}", first["rule"]["id"].as_str().unwrap());
    assert_eq!(world.call("DELETE", &path, Value::Null).await.status, 200);
    assert_eq!(world.call("POST", &rules, more).await.status, 200);
}

#[tokio::test]
async fn a_cluster_that_is_going_takes_no_rule_and_others_have_none_of_its() {
    let world = World::new();
    let (one, two) = (world.made("shop-one").await, world.made("shop-two").await);
    let of = |id| format!("/clusters/{id}/networking/egress-rules");
    let made = world.call("POST", &of(one), rule("a", "FQDN", "a.example", &[])).await.json();
    let path = format!("{}/{}", of(two), made["rule"]["id"].as_str().unwrap());
    for method in ["GET", "PATCH", "DELETE"] {
        assert_eq!(refused(&world.call(method, &path, json!({})).await), (404, 5), "{method}");
    }
    world.store.wish(one, model::Wish::Deleted, time::OffsetDateTime::now_utc()).unwrap();
    assert_eq!(refused(&world.call("POST", &of(one), rule("b", "FQDN", "b.example", &[])).await), (404, 5));
    let policy = format!("{}/egress-traffic-policy", of(one));
    assert_eq!(refused(&world.call("POST", &policy, json!({"allow_all": false})).await), (404, 5));
}

#[tokio::test]
async fn a_destination_is_tried_by_whoever_knows_the_gate() {
    let world = World::new();
    let test = format!("/chitin/clusters/{}/egress/test", world.made("shop-one").await);
    let told = world.call("POST", &test, json!({"destination": "a.example:443"})).await.json();
    assert_eq!((&told["destination"], &told["is_permitted"]), (&json!("a.example:443"), &json!(true)));
    let nowhere = format!("/chitin/clusters/{}/egress/test", model::ClusterId::random());
    assert_eq!(
        world.call("POST", &nowhere, json!({"destination": "a.example:443"})).await.refusal(),
        (404, 5)
    );
}

#[tokio::test]
async fn an_engine_s_way_out_is_for_dedicated_clusters_and_shows_what_it_offers() {
    let world = World::new();
    let shared = world.made("shop-one").await;
    let path = |id| format!("/chitin/clusters/{id}/egress");
    let on = json!({"engine": true});
    let told = world.call("PUT", &path(shared), on.clone()).await;
    assert_eq!(told.refusal(), (400, 9));
    assert!(told.text.contains("dedicated"), "{}", told.text);
    let request =
        json!({"name": "bank-one", "provider": "GCP", "spec": {"dedicated": {"region_nodes": {"here": 1}}}});
    let made = world.call("POST", "/clusters", request).await.json();
    let id: model::ClusterId = made["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(world.call("PUT", &path(id), on.clone()).await.refusal(), (400, 9), "it is not made yet");
    let seen = model::Observation {
        phase: model::Phase::Running,
        is_initialized: true,
        ..model::Observation::nothing_yet()
    };
    world.store.observe(id, seen).unwrap();
    let rules = format!("/clusters/{id}/networking/egress-rules");
    for (name, kind, destination, ports) in [
        ("far", "FQDN", "DB.example.com", &[5432, 5433][..]),
        ("every", "FQDN", "other.example.com", &[]),
        ("range", "CIDR", "192.0.2.0/24", &[5432]),
    ] {
        assert_eq!(world.call("POST", &rules, rule(name, kind, destination, ports)).await.status, 200);
    }
    assert_eq!(world.get(&path(id)).await.json()["outlets"], json!([]), "it is off by default");
    let told = world.call("PUT", &path(id), on).await.json();
    assert_eq!(told["notes"], json!(["a note"]));
    assert_eq!(*world.engines.engine_egress.lock().unwrap(), [(id, true)], "whoever knows engines does it");
    let switched =
        world.store.edit(id, time::OffsetDateTime::now_utc(), |cluster| -> Result<(), store::Error> {
            cluster.egress.engine = true;
            Ok(())
        });
    switched.unwrap();
    let shown = world.get(&path(id)).await.json();
    assert_eq!(shown["outlets"], json!(["db.example.com:5432", "db.example.com:5433"]));
    let left_out: Vec<&str> =
        shown["left_out"].as_array().unwrap().iter().map(|one| one["rule"].as_str().unwrap()).collect();
    assert_eq!(left_out, ["every", "range"]);
    // To switch it off is never refused for the plan.
    assert_eq!(world.call("PUT", &path(shared), json!({"engine": false})).await.status, 200);
    for wrong in [json!({}), json!({"engine": "on"})] {
        assert_eq!(world.call("PUT", &path(id), wrong).await.refusal(), (400, 3));
    }
}
