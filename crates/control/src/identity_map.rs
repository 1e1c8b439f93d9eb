//! Which SQL user a certificate's or a token's name means.

use api::SignInText;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};

use crate::{Refusal, State, checks, input};

/// Shows the map; empty where there is none.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<SignInText>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    Ok(Json(SignInText { text: entry.cluster.sign_in.identity_map.clone().unwrap_or_default() }))
}

/// Sets the map, or takes it away with an empty text. It holds for new connections.
pub(crate) async fn put(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<SignInText>, Refusal> {
    let mut request: SignInText = input::body(&body)?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    if request.text.trim().is_empty() {
        request.text.clear();
    } else {
        checks::identity_map(&request.text)?;
    }
    let kept = Some(request.text.clone()).filter(|text| !text.is_empty());
    input::edit(&state, id, move |cluster| {
        cluster.sign_in.identity_map = kept;
        Ok(())
    })
    .await?;
    Ok(Json(request))
}
