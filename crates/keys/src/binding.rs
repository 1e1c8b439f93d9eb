//! Channel binding `tls-server-end-point` (RFC 5929, section 4): a hash of the certificate that the server showed.

use aws_lc_rs::digest;
use rustls_pki_types::CertificateDer;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// The binding data of one certificate, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelBinding(Result<Vec<u8>, Unbindable>);

/// Why a certificate has no `tls-server-end-point` value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbindable {
    /// Its signature algorithm uses no single hash function (Ed25519, Ed448), or one that we do not know.
    NoSingleHash,
    /// It is not a readable certificate.
    Unreadable,
}

impl ChannelBinding {
    /// No certificate, no binding.
    pub fn none() -> Self {
        Self(Err(Unbindable::Unreadable))
    }

    /// Hashes the certificate with its signature's hash function; MD5 and SHA-1 are replaced by SHA-256 (RFC 5929, 4.1).
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return Self(Err(Unbindable::Unreadable));
        };
        let Some(algorithm) = hash_of(&parsed) else {
            return Self(Err(Unbindable::NoSingleHash));
        };
        Self(Ok(digest::digest(algorithm, certificate).as_ref().to_vec()))
    }

    /// The data that a client must have bound to, if PLUS can be offered at all.
    pub fn data(&self) -> Option<&[u8]> {
        self.0.as_deref().ok()
    }
}

fn hash_of(certificate: &X509Certificate<'_>) -> Option<&'static digest::Algorithm> {
    let signature = &certificate.signature_algorithm;
    let known = &signature.algorithm;
    let by_hash = |hash: &oid::Oid<'_>| -> Option<&'static digest::Algorithm> {
        if *hash == oid::OID_NIST_HASH_SHA256 || *hash == oid::OID_HASH_SHA1 {
            Some(&digest::SHA256)
        } else if *hash == oid::OID_NIST_HASH_SHA384 {
            Some(&digest::SHA384)
        } else if *hash == oid::OID_NIST_HASH_SHA512 {
            Some(&digest::SHA512)
        } else {
            None
        }
    };
    let sha256 = [
        oid::OID_PKCS1_SHA256WITHRSA,
        oid::OID_SIG_ECDSA_WITH_SHA256,
        oid::OID_PKCS1_SHA1WITHRSA,
        oid::OID_PKCS1_MD5WITHRSAENC,
    ];
    if sha256.contains(known) {
        return Some(&digest::SHA256);
    }
    if [oid::OID_PKCS1_SHA384WITHRSA, oid::OID_SIG_ECDSA_WITH_SHA384].contains(known) {
        return Some(&digest::SHA384);
    }
    if [oid::OID_PKCS1_SHA512WITHRSA, oid::OID_SIG_ECDSA_WITH_SHA512].contains(known) {
        return Some(&digest::SHA512);
    }
    match SignatureAlgorithm::try_from(signature) {
        Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => by_hash(parameters.hash_algorithm_oid()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm as Signs};

    use super::*;

    fn certificate(algorithm: &'static Signs) -> CertificateDer<'static> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn t30_the_hash_follows_the_signature_and_ed25519_has_none() {
        let p256 = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
        let p384 = certificate(&rcgen::PKCS_ECDSA_P384_SHA384);
        let p521 = certificate(&rcgen::PKCS_ECDSA_P521_SHA512);
        let ed = certificate(&rcgen::PKCS_ED25519);
        let hashed = |algorithm, der: &CertificateDer<'_>| digest::digest(algorithm, der).as_ref().to_vec();
        assert_eq!(ChannelBinding::of(&p256).data().unwrap(), hashed(&digest::SHA256, &p256));
        assert_eq!(ChannelBinding::of(&p384).data().unwrap(), hashed(&digest::SHA384, &p384));
        assert_eq!(ChannelBinding::of(&p521).data().unwrap(), hashed(&digest::SHA512, &p521));
        assert_eq!(ChannelBinding::of(&ed), ChannelBinding(Err(Unbindable::NoSingleHash)));
        assert_eq!(ChannelBinding::of(&CertificateDer::from(vec![1, 2, 3])).data(), None);
    }
}
