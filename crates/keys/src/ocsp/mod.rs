//! Asking whether a certificate is revoked (OCSP, RFC 6960), and reading the answer. The asking itself is done elsewhere.

#[cfg(test)]
mod tests;

use aws_lc_rs::digest::{self, Algorithm};
use der::asn1::ObjectIdentifier;
use der::{Decode, Reader, SliceReader};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use time::{Duration, OffsetDateTime};
use webpki::EndEntityCert;
use x509_ocsp::{
    CertId, CertStatus, OcspGeneralizedTime, OcspResponse, OcspResponseStatus, ResponseData, SingleResponse,
};
use x509_parser::prelude::X509Certificate;

use crate::client::{Step, parsed};
use crate::signed::{Signed, tlv};

/// The `Content-Type` of a request (RFC 6960, appendix A.1).
pub const REQUEST_KIND: &str = "application/ocsp-request";
/// The `Content-Type` of an answer (RFC 6960, appendix A.2).
pub const RESPONSE_KIND: &str = "application/ocsp-response";
/// Longest answer that is read, in bytes.
pub const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// For how long an answer is good that does not say it (no nextUpdate).
pub const VALIDITY_DEFAULT: Duration = Duration::hours(24);

/// By how much a responder's clock may be ahead of ours.
const CLOCK_SKEW: Duration = Duration::minutes(5);
/// Most certificates in an answer that are looked at.
const CERTIFICATES_MAX: usize = 8;

const BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
const NONCE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.2");
/// Hash functions of certificate ids. SHA-1 is what the protocol began with; it is no signature here, only a short name.
const HASHES: [(ObjectIdentifier, &Algorithm); 4] = [
    (ObjectIdentifier::new_unwrap("1.3.14.3.2.26"), &digest::SHA1_FOR_LEGACY_USE_ONLY),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1"), &digest::SHA256),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2"), &digest::SHA384),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3"), &digest::SHA512),
];

const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
const INTEGER: u8 = 0x02;
/// `SEQUENCE { OID sha1, NULL }`
const SHA1_ID: [u8; 11] = [0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00];
/// `OID id-pkix-ocsp-nonce`
const NONCE_OID: [u8; 11] = [0x06, 0x09, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x02];

/// What a responder says of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is not revoked.
    Good,
    /// It is revoked.
    Revoked {
        /// Since when.
        at: OffsetDateTime,
        /// Why, as RFC 5280 names it, where the responder says so.
        reason: Option<&'static str>,
    },
    /// The responder does not know it. That is not good.
    Unknown,
}

/// A checked answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the responder says.
    pub status: Status,
    /// When that was known to be so.
    pub this_update: OffsetDateTime,
    /// When there will be something newer, where the responder says so.
    pub next_update: Option<OffsetDateTime>,
}

impl Answer {
    /// Until when the answer may be used: its nextUpdate, or a day after its thisUpdate.
    pub fn good_until(&self) -> OffsetDateTime {
        self.next_update.unwrap_or_else(|| self.this_update.saturating_add(VALIDITY_DEFAULT))
    }
}

/// Why an answer says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// Too many bytes.
    #[error("the answer is longer than {RESPONSE_BYTES_MAX} bytes")]
    TooLong,
    /// Not an OCSP answer.
    #[error("the answer is not an OCSP response")]
    Malformed,
    /// The responder did not answer the question.
    #[error("the responder says {0}")]
    NotSuccessful(&'static str),
    /// Not a basic response (RFC 6960, 4.2.1), or with critical extensions that are not known.
    #[error("the answer is of a kind that is not known")]
    OtherKind,
    /// It answers for other certificates.
    #[error("the answer is not about this certificate")]
    OtherCertificate,
    /// It is signed by nobody who may.
    #[error(
        "the answer is not signed by the issuer of the certificate, nor by a responder that the issuer appointed"
    )]
    WrongSigner,
    /// It says when it was made, and that is not yet.
    #[error("the answer is from the future; compare the clocks")]
    FromTheFuture,
    /// Its time has passed.
    #[error("the answer is out of date")]
    OutOfDate,
    /// It answers another question than ours.
    #[error("the answer carries another nonce than the question")]
    WrongNonce,
}

/// The question about one certificate, in DER, with a nonce (RFC 8954) so that an old answer cannot be played back where
/// the responder echoes it. The certificate id is made with SHA-1, which all responders know. Empty for a step whose
/// certificates cannot be read, which [`Step::new`] never makes.
pub fn request(step: &Step, nonce: &[u8; 32]) -> Vec<u8> {
    let (Some(certificate), Some(issuer)) = (parsed(&step.certificate), parsed(&step.issuer)) else {
        return Vec::new();
    };
    let hash =
        |bytes: &[u8]| tlv(OCTET_STRING, digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref());
    let id = [
        SHA1_ID.to_vec(),
        hash(issuer.subject().as_raw()),
        hash(&issuer.public_key().subject_public_key.data),
        tlv(INTEGER, certificate.raw_serial()),
    ];
    // Request, then the list of requests.
    let list = tlv(SEQUENCE, &tlv(SEQUENCE, &tlv(SEQUENCE, &id.concat())));
    let nonce = [NONCE_OID.to_vec(), tlv(OCTET_STRING, &tlv(OCTET_STRING, nonce))].concat();
    let extensions = tlv(0xa2, &tlv(SEQUENCE, &tlv(SEQUENCE, &nonce)));
    tlv(SEQUENCE, &tlv(SEQUENCE, &[list, extensions].concat()))
}

/// Reads an answer about this certificate: it must be signed by the certificate's issuer, or by a responder that the
/// issuer itself appointed for this (extended key usage OCSPSigning) and whose certificate is valid now; about exactly
/// this certificate; of the present; and, where it echoes a nonce, with the one that was sent. `None` for an answer to a
/// question that was not ours (a stapled one). Whether the appointed responder is itself revoked is not asked: its
/// certificate is short-lived where authorities follow RFC 6960, 4.2.2.2.1.
pub fn read(
    response: &[u8],
    step: &Step,
    now: OffsetDateTime,
    nonce: Option<&[u8]>,
) -> Result<Answer, BadAnswer> {
    if response.len() > RESPONSE_BYTES_MAX {
        return Err(BadAnswer::TooLong);
    }
    let outer = OcspResponse::from_der(response).map_err(|_| BadAnswer::Malformed)?;
    check_status(outer.response_status)?;
    let bytes = outer.response_bytes.ok_or(BadAnswer::Malformed)?;
    if bytes.response_type != BASIC {
        return Err(BadAnswer::OtherKind);
    }
    let signed = Signed::read(bytes.response.as_bytes()).ok_or(BadAnswer::Malformed)?;
    let issuer = parsed(&step.issuer).ok_or(BadAnswer::OtherCertificate)?;
    if !is_from_responder(&signed, &issuer, now)? {
        return Err(BadAnswer::WrongSigner);
    }
    let data = ResponseData::from_der(signed.message).map_err(|_| BadAnswer::Malformed)?;
    check_extensions(&data, nonce)?;
    let certificate = parsed(&step.certificate).ok_or(BadAnswer::OtherCertificate)?;
    let mut answers = data.responses.iter().filter(|single| is_about(&single.cert_id, &certificate, &issuer));
    let first = read_one(answers.next().ok_or(BadAnswer::OtherCertificate)?, now)?;
    // One certificate may be answered for under several hash functions; contradictions are decided for the worst.
    answers.try_fold(first, |worst, single| {
        let other = read_one(single, now)?;
        Ok(if severity(other.status) > severity(worst.status) { other } else { worst })
    })
}

fn check_status(status: OcspResponseStatus) -> Result<(), BadAnswer> {
    Err(BadAnswer::NotSuccessful(match status {
        OcspResponseStatus::Successful => return Ok(()),
        OcspResponseStatus::MalformedRequest => "malformedRequest",
        OcspResponseStatus::InternalError => "internalError",
        OcspResponseStatus::TryLater => "tryLater",
        OcspResponseStatus::SigRequired => "sigRequired",
        OcspResponseStatus::Unauthorized => "unauthorized",
    }))
}

/// RFC 6960, 4.2.2.2: the issuer, or whom the issuer appointed.
fn is_from_responder(
    signed: &Signed<'_>,
    issuer: &X509Certificate<'_>,
    now: OffsetDateTime,
) -> Result<bool, BadAnswer> {
    let issuer_key = SubjectPublicKeyInfoDer::from(issuer.public_key().raw);
    if signed.is_by(&issuer_key) {
        return Ok(true);
    }
    for der in certificates(signed)? {
        let der = CertificateDer::from(der);
        // Reading it with webpki as well finds critical extensions that nobody here understands.
        let (Some(certificate), Ok(_)) = (parsed(&der), EndEntityCert::try_from(&der)) else {
            continue;
        };
        let key = SubjectPublicKeyInfoDer::from(certificate.public_key().raw);
        if certificate.issuer().as_raw() == issuer.subject().as_raw()
            && may_answer(&certificate, now)
            && signed.is_by(&key)
            && Signed::read(&der).is_some_and(|certificate| certificate.is_by(&issuer_key))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn may_answer(certificate: &X509Certificate<'_>, now: OffsetDateTime) -> bool {
    let validity = certificate.validity();
    let is_valid = validity.not_before.to_datetime() <= now && now <= validity.not_after.to_datetime();
    let purposes = certificate.extended_key_usage();
    let is_appointed = purposes.is_ok_and(|found| found.is_some_and(|found| found.value.ocsp_signing));
    let usage = certificate.key_usage();
    is_valid
        && is_appointed
        && usage.is_ok_and(|found| found.is_none_or(|usage| usage.value.digital_signature()))
}

/// The certificates that came with the answer: `[0] EXPLICIT SEQUENCE OF Certificate`.
fn certificates<'a>(signed: &Signed<'a>) -> Result<Vec<&'a [u8]>, BadAnswer> {
    let Some(rest) = signed.rest else {
        return Ok(Vec::new());
    };
    let mut reader = SliceReader::new(rest.value()).map_err(|_| BadAnswer::Malformed)?;
    let list = reader.sequence(|inner| {
        let mut found = Vec::new();
        while !inner.is_finished() {
            let certificate = inner.tlv_bytes()?;
            if found.len() < CERTIFICATES_MAX {
                found.push(certificate);
            }
        }
        Ok(found)
    });
    list.map_err(|_| BadAnswer::Malformed)
}

fn check_extensions(data: &ResponseData, nonce: Option<&[u8]>) -> Result<(), BadAnswer> {
    let singles = data.responses.iter().flat_map(|single| single.single_extensions.iter().flatten());
    let mut all = data.response_extensions.iter().flatten();
    if all.clone().chain(singles).any(|extension| extension.critical && extension.extn_id != NONCE) {
        return Err(BadAnswer::OtherKind);
    }
    let Some(sent) = nonce else {
        return Ok(());
    };
    let wanted = tlv(OCTET_STRING, sent);
    // Some responders echo the nonce without the OCTET STRING around it.
    let is_ours = |value: &[u8]| value == wanted || value == sent;
    let is_echo = all.all(|extension| extension.extn_id != NONCE || is_ours(extension.extn_value.as_bytes()));
    if is_echo { Ok(()) } else { Err(BadAnswer::WrongNonce) }
}

fn is_about(id: &CertId, certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    let Some((_, hash)) = HASHES.iter().find(|(oid, _)| *oid == id.hash_algorithm.oid) else {
        return false;
    };
    let is_hash = |of: &[u8], given: &[u8]| digest::digest(hash, of).as_ref() == given;
    serial_of(id) == significant(certificate.raw_serial())
        && is_hash(issuer.subject().as_raw(), id.issuer_name_hash.as_bytes())
        && is_hash(&issuer.public_key().subject_public_key.data, id.issuer_key_hash.as_bytes())
}

fn serial_of(id: &CertId) -> &[u8] {
    significant(id.serial_number.as_bytes())
}

/// Without the zeros before the number, which the library may have taken away.
fn significant(serial: &[u8]) -> &[u8] {
    &serial[serial.iter().position(|byte| *byte != 0).unwrap_or(serial.len())..]
}

fn read_one(single: &SingleResponse, now: OffsetDateTime) -> Result<Answer, BadAnswer> {
    let this_update = moment(single.this_update)?;
    let next_update = single.next_update.map(moment).transpose()?;
    if this_update > now.saturating_add(CLOCK_SKEW) {
        return Err(BadAnswer::FromTheFuture);
    }
    if next_update.is_some_and(|next| next < this_update) {
        return Err(BadAnswer::Malformed);
    }
    let status = match single.cert_status {
        CertStatus::Good(_) => Status::Good,
        CertStatus::Unknown(_) => Status::Unknown,
        CertStatus::Revoked(info) => Status::Revoked {
            at: moment(info.revocation_time)?,
            reason: info.revocation_reason.map(|reason| reason_name(reason as u32)),
        },
    };
    let answer = Answer { status, this_update, next_update };
    if now > answer.good_until() {
        return Err(BadAnswer::OutOfDate);
    }
    Ok(answer)
}

fn moment(time: OcspGeneralizedTime) -> Result<OffsetDateTime, BadAnswer> {
    let seconds = i64::try_from(time.0.to_unix_duration().as_secs()).map_err(|_| BadAnswer::Malformed)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| BadAnswer::Malformed)
}

fn severity(status: Status) -> u8 {
    match status {
        Status::Good => 0,
        Status::Unknown => 1,
        Status::Revoked { .. } => 2,
    }
}

/// RFC 5280, 5.3.1.
fn reason_name(number: u32) -> &'static str {
    match number {
        1 => "keyCompromise",
        2 => "cACompromise",
        3 => "affiliationChanged",
        4 => "superseded",
        5 => "cessationOfOperation",
        6 => "certificateHold",
        8 => "removeFromCRL",
        9 => "privilegeWithdrawn",
        10 => "aACompromise",
        _ => "unspecified",
    }
}
