//! The loop that lets serverless clusters sleep when nobody uses them.

use std::time::Duration;

use model::{ClusterId, Phase, Plan, Power, Wish};
use store::Entry;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Reconciler;
use crate::ticks::Ticks;

const LOOK_LONGEST: Duration = Duration::from_secs(5);
const LOOK_SHORTEST: Duration = Duration::from_millis(200);

pub(crate) async fn run(house: &Reconciler, stop: &CancellationToken) {
    let every = (house.settings.idle_after / 4).clamp(LOOK_SHORTEST, LOOK_LONGEST);
    let mut ticks = Ticks::every(every, stop);
    while ticks.next().await {
        let idle: Vec<ClusterId> = house
            .store
            .snapshot()
            .iter()
            .filter(|entry| may_sleep(entry) && is_idle(house, entry.cluster.id))
            .map(|entry| entry.cluster.id)
            .collect();
        for id in idle {
            put_to_sleep(house, id).await;
        }
    }
}

/// Whether the cluster is one that sleeps by itself and is awake. One whose roles cannot be kept stays awake: nobody could
/// sign in to it.
fn may_sleep(entry: &Entry) -> bool {
    entry.cluster.plan == Plan::Serverless
        && entry.cluster.wish == Wish::Exists(Power::Running)
        && entry.seen.phase == Phase::Running
        && entry.seen.roles.failure.is_none()
}

fn is_idle(house: &Reconciler, id: ClusterId) -> bool {
    if house.sessions.count(id) > 0 {
        return false;
    }
    let Some(awake_since) = house.awake_since().get(&id).copied() else {
        return false;
    };
    let last_session = house.sessions.idle_since(id).map(Instant::from_std);
    is_over(awake_since, last_session, Instant::now(), house.settings.idle_after)
}

/// Idle time counts from the last session's end or from waking, whichever is later.
fn is_over(awake_since: Instant, last_session: Option<Instant>, now: Instant, idle_after: Duration) -> bool {
    let since = last_session.map_or(awake_since, |end| end.max(awake_since));
    now.saturating_duration_since(since) >= idle_after
}

async fn put_to_sleep(house: &Reconciler, id: ClusterId) {
    let _closed = house.gate.close().await;
    // Somebody may have come, or the wish may have changed, before the gate was closed.
    if !house.store.snapshot().get(&id).is_some_and(|entry| may_sleep(entry)) || !is_idle(house, id) {
        return;
    }
    let now = house.clock.now();
    let asleep = Wish::Exists(Power::Asleep);
    match house.write(move |store| store.wish(id, asleep, now)).await {
        Ok(()) => tracing::info!(cluster = %id, "nobody is here: going to sleep"),
        Err(cause) => tracing::warn!(cluster = %id, %cause, "could not put the cluster to sleep"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_counts_from_the_last_session_or_from_waking() {
        let idle_after = Duration::from_secs(300);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!is_over(start, None, at(299), idle_after));
        assert!(is_over(start, None, at(300), idle_after));
        assert!(!is_over(start, Some(at(200)), at(499), idle_after));
        assert!(is_over(start, Some(at(200)), at(500), idle_after));
        // A session that ended before this waking does not shorten it.
        assert!(!is_over(at(400), Some(at(50)), at(600), idle_after));
    }
}
