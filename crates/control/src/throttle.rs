//! Failed sign-ins: shown and forgotten.

use std::cmp::Reverse;
use std::net::IpAddr;

use api::{Cleared, Throttle, ThrottleFilter};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State as Shared;
use model::{ClusterId, ClusterName};
use store::Snapshot;

use crate::{ClearThrottle, Refusal, State, input};

const LINES_MAX: usize = 1_000;
/// Longest name to look for; clients cannot have said a longer one.
const NAME_BYTES_MAX: usize = 256;

/// Lists those with the most failures.
pub(crate) async fn list(Shared(state): Shared<State>) -> Json<Throttle> {
    let mut lines = state.administration.throttle();
    let total = lines.len();
    // Ties in an order of their own, so that two looks can be compared.
    lines.sort_by(|one, other| {
        let names =
            |line: &api::ThrottleLine| (line.cluster.clone(), line.user.clone(), line.address.clone());
        Reverse(one.failures).cmp(&Reverse(other.failures)).then_with(|| names(one).cmp(&names(other)))
    });
    lines.truncate(LINES_MAX);
    Json(Throttle { lines, total })
}

/// Forgets what the filter names; without a filter, everything.
pub(crate) async fn clear(Shared(state): Shared<State>, body: Bytes) -> Result<Json<Cleared>, Refusal> {
    let request: ThrottleFilter = input::body(&body)?;
    let which = ClearThrottle {
        cluster: bounded(request.cluster)?.map(|text| handle(&state.store.snapshot(), text)),
        user: bounded(request.user)?,
        address: request.address.as_deref().map(address).transpose()?,
    };
    Ok(Json(Cleared { cleared: state.administration.clear_throttle(&which) }))
}

/// An empty text would clear what nobody meant, so it is no filter and no absence.
fn bounded(text: Option<String>) -> Result<Option<String>, Refusal> {
    if text.as_ref().is_some_and(|text| text.is_empty() || text.len() > NAME_BYTES_MAX) {
        return Err(Refusal::invalid(format_args!(
            "`cluster` and `user` have 1 to {NAME_BYTES_MAX} bytes; leave out what shall not be looked at"
        )));
    }
    Ok(text)
}

fn address(text: &str) -> Result<IpAddr, Refusal> {
    let address: IpAddr =
        text.parse().map_err(|_| Refusal::invalid("`address` is an IP address, for instance 203.0.113.7"))?;
    Ok(model::canonical(address))
}

/// The handle that clients say. Failures are counted for clusters that do not exist too, so a text that names none is
/// looked for as it is.
fn handle(snapshot: &Snapshot, text: String) -> String {
    let by_id = text.parse::<ClusterId>().ok().and_then(|id| snapshot.get(&id).cloned());
    let found = by_id.or_else(|| snapshot.by_name(&text.parse::<ClusterName>().ok()?).cloned());
    found.map_or(text, |entry| entry.cluster.handle().to_string())
}
