//! What holds for every cluster, and what the cloud sees of whoever asks.

use api::{Caller, Organization};
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::{Extension, Json};
use model::Origin;

use crate::{Refusal, State, input};

/// Shows what holds for every cluster.
pub(crate) async fn show(Shared(state): Shared<State>) -> Json<Organization> {
    let organization = state.store.snapshot().organization();
    Json(Organization { allowlist_starts_closed: organization.allowlist_starts_closed })
}

/// Changes it, for clusters that are made from now on.
pub(crate) async fn put(Shared(state): Shared<State>, body: Bytes) -> Result<Json<Organization>, Refusal> {
    let wanted: Organization = input::body(&body)?;
    let kept = model::Organization { allowlist_starts_closed: wanted.allowlist_starts_closed };
    let store = state.store.clone();
    tokio::task::spawn_blocking(move || store.set_organization(kept)).await.map_err(Refusal::internal)??;
    Ok(Json(wanted))
}

/// Shows the caller's address, for `--current`.
pub(crate) async fn whoami(origin: Option<Extension<Origin>>) -> Result<Json<Caller>, Refusal> {
    let Extension(origin) = origin.ok_or_else(|| Refusal::internal("the caller's address is not known"))?;
    Ok(Json(Caller { address: origin.address }))
}
