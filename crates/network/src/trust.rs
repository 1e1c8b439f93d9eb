//! Whom the gate believes over TLS: the machine's roots, or those that came with the question.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Most certificates that come with one question.
const OWN_ROOTS_MAX: usize = 32;

/// Why nobody can be believed.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The TLS library refuses.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The certificates that came with the question are none.
    #[error("the certificates to trust are not usable: {0}")]
    Roots(&'static str),
}

/// The machine's roots. Without any, every `https` question fails that brings no root of its own.
pub(crate) fn of_machine() -> Result<ClientConfig, Unusable> {
    let found = rustls_native_certs::load_native_certs();
    for cause in &found.errors {
        tracing::warn!(%cause, "some of the machine's root certificates cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!(
            "this machine has no root certificates: providers without certificates of their own cannot be reached"
        );
    }
    config(roots)
}

/// These roots and no others.
pub(crate) fn of_pem(pem: &str) -> Result<ClientConfig, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| Unusable::Roots("they are not PEM"))?;
        roots.add(certificate).map_err(|_| Unusable::Roots("one cannot be read"))?;
        if roots.len() > OWN_ROOTS_MAX {
            return Err(Unusable::Roots("there are more than 32"));
        }
    }
    if roots.is_empty() { Err(Unusable::Roots("there is none")) } else { config(roots) }
}

/// TLS 1.2 and 1.3: providers outside are not ours to choose. Nothing is resumed, so that no cluster's connection is
/// linked with another's.
fn config(roots: RootCertStore) -> Result<ClientConfig, Unusable> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
