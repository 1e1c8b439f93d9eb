//! A key service that gives no answer: what runs goes on, what sleeps waits, and nobody else is touched.

use std::time::Duration;

use house::Cloud;
use house::command::eventually;
use house::key_services::Bao;
use house::keys::SOON;

use crate::keys::world;

pub fn while_the_service_is_silent_what_runs_goes_on_and_what_sleeps_waits_for_it() {
    // Its own, since it is shut.
    let bao = Bao::start();
    let cloud = Cloud::start(world::options(&[]));
    let names = ["goes-on", "waits-long"];
    let [running, waiting] = names.map(|name| {
        let key = bao.tenant(&cloud, name);
        let one = cloud.cluster(name, &[]);
        one.sign_in().query("create table kept (x int); insert into kept values (42)").unwrap();
        one.enable_key(&key);
        one
    });
    let other = cloud.cluster("not-concerned", &[]);
    let mut session = running.sign_in();
    let backend = session.value("select pg_backend_pid()");
    waiting.sleep();
    waiting.await_rest();
    bao.door.shut();

    let alert = eventually("the operator is told", SOON, || {
        let alerts = cloud.json(["status"])["alerts"].to_string();
        alerts.contains("does not answer").then_some(alerts)
    });
    assert!(alert.contains("goes-on") && alert.contains("next_step"), "{alert}");
    let told = cloud.chitin(["status"]).ok();
    assert!(told.contains("goes-on") && told.contains("does not answer"), "{told}");
    // Longer than several looks at the service.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(session.value("select pg_backend_pid()"), backend);
    }
    assert_eq!(running.key_status(), "ENABLED");
    assert_eq!(running.sign_in().value("select x from kept"), "42", "a new session of a cluster that runs");

    let refusal = waiting.try_sign_in().err().expect("a cluster without its key cannot start");
    assert_eq!(refusal.code, "57P03", "{refusal:?}");
    assert!(refusal.message.contains("gives no answer"), "{refusal:?}");
    let said = cloud.chitin(["cluster", "wake", "waits-long"]).refused();
    assert!(said.contains("answer"), "{said}");
    assert!(waiting.engine_processes().is_empty());
    assert_eq!(waiting.key_status(), "ENABLED", "silence is no revocation");
    assert_eq!(other.sign_in().value("select 1"), "1", "another cluster is touched");

    // A restart in the outage changes nothing but that nobody has a running engine any more.
    cloud.stop();
    cloud.boot();
    assert_eq!(running.try_sign_in().err().expect("no key").code, "57P03");
    assert_eq!(other.sign_in().value("select 1"), "1");

    bao.door.open();
    for one in [&running, &waiting] {
        let mut session = eventually("it works by itself again", SOON, || one.try_sign_in().ok());
        assert_eq!(session.value("select x from kept"), "42");
    }
    eventually("the alert goes", SOON, || {
        let alerts = cloud.json(["status"])["alerts"].to_string();
        (!alerts.contains("does not answer")).then_some(())
    });
    cloud.stop();
}

pub fn a_cluster_whose_service_was_silent_starts_by_itself_without_a_client() {
    let bao = Bao::start();
    let cloud = Cloud::start(world::options(&[]));
    let key = bao.tenant(&cloud, "retried");
    let one = cloud.cluster("retried", &["--plan", "dedicated", "--allow", "127.0.0.0/8"]);
    one.enable_key(&key);
    cloud.kill();
    bao.door.shut();
    cloud.boot();
    eventually("a start was tried and failed", SOON, || (one.phase() == "broken").then_some(()));
    bao.door.open();
    eventually("it runs", SOON, || (one.phase() == "running").then_some(()));
    assert_eq!(one.sign_in().value("select 1"), "1");
    cloud.stop();
}
