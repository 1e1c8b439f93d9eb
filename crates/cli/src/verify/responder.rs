//! An OCSP responder (RFC 6960) of our own, for certificates of our own: it says of each what the attack wants said.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use der::asn1::{BitString, GeneralizedTime, ObjectIdentifier, OctetString};
use der::{Decode, Encode};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_ocsp::{
    BasicOcspResponse, CertStatus, OcspGeneralizedTime, OcspRequest, OcspResponse, OcspResponseStatus,
    ResponderId, ResponseBytes, ResponseData, RevokedInfo, SingleResponse, Version,
};

use super::wire::Fault;

/// `id-pkix-ocsp-basic` (RFC 6960, section 4.2.1).
const BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
/// `ecdsa-with-SHA256` (RFC 5758, section 3.2).
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const REQUEST_BYTES_MAX: usize = 16 * 1024;
const TALK_MAX: Duration = Duration::from_secs(5);
const VALIDITY: Duration = Duration::from_secs(60);

/// A responder that answers until it is dropped.
pub struct Responder {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
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
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let asked = Arc::new(AtomicUsize::new(0));
        let revoked = Mutex::new(revoked.iter().map(|serial| serial.to_vec()).collect());
        let office = Arc::new(Office { key, revoked, asked: asked.clone() });
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let office = office.clone();
                tokio::spawn(async move {
                    let _ = timeout(TALK_MAX, office.talk(tcp)).await;
                });
            }
        });
        Ok(Self { address, asked, task })
    }

    /// Where it is asked.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Office {
    async fn talk(&self, mut tcp: TcpStream) -> Option<()> {
        let mut bytes = Vec::new();
        let body = loop {
            let mut piece = [0; 2_048];
            let count = tcp.read(&mut piece).await.ok().filter(|count| *count > 0)?;
            bytes.extend_from_slice(&piece[..count]);
            if bytes.len() > REQUEST_BYTES_MAX {
                return None;
            }
            if let Some(body) = whole_body(&bytes) {
                break body.to_vec();
            }
        };
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.answer(&body)?;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/ocsp-response\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            answer.len()
        );
        tcp.write_all(head.as_bytes()).await.ok()?;
        tcp.write_all(&answer).await.ok()?;
        tcp.shutdown().await.ok()
    }

    fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
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

/// The body of a request, once all of it is there.
fn whole_body(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    bytes.get(end + 4..(end + 4).checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_whole_when_its_length_is_there() {
        assert_eq!(whole_body(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab"), None);
        assert_eq!(whole_body(b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabcd"), Some(b"abc".as_slice()));
        assert_eq!(whole_body(b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n"), None);
        assert_eq!(whole_body(b"POST / HTTP/1.1\r\n\r\n"), None);
    }
}
