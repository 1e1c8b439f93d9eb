//! How long to wait after a failure: twice as long each time, and short again after a good minute.

use std::time::Duration;

use tokio::time::Instant;

/// After the first failure.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// After many.
pub const LONGEST: Duration = Duration::from_secs(60);
/// Work that held this long is forgiven its earlier failures.
const STABLE: Duration = Duration::from_secs(60);

/// The failures of one cluster's engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackOff {
    failures: u32,
    next_try: Option<Instant>,
    good_since: Option<Instant>,
}

impl BackOff {
    /// Notes a failure and tells how long to wait.
    pub fn failed(&mut self, now: Instant) -> Duration {
        if self.good_since.is_some_and(|since| now.duration_since(since) >= STABLE) {
            self.failures = 0;
        }
        self.good_since = None;
        let wait = SHORTEST.saturating_mul(1 << self.failures.min(6)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.next_try = Some(now + wait);
        wait
    }

    /// Notes that it works from now on.
    pub fn works(&mut self, now: Instant) {
        self.next_try = None;
        self.good_since.get_or_insert(now);
    }

    /// Notes that it was ended on purpose.
    pub fn rests(&mut self) {
        *self = Self::default();
    }

    /// When the next try is due; `None` for at once.
    pub fn next_try(&self) -> Option<Instant> {
        self.next_try
    }

    /// Whether it works as far as we know.
    pub fn is_good(&self) -> bool {
        self.good_since.is_some()
    }

    /// Failures without a good minute in between.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_minute() {
        let mut back_off = BackOff::default();
        let now = Instant::now();
        let waits: Vec<u64> = (0..9).map(|_| back_off.failed(now).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn only_a_stable_minute_forgives() {
        let mut back_off = BackOff::default();
        let start = Instant::now();
        back_off.failed(start);
        back_off.works(start);
        assert_eq!(back_off.failed(start + Duration::from_secs(59)).as_secs(), 2);
        back_off.works(start + Duration::from_secs(62));
        assert_eq!(back_off.failed(start + Duration::from_secs(122)).as_secs(), 1);
    }
}
