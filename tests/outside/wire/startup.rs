//! The startup message: how a client names its cluster, and what it may ask for.

use house::scram::{self, Exchange};
use house::shared::{cloud, cluster};
use house::wire::AT_ONCE;
use house::wire::{PROTOCOL_3_0, Refusal, Wire, startup};

fn refusal_of(packet: &[u8]) -> Refusal {
    let mut wire = cloud().encrypted();
    wire.send_raw(packet).unwrap();
    wire.expect_refusal()
}

fn sign_in_with(parameters: &[(&str, &str)], server_name: &str) -> Result<Wire, Refusal> {
    let mut wire = Wire::tcp(cloud().sql_address());
    assert_eq!(wire.ask_for_tls().unwrap(), b'S');
    wire.handshake(cloud().trust(), server_name).map_err(|error| Refusal::closed(&error.to_string()))?;
    wire.send_raw(&startup(PROTOCOL_3_0, parameters)).unwrap();
    wire.expect_message()?;
    scram::prove(&mut wire, &Exchange::bound(&cluster().password))?;
    wire.expect_ready()?;
    Ok(wire)
}

pub fn every_documented_way_to_name_the_cluster_works() {
    let handle = &cluster().handle;
    let host = format!("{handle}.localhost");
    let prefixed = format!("{handle}.defaultdb");
    let flags =
        [format!("--cluster={handle}"), format!("-c cluster={handle}"), format!("-ccluster={handle}")];
    for flag in &flags {
        let mut wire =
            sign_in_with(&[("user", "maria"), ("database", "defaultdb"), ("options", flag)], "localhost")
                .unwrap();
        assert_eq!(wire.value("select current_database()"), "defaultdb", "{flag}");
    }
    let mut wire = sign_in_with(&[("user", "maria"), ("database", &prefixed)], "localhost").unwrap();
    assert_eq!(wire.value("select current_database()"), "defaultdb");
    let mut wire = sign_in_with(&[("user", "maria"), ("database", "defaultdb")], &host).unwrap();
    assert_eq!(wire.value("select current_user"), "maria");
    let all = [("user", "maria"), ("database", prefixed.as_str()), ("options", flags[0].as_str())];
    sign_in_with(&all, &host).unwrap();
}

pub fn a_client_that_names_no_cluster_is_told_so() {
    let refusal = refusal_of(&startup(PROTOCOL_3_0, &[("user", "maria"), ("database", "defaultdb")]));
    assert!(refusal.message.contains("missing cluster identifier"), "{refusal:?}");
}

pub fn contradicting_cluster_names_are_refused() {
    let other = "other-cluster-2.defaultdb".to_owned();
    let flag = format!("--cluster={}", cluster().handle);
    let refusal =
        refusal_of(&startup(PROTOCOL_3_0, &[("user", "maria"), ("database", &other), ("options", &flag)]));
    assert!(refusal.message.contains("multiple different cluster identifiers provided"), "{refusal:?}");
    let twice = format!("{flag} {flag}");
    let refusal =
        refusal_of(&startup(PROTOCOL_3_0, &[("user", "maria"), ("database", "x"), ("options", &twice)]));
    assert!(refusal.message.contains("multiple cluster flags provided"), "{refusal:?}");
}

pub fn a_wrong_name_with_a_right_number_is_nobody() {
    let (_, number) = cluster().handle.rsplit_once('-').unwrap();
    let flag = format!("--cluster=another-name-{number}");
    let parameters = [("user", "maria"), ("database", "defaultdb"), ("options", flag.as_str())];
    let refusal = sign_in_with(&parameters, "localhost").err().expect("refused");
    assert_eq!(refusal.code, "28P01", "{refusal:?}");
}

pub fn t17_names_beyond_the_limit_get_a_defined_error() {
    let flag = format!("--cluster={}", cluster().handle);
    for length in [63, 64, 1_023, 1_024, 9_000] {
        let name = "u".repeat(length);
        let mut wire = cloud().encrypted();
        let parameters = [("user", name.as_str()), ("database", "defaultdb"), ("options", flag.as_str())];
        wire.send_raw(&startup(PROTOCOL_3_0, &parameters)).unwrap();
        let refusal = wire
            .expect_message()
            .and_then(|_| scram::prove(&mut wire, &Exchange::bound("wrong")).map(drop))
            .expect_err("nobody has this name");
        assert!(["28P01", "28000", "08P01"].contains(&refusal.code.as_str()), "{length} bytes: {refusal:?}");
    }
    for length in [65_535, 65_536] {
        let name = "u".repeat(length);
        let mut wire = cloud().encrypted();
        let _ = wire.send_raw(&startup(PROTOCOL_3_0, &[("user", &name), ("options", &flag)]));
        assert!(wire.is_closed_within(AT_ONCE), "{length} bytes");
    }
}

pub fn t17_long_passwords_sign_in_and_oversized_proofs_do_not() {
    let password = "p".repeat(1_024);
    let verifier = scram::verifier(&password, b"0123456789abcdef", 4_096);
    let mut admin = cluster().sign_in();
    admin.query(&format!("create role t17_long login password '{verifier}'")).unwrap();
    cluster().with_user("t17_long", &password).sign_in();
    let mut wire = cluster().knock();
    wire.expect_message().unwrap();
    let oversized = scram::initial_response(scram::PLAIN, &format!("n,,n=,r={}", "x".repeat(65_536)));
    let _ = wire.send(b'p', &oversized);
    assert!(wire.is_closed_within(AT_ONCE));
}

pub fn t21_malformed_parameter_lists_are_refused() {
    let raw = |parameters: &[u8]| {
        let mut packet = u32::try_from(parameters.len() + 8).unwrap().to_be_bytes().to_vec();
        packet.extend(PROTOCOL_3_0.to_be_bytes());
        packet.extend(parameters);
        refusal_of(&packet)
    };
    for (what, parameters) in [
        ("a name without a value", &b"user\0maria\0database\0\0"[..]),
        ("no last zero", b"user\0maria\0"),
        ("text after the end", b"user\0maria\0\0database\0x\0\0"),
        ("nothing at all", b""),
        ("a value that does not end", b"user\0maria"),
        ("a name that is not UTF-8", b"user\0\xff\xfe\0\0"),
        ("no user", b"database\0defaultdb\0\0"),
        ("user twice", b"user\0maria\0user\0admin\0\0"),
    ] {
        let refusal = raw(parameters);
        assert!(
            ["08P01", "28000", "08004", "closed"].contains(&refusal.code.as_str()),
            "{what}: {refusal:?}"
        );
    }
}

pub fn t21_a_million_parameters_are_closed_unread() {
    let mut wire = cloud().encrypted();
    let mut packet = 8_000_013_u32.to_be_bytes().to_vec();
    packet.extend(PROTOCOL_3_0.to_be_bytes());
    packet.extend(b"aaa\0bbb\0".repeat(1_000));
    let _ = wire.send_raw(&packet);
    assert!(wire.is_closed_within(AT_ONCE));
    let many: Vec<(String, String)> = (0..3_000).map(|number| (format!("p{number}"), "v".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut wire = cloud().encrypted();
    let _ = wire.send_raw(&startup(PROTOCOL_3_0, &many));
    assert!(wire.is_closed_within(AT_ONCE));
}

pub fn t22_protocol_negotiation_is_answered_exactly_once() {
    let mut wire = cloud().encrypted();
    let mut parameters = cluster().parameters();
    parameters.push(("_pq_.compression".into(), "zstd".into()));
    let all: Vec<(&str, &str)> =
        parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    wire.send_raw(&startup((3 << 16) + 9_999, &all)).unwrap();
    let first = wire.expect_message().unwrap();
    assert_eq!(first.tag, b'v', "NegotiateProtocolVersion comes first");
    let newest = u32::from_be_bytes(first.body[..4].try_into().unwrap()) & 0xffff;
    assert!(newest <= 2, "offers minor version {newest}");
    assert_eq!(first.body[4..8], [0, 0, 0, 1]);
    assert_eq!(&first.body[8..], b"_pq_.compression\0");
    assert_eq!(wire.expect_message().unwrap().tag, b'R', "then sign-in, and no second negotiation");
    scram::prove(&mut wire, &Exchange::bound(&cluster().password)).unwrap();
    wire.expect_ready().unwrap();
    assert_eq!(wire.value("select 1"), "1");
}

pub fn other_protocol_versions_are_refused() {
    for version in [0_u32, 2 << 16, 4 << 16, 1234 << 16 | 1] {
        let refusal = refusal_of(&startup(version, &[("user", "maria")]));
        assert!(["0A000", "08P01", "closed"].contains(&refusal.code.as_str()), "{version:#x}: {refusal:?}");
    }
}

pub fn t40_users_that_are_not_people_never_sign_in() {
    let shared = cluster();
    for name in
        ["admin", "chitin", "postgres", "root", "node", "public", "none", "pg_monitor", "template1", ""]
    {
        let refusal = shared.with_user(name, &shared.password).try_sign_in().err().expect(name);
        assert!(["28P01", "28000", "08P01"].contains(&refusal.code.as_str()), "{name:?}: {refusal:?}");
    }
    for database in ["chitin_internal", "template0", "template1"] {
        let mut wire = shared.knock_with(&[("database", database)]);
        let refusal = wire
            .expect_message()
            .and_then(|_| scram::prove(&mut wire, &Exchange::bound(&shared.password)).map(drop))
            .and_then(|()| wire.expect_ready().map(drop))
            .expect_err(database);
        let codes = ["3D000", "42501", "55000", "28000", "28P01"];
        assert!(codes.contains(&refusal.code.as_str()), "{database}: {refusal:?}");
    }
}

pub fn a_database_that_does_not_exist_is_told_after_sign_in_only() {
    let shared = cluster();
    let mut wire = shared.knock_with(&[("database", "nowhere")]);
    wire.expect_message().unwrap();
    let refusal = scram::prove(&mut wire, &Exchange::bound("wrong")).expect_err("wrong password");
    assert_eq!(refusal.code, "28P01");
    let mut wire = shared.knock_with(&[("database", "nowhere")]);
    wire.expect_message().unwrap();
    let refusal = scram::prove(&mut wire, &Exchange::bound(&shared.password))
        .and_then(|_| wire.expect_ready())
        .expect_err("no such database");
    assert_eq!(refusal.code, "3D000", "{refusal:?}");
}

pub fn t41_startup_parameters_cannot_reach_beyond_the_allowed_list() {
    let shared = cluster();
    let sign_in = |more: &[(&str, &str)]| -> Result<Wire, Refusal> {
        let mut wire = shared.knock_with(more);
        wire.expect_message()?;
        scram::prove(&mut wire, &Exchange::bound(&shared.password))?;
        wire.expect_ready()?;
        Ok(wire)
    };
    let mut wire = sign_in(&[("application_name", "t41"), ("search_path", "t41_path")]).unwrap();
    assert_eq!(wire.value("show application_name"), "t41");
    assert_eq!(wire.value("show search_path"), "t41_path");
    for (name, value) in [
        ("session_preload_libraries", "/tmp/evil.so"),
        ("local_preload_libraries", "evil"),
        ("role", "chitin"),
        ("session_authorization", "chitin"),
        ("log_statement", "none"),
        ("replication", "true"),
        ("replication", "database"),
        ("crdb:remote_addr", "203.0.113.9"),
    ] {
        if let Ok(mut wire) = sign_in(&[(name, value)]) {
            assert_eq!(wire.value("select session_user || current_user"), "mariamaria", "{name}");
            if !matches!(name, "role" | "replication" | "crdb:remote_addr") {
                assert_ne!(wire.value(&format!("show {name}")), value, "{name} was set from outside");
            }
            assert!(wire.query("IDENTIFY_SYSTEM").is_err(), "a replication connection was given");
        }
    }
    let flag = format!("--cluster={} -c session_preload_libraries=evil", shared.handle);
    if let Ok(mut wire) = sign_in(&[("options", &flag)]) {
        assert_ne!(wire.value("show session_preload_libraries"), "evil");
    }
    let flag = format!("--cluster={} -c statement_timeout=4321", shared.handle);
    let mut wire = sign_in(&[("options", &flag)]).unwrap();
    assert_eq!(wire.value("show statement_timeout"), "4321ms");
}
