//! Commands in the working directory of somebody else, who has put there what commands look for.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use house::cloud::PATIENCE;
use house::command::{Finished, eventually, run};
use house::ports::free_port;
use house::runner::skip;
use house::shared::cloud;

/// Who planted it.
const NOBODY: u32 = 65534;

/// Speaks TLS with its own certificate and keeps what it is sent.
const LISTENER: &str = r#"
import socket, ssl, sys, threading
port, chain, key, kept = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); server.load_cert_chain(chain, key)
def serve(c):
    try:
        c = server.wrap_socket(c, server_side=True)
        data = c.recv(65536)
        with open(kept, "ab", 0) as f: f.write(data)
        c.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    except OSError: pass
l = socket.create_server(("127.0.0.1", port))
while True: threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()
"#;

/// A folder of nobody's with a planted `.chitin` in it, and the listener to which that leads.
struct Trap {
    folder: tempfile::TempDir,
    address: SocketAddr,
    listener: Child,
}

impl Trap {
    fn set(real_key: &Path) -> Self {
        if !rustix::process::geteuid().is_root() {
            skip("a folder of somebody else's needs root");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(".chitin").join(name);
        std::fs::create_dir(at("")).expect("a folder");
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-nodes", "-days", "3", "-subj", "/CN=trap"]);
        openssl.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        openssl.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        run(openssl.arg("-out").arg(at("ca.pem")).arg("-keyout").arg(at("key"))).ok();
        let address = free_port();
        std::fs::write(at("endpoint.json"), format!(r#"{{"http":"{address}"}}"#)).expect("a file");
        symlink(real_key, at("admin-key")).expect("a link");
        let mut listener = Command::new("python3");
        listener.arg("-c").arg(LISTENER).arg(address.port().to_string());
        listener.arg(at("ca.pem")).arg(at("key")).arg(folder.path().join("kept"));
        let listener = listener.spawn().expect("python starts");
        let trap = Self { folder, address, listener };
        eventually("the trap listens", PATIENCE, || std::net::TcpStream::connect(address).ok());
        trap.give_to(NOBODY);
        trap
    }

    fn planted(&self) -> PathBuf {
        self.folder.path().join(".chitin")
    }

    fn give_to(&self, uid: u32) {
        for name in ["", "ca.pem", "key", "endpoint.json"] {
            chown(self.planted().join(name), Some(uid), Some(uid)).expect("we are root");
        }
        std::fs::set_permissions(self.planted(), std::fs::Permissions::from_mode(0o755)).expect("root");
        chown(self.folder.path(), Some(uid), Some(uid)).expect("we are root");
        std::fs::set_permissions(self.folder.path(), std::fs::Permissions::from_mode(0o755)).expect("root");
    }

    /// Runs the program there.
    fn chitin(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Finished {
        let mut command = Command::new(house::cloud::program());
        command.args(arguments).current_dir(self.folder.path());
        for name in ["CHITIN_DATA", "CHITIN_URL", "CHITIN_API_KEY", "CHITIN_CA"] {
            command.env_remove(name);
        }
        run(command.envs(environment.iter().copied()))
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// What the listener was sent.
    fn kept(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path().join("kept")).unwrap_or_default())
            .into_owned()
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        let _ = self.listener.kill();
        let _ = self.listener.wait();
    }
}

pub fn a_planted_data_directory_gets_nobody_s_key() {
    let cloud = cloud();
    let trap = Trap::set(&cloud.data().join("admin-key"));
    for command in [["cluster", "list"].as_slice(), &["status"], &["verify", "my-shop"], &["key", "list"]] {
        let refused = trap.chitin(command, &[]);
        assert_eq!((refused.code(), trap.kept().as_str()), (1, ""), "{command:?}: {}", refused.stderr);
        assert!(refused.stderr.contains("belongs to another user (uid 65534)"), "{}", refused.stderr);
        assert!(refused.stderr.contains("full path"), "{}", refused.stderr);
    }
    // By the environment of a shell it is no more believed; nor is a link in its place to what is really root's.
    let relative = trap.chitin(&["status"], &[("CHITIN_DATA", ".chitin")]);
    assert!(relative.refused().contains("belongs to another user"));
    std::fs::rename(trap.planted(), trap.folder.path().join("away")).expect("a folder");
    symlink(cloud.data(), trap.planted()).expect("a link");
    assert!(trap.chitin(&["status"], &[]).refused().contains("it is a link"));
    std::fs::remove_file(trap.planted()).expect("a link");
    std::fs::rename(trap.folder.path().join("away"), trap.planted()).expect("a folder");
    // Also where the operator names it, no link in it stands for the key of another cloud.
    let named = trap.planted();
    let refused = trap.chitin(&["status", "--data", named.to_str().expect("a path")], &[]);
    assert!(refused.refused().contains("it is a link"));
    assert_eq!(trap.kept(), "");
}

pub fn a_planted_root_certificate_gets_nobody_s_key() {
    let trap = Trap::set(&cloud().data().join("admin-key"));
    let url = trap.url();
    let key = ("CHITIN_API_KEY", "canary-key");
    let list = ["cluster", "list", "--url", url.as_str()];
    let refused = trap.chitin(&list, &[key]);
    assert_eq!((refused.code(), trap.kept().as_str()), (3, ""), "{}", refused.stderr);
    for named in [("CHITIN_CA", ".chitin/ca.pem"), ("CHITIN_DATA", ".chitin")] {
        let refused = trap.chitin(&list, &[key, named]);
        assert_eq!((refused.code(), trap.kept().as_str()), (1, ""), "{named:?}: {}", refused.stderr);
        assert!(refused.stderr.contains("belongs to another user"), "{}", refused.stderr);
    }
    // The trap works: whoever trusts it by its full path is led there.
    let by_path = trap.planted().join("ca.pem");
    trap.chitin(&list, &[key, ("CHITIN_CA", by_path.to_str().expect("a path"))]);
    assert!(trap.kept().contains("canary-key"));
}

pub fn a_cloud_is_not_started_where_somebody_else_can_exchange_its_folder() {
    let trap = Trap::set(Path::new("/nonexistent"));
    std::fs::rename(trap.planted(), trap.folder.path().join("away")).expect("a folder");
    for command in [["start"].as_slice(), &["key", "recover", "backup"]] {
        let said = trap.chitin(command, &[]).refused();
        assert!(said.contains("belongs to another user (uid 65534)"), "{said}");
        assert!(!trap.planted().exists(), "{command:?} made it");
    }
}
