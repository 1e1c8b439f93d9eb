//! TLS as the gateway offers it: 1.3 and nothing older, post-quantum key exchange first, nothing before the handshake.

use std::net::IpAddr;
use std::sync::Arc;

use keys::{ChannelBinding, ServerCertificate};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

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
    /// The certificate for the server name that the client sent, or for none. `inside` is the address at which a client
    /// in a private network found us: those who dial it send no name.
    fn shown(&self, server_name: Option<&str>, inside: Option<IpAddr>) -> Arc<Shown>;
}

impl Shown {
    /// Prepares a certificate that is shown with an OCSP answer about it (RFC 6066, section 8), in DER; with none where
    /// that is empty. Fails if key and certificate do not belong together.
    pub fn new(certificate: &ServerCertificate, ocsp: Vec<u8>) -> Result<Self, Unusable> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(Possession::new()))
            .with_single_cert_with_ocsp(certificate.chain.clone(), certificate.key.clone_key(), ocsp)?;
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

/// Asks every client for a certificate and checks that it holds the certificate's key, nothing more. Which authorities
/// count is the cluster's affair, and the cluster is known only after the handshake; until then a certificate is a claim.
#[derive(Debug)]
struct Possession {
    algorithms: WebPkiSupportedAlgorithms,
}

impl Possession {
    fn new() -> Self {
        Self { algorithms: aws_lc_rs::default_provider().signature_verification_algorithms }
    }
}

impl ClientCertVerifier for Possession {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: the names of a cluster's authorities are not for strangers.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if intermediates.len() > keys::client::PRESENTED_MAX {
            return Err(rustls::CertificateError::BadEncoding.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
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
