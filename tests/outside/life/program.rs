//! The program as its operator meets it: commands, exit codes, certificates, the security table.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use house::cloud::PATIENCE;
use house::command::{eventually, run, run_with, status_code};
use house::ports::free_port;
use house::shared::{cloud, cluster};
use house::{Cloud, Options};

fn certificate(directory: &Path, name: &str, more: &[&str]) -> (PathBuf, PathBuf) {
    let (chain, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-nodes", "-days", "3", "-subj", &format!("/CN={name}")]);
    command.args([
        "-addext",
        "subjectAltName=DNS:sql.example.test",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]);
    command.args(more).arg("-out").arg(&chain).arg("-keyout").arg(&key);
    run(&mut command).ok();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("the key is ours");
    (chain, key)
}

const ECDSA: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

pub fn verify_proves_every_row() {
    // The throttle as it is for everybody, and a cloud that may ask verify's own responder.
    let door = free_port().to_string();
    let mut options = Options::with(&[
        "--fetch-allow",
        "127.0.0.1/32",
        "--proxy-from",
        "127.0.0.1/32",
        "--endpoint",
        &door,
    ]);
    options.environment.push(("CHITIN_THROTTLE_FREE".to_owned(), "5".to_owned()));
    let cloud = Cloud::start(options);
    let one = "verified-cluster";
    cloud.chitin(["cluster", "create", one]).ok();
    let finished = run_with(&mut cloud.command(["verify", one]), b"", Duration::from_secs(400));
    println!("{}", finished.stdout);
    assert_eq!(finished.code(), 0, "{}{}", finished.stdout, finished.stderr);
    let said = finished.stdout.to_lowercase();
    for needle in ["tls 1.2", "plaintext", "password", "raw bytes", "foreign address", "not built"] {
        assert!(said.contains(needle), "no row says {needle:?}");
    }
    let rows = cloud.json(["verify", one]);
    assert_eq!(rows["failed"], 0, "{rows}");
    let rows = rows["rows"].as_array().expect("rows");
    for row in rows {
        assert_ne!(row["outcome"], "failed", "{row}");
    }
    let mut claims = vec![
        "revocation list",
        "if Chitin is killed",
        "revoked is refused in lax and strict",
        "a good token signs in",
        "guessing",
        "makes nobody another address",
        "an entry that expires",
        "a private endpoint that nobody accepted",
        "loses its sessions when it is rejected",
        "metadata is never reached",
        "under default-deny",
        "another version needs no data rewritten",
        "keeps the cluster from starting",
        "comes back by itself",
        "silent key service",
    ];
    if rustix::process::geteuid().is_root() {
        claims.extend([
            "no public listener answers to its name",
            "a joined network reaches the private listener's ports",
        ]);
    }
    for claim in claims {
        let is_proven = |row: &&serde_json::Value| {
            row["outcome"] == "proven" && row["claim"].as_str().is_some_and(|text| text.contains(claim))
        };
        assert_eq!(rows.iter().filter(is_proven).count(), 1, "{claim}: {rows:?}");
    }
    let left = cloud.json(["cluster", "list"]);
    assert_eq!(left.as_array().map(Vec::len), Some(1), "verify leaves a cluster behind: {left}");
}

pub fn exit_codes_tell_what_happened() {
    let cloud = cloud();
    assert_eq!(cloud.chitin(["cluster", "list"]).code(), 0);
    let misnamed = cloud.chitin(["cluster", "create", "Bad_Name"]).code();
    assert!([1, 2].contains(&misnamed), "{misnamed}");
    assert_eq!(cloud.chitin(["no-such-command"]).code(), 2);
    assert_eq!(cloud.chitin(["cluster", "show", "not-there-at-all"]).code(), 4);
    let taken = cluster().name.as_str();
    assert_eq!(cloud.chitin(["cluster", "create", taken]).code(), 1, "the name is taken");
    let mut nowhere = Command::new(house::cloud::program());
    nowhere.args(["status", "--data", "/tmp/ch-nothing-here"]);
    assert_eq!(run(&mut nowhere).code(), 3, "no cloud there");
}

pub fn every_list_is_json_when_asked() {
    let cloud = cloud();
    let name = cluster().name.as_str();
    for list in [
        ["cluster", "list", ""],
        ["user", "list", name],
        ["database", "list", name],
        ["allowlist", "list", name],
    ] {
        let list: Vec<&str> = list.into_iter().filter(|word| !word.is_empty()).collect();
        let output = run(cloud.command_of(&list).args(["--output", "json"])).ok();
        let value: serde_json::Value = serde_json::from_str(&output).expect("JSON");
        assert!(value.is_array(), "{list:?}: {value}");
    }
    let shown = cloud.json(["cluster", "show", name]);
    assert_eq!(shown["name"].as_str(), Some(name));
    assert_eq!(shown["state"].as_str(), Some("CREATED"));
}

pub fn databases_and_users_come_and_go() {
    let cloud = cloud();
    let name = cluster().name.as_str();
    cloud.chitin(["database", "create", name, "ledger"]).ok();
    assert!(cloud.chitin(["database", "list", name]).ok().contains("ledger"));
    assert_eq!(cloud.chitin(["database", "create", name, "ledger"]).code(), 1);
    cloud.chitin(["database", "delete", name, "ledger", "--yes"]).ok();
    assert!(!cloud.chitin(["database", "list", name]).ok().contains("ledger"));
    let person = cluster().with_new_user("come_and_go");
    person.sign_in().query("create table of_one_who_leaves (x int)").unwrap();
    assert!(cloud.chitin(["user", "list", name]).ok().contains("come_and_go"));
    cloud.chitin(["user", "delete", name, "come_and_go", "--yes"]).ok();
    assert_eq!(person.try_sign_in().err().expect("deleted").code, "28P01");
    let listed = cloud.chitin(["user", "list", name]).ok();
    assert!(!listed.contains("come_and_go") && !listed.contains("chitin"), "{listed}");
    for reserved in ["chitin", "postgres", "admin", "pg_me"] {
        assert_ne!(cloud.chitin(["user", "create", name, reserved]).code(), 0, "{reserved}");
    }
}

pub fn chitin_sql_runs_psql_with_the_right_settings() {
    let one = cluster();
    let mut command = one.cloud.command_of(&["sql", &one.name, "--user", &one.user]);
    command.args(["--", "-X", "-A", "-t", "-c", "select session_user"]).env("PGPASSWORD", &one.password);
    let finished = run(&mut command);
    assert_eq!(finished.ok(), "maria\n");
}

pub fn files_with_secrets_are_for_the_owner_only() {
    let data = cloud().data();
    let mode = |path: &Path| std::fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(&data.join("admin-key")), 0o600);
    assert_eq!(mode(&data) & 0o022, 0, "others can write into the data directory");
    for entry in std::fs::read_dir(&data).expect("the data directory").flatten() {
        let text = std::fs::read(entry.path()).unwrap_or_default();
        let is_secret = text.windows(11).any(|part| part == b"PRIVATE KEY");
        assert!(!is_secret, "{} holds a private key in the clear", entry.path().display());
        let name = entry.file_name();
        let is_public = ["ca.pem", "endpoint.json", "chitin-data"].iter().any(|public| name == *public);
        if !is_public && entry.path().is_file() {
            assert_eq!(mode(&entry.path()) & 0o077, 0, "{} is readable by others", entry.path().display());
        }
    }
}

pub fn delete_protection_holds() {
    let cloud = cloud();
    cloud.chitin(["cluster", "create", "kept-safe", "--protect"]).ok();
    let refused = cloud.chitin(["cluster", "delete", "kept-safe", "--yes"]);
    assert_eq!(refused.code(), 1);
    assert_eq!(cloud.chitin(["cluster", "show", "kept-safe"]).code(), 0);
}

pub fn verify_calls_missing_and_not_failed_what_nobody_encrypts() {
    let attested = ["--encryption", "attested", "--attestation", "a disk of the test"];
    let plain = ["--encryption", "none", "--allow-unencrypted"];
    for (name, arguments) in [("plain-files", &plain[..]), ("attested-files", &attested[..])] {
        let mut options = Options::with(&[arguments, &["--fetch-allow", "127.0.0.1/32"]].concat());
        options.environment.push(("CHITIN_THROTTLE_FREE".to_owned(), "5".to_owned()));
        let cloud = Cloud::start(options);
        cloud.chitin(["cluster", "create", name]).ok();
        let finished = run_with(&mut cloud.command(["verify", name]), b"", Duration::from_secs(400));
        assert_eq!(finished.code(), 0, "{name}: {}{}", finished.stdout, finished.stderr);
        assert!(!finished.stdout.contains("FAILED"), "{name}: {}", finished.stdout);
        assert!(finished.stdout.contains("missing"), "{name}: {}", finished.stdout);
        cloud.chitin(["cluster", "sleep", name, "--force"]).ok();
        let shown = cloud.chitin(["cluster", "show", name]).ok();
        let key = shown.lines().find(|line| line.starts_with("volume key")).expect("the key's line");
        assert!(key.contains("none"), "{key}");
    }
}

pub fn what_verify_made_for_itself_goes_when_it_is_killed() {
    let cloud = Cloud::start(Options::with(&["--fetch-allow", "127.0.0.1/32"]));
    cloud.chitin(["cluster", "create", "stays-here"]).ok();
    let mut verify = cloud
        .command(["verify", "stays-here"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let thrown_away = || {
        let list = cloud.json(["cluster", "list"]);
        let mut names =
            list.as_array().expect("a list").iter().filter_map(|one| one["name"].as_str().map(str::to_owned));
        names.find(|name| name.starts_with("verify-"))
    };
    let name = eventually("a throw-away cluster is made", PATIENCE * 4, thrown_away);
    verify.kill().expect("it is ours");
    verify.wait().expect("it ends");
    let id = cloud
        .json(["cluster", "list"])
        .as_array()
        .expect("a list")
        .iter()
        .find(|one| one["name"] == name.as_str())
        .expect("it outlives who made it")["id"]
        .clone();
    // Without anybody who asks for it, and also while the cloud was away.
    cloud.kill();
    cloud.boot();
    eventually("the cloud removes it by itself", PATIENCE * 5, || thrown_away().is_none().then_some(()));
    let folder = cloud.data().join("clusters").join(id.as_str().expect("an id"));
    eventually("its files and its key are gone", PATIENCE, || (!folder.exists()).then_some(()));
    assert_eq!(
        cloud.json(["cluster", "show", "stays-here"])["name"],
        "stays-here",
        "the cluster that was attacked stays"
    );
}

pub fn help_teaches_and_completions_exist() {
    let mut help = Command::new(house::cloud::program());
    let text = run(help.arg("help")).ok();
    for word in ["start", "cluster", "user", "verify", "sql"] {
        assert!(text.contains(word), "{word} is missing in the help");
    }
    for shell in ["bash", "zsh", "fish"] {
        let mut command = Command::new(house::cloud::program());
        assert!(run(command.args(["completions", shell])).ok().len() > 500, "{shell}");
    }
}

pub fn a_second_start_over_the_same_data_is_refused() {
    let mut second = Command::new(house::cloud::program());
    second.args(["start", "--data"]).arg(cloud().data());
    second.args(["--sql", &free_port().to_string(), "--http", &free_port().to_string()]);
    let said = run_with(&mut second, b"", PATIENCE).refused();
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(cluster().sign_in().value("select 1"), "1", "the first one is unharmed");
}

pub fn the_api_needs_a_key_and_tls_1_3() {
    let cloud = cloud();
    let url = format!("https://localhost:{}/api/v1/clusters", cloud.http_address().port());
    let root = cloud.root_certificate();
    let curl = |more: &[&str]| {
        let mut command = Command::new("curl");
        status_code(command.arg("--cacert").arg(&root).args(more).arg(&url))
    };
    let key = std::fs::read_to_string(cloud.data().join("admin-key")).expect("the key");
    assert_eq!(curl(&["-H", &format!("Authorization: Bearer {}", key.trim())]).stdout, "200");
    assert_eq!(curl(&[]).stdout, "401");
    assert_eq!(curl(&["-H", "Authorization: Bearer CCDB1_wrong_wrong"]).stdout, "401");
    assert!(!curl(&["--tls-max", "1.2"]).status.success(), "TLS 1.2 was accepted");
    let plain = format!("http://localhost:{}/api/v1/clusters", cloud.http_address().port());
    let mut command = Command::new("curl");
    let answer = run(command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &plain])).stdout;
    assert!(answer == "000" || answer.starts_with('4'), "plain HTTP was answered {answer}");
}

pub fn the_certificate_names_the_host_and_every_cluster() {
    let cloud = cloud();
    let handle = &cluster().handle;
    for name in ["localhost", &format!("{handle}.localhost"), "127.0.0.1"] {
        let mut wire = house::Wire::tcp(cloud.sql_address());
        assert_eq!(wire.ask_for_tls().unwrap(), b'S');
        wire.handshake(cloud.trust(), name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let mut wire = house::Wire::tcp(cloud.sql_address());
    assert_eq!(wire.ask_for_tls().unwrap(), b'S');
    assert!(wire.handshake(cloud.trust(), "elsewhere.example").is_err());
    let printed = cloud.chitin(["cert", "ca"]).ok();
    assert_eq!(printed.trim(), std::fs::read_to_string(cloud.root_certificate()).expect("the root").trim());
}

pub fn t47_a_new_certificate_is_taken_without_a_restart_and_a_broken_one_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let (chain, key) = certificate(directory.path(), "current", ECDSA);
    let (first_chain, _) = certificate(directory.path(), "unused", ECDSA);
    std::fs::copy(&chain, &first_chain).expect("copied");
    let cloud = Cloud::start(Options::with(&[
        "--tls-cert",
        chain.to_str().expect("a path"),
        "--tls-key",
        key.to_str().expect("a path"),
    ]));
    let one = cloud.cluster("own-certificate", &[]);
    let trusting = |root: &Path| {
        let more = format!(
            "{} host=sql.example.test sslmode=verify-full sslrootcert={}",
            one.conninfo("defaultdb"),
            root.display()
        );
        run(&mut one.client("psql", &["-X", "-A", "-t", "-c", "select 1", &more]))
    };
    assert_eq!(trusting(&first_chain).ok(), "1\n");
    let open = Stdio::piped();
    let more = format!("{} sslmode=require", one.conninfo("defaultdb"));
    // A session that was opened before both changes must still answer after them.
    let mut session = one.client("psql", &["-X", "-q", "-A", "-t", &more]);
    let mut session = session.stdin(open).stdout(Stdio::piped()).spawn().expect("psql starts");
    let mut input = session.stdin.take().expect("piped");
    let mut said = BufReader::new(session.stdout.take().expect("piped")).lines();
    input.write_all(b"select 'it is open';\n").expect("psql reads");
    assert_eq!(said.next().expect("a line").expect("text"), "it is open");
    let (next_chain, next_key) = certificate(directory.path(), "next", ECDSA);
    std::fs::copy(&next_key, &key).expect("copied");
    std::fs::copy(&next_chain, &chain).expect("copied");
    eventually("the new certificate is shown", PATIENCE, || {
        trusting(&next_chain).status.success().then_some(())
    });
    std::fs::write(&chain, "this is no certificate").expect("written");
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(trusting(&next_chain).ok(), "1\n", "a broken file must keep the old certificate");
    input.write_all(b"select 'still here';\n").expect("psql reads");
    assert_eq!(said.next().expect("a line").expect("text"), "still here");
    drop(input);
    assert!(session.wait().expect("psql ends").success());
}

pub fn t30_certificates_of_every_kind_sign_in() {
    let directory = tempfile::tempdir().expect("a directory");
    let kinds: [(&str, &[&str], bool); 4] = [
        ("rsa-sha384", &["-newkey", "rsa:2048", "-sha384"], true),
        ("ecdsa-sha512", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-sha512"], true),
        ("ecdsa-sha256", ECDSA, true),
        ("ed25519", &["-newkey", "ed25519"], false),
    ];
    for (name, more, has_binding) in kinds {
        let (chain, key) = certificate(directory.path(), name, more);
        let cloud = Cloud::start(Options::with(&[
            "--tls-cert",
            chain.to_str().expect("a path"),
            "--tls-key",
            key.to_str().expect("a path"),
        ]));
        let one = cloud.cluster("any-certificate", &[]);
        let by = |binding: &str| {
            let more = format!(
                "{} host=sql.example.test sslmode=verify-full sslrootcert={} channel_binding={binding}",
                one.conninfo("defaultdb"),
                chain.display()
            );
            run(&mut one.client("psql", &["-X", "-A", "-t", "-c", "select 1", &more]))
        };
        assert_eq!(by("prefer").ok(), "1\n", "{name}");
        assert_eq!(by("disable").ok(), "1\n", "{name}");
        assert_eq!(by("require").status.success(), has_binding, "{name}");
    }
}

pub fn t29_a_man_in_the_middle_without_plus_is_noticed_by_the_client() {
    // A relay with a certificate of its own that the client trusts: TLS ends there, so the binding cannot match.
    let directory = tempfile::tempdir().expect("a directory");
    let (chain, key) = certificate(directory.path(), "middle", ECDSA);
    let address = free_port();
    let one = cluster();
    let mut relay = Command::new("python3");
    relay.arg("-c").arg(MIDDLE).args([address.port().to_string(), cloud().sql_address().port().to_string()]);
    let mut relay = relay.arg(&chain).arg(&key).spawn().expect("python starts");
    eventually("the relay listens", PATIENCE, || std::net::TcpStream::connect(address).ok());
    let by = |binding: &str| {
        let more = format!(
            "{} sslmode=verify-full sslrootcert={} channel_binding={binding} port={}",
            one.conninfo("defaultdb"),
            chain.display(),
            address.port()
        );
        run(&mut one.client("psql", &["-X", "-A", "-t", "-c", "select 1", &more]))
    };
    let (required, preferred) = (by("require"), by("prefer"));
    relay.kill().expect("the relay is ours");
    relay.wait().expect("the relay ends");
    assert!(!required.status.success(), "a man in the middle went unnoticed");
    assert!(!preferred.status.success(), "a man in the middle went unnoticed with the default");
}

/// Ends TLS with its own certificate and opens TLS of its own to the real gateway.
const MIDDLE: &str = r#"
import socket, ssl, sys, threading
port, target, chain, key = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); server.load_cert_chain(chain, key)
client = ssl.create_default_context(); client.check_hostname = False; client.verify_mode = ssl.CERT_NONE
def pump(a, b):
    try:
        while data := a.recv(65536): b.sendall(data)
    except OSError: pass
    for s in (a, b):
        try: s.shutdown(socket.SHUT_RDWR)
        except OSError: pass
def serve(c):
    try:
        if len(c.recv(8)) < 8: return
        c.sendall(b"S"); c = server.wrap_socket(c, server_side=True)
        g = socket.create_connection(("127.0.0.1", target)); g.sendall(bytes([0,0,0,8,4,210,22,47])); g.recv(1)
        g = client.wrap_socket(g, server_hostname="localhost")
        threading.Thread(target=pump, args=(g, c), daemon=True).start(); pump(c, g)
    except OSError: pass
l = socket.create_server(("127.0.0.1", port))
while True: threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()
"#;

pub fn an_idle_client_is_ended_after_the_idle_timeout() {
    let cloud = Cloud::start(Options::with(&["--idle-timeout", "6s"]));
    let one = cloud.cluster("idle-client", &[]);
    let mut wire = one.sign_in();
    assert_eq!(wire.value("select 1 from pg_sleep(8)"), "1", "a busy session is not idle");
    let refusal = wire.expect_refusal();
    assert!(["57P05", "57P01"].contains(&refusal.code.as_str()), "{refusal:?}");
}
