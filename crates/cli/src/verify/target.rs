//! What is attacked, and the sockets and TLS clients to do it with.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::amnesty::Amnesty;
use super::wire::{Fault, Wire};

/// For anything that should answer at once.
pub const ANSWER_MAX: Duration = Duration::from_secs(15);
/// For a sign-in, which may have to wake the cluster.
pub const WAKE_MAX: Duration = Duration::from_secs(140);
/// ALPN of PostgreSQL's direct TLS.
pub const ALPN: &[u8] = b"postgresql";

/// A front door under attack.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// The name that its certificate must have.
    pub host: String,
    /// The cluster's address label, `NAME-ID`.
    pub handle: String,
    /// The certificates that a client trusts; none means the usual public ones are not known here.
    pub roots: Arc<RootCertStore>,
    /// What is sent before anything else, as a balancer would; usually nothing.
    pub preamble: Vec<u8>,
    /// Forgives our own failed sign-ins, so that the throttle does not end an attack on something else.
    pub amnesty: Option<Amnesty>,
}

/// Reads the trust anchors of a PEM text.
pub fn roots(pem: &str) -> Result<RootCertStore, Fault> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate =
            certificate.map_err(|error| Fault::Setup(format!("the root certificate: {error}")))?;
        store.add(certificate).map_err(|error| Fault::Setup(format!("the root certificate: {error}")))?;
    }
    if store.is_empty() {
        return Err(Fault::Setup("there is no certificate in the root file".to_owned()));
    }
    Ok(store)
}

/// A TLS 1.3 client that trusts these roots only, resumes nothing and offers these application protocols.
pub fn client(roots: &Arc<RootCertStore>, protocols: &[&[u8]]) -> Result<TlsConnector, Fault> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Fault::Setup(error.to_string()))?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Target {
    /// A TCP connection, from a source address if one is given.
    pub async fn connect(&self, source: Option<IpAddr>) -> Result<TcpStream, Fault> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let mut tcp = within(socket.connect(self.address)).await??;
        tcp.set_nodelay(true)?;
        if !self.preamble.is_empty() {
            within(tcp.write_all(&self.preamble)).await??;
        }
        Ok(tcp)
    }

    /// A connection on which `SSLRequest` was answered with yes; the handshake has not begun.
    pub async fn welcomed(&self, source: Option<IpAddr>) -> Result<TcpStream, Fault> {
        let mut wire = Wire::new(self.connect(source).await?);
        match wire.ask_for_tls().await? {
            b'S' => Ok(wire.into_inner()),
            other => Err(Fault::Unexpected(format!("SSLRequest was answered with byte {other:#04x}"))),
        }
    }

    /// A connection inside TLS.
    pub async fn encrypted(&self, source: Option<IpAddr>) -> Result<Wire<TlsStream<TcpStream>>, Fault> {
        let tcp = self.welcomed(source).await?;
        self.handshake(tcp, &self.roots, &self.host, &[]).await.map(Wire::new)
    }

    /// A connection inside TLS by a client that shows a certificate.
    pub async fn presenting(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Wire<TlsStream<TcpStream>>, Fault> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| Fault::Setup(error.to_string()))?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(chain, key)
            .map_err(|error| Fault::Setup(error.to_string()))?;
        config.resumption = Resumption::disabled();
        let server = ServerName::try_from(self.host.clone())
            .map_err(|_| Fault::Setup(format!("`{}` is no server name", self.host)))?;
        let tcp = self.welcomed(None).await?;
        Ok(Wire::new(within(TlsConnector::from(Arc::new(config)).connect(server, tcp)).await??))
    }

    /// The TLS handshake of a client with these roots, this expected name and these application protocols.
    pub async fn handshake(
        &self,
        tcp: TcpStream,
        roots: &Arc<RootCertStore>,
        name: &str,
        protocols: &[&[u8]],
    ) -> Result<TlsStream<TcpStream>, Fault> {
        let server = ServerName::try_from(name.to_owned())
            .map_err(|_| Fault::Setup(format!("`{name}` is no server name")))?;
        Ok(within(client(roots, protocols)?.connect(server, tcp)).await??)
    }
}

/// Bounds a wait for something that should answer at once.
pub async fn within<F: Future>(future: F) -> Result<F::Output, Fault> {
    timeout(ANSWER_MAX, future).await.map_err(|_| Fault::Silent(ANSWER_MAX))
}

/// Whether an error means that the other side ended the connection.
pub fn is_ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}
