//! The loop that keeps what engines may use of the machine as their documents say, and notices those that use up their memory.

use std::collections::HashMap;
use std::time::Duration;

use engine::Run;
use model::{ClusterId, MemorySeen};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::Reconciler;
use crate::ticks::Ticks;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For which it is said after the last time.
const SAID_FOR: time::Duration = time::Duration::hours(1);

pub(crate) async fn run(house: &Reconciler, stop: &CancellationToken) {
    let mut ticks = Ticks::every(LOOK_EVERY, stop);
    let mut known: HashMap<ClusterId, (Run, u64)> = HashMap::new();
    let mut resizing: HashMap<ClusterId, JoinHandle<()>> = HashMap::new();
    while ticks.next().await {
        let snapshot = house.store.snapshot();
        for entry in snapshot.iter() {
            let (id, seen) = (entry.cluster.id, entry.seen.memory);
            if !house.host.is_sized(&entry.cluster) && !resizing.contains_key(&id) {
                let (host, wanted) = (house.host.clone(), entry.clone());
                let resize = spawn_blocking(move || {
                    if let Err(cause) = host.resize(&wanted.cluster) {
                        tracing::error!(cluster = %wanted.cluster.handle(), %cause, "its limits could not be changed");
                    }
                });
                resizing.insert(id, resize);
            }
            let now = house.host.memory_kills_of_run(id);
            let before = match now {
                Some(now) => known.insert(id, now),
                None => known.remove(&id),
            };
            let wanted = now.map_or(MemorySeen::default(), |(run, kills)| {
                let counted = before.filter(|(earlier, _)| *earlier == run).map_or(0, |(_, kills)| kills);
                let at = house.now();
                if kills > counted {
                    tracing::error!(
                        cluster = %entry.cluster.handle(), kills,
                        "the engine used up its memory, and the kernel ended a process of it"
                    );
                    MemorySeen { killed_at: Some(at), kills }
                } else {
                    let killed_at = seen.killed_at.filter(|since| kills > 0 && at - *since < SAID_FOR);
                    killed_at.map_or(MemorySeen::default(), |_| seen)
                }
            });
            if wanted != seen {
                let written = house.write(move |store| store.note(id, |seen| seen.memory = wanted)).await;
                if let Err(cause) = written {
                    tracing::warn!(cluster = %id, %cause, "could not write how an engine's memory is");
                }
            }
        }
        known.retain(|id, _| snapshot.get(id).is_some());
        resizing.retain(|_, resize| !resize.is_finished());
    }
}
