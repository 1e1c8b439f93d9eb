//! A customer's key wraps the data key of a living cluster: from its first day to the way back to the root key.

use std::fs;

use house::{Cloud, Cluster};
use serde_json::{Value, json};

use crate::keys::world;

/// How a service makes a new version of a key, and destroys a key.
struct Hands<'service> {
    name: &'service str,
    /// Gives the key a new version; `None` where it has none that one can see.
    new_version: Option<Box<dyn Fn() + 'service>>,
    destroy_first: Box<dyn Fn() + 'service>,
}

/// The life of a customer's key, while a session stays open over it.
fn lives(cloud: &Cloud, hands: &Hands<'_>, first: &Value, second: &Value) {
    let one = cloud.cluster(&format!("life-{}", hands.name), &[]);
    let mut session = one.sign_in();
    session.query("create table kept (x int); insert into kept values (42)").unwrap();
    let under_root = fs::read_to_string(one.key_file()).expect("a key file");
    assert_eq!(one.cmek()["status"], "DISABLED");

    one.enable_key(first);
    let enabled = fs::read_to_string(one.key_file()).expect("a key file");
    assert_ne!(enabled, under_root);
    assert_eq!(one.wrapped_key()["key"]["uri"], first["uri"]);
    let info = &one.cmek()["region_infos"][0]["key_infos"][0];
    assert_eq!((&info["status"], &info["spec"]["uri"]), (&json!("ENABLED"), &first["uri"]));
    for time in ["created_at", "updated_at"] {
        assert!(info[time].as_str().is_some_and(|time| time.ends_with('Z')), "{info}");
    }
    // The same again, as a client whose answer was lost says it.
    one.ask_for_key("POST", first).ok();

    if let Some(new_version) = &hands.new_version {
        let before = one.wrapped_key();
        new_version();
        one.rotate_key(first);
        let after = one.wrapped_key();
        assert_ne!(after["key_version"], before["key_version"], "{after}");
        assert_eq!(after["key"]["uri"], first["uri"]);
    }

    one.rotate_key(second);
    assert_eq!(one.wrapped_key()["key"]["uri"], second["uri"]);
    let told: Vec<(Value, Value)> =
        one.key_infos().iter().map(|info| (info["spec"]["uri"].clone(), info["status"].clone())).collect();
    assert_eq!(told[0], (second["uri"].clone(), json!("ENABLED")));
    assert!(told.contains(&(first["uri"].clone(), json!("DISABLED"))), "{told:?}");

    assert_eq!(session.value("select x from kept"), "42", "the session was cut");

    // What wrapped it before may go.
    (hands.destroy_first)();
    one.sleep();
    assert_eq!(one.sign_in().value("select x from kept"), "42");
    let mut session = one.sign_in();

    let root = json!({ "type": "NULL_KMS", "uri": "", "auth_principal": "" });
    one.rotate_key(&root);
    assert_eq!(one.wrapped_key()["key"]["type"], "NULL_KMS");
    one.rotate_key(second);
    assert_eq!(one.wrapped_key()["key"]["uri"], second["uri"]);
    assert_eq!(session.value("select x from kept"), "42", "the session was cut");
}

/// A session that is open while the key changes is not noticed by whoever works in it.
fn the_session_stays(one: &Cluster<'_>, change: impl FnOnce()) {
    let mut session = one.sign_in();
    let backend = session.value("select pg_backend_pid()");
    change();
    assert_eq!(session.value("select pg_backend_pid()"), backend);
}

fn vault_on(cloud: &Cloud, name: &'static str) {
    let bao = world::bao();
    let first = bao.tenant(cloud, name);
    let other = format!("{name}-next");
    bao.make_key(&other);
    let hands = Hands {
        name,
        new_version: Some(Box::new(|| bao.rotate(name))),
        destroy_first: Box::new(|| bao.destroy(name)),
    };
    lives(cloud, &hands, &first, &bao.key(name, &other));
}

pub fn a_key_of_vault_lives_and_goes_under_an_open_session() {
    vault_on(world::native(), "vault-native");
}

pub fn a_key_of_vault_lives_and_goes_with_gocryptfs_too() {
    vault_on(world::fuse(), "vault-fuse");
}

pub fn a_key_of_aws_lives_and_goes_under_an_open_session() {
    let aws = world::aws();
    let cloud = world::native();
    let key = |arn: &str| json!({ "type": "AWS_KMS", "uri": arn, "auth_principal": "", "service": "aws" });
    let (first, second) = (aws.new_key(), aws.new_key());
    let (_, id) = first.split_once(":key/").expect("an ARN");
    let destroy = || {
        aws.kms("ScheduleKeyDeletion", &json!({ "KeyId": id, "PendingWindowInDays": 7 }));
    };
    let hands = Hands { name: "aws", new_version: None, destroy_first: Box::new(destroy) };
    lives(cloud, &hands, &key(&first), &key(&second));
}

pub fn a_key_in_a_security_module_lives_and_goes_under_an_open_session() {
    let hsm = world::hsm();
    let cloud = world::native();
    hsm.make_key("shop", "01");
    hsm.make_key("shop-next", "02");
    let key = |label: &str| json!({ "type": "PKCS11", "uri": format!("pkcs11:token=chitin;object={label}"), "auth_principal": "", "service": "hsm" });
    let destroy = || hsm.destroy("shop", "01");
    let hands = Hands { name: "hsm", new_version: None, destroy_first: Box::new(destroy) };
    lives(cloud, &hands, &key("shop"), &key("shop-next"));
}

fn no_block_is_rewritten(cloud: &Cloud, name: &'static str) {
    let bao = world::bao();
    let key = bao.tenant(cloud, name);
    let one = cloud.cluster(name, &[]);
    one.sign_in().query("create table kept as select generate_series(1, 1000) x").unwrap();
    the_session_stays(&one, || one.enable_key(&key));
    one.sleep();
    one.await_rest();
    let (before, wrapped) = (one.ciphertext(), one.wrapped_key());
    bao.rotate(name);
    one.rotate_key(&key);
    assert_ne!(one.wrapped_key(), wrapped);
    assert!(one.ciphertext() == before, "data were rewritten by a change of the key that wraps the data key");
    assert_eq!(one.phase(), "asleep", "a new version of a key woke the cluster");
    // The version before may go.
    bao.destroy_before(name, 2);
    assert_eq!(one.sign_in().value("select count(*) from kept"), "1000");
    let file = fs::read_to_string(one.key_file()).expect("a key file");
    bao.rotate(name);
    the_session_stays(&one, || one.rotate_key(&key));
    assert_ne!(fs::read_to_string(one.key_file()).expect("a key file"), file);
}

pub fn a_new_version_of_a_key_rewrites_the_key_file_and_no_data() {
    no_block_is_rewritten(world::native(), "blocks-native");
}

pub fn a_new_version_of_a_key_rewrites_no_data_with_gocryptfs_either() {
    no_block_is_rewritten(world::fuse(), "blocks-fuse");
}

pub fn a_key_that_cannot_be_used_is_not_gone_over_to() {
    let (bao, cloud) = (world::bao(), world::native());
    let key = bao.tenant(cloud, "unusable");
    let one = cloud.cluster("unusable", &[]);
    let before = one.wrapped_key();
    // A key of somebody else's, which the service's role may not use.
    bao.make_key("foreign-of-unusable");
    one.ask_for_key("POST", &bao.key("unusable", "foreign-of-unusable")).ok();
    one.await_key("ENABLE_FAILED");
    assert_eq!(one.wrapped_key(), before);
    let message = one.key_infos()[0]["user_message"].as_str().expect("a message").to_owned();
    assert!(message.contains("foreign-of-unusable"), "{message}");
    assert_eq!(
        one.sign_in().value("select 1"),
        "1",
        "the cluster stands still for a key that was never its own"
    );
    one.rotate_key(&key);
    one.ask_for_key("PUT", &bao.key("unusable", "foreign-of-unusable")).ok();
    one.await_key("ROTATE_FAILED");
    assert_eq!(one.wrapped_key()["key"]["uri"], key["uri"]);
    let alerts = cloud.json(["status"])["alerts"].to_string();
    assert!(alerts.contains("unusable") && alerts.contains("next_step"), "{alerts}");
    one.rotate_key(&key);
    assert_eq!(one.sign_in().value("select 1"), "1");
}
