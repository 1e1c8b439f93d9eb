//! Addresses that nothing of ours ever connects to on somebody's behalf, whatever an operator opened: this machine's
//! neighbours on the wire, what every cloud tells its machines, and what is no single host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{AddressRange, canonical};

/// Link-local is where AWS, Azure, Google, Oracle, OpenStack, DigitalOcean and Hetzner keep their metadata; the single
/// addresses are those of clouds that keep it elsewhere too.
const NEVER: &[(IpAddr, u8, &str)] = &[
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8, "this host"),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16, "link-local, where clouds keep their metadata"),
    (IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)), 32, "Azure's own service"),
    (IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), 32, "Alibaba Cloud's metadata"),
    (IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)), 32, "Oracle Cloud's metadata"),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4, "multicast"),
    (IpAddr::V4(Ipv4Addr::BROADCAST), 32, "broadcast"),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 128, "this host"),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10, "link-local"),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0)), 32, "AWS' metadata and its other services"),
    (IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)), 128, "Google Cloud's metadata"),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)), 128, "Oracle Cloud's metadata"),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)), 128, "Scaleway's metadata"),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8, "multicast"),
];

/// What kind of address it is, if it is never reached. An IPv4 address written as IPv6 is the IPv4 address, and one that
/// rides in NAT64 or 6to4 counts too.
pub fn never_reached(address: IpAddr) -> Option<&'static str> {
    let address = canonical(address);
    if let Some(kind) = NEVER.iter().find(|(net, bits, _)| is_in(*net, *bits, address)).map(|found| found.2) {
        return Some(kind);
    }
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => carried_ipv4(address).and_then(|inner| never_reached(IpAddr::V4(inner))),
    }
}

/// The same for a whole range: none of its addresses is ever reached. `None` if one of them may be.
pub fn never_reached_range(range: AddressRange) -> Option<&'static str> {
    let whole = IpNet::from(range);
    if whole.prefix_len() == whole.max_prefix_len() {
        return never_reached(range.address());
    }
    let holds = |net: IpAddr, bits: u8| IpNet::new(net, bits).is_ok_and(|net| net.contains(&whole));
    NEVER.iter().find(|(net, bits, _)| holds(*net, *bits)).map(|found| found.2)
}

/// The IPv4 address that NAT64 (RFC 6052, the well-known prefix; RFC 8215, the local one with the address at its end) or
/// 6to4 (RFC 3056) delivers to.
pub fn carried_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bytes = address.octets();
    let at = |from: usize| Ipv4Addr::new(bytes[from], bytes[from + 1], bytes[from + 2], bytes[from + 3]);
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => Some(at(12)),
        [0x2002, ..] => Some(at(2)),
        _ => None,
    }
}

fn is_in(net: IpAddr, bits: u8, address: IpAddr) -> bool {
    match (net, address) {
        (IpAddr::V4(net), IpAddr::V4(address)) => {
            Ipv4Net::new(net, bits).is_ok_and(|range| range.contains(&address))
        }
        (IpAddr::V6(net), IpAddr::V6(address)) => {
            Ipv6Net::new(net, bits).is_ok_and(|range| range.contains(&address))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_found_in_every_spelling() {
        for address in [
            "169.254.169.254",
            "169.254.170.2",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.251",
            "239.255.255.250",
            "255.255.255.255",
            "::",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
            "fd00:ec2::123",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "fd00:42::42",
            "ff02::1",
            "::ffff:169.254.169.254",
            "::ffff:0:0",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(never_reached(address.parse().unwrap()).is_some(), "{address}");
        }
        for address in [
            "127.0.0.1",
            "10.0.0.1",
            "100.100.100.201",
            "168.63.129.17",
            "223.255.255.255",
            "240.0.0.1",
            "::1",
            "fec0::1",
            "fd20:ce::255",
            "fd00:ec3::254",
            "2001:db8::1",
            "64:ff9b::808:808",
        ] {
            assert_eq!(never_reached(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn a_range_is_never_reached_only_as_a_whole() {
        let of = |range: &str| never_reached_range(range.parse().unwrap());
        for range in
            ["169.254.0.0/16", "169.254.169.0/24", "169.254.169.254", "fe80::/64", "::ffff:169.254.0.0/112"]
        {
            assert!(of(range).is_some(), "{range}");
        }
        for range in ["0.0.0.0/0", "168.0.0.0/8", "168.63.129.16/31", "::/0", "fd00::/8", "64:ff9b::/96"] {
            assert_eq!(of(range), None, "{range}");
        }
    }
}
