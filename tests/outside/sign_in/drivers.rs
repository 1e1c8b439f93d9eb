//! The clients that people have, signing in with certificates and tokens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::sign_in::cloud;
use house::authority::{Authority, Identity, Leaf};
use house::command::{Finished, run, run_with};
use house::provider::Provider;
use house::{Caller, Cluster};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What each client is started with.
fn clients() -> Vec<(&'static str, Vec<String>)> {
    let path = |path: &str| here(path).to_str().expect("ASCII").to_owned();
    let psql = ["psql", "-X", "-A", "-t", "-c", "select 'signed in as ' || session_user"];
    vec![
        ("psql", psql.map(str::to_owned).to_vec()),
        (
            "psycopg",
            vec![path("../target/test-clients/python/bin/python"), path("clients/python/sign_in.py")],
        ),
        ("node-postgres", vec!["node".into(), path("clients/node/sign_in.js")]),
        (
            "JDBC",
            vec![
                "java".into(),
                "-cp".into(),
                "/usr/share/java/postgresql.jar".into(),
                path("clients/jdbc/SignIn.java"),
            ],
        ),
    ]
}

fn start(one: &Cluster<'_>, words: &[String], change: impl FnOnce(&mut Command)) -> Finished {
    let mut command = one.client(&words[0], &[]);
    command.args(&words[1..]).env_remove("PGPASSWORD");
    change(&mut command);
    run_with(&mut command, b"", Duration::from_secs(90))
}

fn holding(command: &mut Command, identity: &Identity) {
    let der = identity.key.with_extension("der");
    let mut convert = Command::new("openssl");
    convert
        .args(["pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in"])
        .arg(&identity.key)
        .arg("-out")
        .arg(&der);
    run(&mut convert).ok();
    command.env("PGSSLCERT", &identity.chain).env("PGSSLKEY", &identity.key).env("PGSSLKEY_DER", der);
}

pub fn clients_sign_in_with_certificates() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let root = Authority::root(scratch.path(), "root");
    let middle = root.intermediate("middle", &[]);
    let one = cloud().cluster("drivers-certs", &[]);
    one.set_authorities(&root.pem());
    one.set_rules("host all all all cert\n");
    let (good, other) = (middle.issue(&Leaf::of("maria")), root.issue(&Leaf::of("bob")));
    for (name, words) in clients() {
        let said = start(&one, &words, |command| holding(command, &good)).ok();
        assert!(said.contains("signed in as maria"), "{name}: {said}");
        let said = start(&one, &words, |command| holding(command, &other)).refused();
        assert!(said.contains("certificate authentication failed for user"), "{name}: {said}");
        let said = start(&one, &words, |command| {
            command.env("PGPASSWORD", &one.password);
        });
        assert!(said.refused().contains("requires a valid client certificate"), "{name}");
    }
}

pub fn clients_sign_in_with_tokens() {
    let provider = Provider::start("RS256");
    let one = cloud().cluster("drivers-tokens", &[]);
    one.set_provider("corp", &provider.settings()).ok();
    let (token, stale) =
        (provider.token("maria"), provider.token_with("maria", &serde_json::json!({ "exp": 1_000_000_000 })));
    let by_option = format!("--cluster={} --crdb:jwt_auth_enabled=true", one.handle);
    for (name, words) in clients() {
        for rules in ["", "host all all all jwt\n"] {
            one.set_rules(rules);
            let with = |secret: &str| {
                start(&one, &words, |command| {
                    command.env("PGPASSWORD", secret);
                    if rules.is_empty() {
                        command.env("PGOPTIONS", &by_option);
                    }
                })
            };
            let said = with(&token).ok();
            assert!(said.contains("signed in as maria"), "{name}: {said}");
            let said = with(&stale).refused();
            assert!(said.contains("JWT authentication: "), "{name}: {said}");
        }
    }
    // A password still signs in beside it: whoever does not say that it brings a token is asked as ever.
    one.set_rules("");
    one.welcome(&Caller::with(&one.password));
}
