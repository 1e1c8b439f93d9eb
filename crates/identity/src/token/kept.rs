//! Something fetched from a provider and kept: one question at a time, few questions, and an older answer while the
//! provider is down.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::Clock;
use time::{Duration, OffsetDateTime};

/// For how long an answer is fresh that does not say for how long.
const FRESH_DEFAULT: Duration = Duration::hours(1);
/// An answer is fresh at least that long, whatever it says.
const FRESH_MIN: Duration = Duration::minutes(5);
/// An answer is fresh at most that long, whatever it says.
const FRESH_MAX: Duration = Duration::hours(24);
/// For how long an answer is used after it was fresh, while no newer one can be had.
const STALE_MAX: Duration = Duration::hours(24);
/// Between two tries while there is something to use.
const PAUSE: Duration = Duration::seconds(30);
/// Between two tries while there is nothing to use.
const PAUSE_WITHOUT: Duration = Duration::seconds(5);
/// For one try. Whoever fetches has tighter bounds of their own.
const TRY_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// What somebody wants.
pub(super) enum Need<T> {
    /// A fresh value, or one that can still be used.
    Fresh,
    /// A newer value than this, if one may be asked for already; else the same again.
    NewerThan(Arc<T>),
}

/// A value and what is known about fetching it.
pub(super) struct Kept<T> {
    state: Mutex<State<T>>,
    /// Held while a question is under way.
    gate: Arc<tokio::sync::Mutex<()>>,
}

struct State<T> {
    value: Option<Value<T>>,
    tried_at: Option<OffsetDateTime>,
    failure: Option<String>,
}

struct Value<T> {
    it: Arc<T>,
    fetched_at: OffsetDateTime,
    fresh_until: OffsetDateTime,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        let state = State { value: None, tried_at: None, failure: None };
        Self { state: Mutex::new(state), gate: Arc::default() }
    }
}

impl<T: Send + Sync + 'static> Kept<T> {
    /// Gives the kept value, or fetches it. However many ask, one fetches; and it goes on when its caller leaves, so that
    /// nobody can use up the next try by leaving early. The error is the last failure, for the log.
    pub(super) async fn get<F>(
        self: &Arc<Self>,
        clock: &Arc<dyn Clock>,
        need: Need<T>,
        fetch: F,
    ) -> Result<Arc<T>, String>
    where
        F: Future<Output = Result<(T, Option<std::time::Duration>), String>> + Send + 'static,
    {
        if let Some(settled) = self.lock().settled(&need, clock.now()) {
            return settled;
        }
        let stale = self.lock().usable(clock.now());
        let held = match (self.gate.clone().try_lock_owned(), stale) {
            (Ok(held), _) => held,
            // Somebody asks already. What can still be used is used, so that a slow provider does not hold everybody up.
            (Err(_), Some(stale)) if matches!(need, Need::Fresh) => return Ok(stale),
            (Err(_), _) => self.gate.clone().lock_owned().await,
        };
        // Whoever held the gate may have brought what is wanted.
        if let Some(settled) = self.lock().settled(&need, clock.now()) {
            return settled;
        }
        let (kept, clock_inside) = (self.clone(), clock.clone());
        let flight = tokio::spawn(async move {
            let answer = tokio::time::timeout(TRY_MAX, fetch).await;
            let answer = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            kept.lock().store(answer, clock_inside.now());
            drop(held);
        });
        if flight.await.is_err() {
            self.lock().store(Err("the question was broken off".to_owned()), clock.now());
        }
        let state = self.lock();
        state.usable(clock.now()).ok_or_else(|| state.failure())
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Whole values are exchanged.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    /// The answer that needs no question.
    fn settled(&self, need: &Need<T>, now: OffsetDateTime) -> Option<Result<Arc<T>, String>> {
        let usable = self.usable(now);
        match need {
            Need::Fresh => {
                if let Some(value) = self.value.as_ref().filter(|value| value.is_fresh(now)) {
                    return Some(Ok(value.it.clone()));
                }
                let pause = if usable.is_some() { PAUSE } else { PAUSE_WITHOUT };
                self.has_tried(pause, now).then(|| usable.ok_or_else(|| self.failure()))
            }
            Need::NewerThan(old) => {
                let value = usable?;
                let is_newer = !Arc::ptr_eq(&value, old);
                (is_newer || self.has_tried(PAUSE, now)).then_some(Ok(value))
            }
        }
    }

    fn failure(&self) -> String {
        self.failure.clone().unwrap_or_default()
    }

    fn usable(&self, now: OffsetDateTime) -> Option<Arc<T>> {
        let value = self.value.as_ref()?;
        (now < value.fresh_until + STALE_MAX).then(|| value.it.clone())
    }

    fn has_tried(&self, pause: Duration, now: OffsetDateTime) -> bool {
        // A clock that was set back must not stop the questions until it catches up.
        self.tried_at.is_some_and(|tried| tried <= now && now - tried < pause)
    }

    fn store(&mut self, answer: Result<(T, Option<std::time::Duration>), String>, now: OffsetDateTime) {
        self.tried_at = Some(now);
        match answer {
            Ok((value, said)) => {
                let fresh = said.map_or(FRESH_DEFAULT, |said| said.try_into().unwrap_or(FRESH_MAX));
                let fresh_until = now + fresh.clamp(FRESH_MIN, FRESH_MAX);
                self.value = Some(Value { it: Arc::new(value), fetched_at: now, fresh_until });
                self.failure = None;
            }
            Err(failure) => {
                tracing::warn!(%failure, "an identity provider could not be asked");
                self.failure = Some(failure);
            }
        }
    }
}

impl<T> Value<T> {
    fn is_fresh(&self, now: OffsetDateTime) -> bool {
        self.fetched_at <= now && now < self.fresh_until
    }
}
