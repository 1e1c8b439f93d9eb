//! Keeps an OCSP answer at hand that is shown with the operator's certificate, so that clients need ask nobody
//! (RFC 6066, section 8). An answer that cannot be had leaves the older one in place for as long as that is valid.

use std::sync::Arc;
use std::time::Duration;

use keys::client::Step;
use keys::ocsp::{self, Status};
use model::{Clock, Fetch, FetchBody, Fetcher, Hidden};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::certificates::Certificates;

/// How often it is looked whether something is to be done: another certificate, or time.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// For one responder.
const ASK_MAX: Duration = Duration::from_secs(10);
/// Responders of one certificate that are asked.
const RESPONDERS_MAX: usize = 4;
/// A new answer is fetched when half the old one's time is over, between these bounds.
const AGAIN_MIN: time::Duration = time::Duration::seconds(10);
const AGAIN_MAX: time::Duration = time::Duration::hours(12);
/// After a failure; doubled by each further one, up to the second.
const RETRY: time::Duration = time::Duration::seconds(30);
const RETRY_MAX: time::Duration = time::Duration::minutes(30);

/// An answer that may be shown.
#[derive(Clone)]
pub struct Staple {
    /// The responder's answer, in DER.
    pub der: Vec<u8>,
    /// It must not be shown from then on.
    pub until: OffsetDateTime,
}

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("the certificate file holds no issuer: append the issuer's certificate to it")]
    NoIssuer,
    #[error("the certificate names no responder: give one with --tls-ocsp-url")]
    NoResponder,
    #[error("the responder says that the certificate is REVOKED: replace it")]
    Revoked,
    #[error("{0}")]
    Failed(String),
}

/// Fetches answers.
pub struct Stapler {
    certificates: Arc<Certificates>,
    fetcher: Arc<dyn Fetcher>,
    clock: Arc<dyn Clock>,
    responder: Option<String>,
}

/// What was done so far.
struct Seen {
    leaf: Option<CertificateDer<'static>>,
    until: Option<OffsetDateTime>,
    ask_at: OffsetDateTime,
    pause: time::Duration,
}

impl Stapler {
    /// Asks this responder, or those that the certificate names.
    pub fn new(
        certificates: Arc<Certificates>,
        fetcher: Arc<dyn Fetcher>,
        clock: Arc<dyn Clock>,
        responder: Option<String>,
    ) -> Self {
        Self { certificates, fetcher, clock, responder }
    }

    /// Keeps the answer fresh until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut seen = self.nothing();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.look(&mut seen) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn nothing(&self) -> Seen {
        Seen { leaf: None, until: None, ask_at: self.clock.now(), pause: RETRY }
    }

    /// Does what is due.
    async fn look(&self, seen: &mut Seen) {
        let chain = self.certificates.operator_chain().unwrap_or_default();
        let Some(leaf) = chain.first() else { return };
        if seen.leaf.as_ref() != Some(leaf) {
            *seen = Seen { leaf: Some(leaf.clone()), ..self.nothing() };
        }
        let now = self.clock.now();
        // A clock that was put back must not keep the next question waiting until it catches up.
        if now >= seen.ask_at || seen.ask_at - now > AGAIN_MAX.max(RETRY_MAX) {
            match self.ask(&chain).await {
                Ok(staple) => {
                    tracing::info!(until = %staple.until, "an OCSP answer is shown with the certificate");
                    seen.until = Some(staple.until);
                    seen.pause = RETRY;
                    let left: time::Duration = staple.until - now;
                    seen.ask_at = now + (left / 2_i32).clamp(AGAIN_MIN, AGAIN_MAX);
                    self.show(leaf, Some(staple));
                }
                Err(cause) => {
                    tracing::warn!(%cause, older_until = ?seen.until, "there is no new OCSP answer to show with the certificate");
                    if matches!(cause, NoAnswer::Revoked) {
                        self.hide(leaf, seen);
                    }
                    seen.ask_at = now + seen.pause;
                    seen.pause = (seen.pause * 2_i32).min(RETRY_MAX);
                }
            }
        }
        if seen.until.is_some_and(|until| self.clock.now() >= until) {
            tracing::warn!("the OCSP answer ran out: the certificate is shown without one");
            self.hide(leaf, seen);
        }
    }

    fn hide(&self, leaf: &CertificateDer<'_>, seen: &mut Seen) {
        seen.until = None;
        self.show(leaf, None);
    }

    fn show(&self, leaf: &CertificateDer<'_>, staple: Option<Staple>) {
        if let Err(cause) = self.certificates.staple(leaf, staple) {
            tracing::error!(%cause, "the OCSP answer cannot be shown with the certificate");
        }
    }

    /// Asks the responders in order, until one gives an answer that clients will believe.
    async fn ask(&self, chain: &[CertificateDer<'static>]) -> Result<Staple, NoAnswer> {
        let [leaf, issuer, ..] = chain else { return Err(NoAnswer::NoIssuer) };
        let step = Step::new(leaf.clone(), issuer.clone()).ok_or(NoAnswer::NoIssuer)?;
        let responders = match &self.responder {
            Some(responder) => vec![responder.clone()],
            None => step.responders.clone(),
        };
        let mut cause = NoAnswer::NoResponder;
        for url in responders.into_iter().take(RESPONDERS_MAX) {
            match self.ask_one(&url, &step).await {
                Err(NoAnswer::Failed(why)) => cause = NoAnswer::Failed(format!("{url}: {why}")),
                decided => return decided,
            }
        }
        Err(cause)
    }

    async fn ask_one(&self, url: &str, step: &Step) -> Result<Staple, NoAnswer> {
        let mut nonce = [0; 32];
        keys::fill_random(&mut nonce);
        let fetch = Fetch {
            url: url.to_owned(),
            body: Some(FetchBody {
                kind: "application/ocsp-request",
                bytes: Hidden(ocsp::request(step, &nonce)),
            }),
            accept: "application/ocsp-response",
            authorization: None,
            headers: Vec::new(),
            ca_pem: None,
            bytes_max: ocsp::RESPONSE_BYTES_MAX,
            time_max: ASK_MAX,
            cluster: None,
        };
        let failed = |cause: &dyn std::fmt::Display| NoAnswer::Failed(cause.to_string());
        let fetched = self.fetcher.fetch(fetch).await.map_err(|cause| failed(&cause))?;
        if fetched.status != 200 {
            return Err(NoAnswer::Failed(format!("it answers with HTTP status {}", fetched.status)));
        }
        let answer = ocsp::read(&fetched.body, step, self.clock.now(), Some(&nonce))
            .map_err(|cause| failed(&cause))?;
        match answer.status {
            Status::Good => Ok(Staple { until: answer.good_until(), der: fetched.body }),
            Status::Revoked { .. } => Err(NoAnswer::Revoked),
            Status::Unknown => Err(NoAnswer::Failed("it does not know the certificate".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use async_trait::async_trait;
    use keys::{Authority, RootKey};
    use model::{FetchFailure, Fetched, SystemClock};
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
    use tempfile::TempDir;

    use super::*;
    use crate::testing::Turned;

    /// An authority with a real responder: `openssl ocsp` answers each question.
    struct Responder {
        folder: TempDir,
        is_down: Mutex<bool>,
        asked: AtomicUsize,
        urls: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Fetcher for Responder {
        async fn fetch(&self, fetch: Fetch) -> Result<Fetched, FetchFailure> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.urls.lock().unwrap().push(fetch.url.clone());
            if *self.is_down.lock().unwrap() || fetch.url.contains("down") {
                return Err(FetchFailure::TimedOut);
            }
            let path = self.folder.path();
            std::fs::write(path.join("request"), fetch.body.unwrap().bytes.0).unwrap();
            let arguments = [
                "ocsp",
                "-index",
                "index.txt",
                "-CA",
                "ca.pem",
                "-rsigner",
                "ca.pem",
                "-rkey",
                "ca.key",
                "-ndays",
                "1",
                "-reqin",
                "request",
                "-respout",
                "response",
            ];
            let output = Command::new("openssl").args(arguments).current_dir(path).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let body = std::fs::read(path.join("response")).unwrap();
            Ok(Fetched { status: 200, kind: "application/ocsp-response".to_owned(), max_age: None, body })
        }
    }

    struct World {
        responder: Arc<Responder>,
        clock: Arc<Turned>,
        certificates: Arc<Certificates>,
        stapler: Stapler,
        seen: Seen,
    }

    impl World {
        /// The operator's certificate has serial number 7.
        fn new(with_issuer: bool, url: Option<&str>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, "issuer");
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages =
                vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::DigitalSignature];
            let ca_key = rcgen::KeyPair::generate().unwrap();
            let ca_pem = params.self_signed(&ca_key).unwrap().pem();
            let issuer = rcgen::Issuer::from_params(&params, &ca_key);
            let key = rcgen::KeyPair::generate().unwrap();
            let mut leaf = rcgen::CertificateParams::new(vec!["db.example.org".to_owned()]).unwrap();
            leaf.serial_number = Some(rcgen::SerialNumber::from(7));
            let leaf_pem = leaf.signed_by(&key, &issuer).unwrap().pem();
            let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
            write("ca.pem", &ca_pem);
            write("ca.key", &ca_key.serialize_pem());
            write("chain.pem", &if with_issuer { format!("{leaf_pem}{ca_pem}") } else { leaf_pem });
            write("key.pem", &key.serialize_pem());
            let clock = Arc::new(Turned(AtomicI64::new(0)));
            let own = folder.path().join("own");
            std::fs::create_dir(&own).unwrap();
            let sealer = RootKey::open_or_create(&own.join("kek")).unwrap().sealer("authority").unwrap();
            let own = Authority::open_or_create(&own, &sealer, &SystemClock).unwrap();
            let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
            let files = Some((chain.as_path(), key.as_path()));
            let certificates = Certificates::new(own, clock.clone(), &[], files).unwrap();
            let responder = Arc::new(Responder {
                folder,
                is_down: Mutex::new(false),
                asked: AtomicUsize::new(0),
                urls: Mutex::default(),
            });
            let url = url.map(str::to_owned);
            let stapler = Stapler::new(certificates.clone(), responder.clone(), clock.clone(), url);
            let world = Self { seen: stapler.nothing(), responder, clock, certificates, stapler };
            world.says("V\t400101000000Z\t\t07");
            world
        }

        fn folder(&self) -> &Path {
            self.responder.folder.path()
        }

        fn says(&self, line: &str) {
            std::fs::write(self.folder().join("index.txt"), format!("{line}\tunknown\t/CN=a\n")).unwrap();
        }

        fn asked(&self) -> usize {
            self.responder.asked.load(Ordering::Relaxed)
        }

        fn wait(&self, time: time::Duration) {
            self.clock.0.fetch_add(time.whole_seconds(), Ordering::Relaxed);
        }

        async fn look(&mut self) {
            self.stapler.look(&mut self.seen).await;
        }

        /// What a client is shown at the API's door.
        async fn shown(&self, name: &'static str) -> Vec<u8> {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let server = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(self.certificates.clone());
            let eye = Arc::new(Eye::default());
            let client = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(eye.clone())
                .with_no_client_auth();
            let (one, other) = tokio::io::duplex(64 * 1024);
            let name = ServerName::try_from(name).unwrap();
            let (served, connected) = tokio::join!(
                tokio_rustls::TlsAcceptor::from(Arc::new(server)).accept(one),
                tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, other)
            );
            served.unwrap();
            connected.unwrap();
            eye.0.lock().unwrap().clone()
        }
    }

    /// Sees what the server staples.
    #[derive(Debug, Default)]
    struct Eye(Mutex<Vec<u8>>);

    impl ServerCertVerifier for Eye {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            ocsp: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            *self.0.lock().unwrap() = ocsp.to_vec();
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }

    const URL: Option<&str> = Some("http://ocsp.example.org/");

    #[tokio::test]
    async fn a_good_answer_is_shown_and_renewed_when_half_its_time_is_over() {
        let mut world = World::new(true, URL);
        assert!(world.shown("db.example.org").await.is_empty());
        world.look().await;
        let first = world.shown("db.example.org").await;
        let chain = world.certificates.operator_chain().unwrap();
        let step = Step::new(chain[0].clone(), chain[1].clone()).unwrap();
        assert_eq!(ocsp::read(&first, &step, world.clock.now(), None).unwrap().status, Status::Good);
        assert!(world.shown("localhost").await.is_empty(), "the cloud's own certificates have none");
        world.wait(time::Duration::hours(11));
        world.look().await;
        assert_eq!((world.asked(), world.shown("db.example.org").await == first), (1, true));
        world.wait(time::Duration::hours(2));
        world.look().await;
        assert_eq!((world.asked(), world.shown("db.example.org").await == first), (2, false));
    }

    #[tokio::test]
    async fn a_dead_responder_leaves_the_older_answer_until_it_runs_out() {
        let mut world = World::new(true, URL);
        world.look().await;
        let first = world.shown("db.example.org").await;
        *world.responder.is_down.lock().unwrap() = true;
        world.wait(time::Duration::hours(13));
        for _ in 0..5 {
            world.look().await;
        }
        assert_eq!(world.asked(), 2, "a dead responder is not hammered");
        assert_eq!(world.shown("db.example.org").await, first);
        world.wait(time::Duration::hours(12));
        world.look().await;
        assert!(world.shown("db.example.org").await.is_empty(), "an answer out of date is not shown");
        *world.responder.is_down.lock().unwrap() = false;
        world.clock.0.store(0, Ordering::Relaxed);
        world.seen.ask_at = world.clock.now();
        world.look().await;
        assert!(!world.shown("db.example.org").await.is_empty());
    }

    #[tokio::test]
    async fn only_a_good_answer_is_shown() {
        for line in ["V\t400101000000Z\t\t08", "R\t400101000000Z\t240102030405Z\t07"] {
            let mut world = World::new(true, URL);
            world.says(line);
            world.look().await;
            assert!(world.shown("db.example.org").await.is_empty(), "{line}");
        }
        let mut world = World::new(true, URL);
        world.look().await;
        world.says("R\t400101000000Z\t240102030405Z\t07");
        world.wait(time::Duration::hours(13));
        world.look().await;
        assert!(
            world.shown("db.example.org").await.is_empty(),
            "a revoked certificate is not called good any longer"
        );
    }

    #[tokio::test]
    async fn without_an_issuer_or_a_responder_nobody_is_asked() {
        for (with_issuer, url) in [(false, URL), (true, None)] {
            let mut world = World::new(with_issuer, url);
            world.look().await;
            assert_eq!((world.asked(), world.shown("db.example.org").await.len()), (0, 0));
        }
    }

    #[tokio::test]
    async fn another_certificate_does_not_inherit_the_answer() {
        let mut world = World::new(true, URL);
        world.look().await;
        let der = world.shown("db.example.org").await;
        let stranger = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
        let staple = Staple { der: vec![1, 2, 3], until: world.clock.now() };
        world.certificates.staple(stranger.cert.der(), Some(staple)).unwrap();
        assert_eq!(world.shown("db.example.org").await, der, "an answer that comes late changes nothing");
    }
}
