//! The loop that wishes for the deletion of clusters whose time has come, so that what is thrown away goes also where
//! whoever made it was killed.

use std::time::Duration;

use model::{ClusterId, Wish};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::Reconciler;

const LOOK_EVERY: Duration = Duration::from_secs(5);

pub(crate) async fn run(house: &Reconciler, stop: &CancellationToken) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (now, snapshot) = (house.now(), house.store.snapshot());
        let expired: Vec<ClusterId> = snapshot
            .iter()
            .filter(|entry| entry.cluster.is_expired(now))
            .map(|entry| entry.cluster.id)
            .collect();
        for id in expired {
            let written = house.write(move |store| {
                store.edit(id, now, |cluster| {
                    // Somebody may have wanted it again since, or protected it.
                    let is_expired = cluster.is_expired(now);
                    if is_expired {
                        cluster.wish = Wish::Deleted;
                    }
                    Ok::<bool, store::Error>(is_expired)
                })
            });
            match written.await {
                Ok(true) => tracing::info!(cluster = %id, "its time has come: it is deleted"),
                Ok(false) => {}
                Err(cause) => {
                    tracing::warn!(cluster = %id, %cause, "it could not be deleted when its time had come");
                }
            }
        }
    }
}
