//! Credentials at key services that are wrong, ended or replaced by a mistake: no cluster pays for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use house::command::eventually;
use house::key_services::{Bao, set_service};
use house::keys::SOON;
use house::{Cloud, Cluster, Wire};
use serde_json::{Value, json};

use crate::keys::world;

/// A cluster with a row, its key at the service.
fn with_a_row<'cloud>(cloud: &'cloud Cloud, name: &str, key: &Value) -> Cluster<'cloud> {
    let one = cloud.cluster(name, &[]);
    one.sign_in().query("create table kept (x int); insert into kept values (42)").unwrap();
    one.enable_key(key);
    one
}

/// The session is not cut for longer than several looks at the service.
#[track_caller]
fn lives_on(session: &mut Wire) {
    let backend = session.value("select pg_backend_pid()");
    for _ in 0..4 {
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(session.value("select pg_backend_pid()"), backend);
    }
}

fn wakes(one: &Cluster<'_>) {
    one.sleep();
    one.await_rest();
    assert_eq!(one.sign_in().value("select x from kept"), "42");
}

fn vault(address: &str, token: &str) -> Value {
    json!({ "type": "VAULT_TRANSIT", "address": address, "credentials": { "token": token } })
}

fn revoke_token(bao: &Bao, token: &str) {
    bao.admin("POST", "auth/token/revoke", &json!({ "token": token }));
}

pub fn credentials_that_end_cut_nobody_and_what_sleeps_says_why_it_does_not_wake() {
    let bao = world::bao();
    let cloud = Cloud::start(world::options(&[]));
    bao.make_key("ending");
    bao.permit("ending", "ending");
    let token = bao.token("ending");
    set_service(&cloud, "ending", &vault(&bao.url(), &token)).ok();
    let key = bao.key("ending", "ending");
    let [running, waiting] = ["ending-runs", "ending-sleeps"].map(|name| with_a_row(&cloud, name, &key));
    let mut session = running.sign_in();
    waiting.sleep();
    waiting.await_rest();
    revoke_token(&bao, &token);

    let alerts = eventually("the operator is told", SOON, || {
        let alerts = cloud.json(["status"])["alerts"].to_string();
        (alerts.contains("does not accept the credentials") && alerts.contains("ending-sleeps"))
            .then_some(alerts)
    });
    assert!(alerts.contains("chitin key service set ending") && !alerts.contains("critical"), "{alerts}");
    assert!(!alerts.contains(&token), "{alerts}");
    lives_on(&mut session);
    assert_eq!(running.key_status(), "ENABLED", "no revocation");
    let refusal = waiting.try_sign_in().err().expect("its key cannot be had");
    assert_eq!(refusal.code, "57P03", "{refusal:?}");
    assert!(refusal.message.contains("does not accept the credentials"), "{refusal:?}");
    let said = cloud.chitin(["cluster", "wake", "ending-sleeps"]).refused();
    assert!(said.contains("chitin key service set"), "{said}");
    assert_eq!(waiting.keys()["outage"]["are_credentials_refused"], true);
    for name in ["ending-runs", "ending-sleeps"] {
        let shown = cloud.chitin(["cluster", "show", name]).ok();
        assert!(shown.contains("DOES NOT ACCEPT THE CREDENTIALS"), "{shown}");
        assert!(shown.contains("chitin key service set ending"), "{shown}");
    }

    // Others that are good end it, without a person at either cluster.
    let other = bao.token("ending");
    set_service(&cloud, "ending", &vault(&bao.url(), &other)).ok();
    let mut woken = eventually("what slept wakes", SOON, || waiting.try_sign_in().ok());
    assert_eq!(woken.value("select x from kept"), "42");
    eventually("the alert goes", SOON, || (cloud.json(["status"])["alerts"] == json!([])).then_some(()));
    lives_on(&mut session);

    // Whoever takes the right to the key away is believed; and whoever spoils the credentials then opens nothing.
    bao.forbid("ending");
    eventually("the session ends", SOON, || session.query("select 1").err());
    running.await_key("REVOKED");
    running.await_rest();
    revoke_token(&bao, &other);
    eventually("the refusal is seen", SOON, || {
        (running.keys()["outage"]["are_credentials_refused"] == true).then_some(())
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(running.key_status(), "REVOKED");
    assert!(!running.is_unlocked() && running.engine_processes().is_empty());
    assert_eq!(running.try_sign_in().err().expect("nobody gets in").code, "57P03");
    bao.permit("ending", "ending");
    set_service(&cloud, "ending", &vault(&bao.url(), &bao.token("ending"))).ok();
    running.await_key("ENABLED");
    let mut session = eventually("it comes back", SOON, || running.try_sign_in().ok());
    assert_eq!(session.value("select x from kept"), "42");
    cloud.stop();
}

fn token_file(cloud: &Cloud, text: &str, mode: u32) -> PathBuf {
    let path = cloud.scratch().join(format!("token-{mode:o}"));
    fs::write(&path, text).expect("a scratch file");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
    path
}

/// What is set over good credentials is refused, says why and how to insist, and shows no secret.
#[track_caller]
fn is_refused(cloud: &Cloud, name: &str, wrong: &Value, why: &str) {
    let said = set_service(cloud, name, wrong).refused(400);
    for part in [why, "--force", "nothing was changed"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("canary"), "{said}");
}

pub fn a_typo_over_good_credentials_is_refused_and_cuts_nobody() {
    let (bao, cloud) = (world::bao(), world::native());
    bao.make_key("typos");
    bao.permit("typos", "typos");
    let token = bao.token("typos");
    let good = vault(&bao.url(), &token);
    set_service(cloud, "typos", &good).ok();
    let one = with_a_row(cloud, "typos-vault", &bao.key("typos", "typos"));
    let mut session = one.sign_in();
    is_refused(cloud, "typos", &vault(&bao.url(), "canary-typo"), "does not accept the token");
    let role = json!({ "role_id": "canary-role", "secret_id": "canary-secret" });
    let by_role = json!({ "type": "VAULT_TRANSIT", "address": bao.url(), "credentials": role });
    is_refused(cloud, "typos", &by_role, "does not let us sign in by AppRole");
    // A token that is good, and not for this key.
    bao.permit("others", "others");
    is_refused(cloud, "typos", &vault(&bao.url(), &bao.token("others")), "permission denied");
    // Nobody is there.
    let nowhere = set_service(cloud, "typos", &vault("http://127.0.0.1:9", &token));
    assert!(nowhere.status == 503 && nowhere.text.contains("--force"), "{nowhere:?}");
    // Another service that holds a key of the same name, which wraps and unwraps as well, and opens nothing of ours.
    let stranger = Bao::start();
    stranger.make_key("typos");
    stranger.permit("typos", "typos");
    is_refused(cloud, "typos", &vault(&stranger.url(), &stranger.token("typos")), "does not open");

    // By the command too, from a file that only its owner can read.
    let set = |path: &PathBuf, more: &[&str]| {
        let path = path.to_str().expect("UTF-8");
        let line = ["key", "service", "set", "typos", "--token-file", path];
        let line: Vec<&str> = line.iter().chain(more).copied().collect();
        house::command::run(&mut cloud.command_of(&line))
    };
    for mode in [0o644, 0o640, 0o602] {
        let path = token_file(cloud, &token, mode);
        let said = set(&path, &[]).refused();
        let words = format!("{} can be read by others (mode {mode:o}); run: chmod 600", path.display());
        assert!(said.contains(&words) && !said.contains(&token), "{said}");
    }
    let typo = token_file(cloud, "canary-typo", 0o600);
    let said = set(&typo, &[]).refused();
    assert!(said.contains("does not accept the token") && said.contains("--force"), "{said}");
    assert!(!said.contains("canary"), "{said}");
    lives_on(&mut session);
    assert_eq!(one.keys()["outage"], Value::Null, "the good ones are still in use");
    wakes(&one);

    // Whoever insists gets it, and even then nobody is cut.
    let mut session = one.sign_in();
    set(&typo, &["--force"]).ok();
    eventually("the refusal is seen", SOON, || {
        (one.keys()["outage"]["are_credentials_refused"] == true).then_some(())
    });
    lives_on(&mut session);
    set(&token_file(cloud, &token, 0o400), &[]).ok();
    eventually("it is over", SOON, || (one.keys()["outage"] == Value::Null).then_some(()));
    wakes(&one);
}

pub fn a_typo_over_a_good_access_key_or_pin_is_refused_and_cuts_nobody() {
    let cloud = world::native();
    let aws = world::aws();
    set_service(cloud, "typos-aws", &aws.service()).ok();
    let key =
        json!({ "type": "AWS_KMS", "uri": aws.new_key(), "auth_principal": "", "service": "typos-aws" });
    let at_aws = with_a_row(cloud, "typos-aws", &key);
    let with = |mut service: Value, member: &str, value: &str| {
        service["credentials"][member] = value.into();
        service
    };
    let wrong = with(aws.service(), "secret_access_key", "canary/canary/canary/canary/canary/canary");
    is_refused(cloud, "typos-aws", &wrong, "AWS does not accept the credentials");
    let wrong = with(aws.service(), "access_key_id", "AKIAIOSFODNN7CANARY");
    let said = set_service(cloud, "typos-aws", &wrong).refused(400);
    assert!(said.contains("AWS does not accept the credentials") && said.contains("--force"), "{said}");

    let hsm = world::hsm();
    set_service(cloud, "typos-hsm", &hsm.service()).ok();
    hsm.make_key("typos", "71");
    let key = json!({ "type": "PKCS11", "uri": "pkcs11:token=chitin;object=typos", "auth_principal": "", "service": "typos-hsm" });
    let in_hsm = with_a_row(cloud, "typos-hsm", &key);
    let wrong = with(hsm.service(), "pin", "canary99");
    is_refused(cloud, "typos-hsm", &wrong, "the token refuses the PIN");
    for one in [&at_aws, &in_hsm] {
        lives_on(&mut one.sign_in());
        wakes(one);
    }
    // What is right passes.
    set_service(cloud, "typos-aws", &aws.service()).ok();
    set_service(cloud, "typos-hsm", &hsm.service()).ok();
}
