//! Measures one way to look an address up in a long allowlist: builds it, asks it, prints the figures as one line of
//! JSON. `bench/allowlist` runs this beside the peers:
//!
//!     allowlist matcher|prefix-trie|scan ipv4|ipv6 ENTRIES SECONDS

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use model::{AllowlistEntry, Surface};
use network::Matcher;
use prefix_trie::PrefixMap;
use time::OffsetDateTime;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
const ADDRESSES: usize = 1 << 20;

type Asked = Box<dyn Fn(IpAddr) -> bool>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [subject, family, entries, seconds] = arguments.as_slice() else {
        panic!("allowlist matcher|prefix-trie|scan ipv4|ipv6 ENTRIES SECONDS");
    };
    let is_ipv4 = family == "ipv4";
    let entries: usize = entries.parse().expect("a count of entries");
    let length = Duration::from_secs_f64(seconds.parse().expect("seconds"));

    let mut numbers = Numbers(57);
    let list = if is_ipv4 { ipv4_list(&mut numbers, entries) } else { ipv6_list(&mut numbers, entries) };
    let hits: Vec<IpAddr> =
        (0..ADDRESSES).map(|_| inside(&list[numbers.below(entries)], &mut numbers)).collect();
    let misses: Vec<IpAddr> = hits.iter().copied().map(beside).collect();

    let before = resident_kib();
    let begun = Instant::now();
    let (asked, at_once): (Asked, usize) = match subject.as_str() {
        "matcher" => {
            let matcher = Matcher::new(&list);
            (Box::new(move |address| matcher.admits(address, Surface::Sql, NOW)), 4096)
        }
        "prefix-trie" => (trie(&list), 4096),
        // One question takes milliseconds, so the clock is looked at after each.
        "scan" => {
            let list = list.clone();
            let opens = move |entry: &AllowlistEntry, address| {
                entry.range.contains(address) && entry.opens(Surface::Sql, NOW)
            };
            (Box::new(move |address| list.iter().any(|entry| opens(entry, address))), 1 + 100_000 / entries)
        }
        other => panic!("`{other}` is not measured"),
    };
    let build_ms = begun.elapsed().as_secs_f64() * 1e3;
    let memory = resident_kib().saturating_sub(before);
    let hit = nanoseconds(&asked, &hits, true, at_once, length);
    let miss = nanoseconds(&asked, &misses, false, at_once, length);
    println!(
        "{{\"hit_ns\":{hit:.1},\"miss_ns\":{miss:.1},\"build_ms\":{build_ms:.3},\"memory_kib\":{memory}}}"
    );
}

/// What somebody would write with the crate: each prefix with its rights, and a walk over those that cover the address.
fn trie(list: &[AllowlistEntry]) -> Asked {
    struct Rights {
        sql: bool,
        web: bool,
        expires_at: Option<OffsetDateTime>,
    }
    let opens = |rights: &Rights, surface| {
        let is_right = match surface {
            Surface::Sql => rights.sql,
            Surface::Web => rights.web,
        };
        is_right && rights.expires_at.is_none_or(|end| NOW < end)
    };
    let (mut ipv4, mut ipv6) = (PrefixMap::new(), PrefixMap::new());
    for entry in list {
        let rights = Rights { sql: entry.sql, web: entry.ui, expires_at: entry.expires_at };
        match IpNet::from(entry.range) {
            IpNet::V4(net) => ipv4.insert((net.network().to_bits(), net.prefix_len()), rights),
            IpNet::V6(net) => ipv6.insert((net.network().to_bits(), net.prefix_len()), rights),
        };
    }
    Box::new(move |address| match address.to_canonical() {
        IpAddr::V4(address) => {
            ipv4.cover(&(address.to_bits(), 32)).any(|(_, rights)| opens(rights, Surface::Sql))
        }
        IpAddr::V6(address) => {
            ipv6.cover(&(address.to_bits(), 128)).any(|(_, rights)| opens(rights, Surface::Sql))
        }
    })
}

/// Nanoseconds of the processor a question; fails at the first answer that is not the right one.
fn nanoseconds(asked: &Asked, addresses: &[IpAddr], right: bool, at_once: usize, length: Duration) -> f64 {
    // What is read first by everybody is in the cache then, as it is in a program that runs.
    let mut rounds = addresses.chunks(at_once).cycle();
    let mut ask = |count: &mut usize| {
        let addresses = rounds.next().unwrap_or_default();
        *count += addresses.len();
        assert!(addresses.iter().all(|address| asked(black_box(*address)) == right), "a wrong answer");
    };
    ask(&mut 0);
    let (begun, before, mut count) = (Instant::now(), processor_nanoseconds(), 0);
    while begun.elapsed() < length {
        ask(&mut count);
    }
    (processor_nanoseconds() - before) as f64 / count as f64
}

/// What this thread has run so far, exact to a few milliseconds. Other work on the machine then counts only by what it
/// pushes out of the caches.
fn processor_nanoseconds() -> u64 {
    let text =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with scheduler statistics");
    text.split(' ').next().and_then(|field| field.parse().ok()).expect("nanoseconds")
}

/// Hosts mostly, then small networks; one in ten lies inside another entry. All leave bit 8 clear.
fn ipv4_list(numbers: &mut Numbers, entries: usize) -> Vec<AllowlistEntry> {
    let mut firsts: Vec<u32> = Vec::with_capacity(entries);
    list(numbers, entries, |numbers, is_inside| {
        let anywhere = (numbers.next() >> 32) as u32;
        let (first, bits) = if is_inside && !firsts.is_empty() {
            (firsts[numbers.below(firsts.len())] | (anywhere & 0xff), 32)
        } else {
            (anywhere, [32, 32, 32, 32, 32, 28, 28, 24][numbers.below(8)])
        };
        if bits == 24 {
            firsts.push(first & !0x1ff);
        }
        format!("{}/{bits}", Ipv4Addr::from_bits(first & !0x100 & (u32::MAX << (32 - bits))))
    })
}

/// The same with 2000::/3, /64 and /48. All leave bit 80, the last of a /48, clear.
fn ipv6_list(numbers: &mut Numbers, entries: usize) -> Vec<AllowlistEntry> {
    let mut firsts: Vec<u128> = Vec::with_capacity(entries);
    let inner = (1_u128 << 80) - 1;
    list(numbers, entries, |numbers, is_inside| {
        let anywhere = (u128::from(numbers.next()) << 64) | u128::from(numbers.next());
        let (first, bits) = if is_inside && !firsts.is_empty() {
            (firsts[numbers.below(firsts.len())] | (anywhere & inner), 128)
        } else {
            ((anywhere >> 3) | (1 << 125), [128, 128, 128, 128, 128, 64, 64, 48][numbers.below(8)])
        };
        let first = first & !(1 << 80);
        if bits == 48 {
            firsts.push(first & !inner);
        }
        format!("{}/{bits}", Ipv6Addr::from_bits(first & (u128::MAX << (128 - bits))))
    })
}

/// Entries that are open to SQL, some of them to the web too, one in four until some second of the next hour.
fn list(
    numbers: &mut Numbers,
    entries: usize,
    mut range: impl FnMut(&mut Numbers, bool) -> String,
) -> Vec<AllowlistEntry> {
    let entry = |number: usize| AllowlistEntry {
        range: range(numbers, number % 10 == 9).parse().expect("a range"),
        name: String::new(),
        sql: true,
        ui: number.is_multiple_of(2),
        expires_at: number.is_multiple_of(4).then(|| NOW + Duration::from_secs(1 + number as u64 % 3600)),
    };
    (0..entries).map(entry).collect()
}

/// Some address of the entry.
fn inside(entry: &AllowlistEntry, numbers: &mut Numbers) -> IpAddr {
    let (high, low) = (numbers.next(), numbers.next());
    match IpNet::from(entry.range) {
        IpNet::V4(net) => (net.network() | (Ipv4Addr::from_bits((low >> 32) as u32) & net.hostmask())).into(),
        IpNet::V6(net) => {
            let anywhere = Ipv6Addr::from_bits((u128::from(high) << 64) | u128::from(low));
            (net.network() | (anywhere & net.hostmask())).into()
        }
    }
}

/// The same address with the bit set that is clear in all entries: a miss that differs as late as can be.
fn beside(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() | 0x100).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() | (1 << 80)).into(),
    }
}

/// SplitMix64: the same list for every subject.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap_or(0)
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
