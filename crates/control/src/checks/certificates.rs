//! Certificates and revocation lists, checked by the room that verifies with them.

use api::{ClientAuthority, Crl};
use keys::client::{CaFacts, ClientAuthorities, CrlFacts, Crls};
use model::SIGN_IN_TEXT_BYTES_MAX;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::Refusal;

const ROOTS_MAX: usize = 32;

/// Reads a bundle of client authorities. This cloud's own root may not be among them: it certifies our machines.
pub(crate) fn client_ca(pem: &str, own_root_pem: &str) -> Result<Vec<ClientAuthority>, Refusal> {
    let own = CertificateDer::from_pem_slice(own_root_pem.as_bytes()).map_err(Refusal::internal)?;
    let read = ClientAuthorities::parse_without(pem, &own)
        .map_err(|error| Refusal::invalid(format_args!("x509_pem_cert: {error}")))?;
    let shape = |CaFacts { subject, not_after, sha256 }| ClientAuthority { subject, not_after, sha256 };
    Ok(read.describe().into_iter().map(shape).collect())
}

/// The names of client authorities that were checked when they were set.
pub(crate) fn authorities(pem: &str) -> Vec<String> {
    let read = ClientAuthorities::parse(pem).map(|read| read.describe()).unwrap_or_default();
    read.into_iter().map(|authority| authority.subject).collect()
}

/// Reads roots to trust for somebody's addresses: what the library that connects will take.
pub(crate) fn roots(what: &str, pem: &str) -> Result<(), Refusal> {
    let wrong =
        |why: &str| Refusal::invalid(format_args!("{what} is no list of root certificates in PEM: {why}"));
    if pem.len() > SIGN_IN_TEXT_BYTES_MAX {
        return Err(wrong("it is too long"));
    }
    if pem.contains("PRIVATE KEY") {
        return Err(wrong("it holds a private key, which belongs to its owner alone; take it out"));
    }
    let mut known = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let root = root.map_err(|_| wrong("it is cut off, or holds other characters than base64"))?;
        known.add(root).map_err(|_| wrong("a certificate cannot be read"))?;
        if known.len() > ROOTS_MAX {
            return Err(wrong("it holds more than 32"));
        }
    }
    if known.is_empty() { Err(wrong("it holds none")) } else { Ok(()) }
}

/// Reads revocation lists.
pub(crate) fn crls(pem: &str) -> Result<Vec<Crl>, Refusal> {
    let read = Crls::parse(pem).map_err(|error| Refusal::invalid(format_args!("pem: {error}")))?;
    let shape = |CrlFacts { issuer, this_update, next_update, revoked }| Crl {
        issuer,
        this_update,
        next_update,
        revoked,
    };
    Ok(read.describe().into_iter().map(shape).collect())
}
