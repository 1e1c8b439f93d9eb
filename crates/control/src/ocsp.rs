//! How strictly the revocation of client certificates is asked for.

use std::ops::RangeInclusive;

use api::Ocsp;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};

use crate::checks::{self, Plaintext};
use crate::{Refusal, State, input};

const TIMEOUT_MS: RangeInclusive<u32> = 100..=10_000;

/// Shows it.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<Ocsp>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    Ok(Json(Ocsp::from(&entry.cluster.sign_in.ocsp)))
}

/// Replaces all of it. It holds for new connections.
pub(crate) async fn put(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Ocsp>, Refusal> {
    let request: Ocsp = input::body(&body)?;
    if !TIMEOUT_MS.contains(&request.timeout_ms) {
        return Err(Refusal::invalid(format_args!(
            "timeout_ms is {} to {} milliseconds",
            TIMEOUT_MS.start(),
            TIMEOUT_MS.end()
        )));
    }
    let responder = request.responder_url.filter(|url| !url.is_empty());
    if let Some(url) = &responder {
        // Answers are signed by themselves (RFC 6960), so most responders speak plain HTTP.
        checks::url("responder_url", url, Plaintext::Anywhere)?;
    }
    let wanted = model::Ocsp {
        mode: request.mode,
        responder,
        accept_without_responder: request.accept_without_responder,
        timeout_ms: request.timeout_ms,
    };
    let answer = Ocsp::from(&wanted);
    let id = input::cluster(&state.store, &id)?.cluster.id;
    input::edit(&state, id, move |cluster| {
        cluster.sign_in.ocsp = wanted;
        Ok(())
    })
    .await?;
    Ok(Json(answer))
}
