//! The matcher against what its entries say one by one.

use std::net::{Ipv4Addr, Ipv6Addr};

use time::Duration;

use super::*;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn entry(range: &str, sql: bool, ui: bool, expires_at: Option<OffsetDateTime>) -> AllowlistEntry {
    AllowlistEntry { range: range.parse().unwrap(), name: String::new(), sql, ui, expires_at }
}

/// A list of ranges that are open to SQL for good.
fn list(ranges: &[&str]) -> Matcher {
    Matcher::new(&ranges.iter().map(|range| entry(range, true, false, None)).collect::<Vec<_>>())
}

fn admits(matcher: &Matcher, address: &str) -> bool {
    matcher.admits(address.parse().unwrap(), Surface::Sql, NOW)
}

#[test]
fn t57_an_empty_list_admits_nobody() {
    let matcher = Matcher::new(&[]);
    assert!(matcher.is_empty());
    for address in ["0.0.0.0", "127.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "2001:db8::1"]
    {
        for surface in [Surface::Sql, Surface::Web] {
            assert!(!matcher.admits(address.parse().unwrap(), surface, NOW), "{address}");
        }
    }
    assert_eq!(matcher.next_expiry(NOW), None);
}

#[test]
fn t57_every_ipv6_address_is_no_ipv4_address() {
    let matcher = list(&["::/0"]);
    for inside in ["::", "::1", "2001:db8::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::203.0.113.9"] {
        assert!(admits(&matcher, inside), "{inside}");
    }
    for outside in ["0.0.0.0", "203.0.113.9", "255.255.255.255", "::ffff:203.0.113.9", "::ffff:0.0.0.0"] {
        assert!(!admits(&matcher, outside), "{outside}");
    }
    // Wider than the mapped addresses, so still IPv6.
    assert!(!admits(&list(&["::fffe:0:0/95"]), "::ffff:203.0.113.9"));
}

#[test]
fn t57_every_ipv4_address_is_no_ipv6_address() {
    let matcher = list(&["0.0.0.0/0"]);
    for inside in ["0.0.0.0", "203.0.113.9", "255.255.255.255", "::ffff:203.0.113.9"] {
        assert!(admits(&matcher, inside), "{inside}");
    }
    for outside in ["::", "::1", "2001:db8::1", "::203.0.113.9", "::fffe:203.0.113.9"] {
        assert!(!admits(&matcher, outside), "{outside}");
    }
}

#[test]
fn t57_a_mapped_address_is_the_ipv4_address_it_means() {
    for range in ["203.0.113.0/24", "::ffff:203.0.113.0/120"] {
        let matcher = list(&[range]);
        for inside in ["203.0.113.0", "203.0.113.255", "::ffff:203.0.113.9", "::ffff:cb00:7109"] {
            assert!(admits(&matcher, inside), "{inside} in {range}");
        }
        for outside in ["203.0.112.255", "203.0.114.0", "::ffff:203.0.114.0", "::203.0.113.9"] {
            assert!(!admits(&matcher, outside), "{outside} in {range}");
        }
    }
}

#[test]
fn ranges_end_where_they_end() {
    let matcher = list(&["0.0.0.0/32", "10.0.0.0/8", "255.255.255.254/31", "::/127", "ffff::/16"]);
    for inside in ["0.0.0.0", "10.0.0.0", "10.255.255.255", "255.255.255.254", "255.255.255.255", "::", "::1"]
    {
        assert!(admits(&matcher, inside), "{inside}");
    }
    assert!(admits(&matcher, "ffff::") && admits(&matcher, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
    for outside in ["0.0.0.1", "9.255.255.255", "11.0.0.0", "255.255.255.253", "::2", "fffe:ffff::"] {
        assert!(!admits(&matcher, outside), "{outside}");
    }
}

#[test]
fn t57_overlapping_entries_each_open_what_they_say() {
    let matcher = Matcher::new(&[
        entry("10.1.0.0/16", false, true, None),
        entry("10.0.0.0/8", true, false, None),
        entry("10.1.2.0/24", false, false, None),
    ]);
    let both = |address: &str| {
        let address = address.parse().unwrap();
        (matcher.admits(address, Surface::Sql, NOW), matcher.admits(address, Surface::Web, NOW))
    };
    assert_eq!(both("10.2.0.1"), (true, false));
    assert_eq!(both("10.1.0.1"), (true, true));
    assert_eq!(both("10.1.2.3"), (true, true));
    assert_eq!(both("11.0.0.1"), (false, false));
}

#[test]
fn t57_the_same_range_twice_opens_what_either_opens() {
    let hour = Some(NOW + Duration::HOUR);
    for turn in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let entries = [
            entry("10.0.0.0/8", true, false, hour),
            entry("10.0.0.0/8", false, true, None),
            entry("10.0.0.0/8", true, true, Some(NOW)),
        ];
        let matcher = Matcher::new(&turn.map(|position| entries[position].clone()));
        let address = "10.0.0.1".parse().unwrap();
        let then = NOW + Duration::HOUR;
        assert!(matcher.admits(address, Surface::Sql, NOW) && matcher.admits(address, Surface::Web, NOW));
        assert!(!matcher.admits(address, Surface::Sql, then) && matcher.admits(address, Surface::Web, then));
        assert_eq!(matcher.len(), 3);
    }
}

#[test]
fn t57_an_expired_entry_takes_nothing_from_a_live_one_around_it() {
    let expired = Some(NOW - Duration::SECOND);
    let wide_lives =
        Matcher::new(&[entry("10.0.0.0/8", true, false, None), entry("10.1.0.0/16", true, false, expired)]);
    assert!(admits(&wide_lives, "10.1.0.1") && admits(&wide_lives, "10.2.0.1"));
    let narrow_lives =
        Matcher::new(&[entry("10.0.0.0/8", true, false, expired), entry("10.1.0.0/16", true, false, None)]);
    assert!(admits(&narrow_lives, "10.1.0.1") && !admits(&narrow_lives, "10.2.0.1"));
}

#[test]
fn t57_an_entry_ends_at_the_very_moment() {
    let end = NOW + Duration::HOUR;
    let offset = time::UtcOffset::from_hms(5, 30, 0).unwrap();
    for written in [end, end.to_offset(offset)] {
        let matcher = Matcher::new(&[entry("10.0.0.0/8", true, true, Some(written))]);
        for surface in [Surface::Sql, Surface::Web] {
            let at = |moment| matcher.admits("10.0.0.1".parse().unwrap(), surface, moment);
            assert!(at(NOW) && at(end - Duration::SECOND) && at(end - Duration::NANOSECOND));
            assert!(!at(end) && !at(end + Duration::NANOSECOND) && !at(end.to_offset(offset)));
        }
    }
}

#[test]
fn the_next_expiry_is_the_earliest_that_is_still_to_come() {
    let at = |seconds| NOW + Duration::seconds(seconds);
    let matcher = Matcher::new(&[
        entry("10.0.0.0/8", true, false, Some(at(30))),
        entry("10.0.0.0/16", true, false, None),
        entry("::/0", true, false, Some(at(10))),
        entry("11.0.0.0/8", false, true, Some(at(20))),
        entry("12.0.0.0/8", true, true, Some(at(10))),
    ]);
    for (now, next) in
        [(0, Some(10)), (9, Some(10)), (10, Some(20)), (19, Some(20)), (29, Some(30)), (30, None)]
    {
        assert_eq!(matcher.next_expiry(at(now)), next.map(at), "after {now}");
    }
    assert_eq!(matcher.next_expiry(at(10) - Duration::NANOSECOND), Some(at(10)));
}

/// SplitMix64: the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u8) -> u8 {
        u8::try_from(self.next() % u64::from(end)).unwrap()
    }

    /// An address out of few, so that ranges meet: bits at both ends, and here and there between.
    fn address(&mut self) -> IpAddr {
        let wide = (u128::from(self.next()) << 64) | u128::from(self.next());
        match self.below(5) {
            0 | 1 => {
                let bits = (wide & 0xc010_0203) as u32 | (u32::MAX * u32::from(self.below(16) == 0));
                IpAddr::V4(bits.into())
            }
            2 | 3 => {
                let bits = wide & 0xc000_0100_0000_0001_0000_0080_0000_0003;
                IpAddr::V6((bits | (u128::MAX * u128::from(self.below(16) == 0))).into())
            }
            _ => IpAddr::V6(Ipv4Addr::from_bits((wide & 0xc010_0203) as u32).to_ipv6_mapped()),
        }
    }

    fn range(&mut self) -> String {
        match self.address().to_canonical() {
            IpAddr::V4(address) => {
                let bits = self.below(33);
                ipnet::Ipv4Net::new(address, bits).unwrap().trunc().to_string()
            }
            IpAddr::V6(address) => {
                let bits = self.below(129);
                ipnet::Ipv6Net::new(address, bits).unwrap().trunc().to_string()
            }
        }
    }

    fn entry(&mut self) -> AllowlistEntry {
        let expires_at = (self.below(3) > 0).then(|| NOW + Duration::seconds(i64::from(self.below(6))));
        entry(&self.range(), self.below(3) > 0, self.below(3) > 0, expires_at)
    }
}

/// The addresses just outside and just inside a range.
fn edges(range: model::AddressRange) -> Vec<IpAddr> {
    match IpNet::from(range) {
        IpNet::V4(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                .map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
                .to_vec()
        }
        IpNet::V6(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
                .to_vec()
        }
    }
}

fn compare(entries: &[AllowlistEntry], matcher: &Matcher, address: IpAddr, seconds: i64) -> bool {
    let now = NOW + Duration::seconds(seconds);
    let [sql, web] = [Surface::Sql, Surface::Web].map(|surface| {
        let expected = entries.iter().any(|entry| entry.range.contains(address) && entry.opens(surface, now));
        assert_eq!(
            matcher.admits(address, surface, now),
            expected,
            "{address} to {surface:?} after {seconds} s among {entries:#?}"
        );
        expected
    });
    sql || web
}

#[test]
fn t57_the_matcher_says_what_the_entries_say_one_by_one() {
    let mut numbers = Numbers(57);
    let (mut asked, mut admitted) = (0, 0);
    for round in 0..600 {
        let entries: Vec<_> = (0..round % 40).map(|_| numbers.entry()).collect();
        let matcher = Matcher::new(&entries);
        let mut addresses: Vec<IpAddr> = entries.iter().flat_map(|entry| edges(entry.range)).collect();
        addresses.extend((0..30).map(|_| numbers.address()));
        for address in addresses {
            let seconds = i64::from(numbers.below(8)) - 1;
            asked += 1;
            admitted += usize::from(compare(&entries, &matcher, address, seconds));
        }
        for seconds in -1..7 {
            let now = NOW + Duration::seconds(seconds);
            let next = entries.iter().filter_map(|entry| entry.expires_at).filter(|end| *end > now).min();
            assert_eq!(matcher.next_expiry(now), next);
        }
    }
    // Neither answer is rare, or the comparison would say little.
    assert!(admitted > asked / 4 && admitted < asked * 3 / 4, "{admitted} of {asked}");
}

#[test]
fn neighbours_that_open_the_same_cost_one_span() {
    let hosts: Vec<_> =
        (0..=255).map(|last| entry(&format!("10.0.0.{last}/32"), true, false, None)).collect();
    let matcher = Matcher::new(&hosts);
    assert_eq!(matcher.ipv4.starts, [0x0a00_0000, 0x0a00_0100]);
    assert_eq!(matcher.len(), 256);
}

#[test]
fn t57_a_long_list_says_what_its_entries_say_one_by_one() {
    let mut numbers = Numbers(58);
    let entries: Vec<_> = (0..3_000)
        .map(|_| {
            // Anywhere, and narrow, so that there are many spans.
            let bits = numbers.next();
            let range = match bits % 2 {
                0 => format!("{}/32", Ipv4Addr::from_bits((bits >> 32) as u32)),
                _ => format!("{}/128", Ipv6Addr::from_bits((u128::from(bits) << 64) | 1)),
            };
            entry(&range, true, bits.is_multiple_of(3), None)
        })
        .collect();
    let matcher = Matcher::new(&entries);
    for at in (0..entries.len()).step_by(7) {
        for address in edges(entries[at].range) {
            compare(&entries, &matcher, address, 0);
        }
    }
}

#[test]
fn t57_a_million_entries_are_each_found_and_nothing_between_them() {
    // Hosts two apart: 500,000 of each family, one in four only for the web, one in five expired.
    let half = 500_000_u32;
    let mut entries = Vec::new();
    for number in 0..half {
        let expires_at = number.is_multiple_of(5).then_some(NOW);
        let (sql, ui) = (!number.is_multiple_of(4), number.is_multiple_of(4));
        let four = format!("{}/32", Ipv4Addr::from_bits(0x0a00_0000 + 2 * number));
        let six = format!("{}/128", Ipv6Addr::from_bits((0x2001_0db8 << 96) + (u128::from(number) << 41)));
        entries.push(entry(&four, sql, ui, expires_at));
        entries.push(entry(&six, sql, ui, expires_at));
    }
    let matcher = Matcher::new(&entries);
    assert_eq!(matcher.len(), 1_000_000);
    for entry in &entries {
        for surface in [Surface::Sql, Surface::Web] {
            assert_eq!(matcher.admits(entry.range.address(), surface, NOW), entry.opens(surface, NOW));
        }
        let next = match entry.range.address() {
            IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() + 1)),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() + 1)),
        };
        assert!(!matcher.admits(next, Surface::Sql, NOW) && !matcher.admits(next, Surface::Web, NOW));
    }
    assert_eq!(matcher.next_expiry(NOW - Duration::SECOND), Some(NOW));
}
