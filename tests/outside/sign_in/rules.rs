//! Rules: which one a client meets, from when on, and what is refused when they are set.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::sign_in::cloud;
use house::caller::{Wanted, fresh_address};
use house::cloud::PATIENCE;
use house::command::{eventually, run_with};
use house::{Caller, Cluster, Refusal};
use serde_json::json;

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ABROAD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 9, 9, 9));

fn is_rejected(refusal: &Refusal) {
    assert_eq!(
        (refusal.code.as_str(), refusal.message.as_str()),
        ("28000", "authentication rejected by configuration")
    );
}

fn right(one: &Cluster<'_>) -> Caller {
    Caller::with(&one.password)
}

fn by_scram() -> Wanted {
    Wanted::Sasl(vec!["SCRAM-SHA-256-PLUS".into(), "SCRAM-SHA-256".into()])
}

pub fn the_default_lets_passwords_in_by_scram() {
    let one = cloud().cluster("rules-default", &[]);
    let shown = cloud().json(["hba", "show", "rules-default"]);
    assert_eq!(
        (shown["is_default"].as_bool(), shown["text"].as_str()),
        (Some(true), Some("host all all all cert-password\n"))
    );
    assert_eq!(one.wants_of(&Caller::default()), Ok(by_scram()));
    assert_eq!(one.welcome(&right(&one)).value("select session_user"), "maria");
}

pub fn the_first_rule_that_matches_decides() {
    let one = cloud().cluster("rules-first", &[]);
    one.set_rules("host all maria all reject\nhost all all all scram-sha-256\n");
    is_rejected(&one.refusal_of("reject before allow", &right(&one)));
    let other = one.with_new_user("second_person");
    other.welcome(&right(&other));
    one.set_rules("host all all all scram-sha-256\nhost all maria all reject\n");
    one.welcome(&right(&one));
    // Whoever is rejected is so before any question, and whether there is such a user or not.
    one.set_rules("host all all all reject\n");
    is_rejected(&one.with_user("nobody_here", "x").refusal_of("nobody", &right(&one)));
    is_rejected(&one.wants_of(&Caller::default()).expect_err("rejected at once"));
}

pub fn rules_hold_at_once_for_new_connections_and_leave_open_ones() {
    let one = cloud().cluster("rules-at-once", &[]);
    let mut open = one.welcome(&right(&one));
    for _ in 0..10 {
        one.set_rules("host all all all reject\n");
        is_rejected(&one.refusal_of("right after the command", &right(&one)));
        one.set_rules("");
        one.welcome(&right(&one));
    }
    assert_eq!(open.value("select 1"), "1");
}

pub fn rules_choose_by_database() {
    let one = cloud().cluster("rules-database", &[]);
    one.welcome(&right(&one)).query("create database shop").unwrap();
    one.set_rules("host shop all all password\nhost sameuser all all reject\nhost \"all\" all all reject\nhost all all all scram-sha-256\n");
    assert_eq!(one.wants_of(&right(&one).to("shop")), Ok(Wanted::Clear));
    assert_eq!(one.wants_of(&right(&one)), Ok(by_scram()));
    is_rejected(&one.refusal_of("sameuser", &right(&one).to("maria")));
    is_rejected(&one.refusal_of("a database that is called all", &right(&one).to("all")));
    assert_eq!(one.welcome(&right(&one).to("shop")).value("select current_database()"), "shop");
    one.set_rules("host /^sh[aeiou]p$ all all scram-sha-256\n");
    one.welcome(&right(&one).to("shop"));
    let refusal = one.refusal_of("no rule", &right(&one));
    assert_eq!(refusal.code, "28000");
}

/// PostgreSQL cuts a name at 63 bytes. With a letter more it would be another name to the rules, and the same one to the
/// engine.
pub fn a_letter_more_than_the_engine_takes_passes_no_rule() {
    let one = cloud().cluster("rules-cut", &[]);
    let closed = "d".repeat(63);
    let barred = one.with_new_user(&"u".repeat(63));
    one.welcome(&right(&one)).query(&format!("create database {closed}")).unwrap();
    one.set_rules(&format!(
        "host {closed} all all reject\nhost all {} all reject\nhost all all all scram-sha-256\n",
        barred.user
    ));
    is_rejected(&one.refusal_of("the database itself", &right(&one).to(&closed)));
    is_rejected(&barred.refusal_of("the user itself", &right(&barred)));
    for more in ["x", "xy", "\u{e9}"] {
        let database = format!("{closed}{more}");
        let refusal = one.refusal_of("a longer database", &right(&one).to(&database));
        assert_eq!(refusal.code, "3D000", "{refusal:?}");
        let prefixed = right(&one).to(&format!("{}.{database}", one.handle));
        let refusal = one.refusal_of("the same behind the cluster's name", &prefixed);
        assert_eq!(refusal.code, "3D000", "{refusal:?}");
        let longer = one.with_user(&format!("{}{more}", barred.user), &barred.password);
        let refusal = longer.refusal_of("a longer user", &right(&barred));
        assert_eq!(refusal.code, "28000", "{refusal:?}");
        assert!(refusal.message.contains("63 bytes"), "{refusal:?}");
    }
}

pub fn rules_choose_by_membership() {
    let one = cloud().cluster("rules-roles", &[]);
    let (inside, outside) = (one.with_new_user("inside"), one.with_new_user("outside"));
    let mut admin = one.welcome(&right(&one));
    admin.query("create role dba nologin; create role chiefs nologin; grant dba to chiefs; grant chiefs to inside").unwrap();
    one.set_rules("host all +dba all scram-sha-256\nhost all all all reject\n");
    // Membership counts at any depth.
    eventually("a member is let in", PATIENCE, || inside.enter(&right(&inside)).ok());
    is_rejected(&outside.refusal_of("no member", &right(&outside)));
    // The role itself cannot sign in, whether it counts as its own member or not.
    let refusal = one.with_user("dba", "x").refusal_of("the role itself", &right(&one));
    assert!(["28000", "28P01"].contains(&refusal.code.as_str()), "{refusal:?}");
    admin.query("revoke chiefs from inside").unwrap();
    eventually("no longer a member", PATIENCE, || inside.enter(&right(&inside)).err());
    admin.query("grant dba to outside").unwrap();
    eventually("now a member", PATIENCE, || outside.enter(&right(&outside)).ok());
    // Memberships are known while the engine sleeps, too.
    drop(admin);
    one.sleep();
    is_rejected(&inside.refusal_of("no member of a sleeping cluster", &right(&inside)));
    assert_eq!(one.phase(), "asleep");
    outside.welcome(&right(&outside));
}

pub fn rules_choose_by_address_and_user() {
    let one = cloud().cluster("rules-address", &[]);
    one.set_rules(
        "host all /^ma 127.9.9.0/24 reject\n\
         host all all 127.9.8.0 255.255.255.0 password # in clear\n\
         host all \"maria\",bob ::ffff:127.0.0.1/128 \\\n  scram-sha-256\n",
    );
    is_rejected(&one.refusal_of("the address", &right(&one).from(ABROAD)));
    assert_eq!(one.wants_of(&right(&one).from("127.9.8.77".parse().unwrap())), Ok(Wanted::Clear));
    one.welcome(&right(&one).from(HOME));
    let refusal = one.refusal_of("no rule", &right(&one).from(fresh_address()));
    assert_eq!(refusal.code, "28000");
    assert!(!refusal.message.contains("scram") && !refusal.message.contains("127.9"), "{refusal:?}");
    let shown = cloud().get(&format!("/api/v1/chitin/clusters/{}/hba", one.id));
    assert!(shown["text"].as_str().unwrap().contains("# in clear"), "the text is kept as it was written");
}

pub fn a_password_in_clear_is_checked_like_one_by_scram() {
    let one = cloud().cluster("rules-clear", &[]);
    one.set_rules("host all all all password\n");
    assert_eq!(one.wants_of(&Caller::default()), Ok(Wanted::Clear));
    assert_eq!(one.welcome(&right(&one)).value("select session_user"), "maria");
    let refusals: Vec<Refusal> =
        [("maria", "wrong"), ("maria", ""), ("nobody_here", "wrong"), ("maria", &"x".repeat(9_000))]
            .into_iter()
            .map(|(user, secret)| {
                let asked = one.with_user(user, secret);
                let mut refusal = asked.refusal_of(user, &Caller::with(secret).from(fresh_address()));
                refusal.message = refusal.message.replace(user, "USER");
                refusal.fields.insert('M', refusal.message.clone());
                refusal
            })
            .collect();
    assert_eq!(refusals[0].code, "28P01");
    for refusal in &refusals[1..3] {
        assert_eq!(*refusal, refusals[0]);
    }
    assert!(["28P01", "08P01"].contains(&refusals[3].code.as_str()), "{:?}", refusals[3]);
    // The role has no password, or one that has ended.
    let mut admin = one.welcome(&right(&one));
    admin.query("create role bare login; create role ended login password 'over-long-ago-77' valid until '2020-01-01'").unwrap();
    for user in ["bare", "ended"] {
        for secret in ["", "over-long-ago-77"] {
            assert_eq!(
                one.with_user(user, "").refusal_of(user, &Caller::with(secret)).code,
                "28P01",
                "{user} {secret:?}"
            );
        }
    }
    // Without a password message.
    let mut wire = one.knock_as(&right(&one)).unwrap();
    wire.expect_message().unwrap();
    wire.send(b'Q', b"select 1\0").unwrap();
    assert_eq!(wire.expect_refusal().code, "08P01");
}

pub fn mistakes_are_refused_with_their_place_and_change_nothing() {
    let one = cloud().cluster("rules-mistakes", &[]);
    one.set_rules("host all all all scram-sha-256\n");
    for (text, parts) in [
        ("host all all all trust\n", &["line 1", "column 18", "trust"][..]),
        ("# first\nhost all all all md5\n", &["line 2", "column 18", "md5"]),
        ("host all all all peer\n", &["line 1", "peer"]),
        ("host all all all no-such-method\n", &["line 1", "no-such-method", "scram-sha-256"]),
        ("host all all samehost cert\n", &["line 1", "column 14"]),
        ("host all all db.example.org cert\n", &["line 1", "column 14"]),
        ("host all all 10.0.0.0/33 cert\n", &["line 1", "column 14"]),
        ("host all all 10.1.2.3/8 255.0.0.0 cert\n", &["line 1"]),
        ("host all all all\n", &["line 1"]),
        ("guest all all all cert\n", &["line 1", "column 1", "guest"]),
        ("host all @/etc/passwd all cert\n", &["line 1", "column 10"]),
        ("include /etc/passwd\n", &["line 1", "column 1"]),
        ("host all /(unclosed all cert\n", &["line 1", "column 10"]),
        ("host all \"unclosed all cert\n", &["line 1"]),
        ("host all all all scram-sha-256 map=people\n", &["line 1", "column 32", "certificate's name"]),
        ("host all all all reject provider=corp\n", &["line 1", "provider"]),
        ("host all all all cert clientcert=maybe\n", &["line 1", "clientcert"]),
        ("# nothing but a comment\n", &["no entries"]),
    ] {
        let said = one.try_set_rules(text).refused(400);
        for part in parts {
            assert!(said.contains(part), "{text:?}: {part} is not in {said}");
        }
    }
    for too_much in
        [format!("host all {} all cert\n", "a".repeat(300_000)), "host all all all cert\n".repeat(1_001)]
    {
        one.try_set_rules(&too_much).refused(400);
    }
    // Regular expressions cannot be made expensive.
    let said = one.try_set_rules("host all /^(a{1000}){1000}$ all cert\n");
    assert_eq!(said.status, 400, "{said:?}");
    let shown = cloud().json(["hba", "show", "rules-mistakes"]);
    assert_eq!(shown["text"], "host all all all scram-sha-256\n");
    one.welcome(&right(&one));
}

pub fn rules_of_one_cluster_are_not_those_of_another() {
    let (one, other) = (cloud().cluster("rules-mine", &[]), cloud().cluster("rules-yours", &[]));
    one.set_rules("host all all all reject\n");
    is_rejected(&one.refusal_of("its own rules", &right(&one)));
    other.welcome(&right(&other));
    let mut unknown = one.clone();
    unknown.handle = "no-such-cluster-78".to_owned();
    assert_eq!(
        unknown.wants_of(&Caller::default()),
        Ok(by_scram()),
        "a cluster that does not exist has the default"
    );
}

pub fn t40_no_rule_lets_anybody_be_one_of_the_house() {
    let one = cloud().cluster("rules-house", &[]);
    for method in ["password", "scram-sha-256", "cert-password"] {
        one.set_rules(&format!("host all all all {method}\n"));
        for user in [
            "root",
            "node",
            "chitin",
            "chitin_admin",
            "postgres",
            "admin",
            "public",
            "none",
            "pg_monitor",
            "",
        ] {
            for secret in ["", user, &one.password] {
                let who = one.with_user(user, secret);
                let refusal = who.refusal_of(method, &Caller::with(secret).from(fresh_address()));
                assert!(
                    ["28P01", "28000"].contains(&refusal.code.as_str()),
                    "{user} by {method}: {refusal:?}"
                );
            }
        }
    }
}

pub fn the_command_line_shows_sets_and_tests_rules() {
    let one = cloud().cluster("rules-command", &[]);
    let text =
        "host all maria 10.0.0.0/8 reject\nhost all +dba all cert\nhost all all 127.0.0.0/8 scram-sha-256\n";
    let set = run_with(
        &mut cloud().command(["hba", "set", "rules-command", "-"]),
        text.as_bytes(),
        Duration::from_secs(30),
    );
    set.ok();
    let shown = cloud().chitin(["hba", "show", "rules-command"]).ok();
    assert!(shown.contains(text.trim_end()), "{shown}");
    let file = cloud().scratch().join("rules.conf");
    std::fs::write(&file, text).unwrap();
    cloud().chitin(["hba", "set", "rules-command", file.to_str().unwrap()]).ok();
    for (arguments, expected) in [
        (&["--user", "maria", "--address", "10.1.2.3"][..], json!({ "outcome": "rejected", "line": 1 })),
        (
            &["--user", "bob", "--address", "10.1.2.3", "--role", "dba"],
            json!({ "outcome": "proceeds", "line": 2, "method": "cert" }),
        ),
        (
            &["--user", "bob", "--address", "127.0.0.1", "--method", "jwt"],
            json!({ "outcome": "other-method", "line": 3 }),
        ),
        (&["--user", "bob", "--address", "203.0.113.9"], json!({ "outcome": "no-rule" })),
    ] {
        let all: Vec<&str> =
            ["hba", "test", "rules-command", "--output", "json"].iter().chain(arguments).copied().collect();
        let said = house::command::run(&mut cloud().command_of(&all)).ok();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(said[name], *value, "{arguments:?}: {said}");
        }
        assert!(said["steps"].as_array().is_some_and(|steps| !steps.is_empty()), "{said}");
    }
    // What `test` says is what happens.
    one.welcome(&right(&one));
    let wrong = run_with(
        &mut cloud().command(["hba", "set", "rules-command", "-"]),
        b"host all all all trust\n",
        Duration::from_secs(30),
    );
    let said = wrong.refused();
    assert!(said.contains("line 1, column 18"), "{said}");
    cloud().chitin(["hba", "set", "rules-command", "--default"]).ok();
    assert_eq!(cloud().json(["hba", "show", "rules-command"])["is_default"], true);
    let note = run_with(
        &mut cloud().command(["hba", "set", "rules-command", "-"]),
        b"local all all reject\nhost all all all scram-sha-256\n",
        Duration::from_secs(30),
    );
    assert!(note.stderr.contains("line 1"), "a rule that can never match is pointed out: {}", note.stderr);
}
