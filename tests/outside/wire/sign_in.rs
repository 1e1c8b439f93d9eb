//! Who gets in, and what those learn who do not.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use house::cloud::PATIENCE;
use house::command::eventually;
use house::machine::assert_within;
use house::scram::{self, Exchange, PLAIN, PLUS};
use house::shared::{cloud, cluster};
use house::wire::AT_ONCE;
use house::wire::{PROTOCOL_3_0, Refusal, Wire, startup, text};

fn refusal_by(exchange: &Exchange) -> Refusal {
    cluster().sign_in_by(exchange).err().unwrap_or_else(|| panic!("signed in by {exchange:?}"))
}

fn is_refused_as_protocol_or_password(refusal: &Refusal) {
    assert!(["08P01", "28000", "28P01", "0A000"].contains(&refusal.code.as_str()), "{refusal:?}");
}

pub fn both_mechanisms_are_offered_and_both_work() {
    let mut wire = cluster().knock();
    let request = wire.expect_message().unwrap();
    assert_eq!(scram::mechanisms(&request), [PLUS, PLAIN]);
    let password = &cluster().password;
    for exchange in [Exchange::bound(password), Exchange::unbound(password)] {
        let mut wire = cluster().sign_in_by(&exchange).unwrap();
        assert_eq!(wire.value("select session_user"), "maria");
    }
}

pub fn a_wrong_password_an_unknown_user_and_an_unknown_cluster_look_alike() {
    let shared = cluster();
    let mut unknown = shared.clone();
    unknown.handle = "no-such-cluster-77".to_owned();
    let mut answers = Vec::new();
    for (asked, user) in [(shared, "maria"), (shared, "nobody_here"), (&unknown, "maria")] {
        let asked = asked.with_user(user, "wrong");
        let mut refusal = asked.try_sign_in().err().expect("refused");
        refusal.message = refusal.message.replace(user, "USER");
        refusal.fields.insert('M', refusal.message.clone());
        answers.push(refusal);
    }
    assert_eq!(answers[0].code, "28P01");
    assert_eq!(answers[0].message, "password authentication failed for user \"USER\"");
    assert_eq!(answers[0], answers[1], "an unknown user looks different");
    assert_eq!(answers[0], answers[2], "an unknown cluster looks different");
}

pub fn t13_sasl_messages_with_wrong_lengths_are_protocol_errors() {
    for claimed in (0..=8).chain([0x7fff_ffff, 0x8000_0000, 0xffff_ffff]) {
        let mut wire = cluster().knock();
        wire.expect_message().unwrap();
        let mut frame = vec![b'p'];
        frame.extend(u32::to_be_bytes(claimed));
        frame.extend(&b"SCRAM-SHA-256\0\0\0\0\x04n,,n"[..usize::try_from(claimed).unwrap().clamp(4, 20) - 4]);
        wire.send_raw(&frame).unwrap();
        let refusal = wire.expect_refusal();
        assert!(["08P01", "closed"].contains(&refusal.code.as_str()), "length {claimed}: {refusal:?}");
    }
    for inner in [0_u32, 1, 5, 400, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe] {
        let mut wire = cluster().knock();
        wire.expect_message().unwrap();
        let mut body = text(PLAIN);
        body.extend(inner.to_be_bytes());
        body.extend(b"n,,n=,r=0123456789abcdefghij");
        wire.send(b'p', &body).unwrap();
        let refusal = wire.expect_refusal();
        is_refused_as_protocol_or_password(&refusal);
    }
    assert!(!cloud().log().contains("panicked"));
}

pub fn t25_sign_in_byte_by_byte_succeeds() {
    for mut exchange in [Exchange::bound(&cluster().password), Exchange::unbound(&cluster().password)] {
        exchange.is_slow = true;
        assert_eq!(cluster().sign_in_by(&exchange).unwrap().value("select 1"), "1");
    }
}

pub fn t27_plus_without_channel_binding_is_refused() {
    let right = Exchange::bound(&cluster().password);
    let refusal = refusal_by(&Exchange { header: "n,,".into(), ..right.clone() });
    is_refused_as_protocol_or_password(&refusal);
    let refusal = refusal_by(&Exchange { channel_field: Some("biws".into()), ..right.clone() });
    is_refused_as_protocol_or_password(&refusal);
    let refusal = refusal_by(&Exchange { header: "p=tls-unique,,".into(), ..right });
    is_refused_as_protocol_or_password(&refusal);
}

pub fn t28_saying_that_the_server_has_no_plus_is_a_downgrade() {
    let refusal = refusal_by(&Exchange { header: "y,,".into(), ..Exchange::unbound(&cluster().password) });
    is_refused_as_protocol_or_password(&refusal);
}

pub fn t29_another_certificate_does_not_match_the_binding() {
    let right = Exchange::bound(&cluster().password);
    for wrong in [vec![7; 32], vec![], vec![0; 64]] {
        let refusal = refusal_by(&Exchange { binding: Some(wrong), ..right.clone() });
        is_refused_as_protocol_or_password(&refusal);
    }
}

pub fn t31_the_stand_in_for_unknown_people_is_steady() {
    let shared = cluster();
    let mut unknown = shared.clone();
    unknown.handle = "no-such-cluster-78".to_owned();
    shared.sign_in().query("create role t31_disabled nologin password 'something-long'").unwrap();
    let challenge = |asked: &house::Cluster<'_>, user: &str| {
        let mut wire = asked.with_user(user, "wrong").knock();
        let request = wire.expect_message().unwrap();
        assert_eq!(scram::mechanisms(&request), [PLUS, PLAIN], "{user}");
        scram::ask(&mut wire, &Exchange::bound("wrong")).unwrap().0
    };
    let truth = challenge(shared, "maria");
    for (asked, user) in
        [(shared, "nobody_a"), (shared, "nobody_b"), (&unknown, "maria"), (shared, "t31_disabled")]
    {
        let (first, second) = (challenge(asked, user), challenge(asked, user));
        assert_eq!(first.salt, second.salt, "the salt of {user} changes between attempts");
        assert_eq!(first.iterations, truth.iterations, "the iterations of {user} stand out");
        assert_eq!(first.salt.len(), truth.salt.len(), "the salt of {user} has another length");
        assert_ne!(first.salt, truth.salt);
        assert_eq!(first.nonce.len(), truth.nonce.len());
    }
    assert_ne!(challenge(shared, "nobody_a").salt, challenge(shared, "nobody_b").salt);
    assert_ne!(challenge(shared, "nobody_a").salt, challenge(&unknown, "nobody_a").salt);
}

/// Nanoseconds from the proof to the refusal, each measured on a connection of its own.
pub(super) fn refusal_time(asked: &house::Cluster<'_>) -> u128 {
    let mut wire = asked.knock();
    let begun = Instant::now();
    wire.expect_message().unwrap();
    let refusal = scram::prove(&mut wire, &Exchange::unbound(&asked.password)).expect_err("refused");
    let taken = begun.elapsed();
    assert_eq!(refusal.code, "28P01");
    taken.as_nanos()
}

/// The chance that a value of `left` is larger than one of `right`; a half when nothing tells them apart.
pub(super) fn superiority(left: &[u128], right: &[u128]) -> f64 {
    let wins: f64 = left
        .iter()
        .flat_map(|a| {
            right.iter().map(move |b| {
                if a > b {
                    1.0
                } else if a == b {
                    0.5
                } else {
                    0.0
                }
            })
        })
        .sum();
    wins / (left.len() * right.len()) as f64
}

pub fn t31_refusals_take_the_same_time_whoever_asks() {
    let shared = cluster();
    let mut unknown = shared.with_user("maria", "wrong");
    unknown.handle = "no-such-cluster-79".to_owned();
    let people = [shared.with_user("maria", "wrong"), shared.with_user("nobody_here", "wrong"), unknown];
    // 400 of each instead of 10,000. They take turns in every order, so that a busy machine, and what came just before,
    // weigh on all alike.
    let mut times: [Vec<u128>; 3] = Default::default();
    let orders = [[0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 2, 1], [1, 2, 0], [2, 0, 1]];
    for order in orders.iter().cycle().take(400) {
        for person in *order {
            times[person].push(refusal_time(&people[person]));
        }
    }
    // With 400 values each, chance alone stays within 0.5 ± 0.14 but once in a million runs.
    for (index, what) in [(1, "an unknown user"), (2, "an unknown cluster")] {
        let tell = superiority(&times[0], &times[index]);
        println!("  {what} against a wrong password: {tell:.3} (a half is no difference)");
        assert!((0.36..=0.64).contains(&tell), "{what} can be told from a wrong password by time: {tell:.3}");
    }
}

pub fn t32_iterations_above_the_ceiling_are_refused() {
    let mut admin = cluster().sign_in();
    let costly = scram::verifier("secret-word", b"0123456789abcdef", 1_000_001);
    let _ = admin.query(&format!("create role t32_costly login password '{costly}'"));
    let begun = Instant::now();
    let refusal =
        cluster().with_user("t32_costly", "secret-word").try_sign_in().err().expect("above the ceiling");
    assert_eq!(refusal.code, "28P01", "{refusal:?}");
    assert_within(Duration::from_secs(3), begun, "it is refused without the work");
    let _ = admin.query("drop role t32_costly");
}

pub fn t33_salts_and_iterations_of_every_reasonable_kind_sign_in() {
    let mut admin = cluster().sign_in();
    for (number, (salt_bytes, iterations)) in
        [(1, 4_096), (16, 1), (32, 4_096), (64, 4_096), (16, 100_000), (16, 1_000_000)]
            .into_iter()
            .enumerate()
    {
        let verifier = scram::verifier("a-password", &vec![9; salt_bytes], iterations);
        admin.query(&format!("create role t33_{number} login password '{verifier}'")).unwrap();
        let mut wire = cluster().with_user(&format!("t33_{number}"), "a-password").sign_in();
        assert_eq!(wire.value("select session_user"), format!("t33_{number}"));
        // Made-up users are asked for as much work as real ones, and tests measure that.
        admin.query(&format!("drop role t33_{number}")).unwrap();
    }
}

pub fn t34_anything_else_between_sasl_messages_is_refused() {
    for (tag, body) in
        [(b'Q', text("select 1")), (b'X', vec![]), (b'd', vec![1]), (b'S', vec![]), (b'f', text("x"))]
    {
        let mut wire = cluster().knock();
        wire.expect_message().unwrap();
        wire.send(tag, &body).unwrap();
        let refusal = wire.expect_refusal();
        assert!(["08P01", "28000", "closed"].contains(&refusal.code.as_str()), "{refusal:?}");
        let mut wire = cluster().knock();
        wire.expect_message().unwrap();
        scram::ask(&mut wire, &Exchange::bound("x")).unwrap();
        wire.send(tag, &body).unwrap();
        let refusal = wire.expect_refusal();
        assert!(["08P01", "28000", "28P01", "closed"].contains(&refusal.code.as_str()), "{refusal:?}");
    }
    let mut wire = cluster().knock();
    wire.expect_message().unwrap();
    scram::ask(&mut wire, &Exchange::bound("x")).unwrap();
    let again = scram::initial_response(PLAIN, "n,,n=,r=0123456789abcdefghij");
    for _ in 0..21 {
        if wire.send(b'p', &again).is_err() {
            break;
        }
    }
    // Whoever goes on sending after a refusal may find the connection closed before the refusal is read.
    let refusal = wire.expect_refusal();
    assert!(["08P01", "28000", "28P01", "closed"].contains(&refusal.code.as_str()), "{refusal:?}");
}

pub fn t35_scram_messages_that_bend_the_rules_are_refused() {
    let right = Exchange::unbound(&cluster().password);
    for (what, wrong) in [
        ("an authorization identity", Exchange { header: "n,a=admin,".into(), ..right.clone() }),
        ("a mandatory extension", Exchange { extension: "m=x,".into(), ..right.clone() }),
        ("an empty nonce", Exchange { nonce: Some(String::new()), ..right.clone() }),
        (
            "a nonce with a control character",
            Exchange { nonce: Some("abc\x01defghijklmnop".into()), ..right.clone() },
        ),
        ("only the client's nonce", Exchange { final_nonce: Some("0123456789".into()), ..right.clone() }),
        ("the mechanism in small letters", Exchange { mechanism: "scram-sha-256".into(), ..right.clone() }),
        ("another mechanism", Exchange { mechanism: "PLAIN".into(), ..right.clone() }),
        ("SHA-1", Exchange { mechanism: "SCRAM-SHA-1".into(), ..right.clone() }),
        ("no gs2 header", Exchange { header: String::new(), ..right.clone() }),
        ("a binding without PLUS", Exchange { header: "p=tls-server-end-point,,".into(), ..right.clone() }),
    ] {
        let refusal = cluster().sign_in_by(&wrong).err().unwrap_or_else(|| panic!("{what} was let in"));
        assert!(["08P01", "28000", "28P01", "0A000"].contains(&refusal.code.as_str()), "{what}: {refusal:?}");
    }
}

pub fn t35_a_replayed_exchange_is_refused() {
    // The same client nonce twice: the server's half must differ, and an old proof must not fit.
    let exchange = Exchange { nonce: Some("the-same-nonce-twice".into()), ..Exchange::unbound("x") };
    let mut nonces = Vec::new();
    for _ in 0..2 {
        let mut wire = cluster().knock();
        wire.expect_message().unwrap();
        nonces.push(scram::ask(&mut wire, &exchange).unwrap().0.nonce);
    }
    assert_ne!(nonces[0], nonces[1]);
}

pub fn t36_a_right_password_never_helps_a_wrong_one() {
    for _ in 0..5 {
        drop(cluster().sign_in());
        let refusal = cluster().with_user("maria", "wrong").try_sign_in().err().expect("wrong password");
        assert_eq!(refusal.code, "28P01");
    }
}

pub fn t37_the_same_user_in_two_clusters_never_crosses() {
    let (one, other) = (cluster(), cloud().cluster("second-cluster", &[]));
    assert_ne!(one.password, other.password);
    one.sign_in().query("create table t37_here (x int)").unwrap();
    for _ in 0..4 {
        assert_eq!(one.sign_in().value("select to_regclass('t37_here') is not null"), "t");
        assert_eq!(other.sign_in().value("select to_regclass('t37_here') is not null"), "f");
        for (asked, password) in [(one, &other.password), (&other, &one.password)] {
            assert_eq!(
                asked.with_user("maria", password).try_sign_in().err().expect("crossed").code,
                "28P01"
            );
        }
    }
}

pub fn t38_expired_disabled_and_dropped_roles_are_refused_within_a_second() {
    let shared = cluster();
    let person = shared.with_new_user("t38_person");
    drop(person.sign_in());
    let mut admin = shared.sign_in();
    let refused_soon = |why: &str| {
        let refusal = eventually(why, PATIENCE, || person.try_sign_in().err());
        assert!(["28P01", "28000"].contains(&refusal.code.as_str()), "{why}: {refusal:?}");
    };
    let welcome_soon = || eventually("let in again", PATIENCE, || person.try_sign_in().ok());
    admin.query("alter role t38_person valid until '2020-01-01'").unwrap();
    refused_soon("VALID UNTIL in the past");
    admin.query("alter role t38_person valid until 'infinity'").unwrap();
    welcome_soon();
    admin.query("alter role t38_person valid until now()::timestamptz::text").err();
    admin.query("alter role t38_person nologin").unwrap();
    refused_soon("NOLOGIN");
    admin.query("alter role t38_person login").unwrap();
    welcome_soon();
    admin.query("drop role t38_person").unwrap();
    refused_soon("dropped");
}

pub fn t39_a_new_password_works_at_once_and_the_old_one_never_again() {
    let shared = cluster();
    let person = shared.with_new_user("t39_person");
    drop(person.sign_in());
    let mut own = person.sign_in();
    own.query("alter role t39_person password 'second-Password-9'").unwrap();
    let renewed = person.with_user("t39_person", "second-Password-9");
    assert_eq!(renewed.sign_in().value("select 1"), "1");
    assert_eq!(person.try_sign_in().err().expect("the old password").code, "28P01");
    let made = cloud().json(["user", "password", &shared.name, "t39_person"]);
    let third = person.with_user("t39_person", made["password"].as_str().expect("a password"));
    assert_eq!(third.sign_in().value("select 1"), "1");
    assert_eq!(renewed.try_sign_in().err().expect("the old password").code, "28P01");
}

pub fn a_name_with_quotes_and_spaces_signs_in_as_exactly_itself() {
    let mut admin = cluster().sign_in();
    for name in [
        "o'brien",
        "two words",
        "quo\"te",
        "back\\slash",
        "ünïcode",
        "UPPER",
        "com,ma",
        "#hash",
        "+plus",
        "all",
    ] {
        let quoted = name.replace('"', "\"\"");
        admin.query(&format!("create role \"{quoted}\" login password 'pass-word-1'")).unwrap();
        let mut wire = cluster().with_user(name, "pass-word-1").sign_in();
        assert_eq!(wire.value("select session_user"), name);
    }
}

pub fn t43_the_most_verbose_log_holds_no_secret() {
    let shared = cluster();
    let person = shared.with_new_user("t43_person");
    let mut wire = person.sign_in();
    wire.query("alter role t43_person password 'Changed-Secret-43'").unwrap();
    let changed = person.with_user("t43_person", "Changed-Secret-43");
    let wire = changed.sign_in();
    let _ = person.try_sign_in();
    let (process, secret) = wire.cancel_key.clone().expect("a session has a key");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let administrator = std::fs::read_to_string(cloud().data().join("admin-key")).expect("the key file");
    let number = <[u8; 4]>::try_from(&secret[..]).map(u32::from_be_bytes).ok();
    let salt = {
        let mut wire = changed.knock();
        wire.expect_message().unwrap();
        scram::ask(&mut wire, &Exchange::bound("x")).unwrap().0.salt
    };
    let log = cloud().log();
    assert!(log.len() > 1_000, "there is a log to search");
    for (what, needle) in [
        ("the generated password", person.password.clone()),
        ("the chosen password", "Changed-Secret-43".to_owned()),
        ("the shared password", shared.password.clone()),
        ("a verifier", "SCRAM-SHA-256$".to_owned()),
        ("the salt", salt),
        ("the cancel key", hex(&secret)),
        ("the cancel key", BASE64.encode(&secret)),
        ("the cancel key", number.map_or("no four-byte key".into(), |number| number.to_string())),
        ("a private key", "PRIVATE KEY".to_owned()),
        ("the administrator's key", administrator.trim().to_owned()),
    ] {
        assert!(!log.contains(&needle), "{what} stands in the log (process {process})");
    }
}

pub fn a_sign_in_that_is_repeated_on_the_same_connection_is_refused() {
    let mut wire = cluster().sign_in();
    let own = cluster().parameters();
    let all: Vec<(&str, &str)> = own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    wire.send_raw(&startup(PROTOCOL_3_0, &all)).unwrap();
    assert!(wire.is_closed_within(AT_ONCE));
}

pub fn the_server_proves_that_it_knows_the_password() {
    // `scram::prove` checks the server's signature; here a wrong password must fail before it is ever sent.
    let mut wire: Wire = cluster().knock();
    wire.expect_message().unwrap();
    let refusal = scram::prove(&mut wire, &Exchange::bound("wrong")).expect_err("refused");
    assert_eq!(refusal.fields.get(&'S').map(String::as_str), Some("FATAL"));
}
