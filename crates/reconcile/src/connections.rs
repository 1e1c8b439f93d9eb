//! The loop that hears of clusters whose sessions were used up, and lets them have more from their engine's next start on.

use std::time::Duration;

use model::{ClusterId, Observation};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Reconciler;
use crate::ticks::Ticks;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So often the moment is written anew while somebody is refused again and again, and looked for what was said long enough.
const WRITE_EVERY: time::Duration = time::Duration::minutes(1);
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// For which it is said after the last time.
const SAID_FOR: time::Duration = time::Duration::hours(1);

pub(crate) async fn run(house: &Reconciler, stop: &CancellationToken) {
    let mut ticks = Ticks::every(LOOK_EVERY, stop);
    let mut next_forgetting = Instant::now();
    while ticks.next().await {
        for (id, refused_at) in house.sessions.take_used_up() {
            if let Err(cause) = used_up(house, id, refused_at.into()).await {
                // The next who is refused tells of it again.
                tracing::warn!(cluster = %id, %cause, "could not write that a cluster used up its sessions");
            }
        }
        if Instant::now() >= next_forgetting {
            next_forgetting = Instant::now() + FORGET_EVERY;
            forget_old(house).await;
        }
    }
}

async fn used_up(house: &Reconciler, id: ClusterId, refused_at: Instant) -> Result<(), store::Error> {
    // Of a run that has ended meanwhile, its next start gets what it would have got, and nothing is said of that one.
    if is_of_earlier_run(house, id, refused_at) {
        return Ok(());
    }
    let (Some(count), Some(entry)) =
        (house.host.connections_max(id), house.store.snapshot().get(&id).cloned())
    else {
        return Ok(());
    };
    let now = house.now();
    let grown = entry.cluster.connections_grown(count);
    if grown.is_some() {
        house
            .write(move |store| {
                store.edit::<(), store::Error>(id, now, |cluster| {
                    cluster.connections_floor =
                        cluster.connections_grown(count).or(cluster.connections_floor);
                    Ok(())
                })
            })
            .await?;
    }
    let before = entry.seen.connections_used_up_at;
    if before.is_some_and(|before| now - before < WRITE_EVERY) {
        return Ok(());
    }
    tracing::warn!(
        cluster = %entry.cluster.handle(), sessions = count, from_next_start = grown,
        "its sessions are used up, and somebody was refused"
    );
    // Once more: the write before this one may have taken its time.
    if is_of_earlier_run(house, id, refused_at) {
        return Ok(());
    }
    house.write(move |store| store.note(id, |seen| seen.connections_used_up_at = Some(now))).await
}

fn is_of_earlier_run(house: &Reconciler, id: ClusterId, refused_at: Instant) -> bool {
    house.awake_since().get(&id).is_none_or(|since| refused_at < *since)
}

async fn forget_old(house: &Reconciler) {
    let now = house.now();
    let is_old = |seen: &Observation| seen.connections_used_up_at.is_some_and(|at| now - at >= SAID_FOR);
    house.forget(is_old, |seen| seen.connections_used_up_at = None).await;
}
