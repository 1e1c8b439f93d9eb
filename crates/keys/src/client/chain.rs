//! From what a client presents to who it is: the chain to an authority of the cluster (RFC 5280, section 6).

use aws_lc_rs::digest;
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime};
use time::OffsetDateTime;
use webpki::{
    EndEntityCert, Error, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::prelude::X509Certificate;

use super::authorities::{is_issued_by, key_of, key_of_anchor};
use super::constraints::Constraints;
use super::{CertRefused, ClientAuthorities, Crls, PRESENTED_MAX, Step, Verified, name, parsed};

/// Most signatures that are checked to tell a stranger from somebody whose certificate is no longer good.
const SIGNATURES_MAX: usize = 32;
/// Most intermediate certificates of a chain (as in webpki).
const INTERMEDIATES_MAX: usize = 6;

impl ClientAuthorities {
    /// Who the holder of the first of these certificates is, if one of the authorities vouches for it now.
    ///
    /// The others help to build the chain, in any order. That the client has the certificate's key was shown by the TLS
    /// handshake. An authority that is not valid at this time vouches for nobody.
    pub fn verify(
        &self,
        presented: &[CertificateDer<'_>],
        crls: &Crls,
        now: OffsetDateTime,
    ) -> Result<Verified, CertRefused> {
        let [leaf, others @ ..] = presented else {
            return Err(CertRefused::Malformed);
        };
        if presented.len() > PRESENTED_MAX {
            return Err(CertRefused::Malformed);
        }
        let others: Vec<CertificateDer<'_>> =
            others.iter().chain(&self.intermediates).map(|der| CertificateDer::from(der.as_ref())).collect();
        self.check(leaf, &others, crls, now).map_err(|refused| match refused {
            CertRefused::Malformed => CertRefused::Malformed,
            // Whatever is wrong with a stranger's certificate, it is a stranger's.
            _ if !self.issued(leaf, &others) => CertRefused::Stranger,
            CertRefused::Stranger if !self.has_valid_issuer(leaf, &others, now) => {
                CertRefused::AuthorityExpired
            }
            other => other,
        })
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        crls: &Crls,
        now: OffsetDateTime,
    ) -> Result<Verified, CertRefused> {
        let seconds = u64::try_from(now.unix_timestamp()).map_err(|_| CertRefused::NotYetValid)?;
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let certificate = parsed(leaf).ok_or(CertRefused::Malformed)?;
        let end = EndEntityCert::try_from(leaf).map_err(|cause| refusal(&cause))?;
        let anchors = self.valid_anchors(now);
        let path_rules = |path: &VerifiedPath<'_>| self.check_path(path, &certificate);
        let find = |revocation: Option<RevocationOptions<'_>>| {
            end.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                others,
                time,
                KeyUsage::client_auth(),
                revocation,
                Some(&path_rules),
            )
            .map_err(|cause| refusal(&cause))
        };
        let lists = if crls.has_namesakes() { crls.of_issuers(&issuers(&find(None)?)) } else { crls.all() };
        let unknown =
            if crls.accepts_without_list() { UnknownStatusPolicy::Allow } else { UnknownStatusPolicy::Deny };
        let revocation = if crls.is_empty() {
            None
        } else {
            let builder = RevocationOptionsBuilder::new(&lists).map_err(|_| CertRefused::UnusableCrl)?;
            Some(
                builder
                    .with_depth(RevocationCheckDepth::Chain)
                    .with_status_policy(unknown)
                    .with_expiration_policy(ExpirationPolicy::Enforce)
                    .build(),
            )
        };
        let path = find(revocation)?;
        // A certificate that may not sign may not sign a handshake either (RFC 8446, 4.4.2.2); webpki does not ask.
        let usage = certificate.key_usage().map_err(|_| CertRefused::Malformed)?;
        if usage.is_some_and(|usage| !usage.value.digital_signature()) {
            return Err(CertRefused::WrongUse);
        }
        let root = self.root_of(path.anchor()).ok_or(CertRefused::Stranger)?;
        let mut chain = vec![leaf.clone().into_owned()];
        chain.extend(path.intermediate_certificates().map(|cert| cert.der().into_owned()));
        chain.push(root.der.clone());
        let not_after = chain
            .iter()
            .filter_map(|der| parsed(der).map(|known| known.validity().not_after.to_datetime()))
            .min()
            .ok_or(CertRefused::Malformed)?;
        let steps: Option<Vec<Step>> =
            chain.windows(2).map(|pair| Step::new(pair[0].clone(), pair[1].clone())).collect();
        let constraints = Constraints::of(&chain[1..]).ok_or(CertRefused::Malformed)?;
        let common_name = name::common_name(&certificate).filter(|name| constraints.permit_common_name(name));
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest::digest(&digest::SHA256, leaf).as_ref());
        Ok(Verified {
            common_name,
            subject: name::rfc2253(certificate.subject()),
            is_constrained: !constraints.is_empty(),
            alternative_names: name::alternative_names(&certificate),
            fingerprint,
            serial: hex::encode(certificate.raw_serial()),
            not_after,
            steps: steps.ok_or(CertRefused::Malformed)?,
        })
    }

    /// What webpki leaves to others: how many certificates the root allows below it, that each issuer may issue, and that the
    /// e-mail addresses of the subject are within the issuers' name constraints.
    fn check_path(&self, path: &VerifiedPath<'_>, leaf: &X509Certificate<'_>) -> Result<(), Error> {
        let root = self.root_of(path.anchor()).ok_or(Error::UnknownIssuer)?;
        if root.path_len.is_some_and(|most| path.intermediate_certificates().count() > most) {
            return Err(Error::PathLenConstraintViolated);
        }
        for intermediate in path.intermediate_certificates() {
            let der = intermediate.der();
            let usage = parsed(&der)
                .ok_or(Error::BadDer)?
                .key_usage()
                .map(|found| found.is_none_or(|usage| usage.value.key_cert_sign()));
            if usage != Ok(true) {
                return Err(Error::EndEntityUsedAsCa);
            }
        }
        let mut issuers: Vec<_> = path.intermediate_certificates().map(webpki::Cert::der).collect();
        issuers.push(root.der.clone());
        let constraints = Constraints::of(&issuers).ok_or(Error::BadDer)?;
        if constraints.permit_emails_of(leaf) { Ok(()) } else { Err(Error::NameConstraintViolation) }
    }

    fn valid_anchors(&self, now: OffsetDateTime) -> Vec<TrustAnchor<'_>> {
        self.roots
            .iter()
            .zip(&self.anchors)
            .filter(|(root, _)| root.not_before <= now && now <= root.not_after)
            .map(|(_, anchor)| anchor.clone())
            .collect()
    }

    /// Whether signatures lead from the certificate to a root of ours, whatever else is wrong.
    fn issued(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> bool {
        self.leads(leaf, others, &|_| true)
    }

    /// Whether signatures lead from the certificate to a root of ours that is valid now.
    fn has_valid_issuer(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> bool {
        self.leads(leaf, others, &|index| {
            self.roots.get(index).is_some_and(|root| root.not_before <= now && now <= root.not_after)
        })
    }

    fn leads(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        counts: &dyn Fn(usize) -> bool,
    ) -> bool {
        let mut signatures = SIGNATURES_MAX;
        self.climb(leaf, others, counts, &mut signatures, INTERMEDIATES_MAX)
    }

    fn climb(
        &self,
        from: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        counts: &dyn Fn(usize) -> bool,
        signatures: &mut usize,
        height: usize,
    ) -> bool {
        let Some(certificate) = parsed(from) else {
            return false;
        };
        let wanted = certificate.issuer().as_raw();
        let is_by = |der: &CertificateDer<'_>, signatures: &mut usize| {
            let Some(left) = signatures.checked_sub(1) else {
                return false;
            };
            let is_named =
                parsed(der).is_some_and(|issuer| issuer.is_ca() && issuer.subject().as_raw() == wanted);
            if !is_named {
                return false;
            }
            *signatures = left;
            key_of(der).is_some_and(|key| is_issued_by(from, &key))
        };
        let mut roots = self.roots.iter().enumerate().filter(|(index, _)| counts(*index));
        if roots.any(|(_, root)| is_by(&root.der, signatures)) {
            return true;
        }
        let Some(height) = height.checked_sub(1) else {
            return false;
        };
        others
            .iter()
            .filter(|other| other.as_ref() != from.as_ref())
            .any(|other| is_by(other, signatures) && self.climb(other, others, counts, signatures, height))
    }
}

/// Names and keys of those who issued the certificates of a path.
fn issuers(path: &VerifiedPath<'_>) -> Vec<(Vec<u8>, SubjectPublicKeyInfoDer<'static>)> {
    let anchor = path.anchor();
    path.intermediate_certificates()
        .map(|cert| (cert.subject().to_vec(), cert.subject_public_key_info()))
        .chain([(anchor.subject.as_ref().to_vec(), key_of_anchor(anchor))])
        .collect()
}

fn refusal(cause: &Error) -> CertRefused {
    match cause {
        Error::CertExpired { .. } => CertRefused::Expired,
        Error::CertNotValidYet { .. } => CertRefused::NotYetValid,
        Error::CertRevoked => CertRefused::Revoked,
        Error::CrlExpired { .. } => CertRefused::StaleCrl,
        Error::IssuerNotCrlSigner
        | Error::InvalidCrlSignatureForPublicKey
        | Error::UnsupportedCrlSignatureAlgorithmContext(_)
        | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
        | Error::UnsupportedCrlIssuingDistributionPoint => CertRefused::UnusableCrl,
        Error::UnknownRevocationStatus => CertRefused::NoCrl,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension | Error::CaUsedAsEndEntity => {
            CertRefused::WrongUse
        }
        Error::NameConstraintViolation | Error::PathLenConstraintViolated | Error::EndEntityUsedAsCa => {
            CertRefused::Constraint
        }
        Error::UnsupportedCertVersion => CertRefused::OldVersion,
        Error::BadDer
        | Error::BadDerTime
        | Error::ExtensionValueInvalid
        | Error::InvalidCertValidity
        | Error::MalformedExtensions
        | Error::SignatureAlgorithmMismatch
        | Error::TrailingData(_)
        | Error::UnsupportedCriticalExtension => CertRefused::Malformed,
        _ => CertRefused::Stranger,
    }
}
