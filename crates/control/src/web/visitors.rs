//! How often one address may ask without a key: five times a second, with sixty saved up.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

use crate::rate::{Bounds, Rate};

/// Addresses that are counted one by one; further ones share one count, so that strangers cannot fill the memory.
const ADDRESSES_MAX: usize = 10_000;
/// Nobody connects from here.
const SHARED: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Counts by address.
pub(super) struct Visitors(Rate<IpAddr>);

impl Default for Visitors {
    fn default() -> Self {
        Self(Rate::new(Bounds { per_second: 5.0, burst: 60.0, counted_max: ADDRESSES_MAX }))
    }
}

impl Visitors {
    /// Takes one turn, or says how long to wait for one. Those whose address is not known share one count.
    pub(super) fn take(&self, from: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        self.0.take(&from.map_or(SHARED, model::neighbourhood), Some(&SHARED), now)
    }
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
        assert!(visitors.0.len() <= ADDRESSES_MAX + 1);
        let later = now + Duration::from_secs(60);
        assert_eq!(turns(&visitors, "192.0.2.2", later), 60, "those who rest are forgotten");
    }
}
