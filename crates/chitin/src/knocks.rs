//! Private endpoints that wanted in and were not accepted: remembered in their cluster's document, so that somebody can
//! accept them.

use std::sync::Arc;

use model::{
    Clock, ClusterId, ENDPOINTS_MAX, ENDPOINTS_WAITING_MAX, EndpointConnection, EndpointId, EndpointState,
    Plan,
};
use store::Store;
use time::OffsetDateTime;
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
    // Most knocks are repeated; those cost no writer's turn.
    if store.snapshot().get(&cluster).is_none_or(|entry| entry.cluster.network.endpoint(&id).is_some()) {
        return Ok(false);
    }
    store.edit(cluster, now, |cluster| {
        let network = &mut cluster.network;
        let has_service = network.has_endpoint_service || cluster.plan == Plan::Serverless;
        let waiting =
            network.endpoints.iter().filter(|known| known.state == EndpointState::PendingAcceptance);
        let has_room = waiting.count() < ENDPOINTS_WAITING_MAX && network.endpoints.len() < ENDPOINTS_MAX;
        let is_new = network.endpoint(&id).is_none();
        if !(has_service && has_room && is_new) {
            return Ok(false);
        }
        let state = EndpointState::PendingAcceptance;
        network.endpoints.push(EndpointConnection { id, owner: None, state, created_at: now });
        Ok(true)
    })
}
