//! When an answer goes out that somebody was looked up for: at a moment that says neither whether anybody was found nor where.
//!
//! A look-up in memory takes microseconds, one that asks an engine takes about a millisecond, and both are answered after the
//! same constant. Nothing that was measured goes into it: what was learnt from one cluster's engine would show in the answers
//! about others. An engine that takes longer than the constant shows in answers about its own cluster alone, in whole
//! multiples of it.

use std::time::Duration;

use tokio::time::Instant;

/// The moment for the answer to a question that came at `asked` and could be answered `now`. `levelled` is
/// [`crate::Settings::lookup_levelled`].
pub(crate) fn answer_at(asked: Instant, now: Instant, levelled: Duration) -> Instant {
    asked + whole_multiple(now - asked, levelled) + blur(levelled / BLUR_PART)
}

/// The random part is this part of the constant, and so longer than the millisecond on which timers fire.
const BLUR_PART: u32 = 4;

/// The time in whole multiples of the constant: what took a little longer is answered at the same moment.
fn whole_multiple(time: Duration, levelled: Duration) -> Duration {
    let levelled = levelled.as_nanos().max(1);
    let multiples = time.as_nanos() / levelled + 1;
    Duration::from_nanos(u64::try_from(multiples.saturating_mul(levelled)).unwrap_or(u64::MAX))
}

/// A random time up to the longest. Timers fire on whole milliseconds, so without it the answer's moment would show where in a
/// millisecond the question fell, and with that what happened before.
fn blur(longest: Duration) -> Duration {
    let mut die = [0; 4];
    keys::fill_random(&mut die);
    longest.mul_f64(f64::from(u32::from_be_bytes(die)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELLED: Duration = Duration::from_millis(20);

    /// After what time the answers to many look-ups go out that took so long: the earliest and the latest.
    fn answered(taken: Duration) -> (Duration, Duration) {
        let asked = Instant::now();
        let at = || answer_at(asked, asked + taken, LEVELLED) - asked;
        let all: Vec<Duration> = (0..1_000).map(|_| at()).collect();
        (all.iter().min().copied().unwrap(), all.iter().max().copied().unwrap())
    }

    #[test]
    fn a_look_up_in_memory_and_one_that_asked_an_engine_are_answered_alike() {
        let millisecond = Duration::from_millis(1);
        for taken in [Duration::ZERO, 3 * millisecond, 19 * millisecond] {
            let (earliest, latest) = answered(taken);
            assert!(earliest >= LEVELLED && latest <= LEVELLED + LEVELLED / BLUR_PART, "{earliest:?}");
            assert!(latest > earliest + 4 * millisecond, "the blur is less than a timer's own");
        }
    }

    #[test]
    fn a_slow_look_up_changes_no_other_answer() {
        let before = answered(Duration::ZERO);
        let (earliest, _) = answered(Duration::from_millis(73));
        assert!(earliest >= 4 * LEVELLED, "the slow one itself waits in whole multiples");
        let after = answered(Duration::ZERO);
        assert!(before.0 >= LEVELLED && after.1 <= LEVELLED + LEVELLED / BLUR_PART);
    }
}
