//! What lies on the disk does not decide how it is treated: somebody who can write to the disk, and has not the root key.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use house::cloud::PATIENCE;
use house::command::{eventually, run};
use house::{Cloud, Options};

/// The folder of a cluster.
fn folder(cloud: &Cloud, id: &str) -> PathBuf {
    cloud.data().join("clusters").join(id)
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to)).ok();
}

pub fn a_folder_that_names_another_volume_is_refused_and_alarms() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("marked", &[]);
    one.sign_in().query("create table t as select 42 as x").expect("a table");
    one.sleep();
    // A plaintext data directory of the attacker's own, with whatever library he likes, in place of the encrypted one.
    let own = folder(&cloud, &one.id);
    let attackers = Cloud::start(Options::unencrypted(&[]));
    let planted = attackers.cluster("planted", &[]).id;
    attackers.stop();
    let planted = folder(&attackers, &planted).join("files");
    let settings = run(Command::new("find").arg(&planted).args(["-name", "postgresql.auto.conf"])).ok();
    std::fs::write(settings.trim(), "shared_preload_libraries = 'planted_library'\n").expect("theirs");
    let (files, aside) = (own.join("files"), own.join("aside"));
    let marker = own.join("complete.json");
    let honest = std::fs::read_to_string(&marker).expect("a marker");
    let kind = serde_json::from_str::<serde_json::Value>(&honest).expect("JSON")["encryption"].clone();
    assert_ne!(kind, "none", "the cluster is encrypted");
    for lie in [
        honest.replace(kind.as_str().expect("a kind"), "none"),
        honest.replace(kind.as_str().expect("a kind"), "attested"),
        honest.replace("\"generation\":0", "\"generation\":1"),
    ] {
        assert_ne!(lie, honest);
        std::fs::write(&marker, &lie).expect("the disk is theirs");
        std::fs::rename(&files, &aside).expect("the disk is theirs");
        copy(&planted, &files);
        let refused = one.try_sign_in().err().expect("it does not start");
        assert_eq!(refused.code, "57P03", "{refused:?}");
        let alarmed = || {
            let status = cloud.json(["status"]);
            let alerts = status["alerts"].to_string();
            alerts.contains("sealed state another").then_some(())
        };
        eventually("the alarm is shown", PATIENCE, alarmed);
        let listed = cloud.chitin(["cluster", "list"]).ok();
        assert!(listed.contains("CREATED, broken"), "{listed}");
        assert_eq!(cloud.json(["cluster", "list"])[0]["phase"], "broken");
        let shown = cloud.json(["cluster", "show", "marked"]).to_string();
        assert!(!shown.contains("\"encryption\":\"none\""), "what is claimed is what is on record: {shown}");
        // The operator's own permission for clusters without encryption changes nothing about this one.
        cloud.stop();
        cloud.boot_with(&["--allow-unencrypted"], &[]);
        assert!(one.try_sign_in().is_err(), "{lie}");
        assert!(!cloud.log().contains("planted_library"), "what was planted has been started");
        std::fs::write(&marker, &honest).expect("it is put back");
        std::fs::remove_dir_all(&files).expect("what was planted");
        std::fs::rename(&aside, &files).expect("it is put back");
        let back = || one.try_sign_in().ok();
        assert_eq!(eventually("it starts again", PATIENCE, back).value("select x from t"), "42");
        one.sleep();
        cloud.stop();
        cloud.boot();
    }
}

pub fn a_folder_that_names_another_volume_while_its_engine_runs_is_told_and_the_engine_goes_on() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("re-marked", &[]);
    let mut session = one.sign_in();
    session.query("create table t as select 42 as x").expect("a table");
    let (record, files) = ("names the volume that is on record", "lie in an encrypted volume");
    for claim in [record, files] {
        assert_eq!(one.proof(claim)["outcome"], "proven", "{claim}");
    }
    let marker = folder(&cloud, &one.id).join("complete.json");
    let honest = std::fs::read_to_string(&marker).expect("a marker");
    let lie = honest.replace("\"generation\":0", "\"generation\":7");
    assert_ne!(lie, honest);
    std::fs::write(&marker, lie).expect("the disk is theirs");
    for claim in [record, files] {
        let row = one.proof(claim);
        assert_eq!(row["outcome"], "failed", "{row}");
        assert!(row["evidence"].as_str().is_some_and(|said| said.contains("sealed state another")), "{row}");
    }
    eventually("the alarm is shown", PATIENCE, || {
        cloud.json(["status"])["alerts"].to_string().contains("sealed state another").then_some(())
    });
    let shown = cloud.json(["key", "list", &one.name]).to_string();
    assert!(shown.contains("sealed state another"), "{shown}");
    assert_eq!(session.value("select x from t"), "42", "what runs goes on");
    std::fs::write(&marker, "nonsense").expect("the disk is theirs");
    assert_eq!(one.proof(record)["outcome"], "failed");
    std::fs::remove_file(&marker).expect("the disk is theirs");
    assert_eq!(one.proof(record)["outcome"], "failed");
    std::fs::write(&marker, &honest).expect("it is put back");
    assert_eq!(one.proof(record)["outcome"], "proven");
}

pub fn an_older_copy_of_a_volume_is_told_also_when_it_never_slept() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = cloud.cluster("put-back", &[]);
    one.sign_in().query("create table t as select 1 as x").expect("a table");
    let (files, older) = (folder(&cloud, &one.id).join("files"), cloud.scratch().join("older"));
    cloud.kill();
    copy(&files, &older);
    cloud.boot();
    one.sign_in().query("insert into t values (2)").expect("a row");
    // Its checkpoint is read every five seconds while it runs, and kept at the next reading. That of its recovery is newer than
    // the copy.
    std::thread::sleep(Duration::from_secs(30));
    cloud.kill();
    std::fs::rename(&files, cloud.scratch().join("newest")).expect("it is taken away");
    copy(&older, &files);
    cloud.boot();
    assert_eq!(one.try_sign_in().err().expect("an older copy does not start").code, "57P03");
    let said = || {
        let alerts = cloud.json(["status"])["alerts"].to_string();
        alerts.contains("an older copy was put in its place").then_some(())
    };
    eventually("the operator is told", PATIENCE, said);
}

pub fn a_cluster_without_encryption_never_starts_without_the_operator_s_word() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = cloud.cluster("plain-files", &[]);
    one.sign_in().value("select 1");
    cloud.stop();
    // The same cloud, where nobody accepts files in plaintext.
    let strict = Cloud::over(&cloud.data(), Options::default());
    strict.boot();
    let there = one.at(&strict);
    let refused = there.try_sign_in().err().expect("it does not start");
    assert_eq!(refused.code, "57P03", "{refused:?}");
    let said = || strict.json(["status"])["alerts"].to_string().contains("--allow-unencrypted").then_some(());
    eventually("the operator is told why", PATIENCE, said);
}

pub fn without_encryption_a_cloud_starts_and_makes_no_cluster() {
    let cloud = Cloud::start(Options::with(&["--encryption", "none"]));
    assert!(cloud.log().contains("NONE, so no cluster is made"), "{}", cloud.log());
    assert!(cloud.chitin(["status"]).ok().contains("NONE: the operator chose none"));
    let refused = cloud.chitin(["cluster", "create", "my-shop"]).refused();
    assert!(refused.contains("cannot encrypt") && refused.contains("--allow-unencrypted"), "{refused}");
    assert_eq!(cloud.json(["status"])["clusters"], 0);
}

pub fn what_new_clusters_are_copied_from_is_believed_by_the_state_alone() {
    let cloud = Cloud::plain();
    cloud.cluster("first-copy", &[]);
    let archive = || {
        let mut found: Vec<PathBuf> = std::fs::read_dir(cloud.data().join("clusters/templates"))
            .expect("there is a template")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        assert_eq!(found.len(), 1, "{found:?}");
        let path = found.remove(0);
        let made = std::fs::metadata(&path).expect("it is there").modified().expect("a time");
        (path, made)
    };
    let (path, made) = archive();
    cloud.stop();
    cloud.boot();
    cloud.cluster("second-copy", &[]).sign_in().value("select 1");
    assert_eq!(archive(), (path.clone(), made), "it outlives a restart");
    let changed = "what new clusters are copied from was changed on the disk";
    assert!(!cloud.log().contains(changed));

    // A superuser of the attacker's own in each new cluster: the internal one's name in `pg_authid`, and in whatever else has it.
    cloud.stop();
    let honest = std::fs::read(&path).expect("the archive");
    let mut bytes = honest.clone();
    let places: Vec<usize> =
        bytes.windows(7).enumerate().filter(|(_, text)| text == b"chitin\0").map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the internal superuser's name is in it");
    for at in places {
        bytes[at..at + 6].copy_from_slice(b"mallet");
    }
    std::fs::write(&path, &bytes).expect("the disk is theirs");
    cloud.boot();
    let third = cloud.cluster("third-copy", &[]);
    assert_eq!(third.sign_in().value("select count(*) from pg_roles where rolname = 'mallet'"), "0");
    assert!(cloud.log().contains(changed), "it is said");
    let (path, _) = archive();
    assert!(
        std::fs::read(path).expect("the archive").windows(6).all(|text| text != b"mallet"),
        "it is made anew"
    );
}

pub fn an_older_copy_of_a_volume_starts_only_when_it_is_accepted() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = cloud.cluster("restored", &[]);
    one.sign_in().query("create table t as select 1 as x").expect("a table");
    one.sleep();
    let files = folder(&cloud, &one.id).join("files");
    let older = cloud.scratch().join("older");
    copy(&files, &older);
    one.sign_in().query("insert into t values (2)").expect("a row");
    one.sleep();
    std::fs::rename(&files, cloud.scratch().join("newest")).expect("it is taken away");
    copy(&older, &files);

    assert_eq!(one.try_sign_in().err().expect("it does not start").code, "57P03");
    let said = || cloud.json(["status"])["alerts"].to_string().contains("accept-restored").then_some(());
    eventually("the operator is told what to do", PATIENCE, said);
    // A restart makes no difference.
    cloud.stop();
    cloud.boot();
    assert!(one.try_sign_in().is_err());
    cloud.chitin(["cluster", "accept-restored", "restored"]).ok();
    let back = || one.try_sign_in().ok();
    assert_eq!(eventually("it starts", PATIENCE, back).value("select count(*) from t"), "1");
    assert!(cloud.log().contains("accepted as it is"), "it is recorded");
    // From here on its own newest counts again.
    one.sign_in().query("insert into t values (3)").expect("a row");
    one.sleep();
    std::fs::rename(&files, cloud.scratch().join("later")).expect("it is taken away");
    copy(&older, &files);
    assert!(one.try_sign_in().is_err());
}

pub fn a_killed_cloud_starts_with_the_files_that_it_had() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = cloud.cluster("killed", &[]);
    let mut session = one.sign_in();
    session.query("create table t as select 1 as x").expect("a table");
    drop(session);
    for round in 0..3 {
        cloud.kill();
        cloud.boot();
        let back = || one.try_sign_in().ok();
        let mut session = eventually("it starts", PATIENCE, back);
        session.query("insert into t values (2)").expect("a row");
        assert_eq!(session.value("select count(*) from t"), (round + 2).to_string());
    }
}
