//! Who signs in how, as an administrator sets it: rules and the identity map.

use model::SqlRole;
use serde_json::{Value, json};

use crate::world::World;

const RULES: &str = "# the office by certificate\n\
    host all maria 203.0.113.0/24 cert map=people\n\
    host bank +dba all scram-sha-256\n\
    host all tom all reject\n";

fn ask(user: &str, database: &str, address: &str) -> Value {
    json!({"user": user, "database": database, "address": address})
}

#[tokio::test]
async fn rules_are_shown_set_and_go_back_to_the_default() {
    let world = World::new();
    let path = format!("/chitin/clusters/{}/hba", world.made("shop-one").await);
    let default = world.get(&path).await.json();
    assert_eq!(default["is_default"], true);
    assert!(default["text"].as_str().unwrap().contains("cert-password"), "{default}");
    let set = world.call("PUT", &path, json!({"text": RULES})).await;
    assert_eq!((set.status, set.json()["text"].clone()), (200, json!(RULES)), "{}", set.text);
    assert_eq!(world.get(&path).await.json(), set.json());
    assert_eq!(set.json()["is_default"], false);
    for nothing in ["", " \n"] {
        world.call("PUT", &path, json!({"text": RULES})).await;
        assert_eq!(world.call("PUT", &path, json!({"text": nothing})).await.json(), default);
    }
    assert_eq!(world.get(&path).await.json(), default);
}

#[tokio::test]
async fn a_mistake_is_refused_with_its_place_and_changes_nothing() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let path = format!("/chitin/clusters/{id}/hba");
    world.call("PUT", &path, json!({"text": RULES})).await;
    let long = "host all all all cert\n".repeat(20_000);
    for (text, place) in [
        ("host all all all cert\nhost all all all trust\n", "line 2, column 18"),
        ("host all all 10.0.0.0/33 cert\n", "line 1, column 14"),
        ("host all all all cert nonsense=1\n", "line 1, column"),
        ("host all all\n", "line 1"),
        ("host all /( all cert\n", "line 1, column 10"),
        ("# nothing\n", ""),
        (&long, ""),
    ] {
        let refused = world.call("PUT", &path, json!({"text": text})).await;
        assert_eq!(refused.refusal(), (400, 3), "{text:.40}");
        assert!(refused.text.contains(place), "{place}: {}", refused.text);
    }
    assert_eq!(world.get(&path).await.json()["text"], RULES);
    for wrong in [json!({}), json!({"text": 1}), json!([])] {
        assert_eq!(world.call("PUT", &path, wrong).await.refusal(), (400, 3));
    }
    let nobody = model::ClusterId::random();
    let nowhere = world.call("PUT", &format!("/chitin/clusters/{nobody}/hba"), json!({"text": RULES})).await;
    assert_eq!(nowhere.refusal(), (404, 5));
}

#[tokio::test]
async fn a_test_says_which_rule_a_client_meets_and_why() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let path = format!("/chitin/clusters/{id}/hba");
    world.call("PUT", &path, json!({"text": RULES})).await;
    let path = format!("{path}/test");
    let office = world.call("POST", &path, ask("maria", "shop", "203.0.113.7")).await.json();
    assert_eq!((&office["line"], &office["outcome"]), (&json!(2), &json!("proceeds")), "{office}");
    assert_eq!((&office["method"], &office["steps"][0]["is_match"]), (&json!("cert"), &json!(true)));
    let mapped = world.call("POST", &path, ask("maria", "shop", "::ffff:203.0.113.7")).await.json();
    assert_eq!(mapped["line"], 2, "IPv4 in IPv6 form is IPv4");
    let home = world.call("POST", &path, ask("maria", "shop", "198.51.100.1")).await.json();
    assert_eq!((home.get("line"), &home["outcome"]), (None, &json!("no-rule")), "{home}");
    assert_eq!(home["steps"].as_array().unwrap().len(), 3);
    assert!(home["steps"][0]["why"].as_str().unwrap().contains("address"), "{home}");
    let tom = world.call("POST", &path, ask("tom", "shop", "198.51.100.1")).await.json();
    assert_eq!((&tom["line"], &tom["outcome"]), (&json!(4), &json!("rejected")), "{tom}");

    let mut by_jwt = ask("maria", "shop", "203.0.113.7");
    by_jwt["method"] = json!("jwt");
    let other = world.call("POST", &path, by_jwt.clone()).await.json();
    assert_eq!((&other["line"], &other["outcome"]), (&json!(2), &json!("other-method")), "{other}");
    by_jwt["method"] = json!("trust");
    assert_eq!(world.call("POST", &path, by_jwt).await.refusal(), (400, 3));
    for wrong in [ask("", "a", "::1"), ask("a", "", "::1"), ask("a", "b", "::1/64"), ask("a", "b", "home")] {
        assert_eq!(world.call("POST", &path, wrong).await.refusal(), (400, 3));
    }
}

#[tokio::test]
async fn a_test_knows_the_roles_of_a_user_and_believes_others() {
    let world = World::new();
    let id = world.made("shop-one").await;
    world.call("PUT", &format!("/chitin/clusters/{id}/hba"), json!({"text": RULES})).await;
    let path = format!("/chitin/clusters/{id}/hba/test");
    let role = SqlRole {
        name: "lea".to_owned(),
        can_login: true,
        verifier: None,
        valid_until: None,
        connection_limit: -1,
        member_of: vec!["dba".to_owned()],
    };
    let (reading, now) = (world.store.begin_reading(), time::OffsetDateTime::now_utc());
    world.store.set_roles(id, vec![role], reading, now).unwrap();
    let known = world.call("POST", &path, ask("lea", "bank", "::1")).await.json();
    assert_eq!((&known["line"], &known["method"]), (&json!(3), &json!("scram-sha-256")), "{known}");
    let mut without = ask("lea", "bank", "::1");
    without["roles"] = json!([]);
    assert_eq!(world.call("POST", &path, without).await.json()["outcome"], "no-rule");
    let mut stranger = ask("nobody-yet", "bank", "::1");
    stranger["roles"] = json!(["dba"]);
    assert_eq!(world.call("POST", &path, stranger).await.json()["line"], 3);
}

#[tokio::test]
async fn rules_that_need_what_is_not_there_are_noted() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let path = format!("/chitin/clusters/{id}/hba");
    let text = "host all all all cert map=people\nhost all all ::/0 jwt provider=corp\n";
    let noted = world.call("PUT", &path, json!({"text": text})).await.json()["notes"].to_string();
    for part in ["line 1", "chitin client-ca set", "`people`", "line 2", "`corp`"] {
        assert!(noted.contains(part), "{part}: {noted}");
    }
    let provider = json!({"issuer": "https://login.example.org", "client_id": "chitin"});
    world.call("PUT", "/chitin/providers/corp", provider).await;
    let map = json!({"text": "people /^(.*)@example\\.org$ \\1\n"});
    world.call("PUT", &format!("/chitin/clusters/{id}/identity-map"), map).await;
    let noted = world.get(&path).await.json()["notes"].to_string();
    for part in ["`people`", "`corp`"] {
        assert!(!noted.contains(part), "{part}: {noted}");
    }
}

#[tokio::test]
async fn an_identity_map_is_kept_as_it_was_written_and_checked() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let path = format!("/chitin/clusters/{id}/identity-map");
    assert_eq!(world.get(&path).await.json(), json!({"text": ""}));
    let map = json!({"text": "# people\npeople /^(.*)@example\\.org$ \\1\npeople maria.muster maria\n"});
    assert_eq!(world.call("PUT", &path, map.clone()).await.json(), map);
    for wrong in ["people /( maria\n", "people maria\n", "\u{0}"] {
        let refused = world.call("PUT", &path, json!({"text": wrong})).await;
        assert_eq!(refused.refusal(), (400, 3), "{wrong}");
        assert!(refused.text.contains("line 1"), "{}", refused.text);
    }
    assert_eq!(world.get(&path).await.json(), map);
    assert_eq!(world.call("PUT", &path, json!({"text": " "})).await.json(), json!({"text": ""}));
    assert_eq!(world.store.snapshot().get(&id).unwrap().cluster.sign_in.identity_map, None);
}
