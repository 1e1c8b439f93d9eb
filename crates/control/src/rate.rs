//! How often somebody may ask: so many times a second, with some saved up for those who come in bursts.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often each may ask, and of how many that is known.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Turns a second.
    pub(crate) per_second: f64,
    /// Turns that can be saved up.
    pub(crate) burst: f64,
    /// Those who are counted one by one; whoever has rested is forgotten before there are more.
    pub(crate) counted_max: usize,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// Counts of turns by who takes them.
pub(crate) struct Rate<K> {
    bounds: Bounds,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash> Rate<K> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, buckets: Mutex::default() }
    }

    /// Takes one turn, or says how long to wait for one. Where too many are counted already, a newcomer takes a turn of
    /// the spare one's, if there is one.
    pub(crate) fn take<Q>(&self, who: &Q, spare: Option<&Q>, now: Instant) -> Result<(), Duration>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        let Bounds { per_second, burst, counted_max } = self.bounds;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut who = who;
        if buckets.len() >= counted_max && !buckets.contains_key(who) {
            buckets.retain(|_, bucket| self.level(bucket, now) < burst);
            if buckets.len() >= counted_max {
                who = spare.unwrap_or(who);
            }
        }
        let bucket = buckets.entry(who.to_owned()).or_insert(Bucket { tokens: burst, filled: now });
        bucket.tokens = self.level(bucket, now);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / per_second));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    fn level(&self, bucket: &Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
        (bucket.tokens + passed * self.bounds.per_second).min(self.bounds.burst)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.buckets.lock().unwrap().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate() -> Rate<String> {
        Rate::new(Bounds { per_second: 10.0, burst: 50.0, counted_max: 1_024 })
    }

    #[test]
    fn a_burst_passes_then_ten_a_second() {
        let (rate, start) = (rate(), Instant::now());
        assert_eq!((0..60).filter(|_| rate.take("one", None, start).is_ok()).count(), 50);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..60).filter(|_| rate.take("one", None, later).is_ok()).count(), 10);
        assert!(rate.take("two", None, later).is_ok(), "another key has turns of its own");
    }

    #[test]
    fn keys_that_rest_are_forgotten() {
        let (rate, start) = (rate(), Instant::now());
        for key in 0..5_000_u64 {
            rate.take(key.to_string().as_str(), None, start + Duration::from_secs(key)).unwrap();
        }
        assert!(rate.len() <= 1_024);
    }
}
