//! Lists of revoked client certificates, for those whose authority has no responder.

use api::{Crls, SetCrls};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};

use crate::{Refusal, State, checks, input};

/// Shows the lists.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<Crls>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    match &entry.cluster.sign_in.crls {
        Some(pem) => Ok(Json(Crls { lists: checks::crls(pem)?, pem: pem.clone() })),
        None => Ok(Json(Crls::default())),
    }
}

/// Sets or replaces the lists. They hold for new connections.
pub(crate) async fn put(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Crls>, Refusal> {
    let pem = input::body::<SetCrls>(&body)?.pem;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let lists = checks::crls(&pem)?;
    let kept = pem.clone();
    input::edit(&state, id, move |cluster| {
        cluster.sign_in.crls = Some(kept);
        Ok(())
    })
    .await?;
    Ok(Json(Crls { pem, lists }))
}

/// Takes the lists away.
pub(crate) async fn remove(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<Crls>, Refusal> {
    let id = input::cluster(&state.store, &id)?.cluster.id;
    input::edit(&state, id, |cluster| {
        cluster.sign_in.crls = None;
        Ok(())
    })
    .await?;
    Ok(Json(Crls::default()))
}
