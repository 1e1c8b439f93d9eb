//! TLS as the gateway offers it: 1.3 and nothing older, post-quantum key exchange first, nothing before the handshake.

use std::sync::Arc;

use keys::{ChannelBinding, ServerCertificate};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// ALPN of PostgreSQL's direct TLS (registered with IANA; PostgreSQL 17, `pqcomm.h`).
pub(crate) const ALPN: &[u8] = b"postgresql";

/// A certificate ready to be shown to clients.
pub struct Shown {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) binding: ChannelBinding,
}

/// Why a certificate cannot be shown.
#[derive(Debug, thiserror::Error)]
#[error("the certificate cannot be used for TLS: {0}")]
pub struct Unusable(#[from] rustls::Error);

/// Which certificate a client sees. The answer must not depend on whether a cluster exists.
pub trait Certificates: Send + Sync + 'static {
    /// The certificate for the server name that the client sent, or for none.
    fn shown(&self, server_name: Option<&str>) -> Arc<Shown>;
}

impl Shown {
    /// Prepares a certificate. Fails if key and certificate do not belong together.
    pub fn new(certificate: &ServerCertificate) -> Result<Self, Unusable> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No tickets: nothing to resume means nothing to steal, and 0-RTT data cannot exist (RFC 8446, section 8).
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(Self { config: Arc::new(config), binding: certificate.channel_binding() })
    }
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shown")
    }
}

/// The hybrid key exchange first: what is recorded today must not be readable by tomorrow's machines.
fn provider() -> CryptoProvider {
    use aws_lc_rs::kx_group;
    CryptoProvider {
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    }
}
