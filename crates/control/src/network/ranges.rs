//! Which addresses are whose. What depends on other clusters is decided under the store's lock, where no answer grows old.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{AddressRange, ClusterId, Peering, PeeringWith};
use store::Snapshot;

use crate::Refusal;

/// Where clusters that name no range get theirs from, a block each.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 224, 0, 0), 11);
/// Addresses of a block: a /24.
const BLOCK: u32 = 256;
/// Bits of a private network's prefix.
const IPV4_BITS: RangeInclusive<u8> = 8..=29;
const IPV6_BITS: RangeInclusive<u8> = 48..=120;
/// Bits of the widest network behind a peering.
const IPV4_BEHIND_BITS_MIN: u8 = 8;
const IPV6_BEHIND_BITS_MIN: u8 = 16;

/// Addresses that nobody else on the internet has: RFC 1918, RFC 6598, RFC 4193.
const PRIVATE: [IpNet; 5] = [
    four(10, 0, 0, 0, 8),
    four(172, 16, 0, 0, 12),
    four(192, 168, 0, 0, 16),
    four(100, 64, 0, 0, 10),
    six(0xfc00, 7),
];

/// Addresses that never lie behind another network, with what they are (RFC 6890).
const SPECIAL: [(IpNet, &str); 9] = [
    (four(127, 0, 0, 0, 8), "loopback"),
    (four(169, 254, 0, 0, 16), "link-local"),
    (four(224, 0, 0, 0, 4), "multicast"),
    (four(0, 0, 0, 0, 8), "this machine's own"),
    (four(240, 0, 0, 0, 4), "reserved"),
    (six(0xfe80, 10), "link-local"),
    (six(0xff00, 8), "multicast"),
    // ::/96 holds ::, ::1 and the old form of IPv4 inside IPv6; the other form is ::ffff:0:0/96.
    (six(0, 96), "loopback"),
    (IpNet::V6(Ipv6Net::new_assert(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96)), "IPv4 written as IPv6"),
];

const fn four(a: u8, b: u8, c: u8, d: u8, bits: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits))
}

const fn six(first: u16, bits: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), bits))
}

/// Reads the range of a private network.
pub(crate) fn cluster_range(text: &str) -> Result<AddressRange, Refusal> {
    let range: AddressRange =
        text.parse().map_err(|error| Refusal::invalid(format_args!("cidr_range: {error}")))?;
    let net = IpNet::from(range);
    let bits = match net {
        IpNet::V4(_) => IPV4_BITS,
        IpNet::V6(_) => IPV6_BITS,
    };
    if !PRIVATE.iter().any(|private| private.contains(&net)) {
        return Err(Refusal::invalid(format_args!(
            "cidr_range {range} is not of private addresses; take a part of 10.0.0.0/8, 172.16.0.0/12, \
             192.168.0.0/16, 100.64.0.0/10 or fc00::/7"
        )));
    }
    if !bits.contains(&net.prefix_len()) {
        return Err(Refusal::invalid(format_args!(
            "cidr_range {range} has a prefix of {} bits; it has {} to {}",
            net.prefix_len(),
            bits.start(),
            bits.end()
        )));
    }
    Ok(range)
}

/// Checks that a network may lie behind a peering at all.
pub(crate) fn may_lie_behind(net: IpNet) -> Result<(), Refusal> {
    let bits_min = match net {
        IpNet::V4(_) => IPV4_BEHIND_BITS_MIN,
        IpNet::V6(_) => IPV6_BEHIND_BITS_MIN,
    };
    if let Some((_, what)) = SPECIAL.iter().find(|(special, _)| overlap(special, &net)) {
        return Err(Refusal::invalid(format_args!(
            "{net} has addresses that never lie behind another network ({what})"
        )));
    }
    if net.prefix_len() < bits_min {
        return Err(Refusal::invalid(format_args!(
            "{net} is wider than /{bits_min}; name the networks behind the other side one by one"
        )));
    }
    Ok(())
}

/// Every network behind a peering: those that it names, and the one that a bridge or an interface is in.
pub(crate) fn behind(peering: &Peering) -> impl Iterator<Item = IpNet> {
    let own = match &peering.with {
        PeeringWith::Bridge { address, .. } | PeeringWith::Interface { address, .. } => Some(address.trunc()),
        PeeringWith::Namespace { .. } | PeeringWith::WireGuard(_) => None,
    };
    own.into_iter().chain(peering.ranges.iter().map(|range| IpNet::from(*range)))
}

/// Whether the two have an address in common.
pub(crate) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// All clusters of the cloud, as one of them meets them. What is refused never names another cluster: it may be another
/// customer's.
pub(crate) struct Others<'a> {
    own: Option<ClusterId>,
    all: &'a Snapshot,
}

impl<'a> Others<'a> {
    /// As the cluster of this id meets them; as one that is being made, without.
    pub(crate) fn of(own: Option<ClusterId>, all: &'a Snapshot) -> Self {
        Self { own, all }
    }

    /// Every peering of the cloud, and whether it is this cluster's.
    pub(crate) fn peerings(&self) -> impl Iterator<Item = (bool, &'a Peering)> {
        self.all.iter().flat_map(|entry| {
            let is_own = Some(entry.cluster.id) == self.own;
            entry.cluster.network.peerings.iter().map(move |peering| (is_own, peering))
        })
    }

    /// Whether another cluster's document satisfies this.
    pub(crate) fn any(&self, is_so: impl Fn(&model::Network) -> bool) -> bool {
        self.all.iter().any(|entry| Some(entry.cluster.id) != self.own && is_so(&entry.cluster.network))
    }

    /// Checks that no other cluster has an address of this.
    pub(crate) fn leave_to_others(&self, net: IpNet) -> Result<(), Refusal> {
        match self.ranges().find(|range| overlap(range, &net)) {
            None => Ok(()),
            Some(range) => Err(Refusal::invalid(format_args!(
                "{net} overlaps {range}, which is the private network of another cluster; choose another range"
            ))),
        }
    }

    /// Checks that the range may become this cluster's: nobody has it, and it lies behind no peering.
    pub(crate) fn leave_free(&self, range: AddressRange) -> Result<(), Refusal> {
        let net = IpNet::from(range);
        self.leave_to_others(net)?;
        let behind = self
            .peerings()
            .flat_map(|(is_own, peering)| behind(peering).map(move |behind| (is_own, behind)))
            .find(|(_, behind)| overlap(behind, &net));
        match behind {
            None => Ok(()),
            Some((is_own, behind)) => {
                let whose = if is_own { "this" } else { "another" };
                Err(Refusal::invalid(format_args!(
                    "{net} overlaps {behind}, which lies behind a peering of {whose} cluster; choose another range"
                )))
            }
        }
    }

    /// The lowest block of the pool that is nobody's and behind no peering.
    pub(crate) fn free_range(&self) -> Result<AddressRange, Refusal> {
        let full = || {
            Refusal::wrong_state(format!(
                "no part of {POOL} is free any more; name a range of private addresses as cidr_range"
            ))
        };
        let behind = self.peerings().flat_map(|(_, peering)| behind(peering));
        let mut taken: Vec<(u32, u32)> = self
            .ranges()
            .chain(behind)
            .filter_map(|net| match net {
                IpNet::V4(net) => Some((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(_) => None,
            })
            .collect();
        taken.sort_unstable();
        let mut first = POOL.network().to_bits();
        for (from, to) in taken {
            if from > first | (BLOCK - 1) {
                break;
            }
            if to >= first {
                first = (to | (BLOCK - 1)).checked_add(1).ok_or_else(full)?;
            }
        }
        if first > POOL.broadcast().to_bits() {
            return Err(full());
        }
        let bits = 32 - BLOCK.ilog2();
        format!("{}/{bits}", Ipv4Addr::from_bits(first)).parse().map_err(Refusal::internal)
    }

    fn ranges(&self) -> impl Iterator<Item = IpNet> {
        self.all
            .iter()
            .filter(|entry| Some(entry.cluster.id) != self.own)
            .filter_map(|entry| entry.cluster.network.range.map(IpNet::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_networks_are_of_private_addresses_and_neither_huge_nor_tiny() {
        for good in
            ["10.0.0.0/8", "10.1.2.0/29", "172.16.0.0/12", "192.168.4.0/24", "100.64.0.0/10", "fd00:1::/48"]
        {
            assert_eq!(cluster_range(good).unwrap().to_string(), good);
        }
        for (wrong, why) in [
            ("203.0.113.0/24", "private addresses"),
            ("172.0.0.0/8", "private addresses"),
            ("172.32.0.0/16", "private addresses"),
            ("2001:db8::/48", "private addresses"),
            ("fe80::/64", "private addresses"),
            ("0.0.0.0/0", "private addresses"),
            ("127.0.0.0/24", "private addresses"),
            ("169.254.0.0/24", "private addresses"),
            ("10.0.0.0/30", "8 to 29"),
            ("10.0.0.1", "8 to 29"),
            ("fd00::/32", "48 to 120"),
            ("fd00::/121", "48 to 120"),
            ("10.0.0.5/24", "did you mean 10.0.0.0/24"),
            ("office", "not a CIDR range"),
        ] {
            let refused = cluster_range(wrong).unwrap_err().message;
            assert!(refused.contains(why), "{wrong}: {refused}");
        }
        // IPv4 inside IPv6 is the IPv4 range that it means.
        assert_eq!(cluster_range("::ffff:10.3.0.0/120").unwrap().to_string(), "10.3.0.0/24");
    }

    #[test]
    fn what_is_no_network_elsewhere_lies_behind_no_peering() {
        for good in ["192.168.5.0/24", "10.0.0.0/8", "203.0.113.0/24", "2001:db8::/32", "fd00::/16"] {
            assert!(may_lie_behind(good.parse().unwrap()).is_ok(), "{good}");
        }
        for wrong in [
            "127.0.0.1/32",
            "127.0.0.0/8",
            "169.254.169.254/32",
            "224.0.0.0/8",
            "239.1.1.1/32",
            "0.0.0.0/8",
            "0.0.0.0/0",
            "255.255.255.255/32",
            "64.0.0.0/2",
            "10.0.0.0/7",
            "::1/128",
            "::/0",
            "::/16",
            "fe80::/64",
            "ff02::1/128",
            "::ffff:10.0.0.0/104",
            "2001::/15",
        ] {
            assert!(may_lie_behind(wrong.parse::<IpNet>().unwrap().trunc()).is_err(), "{wrong}");
        }
    }
}
