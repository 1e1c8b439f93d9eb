//! Revocation lists (RFC 5280, section 5), for authorities that have no responder.

use model::CRL_TEXT_BYTES_MAX;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::SectionKind;
use time::OffsetDateTime;
use webpki::{CertRevocationList, EndEntityCert, Error, OwnedCertRevocationList};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::authorities::key_of;
use super::pem::{self, WrongPem};
use super::{Verified, name};
use crate::signed::Signed;

/// Most lists of one cluster.
pub const CRLS_MAX: usize = 64;

/// The revocation lists of one cluster. Where there are any, each authority of a certificate's chain needs one, unless
/// [`Crls::accepting_without_list`]: what nobody says anything about is not known to be good. A list whose time has passed refuses everybody whom
/// its authority certified, until a newer one is set.
pub struct Crls {
    /// Newest first: the first list that answers for a certificate decides.
    lists: Vec<List>,
    facts: Vec<CrlFacts>,
    /// Whether several lists are of authorities with the same name, which may have different keys.
    has_namesakes: bool,
    accepts_without_list: bool,
}

struct List {
    parsed: CertRevocationList<'static>,
    der: Vec<u8>,
    this_update: OffsetDateTime,
}

/// What people want to know about a revocation list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrlFacts {
    /// The authority that signed it (RFC 2253, last part first).
    pub issuer: String,
    /// When it was made.
    pub this_update: OffsetDateTime,
    /// Until when it holds.
    pub next_update: OffsetDateTime,
    /// How many certificates it revokes.
    pub revoked: usize,
}

/// Why a text is no set of revocation lists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableCrl {
    /// It is not a list of revocation lists in PEM.
    #[error("{0}")]
    Pem(#[from] WrongPem),
    /// One of the lists cannot be used.
    #[error("list {number}: {why}")]
    List {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it and what to do.
        why: String,
    },
}

impl Crls {
    /// No lists.
    pub fn empty() -> Self {
        Self { lists: Vec::new(), facts: Vec::new(), has_namesakes: false, accepts_without_list: false }
    }

    /// Reads revocation lists in PEM, 1 to 64. Delta lists, indirect lists and lists by reason are refused, because what
    /// they leave out would pass for not revoked. Whether a list is signed by its authority is found out when a
    /// certificate of that authority is verified.
    pub fn parse(text: &str) -> Result<Self, UnusableCrl> {
        let blocks = pem::blocks(text, "X509 CRL", SectionKind::Crl, CRL_TEXT_BYTES_MAX, CRLS_MAX)?;
        let (mut lists, mut facts) = (Vec::<List>::new(), Vec::new());
        for (index, der) in blocks.into_iter().enumerate() {
            let wrong = |why: String| UnusableCrl::List { number: index + 1, why };
            let Ok(([], parsed)) = CertificateRevocationList::from_der(&der) else {
                return Err(wrong("it is not a readable revocation list".to_owned()));
            };
            let Some(next_update) = parsed.next_update() else {
                return Err(wrong(
                    "it does not say until when it holds (nextUpdate); have your authority make one that does"
                        .to_owned(),
                ));
            };
            let this_update = parsed.last_update().to_datetime();
            facts.push(CrlFacts {
                issuer: name::rfc2253(parsed.issuer()),
                this_update,
                next_update: next_update.to_datetime(),
                revoked: parsed.iter_revoked_certificates().count(),
            });
            let list = OwnedCertRevocationList::from_der(&der).map_err(|cause| wrong(reason(&cause)))?;
            lists.push(List { parsed: list.into(), der, this_update });
        }
        lists.sort_by_key(|list| std::cmp::Reverse(list.this_update));
        let has_namesakes = lists.iter().enumerate().any(|(index, list)| {
            lists[..index].iter().any(|other| other.parsed.issuer() == list.parsed.issuer())
        });
        Ok(Self { lists, facts, has_namesakes, accepts_without_list: false })
    }

    /// Whether a certificate counts all the same that an authority without a list issued.
    #[must_use]
    pub fn accepting_without_list(self, accepts_without_list: bool) -> Self {
        Self { accepts_without_list, ..self }
    }

    /// The lists in the order in which they were given.
    pub fn describe(&self) -> Vec<CrlFacts> {
        self.facts.clone()
    }

    /// Whether a list that is signed by the right authority names a certificate of this chain. Lists that are out of
    /// date count here too: what was revoked stays revoked. For sessions that are open already.
    pub fn revokes(&self, verified: &Verified) -> bool {
        verified.steps.iter().any(|step| {
            let Ok(certificate) = EndEntityCert::try_from(&step.certificate) else {
                return true;
            };
            let mut named = self.lists.iter().filter(|list| {
                list.parsed.issuer() == certificate.issuer()
                    && !matches!(list.parsed.find_serial(certificate.serial()), Ok(None))
            });
            named.any(|list| key_of(&step.issuer).is_some_and(|key| list.is_by(&key)))
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    pub(super) fn accepts_without_list(&self) -> bool {
        self.accepts_without_list
    }

    pub(super) fn has_namesakes(&self) -> bool {
        self.has_namesakes
    }

    pub(super) fn all(&self) -> Vec<&CertRevocationList<'static>> {
        self.lists.iter().map(|list| &list.parsed).collect()
    }

    /// Without those lists that another authority of the same name signed. Where none is signed by these issuers (name and
    /// key), all stay, so that the check fails.
    pub(super) fn of_issuers(
        &self,
        issuers: &[(Vec<u8>, SubjectPublicKeyInfoDer<'_>)],
    ) -> Vec<&CertRevocationList<'static>> {
        let is_theirs: Vec<bool> = self
            .lists
            .iter()
            .map(|list| {
                issuers.iter().any(|(subject, key)| *subject == list.parsed.issuer() && list.is_by(key))
            })
            .collect();
        let has_better = |issuer: &[u8]| {
            self.lists.iter().zip(&is_theirs).any(|(list, theirs)| *theirs && list.parsed.issuer() == issuer)
        };
        self.lists
            .iter()
            .zip(&is_theirs)
            .filter(|(list, theirs)| **theirs || !has_better(list.parsed.issuer()))
            .map(|(list, _)| &list.parsed)
            .collect()
    }
}

impl List {
    fn is_by(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        Signed::read(&self.der).is_some_and(|signed| signed.is_by(key))
    }
}

impl std::fmt::Debug for Crls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Crls").field(&self.facts).finish()
    }
}

fn reason(cause: &Error) -> String {
    match cause {
        Error::UnsupportedDeltaCrl => {
            "it is a delta list, which names only what was revoked since another list; give the complete list"
        }
        Error::UnsupportedIndirectCrl => {
            "it is an indirect list, signed by another than who issued the certificates; give the issuer's own list"
        }
        Error::UnsupportedRevocationReasonsPartitioning => {
            "it names only what was revoked for some reasons; give the complete list"
        }
        Error::UnsupportedCrlVersion => {
            "it is a version 1 list; have your authority make version 2 (openssl ca: set crl_extensions with a crlNumber)"
        }
        Error::UnsupportedCrlIssuingDistributionPoint => {
            "the certificates it is for (issuing distribution point) are described in a way that is not known"
        }
        Error::UnsupportedCriticalExtension => "it has a critical extension that is not known",
        _ => return format!("it cannot be used ({cause:?})"),
    }
    .to_owned()
}
