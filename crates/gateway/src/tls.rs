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
        if !keys::client::can_be_checked(certificate) {
            // It proves nothing, and counts as none: `presented`.
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The certificates that a client presented, its own first, and whose key it has shown to have. None where its own is of a kind
/// that cannot be checked: clients send what lies in their folder, also to whoever has no use for it, so it counts as none
/// instead of ending the handshake. Nobody takes them from the connection in another way.
pub(crate) fn presented(connection: &rustls::ServerConnection) -> &[CertificateDer<'static>] {
    let presented = connection.peer_certificates().unwrap_or_default();
    match presented.first() {
        Some(own) if keys::client::can_be_checked(own) => presented,
        Some(_) => {
            tracing::info!(
                "a client certificate counts as none: it is damaged, or of X.509 version 1, which has no extensions; its authority \
                 is to issue one of version 3"
            );
            &[]
        }
        None => &[],
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

#[cfg(test)]
mod tests {
    use keys::{Authority, RootKey};
    use model::SystemClock;
    use rustls::client::ResolvesClientCert;
    use rustls::pki_types::pem::PemObject;
    use rustls::sign::CertifiedKey;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    use super::*;

    /// Of version 1, as `openssl x509 -req` makes it of a request without extensions.
    const VERSION_1: &[u8] = b"-----BEGIN CERTIFICATE-----\n\
        MIIBHDCBwwIUUqlmKpPgq6veVy/A7uTfWJKwFG4wCgYIKoZIzj0EAwIwEDEOMAwG\n\
        A1UEAwwFbWFyaWEwIBcNMjYxMjAxMDMyNTMyWhgPMjEyNjExMDcwMzI1MzJaMBAx\n\
        DjAMBgNVBAMMBW1hcmlhMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEzZr8MdfX\n\
        kXlvPukl7pgHCzWYCnAr554XBDtOXhlER6hN4pbKiIJImgwN7dg31pZAx2abRhQR\n\
        xdY4bKSNEhl0ojAKBggqhkjOPQQDAgNIADBFAiBETyH/T8enDF5k6QLflBuQTLO7\n\
        PKGYW5dtNE7vLoo3AQIhAJzwhxejoJBGLUVEC3c3O4a8gg+RzV6ruGBzccAoEggG\n\
        -----END CERTIFICATE-----\n";

    /// A client that presents a certificate and signs with whatever key it has.
    #[derive(Debug)]
    struct Presents(Arc<CertifiedKey>);

    impl ResolvesClientCert for Presents {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }

        fn has_certs(&self) -> bool {
            true
        }
    }

    /// A certificate of an authority, and that authority's own.
    fn issued() -> (ServerCertificate, CertificateDer<'static>) {
        let folder = tempfile::tempdir().unwrap();
        let root_key = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
        let sealer = root_key.sealer("authority").unwrap();
        let authority = Authority::open_or_create(folder.path(), &sealer, &SystemClock).unwrap();
        (authority.issue(&["localhost".to_owned()], &SystemClock).unwrap(), authority.root().clone())
    }

    /// The server's side of a handshake in which these certificates are presented with the key of another.
    fn shaken(chain: Vec<CertificateDer<'static>>) -> Result<ServerConnection, rustls::Error> {
        let (own, root) = issued();
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let another = aws_lc_rs::sign::any_supported_type(&own.key).unwrap();
        let presents = Presents(Arc::new(CertifiedKey::new(chain, another)));
        let config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(presents));
        let mut client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let shown = Shown::new(&own, Vec::new()).unwrap();
        let mut server = ServerConnection::new(shown.config.clone()).unwrap();
        while client.is_handshaking() || server.is_handshaking() || client.wants_write() {
            let mut sent = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut sent).unwrap();
            }
            let mut rest = sent.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            let mut answered = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut answered).unwrap();
            }
            let mut rest = answered.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        Ok(server)
    }

    #[test]
    fn a_certificate_that_nobody_can_check_ends_no_handshake_and_is_handed_to_nobody() {
        let old = CertificateDer::from_pem_slice(VERSION_1).unwrap();
        // Whoever is known by the digest of a key would be believed without having it.
        assert!(keys::client::key_digest(&old).is_some() && !keys::client::can_be_checked(&old));
        for chain in [vec![old], vec![CertificateDer::from(b"\x30\x03no".to_vec())]] {
            let server = shaken(chain).unwrap();
            assert!(server.peer_certificates().is_some_and(|sent| !sent.is_empty()), "it was sent");
            assert!(presented(&server).is_empty());
        }
    }

    #[test]
    fn whoever_presents_another_s_certificate_without_its_key_gets_no_further() {
        let (another, _) = issued();
        let refused = shaken(another.chain).err().unwrap();
        assert!(matches!(refused, rustls::Error::InvalidCertificate(_)), "{refused:?}");
    }
}
