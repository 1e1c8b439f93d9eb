//! Certificates of clients: whose count for a cluster, which of them do not any more, and who their holders are.
//!
//! A certificate says who somebody is only after [`ClientAuthorities::verify`], and only if the TLS handshake has shown
//! that its holder has the key. What it says is a name of the customer's world: whether that may be a SQL user, and that
//! it is no internal one, is decided by whoever asks.

mod authorities;
mod chain;
mod constraints;
mod crls;
mod name;
mod pem;
#[cfg(test)]
mod tests;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use webpki::EndEntityCert;
use x509_parser::oid_registry::OID_PKIX_ACCESS_DESCRIPTOR_OCSP;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

pub use authorities::{CA_CERTIFICATES_MAX, CaFacts, ClientAuthorities, UnusableCa};
pub use crls::{CRLS_MAX, CrlFacts, Crls, UnusableCrl};
pub use name::AlternativeNames;
pub use pem::WrongPem;

/// Most certificates that a client may present: its own and the intermediate ones.
pub const PRESENTED_MAX: usize = 10;

/// Most responders of one certificate that are asked.
const RESPONDERS_MAX: usize = 4;
const RESPONDER_BYTES_MAX: usize = 2_048;

/// Whether a certificate is of a kind that can be checked at all: X.509 version 3, and undamaged. Of another kind not even the
/// signature in a TLS handshake is looked at, by which its holder shows to have its key.
pub fn can_be_checked(certificate: &CertificateDer<'_>) -> bool {
    EndEntityCert::try_from(certificate).is_ok()
}

/// SHA-256 of a certificate's public key (SubjectPublicKeyInfo, as in RFC 7469, section 2.4) in lower-case hexadecimal;
/// `None` for what is no certificate.
pub fn key_digest(certificate: &CertificateDer<'_>) -> Option<String> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, parsed.public_key().raw);
    rest.is_empty().then(|| hex::encode(digest))
}

/// A client's certificate that one of the cluster's authorities vouches for.
#[derive(Clone, PartialEq, Eq)]
pub struct Verified {
    /// The subject's common name; `None` where there is none, or several, or one that is not plain text or that an authority of
    /// the chain may not give.
    pub common_name: Option<String>,
    /// The whole subject, as PostgreSQL compares it under `clientname=DN` (RFC 2253, last part first).
    pub subject: String,
    /// Whether an authority of the chain has name constraints. They do not limit most of what a subject holds, so that as a
    /// whole it names nobody then.
    pub is_constrained: bool,
    /// The alternative names that are text.
    pub alternative_names: AlternativeNames,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// The serial number in hexadecimal, lower case.
    pub serial: String,
    /// Until when all certificates of the chain are valid.
    pub not_after: OffsetDateTime,
    /// The certificates whose revocation can be asked for: the client's own first, the root not among them.
    pub steps: Vec<Step>,
}

impl std::fmt::Debug for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { subject, serial, not_after, .. } = self;
        write!(f, "Verified({subject:?}, serial {serial}, until {not_after})")
    }
}

/// One certificate of a chain with the one that issued it.
#[derive(Clone, PartialEq, Eq)]
pub struct Step {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its issuer's certificate.
    pub issuer: CertificateDer<'static>,
    /// Where it says that its revocation can be asked for (`http` and `https` only), in its order.
    pub responders: Vec<String>,
}

impl Step {
    /// Of a certificate and its issuer. `None` where one of them is not a readable certificate. That the one issued the
    /// other must be known already.
    pub fn new(certificate: CertificateDer<'static>, issuer: CertificateDer<'static>) -> Option<Self> {
        parsed(&issuer)?;
        let responders = responders(&parsed(&certificate)?);
        Some(Self { certificate, issuer, responders })
    }
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Step").field("responders", &self.responders).finish_non_exhaustive()
    }
}

/// Why a client's certificate does not count. Only a certificate that really was issued by one of the cluster's
/// authorities is refused with anything but `Stranger` and `Malformed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertRefused {
    /// None of the cluster's authorities issued it.
    #[error("it was not issued by an authority of this cluster")]
    Stranger,
    /// It, or one between it and the authority, has expired.
    #[error("it has expired")]
    Expired,
    /// It, or one between it and the authority, is not valid yet.
    #[error("it is not valid yet")]
    NotYetValid,
    /// The authority that issued it has expired, or is not valid yet.
    #[error("the authority that issued it is not valid now")]
    AuthorityExpired,
    /// It was not issued to prove who a client is.
    #[error(
        "it is not meant for clients (it must allow the extended key usage clientAuth, and be no authority)"
    )]
    WrongUse,
    /// It names what its authority must not certify (RFC 5280, 4.2.1.10), or the chain is longer than the authority
    /// allows.
    #[error("its authority may not issue it")]
    Constraint,
    /// A revocation list names it, or one between it and the authority.
    #[error("it is revoked")]
    Revoked,
    /// The revocation list of its authority is too old.
    #[error("the revocation list of its authority is out of date")]
    StaleCrl,
    /// The revocation list of its authority is not signed by that authority, or by one that may not sign lists.
    #[error("the revocation list of its authority cannot be used")]
    UnusableCrl,
    /// Revocation lists are set, and none of them is of its authority, or of one between it and the root.
    #[error("an authority of its chain has no revocation list among those that are set")]
    NoCrl,
    /// It has no extensions (X.509 version 1), so that nothing says what it is for.
    #[error("it is an X.509 version 1 certificate; issue it again with extensions (version 3)")]
    OldVersion,
    /// It cannot be read, or too many certificates were presented.
    #[error("it is not a readable certificate")]
    Malformed,
}

/// Reads a certificate that has nothing behind it.
pub(crate) fn parsed<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}

/// Where a certificate says that its revocation can be asked for (RFC 5280, 4.2.2.1).
fn responders(certificate: &X509Certificate<'_>) -> Vec<String> {
    let access = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => Some(access),
        _ => None,
    });
    let usable = |url: &&str| {
        let lower = url.get(..8).unwrap_or_default().to_ascii_lowercase();
        url.len() <= RESPONDER_BYTES_MAX
            && url.bytes().all(|byte| byte.is_ascii_graphic())
            && (lower.starts_with("http://") || lower.starts_with("https://"))
    };
    access
        .into_iter()
        .flat_map(|access| &access.accessdescs)
        .filter(|description| description.access_method == OID_PKIX_ACCESS_DESCRIPTOR_OCSP)
        .filter_map(|description| match description.access_location {
            GeneralName::URI(url) => Some(url),
            _ => None,
        })
        .filter(usable)
        .take(RESPONDERS_MAX)
        .map(str::to_owned)
        .collect()
}
