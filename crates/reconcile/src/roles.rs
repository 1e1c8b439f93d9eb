//! The loop that keeps a copy of each running engine's roles, so that people can sign in while it sleeps.

use std::time::Duration;

use model::{ClusterId, Phase};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::Reconciler;

/// For reading one engine's roles.
const READ_MAX: Duration = Duration::from_secs(5);
/// For reading those of all engines when the program stops.
const READ_ALL_MAX: Duration = Duration::from_secs(10);

pub(crate) async fn run(house: &Reconciler, stop: &CancellationToken) {
    let mut tick = interval(house.settings.roles_every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = read_all(house) => {}
        }
    }
}

/// Reads the roles of every running engine, for as long as the program's end may wait for it.
pub(crate) async fn refresh_all(house: &Reconciler) {
    if timeout(READ_ALL_MAX, read_all(house)).await.is_err() {
        tracing::warn!(
            "not every engine told its roles in time; a password changed in the last minute may not count while its cluster sleeps"
        );
    }
}

async fn read_all(house: &Reconciler) {
    let running: Vec<ClusterId> = house
        .store
        .snapshot()
        .iter()
        .filter(|entry| entry.seen.phase == Phase::Running)
        .map(|entry| entry.cluster.id)
        .collect();
    for id in running {
        if house.host.is_running(id) {
            refresh(house, id).await;
        }
    }
}

/// Copies one engine's roles. A failure leaves the older copy in place.
pub(crate) async fn refresh(house: &Reconciler, id: ClusterId) {
    let read = async {
        let administration = house.host.administration(id).await?;
        administration.roles().await
    };
    let roles = match timeout(READ_MAX, read).await {
        Ok(Ok(roles)) => roles,
        Ok(Err(cause)) => return tracing::warn!(cluster = %id, %cause, "could not read the engine's roles"),
        Err(_) => return tracing::warn!(cluster = %id, "the engine was too slow to tell its roles"),
    };
    let now = house.clock.now();
    if let Err(cause) = house.write(move |store| store.set_roles(id, roles, now)).await {
        tracing::warn!(cluster = %id, %cause, "could not keep the engine's roles");
    }
}
