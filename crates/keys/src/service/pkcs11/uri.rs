//! PKCS #11 URIs (RFC 7512): which token, and which key in it.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Longest label or id of an object, in bytes.
const VALUE_BYTES_MAX: usize = 255;
/// What stands in a URI as it is: RFC 7512's unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A key's URI. It names a token and a key, and nothing else: no module, and never a PIN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::service) struct Uri {
    /// The token's label.
    pub(super) token: Option<String>,
    /// The token's serial number.
    pub(super) serial: Option<String>,
    /// The token's maker.
    pub(super) manufacturer: Option<String>,
    /// The token's model.
    pub(super) model: Option<String>,
    /// The key's label (`CKA_LABEL`).
    pub(super) object: Option<String>,
    /// The key's id (`CKA_ID`).
    pub(super) id: Option<Vec<u8>>,
}

impl Uri {
    pub(in crate::service) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "{why}; a key in a PKCS #11 token is named by a URI (RFC 7512) such as \
                 pkcs11:token=chitin;object=shop, or with its id, pkcs11:token=chitin;object=shop;id=%01"
            )
        };
        let path =
            text.strip_prefix("pkcs11:").ok_or_else(|| wrong("the URI does not begin with pkcs11:"))?;
        if path.contains('?') {
            return Err(wrong(
                "a URI with a ? is refused: the module and the PIN belong to the key service, and a PIN in a URI would \
                 be seen by others",
            ));
        }
        let mut uri = Self::default();
        for attribute in path.split(';') {
            let (name, value) =
                attribute.split_once('=').ok_or_else(|| wrong("an attribute has no value"))?;
            let bytes =
                decode(value).ok_or_else(|| wrong("a value is empty, too long, or has a wrong % in it"))?;
            if name == "id" {
                if uri.id.replace(bytes).is_some() {
                    return Err(wrong("id is there twice"));
                }
                continue;
            }
            let value = String::from_utf8(bytes).map_err(|_| wrong("a value is not UTF-8"))?;
            let place = match name {
                "token" => &mut uri.token,
                "serial" => &mut uri.serial,
                "manufacturer" => &mut uri.manufacturer,
                "model" => &mut uri.model,
                "object" => &mut uri.object,
                "type" if value == "secret-key" => continue,
                "type" => return Err(wrong("the key's type is not secret-key")),
                _ => {
                    return Err(wrong(
                        "an attribute is none of token, serial, manufacturer, model, object, id, type",
                    ));
                }
            };
            if place.replace(value).is_some() {
                return Err(wrong("an attribute is there twice"));
            }
        }
        if uri.token.is_none() && uri.serial.is_none() {
            return Err(wrong("it does not say which token: neither token nor serial is there"));
        }
        if uri.object.is_none() && uri.id.is_none() {
            return Err(wrong("it does not say which key: neither object nor id is there"));
        }
        Ok(uri)
    }
}

fn decode(value: &str) -> Option<Vec<u8>> {
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let is_right = match byte {
            b'%' => {
                [rest.next(), rest.next()].iter().all(|digit| digit.is_some_and(|d| d.is_ascii_hexdigit()))
            }
            _ => byte.is_ascii_graphic(),
        };
        if !is_right {
            return None;
        }
    }
    let bytes: Vec<u8> = percent_decode_str(value).collect();
    (1..=VALUE_BYTES_MAX).contains(&bytes.len()).then_some(bytes)
}

/// The URI in its shortest form.
impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, serial, manufacturer, model, object, id } = self;
        let texts = [
            ("token", token),
            ("serial", serial),
            ("manufacturer", manufacturer),
            ("model", model),
            ("object", object),
        ];
        let mut parts: Vec<String> = texts
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_ref()?)))
            .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, ENCODED)))
            .collect();
        parts.extend(id.as_ref().map(|id| {
            let bytes: Vec<String> = id.iter().map(|byte| format!("%{byte:02x}")).collect();
            format!("id={}", bytes.concat())
        }));
        write!(f, "pkcs11:{}", parts.join(";"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_a_token_and_a_key() {
        let uri = Uri::parse("pkcs11:token=my%20token;object=shop;type=secret-key;id=%01%ff").unwrap();
        assert_eq!(uri.token.as_deref(), Some("my token"));
        assert_eq!(uri.object.as_deref(), Some("shop"));
        assert_eq!(uri.id.as_deref(), Some(&[1, 255][..]));
        assert_eq!(uri.to_string(), "pkcs11:token=my%20token;object=shop;id=%01%ff");
        assert_eq!(Uri::parse(&uri.to_string()).unwrap(), uri);
    }

    #[test]
    fn what_names_no_key_or_more_than_a_key_is_refused() {
        for wrong in [
            "",
            "token=a;object=b",
            "pkcs11:",
            "pkcs11:token=a",
            "pkcs11:object=b",
            "pkcs11:token=a;object=",
            "pkcs11:token=a;object=b;object=c",
            "pkcs11:token=a;id=%01;id=%02",
            "pkcs11:token=a;object=b;type=private",
            "pkcs11:token=a;object=b;vendor=c",
            "pkcs11:token=a;object=%zz",
            "pkcs11:token=a;object=%0",
            "pkcs11:token=%ff;object=b",
            "pkcs11:token=a;object=b c",
        ] {
            assert!(Uri::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pin_in_a_uri_is_refused_and_not_repeated() {
        let refused = Uri::parse("pkcs11:token=a;object=b?pin-value=hunter2").unwrap_err();
        assert!(refused.contains("PIN") && !refused.contains("hunter2"), "{refused}");
    }
}
