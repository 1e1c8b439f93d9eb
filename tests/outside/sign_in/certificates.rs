//! Client certificates: whose count, for whom, and until when.

use std::path::Path;
use std::time::Duration;

use crate::sign_in::cloud;
use house::authority::{Authority, Identity, Leaf, self_signed};
use house::caller::fresh_address;
use house::cloud::PATIENCE;
use house::{Caller, Cluster, Refusal};

fn is_refused(what: &str, refusal: &Refusal) {
    assert!(["28000", "28P01"].contains(&refusal.code.as_str()), "{what}: {refusal:?}");
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a scratch directory")
}

/// Every kind of certificate that `maria` could come with.
fn cases(root: &Authority, below: &Path) -> Vec<(&'static str, Option<Identity>)> {
    let middle = root.intermediate("middle", &[]);
    let other = Authority::root(below, "other");
    let leaf = || Leaf::of("maria");
    vec![
        ("none", None),
        ("good", Some(root.issue(&leaf()))),
        ("good by an intermediate", Some(middle.issue(&leaf()))),
        ("good without a usage", Some(root.issue(&Leaf { usage: None, ..leaf() }))),
        ("of another authority", Some(other.issue(&leaf()))),
        ("self-signed", Some(self_signed(below, "maria"))),
        ("expired", Some(root.issue(&Leaf { from: "-3 days".into(), until: "-1 minute".into(), ..leaf() }))),
        ("not yet valid", Some(root.issue(&Leaf { from: "+1 hour".into(), ..leaf() }))),
        ("for servers", Some(root.issue(&Leaf { usage: Some("serverAuth".into()), ..leaf() }))),
        ("for signing answers", Some(root.issue(&Leaf { usage: Some("OCSPSigning".into()), ..leaf() }))),
        ("of another user", Some(root.issue(&Leaf::of("bob")))),
        ("with two names", Some(root.issue(&leaf().with_subject("/CN=maria/CN=bob")))),
        ("with two names, the other way", Some(root.issue(&leaf().with_subject("/CN=bob/CN=maria")))),
        ("without a name", Some(root.issue(&leaf().with_subject("/O=maria")))),
        (
            "with the name in a SAN only",
            Some(root.issue(&Leaf { names: vec!["DNS:maria".into()], ..leaf().with_subject("/O=x") })),
        ),
        ("with a name that only begins so", Some(root.issue(&Leaf::of("maria2")))),
        ("with another case", Some(root.issue(&Leaf::of("MARIA")))),
    ]
}

pub fn t44_only_the_right_certificate_passes_in_every_mode() {
    let scratch = scratch();
    let root = Authority::root(scratch.path(), "root");
    let one = cloud().cluster("certs-matrix", &[]);
    one.set_authorities(&root.pem());
    let cases = cases(&root, scratch.path());
    let good = |what: &str| what.starts_with("good");
    // A certificate of nobody that counts here is as good as none; libpq sends whatever lies in ~/.postgresql.
    let as_none = |what: &str| ["none", "of another authority", "self-signed"].contains(&what);
    // `verify-ca` asks for a certificate of the cluster's authorities, whoever it is for.
    let is_of_ours = |what: &str| {
        good(what) || ["of another user", "without a name"].contains(&what) || what.starts_with("with ")
    };
    type Expected<'a> = &'a dyn Fn(&str, bool) -> bool;
    let modes: [(&str, Expected<'_>); 5] = [
        ("cert", &|what, _| good(what)),
        ("cert-password", &|what, knows| good(what) || (as_none(what) && knows)),
        ("scram-sha-256 clientcert=verify-full", &|what, knows| good(what) && knows),
        ("password clientcert=verify-ca", &|what, knows| is_of_ours(what) && knows),
        ("scram-sha-256", &|_, knows| knows),
    ];
    for (mode, expected) in modes {
        one.set_rules(&format!("host all all all {mode}\n"));
        for (what, identity) in &cases {
            for (secret, knows) in [(one.password.as_str(), true), ("wrong", false)] {
                let mut caller = Caller::with(secret).from(fresh_address());
                if let Some(identity) = identity {
                    caller = caller.and_holding(identity);
                }
                let place =
                    format!("{mode}, certificate {what}, {} password", if knows { "right" } else { "wrong" });
                match one.enter(&caller) {
                    Ok(mut wire) => {
                        assert!(expected(what, knows), "let in: {place}");
                        assert_eq!(wire.value("select session_user"), "maria");
                    }
                    Err(refusal) => {
                        assert!(!expected(what, knows), "refused: {place}: {refusal:?}");
                        is_refused(&place, &refusal);
                    }
                }
            }
        }
    }
}

pub fn t44_a_certificate_never_makes_one_of_the_house() {
    let scratch = scratch();
    let root = Authority::root(scratch.path(), "root");
    let one = cloud().cluster("certs-house", &[]);
    one.set_authorities(&root.pem());
    let mut admin = one.welcome(&Caller::with(&one.password));
    for rules in
        ["host all all all cert\n", "host all all all cert map=anybody\n", "host all all all cert-password\n"]
    {
        // A map that names one of the house, or everybody, is not even taken; one that copies names makes none of the house.
        for user in ["root", "chitin", "postgres", "all"] {
            let said = one.try_set_map(&format!("anybody /^(.*)$ \\1\nanybody maria {user}\n")).refused(400);
            assert!(said.contains("line 2, column 15"), "{said}");
        }
        one.set_map("anybody /^(.*)$ \\1\n");
        one.set_rules(rules);
        for user in [
            "root",
            "node",
            "chitin",
            "chitin_admin",
            "postgres",
            "admin",
            "public",
            "pg_monitor",
            "pg_read_all_data",
        ] {
            for name in [user, "maria"] {
                let identity = root.issue(&Leaf::of(name));
                let who = one.with_user(user, "");
                let refusal = who.refusal_of(rules, &Caller::holding(&identity).from(fresh_address()));
                is_refused(user, &refusal);
            }
        }
    }
    assert_eq!(admin.value("select count(*) from pg_stat_activity where usename = 'maria'"), "1");
}

pub fn t44_our_own_certificates_are_nobodys_on_the_sql_port() {
    let one = cloud().cluster("certs-own", &[]);
    let own = std::fs::read_to_string(cloud().root_certificate()).unwrap();
    let said = one.try_set_authorities(&own).refused(400);
    assert!(!said.is_empty());
    let scratch = scratch();
    let root = Authority::root(scratch.path(), "root");
    // Not in a bundle either.
    one.try_set_authorities(&(root.pem() + &own)).refused(400);
    one.set_authorities(&root.pem());
    one.set_rules("host all all all cert\n");
    is_refused(
        "self-signed as the node",
        &one.refusal_of("node", &Caller::holding(&self_signed(scratch.path(), "node"))),
    );
}

pub fn texts_that_are_no_authorities_are_refused_and_change_nothing() {
    let scratch = scratch();
    let root = Authority::root(scratch.path(), "root");
    let one = cloud().cluster("certs-texts", &[]);
    one.set_authorities(&root.pem());
    let leaf = root.issue(&Leaf::of("maria"));
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    for (what, text) in [
        ("nothing", String::new()),
        ("no PEM", "hello".to_owned()),
        ("a client's certificate", read(&leaf.certificate)),
        ("a private key", read(&leaf.key)),
        ("a root with its key", root.pem() + &read(&root.signer().key)),
        ("the same twice", root.pem() + &root.pem()),
        ("a broken one", root.pem().replace('M', "N")),
        ("too many", root.pem().repeat(400)),
    ] {
        let said = one.try_set_authorities(&text);
        assert_eq!(said.status, 400, "{what}: {}", said.text);
        assert!(!said.text.contains("PRIVATE KEY-----\n"), "a key is never repeated");
    }
    one.set_rules("host all all all cert\n");
    one.welcome(&Caller::holding(&leaf));
}

fn signs_in(one: &Cluster<'_>, identity: &Identity) -> bool {
    match one.enter(&Caller::holding(identity).from(fresh_address())) {
        Ok(_) => true,
        Err(refusal) => {
            is_refused("a certificate", &refusal);
            false
        }
    }
}

pub fn t47_authorities_are_replaced_bundled_and_deleted_at_once() {
    let scratch = scratch();
    let (old, new) = (Authority::root(scratch.path(), "old"), Authority::root(scratch.path(), "new"));
    let (by_old, by_new) = (old.issue(&Leaf::of("maria")), new.issue(&Leaf::of("maria")));
    let one = cloud().cluster("certs-replace", &[]);
    let path = format!("/api/v1/clusters/{}/client-ca-cert", one.id);
    assert_eq!(cloud().call("GET", &path, None).ok()["status"], "NOT_SET");
    one.set_rules("host all all all cert\n");
    assert!(
        !signs_in(&one, &by_old) && !signs_in(&one, &by_new),
        "without authorities no certificate counts"
    );
    one.set_authorities(&old.pem());
    assert!(signs_in(&one, &by_old) && !signs_in(&one, &by_new));
    let mut open = one.welcome(&Caller::holding(&by_old));
    one.set_authorities(&format!("{}\n{}", old.pem(), new.pem()));
    assert!(signs_in(&one, &by_old) && signs_in(&one, &by_new), "a bundle has both");
    assert_eq!(cloud().json(["client-ca", "show", "certs-replace"]).as_array().unwrap().len(), 2);
    one.set_authorities(&new.pem());
    assert!(!signs_in(&one, &by_old) && signs_in(&one, &by_new));
    assert_eq!(open.value("select 1"), "1", "a session that is open stays");
    cloud().chitin(["client-ca", "delete", "certs-replace"]).ok();
    assert!(!signs_in(&one, &by_new));
    assert_eq!(cloud().call("GET", &path, None).ok()["status"], "NOT_SET");
    let file = scratch.path().join("both.pem");
    std::fs::write(&file, old.pem()).unwrap();
    cloud().chitin(["client-ca", "set", "certs-replace", file.to_str().unwrap()]).ok();
    assert!(signs_in(&one, &by_old));
    // Another cluster has none of it.
    let other = cloud().cluster("certs-elsewhere", &[]);
    other.set_rules("host all all all cert\n");
    assert!(!signs_in(&other, &by_old));
}

pub fn t48_a_certificate_without_its_key_is_worth_nothing() {
    let scratch = scratch();
    let root = Authority::root(scratch.path(), "root");
    let one = cloud().cluster("certs-key", &[]);
    one.set_authorities(&root.pem());
    one.set_rules("host all all all cert\n");
    let (maria, bob) = (root.issue(&Leaf::of("maria")), root.issue(&Leaf::of("bob")));
    one.welcome(&Caller::holding(&maria));
    for held in [bob, self_signed(scratch.path(), "maria")] {
        let refusal = one.refusal_of("without the key", &Caller::pretending(&maria, &held));
        assert_eq!(refusal.code, "closed", "the handshake itself fails: {refusal:?}");
    }
    one.welcome(&Caller::holding(&maria));
}

pub fn names_come_from_the_subject_or_a_san_by_the_map() {
    let scratch = scratch();
    let root = Authority::root(scratch.path(), "root");
    let one = cloud().cluster("certs-names", &[]);
    one.set_authorities(&root.pem());
    let fancy = root.issue(
        &Leaf {
            names: vec!["email:maria@example.org".into(), "DNS:bot.example.org".into()],
            ..Leaf::of("x")
        }
        .with_subject("/C=CH/O=Firma/OU=Leute/CN=Maria Muster"),
    );
    let foreign = root.issue(
        &Leaf { names: vec!["email:maria@example.org.evil.com".into()], ..Leaf::of("x") }
            .with_subject("/C=CH/O=Firma/OU=Leute/CN=Maria Muster2"),
    );
    one.set_map(
        "people /^(.*)@example\\.org$ \\1\nsubjects \"CN=Maria Muster,OU=Leute,O=Firma,C=CH\" maria\nnames \"Maria Muster\" maria\n\
         bots bot.example.org maria\n",
    );
    for (options, is_good) in [
        ("clientname=SAN-EMAIL map=people", true),
        ("clientname=SAN-DNS map=bots", true),
        ("clientname=DN map=subjects", true),
        ("map=names", true),
        ("clientname=CN map=people", false),
        ("clientname=DN map=people", false),
        ("clientname=SAN-DNS map=people", false),
        ("clientname=SAN-URI map=people", false),
        ("clientname=SAN-EMAIL", false),
        ("map=no_such_map", false),
        ("", false),
    ] {
        one.set_rules(&format!("host all all all cert {options}\n"));
        assert_eq!(signs_in(&one, &fancy), is_good, "{options}");
        assert!(!signs_in(&one, &foreign), "{options}");
    }
    // The map names maria; it makes nobody else.
    one.set_rules("host all all all cert clientname=SAN-EMAIL map=people\n");
    let bob = one.with_new_user("bob");
    is_refused("bob", &bob.refusal_of("bob", &Caller::holding(&fancy)));
}

pub fn t44_an_authority_with_name_constraints_names_nobody_beyond_them() {
    let scratch = scratch();
    let root = Authority::root(scratch.path(), "root");
    let partner =
        root.constrained("partner", "permitted;DNS:partner.example,permitted;email:partner.example");
    let by_dns = root.constrained("by dns", "permitted;DNS:partner.example");
    let one = cloud().cluster("certs-limits", &[]);
    one.set_authorities(&root.pem());
    one.set_map(
        "hosts db.other.example maria\nhosts a@evil.example maria\nhosts maria maria\nhosts db.partner.example maria\n\
         staff /^(.*)@corp\\.example$ \\1\nwhole /.*CN=db\\.partner\\.example maria\n",
    );
    let leaf = |by: &Authority, name: &str, more: &[&str]| {
        let names = more.iter().map(|name| (*name).to_owned()).collect();
        by.issue(&Leaf { names, ..Leaf::of(name) })
    };
    let with = |options: &str| one.set_rules(&format!("host all all all cert {options}\n"));

    with("map=hosts");
    for attack in ["db.other.example", "a@evil.example", "maria"] {
        // Given by who may give every name it is good, so the map would let it in.
        assert!(signs_in(&one, &leaf(&root, attack, &[])), "{attack}");
        for by in [&partner, &by_dns] {
            assert!(!signs_in(&one, &leaf(by, attack, &[])), "{attack}");
        }
    }
    assert!(signs_in(&one, &leaf(&partner, "db.partner.example", &["DNS:db.partner.example"])));
    with("");
    assert!(!signs_in(&one, &leaf(&partner, "maria", &[])));
    with("clientname=DN map=whole");
    assert!(signs_in(&one, &leaf(&root, "db.partner.example", &[])));
    assert!(!signs_in(&one, &leaf(&partner, "db.partner.example", &[])));
    assert!(cloud().log().contains("has name constraints that do not permit it"));

    // An address of the company as a name of another type, which constraints for e-mail do not hold for.
    let typed = ["URI:maria@corp.example", "DNS:maria@corp.example"];
    for options in ["clientname=SAN-EMAIL", "clientname=SAN-DNS", "clientname=SAN-URI"] {
        with(&format!("{options} map=staff"));
        for by in [&root, &partner, &by_dns] {
            for name in typed {
                assert!(!signs_in(&one, &leaf(by, "x", &[name])), "{options} {name}");
            }
            let inside = leaf(by, "x", &["URI:https://partner.example/?maria@corp.example"]);
            assert!(!signs_in(&one, &inside), "{options}");
        }
        let honest = leaf(&root, "x", &["email:maria@corp.example"]);
        assert_eq!(signs_in(&one, &honest), options == "clientname=SAN-EMAIL", "{options}");
    }
    assert!(!signs_in(&one, &leaf(&partner, "x", &["email:maria@corp.example"])));
    // A rule says which type counts.
    let refused = one.try_set_rules("host all all all cert clientname=SAN map=staff\n").refused(400);
    assert!(refused.to_string().contains("SAN-EMAIL"), "{refused}");
}

pub fn a_certificate_needs_a_user_that_may_sign_in() {
    let scratch = scratch();
    let root = Authority::root(scratch.path(), "root");
    let one = cloud().cluster("certs-user", &[]);
    one.set_authorities(&root.pem());
    let mut admin = one.welcome(&Caller::with(&one.password));
    admin.query("create role carla login; create role shut nologin").unwrap();
    one.set_rules("host all all all cert\n");
    let carla = root.issue(&Leaf::of("carla"));
    // A user without a password is for certificates.
    let who = one.with_user("carla", "");
    let enter = || who.enter(&Caller::holding(&carla)).ok();
    let mut wire = house::command::eventually("carla signs in", PATIENCE, enter);
    assert_eq!(wire.value("select session_user"), "carla");
    for user in ["shut", "nobody_here"] {
        let identity = root.issue(&Leaf::of(user));
        is_refused(user, &one.with_user(user, "").refusal_of(user, &Caller::holding(&identity)));
    }
    // `VALID UNTIL` ends the password only.
    admin.query("alter role carla valid until '2020-01-01'").unwrap();
    std::thread::sleep(Duration::from_millis(1_200));
    drop(who.welcome(&Caller::holding(&carla)));
    drop(wire);
    drop(admin);
    one.sleep();
    is_refused(
        "expired",
        &one.refusal_of(
            "a stranger does not wake it",
            &Caller::holding(&self_signed(scratch.path(), "maria")),
        ),
    );
    assert_eq!(one.phase(), "asleep");
    assert_eq!(who.welcome(&Caller::holding(&carla)).value("select session_user"), "carla");
}
