//! Private endpoints that wanted in and were not accepted: remembered in their cluster's document, so that somebody can
//! accept them.

use std::sync::Arc;

use model::{
    Clock, Cluster, ClusterId, ENDPOINT_WAIT_DAYS, ENDPOINTS_MAX, ENDPOINTS_WAITING_MAX, EndpointConnection,
    EndpointId, EndpointState, Plan,
};
use store::Store;
use time::{Duration, OffsetDateTime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Knocks that wait to be written down; further ones are forgotten, and whoever knocks again is heard again.
const WAITING_MAX: usize = 64;

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
    // Most knocks change nothing, and a stranger may send many: those cost no writer's turn.
    let is_in_vain = store
        .snapshot()
        .get(&cluster)
        .is_none_or(|entry| !remember(&mut entry.cluster.clone(), id.clone(), now));
    if is_in_vain {
        return Ok(false);
    }
    store.edit(cluster, now, |cluster| Ok(remember(cluster, id, now)))
}

fn remember(cluster: &mut Cluster, id: EndpointId, now: OffsetDateTime) -> bool {
    let network = &mut cluster.network;
    let has_service = network.has_endpoint_service || cluster.plan == Plan::Serverless;
    if !has_service || network.endpoint(&id).is_some() {
        return false;
    }
    let is_pending = |known: &EndpointConnection| known.state == EndpointState::PendingAcceptance;
    let is_expired = |known: &EndpointConnection| {
        is_pending(known) && now - known.created_at > Duration::days(ENDPOINT_WAIT_DAYS)
    };
    // One that is expired takes no place: or whoever once filled the list would keep it full.
    let waiting = network.endpoints.iter().filter(|known| is_pending(known) && !is_expired(known)).count();
    if waiting >= ENDPOINTS_WAITING_MAX {
        return false;
    }
    if network.endpoints.len() >= ENDPOINTS_MAX {
        let Some(expired) = network.endpoints.iter().position(is_expired) else {
            return false;
        };
        network.endpoints.remove(expired);
    }
    let state = EndpointState::PendingAcceptance;
    network.endpoints.push(EndpointConnection { id, owner: None, state, created_at: now });
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::cluster;

    fn knock(cluster: &mut Cluster, number: u64, now: OffsetDateTime) -> bool {
        remember(cluster, EndpointId::Gcp(number), now)
    }

    #[test]
    fn there_is_a_most_of_endpoints_that_wait_and_none_is_remembered_twice() {
        let (mut own, now) = (cluster(), OffsetDateTime::now_utc());
        assert!(knock(&mut own, 0, now) && !knock(&mut own, 0, now));
        let remembered = (0..100).filter(|number| knock(&mut own, *number, now)).count();
        assert_eq!(
            (remembered + 1, own.network.endpoints.len()),
            (ENDPOINTS_WAITING_MAX, ENDPOINTS_WAITING_MAX)
        );
        let mut closed = Cluster { plan: Plan::Dedicated, ..cluster() };
        assert!(!knock(&mut closed, 0, now), "it has no service");
        closed.network.has_endpoint_service = true;
        assert!(knock(&mut closed, 0, now));
    }

    #[test]
    fn those_that_expired_make_room() {
        let (mut own, begun) = (cluster(), OffsetDateTime::now_utc());
        let most = ENDPOINTS_MAX as u64;
        let mut now = begun;
        for number in 0..most {
            if number % ENDPOINTS_WAITING_MAX as u64 == 0 {
                now += Duration::days(ENDPOINT_WAIT_DAYS + 1);
            }
            assert!(knock(&mut own, number, now), "{number}");
        }
        assert!(!knock(&mut own, most, now), "all places of those that wait are taken");
        now += Duration::days(ENDPOINT_WAIT_DAYS + 1);
        assert!(knock(&mut own, most, now));
        assert_eq!(own.network.endpoints.len(), ENDPOINTS_MAX);
        assert!(own.network.endpoint(&EndpointId::Gcp(0)).is_none(), "the oldest went");
        // Whoever was accepted or rejected stays, however long ago.
        for known in &mut own.network.endpoints {
            known.state = EndpointState::Rejected;
        }
        assert!(!knock(&mut own, most + 1, now + Duration::days(400)));
    }
}
