//! The authorities whose certificates count for a cluster, as its customer gave them.

use aws_lc_rs::digest;
use model::SIGN_IN_TEXT_BYTES_MAX;
use rustls_pki_types::pem::SectionKind;
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, TrustAnchor};
use time::OffsetDateTime;
use webpki::{ALL_VERIFICATION_ALGS, anchor_from_trusted_cert, spki_for_anchor};
use x509_parser::prelude::X509Certificate;
use x509_parser::public_key::PublicKey;

use super::pem::{self, WrongPem};
use super::{name, parsed};
use crate::signed::Signed;

/// Most certificates of one bundle.
pub const CA_CERTIFICATES_MAX: usize = 32;
/// Shortest RSA key that counts (what rustls and browsers ask for).
const RSA_BITS_MIN: usize = 2_048;

/// The client authorities of one cluster.
///
/// A certificate of the bundle that is issued by another one of the bundle is an intermediate one: it helps to build
/// chains, and its revocation is asked for. Every other one is trusted by itself, and nobody is asked whether it was
/// revoked; so a customer who trusts one issuing authority only, and not the root above it, gives that one alone.
pub struct ClientAuthorities {
    pub(super) roots: Vec<Root>,
    /// The roots' trust anchors, in the same order.
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    facts: Vec<CaFacts>,
}

/// A certificate that is trusted by itself.
pub(super) struct Root {
    pub(super) der: CertificateDer<'static>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    /// Most intermediate certificates below it; `None` for any number.
    pub(super) path_len: Option<usize>,
}

/// What people want to know about an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFacts {
    /// Its distinguished name (RFC 2253, last part first).
    pub subject: String,
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
    /// SHA-256 of the certificate in hexadecimal, lower case.
    pub sha256: String,
}

/// Why a text is no bundle of client authorities.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableCa {
    /// It is not a list of certificates in PEM.
    #[error("{0}")]
    Pem(#[from] WrongPem),
    /// One of the certificates cannot be an authority.
    #[error("certificate {number}: {why}")]
    Certificate {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it and what to do.
        why: String,
    },
}

impl ClientAuthorities {
    /// Reads certificates of authorities in PEM, 1 to 32. Leaves, private keys, duplicates, and keys that are too weak to
    /// be believed are refused. Authorities that have expired are kept: they verify nothing, but do not keep a bundle
    /// with their successors from being used.
    pub fn parse(text: &str) -> Result<Self, UnusableCa> {
        Self::read(text, None)
    }

    /// As [`ClientAuthorities::parse`], and refuses this root and whatever it issued: the certificates of the cloud's own
    /// nodes must never be those of a client.
    pub fn parse_without(text: &str, own_root: &CertificateDer<'_>) -> Result<Self, UnusableCa> {
        Self::read(text, Some(own_root))
    }

    fn read(text: &str, own_root: Option<&CertificateDer<'_>>) -> Result<Self, UnusableCa> {
        let blocks = pem::blocks(
            text,
            "CERTIFICATE",
            SectionKind::Certificate,
            SIGN_IN_TEXT_BYTES_MAX,
            CA_CERTIFICATES_MAX,
        )?;
        let certificates: Vec<CertificateDer<'static>> =
            blocks.into_iter().map(CertificateDer::from).collect();
        let own_key = own_root.and_then(key_of);
        let mut keys = Vec::with_capacity(certificates.len());
        let mut facts = Vec::with_capacity(certificates.len());
        for (index, der) in certificates.iter().enumerate() {
            let wrong = |why: &str| UnusableCa::Certificate { number: index + 1, why: why.to_owned() };
            if let Some(same) = certificates[..index].iter().position(|other| other == der) {
                return Err(wrong(&format!("it is the same as certificate {}; give it once", same + 1)));
            }
            let certificate = parsed(der).ok_or_else(|| wrong("it is not a readable X.509 certificate"))?;
            check(&certificate).map_err(|why| wrong(&why))?;
            let key = key_of(der).ok_or_else(|| wrong("it is not a readable X.509 certificate"))?;
            if let Some(own) = &own_key
                && (key == *own || is_issued_by(der, own))
            {
                return Err(wrong(
                    "it belongs to this cloud itself, whose certificates never sign a client in; give your own authority",
                ));
            }
            keys.push(key);
            facts.push(CaFacts {
                subject: name::rfc2253(certificate.subject()),
                not_after: certificate.validity().not_after.to_datetime(),
                sha256: hex::encode(digest::digest(&digest::SHA256, der)),
            });
        }
        let subjects: Vec<Vec<u8>> = certificates
            .iter()
            .map(|der| parsed(der).map(|known| known.subject().as_raw().to_vec()).unwrap_or_default())
            .collect();
        let (mut roots, mut anchors, mut intermediates) = (Vec::new(), Vec::new(), Vec::new());
        for (index, der) in certificates.iter().enumerate() {
            let wrong = |why: &str| UnusableCa::Certificate { number: index + 1, why: why.to_owned() };
            let certificate = parsed(der).ok_or_else(|| wrong("it is not a readable X.509 certificate"))?;
            let issuer = certificate.issuer().as_raw();
            let is_below_another = issuer != certificate.subject().as_raw()
                && subjects
                    .iter()
                    .zip(&keys)
                    .any(|(subject, key)| subject.as_slice() == issuer && is_issued_by(der, key));
            if is_below_another {
                intermediates.push(der.clone());
                continue;
            }
            let anchor = anchor_from_trusted_cert(der)
                .map_err(|cause| wrong(&format!("it cannot be used as an authority ({cause:?})")))?;
            anchors.push(anchor.to_owned());
            let constraints = certificate.basic_constraints().ok().flatten();
            roots.push(Root {
                der: der.clone(),
                not_before: certificate.validity().not_before.to_datetime(),
                not_after: certificate.validity().not_after.to_datetime(),
                path_len: constraints
                    .and_then(|found| found.value.path_len_constraint)
                    .map(|length| usize::try_from(length).unwrap_or(usize::MAX)),
            });
        }
        if roots.is_empty() {
            // Only certificates that issue each other in a circle come here.
            let why = "no certificate of the bundle stands above the others; add the root".to_owned();
            return Err(UnusableCa::Certificate { number: 1, why });
        }
        Ok(Self { roots, anchors, intermediates, facts })
    }

    /// The authorities in the order of the bundle.
    pub fn describe(&self) -> Vec<CaFacts> {
        self.facts.clone()
    }

    /// The root that this anchor was made from.
    pub(super) fn root_of(&self, anchor: &TrustAnchor<'_>) -> Option<&Root> {
        let index = self.anchors.iter().position(|known| known == anchor)?;
        self.roots.get(index)
    }
}

impl std::fmt::Debug for ClientAuthorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClientAuthorities").field(&self.facts).finish()
    }
}

/// Whether it may issue certificates of clients (RFC 5280, 4.2.1.3, 4.2.1.9 and 4.2.1.12), with a key that counts.
fn check(certificate: &X509Certificate<'_>) -> Result<(), String> {
    let damaged = |_| "its extensions cannot be read".to_owned();
    let constraints = certificate.basic_constraints().map_err(damaged)?;
    if !constraints.is_some_and(|found| found.value.ca) {
        return Err(
            "it is not an authority (no basicConstraints with CA:TRUE); give the certificate that issues your clients', not a client's"
                .to_owned(),
        );
    }
    if certificate.key_usage().map_err(damaged)?.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("its key usage does not allow it to issue certificates (keyCertSign)".to_owned());
    }
    let purposes = certificate.extended_key_usage().map_err(damaged)?;
    if purposes.is_some_and(|found| !found.value.any && !found.value.client_auth) {
        return Err("its extended key usage does not allow certificates of clients (clientAuth)".to_owned());
    }
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < RSA_BITS_MIN => {
            Err(format!("its RSA key has {} bits; {RSA_BITS_MIN} are the least", key.key_size()))
        }
        Ok(_) => Ok(()),
        Err(_) => Err("its public key cannot be read".to_owned()),
    }?;
    let key = certificate.public_key();
    let is_usable = crate::signed::algorithm_of(key.raw).is_some_and(|wanted| {
        ALL_VERIFICATION_ALGS.iter().any(|known| known.public_key_alg_id().as_ref() == wanted)
    });
    if is_usable {
        Ok(())
    } else {
        Err("its public key is of a kind that is not known; RSA, ECDSA with P-256, P-384 or P-521, and Ed25519 are".to_owned())
    }
}

/// A certificate's public key.
pub(super) fn key_of(der: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    Some(SubjectPublicKeyInfoDer::from(parsed(der)?.public_key().raw.to_vec()))
}

/// Whether this key signed the certificate.
pub(super) fn is_issued_by(der: &CertificateDer<'_>, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
    Signed::read(der).is_some_and(|signed| signed.is_by(key))
}

/// An anchor's public key.
pub(super) fn key_of_anchor(anchor: &TrustAnchor<'_>) -> SubjectPublicKeyInfoDer<'static> {
    spki_for_anchor(anchor)
}
