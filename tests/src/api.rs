//! The API as a script calls it: every status is an answer. And how a cluster lets people in, set through it.

use std::io::{self, Read};
use std::process::Command;

use serde_json::{Value, json};

use crate::cloud::{Cloud, Cluster, PATIENCE};
use crate::command::{eventually, run_with};
use crate::wire::Wire;

/// An answer of the API.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body; null where it is not JSON.
    pub body: Value,
    /// The body as it came.
    pub text: String,
}

impl Answer {
    /// The body of a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{}: {}", self.status, self.text);
        self.body
    }

    /// The text of a refusal with this status.
    #[track_caller]
    pub fn refused(self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        self.text
    }
}

/// Runs curl; the last line that it writes is the status. Again while it is refused only because others use the same key.
pub fn curl(command: &mut Command, body: Option<&Value>) -> Answer {
    command.args(["-sS", "--max-time", "60", "-w", "\n%{http_code}"]);
    if body.is_some() {
        command.args(["-H", "Content-Type: application/json", "--data-binary", "@-"]);
    }
    let input = body.map(ToString::to_string).unwrap_or_default();
    let said = eventually("the API's rate limit lets us in", PATIENCE, || {
        let said = run_with(command, input.as_bytes(), PATIENCE).ok();
        (!said.contains("rate limit exceeded")).then_some(said)
    });
    let (text, status) = said.rsplit_once('\n').expect("curl writes the status on a line of its own");
    Answer {
        status: status.parse().expect("a status"),
        body: serde_json::from_str(text).unwrap_or(Value::Null),
        text: text.to_owned(),
    }
}

/// Reads an answer of HTTP/1.1 whose length is said, and nothing after it.
pub fn read_answer(wire: &mut Wire) -> io::Result<Answer> {
    let cut_off = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let mut bytes = Vec::new();
    loop {
        let mut more = [0; 4096];
        let count = wire.read(&mut more)?;
        if count == 0 {
            return Err(cut_off());
        }
        bytes.extend(&more[..count]);
        let said = String::from_utf8_lossy(&bytes);
        let Some((head, text)) = said.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let length: usize = length.and_then(|length| length.parse().ok()).expect("a length");
        if text.len() >= length {
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
            let body = serde_json::from_str(text).unwrap_or(Value::Null);
            return Ok(Answer { status, body, text: text.to_owned() });
        }
    }
}

impl Cluster<'_> {
    /// The row of `chitin verify` with this claim, of those that only the inside can prove.
    pub fn proof(&self, claim: &str) -> Value {
        let proof = self.cloud.call("POST", &format!("/api/v1/chitin/clusters/{}/proof", self.id), None).ok();
        let rows = proof["rows"].as_array().expect("rows").iter();
        let mut found = rows.filter(|row| row["claim"].as_str().is_some_and(|text| text.contains(claim)));
        found.next().cloned().unwrap_or_else(|| panic!("no row says {claim}: {proof}"))
    }
}

impl Cloud {
    /// Begins a call and leaves it: for one that is not answered.
    pub fn begin_call(&self, method: &str, path: &str, body: &Value) -> std::process::Child {
        let key = std::fs::read_to_string(self.data().join("admin-key")).expect("the administrator's key");
        let mut command = self.program("curl");
        command.args(["-sS", "--max-time", "60", "-X", method, "--cacert"]).arg(self.root_certificate());
        command.args(["-H", &format!("Authorization: Bearer {}", key.trim())]);
        command.args(["-H", "Content-Type: application/json", "--data-binary", &body.to_string()]);
        let silent = std::process::Stdio::null;
        command.arg(self.web(path)).stdin(silent()).stdout(silent()).stderr(silent());
        command.spawn().expect("curl starts")
    }

    /// Calls the API as the local administrator.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        // Tests that wait for something ask more often than an administrator may; they wait as a client would.
        eventually("the API's rate limit lets us in", PATIENCE, || {
            let mut wire = self.connect(self.http_address(), None).expect("the API listens");
            wire.handshake(self.trust(), "localhost").expect("the API speaks TLS 1.3");
            let answer = self.speak(&mut wire, method, path, body).expect("the API answers");
            (!answer.text.contains("rate limit exceeded")).then_some(answer)
        })
    }

    /// Asks one thing as the local administrator, over a connection to any of the API's doors that is encrypted already.
    pub fn speak(
        &self,
        wire: &mut Wire,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<Answer> {
        self.ask(wire, method, path, body)?;
        read_answer(wire)
    }

    /// Sends what [`Cloud::speak`] sends. The answer is for [`read_answer`].
    pub fn ask(&self, wire: &mut Wire, method: &str, path: &str, body: Option<&Value>) -> io::Result<()> {
        let key = std::fs::read_to_string(self.data().join("admin-key")).expect("the administrator's key");
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            key.trim(),
            body.len()
        );
        wire.send_raw(request.as_bytes())
    }

    /// An address of the API's port, as a browser on this machine knows it.
    pub fn web(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.http_address().port())
    }

    /// Sets a provider of the whole cloud; untried, see `untried`.
    pub fn set_provider(&self, name: &str, settings: &Value) -> Answer {
        self.call("PUT", &format!("/api/v1/chitin/providers/{name}"), Some(&untried(settings)))
    }
}

impl Cluster<'_> {
    fn own(&self, path: &str) -> String {
        format!("/api/v1/chitin/clusters/{}{path}", self.id)
    }

    /// Sets the rules; a refusal is an answer.
    pub fn try_set_rules(&self, text: &str) -> Answer {
        self.cloud.call("PUT", &self.own("/hba"), Some(&json!({ "text": text })))
    }

    /// Sets the rules.
    #[track_caller]
    pub fn set_rules(&self, text: &str) {
        self.try_set_rules(text).ok();
    }

    /// Sets the identity map; a refusal is an answer.
    pub fn try_set_map(&self, text: &str) -> Answer {
        self.cloud.call("PUT", &self.own("/identity-map"), Some(&json!({ "text": text })))
    }

    /// Sets the identity map.
    #[track_caller]
    pub fn set_map(&self, text: &str) {
        self.try_set_map(text).ok();
    }

    /// Sets or replaces the client authorities; a refusal is an answer.
    pub fn try_set_authorities(&self, pem: &str) -> Answer {
        let path = format!("/api/v1/clusters/{}/client-ca-cert", self.id);
        let is_set = self.cloud.call("GET", &path, None).ok()["status"] == "IS_SET";
        self.cloud.call(if is_set { "PATCH" } else { "POST" }, &path, Some(&json!({ "x509_pem_cert": pem })))
    }

    /// Sets or replaces the client authorities.
    #[track_caller]
    pub fn set_authorities(&self, pem: &str) {
        self.try_set_authorities(pem).ok();
    }

    /// Sets how revocation is asked for.
    #[track_caller]
    pub fn set_ocsp(&self, settings: &Value) {
        self.cloud.call("PUT", &self.own("/ocsp"), Some(settings)).ok();
    }

    /// Sets the revocation lists; a refusal is an answer.
    pub fn try_set_lists(&self, pem: &str) -> Answer {
        self.cloud.call("PUT", &self.own("/crls"), Some(&json!({ "pem": pem })))
    }

    /// Sets revocation lists, and that authorities need none.
    pub fn set_lists_and_accept_without(&self, pem: &str) -> Answer {
        let body = json!({ "pem": pem, "accept_without_list": true });
        self.cloud.call("PUT", &self.own("/crls"), Some(&body))
    }

    /// Takes the revocation lists away.
    #[track_caller]
    pub fn forget_lists(&self) {
        self.cloud.call("DELETE", &self.own("/crls"), None).ok();
    }

    /// Sets a provider that only this cluster trusts; untried, see `untried`.
    pub fn set_provider(&self, name: &str, settings: &Value) -> Answer {
        self.cloud.call("PUT", &self.own(&format!("/providers/{name}")), Some(&untried(settings)))
    }
}

/// Settings that count without being tried, where they do not say otherwise: many providers of the tests are down or lie when
/// they are set.
fn untried(settings: &Value) -> Value {
    let mut settings = settings.clone();
    if let Some(object) = settings.as_object_mut() {
        object.entry("force").or_insert(true.into());
    }
    settings
}

/// The base64 SHA-256 of the public key that the cloud's web side serves, as browsers pin it. That its certificate chains
/// to the cloud's root and is for `localhost` is checked here, because a browser asks no more of what is pinned.
pub fn pin(cloud: &Cloud) -> String {
    let pipe = "set -o pipefail; openssl s_client -connect \"$0\" -servername localhost -verify_hostname localhost -verify_return_error \
        -CAfile \"$1\" </dev/null 2>/dev/null | openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64";
    let mut command = Command::new("bash");
    command.args(["-c", pipe, &cloud.http_address().to_string()]).arg(cloud.root_certificate());
    run_with(&mut command, b"", PATIENCE).ok().trim().to_owned()
}
