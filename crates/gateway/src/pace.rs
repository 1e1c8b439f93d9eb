//! How long look-ups take at present, so that an answer without one takes as long.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Look-ups that are remembered.
const REMEMBERED: usize = 64;
/// A look-up that asked an engine takes longer than this; one in memory does not.
const ASKED_MIN: Duration = Duration::from_micros(150);

/// What one look-up counts for at most: one tenant's slow engine must not slow everybody down, nor mark those who run.
const ASKED_MAX: Duration = Duration::from_millis(50);

/// The times of the last look-ups that asked an engine.
#[derive(Default)]
pub(crate) struct Pace {
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    times: Vec<Duration>,
    next: usize,
}

impl Pace {
    /// The time that a look-up counts for: its own where an engine was asked, else that of one of the last that asked.
    /// Whoever waits for the answer then waits alike, whether there is such a cluster or not.
    pub(crate) fn level(&self, taken: Duration) -> Duration {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if taken < ASKED_MIN {
            let mut die = [0];
            keys::fill_random(&mut die);
            let count = recent.times.len().max(1);
            return recent.times.get(usize::from(die[0]) % count).copied().unwrap_or(taken).max(taken);
        }
        let next = recent.next;
        let taken = taken.min(ASKED_MAX);
        if recent.times.len() < REMEMBERED {
            recent.times.push(taken);
        } else {
            recent.times[next] = taken;
        }
        recent.next = (next + 1) % REMEMBERED;
        taken
    }
}

/// A random part of the step. Timers fire on whole milliseconds, so without it the answer's moment would show where in a
/// millisecond the question fell, and with that what happened before.
pub(crate) fn blur(step: Duration) -> Duration {
    let mut die = [0; 4];
    keys::fill_random(&mut die);
    step.mul_f64(f64::from(u32::from_be_bytes(die)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_from_memory_takes_the_time_of_one_that_asked() {
        let pace = Pace::default();
        let nothing = Duration::from_micros(5);
        assert_eq!(pace.level(nothing), nothing, "there is nothing to be like yet");
        let asked = Duration::from_millis(3);
        for _ in 0..2 * REMEMBERED {
            assert_eq!(pace.level(asked), asked);
        }
        assert_eq!(pace.level(nothing), asked);
        assert_eq!(pace.recent.lock().unwrap().times.len(), REMEMBERED);
    }
}
