//! Credentials at key services that are wrong or ended: no cluster pays for it.

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
