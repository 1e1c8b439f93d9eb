//! Users and roles that come from a provider: made, granted, revoked, and never more than the operator said.

use std::time::Duration;

use crate::sign_in::cloud;
use house::browser::Person;
use house::caller::fresh_address;
use house::cloud::PATIENCE;
use house::command::{eventually, run_with};
use house::provider::Provider;
use house::{Caller, Cluster, Wire};
use serde_json::{Value, json};

fn stage(name: &str, more: &Value) -> (Cluster<'static>, Provider) {
    let provider = Provider::start("ES256");
    let one = cloud().cluster(name, &[]);
    one.set_provider("corp", &provider.settings_with(more)).ok();
    one.set_rules("host all maria all scram-sha-256\nhost all all all jwt\n");
    (one, provider)
}

fn bearing(token: &str) -> Caller {
    Caller::with(token).from(fresh_address())
}

/// The roles that a user is a member of, in order.
fn roles_of(admin: &mut Wire, user: &str) -> String {
    admin.value(&format!(
        "select coalesce(string_agg(g.rolname, ',' order by g.rolname), '') from pg_auth_members m
         join pg_roles g on g.oid = m.roleid join pg_roles u on u.oid = m.member where u.rolname = '{user}'"
    ))
}

pub fn groups_are_granted_and_revoked_at_each_sign_in() {
    let groups =
        json!({ "group_claim": "groups", "group_roles": { "CN=Datenbank,OU=IT": "dba", "chiefs": "admin" } });
    let (one, provider) = stage("groups-grant", &groups);
    let mut admin = one.welcome(&Caller::with(&one.password));
    admin.query("create role dba nologin; create role sales nologin; create role other nologin; create role büro nologin").unwrap();
    let bob = one.with_new_user("bob");
    admin.query("grant other to bob").unwrap();
    let enter =
        |groups: &Value| bob.welcome(&bearing(&provider.token_with("bob", &json!({ "groups": groups }))));
    for (groups, expected) in [
        (json!(["CN=Datenbank,OU=IT", "sales", "nobody-knows-this"]), "dba,sales"),
        (json!(["sales"]), "sales"),
        (json!(["SALES"]), "sales"),
        // NFC: the same word, with the dots as a letter of their own.
        (json!(["bu\u{308}ro"]), "büro"),
        (json!(["nobody-knows-this"]), ""),
        (json!(["chiefs"]), "admin"),
        (json!(["dba"]), "dba"),
        (json!(["maria", "bob", "sales"]), "sales"),
    ] {
        let mut wire = enter(&groups);
        assert_eq!(wire.value("select session_user"), "bob");
        assert_eq!(roles_of(&mut admin, "bob"), expected, "{groups}");
    }
    // `admin` and what belongs to the house is never given by a group of that name.
    for name in ["admin", "ADMIN", "root", "chitin", "postgres", "pg_read_all_data", "pg_monitor", "public"] {
        let result = bob.enter(&bearing(&provider.token_with("bob", &json!({ "groups": [name, "sales"] }))));
        assert!(result.is_ok(), "{name}: {:?}", result.err());
        assert_eq!(roles_of(&mut admin, "bob"), "sales", "{name}");
    }
    // With the rights of the roles, in the session that was just made.
    admin.query("create table for_sales (x int); grant select on for_sales to sales").unwrap();
    assert!(enter(&json!(["sales"])).query("select * from for_sales").is_ok());
    let refusal = enter(&json!(["dba"])).query("select * from for_sales").expect_err("revoked");
    assert_eq!(refusal.code, "42501");
    // Without a group claim at the provider, nobody's roles are touched.
    one.set_provider("corp", &provider.settings()).ok();
    enter(&json!(["sales"]));
    assert_eq!(roles_of(&mut admin, "bob"), "dba");
}

pub fn an_empty_list_of_groups_refuses() {
    let (one, provider) = stage("groups-empty", &json!({ "group_claim": "groups" }));
    let mut admin = one.welcome(&Caller::with(&one.password));
    admin.query("create role sales nologin").unwrap();
    let bob = one.with_new_user("bob");
    bob.welcome(&bearing(&provider.token_with("bob", &json!({ "groups": ["sales"] }))));
    let refusal = bob.refusal_of("empty", &bearing(&provider.token_with("bob", &json!({ "groups": [] }))));
    assert_eq!(
        (refusal.code.as_str(), refusal.message.as_str()),
        ("28000", "JWT authorization: empty group list")
    );
    for (what, groups) in
        [("a number", json!(7)), ("numbers", json!([7])), ("an object", json!({ "a": "b" }))]
    {
        let refusal =
            bob.refusal_of(what, &bearing(&provider.token_with("bob", &json!({ "groups": groups }))));
        assert_eq!(refusal.code, "28000", "{what}: {refusal:?}");
    }
    let refusal = bob.refusal_of("no groups at all", &bearing(&provider.token("bob")));
    assert_eq!(refusal.code, "28000", "{refusal:?}");
    // A flood of groups is no flood of roles.
    let many: Vec<String> = (0..600).map(|number| format!("g{number}")).collect();
    let _ = bob.enter(&bearing(&provider.token_with("bob", &json!({ "groups": many }))));
    assert!(!roles_of(&mut admin, "bob").contains("g1"));
}

pub fn users_are_made_at_the_first_sign_in_where_the_operator_allows_it() {
    let more = json!({ "group_claim": "groups", "group_roles": { "staff": "readers" } });
    let (one, provider) = stage("made-users", &more);
    let mut admin = one.welcome(&Caller::with(&one.password));
    admin.query("create role readers nologin").unwrap();
    let exists = |admin: &mut Wire, user: &str| {
        admin.value(&format!("select count(*) from pg_roles where rolname = '{user}'"))
    };
    let token = |user: &str| provider.token_with(user, &json!({ "groups": ["staff"] }));
    let eva = one.with_user("eva", "");
    let refusal = eva.refusal_of("not allowed yet", &bearing(&token("eva")));
    assert!(["28000", "28P01"].contains(&refusal.code.as_str()), "{refusal:?}");
    assert_eq!(exists(&mut admin, "eva"), "0");
    let mut settings = provider.settings_with(&more);
    settings["provisions"] = true.into();
    one.set_provider("corp", &settings).ok();
    let mut wire = eva.welcome(&bearing(&token("eva")));
    assert_eq!(wire.value("select session_user"), "eva");
    assert_eq!(roles_of(&mut admin, "eva"), "readers", "a user made here has only the roles of its groups");
    assert_eq!(wire.value("select rolsuper or rolcreaterole or rolcreatedb or rolbypassrls from pg_roles where rolname = 'eva'"), "f");
    // Its source is shown, and its password is locked by every way to set one.
    let source = format!("jwt_token:{}", provider.issuer());
    let users = cloud().call("GET", &format!("/api/v1/clusters/{}/sql-users", one.id), None).ok();
    let listed = users["users"]
        .as_array()
        .expect("users")
        .iter()
        .find(|user| user["name"] == "eva")
        .expect("eva")
        .clone();
    assert!(listed.to_string().contains(&source), "{listed}");
    assert!(cloud().json(["user", "list", "made-users"]).to_string().contains(&source));
    let path = format!("/api/v1/clusters/{}/sql-users/eva/password", one.id);
    let said = cloud().call("PUT", &path, Some(&json!({ "password": "Correct-Horse-77-staple" })));
    assert!((400..500).contains(&said.status), "{said:?}");
    assert!(said.text.contains("cannot alter PASSWORD option for provisioned user"), "{}", said.text);
    one.set_rules("host all all all scram-sha-256\n");
    let _ = admin.query("alter role eva password 'Correct-Horse-77-staple'");
    std::thread::sleep(Duration::from_millis(1_200));
    let refusal = eva.refusal_of("a password", &Caller::with("Correct-Horse-77-staple"));
    assert_eq!(refusal.code, "28P01", "{refusal:?}");
    // The house's names are nobody's, and strange ones are refused or quoted.
    one.set_rules("host all maria all scram-sha-256\nhost all all all jwt\n");
    for user in
        ["root", "chitin", "chitin_new", "postgres", "admin", "pg_new", "public", "none", "crdb_internal_x"]
    {
        let refusal = one.with_user(user, "").refusal_of(user, &bearing(&token(user)));
        assert!(["28000", "28P01"].contains(&refusal.code.as_str()), "{user}: {refusal:?}");
        assert!(
            ["admin", "postgres", "chitin"].contains(&user) || exists(&mut admin, user) == "0",
            "{user} was made"
        );
    }
    for user in ["o'brien", "quo\"te", "x; drop role maria"] {
        let who = one.with_user(user, "");
        if let Ok(mut wire) = who.enter(&bearing(&token(user))) {
            assert_eq!(wire.value("select session_user"), user);
        }
    }
    assert_eq!(exists(&mut admin, "maria"), "1");
    // Many first sign-ins at once make one user.
    let ida = one.with_user("ida", "");
    let ida_token = token("ida");
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| drop(ida.welcome(&bearing(&ida_token))));
        }
    });
    assert_eq!(exists(&mut admin, "ida"), "1");
    // The same at a cluster that sleeps, and still after a restart of its engine.
    drop((admin, wire));
    one.sleep();
    let uwe = one.with_user("uwe", "");
    assert_eq!(uwe.welcome(&bearing(&token("uwe"))).value("select session_user"), "uwe");
    assert_eq!(eva.welcome(&bearing(&token("eva"))).value("select session_user"), "eva");
}

pub fn a_person_is_made_in_the_browser_with_groups_from_userinfo() {
    let more = json!({ "group_claim": "groups", "provisions": true });
    let (one, provider) = stage("made-browser", &more);
    provider.register(cloud());
    // As certified providers do it: what scopes ask for comes from userinfo, not in the ID token.
    provider.set(&json!({ "conform": true }));
    provider.set_account("eva", &json!({ "groups": ["sales"], "email": "eva@example.org" }));
    let mut admin = one.welcome(&Caller::with(&one.password));
    admin.query("create role sales nologin").unwrap();
    one.set_rules("host all maria all scram-sha-256\nhost all all all browser\n");
    let eva = one.with_user("eva", "");
    let mut wire = eva.knock_as(&Caller::default()).unwrap();
    let mut told = String::new();
    while !told.contains("https://") {
        let message = wire.receive().expect("a message");
        assert!([b'R', b'N'].contains(&message.tag), "{message:?}");
        told = String::from_utf8_lossy(&message.body).into_owned();
    }
    let url = told
        .split(|c: char| c.is_whitespace() || c == '\0')
        .find(|word| word.starts_with("https://"))
        .expect("an address");
    // A person may take longer than a program, also where roles are looked up at the end.
    std::thread::sleep(Duration::from_secs(11));
    Person::default()
        .goes_to(url)
        .clicks("button")
        .signs_in_as("eva")
        .reads("close this window")
        .at(cloud())
        .ok();
    wire.expect_ready().unwrap();
    assert_eq!(wire.value("select session_user"), "eva");
    assert_eq!(roles_of(&mut admin, "eva"), "sales");
    assert!(provider.count("/me") >= 1, "userinfo was asked");
    let users = cloud().json(["user", "list", "made-browser"]).to_string();
    assert!(users.contains(&format!("oidc:{}", provider.issuer())), "{users}");
}

pub fn a_made_user_that_is_dropped_is_gone_until_it_is_made_again() {
    let (one, provider) = stage("made-dropped", &json!({ "provisions": true }));
    let mut admin = one.welcome(&Caller::with(&one.password));
    let eva = one.with_user("eva", "");
    drop(eva.welcome(&bearing(&provider.token("eva"))));
    let removed = run_with(
        &mut cloud().command(["user", "delete", "made-dropped", "eva", "--yes"]),
        b"",
        Duration::from_secs(60),
    );
    removed.ok();
    assert!(!cloud().json(["user", "list", "made-dropped"]).to_string().contains("eva"));
    // Somebody makes a user of that name by hand: that one has a password, and is not provisioned.
    admin.query("create role eva login password 'Correct-Horse-77-staple'").unwrap();
    one.set_rules("host all all all scram-sha-256\n");
    eventually("a user made by hand", PATIENCE, || eva.enter(&Caller::with("Correct-Horse-77-staple")).ok());
}

pub fn a_group_s_role_is_no_user_that_a_token_could_be() {
    let more = json!({ "group_claim": "groups", "provisions": true });
    let (one, provider) = stage("group-roles", &more);
    let mut admin = one.welcome(&Caller::with(&one.password));
    admin
        .query("create role dba nologin; create role readers nologin; grant readers to dba; create role sales nologin")
        .unwrap();
    let dba = one.with_user("dba", "");
    let token = provider.token_with("dba", &json!({ "groups": ["sales"] }));
    dba.refusal_of("a role that cannot sign in", &bearing(&token));
    assert_eq!(roles_of(&mut admin, "dba"), "readers", "what everybody in it has was changed");
    assert_eq!(admin.value("select rolcanlogin from pg_roles where rolname = 'dba'"), "f");
}

pub fn a_rule_about_a_role_counts_at_the_sign_in_that_gives_the_role() {
    let more = json!({ "group_claim": "groups", "provisions": true });
    let (one, provider) = stage("given-roles", &more);
    let mut admin = one.welcome(&Caller::with(&one.password));
    admin
        .query("create role outside nologin; create role contractors nologin; grant outside to contractors")
        .unwrap();
    drop(admin);
    // The copy of the roles must know them: they are read when the cluster falls asleep.
    cloud().chitin(["cluster", "sleep", "given-roles"]).ok();
    one.set_rules("host all +outside all reject\nhost all all all jwt\n");
    let joe = one.with_user("joe", "");
    let token = provider.token_with("joe", &json!({ "groups": ["contractors"] }));
    let refusal = joe.refusal_of("a contractor's first sign-in", &bearing(&token));
    assert_eq!(refusal.code, "28000", "{refusal:?}");
    joe.welcome(&bearing(&provider.token_with("joe", &json!({ "groups": ["something-else"] }))));
}
