//! Who is let in, and what strangers cost.

use axum::body::Body;
use axum::http::Request;
use model::Origin;
use serde_json::{Value, json};

use crate::world::World;

const PASSWORD: &str = "canary-password-1";

#[tokio::test]
async fn a_user_is_made_with_a_verifier_and_never_with_a_password() {
    let world = World::new();
    let users = format!("/clusters/{}/sql-users", world.made("shop-one").await);
    let made = world.call("POST", &users, json!({"name": "app user/1", "password": PASSWORD})).await;
    assert_eq!(made.json(), json!({"name": "app user/1"}));
    let kept = world.engines.users.lock().unwrap()["app user/1"].clone();
    assert!(kept.starts_with("SCRAM-SHA-256$4096:") && !kept.contains(PASSWORD));
    assert_eq!(world.get(&users).await.json()["users"], json!([{"name": "app user/1"}]));

    let again = world.call("POST", &users, json!({"name": "app user/1", "password": PASSWORD})).await;
    assert_eq!(again.refusal(), (409, 6));
    let path = format!("{users}/app%20user%2F1");
    let changed =
        world.call("PUT", &format!("{path}/password"), json!({"password": "another-one-4711"})).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    assert_ne!(world.engines.users.lock().unwrap()["app user/1"], kept);
    assert_eq!(world.call("DELETE", &path, Value::Null).await.json(), json!({"name": "app user/1"}));
    assert_eq!(world.call("DELETE", &path, Value::Null).await.refusal(), (404, 5));
}

#[tokio::test]
async fn a_user_that_is_not_quite_removed_is_shown_as_that() {
    let world = World::new();
    let users = format!("/clusters/{}/sql-users", world.made("shop-one").await);
    for name in ["maria", "paula"] {
        world.call("POST", &users, json!({"name": name, "password": PASSWORD})).await;
    }
    world.engines.half_removed.lock().unwrap().insert("paula".to_owned());
    let shown = json!([{"name": "maria"}, {"name": "paula", "is_deletion_unfinished": true}]);
    assert_eq!(world.get(&users).await.json()["users"], shown);
}

#[tokio::test]
async fn reserved_and_impossible_names_are_refused() {
    let world = World::new();
    let cluster = format!("/clusters/{}", world.made("shop-one").await);
    for name in
        ["", "admin", "chitin", "postgres", "pg_monitor", "chitin_x", "public", "a\0b", &"x".repeat(64)]
    {
        let body = json!({"name": name, "password": PASSWORD});
        let answer = world.call("POST", &format!("{cluster}/sql-users"), body).await;
        assert_eq!(answer.refusal(), (400, 3), "{name:?}");
    }
    for name in ["chitin", "postgres", "admin"] {
        let path = format!("{cluster}/sql-users/{name}");
        assert_eq!(world.call("DELETE", &path, Value::Null).await.refusal(), (400, 3));
        let body = json!({"password": PASSWORD});
        assert_eq!(world.call("PUT", &format!("{path}/password"), body).await.refusal(), (400, 3));
    }
    for name in ["", "chitin_internal", "template0", "template1"] {
        let answer = world.call("POST", &format!("{cluster}/databases"), json!({"name": name})).await;
        assert_eq!(answer.refusal(), (400, 3), "{name:?}");
    }
    assert!(world.engines.users.lock().unwrap().is_empty());
}

#[tokio::test]
async fn unfit_passwords_are_refused() {
    let world = World::new();
    let users = format!("/clusters/{}/sql-users", world.made("shop-one").await);
    for password in ["", "kurz", &"x".repeat(2_000), "zero\0zero"] {
        let answer = world.call("POST", &users, json!({"name": "maria", "password": password})).await;
        assert_eq!(answer.refusal(), (400, 3));
        assert!(password.is_empty() || !answer.text.contains(password));
    }
    assert_eq!(world.call("POST", &users, json!({"name": "maria"})).await.refusal(), (400, 3));
}

#[tokio::test]
async fn databases_come_are_renamed_and_go() {
    let world = World::new();
    let databases = format!("/clusters/{}/databases", world.made("shop-one").await);
    let made = world.call("POST", &databases, json!({"name": "bank"})).await.json();
    assert_eq!(made, json!({"name": "bank", "table_count": "0"}));
    let renamed = json!({"name": "", "new_name": "bank_renamed"});
    assert_eq!(
        world.call("PATCH", &format!("{databases}/bank"), renamed).await.json()["name"],
        "bank_renamed"
    );
    let named = json!({"name": "bank_renamed", "new_name": "bank"});
    assert_eq!(world.call("PATCH", &databases, named).await.json()["name"], "bank");
    assert_eq!(world.get(&databases).await.json()["databases"][0]["name"], "bank");
    assert_eq!(world.call("DELETE", &format!("{databases}/bank"), Value::Null).await.status, 200);
    assert_eq!(world.call("DELETE", &format!("{databases}/bank"), Value::Null).await.refusal(), (404, 5));
}

#[tokio::test]
async fn an_allowlist_is_added_to_edited_and_cut() {
    let world = World::new();
    let list = format!("/clusters/{}/networking/allowlist", world.made("shop-one").await);
    let entry =
        json!({"cidr_ip": "203.0.113.0", "cidr_mask": 24, "name": "office1", "sql": true, "ui": true});
    assert_eq!(world.call("POST", &list, entry.clone()).await.json(), entry);
    assert_eq!(world.call("POST", &list, entry).await.refusal(), (409, 6));
    let line = format!("{list}/203.0.113.0/24");
    let edited =
        world.call("PATCH", &line, json!({"name": "office2", "sql": true, "ui": false})).await.json();
    assert_eq!(edited["name"], "office2");
    assert_eq!(edited["ui"], false);
    let six =
        world.call("PUT", &format!("{list}/2001:db8::/48"), json!({"ui": false, "sql": true})).await.json();
    assert_eq!((six["cidr_ip"].clone(), six["name"].clone()), (json!("2001:db8::"), json!("")));
    assert_eq!(world.get(&list).await.json()["allowlist"].as_array().unwrap().len(), 4);
    assert_eq!(world.call("DELETE", &line, Value::Null).await.status, 200);
    assert_eq!(world.call("DELETE", &line, Value::Null).await.refusal(), (404, 5));
}

#[tokio::test]
async fn ranges_with_host_bits_are_refused_with_the_range_that_was_meant() {
    let world = World::new();
    let list = format!("/clusters/{}/networking/allowlist", world.made("shop-one").await);
    let entry = |ip: &str, mask: Value| json!({"cidr_ip": ip, "cidr_mask": mask, "sql": true, "ui": true});
    let refused = world.call("POST", &list, entry("10.1.2.3", json!(8))).await;
    assert_eq!(refused.refusal(), (400, 3));
    assert!(refused.text.contains("did you mean 10.0.0.0/8?"), "{}", refused.text);
    for (ip, mask) in [("10.0.0.0/8", 8), ("10.0.0.0", 33), ("::", 129), ("localhost", 32), ("", 0)] {
        assert_eq!(
            world.call("POST", &list, entry(ip, json!(mask))).await.refusal(),
            (400, 3),
            "{ip}/{mask}"
        );
    }
    for mask in [json!(-1), json!(256), json!("24"), json!(null)] {
        assert_eq!(world.call("POST", &list, entry("10.0.0.0", mask)).await.refusal(), (400, 3));
    }
    for path in ["10.0.0.0%2F8/8", "10.0.0.0/+8", "10.0.0.0/8%2F8"] {
        let answer = world.call("PUT", &format!("{list}/{path}"), json!({"sql": true, "ui": true})).await;
        assert_eq!(answer.refusal(), (400, 3), "{path}");
    }
}

#[tokio::test]
async fn an_allowlist_ends_at_a_thousand_entries() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let full: Vec<model::AllowlistEntry> = (0..1_000_u32)
        .map(|number| model::AllowlistEntry {
            range: format!("10.0.{}.{}", number / 250, number % 250).parse().unwrap(),
            name: String::new(),
            sql: true,
            ui: true,
            expires_at: None,
        })
        .collect();
    let now = time::OffsetDateTime::now_utc();
    let filled = world.store.edit(id, now, |cluster| -> Result<(), store::Error> {
        cluster.allowlist = full;
        Ok(())
    });
    filled.unwrap();
    let one_more = json!({"cidr_ip": "192.0.2.0", "cidr_mask": 24, "sql": true, "ui": true});
    let list = format!("/clusters/{id}/networking/allowlist");
    assert_eq!(world.call("POST", &list, one_more).await.refusal(), (400, 9));
    let put = world.call("PUT", &format!("{list}/192.0.2.0/24"), json!({"sql": true, "ui": true})).await;
    assert_eq!(put.refusal(), (400, 9));
    let replaced = world.call("PUT", &format!("{list}/10.0.0.0/32"), json!({"sql": false, "ui": true})).await;
    assert_eq!(replaced.status, 200);
}

#[tokio::test]
async fn a_line_of_an_allowlist_may_end_by_itself_and_not_have_ended() {
    let world = World::new();
    let list = format!("/clusters/{}/networking/allowlist", world.made("shop-one").await);
    let entry = |end: &str| json!({"cidr_ip": "203.0.113.0", "cidr_mask": 24, "name": "", "sql": true, "ui": false, "expires_at": end});
    assert_eq!(world.call("POST", &list, entry("2020-01-01T00:00:00Z")).await.refusal(), (400, 3));
    assert_eq!(world.call("POST", &list, entry("tomorrow")).await.refusal(), (400, 3));
    let made = world.call("POST", &list, entry("2999-01-01T00:00:00Z")).await.json();
    assert_eq!(made["expires_at"], "2999-01-01T00:00:00Z");
    let line = format!("{list}/203.0.113.0/24");
    let renamed = world.call("PATCH", &line, json!({"name": "office"})).await.json();
    assert_eq!(renamed["expires_at"], "2999-01-01T00:00:00Z", "what is absent stays");
    let both = json!({"never_expires": true, "expires_at": "2999-01-01T00:00:00Z"});
    assert_eq!(world.call("PATCH", &line, both).await.refusal(), (400, 3));
    let stays = world.call("PATCH", &line, json!({"never_expires": true})).await.json();
    assert_eq!(stays.get("expires_at"), None);
    let past = json!({"sql": true, "ui": true, "expires_at": "2020-01-01T00:00:00Z"});
    assert_eq!(world.call("PUT", &line, past).await.refusal(), (400, 3));
}

#[tokio::test]
async fn the_organization_may_have_every_new_cluster_begin_closed() {
    let world = World::new();
    let entries = async |id: model::ClusterId| {
        let list = world.get(&format!("/clusters/{id}/networking/allowlist")).await.json();
        list["allowlist"].as_array().unwrap().len()
    };
    let before = world.made("open-one").await;
    assert_eq!(entries(before).await, 2);
    let path = "/chitin/organization";
    assert_eq!(world.get(path).await.json(), json!({"allowlist_starts_closed": false}));
    assert_eq!(world.call("PUT", path, json!({})).await.refusal(), (400, 3));
    let closed = json!({"allowlist_starts_closed": true});
    assert_eq!(world.call("PUT", path, closed.clone()).await.json(), closed);
    assert_eq!(entries(world.made("closed-one").await).await, 0);
    assert_eq!(entries(before).await, 2, "what is there stays");
}

#[tokio::test]
async fn a_caller_hears_its_own_address() {
    let world = World::new();
    let key = world.key.clone();
    let ask = |origin: Option<Origin>| {
        let mut request = Request::builder().uri("/api/v1/chitin/whoami");
        request = request.header("authorization", format!("Bearer {key}"));
        // Whatever a client says of itself counts nothing.
        request = request.header("x-forwarded-for", "10.9.9.9").header("forwarded", "for=10.9.9.9");
        let mut request = request.body(Body::empty()).unwrap();
        if let Some(origin) = origin {
            request.extensions_mut().insert(origin);
        }
        world.send(request)
    };
    let seen = ask(Some(Origin::public("::ffff:203.0.113.9".parse().unwrap()))).await;
    assert_eq!(seen.json(), json!({"address": "203.0.113.9"}));
    assert_eq!(ask(None).await.status, 500);
}

#[tokio::test]
async fn a_connection_string_verifies_fully_and_escapes_names() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let path = format!("/clusters/{id}/connection-string");
    let given = world.get(&format!("{path}?database=my%20bank&os=LINUX&sql_user=app%40x%2Fy")).await.json();
    assert_eq!(
        given["connection_string"],
        "postgresql://app%40x%2Fy@localhost:26257/my%20bank?options=--cluster%3Dshop-one-2&sslmode=verify-full\
         &sslrootcert=/srv/my%20data/ca.pem"
    );
    assert_eq!(given["params"]["Username"], "app@x/y");
    assert_eq!(given["params"]["Port"], "26257");
    let plain = world.get(&path).await.json();
    assert_eq!(plain["params"], json!({"Host": "localhost", "Port": "26257", "Database": "defaultdb"}));
    assert_eq!(world.get(&format!("{path}?os=BEOS")).await.refusal(), (400, 3));
}

#[tokio::test]
async fn a_cluster_that_is_not_made_yet_has_no_users() {
    let world = World::new();
    let id = world.create("not-ready").await;
    let users = format!("/clusters/{id}/sql-users");
    let answer = world.call("POST", &users, json!({"name": "maria", "password": PASSWORD})).await;
    assert_eq!(answer.refusal(), (400, 9));
    assert!(world.engines.users.lock().unwrap().is_empty());
}

#[tokio::test]
async fn our_own_calls_answer() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let status = world.get("/chitin/status").await.json();
    assert_eq!((status["clusters"].clone(), status["running"].clone()), (json!(1), json!(1)));
    assert_eq!(world.get("/chitin/ca").await.json()["path"], "/srv/my data/ca.pem");
    let path = format!("/chitin/clusters/{id}");
    let slept = world.call("POST", &format!("{path}/sleep"), Value::Null).await.json();
    assert_eq!(slept["facts"]["is_unlocked"], false);
    let woken = world.call("POST", &format!("{path}/wake"), Value::Null).await.json();
    assert_eq!(woken["facts"]["is_unlocked"], true);
    assert_eq!(woken["is_open_to_every_address"], true);
    assert_eq!(world.get(&path).await.json()["handle"], "shop-one-2");
    let proof = world.call("POST", &format!("{path}/proof"), Value::Null).await.json();
    assert_eq!(proof["rows"][0]["outcome"], "proven");
}
