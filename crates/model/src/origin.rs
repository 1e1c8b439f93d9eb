//! Where a client comes from, as the door that it came through established it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ClusterId;

/// Which of a cluster's surfaces somebody wants to reach. The allowlist opens them separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Surface {
    /// SQL clients.
    Sql,
    /// The cluster's HTTP pages (the Cloud API's `ui`).
    Web,
}

/// By which way a client reaches us. Decided by the door, never by what a client says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Through a door that everybody finds.
    Public,
    /// Through the door for private endpoints, as this endpoint.
    Endpoint(EndpointId),
    /// Through the front door inside this cluster's private network.
    Private(ClusterId),
}

/// A client's address and its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The real client's address: of the connection, or of the PROXY header where that is believed. IPv4 in its own form.
    pub address: IpAddr,
    /// The way.
    pub way: Way,
}

impl Origin {
    /// Of a client at a public door.
    pub fn public(address: IpAddr) -> Self {
        Self { address: crate::canonical(address), way: Way::Public }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.way {
            Way::Public => self.address.fmt(f),
            Way::Endpoint(id) => write!(f, "{} over {id}", self.address),
            Way::Private(_) => write!(f, "{} in the private network", self.address),
        }
    }
}

/// A private endpoint's identity, as whoever vouches for it writes it. One spelling for each.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EndpointId {
    /// An AWS VPC endpoint (PROXY v2 type 0xEA, subtype 0x01): `vpce-` and 8 to 17 hexadecimal digits.
    Aws(String),
    /// A GCP Private Service Connect connection id (PROXY v2 type 0xE0): `psc:NUMBER`.
    Gcp(u64),
    /// An Azure private endpoint's link id (PROXY v2 type 0xEE, subtype 0x01): `azure:NUMBER`.
    Azure(u32),
    /// A WireGuard peer of the cluster's private network by its public key: `wireguard:` and 44 characters of base64.
    WireGuard(String),
    /// A connecting proxy by the certificate that it showed: `certificate:` and the SHA-256 of its public key
    /// (SubjectPublicKeyInfo), 64 hexadecimal digits.
    Certificate(String),
}

/// Why a text is no endpoint's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an endpoint id is vpce-… (AWS), psc:NUMBER (GCP), azure:NUMBER (the link id), wireguard:PUBLIC-KEY or \
     certificate:SHA256"
)]
pub struct InvalidEndpointId;

impl EndpointId {
    /// Who vouches for the id, in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Aws(_) => "aws",
            Self::Gcp(_) => "gcp",
            Self::Azure(_) => "azure",
            Self::WireGuard(_) => "wireguard",
            Self::Certificate(_) => "certificate",
        }
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aws(id) => f.write_str(id),
            Self::Gcp(number) => write!(f, "psc:{number}"),
            Self::Azure(number) => write!(f, "azure:{number}"),
            Self::WireGuard(key) => write!(f, "wireguard:{key}"),
            Self::Certificate(digest) => write!(f, "certificate:{digest}"),
        }
    }
}

impl FromStr for EndpointId {
    type Err = InvalidEndpointId;

    fn from_str(text: &str) -> Result<Self, InvalidEndpointId> {
        let is_lower_hex =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if let Some(digits) = text.strip_prefix("vpce-") {
            let is_id = (8..=17).contains(&digits.len()) && is_lower_hex(digits);
            return if is_id { Ok(Self::Aws(text.to_owned())) } else { Err(InvalidEndpointId) };
        }
        let (kind, value) = text.split_once(':').ok_or(InvalidEndpointId)?;
        // One spelling for each number: no sign, no leading zero.
        let is_number = value == "0"
            || (!value.is_empty() && !value.starts_with('0') && value.bytes().all(|b| b.is_ascii_digit()));
        match kind {
            "psc" if is_number => value.parse().map(Self::Gcp).map_err(|_| InvalidEndpointId),
            "azure" if is_number => value.parse().map(Self::Azure).map_err(|_| InvalidEndpointId),
            "wireguard" if crate::network::is_wireguard_key(value) => Ok(Self::WireGuard(value.to_owned())),
            "certificate" if value.len() == 64 && is_lower_hex(value) => {
                Ok(Self::Certificate(value.to_owned()))
            }
            _ => Err(InvalidEndpointId),
        }
    }
}

impl TryFrom<String> for EndpointId {
    type Error = InvalidEndpointId;

    fn try_from(text: String) -> Result<Self, InvalidEndpointId> {
        text.parse()
    }
}

impl From<EndpointId> for String {
    fn from(id: EndpointId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_one_spelling() {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        for good in [
            "vpce-08d2bf15fac5001c9".to_owned(),
            "vpce-0abcdef0".to_owned(),
            "psc:18446744073709551615".to_owned(),
            "psc:0".to_owned(),
            "azure:4294967295".to_owned(),
            format!("wireguard:{key}"),
            format!("certificate:{}", "0a".repeat(32)),
        ] {
            assert_eq!(good.parse::<EndpointId>().unwrap().to_string(), good);
        }
        for wrong in [
            "",
            "vpce-",
            "vpce-xyz",
            "vpce-08D2BF15FAC5001C9",
            "vpce-08d2bf15fac5001c90",
            "psc:",
            "psc:01",
            "psc:+1",
            "psc:18446744073709551616",
            "azure:4294967296",
            "azure:-1",
            "wireguard:short",
            "certificate:00",
            "other:1",
            "1",
        ] {
            assert_eq!(wrong.parse::<EndpointId>(), Err(InvalidEndpointId), "{wrong}");
        }
        assert!(format!("certificate:{}", "0A".repeat(32)).parse::<EndpointId>().is_err());
    }
}
