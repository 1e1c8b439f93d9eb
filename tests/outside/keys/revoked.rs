//! A key that is taken away, by the customer or at the service, and given back.

use std::time::{Duration, Instant};

use house::command::eventually;
use house::keys::SOON;
use house::machine::assert_within;
use house::{Cloud, Cluster, Refusal, Wire};

use crate::keys::world;

/// Waits until the session is ended, and returns how it was told.
fn the_end_of(session: &mut Wire) -> Refusal {
    eventually("the session ends", SOON, || session.query("select 1").err())
}

/// Nothing runs, the kernel has no key, and nobody gets in; whoever knows the password hears why.
#[track_caller]
fn is_locked_away(one: &Cluster<'_>) {
    let refusal = nobody_gets_in(one);
    assert!(refusal.message.contains("revoked"), "{refusal:?}");
}

#[track_caller]
fn nobody_gets_in(one: &Cluster<'_>) -> Refusal {
    one.await_key("REVOKED");
    one.await_rest();
    assert!(!one.is_unlocked(), "the kernel has the data key: {}", one.keys());
    assert_eq!(one.mounts(), Vec::<String>::new(), "the volume is mounted");
    let refusal = one.try_sign_in().err().expect("nobody gets in");
    assert_eq!(refusal.code, "57P03", "{refusal:?}");
    let said = one.cloud.chitin(["cluster", "wake", &one.name]).refused();
    assert!(said.contains("revoked") || said.contains("may not be used"), "{said}");
    assert!(one.engine_processes().is_empty(), "a wake started the engine");
    refusal
}

fn the_row_is_there(one: &Cluster<'_>) {
    let mut session = eventually("sign-in works again", SOON, || one.try_sign_in().ok());
    assert_eq!(session.value("select x from kept"), "42");
}

fn prepared<'cloud>(cloud: &'cloud Cloud, name: &str, plan: &[&str]) -> Cluster<'cloud> {
    let key = world::bao().tenant(cloud, name);
    let one = cloud.cluster(name, plan);
    one.sign_in().query("create table kept (x int); insert into kept values (42)").unwrap();
    one.enable_key(&key);
    one
}

/// What the customer takes away by itself comes back when the customer says so, and not before.
fn by_the_customer(cloud: &Cloud, name: &str, plan: &[&str]) {
    let one = prepared(cloud, name, plan);
    let mut session = one.sign_in();
    let begun = Instant::now();
    one.revoke_key();
    let end = the_end_of(&mut session);
    assert_eq!(end.code, "57P01", "{end:?}");
    assert!(end.message.contains("revoked"), "{end:?}");
    assert_within(Duration::from_secs(20), begun, "sessions are cut");
    is_locked_away(&one);
    // Said twice it is the same; and nobody goes over to another key meanwhile.
    one.revoke_key();
    let refused = one.ask_for_key("PUT", &world::bao().key(name, name));
    assert!((400..500).contains(&refused.status), "{refused:?}");
    // The service still permits the key; that is not the customer's word.
    std::thread::sleep(Duration::from_secs(3));
    is_locked_away(&one);
    one.restore_key();
    one.await_key("ENABLED");
    the_row_is_there(&one);
}

pub fn a_revoked_key_cuts_sessions_and_locks_until_the_customer_gives_it_back() {
    by_the_customer(world::native(), "revoked-native", &[]);
}

pub fn a_revoked_key_of_a_dedicated_cluster_locks_it_too() {
    by_the_customer(world::native(), "revoked-dedicated", &["--plan", "dedicated", "--allow", "127.0.0.0/8"]);
}

pub fn a_revoked_key_locks_with_gocryptfs_too() {
    by_the_customer(world::fuse(), "revoked-fuse", &[]);
}

/// What the service takes away by itself comes back when the service gives it back, without a person.
fn by_the_service(cloud: &Cloud, name: &str, plan: &[&str]) {
    let bao = world::bao();
    let one = prepared(cloud, name, plan);
    let mut session = one.sign_in();
    bao.forbid(name);
    let end = the_end_of(&mut session);
    assert_eq!(end.code, "57P01", "{end:?}");
    is_locked_away(&one);
    let alerts = cloud.json(["status"])["alerts"].to_string();
    assert!(alerts.contains(name) && alerts.contains("critical"), "{alerts}");
    bao.permit(name, name);
    one.await_key("ENABLED");
    the_row_is_there(&one);
}

pub fn a_key_that_the_service_takes_away_locks_and_comes_back_by_itself() {
    by_the_service(world::native(), "denied-native", &[]);
}

pub fn a_key_that_the_service_takes_away_locks_a_dedicated_cluster_too() {
    by_the_service(world::fuse(), "denied-fuse", &["--plan", "dedicated", "--allow", "127.0.0.0/8"]);
}

pub fn a_revocation_that_the_service_shares_ends_when_the_service_gives_the_key_back() {
    let bao = world::bao();
    let one = prepared(world::native(), "both-ways", &[]);
    one.revoke_key();
    is_locked_away(&one);
    bao.forbid("both-ways");
    eventually("the service's word is known", SOON, || one.keys()["denied"].is_string().then_some(()));
    is_locked_away(&one);
    bao.permit("both-ways", "both-ways");
    one.await_key("ENABLED");
    the_row_is_there(&one);
}

pub fn a_disabled_key_of_aws_locks_and_comes_back_when_it_is_enabled() {
    let (aws, cloud) = (world::aws(), world::native());
    let arn = aws.new_key();
    let (_, id) = arn.split_once(":key/").expect("an ARN");
    let key = serde_json::json!({ "type": "AWS_KMS", "uri": arn, "auth_principal": "", "service": "aws" });
    let one = cloud.cluster("disabled-aws", &[]);
    one.sign_in().query("create table kept (x int); insert into kept values (42)").unwrap();
    one.enable_key(&key);
    let mut session = one.sign_in();
    aws.kms("DisableKey", &serde_json::json!({ "KeyId": id }));
    assert_eq!(the_end_of(&mut session).code, "57P01");
    is_locked_away(&one);
    aws.kms("EnableKey", &serde_json::json!({ "KeyId": id }));
    one.await_key("ENABLED");
    the_row_is_there(&one);
}

pub fn neither_a_restart_nor_a_kill_brings_a_revoked_cluster_up() {
    let bao = world::bao();
    let cloud = Cloud::start(world::options(&[]));
    let mine = prepared(&cloud, "stays-revoked", &[]);
    let denied = prepared(&cloud, "stays-denied", &[]);
    let other = cloud.cluster("not-concerned", &[]);
    mine.revoke_key();
    bao.forbid("stays-denied");
    is_locked_away(&mine);
    is_locked_away(&denied);
    cloud.stop();
    cloud.boot();
    is_locked_away(&mine);
    is_locked_away(&denied);
    cloud.kill();
    cloud.boot();
    is_locked_away(&mine);
    is_locked_away(&denied);
    assert_eq!(other.sign_in().value("select 1"), "1");
    // Killed in the moment in which it is taken away.
    mine.restore_key();
    mine.await_key("ENABLED");
    the_row_is_there(&mine);
    mine.revoke_key();
    cloud.kill();
    cloud.boot();
    // It may have had no proper end, and then nobody can say who knows the password.
    nobody_gets_in(&mine);
    mine.restore_key();
    bao.permit("stays-denied", "stays-denied");
    for one in [&mine, &denied] {
        one.await_key("ENABLED");
        the_row_is_there(one);
    }
    cloud.stop();
}
