//! Equal warnings: the first is logged at once, and those that follow are counted and told together, so that neither a fault that
//! goes on nor an attack fills the log.
//!
//! Two are equal where level, target, message and fields are. Lines of the audit trail are never held back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Event, Level, Metadata};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::layer::{Context, Filter};

use super::AUDIT;
use super::fields::Unforgeable;

/// For so long equal ones are counted before that is told.
const COUNTED_FOR: Duration = Duration::from_secs(10);
/// Most that are told apart; what comes beyond is logged each time.
const KINDS_MAX: usize = 256;
/// A longer one is logged each time.
const BYTES_MAX: usize = 2_048;
/// What tells of them is not counted itself.
const TARGET: &str = "chitin::repeated";
const THREAD_BYTES: usize = 256 * 1024;

/// Counts warnings and errors that are equal to one that was logged a moment ago.
#[derive(Clone, Debug, Default)]
pub struct Repeated(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Somebody tells what was counted.
    is_counting: AtomicBool,
    counts: Mutex<HashMap<Said, Count>>,
    changed: Condvar,
}

/// What was logged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Said {
    level: Level,
    target: String,
    text: String,
}

#[derive(Debug)]
struct Count {
    /// When it was logged, or told how often it came, for the last time.
    since: Instant,
    more: u64,
}

impl Repeated {
    /// Begins to count, with a thread that tells what was counted. Without one everything is logged.
    pub fn begin(&self) {
        let counted = self.clone();
        let thread = std::thread::Builder::new().name("log".to_owned()).stack_size(THREAD_BYTES);
        let begun = thread.spawn(move || counted.tell_for_ever());
        self.0.is_counting.store(begun.is_ok(), Ordering::SeqCst);
    }

    /// Tells everything that was counted and not told. To be called at the end.
    pub fn finish(&self) {
        self.0.is_counting.store(false, Ordering::SeqCst);
        let all: Vec<_> = self.counts().drain().collect();
        for (said, count) in all.into_iter().filter(|(_, count)| count.more > 0) {
            tell(&said, count.more, count.since.elapsed());
        }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Said, Count>> {
        // Numbers that change in one step each.
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is to be logged. If not, it was counted.
    fn is_new(&self, said: Said, now: Instant) -> bool {
        let mut counts = self.counts();
        if let Some(count) = counts.get_mut(&said) {
            if count.more == 0 && now.saturating_duration_since(count.since) >= COUNTED_FOR {
                count.since = now;
                return true;
            }
            count.more += 1;
            self.0.changed.notify_one();
            return false;
        }
        if counts.len() >= KINDS_MAX {
            counts.retain(|_, count| {
                count.more > 0 || now.saturating_duration_since(count.since) < COUNTED_FOR
            });
        }
        if counts.len() < KINDS_MAX {
            counts.insert(said, Count { since: now, more: 0 });
        }
        true
    }

    fn tell_for_ever(&self) {
        loop {
            let counts = self.counts();
            let is_idle = |counts: &mut HashMap<Said, Count>| counts.values().all(|count| count.more == 0);
            let counts = self.0.changed.wait_while(counts, is_idle).unwrap_or_else(PoisonError::into_inner);
            let waiting = counts.values().filter(|count| count.more > 0);
            let next = waiting.map(|count| COUNTED_FOR.saturating_sub(count.since.elapsed())).min();
            drop(counts);
            std::thread::sleep(next.unwrap_or(COUNTED_FOR));
            for (said, more) in self.due(Instant::now()) {
                tell(&said, more, COUNTED_FOR);
            }
        }
    }

    /// What was counted for long enough; it is counted anew from now on.
    fn due(&self, now: Instant) -> Vec<(Said, u64)> {
        let mut counts = self.counts();
        let is_due =
            |count: &Count| count.more > 0 && now.saturating_duration_since(count.since) >= COUNTED_FOR;
        let due = counts.iter_mut().filter(|(_, count)| is_due(count));
        due.map(|(said, count)| {
            count.since = now;
            (said.clone(), std::mem::take(&mut count.more))
        })
        .collect()
    }
}

impl<S> Filter<S> for Repeated {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let about = event.metadata();
        if *about.level() > Level::WARN
            || [AUDIT, TARGET].contains(&about.target())
            || !self.0.is_counting.load(Ordering::Relaxed)
        {
            return true;
        }
        let mut text = String::new();
        if Unforgeable.format_fields(Writer::new(&mut text), event).is_err() || text.len() > BYTES_MAX {
            return true;
        }
        self.is_new(Said { level: *about.level(), target: about.target().to_owned(), text }, Instant::now())
    }
}

fn tell(Said { level, target, text }: &Said, more: u64, within: Duration) {
    let seconds = within.as_secs().max(1);
    if *level == Level::ERROR {
        tracing::error!(target: TARGET, from = target, "{more} more in {seconds} seconds: {text}");
    } else {
        tracing::warn!(target: TARGET, from = target, "{more} more in {seconds} seconds: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Said {
        Said { level: Level::WARN, target: "gateway".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn equal_warnings_are_counted_and_told_together() {
        let (repeated, begun) = (Repeated::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert!(repeated.is_new(said("one"), at(0)) && repeated.is_new(said("other"), at(0)));
        let logged = (0..3_535).filter(|_| repeated.is_new(said("one"), at(1))).count();
        assert_eq!(logged, 0);
        assert_eq!(repeated.due(at(9)), []);
        assert_eq!(repeated.due(at(10)), [(said("one"), 3_535)]);
        // It goes on: it is counted further, and the other, which stopped, is new again.
        assert!(!repeated.is_new(said("one"), at(15)) && repeated.is_new(said("other"), at(15)));
        assert_eq!(repeated.due(at(20)), [(said("one"), 1)]);
        assert!(repeated.is_new(said("one"), at(31)), "it had stopped");
    }

    #[test]
    fn warnings_of_ever_other_texts_are_logged_and_take_no_memory() {
        let (repeated, now) = (Repeated::default(), Instant::now());
        for number in 0..10 * KINDS_MAX {
            assert!(repeated.is_new(said(&number.to_string()), now));
        }
        assert_eq!(repeated.counts().len(), KINDS_MAX);
        let later = now + COUNTED_FOR;
        assert!(repeated.is_new(said("later"), later) && !repeated.is_new(said("later"), later));
    }
}
