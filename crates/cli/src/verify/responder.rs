//! An OCSP responder (RFC 6960) of our own, for certificates of our own: it says of each what the attack wants said.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use der::asn1::{BitString, GeneralizedTime, ObjectIdentifier, OctetString};
use der::{Decode, Encode};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_ocsp::{
    BasicOcspResponse, CertStatus, OcspGeneralizedTime, OcspRequest, OcspResponse, OcspResponseStatus,
    ResponderId, ResponseBytes, ResponseData, RevokedInfo, SingleResponse, Version,
};

use super::loopback::{Answers, Loopback, Reply};
use super::wire::Fault;

/// `id-pkix-ocsp-basic` (RFC 6960, section 4.2.1).
const BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
/// `ecdsa-with-SHA256` (RFC 5758, section 3.2).
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const VALIDITY: Duration = Duration::from_secs(60);

/// A responder that answers until it is dropped.
pub struct Responder {
    server: Loopback,
    asked: Arc<AtomicUsize>,
}

/// What the responder signs with and knows.
struct Office {
    key: KeyPair,
    revoked: Mutex<HashSet<Vec<u8>>>,
    asked: Arc<AtomicUsize>,
}

impl Responder {
    /// Opens a responder on loopback. The key is the authority's own; certificates with these serial numbers (big
    /// endian, without leading zeros) are revoked, all others are good.
    pub async fn open(key: KeyPair, revoked: &[&[u8]]) -> Result<Self, Fault> {
        let asked = Arc::new(AtomicUsize::new(0));
        let revoked = Mutex::new(revoked.iter().map(|serial| serial.to_vec()).collect());
        let office = Arc::new(Office { key, revoked, asked: asked.clone() });
        Ok(Self { server: Loopback::open(office).await?, asked })
    }

    /// Where it is asked.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Answers for Office {
    fn answer(&self, _path: &str, body: &[u8]) -> Option<Reply> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Some(Reply { status: "200 OK", kind: "application/ocsp-response", body: self.attest(body)? })
    }
}

impl Office {
    fn attest(&self, request: &[u8]) -> Option<Vec<u8>> {
        let request = OcspRequest::from_der(request).ok()?;
        let now = SystemTime::now();
        let time = |at: SystemTime| {
            let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            Some(OcspGeneralizedTime(GeneralizedTime::from_unix_duration(since).ok()?))
        };
        let (this_update, next_update) = (time(now)?, time(now + VALIDITY)?);
        let revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let responses = request.tbs_request.request_list.into_iter().map(|asked| {
            let serial = asked.req_cert.serial_number.as_bytes().to_vec();
            let serial: Vec<u8> = serial.into_iter().skip_while(|byte| *byte == 0).collect();
            let cert_status = if revoked.contains(&serial) {
                CertStatus::revoked(RevokedInfo { revocation_time: this_update, revocation_reason: None })
            } else {
                CertStatus::good()
            };
            SingleResponse {
                cert_id: asked.req_cert,
                cert_status,
                this_update,
                next_update: Some(next_update),
                single_extensions: None,
            }
        });
        let key_hash =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, self.key.der_bytes());
        let data = ResponseData {
            version: Version::V1,
            responder_id: ResponderId::ByKey(OctetString::new(key_hash.as_ref()).ok()?),
            produced_at: this_update,
            responses: responses.collect(),
            response_extensions: None,
        };
        let signature = self.key.sign(&data.to_der().ok()?).ok()?;
        let basic = BasicOcspResponse {
            tbs_response_data: data,
            signature_algorithm: AlgorithmIdentifierOwned { oid: ECDSA_SHA256, parameters: None },
            signature: BitString::from_bytes(&signature).ok()?,
            certs: None,
        };
        let response = OcspResponse {
            response_status: OcspResponseStatus::Successful,
            response_bytes: Some(ResponseBytes {
                response_type: BASIC,
                response: OctetString::new(basic.to_der().ok()?).ok()?,
            }),
        };
        response.to_der().ok()
    }
}
