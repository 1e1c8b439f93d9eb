//! One request over HTTPS: TLS 1.3, one root, one deadline. On the cloud's own machine it goes through the operator's socket,
//! where no crowd of strangers is; that replaces TCP and nothing else.
//!
//! hyper on tokio-rustls, the stack that serves the API, and no larger client: nothing here reads proxy variables,
//! follows redirects, keeps cookies or falls back to another root, so the key goes to the cloud and nowhere else.

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use keys::SecretText;
use rustix::fs::{Mode, OFlags, open};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{Error, VERSION};

/// The folder in the data directory that the cloud's own user alone enters.
pub const OPERATOR_FOLDER: &str = "operator";
/// The socket in it, at which the API answers.
pub const OPERATOR_SOCKET: &str = "api.sock";

/// To connect and shake hands.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A list's page of 500 items is far below this.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Where the cloud is, and how it is known.
#[derive(Clone)]
pub(crate) struct Transport {
    url: String,
    host: String,
    port: u16,
    prefix: String,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    key: SecretText,
    /// The folder of the operator's socket, on the cloud's own machine.
    operator: Option<PathBuf>,
}

/// What carries TLS: TCP, or the operator's socket.
trait Carrier: AsyncRead + AsyncWrite + Unpin + Send {}

impl Carrier for TcpStream {}
impl Carrier for UnixStream {}

/// An answer, whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<u64>,
    pub(crate) body: Bytes,
}

impl Transport {
    pub(crate) fn new(url: &str, key: SecretText, root_pem: Option<&str>) -> Result<Self, Error> {
        let unusable = |reason: &str| Error::Unreachable { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.trim().trim_end_matches('/').parse().map_err(|_| unusable("this is not a URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(unusable("the API speaks https:// only"));
        }
        let authority = uri.authority().ok_or_else(|| unusable("the URL names no host"))?;
        if authority.as_str().contains('@') {
            return Err(unusable("the URL must not hold a user or password; the API key goes elsewhere"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name =
            ServerName::try_from(host.clone()).map_err(|_| unusable("the host is not a name or address"))?;
        let tls = tls(root_pem).map_err(|reason| unusable(&reason))?;
        Ok(Self {
            url: url.to_owned(),
            host,
            port: authority.port_u16().unwrap_or(443),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            name,
            tls: Arc::new(tls),
            key,
            operator: None,
        })
    }

    /// The same through the operator's socket in this folder, if it is there.
    pub(crate) fn through(self, operator: &Path) -> Self {
        Self { operator: Some(operator.to_owned()), ..self }
    }

    /// The same over TCP, whatever there is besides.
    pub(crate) fn over_tcp(&self) -> Self {
        Self { operator: None, ..self.clone() }
    }

    /// Sends one request. An error means that no answer came; the cloud may have acted all the same.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, Error> {
        let unreachable = |reason: String| Error::Unreachable { url: self.url.clone(), reason };
        let connected = timeout(CONNECT_MAX, self.connect()).await;
        let stream = connected
            .map_err(|_| unreachable("it took too long to connect".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        // Ends when the sender is dropped, thus with this call.
        let driver = tokio::spawn(connection);
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .header("host", format!("{host}:{}", self.port))
            .header("authorization", format!("Bearer {}", self.key.expose()))
            .header("accept", "application/json")
            .header("cc-version", VERSION)
            .header("user-agent", concat!("chitin/", env!("CARGO_PKG_VERSION")));
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(body))
            .map_err(|_| Error::Unexpected("the request cannot be written as HTTP".to_owned()))?;
        let answered = async {
            let response =
                sender.send_request(request).await.map_err(|error| unreachable(error.to_string()))?;
            let status = response.status();
            let retry_after =
                response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| unreachable(format!("the answer broke off: {error}")))?
                .to_bytes();
            Ok(Answer { status, retry_after, body })
        };
        let answer = answered.await;
        driver.abort();
        answer
    }

    async fn connect(&self) -> io::Result<TlsStream<Box<dyn Carrier>>> {
        if let Some(folder) = &self.operator
            && let Some(socket) = connect_to_operator(folder).await?
        {
            // A closed connection is how the socket refuses.
            return self.shake_hands(Box::new(socket)).await.map_err(|cause| {
                let folder = folder.display();
                io::Error::other(format!(
                    "the operator's socket in {folder} was closed ({cause}); it is for processes of the cloud's own user in the \
                     cloud's own pid and user namespaces, so run this there, or name the API with --url and CHITIN_API_KEY"
                ))
            });
        }
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        self.shake_hands(Box::new(tcp)).await
    }

    async fn shake_hands(&self, carrier: Box<dyn Carrier>) -> io::Result<TlsStream<Box<dyn Carrier>>> {
        TlsConnector::from(self.tls.clone()).connect(self.name.clone(), carrier).await
    }
}

/// The operator's socket; none where there is none. Through the folder's descriptor: the path in `sockaddr_un` has 107 bytes,
/// and the folder's own may be longer.
async fn connect_to_operator(folder: &Path) -> io::Result<Option<UnixStream>> {
    let failed = |cause: io::Error| {
        io::Error::new(cause.kind(), format!("the operator's socket in {}: {cause}", folder.display()))
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = match open(folder, flags, Mode::empty()) {
        Ok(held) => held,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(cause) => return Err(failed(cause.into())),
    };
    match UnixStream::connect(format!("/proc/self/fd/{}/{OPERATOR_SOCKET}", held.as_raw_fd())).await {
        Ok(socket) => Ok(Some(socket)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(failed(cause)),
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("url", &self.url).finish_non_exhaustive()
    }
}

fn tls(root_pem: Option<&str>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match root_pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|_| "the root certificate is not PEM".to_owned())?;
                roots.add(certificate).map_err(|_| "the root certificate cannot be read".to_owned())?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err("there is no root certificate to trust; name the cloud's with CHITIN_CA".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// Writes text as one path segment: everything but letters, digits and `-._~` as `%XX`.
pub fn encode_segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_never_leaves_its_place() {
        assert_eq!(encode_segment("app user/1?x#%"), "app%20user%2F1%3Fx%23%25");
        assert_eq!(encode_segment("müller"), "m%C3%BCller");
    }

    #[test]
    fn only_https_without_credentials_is_spoken() {
        for wrong in ["http://localhost:1", "localhost:1", "https://maria:pw@localhost:1", "https://", ""] {
            let refused = Transport::new(wrong, SecretText::new("key".into()), None);
            assert!(matches!(refused, Err(Error::Unreachable { .. })), "{wrong}");
        }
    }

    #[test]
    fn a_root_that_is_none_is_refused() {
        for wrong in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let refused = Transport::new("https://localhost:1", SecretText::new("key".into()), Some(wrong));
            assert!(matches!(refused, Err(Error::Unreachable { .. })), "{wrong}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable_and_the_key_stays_unsaid() {
        let root = {
            let folder = tempfile::tempdir().unwrap();
            let kek = keys::RootKey::open_or_create(&folder.path().join("kek")).unwrap();
            let sealer = kek.sealer("test").unwrap();
            keys::Authority::open_or_create(folder.path(), &sealer, &model::SystemClock)
                .unwrap()
                .root_pem()
                .to_owned()
        };
        let key = SecretText::new("canary-key".into());
        let transport = Transport::new("https://127.0.0.1:1/", key, Some(&root)).unwrap();
        let refused = transport.send(Method::GET, "/api/v1/clusters", Bytes::new()).await.err().unwrap();
        assert!(matches!(refused, Error::Unreachable { .. }));
        assert!(!format!("{refused} {refused:?} {transport:?}").contains("canary"));
    }
}
