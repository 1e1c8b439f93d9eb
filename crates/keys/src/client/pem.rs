//! PEM texts that people paste: only what was asked for, and never a private key.

use rustls_pki_types::pem::{PemObject, SectionKind};

/// Why a text is not a list of the blocks that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongPem {
    /// There is no block.
    #[error("the text holds no block that begins with -----BEGIN {0}-----")]
    Empty(&'static str),
    /// Too many bytes.
    #[error("the text is longer than {0} bytes")]
    TooLong(usize),
    /// Too many blocks.
    #[error("the text holds more than {0} blocks")]
    TooMany(usize),
    /// There is a private key.
    #[error(
        "the text holds a private key, which belongs to its owner alone: take it out, and replace that key if the text was seen by others"
    )]
    PrivateKey,
    /// A block of another kind.
    #[error("block {number} begins with -----BEGIN {label}-----, where {wanted} belongs")]
    Other {
        /// Which block, from 1.
        number: usize,
        /// What it says it is, at most 40 characters.
        label: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// A block is cut off, or not base64.
    #[error("block {0} is not PEM: it is cut off, or holds other characters than base64")]
    Broken(usize),
}

/// The blocks with this label, in their order. Every block of the text must have it.
pub(super) fn blocks(
    text: &str,
    wanted: &'static str,
    kind: SectionKind,
    bytes_max: usize,
    blocks_max: usize,
) -> Result<Vec<Vec<u8>>, WrongPem> {
    if text.len() > bytes_max {
        return Err(WrongPem::TooLong(bytes_max));
    }
    // The library passes over labels that it does not know; a person must hear of them.
    let labels: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-----BEGIN "))
        .map(|rest| rest.trim_end_matches('-'))
        .collect();
    if labels.iter().any(|label| label.contains("PRIVATE KEY")) || text.contains("PRIVATE KEY-----") {
        return Err(WrongPem::PrivateKey);
    }
    if let Some((index, label)) = labels.iter().enumerate().find(|(_, label)| **label != wanted) {
        let label = label.chars().filter(|letter| !letter.is_control()).take(40).collect();
        return Err(WrongPem::Other { number: index + 1, label, wanted });
    }
    if labels.is_empty() {
        return Err(WrongPem::Empty(wanted));
    }
    if labels.len() > blocks_max {
        return Err(WrongPem::TooMany(blocks_max));
    }
    let mut found = Vec::with_capacity(labels.len());
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
        match section {
            Ok((read, bytes)) if read == kind => found.push(bytes),
            _ => return Err(WrongPem::Broken(found.len() + 1)),
        }
    }
    if found.len() == labels.len() { Ok(found) } else { Err(WrongPem::Broken(found.len() + 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Vec<u8>>, WrongPem> {
        blocks(text, "CERTIFICATE", SectionKind::Certificate, 1_000, 2)
    }

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";

    #[test]
    fn blocks_are_found_between_other_text() {
        assert_eq!(read(&format!("# ours\n{ONE}\nsubject=CN\n{ONE}")).unwrap(), [[1, 2, 3], [1, 2, 3]]);
        assert_eq!(read(&ONE.replace('\n', "\r\n")).unwrap(), [[1, 2, 3]]);
    }

    #[test]
    fn what_does_not_belong_is_refused_and_a_key_is_never_repeated() {
        assert_eq!(read(""), Err(WrongPem::Empty("CERTIFICATE")));
        assert_eq!(read(&ONE.repeat(3)), Err(WrongPem::TooMany(2)));
        assert_eq!(read(&"x".repeat(1_001)), Err(WrongPem::TooLong(1_000)));
        for kind in ["PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY"] {
            let text = format!("{ONE}-----BEGIN {kind}-----\nc2VjcmV0\n-----END {kind}-----\n");
            let refused = read(&text).unwrap_err();
            assert_eq!(refused, WrongPem::PrivateKey);
            assert!(!refused.to_string().contains("c2VjcmV0"));
        }
        let other = "-----BEGIN TRUSTED CERTIFICATE-----\nAQID\n-----END TRUSTED CERTIFICATE-----\n";
        assert!(matches!(read(&format!("{ONE}{other}")), Err(WrongPem::Other { number: 2, .. })));
        assert_eq!(read("-----BEGIN CERTIFICATE-----\nAQID\n"), Err(WrongPem::Broken(1)));
        assert_eq!(read(&format!("{ONE}{}", ONE.replace("AQID", "A?ID"))), Err(WrongPem::Broken(2)));
    }
}
