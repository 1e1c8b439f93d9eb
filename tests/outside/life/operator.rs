//! The operator's socket: commands use it by themselves, it asks for the key, and nobody else's process comes in.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;

use house::api::curl;
use house::command::run;
use house::shared::cloud;
use house::{Cloud, Options};

fn socket(cloud: &Cloud) -> PathBuf {
    cloud.data().join("operator/api.sock")
}

/// Asks for the clusters through the socket, with this header.
fn ask(cloud: &Cloud, authorization: Option<&str>) -> Command {
    let mut command = Command::new("curl");
    command.arg("--unix-socket").arg(socket(cloud)).arg("--cacert").arg(cloud.root_certificate());
    if let Some(authorization) = authorization {
        command.args(["-H", &format!("Authorization: {authorization}")]);
    }
    command.arg("https://localhost/api/v1/clusters");
    command
}

fn bearer(cloud: &Cloud) -> String {
    let key = std::fs::read_to_string(cloud.data().join("admin-key")).expect("the key");
    format!("Bearer {}", key.trim())
}

pub fn the_operator_s_socket_is_the_owner_s_alone_and_asks_for_the_key() {
    let cloud = cloud();
    let facts = std::fs::symlink_metadata(socket(cloud)).expect("the socket is there");
    assert!(facts.file_type().is_socket());
    assert_eq!(facts.permissions().mode() & 0o7777, 0o600);
    let folder = std::fs::symlink_metadata(cloud.data().join("operator")).expect("its folder");
    assert_eq!(folder.permissions().mode() & 0o7777, 0o700);
    curl(&mut ask(cloud, Some(&bearer(cloud))), None).ok();
    curl(&mut ask(cloud, None), None).refused(401);
    curl(&mut ask(cloud, Some("Bearer CCDB1_wrong_wrong")), None).refused(401);
    assert!(!run(ask(cloud, Some(&bearer(cloud))).args(["--tls-max", "1.2"])).status.success());
}

pub fn commands_use_the_operator_s_socket_by_themselves_also_by_a_long_path() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let endpoint = cloud.data().join("endpoint.json");
    let told = std::fs::read_to_string(&endpoint).expect("where it listens");
    // Nobody is there by TCP, so whoever is answered came by the socket.
    let nowhere = told.replace(&cloud.http_address().to_string(), "127.0.0.1:1");
    assert_ne!(nowhere, told);
    std::fs::write(&endpoint, nowhere).expect("it is ours");
    cloud.chitin(["status"]).ok();
    cloud.chitin(["cluster", "create", "by-the-socket"]).ok();
    let long = cloud.scratch().join("l".repeat(120));
    std::fs::create_dir(&long).expect("a scratch directory");
    symlink(cloud.data(), long.join("data")).expect("a link");
    let mut command = Command::new(house::cloud::program());
    run(command.args(["cluster", "list", "--data"]).arg(long.join("data"))).ok();
    // Where there is no socket, commands come by TCP, as to a cloud of before.
    std::fs::remove_file(socket(&cloud)).expect("it is ours");
    assert_eq!(cloud.chitin(["status"]).code(), 3);
    std::fs::write(&endpoint, told).expect("it is ours");
    cloud.chitin(["status"]).ok();

    // What a program left that was killed is replaced, and one that stops leaves nothing.
    cloud.kill();
    cloud.boot();
    cloud.kill();
    assert!(socket(&cloud).exists());
    cloud.boot();
    curl(&mut ask(&cloud, Some(&bearer(&cloud))), None).ok();
    cloud.stop();
    assert!(!socket(&cloud).exists());
    cloud.boot();
}

pub fn a_cloud_whose_data_directory_has_a_longer_path_than_a_socket_s_works_as_any() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let long = scratch.path().join("d".repeat(100)).join("e".repeat(100)).join("data");
    std::fs::create_dir_all(&long).expect("a long path");
    let link = scratch.path().join("link");
    symlink(&long, &link).expect("a link");
    // The link is copied, and leads there.
    let cloud = Cloud::over(&link, Options::default());
    cloud.boot();
    let one = cloud.cluster("far-away", &[]);
    assert_eq!(one.sign_in().value("select 1"), "1");
    one.sleep();
    assert_eq!(one.sign_in().value("select 1"), "1");
    let mode =
        std::fs::symlink_metadata(long.join("operator/api.sock")).expect("it lies there").permissions();
    assert_eq!(mode.mode() & 0o7777, 0o600);
    let mut command = Command::new(house::cloud::program());
    run(command.args(["cluster", "list", "--data"]).arg(&long)).ok();
}

pub fn a_process_in_another_namespace_is_refused_at_the_operator_s_socket_though_it_has_the_key() {
    let cloud = cloud();
    let elsewhere: [&[&str]; 4] = [
        &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"],
        &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"],
        &["unshare", "--user", "--map-root-user"],
        // As an engine's sandbox.
        &["bwrap", "--unshare-user", "--unshare-pid", "--dev-bind", "/", "/", "--proc", "/proc", "--"],
    ];
    for words in elsewhere {
        let within = |command: &Command| {
            let mut all = Command::new(words[0]);
            all.args(&words[1..]).arg(command.get_program()).args(command.get_args());
            all
        };
        let asked = run(within(&ask(cloud, Some(&bearer(cloud)))).args(["-sS", "-o", "/dev/null"]));
        assert!(!asked.status.success(), "{words:?}: was answered");
        let mut status = Command::new(house::cloud::program());
        status.args(["status", "--data"]).arg(cloud.data());
        let refused = run(&mut within(&status));
        assert_eq!(refused.code(), 3, "{words:?}: {}{}", refused.stdout, refused.stderr);
        assert!(refused.stderr.contains("pid and user namespaces"), "{words:?}: {}", refused.stderr);
        // The same process without the socket is the API's affair, as from anywhere.
        let url = cloud.web("");
        let mut by_tcp = within(&status);
        by_tcp.args(["--url", &url, "--ca"]).arg(cloud.root_certificate());
        by_tcp.env("CHITIN_API_KEY", bearer(cloud).trim_start_matches("Bearer "));
        run(&mut by_tcp).ok();
    }
    assert!(cloud.log().contains("is in another pid or user namespace"));
    cloud.chitin(["status"]).ok();
}
