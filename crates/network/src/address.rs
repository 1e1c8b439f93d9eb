//! Which addresses may be reached on somebody's behalf: those that are everybody's, and those the operator opened.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What is not everybody's of IPv4: IANA's registry of special-purpose addresses (RFC 6890), multicast and reserved ones,
/// and one public address that only a machine of Azure can reach: its host's own service.
const CLOSED_V4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::UNSPECIFIED, 8, "this host"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "a private network"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "a carrier's own network"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local, where clouds keep their metadata"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "a private network"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "reserved for protocols"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "for documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a 6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "a private network"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "for benchmarks"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "for documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "for documentation"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "a cloud's own service"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// What is not everybody's inside `2000::/3`, the only part of IPv6 that is given out (RFC 4291, section 2.4).
const CLOSED_V6: &[(Ipv6Addr, u8, &str)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "reserved for protocols, Teredo among them"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "for documentation"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "for documentation"),
];

/// What people know by name outside `2000::/3`, so that the log can say it.
const KNOWN_V6: &[(Ipv6Addr, u8, &str)] = &[
    (Ipv6Addr::LOCALHOST, 128, "loopback"),
    (Ipv6Addr::UNSPECIFIED, 128, "this host"),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96, "NAT64"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "NAT64"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "a private network"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

/// Why an address is not reached. Each holds what kind of address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Whatever the operator opened.
    ForEver(&'static str),
    /// Unless the operator opens it.
    UntilOpened(&'static str),
}

/// Says whether anybody may reach the address. `allow` are the ranges that the operator opened. An IPv4 address written as IPv6 (`::ffff:…`) is the IPv4 address; one that rides in NAT64 or 6to4 must be
/// reachable by itself too, so that opening those forms opens no private network.
pub fn judge(address: IpAddr, allow: &[IpNet]) -> Result<(), Closed> {
    let address = address.to_canonical();
    if let Some(kind) = model::never_reached(address) {
        return Err(Closed::ForEver(kind));
    }
    let is_opened = allow.iter().any(|range| range.contains(&address));
    match address {
        IpAddr::V4(_) if is_opened => Ok(()),
        IpAddr::V4(address) => closed_v4(address).map_or(Ok(()), |kind| Err(Closed::UntilOpened(kind))),
        IpAddr::V6(address) => {
            if let (false, Some(kind)) = (is_opened, closed_v6(address)) {
                return Err(Closed::UntilOpened(kind));
            }
            model::carried_ipv4(address).map_or(Ok(()), |inner| judge(IpAddr::V4(inner), allow))
        }
    }
}

fn closed_v4(address: Ipv4Addr) -> Option<&'static str> {
    let is_in = |net: Ipv4Addr, bits: u8| Ipv4Net::new(net, bits).is_ok_and(|range| range.contains(&address));
    CLOSED_V4.iter().find(|(net, bits, _)| is_in(*net, *bits)).map(|(_, _, kind)| *kind)
}

fn closed_v6(address: Ipv6Addr) -> Option<&'static str> {
    let is_in = |net: Ipv6Addr, bits: u8| Ipv6Net::new(net, bits).is_ok_and(|range| range.contains(&address));
    let find = |list: &[(Ipv6Addr, u8, &'static str)]| {
        list.iter().find(|(net, bits, _)| is_in(*net, *bits)).map(|(_, _, kind)| *kind)
    };
    if address.segments()[0] & 0xe000 == 0x2000 {
        find(CLOSED_V6)
    } else {
        Some(find(KNOWN_V6).unwrap_or("not given out"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(address: &str, allow: &[&str]) -> bool {
        let allow: Vec<IpNet> = allow.iter().map(|range| range.parse().unwrap()).collect();
        judge(address.parse().unwrap(), &allow).is_ok()
    }

    #[test]
    fn everybody_s_addresses_are_open() {
        for good in ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1"] {
            assert!(is_open(good, &[]), "{good}");
        }
    }

    #[test]
    fn t51_what_is_not_everybody_s_is_closed() {
        let closed = [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::101:101",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:101:101::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "3fff::1",
            "5f00::1",
            "4000::1",
        ];
        for address in closed {
            assert!(!is_open(address, &[]), "{address}");
        }
    }

    #[test]
    fn the_operator_opens_ranges_and_nothing_beside_them() {
        assert!(is_open("127.0.0.1", &["127.0.0.0/8"]) && is_open("::ffff:127.0.0.1", &["127.0.0.0/8"]));
        assert!(is_open("::1", &["::1/128"]) && is_open("10.1.2.3", &["10.1.0.0/16"]));
        assert!(!is_open("10.2.0.1", &["10.1.0.0/16"]) && !is_open("::1", &["127.0.0.0/8"]));
        // Everybody of IPv6 opened by mistake opens IPv6, not what rides inside.
        assert!(is_open("64:ff9b::101:101", &["64:ff9b::/96"]));
        assert!(!is_open("64:ff9b::a00:1", &["64:ff9b::/96"]) && !is_open("2002:a9fe:a9fe::", &["::/0"]));
        assert!(is_open("64:ff9b::a00:1", &["64:ff9b::/96", "10.0.0.0/8"]));
    }

    #[test]
    fn t51_metadata_stays_closed_whatever_the_operator_opens() {
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::",
            "168.63.129.16",
            "100.100.100.200",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "ff02::1",
            "224.0.0.1",
            "0.0.0.0",
            "::",
        ] {
            let own = format!("{address}/128");
            let own = if address.contains(':') { own.as_str() } else { "0.0.0.0/0" };
            assert!(!is_open(address, &["0.0.0.0/0", "::/0", own]), "{address}");
        }
        assert!(is_open("127.0.0.1", &["0.0.0.0/0"]) && is_open("fd00::1", &["::/0"]));
    }
}
