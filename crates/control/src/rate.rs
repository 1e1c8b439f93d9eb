//! How often a key may ask: ten times a second, with fifty saved up for those who come in bursts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const PER_SECOND: f64 = 10.0;
const BURST: f64 = 50.0;
/// Buckets are kept only for keys that exist; a full one says nothing and is dropped before the map grows past this.
const BUCKETS_MAX: usize = 1_024;

struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// Counts by key. Only keys that were proven are counted, so strangers cannot fill it.
#[derive(Default)]
pub(crate) struct Rate(Mutex<HashMap<String, Bucket>>);

impl Rate {
    /// Takes one turn, or says how long to wait for one.
    pub(crate) fn take(&self, key: &str, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(key) {
            buckets.retain(|_, bucket| level(bucket, now) < BURST);
        }
        let bucket = buckets.entry(key.to_owned()).or_insert(Bucket { tokens: BURST, filled: now });
        bucket.tokens = level(bucket, now);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / PER_SECOND));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

fn level(bucket: &Bucket, now: Instant) -> f64 {
    let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
    (bucket.tokens + passed * PER_SECOND).min(BURST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_ten_a_second() {
        let (rate, start) = (Rate::default(), Instant::now());
        assert_eq!((0..60).filter(|_| rate.take("one", start).is_ok()).count(), 50);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..60).filter(|_| rate.take("one", later).is_ok()).count(), 10);
        assert!(rate.take("two", later).is_ok(), "another key has turns of its own");
    }

    #[test]
    fn keys_that_rest_are_forgotten() {
        let (rate, start) = (Rate::default(), Instant::now());
        for key in 0..5_000_u64 {
            rate.take(&key.to_string(), start + Duration::from_secs(key)).unwrap();
        }
        assert!(rate.len() <= BUCKETS_MAX);
    }
}
