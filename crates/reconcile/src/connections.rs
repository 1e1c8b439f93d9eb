//! The loop that hears of clusters whose sessions were used up, and lets them have more from their engine's next start on.

use std::time::Duration;

use model::ClusterId;
use tokio_util::sync::CancellationToken;

use crate::Reconciler;
use crate::ticks::Ticks;

const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn run(house: &Reconciler, stop: &CancellationToken) {
    let mut ticks = Ticks::every(LOOK_EVERY, stop);
    while ticks.next().await {
        for id in house.sessions.take_used_up() {
            if let Err(cause) = used_up(house, id).await {
                // The next who is refused tells of it again.
                tracing::warn!(cluster = %id, %cause, "could not write that a cluster used up its sessions");
            }
        }
    }
}

async fn used_up(house: &Reconciler, id: ClusterId) -> Result<(), store::Error> {
    // Of a run that has ended meanwhile, its next start gets what it would have got.
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
    if entry.seen.connections_used_up_at.is_some() {
        return Ok(());
    }
    tracing::warn!(
        cluster = %entry.cluster.handle(), sessions = count, from_next_start = grown,
        "its sessions are used up, and somebody was refused"
    );
    house.write(move |store| store.note(id, |seen| seen.connections_used_up_at = Some(now))).await
}
