//! Private endpoints that wanted in and were not accepted: remembered in their cluster's document, so that somebody can
//! accept them.

use std::sync::Arc;

use model::{
    Clock, Cluster, ClusterId, ENDPOINTS_MAX, ENDPOINTS_WAITING_MAX, EndpointConnection, EndpointId,
    EndpointState,
};
use store::Store;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Knocks that wait to be written down; further ones are forgotten, and whoever knocks again is heard again.
const WAITING_MAX: usize = 64;

/// Most of those that wait which are certificates: anybody can make as many as it likes, and no cloud vouches for them.
const CERTIFICATES_WAITING_MAX: usize = 10;

/// Hears of endpoints, without waiting.
#[derive(Clone)]
pub struct Knocks(mpsc::Sender<(ClusterId, EndpointId)>);

/// What was heard and is not written down yet.
pub struct Heard(mpsc::Receiver<(ClusterId, EndpointId)>);

/// Both ends.
pub fn channel() -> (Knocks, Heard) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Knocks(sender), Heard(receiver))
}

impl Knocks {
    /// Hears of one.
    pub fn heard(&self, cluster: ClusterId, endpoint: &EndpointId) {
        // Full: the sender is heard at the next try.
        let _ = self.0.try_send((cluster, endpoint.clone()));
    }
}

/// Writes knocks down until `stop`.
pub async fn run(mut heard: Heard, store: Arc<Store>, clock: Arc<dyn Clock>, stop: CancellationToken) {
    loop {
        let (cluster, endpoint) = tokio::select! {
            () = stop.cancelled() => return,
            knock = heard.0.recv() => match knock {
                Some(knock) => knock,
                None => return,
            },
        };
        let (store, now) = (store.clone(), clock.now());
        let id = endpoint.clone();
        let noted = tokio::task::spawn_blocking(move || note(&store, cluster, id, now)).await;
        match noted {
            Ok(Ok(true)) => {
                tracing::info!(target: "audit", %cluster, %endpoint, "a private endpoint waits for acceptance: chitin endpoint accept");
            }
            Ok(Ok(false)) => {}
            Ok(Err(cause)) => {
                tracing::warn!(%cluster, %endpoint, %cause, "a private endpoint could not be remembered");
            }
            Err(panic) => tracing::error!(%panic, "a private endpoint could not be remembered"),
        }
    }
}

/// Remembers the endpoint as waiting, if the cluster has a service and room, and does not know it yet.
fn note(
    store: &Store,
    cluster: ClusterId,
    id: EndpointId,
    now: OffsetDateTime,
) -> Result<bool, store::Error> {
    // Most knocks change nothing; those cost no writer's turn.
    if store.snapshot().get(&cluster).is_none_or(|entry| !may_wait(&entry.cluster, &id, now)) {
        return Ok(false);
    }
    store.edit(cluster, now, |cluster| Ok(remember(cluster, id, now)))
}

fn remember(cluster: &mut Cluster, id: EndpointId, now: OffsetDateTime) -> bool {
    if !may_wait(cluster, &id, now) {
        return false;
    }
    let endpoints = &mut cluster.network.endpoints;
    endpoints.retain(|known| !known.is_expired(now));
    let state = EndpointState::PendingAcceptance;
    endpoints.push(EndpointConnection { id, owner: None, state, created_at: now });
    true
}

/// Whether the endpoint is to be remembered as waiting. Those that waited too long make room.
fn may_wait(cluster: &Cluster, id: &EndpointId, now: OffsetDateTime) -> bool {
    let network = &cluster.network;
    let left = || network.endpoints.iter().filter(|known| !known.is_expired(now));
    let is_new = left().all(|known| known.id != *id);
    let waits = |known: &&EndpointConnection| known.state == EndpointState::PendingAcceptance;
    let is_certificate = |id: &EndpointId| matches!(id, EndpointId::Certificate(_));
    let certificates = left().filter(waits).filter(|known| is_certificate(&known.id)).count();
    cluster.has_endpoint_service()
        && is_new
        && left().count() < ENDPOINTS_MAX
        && left().filter(waits).count() < ENDPOINTS_WAITING_MAX
        && (!is_certificate(id) || certificates < CERTIFICATES_WAITING_MAX)
}

#[cfg(test)]
mod tests {
    use model::{ENDPOINT_WAIT_DAYS, Plan};
    use time::Duration;

    use super::*;
    use crate::testing::cluster;

    fn certificate(number: usize) -> EndpointId {
        EndpointId::Certificate(format!("{number:064x}"))
    }

    #[test]
    fn t56_certificates_that_anybody_can_make_leave_room_for_the_endpoints_of_clouds() {
        let (mut own, now) = (cluster(), OffsetDateTime::now_utc());
        let heard = (0..1_000).filter(|number| remember(&mut own, certificate(*number), now)).count();
        assert_eq!(heard, CERTIFICATES_WAITING_MAX);
        assert!(remember(&mut own, EndpointId::Gcp(1), now), "strangers took every place");
        let heard = (2..100).filter(|number| remember(&mut own, EndpointId::Gcp(*number), now)).count();
        assert_eq!(heard + 1 + CERTIFICATES_WAITING_MAX, ENDPOINTS_WAITING_MAX);
    }

    #[test]
    fn t56_who_waited_too_long_makes_room_and_may_knock_again() {
        let (mut own, now) = (cluster(), OffsetDateTime::now_utc());
        for number in 0..1_000 {
            remember(&mut own, EndpointId::Gcp(number), now);
        }
        let week = Duration::days(ENDPOINT_WAIT_DAYS);
        assert!(!remember(&mut own, EndpointId::Azure(1), now + week));
        let later = now + week + Duration::SECOND;
        assert!(remember(&mut own, EndpointId::Azure(1), later), "the expired keep everybody out");
        assert!(remember(&mut own, EndpointId::Gcp(0), later), "who has expired is never heard again");
        // What somebody decided stays, however old it is.
        own.network.endpoints[0].state = EndpointState::Rejected;
        assert!(!remember(&mut own, EndpointId::Azure(1), later + week + week));
        assert!(remember(&mut own, EndpointId::Gcp(9), later + week + week));
        assert_eq!(own.network.endpoints.len(), 2);
    }

    #[test]
    fn a_cluster_without_a_service_hears_nobody() {
        let (mut own, now) = (cluster(), OffsetDateTime::now_utc());
        own.plan = Plan::Dedicated;
        assert!(!remember(&mut own, EndpointId::Gcp(1), now));
        own.network.has_endpoint_service = true;
        assert!(remember(&mut own, EndpointId::Gcp(1), now) && !remember(&mut own, EndpointId::Gcp(1), now));
    }
}
