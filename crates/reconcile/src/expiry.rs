//! The loop that wishes for the deletion of clusters whose time has come, so that what is thrown away goes also where
//! whoever made it was killed.

use std::collections::HashMap;
use std::time::Duration;

use model::{ClusterId, Wish};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Reconciler;
use crate::ticks::Ticks;

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// For whoever asked for it to give it longer after its time has come: the machine may have slept, the program may have been
/// stopped, and a clock may be set right a moment after the start.
const GRACE: Duration = Duration::from_secs(60);

pub(crate) async fn run(house: &Reconciler, stop: &CancellationToken) {
    let mut ticks = Ticks::every(LOOK_EVERY, stop);
    let mut due_since: HashMap<ClusterId, Instant> = HashMap::new();
    while ticks.next().await {
        let (now, snapshot) = (house.now(), house.store.snapshot());
        let due = |id: &ClusterId| snapshot.get(id).is_some_and(|entry| entry.cluster.is_expired(now));
        due_since.retain(|id, _| due(id));
        let mut expired = Vec::new();
        for id in snapshot.iter().map(|entry| entry.cluster.id).filter(|id| due(id)) {
            let since = *due_since.entry(id).or_insert_with(Instant::now);
            if since.elapsed() >= GRACE {
                expired.push(id);
            }
        }
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
