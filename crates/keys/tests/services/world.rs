//! What the tests of key services stand on: a way to loopback, programs that are ended, and keys that are asked for.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keys::{Binding, KeyEncryption, KeyFailure};
use model::{
    Clock, ClusterId, Fetch, FetchFailure, Fetched, Fetcher, KeyCredentials, KeyService, KeySpec, KeyType,
};
use time::OffsetDateTime;

/// For a program to be ready.
const READY: Duration = Duration::from_secs(60);

/// Fetches from this machine, and remembers on whose behalf.
#[derive(Default)]
pub struct Loopback {
    pub count: AtomicUsize,
    pub fetches: Mutex<Vec<Fetch>>,
}

#[async_trait]
impl Fetcher for Loopback {
    async fn fetch(&self, fetch: Fetch) -> Result<Fetched, FetchFailure> {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.fetches.lock().unwrap().push(fetch.clone());
        let failed = |cause: reqwest::Error| FetchFailure::Failed(cause.without_url().to_string());
        let client = client(fetch.ca_pem.as_deref());
        let mut request = match fetch.body {
            Some(body) => client.post(&fetch.url).header("content-type", body.kind).body(body.bytes.0),
            None => client.get(&fetch.url),
        };
        request = request.header("accept", fetch.accept).timeout(fetch.time_max);
        if let Some(authorization) = fetch.authorization {
            request = request.header("authorization", authorization.0);
        }
        for (name, value) in fetch.headers {
            request = request.header(name, value.0);
        }
        let answer = request.send().await.map_err(failed)?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(failed)?.to_vec();
        if body.len() > fetch.bytes_max {
            return Err(FetchFailure::TooLong(fetch.bytes_max));
        }
        Ok(Fetched { status, kind: "application/json".into(), max_age: None, body })
    }
}

/// A client that trusts these certificates alone, follows nothing and knows no proxy.
pub fn client(ca_pem: Option<&str>) -> reqwest::Client {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(pem) = ca_pem {
        use rustls_pki_types::pem::PemObject;
        for certificate in rustls_pki_types::CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .use_preconfigured_tls(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .unwrap()
}

/// A clock that tests set forward.
pub struct TestClock(Mutex<time::Duration>);

impl TestClock {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(time::Duration::ZERO)))
    }

    pub fn advance(&self, by: time::Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for TestClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + *self.0.lock().unwrap()
    }
}

/// A program that ends with its test. What it says is in the file `log` of its folder, which stays when a test fails.
pub struct Program {
    process: Child,
    folder: tempfile::TempDir,
}

impl Program {
    pub fn start(command: &mut Command, folder: tempfile::TempDir) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let both = log.try_clone().unwrap();
        let started = command.stdin(Stdio::null()).stdout(both).stderr(log).spawn();
        let process =
            started.unwrap_or_else(|cause| panic!("{name} does not start: {cause}; run ./test once"));
        Self { process, folder }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!(
                "the log of a program that the test started is left in {}",
                self.folder.path().display()
            );
        }
    }
}

/// The top of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// A program that ./test installs for the tests of key services.
pub fn installed(name: &str) -> PathBuf {
    let path = workspace().join("target/test-clients/keys/bin").join(name);
    assert!(path.exists(), "{} is missing; run ./test once, which installs it", path.display());
    path
}

/// Waits until something answers there.
pub async fn ready(url: &str, ca_pem: Option<&str>) {
    let begun = Instant::now();
    while client(ca_pem).get(url).timeout(Duration::from_secs(2)).send().await.is_err() {
        assert!(begun.elapsed() < READY, "{url} does not answer");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub fn service(kind: KeyType, address: &str, credentials: KeyCredentials) -> KeyService {
    KeyService {
        name: "vault".parse().unwrap(),
        kind,
        address: address.to_owned(),
        ca_pem: None,
        namespace: None,
        credentials,
        updated_at: OffsetDateTime::now_utc(),
    }
}

pub fn spec(kind: KeyType, uri: &str) -> KeySpec {
    KeySpec { kind, uri: uri.to_owned(), service: Some("vault".parse().unwrap()), ..KeySpec::root() }
}

pub fn open(service: &KeyService, spec: &KeySpec) -> Arc<dyn KeyEncryption> {
    keys::service::open(service, spec, Arc::<Loopback>::default(), Arc::new(model::SystemClock)).unwrap()
}

pub fn place() -> Binding {
    Binding::Volume(ClusterId::random())
}

/// What a failure is, without its text.
pub fn kind_of<T>(result: Result<T, KeyFailure>) -> &'static str {
    match result {
        Ok(_) => "opens",
        Err(KeyFailure::Denied { .. }) => "denied",
        Err(KeyFailure::Unauthenticated { .. }) => "unauthenticated",
        Err(KeyFailure::Unreachable { .. }) => "unreachable",
        Err(KeyFailure::Unusable { .. }) => "unusable",
        Err(KeyFailure::DoesNotOpen { .. }) => "does not open",
        Err(KeyFailure::NotItsKey { .. }) => "not its key",
    }
}
