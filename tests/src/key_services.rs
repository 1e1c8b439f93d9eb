//! Real key services of the tests' own: OpenBao, AWS KMS as moto plays it, and SoftHSM2. All on this machine.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{Answer, curl};
use crate::cloud::{Cloud, kept};
use crate::command::{eventually, run};
use crate::ports::{free_port, two_free_ports};
use crate::switch::Switch;

/// For a service to be ready.
const READY: Duration = Duration::from_secs(60);
/// Whom OpenBao lets do everything.
const ROOT_TOKEN: &str = "root-token-of-the-tests";
/// The PIN of the token's user.
pub const PIN: &str = "7304190285";
/// SoftHSM2, where Debian puts it.
pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const REGION: &str = "eu-central-1";

/// A program that `./test` installs for the tests of key services.
fn installed(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-clients/keys/bin").join(name);
    assert!(path.exists(), "{} is missing; run ./test once, which installs it", path.display());
    path
}

/// A program that ends with its test. What it says is in the file `log` of its folder, which stays when a test fails.
struct Program {
    process: Child,
    folder: tempfile::TempDir,
}

impl Program {
    fn start(command: &mut Command, folder: tempfile::TempDir) -> Self {
        let log = fs::File::create(folder.path().join("log")).expect("a scratch file");
        let both = log.try_clone().expect("a scratch file");
        let started = command.stdin(Stdio::null()).stdout(both).stderr(log).spawn();
        let process = started.unwrap_or_else(|error| panic!("{command:?}: {error}; run ./test once"));
        Self { process, folder }
    }

    /// Waits until curl with these arguments gets an answer; where it gets none, the folder stays.
    fn await_answer(&mut self, what: &str, arguments: &[&str]) {
        eventually(what, READY, || {
            let ended = self.process.try_wait().expect("ours");
            assert!(ended.is_none(), "{what}: it ended with {ended:?}");
            run(Command::new("curl").args(["-sS", "--max-time", "5"]).args(arguments))
                .status
                .success()
                .then_some(())
        });
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the log of a program that the test started is left in {}", kept(&mut self.folder));
        }
    }
}

/// A running OpenBao with a transit engine.
pub struct Bao {
    program: Program,
    address: SocketAddr,
    /// The way that clouds take to it.
    pub door: Switch,
}

impl Bao {
    /// Starts one. It keeps everything in memory.
    pub fn start() -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        // It takes the port after the one where it answers too, for other nodes.
        let address = two_free_ports();
        let mut command = Command::new(installed("bao"));
        command.env("HOME", home.path()).args(["server", "-dev", "-dev-no-store-token"]);
        command.arg(format!("-dev-root-token-id={ROOT_TOKEN}"));
        command.arg(format!("-dev-listen-address={address}"));
        let mut program = Program::start(&mut command, home);
        program.await_answer("OpenBao answers", &["--fail", &format!("http://{address}/v1/sys/health")]);
        let bao = Self { program, address, door: Switch::to(address) };
        bao.admin("POST", "sys/mounts/transit", &json!({ "type": "transit" }));
        bao.admin("POST", "sys/auth/approle", &json!({ "type": "approle" }));
        bao
    }

    /// The process, for tests that end it.
    pub fn pid(&self) -> u32 {
        self.program.process.id()
    }

    /// Where clouds reach it.
    pub fn url(&self) -> String {
        format!("http://{}", self.door.address())
    }

    /// Asks as whoever may do everything.
    pub fn admin(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut command = Command::new("curl");
        command.args(["-X", method, "-H", &format!("X-Vault-Token: {ROOT_TOKEN}")]);
        command.arg(format!("http://{}/v1/{path}", self.address));
        curl(&mut command, Some(body)).ok()
    }

    /// Makes a key.
    pub fn make_key(&self, name: &str) {
        self.admin("POST", &format!("transit/keys/{name}"), &json!({ "type": "aes256-gcm96" }));
    }

    /// Gives a key a new version.
    pub fn rotate(&self, name: &str) {
        self.admin("POST", &format!("transit/keys/{name}/rotate"), &json!({}));
    }

    /// Destroys versions before this one for good.
    pub fn destroy_before(&self, name: &str, version: u32) {
        let path = format!("transit/keys/{name}/config");
        self.admin(
            "POST",
            &path,
            &json!({ "min_decryption_version": version, "min_encryption_version": version }),
        );
        self.admin(
            "POST",
            &format!("transit/keys/{name}/trim"),
            &json!({ "min_available_version": version }),
        );
    }

    /// Destroys a key for good.
    pub fn destroy(&self, name: &str) {
        self.admin("POST", &format!("transit/keys/{name}/config"), &json!({ "deletion_allowed": true }));
        self.admin("DELETE", &format!("transit/keys/{name}"), &json!({}));
    }

    /// Sets who may use keys whose names begin so.
    pub fn permit(&self, policy: &str, prefix: &str) {
        let rules = format!(
            "path \"transit/keys/{prefix}*\" {{ capabilities = [\"read\"] }}\n\
             path \"transit/encrypt/{prefix}*\" {{ capabilities = [\"update\"] }}\n\
             path \"transit/decrypt/{prefix}*\" {{ capabilities = [\"update\"] }}\n"
        );
        self.admin("PUT", &format!("sys/policies/acl/{policy}"), &json!({ "policy": rules }));
    }

    /// Takes every right of the policy away.
    pub fn forbid(&self, policy: &str) {
        let rules = "path \"transit/keys/nothing\" { capabilities = [\"read\"] }";
        self.admin("PUT", &format!("sys/policies/acl/{policy}"), &json!({ "policy": rules }));
    }

    /// A token with the policy.
    pub fn token(&self, policy: &str) -> String {
        let body = json!({ "policies": [policy], "ttl": "2h", "no_parent": true });
        let made = self.admin("POST", "auth/token/create", &body);
        made["auth"]["client_token"].as_str().expect("a token").to_owned()
    }

    /// A role with the policy: its id and a secret id.
    pub fn app_role(&self, policy: &str) -> (String, String) {
        let role = format!("auth/approle/role/{policy}");
        self.admin("POST", &role, &json!({ "token_policies": [policy], "token_ttl": "2h" }));
        let id = self.admin("GET", &format!("{role}/role-id"), &json!({}));
        let secret = self.admin("POST", &format!("{role}/secret-id"), &json!({}));
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        (text(&id["data"]["role_id"]), text(&secret["data"]["secret_id"]))
    }

    /// Makes the key NAME and a key service NAME of the cloud that may use keys whose names begin so. Returns the key.
    pub fn tenant(&self, cloud: &Cloud, name: &str) -> Value {
        self.make_key(name);
        self.permit(name, name);
        let (role_id, secret_id) = self.app_role(name);
        let credentials = json!({ "role_id": role_id, "secret_id": secret_id });
        let body = json!({ "type": "VAULT_TRANSIT", "address": self.url(), "credentials": credentials });
        set_service(cloud, name, &body).ok();
        self.key(name, name)
    }

    /// A key as the Cloud API names it.
    pub fn key(&self, service: &str, name: &str) -> Value {
        json!({ "type": "VAULT_TRANSIT", "uri": format!("transit/keys/{name}"), "auth_principal": "", "service": service })
    }
}

/// Sets a key service of the cloud.
pub fn set_service(cloud: &Cloud, name: &str, body: &Value) -> Answer {
    cloud.call("PUT", &format!("/api/v1/chitin/key-services/{name}"), Some(body))
}

/// AWS as moto plays it, with a user whose signatures and policies are checked.
pub struct Aws {
    _program: Program,
    address: SocketAddr,
    access_key_id: String,
    secret_access_key: String,
}

impl Aws {
    /// Starts it, with a user that may use keys.
    pub fn start() -> Self {
        let address = free_port();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/keys/aws.py");
        let mut command = Command::new(installed("python"));
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut program = Program::start(command.arg(script).arg(address.port().to_string()), folder);
        program.await_answer("moto answers", &[&format!("http://{address}/")]);
        let mut aws = Self {
            _program: program,
            address,
            access_key_id: String::new(),
            secret_access_key: String::new(),
        };
        aws.iam("Action=CreateUser&UserName=chitin");
        let made = aws.iam("Action=CreateAccessKey&UserName=chitin");
        aws.access_key_id = element(&made, "AccessKeyId");
        aws.secret_access_key = element(&made, "SecretAccessKey");
        let policy = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C\
                      %22Action%22%3A%5B%22kms%3AEncrypt%22%2C%22kms%3ADecrypt%22%5D%2C%22Resource%22%3A%22*%22%7D%5D%7D";
        aws.iam(&format!("Action=PutUserPolicy&UserName=chitin&PolicyName=keys&PolicyDocument={policy}"));
        aws
    }

    fn send(&self, service: &str, headers: &[String], body: &str) -> String {
        // Moto finds the service by what is signed; nobody looks at an administrator's signature.
        let authorization = format!(
            "Authorization: AWS4-HMAC-SHA256 Credential=ADMIN/20260101/{REGION}/{service}/aws4_request, \
             SignedHeaders=host, Signature=0"
        );
        let ask = |path: &str, headers: &[String], body: &str| {
            let mut command = Command::new("curl");
            command.args(["-sS", "--fail-with-body", "--max-time", "30", "-X", "POST"]);
            for header in headers {
                command.args(["-H", header]);
            }
            run(command.args(["--data-binary", body]).arg(format!("http://{}{path}", self.address))).ok()
        };
        // Curl would call it a form, and moto would read it as one.
        let plain = ["Content-Type: text/plain".to_owned()];
        ask("/moto-api/reset-auth", &plain, "1000000");
        let mut all = vec![authorization];
        all.extend_from_slice(headers);
        let answer = ask("/", &all, body);
        // From here on every signature and every policy counts.
        ask("/moto-api/reset-auth", &plain, "0");
        answer
    }

    fn iam(&self, form: &str) -> String {
        self.send("iam", &["Content-Type: application/x-www-form-urlencoded".into()], form)
    }

    /// Asks KMS as an administrator.
    pub fn kms(&self, action: &str, body: &Value) -> Value {
        let headers = [
            format!("X-Amz-Target: TrentService.{action}"),
            "Content-Type: application/x-amz-json-1.1".into(),
        ];
        serde_json::from_str(&self.send("kms", &headers, &body.to_string())).unwrap_or_default()
    }

    /// Makes a key; returns its ARN.
    pub fn new_key(&self) -> String {
        let made = self.kms("CreateKey", &json!({}));
        made["KeyMetadata"]["Arn"].as_str().expect("an ARN").to_owned()
    }

    /// The key service of a cloud that leads here.
    pub fn service(&self) -> Value {
        json!({
            "type": "AWS_KMS",
            "address": format!("http://{}", self.address),
            "credentials": { "access_key_id": self.access_key_id, "secret_access_key": self.secret_access_key },
        })
    }
}

fn element(xml: &str, name: &str) -> String {
    let (_, rest) = xml.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name} in {xml}"));
    rest.split('<').next().expect("a text").to_owned()
}

/// A token of SoftHSM2.
pub struct Hsm {
    folder: tempfile::TempDir,
}

impl Hsm {
    /// Makes a token `chitin`.
    pub fn make() -> Self {
        assert!(Path::new(MODULE).exists(), "{MODULE} is missing; run ./test once, which installs SoftHSM2");
        let folder = tempfile::tempdir().expect("a temporary directory");
        let tokens = folder.path().join("tokens");
        fs::create_dir(&tokens).expect("a scratch folder");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        fs::write(folder.path().join("softhsm2.conf"), text).expect("a scratch file");
        let hsm = Self { folder };
        let mut command = hsm.command("softhsm2-util");
        command.args(["--init-token", "--free", "--label", "chitin", "--so-pin", "12345678", "--pin", PIN]);
        run(&mut command).ok();
        hsm
    }

    /// The environment in which SoftHSM2 finds the token.
    pub fn environment(&self) -> (String, String) {
        ("SOFTHSM2_CONF".to_owned(), self.folder.path().join("softhsm2.conf").display().to_string())
    }

    fn command(&self, program: &str) -> Command {
        let (name, value) = self.environment();
        let mut command = Command::new(program);
        command.env(name, value);
        command
    }

    fn tool(&self, arguments: &[&str]) {
        let mut command = self.command("pkcs11-tool");
        command.args(["--module", MODULE, "--token-label", "chitin", "--login", "--pin", PIN]);
        run(command.args(arguments)).ok();
    }

    /// Makes a key that does not leave the token.
    pub fn make_key(&self, label: &str, id: &str) {
        self.tool(&["--keygen", "--key-type", "AES:32", "--label", label, "--id", id, "--sensitive"]);
    }

    /// Destroys a key.
    pub fn destroy(&self, label: &str, id: &str) {
        self.tool(&["--delete-object", "--type", "secrkey", "--label", label, "--id", id]);
    }

    /// The key service of a cloud that leads here.
    pub fn service(&self) -> Value {
        json!({ "type": "PKCS11", "address": MODULE, "credentials": { "pin": PIN } })
    }
}

/// OpenBao for all tests of a binary.
pub fn bao() -> &'static Bao {
    static SHARED: OnceLock<Bao> = OnceLock::new();
    SHARED.get_or_init(Bao::start)
}
