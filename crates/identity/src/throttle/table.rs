//! Counts with a bound on how many are kept, in which many small counts cannot push out a large one.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Keeps the youngest entries.
pub(super) struct Youngest<K, V> {
    entries: HashMap<Arc<K>, (u64, V)>,
    order: BTreeMap<u64, Arc<K>>,
    next: u64,
    max: usize,
}

impl<K: Hash + Eq, V> Youngest<K, V> {
    pub(super) fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), next: 0, max: max.max(1) }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    /// Puts the entry in as the youngest; the oldest goes where there are too many.
    pub(super) fn put(&mut self, key: K, value: V) {
        self.remove(&key);
        if self.entries.len() >= self.max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
        }
        let key = Arc::new(key);
        self.order.insert(self.next, key.clone());
        self.entries.insert(key, (self.next, value));
        self.next += 1;
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (place, value) = self.entries.remove(key)?;
        self.order.remove(&place);
        Some(value)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (_, value))| (&**key, value))
    }
}

/// Failures of one kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub(super) failures: u32,
    /// When the last one was.
    pub(super) last: Instant,
    /// How long it costs something after the last one.
    pub(super) penalty: Duration,
    /// Until when it costs something: later than `last` and `penalty` say where attempts were let in to wait.
    pub(super) until: Instant,
    /// When a proof was last looked at whose outcome is not counted yet.
    pub(super) proving: Option<Instant>,
}

impl Count {
    /// How much longer it costs something.
    pub(super) fn remaining(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }

    /// Sets the penalty that follows from the failures.
    pub(super) fn set_penalty(&mut self, penalty: Duration) {
        self.penalty = penalty;
        self.until = later(self.last, penalty);
    }
}

/// The moment after this time; one that no clock reaches is the moment itself, so that nothing is held for ever.
pub(super) fn later(moment: Instant, time: Duration) -> Instant {
    moment.checked_add(time).unwrap_or(moment)
}

/// Counts by key. Small counts and large ones have a half each, and push out only their like: somebody who would be rid of
/// a large count must make up as many others that are as large.
pub(super) struct Table<K> {
    small: Youngest<K, Count>,
    large: Youngest<K, Count>,
    large_above: u32,
    forget_after: Duration,
    /// In this time one failure is forgotten, once the count has stopped to cost something.
    forget_one: Duration,
}

impl<K: Hash + Eq + Clone> Table<K> {
    pub(super) fn new(max: usize, large_above: u32, forget_after: Duration) -> Self {
        let (small, large) = (Youngest::new(max / 2), Youngest::new(max / 2));
        let forget_one = forget_after / large_above.saturating_add(1);
        Self { small, large, large_above, forget_after, forget_one }
    }

    /// The count, unless it is forgotten by now.
    pub(super) fn get(&self, key: &K, now: Instant) -> Option<Count> {
        self.at(self.large.get(key).or_else(|| self.small.get(key))?, now)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut Count> {
        match self.large.get_mut(key) {
            Some(found) => Some(found),
            None => self.small.get_mut(key),
        }
    }

    /// What is left of the count. Failures are forgotten one by one, so that an address that many people share does not
    /// collect their typing errors for ever; but not while they cost something, so that guessing does not become cheaper.
    fn at(&self, count: &Count, now: Instant) -> Option<Count> {
        let quiet = now.saturating_duration_since(count.until.max(count.last));
        if quiet >= self.forget_after {
            return None;
        }
        let forgotten = quiet.as_nanos() / self.forget_one.as_nanos().max(1);
        let failures = count.failures.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        (failures > 0).then_some(Count { failures, ..*count })
    }

    /// Counts one more, and sets the penalty that `penalty` gives for so many.
    pub(super) fn add(&mut self, key: K, now: Instant, penalty: impl FnOnce(u32) -> Duration) -> Count {
        let known = self.remove(&key).and_then(|known| self.at(&known, now));
        let failures = known.map_or(0, |known| known.failures).saturating_add(1);
        let mut count = Count { failures, last: now, penalty: Duration::ZERO, until: now, proving: None };
        count.set_penalty(penalty(failures));
        self.put(key, count);
        count
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.large.contains(key) || self.small.contains(key)
    }

    /// Takes some of the count back. Says whether nothing is left.
    pub(super) fn lessen(&mut self, key: &K, by: u32, penalty: impl FnOnce(u32) -> Duration) -> bool {
        let Some(mut count) = self.remove(key) else { return false };
        count.failures = count.failures.saturating_sub(by);
        if count.failures == 0 {
            return true;
        }
        if by > 0 {
            count.set_penalty(penalty(count.failures));
        }
        self.put(key.clone(), count);
        false
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<Count> {
        self.large.remove(key).or_else(|| self.small.remove(key))
    }

    fn put(&mut self, key: K, count: Count) {
        if count.failures > self.large_above {
            self.large.put(key, count);
        } else {
            self.small.put(key, count);
        }
    }

    /// All that is remembered.
    pub(super) fn iter(&self, now: Instant) -> impl Iterator<Item = (&K, Count)> {
        self.all().filter_map(move |(key, count)| Some((key, self.at(count, now)?)))
    }

    /// All that is kept, also what will be forgotten when somebody looks.
    pub(super) fn all(&self) -> impl Iterator<Item = (&K, &Count)> {
        self.large.iter().chain(self.small.iter())
    }

    pub(super) fn len(&self) -> usize {
        self.large.len() + self.small.len()
    }
}
