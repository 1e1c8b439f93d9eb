//! How often one address may ask without a key: five times a second, with sixty saved up.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const PER_SECOND: f64 = 5.0;
const BURST: f64 = 60.0;
/// Addresses that are counted one by one; further ones share one count, so that strangers cannot fill the memory.
const ADDRESSES_MAX: usize = 10_000;

struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// Counts by address.
#[derive(Default)]
pub(super) struct Visitors(Mutex<HashMap<IpAddr, Bucket>>);

impl Visitors {
    /// Takes one turn, or says how long to wait for one. Those whose address is not known share one count.
    pub(super) fn take(&self, from: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut place = from.map_or(SHARED, model::neighbourhood);
        if buckets.len() >= ADDRESSES_MAX && !buckets.contains_key(&place) {
            buckets.retain(|_, bucket| level(bucket, now) < BURST);
            if buckets.len() >= ADDRESSES_MAX {
                place = SHARED;
            }
        }
        let bucket = buckets.entry(place).or_insert(Bucket { tokens: BURST, filled: now });
        bucket.tokens = level(bucket, now);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / PER_SECOND));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }
}

/// Nobody connects from here.
const SHARED: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn level(bucket: &Bucket, now: Instant) -> f64 {
    let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
    (bucket.tokens + passed * PER_SECOND).min(BURST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(visitors: &Visitors, from: &str, now: Instant) -> usize {
        (0..100).filter(|_| visitors.take(Some(from.parse().unwrap()), now).is_ok()).count()
    }

    #[test]
    fn a_burst_passes_then_five_a_second() {
        let (visitors, now) = (Visitors::default(), Instant::now());
        assert_eq!(turns(&visitors, "192.0.2.1", now), 60);
        assert_eq!(turns(&visitors, "::ffff:192.0.2.1", now), 0, "the same address in other words");
        assert_eq!(turns(&visitors, "192.0.2.2", now), 60);
        assert_eq!(turns(&visitors, "192.0.2.1", now + Duration::from_secs(1)), 5);
        assert_eq!(turns(&visitors, "2001:db8::1", now), 60);
        assert_eq!(turns(&visitors, "2001:db8::2", now), 0, "one network of IPv6 is one visitor");
    }

    #[test]
    fn strangers_share_what_is_left_when_there_are_too_many() {
        let (visitors, now) = (Visitors::default(), Instant::now());
        for number in 0..ADDRESSES_MAX {
            let address = Ipv6Addr::from((0x2001 << 112) + ((number as u128) << 64));
            visitors.take(Some(address.into()), now).unwrap();
        }
        assert_eq!(turns(&visitors, "192.0.2.1", now), 60);
        assert_eq!(turns(&visitors, "192.0.2.2", now), 0);
        assert!(visitors.0.lock().unwrap().len() <= ADDRESSES_MAX + 1);
        let later = now + Duration::from_secs(60);
        assert_eq!(turns(&visitors, "192.0.2.2", later), 60, "those who rest are forgotten");
    }
}
