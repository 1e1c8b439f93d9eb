//! Lists of revoked client certificates, for those whose authority has no responder.

use api::{Crls, SetCrls};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use model::SignIn;

use crate::{Refusal, State, checks, input};

/// Shows the lists.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<Crls>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    shown(&entry.cluster.sign_in).map(Json)
}

fn shown(sign_in: &SignIn) -> Result<Crls, Refusal> {
    let Some(pem) = &sign_in.crls else { return Ok(Crls::default()) };
    let lists = checks::crls(pem)?;
    let authorities = match &sign_in.client_ca {
        Some(pem) => checks::authorities(pem),
        None => Vec::new(),
    };
    let is_without = |name: &String| lists.iter().all(|list| list.issuer != *name);
    let authorities_without_list = authorities.into_iter().filter(is_without).collect();
    let accept_without_list = sign_in.accept_without_list;
    Ok(Crls { pem: pem.clone(), lists, accept_without_list, authorities_without_list })
}

/// Sets or replaces the lists. They hold for new connections.
pub(crate) async fn put(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Crls>, Refusal> {
    let SetCrls { pem, accept_without_list } = input::body(&body)?;
    let entry = input::cluster(&state.store, &id)?;
    let id = entry.cluster.id;
    let mut sign_in = entry.cluster.sign_in.clone();
    (sign_in.crls, sign_in.accept_without_list) = (Some(pem.clone()), accept_without_list);
    let answer = shown(&sign_in)?;
    input::edit(&state, id, move |cluster| {
        cluster.sign_in.crls = Some(pem);
        cluster.sign_in.accept_without_list = accept_without_list;
        Ok(())
    })
    .await?;
    Ok(Json(answer))
}

/// Takes the lists away.
pub(crate) async fn remove(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<Crls>, Refusal> {
    let id = input::cluster(&state.store, &id)?.cluster.id;
    input::edit(&state, id, |cluster| {
        cluster.sign_in.crls = None;
        cluster.sign_in.accept_without_list = false;
        Ok(())
    })
    .await?;
    Ok(Json(Crls::default()))
}
