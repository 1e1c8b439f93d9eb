//! WireGuard's keys: X25519, 32 bytes in base64.

use aws_lc_rs::agreement::{PrivateKey, X25519};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Makes a private key. A secret; the caller keeps it sealed.
///
/// # Panics
///
/// When the kernel gives no randomness, without which nothing of ours could go on.
pub fn generate() -> String {
    let mut key = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *key).expect("the kernel gives randomness");
    // As `wg genkey` writes it (RFC 7748, 5); the curve would do the same with any other 32 bytes.
    key[0] &= 0xf8;
    key[31] = (key[31] & 0x7f) | 0x40;
    STANDARD.encode(*key)
}

/// Tells the public key of a private one; `None` for what is no key.
pub fn public(private: &str) -> Option<String> {
    let key = bytes(private)?;
    let key = PrivateKey::from_private_key(&X25519, &*key).ok()?;
    Some(STANDARD.encode(key.compute_public_key().ok()?))
}

/// Reads a key. What is read is wiped when it is dropped.
pub(crate) fn bytes(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    if !model::is_wireguard_key(text) {
        return None;
    }
    let mut decoded = Zeroizing::new([0; 33]);
    let length = STANDARD.decode_slice(text, &mut *decoded).ok()?;
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(decoded.get(..length).filter(|bytes| bytes.len() == 32)?);
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_follows_from_the_private_one_as_the_standard_says() {
        // RFC 7748, 6.1: Alice and Bob.
        for (private, public_key) in [
            ("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=", "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="),
            ("XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os=", "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="),
        ] {
            assert_eq!(public(private).as_deref(), Some(public_key));
        }
        for wrong in [
            "",
            "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo",
            "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCp=",
        ] {
            assert_eq!(public(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_key_that_is_made_is_a_key_and_another_one() {
        let (one, two) = (generate(), generate());
        assert_ne!(one, two);
        for key in [one, two] {
            assert!(model::is_wireguard_key(&key), "no key");
            let bytes = bytes(&key).unwrap();
            assert_eq!((bytes[0] & 7, bytes[31] & 0xc0), (0, 0x40), "not as `wg genkey` writes it");
            assert!(model::is_wireguard_key(&public(&key).unwrap()));
        }
    }
}
