//! Signatures over ASN.1 values of the form "content, algorithm, signature": certificates, revocation lists, OCSP answers.

use der::asn1::{AnyRef, BitStringRef};
use der::{Decode, Reader, SliceReader};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use webpki::{ALL_VERIFICATION_ALGS, RawPublicKeyEntity};

/// A value with its signature (`SIGNED{}` of X.509).
pub(crate) struct Signed<'a> {
    /// What is signed, with its tag and length.
    pub(crate) message: &'a [u8],
    /// The algorithm identifier, without its tag and length.
    algorithm: &'a [u8],
    signature: &'a [u8],
    /// What comes after the signature: the certificates of an OCSP answer.
    pub(crate) rest: Option<AnyRef<'a>>,
}

impl<'a> Signed<'a> {
    /// Reads the outer form only; `None` for what is not DER of that form.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = SliceReader::new(bytes).ok()?;
        let signed = reader.sequence(|inner| {
            let message = inner.tlv_bytes()?;
            let algorithm = AnyRef::decode(inner)?.value();
            let signature = BitStringRef::decode(inner)?;
            let rest = if inner.is_finished() { None } else { Some(AnyRef::decode(inner)?) };
            // No signature has unused bits.
            let signature = if signature.unused_bits() == 0 { signature.raw_bytes() } else { &[] };
            Ok(Self { message, algorithm, signature, rest })
        });
        reader.finish(signed.ok()).ok()?
    }

    /// Whether this key made the signature, by an algorithm that is good enough for certificates today.
    pub(crate) fn is_by(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let Ok(key) = RawPublicKeyEntity::try_from(key) else {
            return false;
        };
        ALL_VERIFICATION_ALGS
            .iter()
            .filter(|algorithm| algorithm.signature_alg_id().as_ref() == self.algorithm)
            .any(|algorithm| key.verify_signature(*algorithm, self.message, self.signature).is_ok())
    }
}

/// The algorithm identifier of a public key, without its tag and length.
pub(crate) fn algorithm_of(key: &[u8]) -> Option<&[u8]> {
    let mut reader = SliceReader::new(key).ok()?;
    let algorithm = reader.sequence(|inner| {
        let algorithm = AnyRef::decode(inner)?.value();
        inner.tlv_bytes()?;
        Ok(algorithm)
    });
    algorithm.ok()
}

/// A DER value of this tag (one byte) with its length.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => der.push(short),
        _ => {
            let bytes = content.len().to_be_bytes();
            let length = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(0)..];
            der.push(0x80 | u8::try_from(length.len()).unwrap_or(0));
            der.extend_from_slice(length);
        }
    }
    der.extend_from_slice(content);
    der
}
