//! The loop that keeps a copy of each running engine's roles, so that people can sign in while it sleeps.
//!
//! While an engine runs it is asked itself. Its copy is *whole*, and lets people in, from the last reading before a proper
//! stop until the engine runs again; a crash in between leaves one that is not. Whole is written down together with the
//! phase that makes it so: false with *running*, true with *asleep*.

use std::sync::Arc;
use std::time::Duration;

use model::{ClusterId, Phase};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::Reconciler;
use crate::ticks::Ticks;

/// For reading one engine's roles.
const READ_MAX: Duration = Duration::from_secs(20);
/// For reading those of all engines when the program stops.
const READ_ALL_MAX: Duration = Duration::from_secs(10);
/// Most of an engine's own words about a failure that are kept.
const REASON_CHARS_MAX: usize = 300;

pub(crate) async fn run(house: &Arc<Reconciler>, stop: &CancellationToken) {
    let mut ticks = Ticks::every(house.settings.roles_every, stop);
    while ticks.next().await {
        tokio::select! {
            () = stop.cancelled() => return,
            () = read_all(house, false) => {}
        }
    }
}

/// Reads the roles of every running engine for the last time, for as long as the program's end may wait for it. Nobody is
/// let in any more.
pub(crate) async fn refresh_all(house: &Arc<Reconciler>) {
    if timeout(READ_ALL_MAX, read_all(house, true)).await.is_err() {
        tracing::warn!("not every engine told its roles in time; nobody signs in there before it runs again");
    }
}

async fn read_all(house: &Arc<Reconciler>, is_last: bool) {
    let running: Vec<ClusterId> = house
        .store
        .snapshot()
        .iter()
        .filter(|entry| entry.seen.phase == Phase::Running && house.host.is_running(entry.cluster.id))
        .map(|entry| entry.cluster.id)
        .collect();
    // Beside each other: one that does not answer must not keep the others waiting.
    let mut readings = JoinSet::new();
    for id in running {
        while readings.len() >= house.settings.parallel_max {
            readings.join_next().await;
        }
        let house = house.clone();
        readings.spawn(async move {
            if !is_last {
                refresh(&house, id).await;
            } else if refresh_last(&house, id).await {
                let noted = house.write(move |store| store.note(id, |seen| seen.roles.is_whole = Some(true)));
                if let Err(cause) = noted.await {
                    tracing::warn!(cluster = %id, %cause, "could not write that the engine's roles were kept");
                }
            }
        });
    }
    while readings.join_next().await.is_some() {}
}

/// Copies one engine's roles. A failure leaves the older copy in place, and is written down: the cluster is not put to
/// sleep on it.
pub(crate) async fn refresh(house: &Reconciler, id: ClusterId) -> bool {
    let reading = house.store.begin_reading();
    let read = async {
        let administration = house.host.administration(id).await?;
        administration.roles().await
    };
    let kept = match timeout(READ_MAX, read).await {
        Ok(Ok(roles)) => {
            let now = house.clock.now();
            let kept = house.write(move |store| store.set_roles(id, roles, reading, now)).await;
            kept.map_err(|cause| cause.to_string())
        }
        Ok(Err(cause)) => Err(cause.to_string()),
        Err(_) => Err("the engine was too slow to tell its roles".to_owned()),
    };
    note(house, id, kept).await
}

/// Copies one engine's roles for the last time before it stops: first every session ends, so that nothing changes after it.
pub(crate) async fn refresh_last(house: &Reconciler, id: ClusterId) -> bool {
    let ended = async { house.host.administration(id).await?.end_sessions().await };
    match timeout(READ_MAX, ended).await {
        Ok(Ok(())) => refresh(house, id).await,
        Ok(Err(cause)) => note(house, id, Err(cause.to_string())).await,
        Err(_) => note(house, id, Err("the engine was too slow to end its sessions".to_owned())).await,
    }
}

/// Writes how a reading went, and says whether it went well.
async fn note(house: &Reconciler, id: ClusterId, kept: Result<(), String>) -> bool {
    let failure = kept.err().map(|reason| {
        let said = reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX);
        said.collect::<String>()
    });
    if let Some(reason) = &failure {
        tracing::warn!(cluster = %id, %reason, "could not keep the engine's roles");
    }
    let is_read = failure.is_none();
    match house.write(move |store| store.note(id, |seen| seen.roles.failure = failure)).await {
        Ok(()) => is_read,
        Err(cause) => {
            tracing::warn!(cluster = %id, %cause, "could not write how the reading of the engine's roles went");
            false
        }
    }
}
