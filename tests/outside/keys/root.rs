//! The cloud's root key: protected, backed up, recovered, rotated, and refused with a reason.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use house::command::{eventually, run};
use house::key_services::Bao;
use house::keys::SOON;
use house::{Cloud, Cluster, Options};
use serde_json::json;

use crate::keys::world;

const PASSPHRASE: &str = "six plain words on old paper";
const ROTATE: &str = "/api/v1/chitin/root-key/rotate";

/// A file that only its owner reads.
fn private(cloud: &Cloud, name: &str, text: &str) -> PathBuf {
    let path = cloud.scratch().join(name);
    fs::write(&path, text).expect("a scratch file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn with_a_row(cloud: &Cloud) -> Cluster<'_> {
    let one = cloud.cluster("rooted", &[]);
    one.sign_in().query("create table kept (x int); insert into kept values (42)").unwrap();
    one
}

fn the_row_is_there(one: &Cluster<'_>) {
    assert_eq!(one.sign_in().value("select x from kept"), "42");
}

/// A command that the program printed, run as it stands there.
fn run_printed(cloud: &Cloud, line: &str, more: &[&str]) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[0], "chitin", "not a command of ours: {line}");
    let mut command = cloud.program(house::cloud::program());
    run(command.args(&words[1..]).args(more)).ok()
}

pub fn a_lost_root_key_is_recovered_by_the_procedure_that_was_printed() {
    let cloud = Cloud::start(world::options(&[]));
    let one = with_a_row(&cloud);
    let passphrase = private(&cloud, "passphrase", PASSPHRASE);
    let backup = cloud.scratch().join("backup-of-root-key");
    let printed =
        cloud.chitin(["key", "backup", text(&backup), "--new-passphrase-file", text(&passphrase)]).ok();
    let mode = fs::metadata(&backup).expect("the backup").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kept = fs::read_to_string(cloud.data().join("kek")).expect("the key file");
    let saved = fs::read_to_string(&backup).expect("the backup");
    for part in kept.split_whitespace().filter(|part| part.len() >= 32) {
        assert!(!saved.contains(part), "the backup shows the root key");
    }
    cloud.stop();
    fs::remove_file(cloud.data().join("kek")).expect("ours");
    let said = cloud.refuses_to_start(&[], &[]);
    assert!(said.contains("no root key") && said.contains("chitin key recover"), "{said}");

    let command = printed
        .lines()
        .find_map(|line| line.split_once("Run: ").map(|(_, command)| command))
        .unwrap_or_else(|| panic!("no command in: {printed}"));
    // Where there is no terminal to ask at, the passphrase comes from a file.
    let given = ["--passphrase-file", text(&passphrase)];
    let wrong = private(&cloud, "wrong", "another passphrase");
    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    let mut bad = cloud.program(house::cloud::program());
    let refused = run(bad.args(&words).args(["--passphrase-file", text(&wrong)])).refused();
    assert!(refused.contains("passphrase"), "{refused}");
    assert!(!cloud.data().join("kek").exists());
    run_printed(&cloud, command, &given);
    cloud.boot_with(&given, &[]);
    the_row_is_there(&one);
    cloud.stop();
    let unprotect = ["key", "protect", "--with", "file", "--passphrase-file", text(&passphrase)];
    cloud.chitin(unprotect).ok();
    cloud.boot();
    the_row_is_there(&one);
    cloud.stop();
}

pub fn a_backup_of_another_cloud_or_from_before_a_rotation_is_refused() {
    let cloud = Cloud::start(world::options(&[]));
    let one = with_a_row(&cloud);
    let passphrase = private(&cloud, "passphrase", PASSPHRASE);
    let before = fs::read(cloud.data().join("kek")).expect("the key file");
    let backup = cloud.scratch().join("too-old");
    cloud.chitin(["key", "backup", text(&backup), "--new-passphrase-file", text(&passphrase)]).ok();
    cloud.call("POST", ROTATE, None).ok();
    let settled = || cloud.get("/api/v1/chitin/root-key")["earlier_versions"] == json!([]);
    eventually("nothing needs the earlier version", SOON * 3, || settled().then_some(()));
    cloud.stop();
    let newest = fs::read(cloud.data().join("kek")).expect("the key file");
    // A thief with an old key file and today's disk.
    fs::write(cloud.data().join("kek"), &before).expect("ours");
    let said = cloud.refuses_to_start(&[], &[]);
    assert!(!said.is_empty());
    fs::remove_file(cloud.data().join("kek")).expect("ours");
    let said =
        cloud.chitin(["key", "recover", text(&backup), "--passphrase-file", text(&passphrase)]).refused();
    assert!(said.contains("rotation") && said.contains("Nothing was changed"), "{said}");
    assert!(!cloud.data().join("kek").exists());
    fs::write(cloud.data().join("kek"), &newest).expect("ours");
    fs::set_permissions(cloud.data().join("kek"), fs::Permissions::from_mode(0o600)).expect("ours");
    cloud.boot();
    the_row_is_there(&one);
    cloud.stop();
}

pub fn a_root_key_under_a_passphrase_opens_with_the_right_one_alone() {
    let cloud = Cloud::start(world::options(&[]));
    let one = with_a_row(&cloud);
    cloud.stop();
    let right = private(&cloud, "right", PASSPHRASE);
    let wrong = private(&cloud, "wrong", "six plain words on new paper");
    cloud.chitin(["key", "protect", "--with", "passphrase", "--new-passphrase-file", text(&right)]).ok();
    let said = cloud.refuses_to_start(&[], &[]);
    assert!(said.contains("--passphrase-file"), "{said}");
    let said = cloud.refuses_to_start(&["--passphrase-file", text(&wrong)], &[]);
    assert!(said.contains("passphrase") && !said.contains("new paper"), "{said}");
    fs::set_permissions(&right, fs::Permissions::from_mode(0o644)).expect("ours");
    let said = cloud.refuses_to_start(&["--passphrase-file", text(&right)], &[]);
    assert!(said.contains("chmod 600"), "{said}");
    fs::set_permissions(&right, fs::Permissions::from_mode(0o600)).expect("ours");
    cloud.boot_with(&["--passphrase-file", text(&right)], &[]);
    the_row_is_there(&one);
    assert_eq!(cloud.get("/api/v1/chitin/root-key")["protection"], "passphrase");
    // It stays protected over a rotation.
    cloud.call("POST", ROTATE, None).ok();
    cloud.stop();
    cloud.refuses_to_start(&[], &[]);
    cloud.boot_with(&["--passphrase-file", text(&right)], &[]);
    the_row_is_there(&one);
    assert!(!cloud.log().contains(PASSPHRASE));
    cloud.stop();
}

pub fn a_root_key_that_systemd_hands_over_opens_with_that_credential_alone() {
    let cloud = Cloud::start(world::options(&[]));
    let one = with_a_row(&cloud);
    cloud.stop();
    let folder = cloud.scratch().join("credentials");
    fs::create_dir(&folder).expect("a scratch folder");
    let credential = folder.join("chitin-kek");
    cloud.chitin(["key", "protect", "--with", "credential", "--credential-file", text(&credential)]).ok();
    let said = cloud.refuses_to_start(&[], &[]);
    assert!(said.contains("credential"), "{said}");
    let environment = [("CREDENTIALS_DIRECTORY", text(&folder))];
    cloud.boot_with(&[], &environment);
    the_row_is_there(&one);
    cloud.stop();
    let good = fs::read_to_string(&credential).expect("the credential");
    let bent: String = good.chars().rev().collect();
    fs::write(&credential, bent).expect("ours");
    cloud.refuses_to_start(&[], &environment);
    fs::write(&credential, good).expect("ours");
    fs::set_permissions(&credential, fs::Permissions::from_mode(0o644)).expect("ours");
    let said = cloud.refuses_to_start(&[], &environment);
    assert!(said.contains("others"), "{said}");
}

pub fn a_root_key_that_a_key_service_wraps_opens_while_the_service_permits_it() {
    let bao = Bao::start();
    bao.make_key("root-of-cloud");
    bao.permit("for-root", "root-of-cloud");
    let token = bao.token("for-root");
    let cloud = Cloud::start(world::options(&[]));
    let one = with_a_row(&cloud);
    cloud.stop();
    let written = |token: &str| {
        json!({ "kind": "VAULT_TRANSIT", "address": bao.url(), "credentials": { "vault_token": token } })
            .to_string()
    };
    let typo = format!("{token}x");
    let mistyped = private(&cloud, "mistyped.json", &written(&typo));
    let service = private(&cloud, "key-service.json", &written(&token));
    let protect = |with: &str| {
        let uri = "transit/keys/root-of-cloud";
        cloud.chitin(["key", "protect", "--with", "service", "--root-key-service", with, "--uri", uri])
    };
    // Tried before anything is replaced.
    let said = protect(text(&mistyped)).refused();
    assert!(said.contains("does not accept the token") && !said.contains(&typo), "{said}");
    cloud.boot();
    cloud.stop();
    protect(text(&service)).ok();
    let given = ["--root-key-service", text(&service)];
    let said = cloud.refuses_to_start(&["--root-key-service", text(&mistyped)], &[]);
    assert!(said.contains("does not accept the token") && !said.contains(&typo), "{said}");
    let said = cloud.refuses_to_start(&[], &[]);
    assert!(said.contains("--root-key-service"), "{said}");
    cloud.boot_with(&given, &[]);
    the_row_is_there(&one);
    assert!(!cloud.log().contains(&token));
    cloud.stop();
    bao.door.shut();
    let said = cloud.refuses_to_start(&given, &[]);
    assert!(said.contains("root-of-cloud") && !said.contains(&token), "{said}");
    bao.door.open();
    bao.forbid("for-root");
    let said = cloud.refuses_to_start(&given, &[]);
    assert!(said.contains("may not be used"), "{said}");
    bao.permit("for-root", "root-of-cloud");
    cloud.boot_with(&given, &[]);
    the_row_is_there(&one);
    cloud.stop();
}

pub fn a_rotation_of_the_root_key_in_the_running_cloud_is_noticed_by_nobody() {
    let bao = world::bao();
    let cloud = Cloud::start(world::options(&[]));
    let one = with_a_row(&cloud);
    let customers = cloud.cluster("of-a-customer", &[]);
    customers.enable_key(&bao.tenant(&cloud, "of-a-customer"));
    let sleeping = cloud.cluster("asleep", &[]);
    sleeping.sleep();
    let foreign = fs::read(customers.key_file()).expect("a key file");
    let root = || cloud.get("/api/v1/chitin/root-key");
    let old = fs::read_to_string(cloud.data().join("kek")).expect("the key file");
    let mut session = one.sign_in();
    let backend = session.value("select pg_backend_pid()");
    for version in [2, 3] {
        let rotated = cloud.call("POST", ROTATE, None).ok();
        assert_eq!(rotated["version"], json!(version));
        let wanted = version.to_string();
        for cluster in [&one, &sleeping] {
            eventually("the data key is wrapped by the new version", SOON, || {
                (cluster.wrapped_key()["key_version"] == wanted.as_str()).then_some(())
            });
        }
        assert_eq!(session.value("select pg_backend_pid()"), backend, "the session was cut");
        the_row_is_there(&one);
    }
    assert_eq!(sleeping.phase(), "asleep");
    assert_eq!(
        fs::read(customers.key_file()).expect("a key file"),
        foreign,
        "a customer's key has nothing to do with it"
    );
    // The earlier versions are destroyed when nothing needs them.
    eventually("earlier versions are gone", SOON * 3, || {
        (root()["earlier_versions"] == json!([])).then_some(())
    });
    let now = fs::read_to_string(cloud.data().join("kek")).expect("the key file");
    for secret in old.split_whitespace().filter(|part| part.len() >= 64) {
        assert!(!now.contains(secret), "the earlier root key is in the key file");
    }
    cloud.stop();
    cloud.boot();
    the_row_is_there(&one);
    assert_eq!(sleeping.sign_in().value("select 1"), "1");
    assert_eq!(customers.sign_in().value("select 1"), "1");
    cloud.stop();
}

/// As where the state's disk is gone, or somebody moved the state away.
pub fn a_rotation_of_the_root_key_while_the_state_cannot_be_written_changes_nothing() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = with_a_row(&cloud);
    let everything =
        || ["kek", "ca.key", "ca.pem"].map(|name| fs::read(cloud.data().join(name)).expect("it is there"));
    let root = || cloud.get("/api/v1/chitin/root-key");
    let (state, aside) = (cloud.data().join("state.redb"), cloud.scratch().join("aside"));
    let (before, described) = (everything(), root());
    fs::rename(&state, &aside).expect("the state");
    let refused = cloud.chitin(["key", "rotate", "--root"]).refused();
    for part in ["nothing was changed", "removed or replaced", "copy it back", "cp /proc/"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert!(everything() == before, "a part of the rotation was done");
    assert_eq!(root(), described);
    the_row_is_there(&one);
    fs::rename(&aside, &state).expect("the state");
    cloud.chitin(["key", "rotate", "--root"]).ok();
    assert_eq!(root()["version"], json!(2));
    let [key, authority, certificate] = everything();
    assert!(key != before[0] && authority != before[1], "both are under the new version");
    assert_eq!(certificate, before[2], "clients trust what they trusted");
    cloud.stop();
    cloud.boot();
    the_row_is_there(&one);
}
