//! The customer's client authorities: whose certificates sign in. A change holds for new connections when it is
//! answered, so the status is never `PENDING`.

use api::{ClientAuthorities, ClientCa, ClientCaStatus, SetClientCa};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};

use crate::{Refusal, State, checks, input};

/// Shows the bundle.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<ClientCa>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    Ok(Json(shape(entry.cluster.sign_in.client_ca.as_deref())))
}

/// Shows what is in the bundle.
pub(crate) async fn describe(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<ClientAuthorities>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    let authorities = match &entry.cluster.sign_in.client_ca {
        Some(pem) => checks::client_ca(pem, &state.settings.ca_pem)?,
        None => Vec::new(),
    };
    Ok(Json(ClientAuthorities { authorities }))
}

/// Sets a bundle where there is none. Clients repeat a call whose answer was lost, so the same bundle is no conflict.
pub(crate) async fn set(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<ClientCa>, Refusal> {
    keep(&state, &id, &body, false).await
}

/// Sets or replaces the bundle.
pub(crate) async fn replace(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<ClientCa>, Refusal> {
    keep(&state, &id, &body, true).await
}

async fn keep(state: &State, id: &str, body: &Bytes, replaces: bool) -> Result<Json<ClientCa>, Refusal> {
    let pem = input::body::<SetClientCa>(body)?.x509_pem_cert;
    let id = input::cluster(&state.store, id)?.cluster.id;
    checks::client_ca(&pem, &state.settings.ca_pem)?;
    let answer = shape(Some(&pem));
    input::edit(state, id, move |cluster| {
        let kept = &mut cluster.sign_in.client_ca;
        if !replaces && kept.as_ref().is_some_and(|known| *known != pem) {
            return Err(Refusal::exists(
                "the cluster has client authorities already; replace them (chitin client-ca set), or delete them first",
            ));
        }
        *kept = Some(pem);
        Ok(())
    })
    .await?;
    Ok(Json(answer))
}

/// Takes the bundle away. Without one this is done already, and not an error: clients look at the status only.
pub(crate) async fn remove(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<ClientCa>, Refusal> {
    let id = input::cluster(&state.store, &id)?.cluster.id;
    input::edit(&state, id, |cluster| {
        cluster.sign_in.client_ca = None;
        Ok(())
    })
    .await?;
    Ok(Json(shape(None)))
}

fn shape(pem: Option<&str>) -> ClientCa {
    let status = if pem.is_some() { ClientCaStatus::IsSet } else { ClientCaStatus::NotSet };
    ClientCa { status, x509_pem_cert: pem.unwrap_or_default().to_owned() }
}
