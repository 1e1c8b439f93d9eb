//! Clusters: shown, listed, deleted.

use std::time::Duration;

use api::{Clusters, PageQuery, SortBy};
use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use model::{Cluster, ClusterId, ClusterState, Observation, Phase, Wish};
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::page::{Page, given};
use crate::{Refusal, State, input, shape};

/// A deletion that takes longer goes on without its client.
const DELETE_MAX: Duration = Duration::from_secs(60);

/// Lists clusters that exist, and with `show_inactive` those that are gone too.
pub(crate) async fn list(
    Shared(state): Shared<State>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Clusters>, Refusal> {
    let shows_inactive = match given(query.show_inactive.as_ref()) {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Refusal::invalid("show_inactive is true or false")),
    };
    // A page of the active list must not be continued in the other.
    let page = Page::read(if shows_inactive { "all-clusters" } else { "clusters" }, &query)?;
    let snapshot = state.store.snapshot();
    let gone = gone();
    let present = snapshot.iter().map(|entry| (&entry.cluster, &entry.seen));
    let deleted = snapshot.deleted().filter(|_| shows_inactive).map(|cluster| (&**cluster, &gone));
    let is_shown = |cluster: &Cluster, seen: &Observation| {
        shows_inactive || !matches!(cluster.state(seen), ClusterState::Deleted | ClusterState::CreationFailed)
    };
    let keyed =
        present.chain(deleted).filter(|(cluster, seen)| is_shown(cluster, seen)).map(|(cluster, seen)| {
            let first = match page.sort_by {
                SortBy::Name => cluster.name.to_string(),
                SortBy::CreatedAt => sortable(Some(cluster.created_at)),
                SortBy::DeletedAt => sortable(cluster.deleted_at),
            };
            (format!("{first}\n{}", cluster.id), (cluster, seen))
        });
    let (shown, pagination) = page.cut(keyed);
    let clusters =
        shown.into_iter().map(|(cluster, seen)| shape::cluster(cluster, seen, &state.settings)).collect();
    Ok(Json(Clusters { clusters, pagination }))
}

/// Shows a cluster; one that is gone too, for as long as its document is kept.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<api::Cluster>, Refusal> {
    find(&state, input::cluster_id(&id)?).map(Json)
}

/// Destroys a cluster and waits for it.
pub(crate) async fn destroy(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<api::Cluster>, Refusal> {
    let id = input::cluster_id(&id)?;
    let mut changes = state.store.changes();
    let entry = state.store.snapshot().get(&id).cloned().ok_or_else(|| Refusal::no_cluster(id))?;
    // Asked for once more, a deletion is waited for once more.
    if entry.cluster.wish != Wish::Deleted {
        input::edit(&state, id, |cluster| {
            // Looked at where it is written, so that protection set a moment ago holds.
            if cluster.is_delete_protected {
                return Err(Refusal::wrong_state(
                    "delete protection is enabled for this cluster; set delete_protection to DISABLED first",
                ));
            }
            cluster.wish = Wish::Deleted;
            Ok(())
        })
        .await?;
    }
    let is_gone = || state.store.snapshot().get(&id).is_none();
    let waited = timeout(DELETE_MAX, async {
        while !is_gone() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    });
    if waited.await.is_err() || !is_gone() {
        return Err(Refusal::busy(
            "the deletion was begun and goes on by itself; ask for the cluster's state later",
        ));
    }
    find(&state, id).map(Json)
}

/// The cluster in an answer, present or gone.
pub(crate) fn find(state: &State, id: ClusterId) -> Result<api::Cluster, Refusal> {
    let snapshot = state.store.snapshot();
    if let Some(entry) = snapshot.get(&id) {
        return Ok(shape::cluster(&entry.cluster, &entry.seen, &state.settings));
    }
    let cluster = snapshot.deleted_by_id(&id).ok_or_else(|| Refusal::no_cluster(id))?;
    Ok(shape::cluster(cluster, &gone(), &state.settings))
}

fn gone() -> Observation {
    Observation { phase: Phase::Deleting, ..Observation::nothing_yet() }
}

fn sortable(instant: Option<OffsetDateTime>) -> String {
    let microseconds = instant.map_or(0, |instant| instant.unix_timestamp_nanos() / 1_000);
    format!("{microseconds:020}")
}
