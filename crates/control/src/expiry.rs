//! Clusters that are thrown away: how long they exist without somebody who wants them.

use api::{Expiry, PutExpiry};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use time::{Duration, OffsetDateTime};

use crate::{Refusal, State, input};

/// Long enough for whoever keeps it alive to be late.
const SECONDS_MIN: u32 = 30;
/// Thirty days.
const SECONDS_MAX: u32 = 2_592_000;

/// Lets a cluster exist for so long from now on; what is absent takes the end away.
pub(crate) async fn put(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Expiry>, Refusal> {
    let wanted: PutExpiry = input::body(&body)?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let expires_at = end(wanted.expires_in_seconds, input::now(&state))?;
    input::edit(&state, id, move |cluster| {
        cluster.asked.expires_at = expires_at;
        Ok(())
    })
    .await?;
    Ok(Json(Expiry { expires_at }))
}

/// The moment so many seconds from now.
pub(crate) fn end(seconds: Option<u32>, now: OffsetDateTime) -> Result<Option<OffsetDateTime>, Refusal> {
    match seconds {
        Some(wrong) if !(SECONDS_MIN..=SECONDS_MAX).contains(&wrong) => Err(Refusal::invalid(
            "expires_in_seconds is 30 to 2592000; leave it out for a cluster that stays until it is deleted",
        )),
        seconds => Ok(seconds.map(|seconds| now + Duration::seconds(seconds.into()))),
    }
}
