//! Names in certificates, as PostgreSQL reads them: the common name, the whole subject, the alternative names.

use std::fmt::Write as _;

use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{GeneralName, X509Certificate, X509Name};

use crate::signed::tlv;

/// Longest name that is read, in bytes.
const NAME_BYTES_MAX: usize = 1_024;
/// Most alternative names that are read; a certificate with more has none.
const NAMES_MAX: usize = 100;

/// OpenSSL's short names of attribute types (`crypto/objects/objects.txt`); others are written as numbers.
const SHORT_NAMES: [(&str, &str); 24] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("2.5.4.97", "organizationIdentifier"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("1.2.840.113549.1.9.2", "unstructuredName"),
];

/// The one common name. None where there is none, there are several, or it is empty or not plain text: whoever picks one
/// of several, or stops at a NUL byte, reads another name than the authority checked.
pub(super) fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let mut names = certificate.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return None;
    };
    let name = name.as_str().ok()?;
    let is_plain = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    is_plain.then(|| name.to_owned())
}

/// The name as PostgreSQL compares it under `clientname=DN`: RFC 2253 as OpenSSL writes it (`XN_FLAG_RFC2253`), which is
/// last part first, and every byte beyond ASCII as `\XX`.
pub(super) fn rfc2253(name: &X509Name<'_>) -> String {
    let mut parts = Vec::new();
    for (index, rdn) in name.iter_rdn().enumerate() {
        for attribute in rdn.iter() {
            let oid = attribute.attr_type().to_id_string();
            let short = SHORT_NAMES.iter().find(|(known, _)| *known == oid).map(|(_, short)| *short);
            let value = short.and_then(|_| text(attribute.attr_value().tag(), attribute.as_slice()));
            let value = value.map_or_else(
                || dump(attribute.attr_value().tag(), attribute.as_slice()),
                |text| escape(&text),
            );
            parts.push((index, format!("{}={value}", short.unwrap_or(&oid))));
        }
    }
    let mut written = String::new();
    let mut before = None;
    for (index, part) in parts.iter().rev() {
        match before {
            None => {}
            Some(same) if same == index => written.push('+'),
            Some(_) => written.push(','),
        }
        written.push_str(part);
        before = Some(index);
    }
    written
}

/// The text of a string type; `None` for other types and for bytes that are not of that type.
fn text(tag: Tag, bytes: &[u8]) -> Option<String> {
    match tag {
        Tag::Utf8String => String::from_utf8(bytes.to_vec()).ok(),
        // OpenSSL reads these bytewise, as Latin-1.
        Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString | Tag::T61String => {
            Some(bytes.iter().map(|byte| char::from(*byte)).collect())
        }
        Tag::BmpString => {
            let (units, []) = bytes.as_chunks::<2>() else {
                return None;
            };
            char::decode_utf16(units.iter().map(|unit| u16::from_be_bytes(*unit)))
                .collect::<Result<_, _>>()
                .ok()
        }
        Tag::UniversalString => {
            let (units, []) = bytes.as_chunks::<4>() else {
                return None;
            };
            units.iter().map(|unit| char::from_u32(u32::from_be_bytes(*unit))).collect()
        }
        _ => None,
    }
}

fn escape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut escaped = String::with_capacity(bytes.len());
    for (index, byte) in bytes.iter().enumerate() {
        let is_edge_space = *byte == b' ' && (index == 0 || index + 1 == bytes.len());
        if b",+\"\\<>;".contains(byte) || is_edge_space || (*byte == b'#' && index == 0) {
            escaped.push('\\');
            escaped.push(char::from(*byte));
        } else if byte.is_ascii_graphic() || *byte == b' ' {
            escaped.push(char::from(*byte));
        } else {
            let _ = write!(escaped, "\\{byte:02X}");
        }
    }
    escaped
}

/// A value that is no text, as `#` and its DER in hexadecimal (RFC 2253, section 2.4).
fn dump(tag: Tag, value: &[u8]) -> String {
    // Types with a number above 30, or constructed, do not occur in names; the number alone keeps them apart.
    format!("#{}", hex::encode_upper(tlv(u8::try_from(tag.0).unwrap_or(0), value)))
}

/// The alternative names of a certificate that are text, by their types.
///
/// Each has the form of its type, so that none looks like one of another type: only an e-mail address holds `@` and no `:`, only
/// a URI holds `:`. What has another form, or is not plain ASCII, is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlternativeNames {
    /// DNS names: letters, digits, `-`, `_`, `.` and `*`.
    pub dns: Vec<String>,
    /// E-mail addresses with one `@` and no `:`.
    pub emails: Vec<String>,
    /// URIs with a scheme.
    pub uris: Vec<String>,
}

pub(super) fn alternative_names(certificate: &X509Certificate<'_>) -> AlternativeNames {
    let mut found = AlternativeNames::default();
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return found;
    };
    let names = &names.value.general_names;
    if names.len() > NAMES_MAX {
        return found;
    }
    for name in names {
        let (text, all, has_form): (_, _, fn(&str) -> bool) = match name {
            GeneralName::DNSName(text) => (*text, &mut found.dns, is_dns),
            GeneralName::RFC822Name(text) => (*text, &mut found.emails, is_email),
            GeneralName::URI(text) => (*text, &mut found.uris, is_uri),
            _ => continue,
        };
        let is_plain = text.len() <= NAME_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_plain && has_form(text) {
            all.push(text.to_owned());
        }
    }
    found
}

fn is_dns(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.*".contains(&byte))
}

fn is_email(text: &str) -> bool {
    text.split_once('@')
        .is_some_and(|(local, host)| !local.is_empty() && !local.contains(':') && is_dns(host))
}

fn is_uri(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, rest)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
            && !rest.is_empty()
    })
}
