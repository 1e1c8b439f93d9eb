//! An OpenID provider of the test's own: the npm package `oidc-provider` on loopback, with a door for tests.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::api::curl;
use crate::cloud::{Cloud, kept};
use crate::ports::free_port;

/// The client id under which a cloud is known there.
pub const CLIENT_ID: &str = "chitin";
/// The client's secret there.
pub const CLIENT_SECRET: &str = "a-client-secret-of-the-tests-0123456789";
/// The audience of tokens that are given as a password.
pub const AUDIENCE: &str = "chitin-sql";

/// A running provider.
pub struct Provider {
    process: Child,
    /// It ends when this is closed.
    _stdin: ChildStdin,
    issuer: String,
    /// With what it said, in the file `log`.
    folder: tempfile::TempDir,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set").as_secs()
}

impl Provider {
    /// Starts a provider that signs with this algorithm: RS256, PS256, ES256 or EdDSA.
    pub fn start(algorithm: &str) -> Self {
        Self::start_at(algorithm, 0)
    }

    /// Starts a provider at a port that was chosen before, for tests in which it comes late.
    pub fn start_at(algorithm: &str, port: u16) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/oidc/server.mjs");
        let folder = tempfile::tempdir().expect("a temporary directory");
        let log = std::fs::File::create(folder.path().join("log")).expect("a scratch file");
        let mut process = Command::new("node")
            .arg(&script)
            .env("ALG", algorithm)
            .env("PORT", port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("node starts; ./test installs it");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("the provider says where it is");
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
            let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            panic!("{error} in {line:?}; ./test installs the provider's packages; it said:\n{log}")
        });
        let stdin = process.stdin.take().expect("piped");
        Self {
            issuer: said["issuer"].as_str().expect("an issuer").to_owned(),
            process,
            _stdin: stdin,
            folder,
        }
    }

    /// A port on which nothing listens yet, with the issuer that a provider there would be.
    pub fn of_the_future() -> (u16, String) {
        let port = free_port().port();
        (port, format!("http://127.0.0.1:{port}"))
    }

    /// Its issuer.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let mut command = Command::new("curl");
        command.args(["-X", method, &format!("{}/control/{path}", self.issuer)]);
        curl(&mut command, body).ok()
    }

    /// Sets accounts, clients, faults and so on; see the script.
    pub fn set(&self, settings: &Value) {
        self.ask("POST", "set", Some(settings));
    }

    /// Sets what an account's tokens say beside `sub`, which is its login name.
    pub fn set_account(&self, name: &str, claims: &Value) {
        self.set(&json!({ "accounts": { name: claims } }));
    }

    /// Lets a path misbehave; null ends all faults.
    pub fn set_fault(&self, path: &str, fault: &Value) {
        let faults = if fault.is_null() { json!({}) } else { json!({ path: fault }) };
        self.set(&json!({ "faults": faults }));
    }

    /// Makes a cloud known as a client.
    pub fn register(&self, cloud: &Cloud) {
        self.set(&json!({ "clients": [{
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "redirect_uris": [cloud.web("/oidc/v1/callback")],
        }] }));
    }

    /// How a cloud is told of it, for tokens as a password and for browsers.
    pub fn settings(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "audiences": [AUDIENCE],
            "scopes": ["openid", "email", "groups"],
        })
    }

    /// As [`Provider::settings`], with more or other fields.
    pub fn settings_with(&self, more: &Value) -> Value {
        with(&self.settings(), more)
    }

    /// What a good token for a SQL user says.
    pub fn claims(&self, user: &str) -> Value {
        json!({ "iss": self.issuer, "sub": user, "aud": AUDIENCE, "iat": now(), "exp": now() + 300 })
    }

    /// A good token.
    pub fn token(&self, user: &str) -> String {
        self.mint(&json!({ "claims": self.claims(user) }))
    }

    /// A good token but for these claims; null takes a claim away.
    pub fn token_with(&self, user: &str, more: &Value) -> String {
        self.mint(&json!({ "claims": with(&self.claims(user), more) }))
    }

    /// Any token; see `mint` in the script.
    pub fn mint(&self, request: &Value) -> String {
        self.ask("POST", "mint", Some(request))["token"].as_str().expect("a token").to_owned()
    }

    /// Signs with a new key from now on; with `keep`, the old one stays published.
    pub fn rotate(&self, algorithm: Option<&str>, keep: bool) {
        let mut request = json!({ "keep": keep });
        if let Some(algorithm) = algorithm {
            request["alg"] = algorithm.into();
        }
        self.ask("POST", "rotate", Some(&request));
    }

    /// The keys that it publishes.
    pub fn keys(&self) -> Value {
        self.ask("GET", "keys", None)
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> u64 {
        self.ask("GET", "counts", None)[path].as_u64().unwrap_or(0)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the provider's log is left in {}", kept(&mut self.folder));
        }
    }
}

/// An object with the fields of another put over it; null takes a field away.
pub fn with(base: &Value, more: &Value) -> Value {
    let mut all = base.as_object().expect("an object").clone();
    for (name, value) in more.as_object().expect("an object") {
        if value.is_null() {
            all.remove(name);
        } else {
            all.insert(name.clone(), value.clone());
        }
    }
    Value::Object(all)
}
