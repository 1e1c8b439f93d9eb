//! Address ranges of an allowlist. An IPv4 address inside IPv6 (`::ffff:a.b.c.d`) counts as the IPv4 address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::Surface;

/// A CIDR range with no host bits set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange(IpNet);

/// Why a range was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRange {
    /// It is neither an address nor a CIDR range.
    #[error("`{0}` is not a CIDR range; write for instance 203.0.113.0/24 or 2001:db8::/48")]
    Malformed(String),
    /// Bits after the prefix are set; the text names the range that was probably meant.
    #[error("`{given}` has host bits set; did you mean {meant}?")]
    HostBits {
        /// What was written.
        given: String,
        /// The range with those bits cleared.
        meant: AddressRange,
    },
}

impl AddressRange {
    /// Every IPv4 address.
    pub const EVERY_IPV4: Self = Self(IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0)));
    /// Every IPv6 address.
    pub const EVERY_IPV6: Self = Self(IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0)));

    /// Whether the address lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&canonical(address))
    }

    /// The range's first address.
    pub fn address(&self) -> IpAddr {
        self.0.addr()
    }

    /// Bits of the prefix: 0 to 32 for IPv4, 0 to 128 for IPv6.
    pub fn prefix_bits(&self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.contains(&other.0) || other.0.contains(&self.0)
    }
}

/// The address with an IPv4-mapped IPv6 address turned into the IPv4 address that it means (RFC 4291, 2.5.5.2).
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// What stands for one customer where addresses are counted: an IPv4 address, or a whole /64 of IPv6, which is what one
/// customer has at the least (RFC 6177).
pub fn neighbourhood(address: IpAddr) -> IpAddr {
    match canonical(address) {
        IpAddr::V6(six) => IpAddr::V6((six.to_bits() >> 64 << 64).into()),
        four @ IpAddr::V4(_) => four,
    }
}

impl FromStr for AddressRange {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let malformed = || InvalidRange::Malformed(text.chars().take(64).collect());
        // The standard library's reading of addresses: `010.0.0.0` is not ten to everybody, so it is nothing here.
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let given = match bits {
            None => IpNet::from(address),
            Some(bits)
                if bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0')) =>
            {
                let bits = bits.parse().map_err(|_| malformed())?;
                IpNet::new(address, bits).map_err(|_| malformed())?
            }
            Some(_) => return Err(malformed()),
        };
        let range = match given {
            IpNet::V6(v6) if v6.prefix_len() >= 96 && v6.addr().to_ipv4_mapped().is_some() => {
                let v4 = v6.addr().to_ipv4_mapped().ok_or_else(malformed)?;
                IpNet::V4(Ipv4Net::new(v4, v6.prefix_len() - 96).map_err(|_| malformed())?)
            }
            other => other,
        };
        if range.addr() != range.network() {
            return Err(InvalidRange::HostBits { given: text.to_owned(), meant: Self(range.trunc()) });
        }
        Ok(Self(range))
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for AddressRange {
    type Error = InvalidRange;

    fn try_from(text: String) -> Result<Self, InvalidRange> {
        text.parse()
    }
}

impl From<AddressRange> for IpNet {
    fn from(range: AddressRange) -> Self {
        range.0
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> String {
        range.to_string()
    }
}

/// One line of a cluster's allowlist, as in the Cloud API's `AllowlistEntry`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowlistEntry {
    /// The addresses that the line lets in.
    pub range: AddressRange,
    /// What the operator calls it; may be empty.
    #[serde(default)]
    pub name: String,
    /// Whether SQL clients from there are let in.
    pub sql: bool,
    /// Whether the cluster's HTTP surfaces are open to it.
    pub ui: bool,
    /// From this moment on the line lets nobody in; `None` for a line that stays.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<OffsetDateTime>,
}

impl AllowlistEntry {
    /// Whether the line opens the surface at this moment, to the addresses that it names.
    pub fn opens(&self, surface: Surface, now: OffsetDateTime) -> bool {
        let is_right = match surface {
            Surface::Sql => self.sql,
            Surface::Web => self.ui,
        };
        is_right && self.expires_at.is_none_or(|end| now < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_refused_with_the_range_that_was_meant() {
        let refused = "10.1.2.3/8".parse::<AddressRange>().unwrap_err();
        assert_eq!(refused.to_string(), "`10.1.2.3/8` has host bits set; did you mean 10.0.0.0/8?");
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_it_means() {
        let range: AddressRange = "203.0.113.0/24".parse().unwrap();
        assert!(range.contains("::ffff:203.0.113.9".parse().unwrap()));
        assert!(!range.contains("::ffff:203.0.114.9".parse().unwrap()));
        assert_eq!("::ffff:203.0.113.0/120".parse::<AddressRange>().unwrap(), range);
        assert!(!AddressRange::EVERY_IPV6.contains("::ffff:203.0.113.9".parse().unwrap()));
    }

    #[test]
    fn nonsense_is_refused() {
        for wrong in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "example.org",
            "10.0.0/8",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "010.0.0.0/8",
            "fe80::1%lo/128",
            "10.0.0.0/8/8",
        ] {
            assert!(matches!(wrong.parse::<AddressRange>(), Err(InvalidRange::Malformed(_))), "{wrong}");
        }
    }

    #[test]
    fn an_ipv6_customer_is_one_neighbour() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:aaaa::1"), of("2001:db8:1:2:bbbb::2"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), "10.0.0.1".parse::<IpAddr>().unwrap());
    }
}
