//! TLS as a careful client speaks it, and the pieces of it that attackers send.

use std::path::Path;
use std::sync::Arc;

use rustls::client::{Resumption, WantsClientCert};
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The certificates of a PEM file.
pub fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .map(|certificate| certificate.expect("a certificate"))
        .collect()
}

/// A client that trusts only the given roots, without resumption, and offers these application protocols.
pub fn client(roots: &Path, protocols: &[&str]) -> ClientConfig {
    let mut config = trusting(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

/// A client with a certificate of its own: its chain and its key, in PEM files.
pub fn client_with(roots: &Path, chain: &Path, key: &Path) -> ClientConfig {
    let key = PrivateKeyDer::from_pem_file(key).expect("a private key");
    let mut config =
        trusting(roots).with_client_auth_cert(certificates(chain), key).expect("a usable certificate");
    config.resumption = Resumption::disabled();
    config
}

/// A client that shows a chain without holding its key: it signs with another.
pub fn client_pretending(roots: &Path, chain: &Path, other_key: &Path) -> ClientConfig {
    let key = PrivateKeyDer::from_pem_file(other_key).expect("a private key");
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("a usable key");
    // Put together by hand: the library itself would notice that they do not belong together.
    let pretended = rustls::sign::CertifiedKey::new(certificates(chain), key);
    let resolver = rustls::sign::SingleCertAndKey::from(pretended);
    let mut config = trusting(roots).with_client_cert_resolver(Arc::new(resolver));
    config.resumption = Resumption::disabled();
    config
}

fn trusting(roots: &Path) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(roots) {
        store.add(certificate).expect("the root is a usable trust anchor");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is built in")
        .with_root_certificates(store)
}

/// Channel binding data of `tls-server-end-point` (RFC 5929); `None` when the certificate's signature has no hash
/// that the RFC defines, as with Ed25519.
pub fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
    let (_, parsed) = X509Certificate::from_der(certificate).expect("the server sent a certificate");
    let algorithm = match parsed.signature_algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.10045.4.3.2" | "1.2.840.113549.1.1.11" | "1.2.840.113549.1.1.5" => &SHA256,
        "1.2.840.10045.4.3.3" | "1.2.840.113549.1.1.12" => &SHA384,
        "1.2.840.10045.4.3.4" | "1.2.840.113549.1.1.13" => &SHA512,
        _ => return None,
    };
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

/// What a client of this configuration sends first when it looks for this name.
pub fn client_hello(config: &Arc<ClientConfig>, name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).expect("a DNS name or address");
    let mut connection = ClientConnection::new(config.clone(), name).expect("a usable configuration");
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).expect("a vector takes everything");
    bytes
}

/// A complete ClientHello record of a client that knows TLS 1.2 at most.
pub fn client_hello_1_2() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    // ECDHE with AES-GCM, for both kinds of certificates.
    body.extend([0, 6, 0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x30]);
    body.extend([1, 0]);
    let extensions = [
        &[0, 10, 0, 6, 0, 4, 0, 29, 0, 23][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 8, 0, 6, 4, 3, 8, 4, 4, 1],
        &[0, 0, 0, 14, 0, 12, 0, 0, 9, b'l', b'o', b'c', b'a', b'l', b'h', b'o', b's', b't'],
    ]
    .concat();
    body.extend(u16::try_from(extensions.len()).expect("short").to_be_bytes());
    body.extend(extensions);
    let mut handshake = vec![1, 0];
    handshake.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
    handshake.extend(body);
    record(22, &handshake)
}

/// One TLS record.
pub fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 3, 1];
    bytes.extend(u16::try_from(payload.len()).expect("a record is short").to_be_bytes());
    bytes.extend(payload);
    bytes
}
