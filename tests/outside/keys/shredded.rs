//! Whoever has the disk: keys that were destroyed, moved from elsewhere, or put back from before.

use std::fs;

use house::command::eventually;
use house::keys::{SOON, copy_folder, files_with};
use house::{Cloud, Cluster};

use crate::keys::world;

const IMAGE: [&str; 2] = ["--encryption", "fscrypt-image"];

fn with_a_row<'cloud>(cloud: &'cloud Cloud, name: &str, text: &str) -> Cluster<'cloud> {
    let one = cloud.cluster(name, &[]);
    one.sign_in().query(&format!("create table kept as select '{text}' x")).unwrap();
    one
}

/// Why the cluster does not start, as the operator reads it.
fn reason_of(one: &Cluster<'_>) -> String {
    let refusal = one.try_sign_in().err().expect("it opened");
    assert!(["57P03", "58000"].contains(&refusal.code.as_str()), "{refusal:?}");
    let path = format!("/api/v1/chitin/clusters/{}", one.id);
    eventually("the reason is known", SOON, || {
        let phase = one.cloud.get(&path)["phase"].to_string();
        phase.contains("reason").then_some(phase)
    })
}

fn after_a_deletion(more: &[&str], canary: &str) {
    let cloud = Cloud::start(world::options(more));
    let doomed = with_a_row(&cloud, "doomed", canary);
    let other = with_a_row(&cloud, "neighbour", "stays");
    doomed.sleep();
    other.sleep();
    doomed.await_rest();
    other.await_rest();
    let wrapped = doomed.wrapped_key()["wrapped"].as_str().expect("a text").to_owned();
    let key_file = doomed.key_file();
    // All that free blocks can still hold: everything of before, but the key, which is overwritten where it lies.
    let before = tempfile::tempdir().expect("a scratch folder");
    let carved = before.path().join("data");
    copy_folder(&cloud.data(), &carved);
    let relative = key_file.strip_prefix(cloud.data()).expect("in the data directory");
    fs::remove_file(carved.join(relative)).expect("the key is there before");

    cloud.chitin(["cluster", "delete", "doomed", "--yes"]).ok();
    assert!(!key_file.exists());
    cloud.stop();
    assert_eq!(files_with(&cloud.data(), &[wrapped.as_str(), canary]), Vec::<String>::new());
    assert_eq!(files_with(&carved, &[wrapped.as_str(), canary]), Vec::<String>::new());

    let thief = Cloud::over(&carved, world::options(more));
    let (stolen, known) = (doomed.at(&thief), other.at(&thief));
    thief.boot();
    let reason = reason_of(&stolen);
    assert!(reason.contains("key.json"), "{reason}");
    assert_eq!(known.sign_in().value("select x from kept"), "stays", "another cluster does not open");
    // Every wrapped key that is still somewhere.
    thief.stop();
    fs::copy(known.key_file(), stolen.key_file()).expect("the thief's own folder");
    thief.boot();
    let reason = reason_of(&stolen);
    assert!(reason.contains("does not open") && reason.contains("another cluster"), "{reason}");
    thief.stop();
    cloud.boot();
    assert_eq!(other.sign_in().value("select x from kept"), "stays");
    cloud.stop();
}

pub fn a_deleted_cluster_opens_from_no_copy_of_the_disk_and_its_neighbour_still_opens() {
    after_a_deletion(&IMAGE, "canary-of-a-deleted-cluster-7Qz1");
}

pub fn a_deleted_cluster_opens_from_no_copy_with_gocryptfs_either() {
    after_a_deletion(&["--encryption", "gocryptfs"], "canary-of-a-deleted-cluster-8Rz2");
}

pub fn a_copy_of_everything_opens_nothing_once_the_customer_s_key_is_destroyed() {
    let bao = world::bao();
    let cloud = Cloud::start(world::options(&IMAGE));
    let canary = "canary-under-a-customer-key-9Sz3";
    let mine = with_a_row(&cloud, "destroyed", canary);
    let other = with_a_row(&cloud, "neighbour", "stays");
    mine.enable_key(&bao.tenant(&cloud, "destroyed"));
    // The data key was once wrapped by the root key; whoever kept that copy must not profit.
    let generation = mine.generation();
    mine.ask_for_data_key().ok();
    eventually("it has another data key", SOON * 2, || (mine.generation() > generation).then_some(()));
    mine.sleep();
    mine.await_rest();
    cloud.stop();
    let thief = Cloud::over(&cloud.data(), world::options(&IMAGE));
    assert_eq!(files_with(&thief.data(), &[canary]), Vec::<String>::new());
    // With the key and the credentials for it, which the copy has, it opens.
    thief.boot();
    assert_eq!(mine.at(&thief).sign_in().value("select x from kept"), canary);
    thief.stop();
    bao.destroy("destroyed");
    thief.boot();
    let stolen = mine.at(&thief);
    stolen.await_key("REVOKED");
    assert_eq!(stolen.try_sign_in().err().expect("no key").code, "57P03");
    assert_eq!(other.at(&thief).sign_in().value("select x from kept"), "stays");
    thief.stop();
}

pub fn a_wrapped_key_of_another_cluster_is_refused_and_named() {
    let cloud = Cloud::start(world::options(&[]));
    let [one, other] = ["the-first", "the-second"].map(|name| with_a_row(&cloud, name, name));
    cloud.stop();
    let own = [fs::read(one.key_file()), fs::read(other.key_file())].map(|text| text.expect("a key file"));
    fs::write(one.key_file(), &own[1]).expect("ours");
    fs::write(other.key_file(), &own[0]).expect("ours");
    cloud.boot();
    for cluster in [&one, &other] {
        let reason = reason_of(cluster);
        assert!(reason.contains("moved from another cluster"), "{reason}");
    }
    cloud.stop();
    fs::write(one.key_file(), &own[0]).expect("ours");
    fs::write(other.key_file(), &own[1]).expect("ours");
    cloud.boot();
    for cluster in [&one, &other] {
        assert_eq!(cluster.sign_in().value("select x from kept"), cluster.name);
    }
    cloud.stop();
}

pub fn an_old_wrapped_key_put_back_after_a_change_of_keys_is_refused_and_both_are_named() {
    let bao = world::bao();
    let cloud = Cloud::start(world::options(&[]));
    let one = with_a_row(&cloud, "put-back", "42");
    let under_root = fs::read(one.key_file()).expect("a key file");
    let first = bao.tenant(&cloud, "put-back");
    bao.make_key("put-back-2");
    one.enable_key(&first);
    let under_first = fs::read(one.key_file()).expect("a key file");
    one.rotate_key(&bao.key("put-back", "put-back-2"));
    let newest = fs::read(one.key_file()).expect("a key file");
    one.sleep();
    one.await_rest();
    for (old, found) in [(&under_root, "the cloud's root key"), (&under_first, "transit/keys/put-back,")] {
        fs::write(one.key_file(), old).expect("ours");
        let reason = reason_of(&one);
        assert!(reason.contains("is wrapped by") && reason.contains("transit/keys/put-back-2"), "{reason}");
        assert!(reason.contains(found.trim_end_matches(',')), "{reason}");
    }
    fs::write(one.key_file(), &newest).expect("ours");
    let mut session = eventually("it opens again", SOON, || one.try_sign_in().ok());
    assert_eq!(session.value("select x from kept"), "42");
    cloud.stop();
}
