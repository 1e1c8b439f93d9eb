//! What clients send, read into types that cannot be wrong.

use std::sync::Arc;

use api::Code;
use axum::body::Bytes;
use model::{Cluster, ClusterId, DatabaseName, RoleName, Wish};
use serde::de::DeserializeOwned;
use store::{Entry, Snapshot, Store};
use time::OffsetDateTime;

use crate::{Refusal, State};

const EXPLANATION_CHARACTERS_MAX: usize = 200;

/// Whether a request repeats one that was made at this moment. What was made in the future, by a clock that was wrong, was not made
/// a moment ago.
pub(crate) fn is_repeated(made_at: OffsetDateTime, now: OffsetDateTime, within: time::Duration) -> bool {
    let age = now - made_at;
    !age.is_negative() && age <= within
}

/// Reads a body. What the reader says of wrong values is passed on only where it cannot repeat a secret.
pub(crate) fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        let is_harmless = ["unknown variant", "missing field"].iter().any(|start| text.starts_with(start));
        let explanation: String = if is_harmless {
            text.split(" at line ")
                .next()
                .unwrap_or_default()
                .chars()
                .take(EXPLANATION_CHARACTERS_MAX)
                .collect()
        } else if error.is_data() {
            "a value has the wrong type".to_owned()
        } else {
            "this is not JSON".to_owned()
        };
        let place = format!("proto: (line {}:{})", error.line(), error.column());
        Refusal::new(Code::InvalidArgument, format!("{place}: {explanation}"))
    })
}

/// Reads a cluster's id. What is none cannot be found.
pub(crate) fn cluster_id(text: &str) -> Result<ClusterId, Refusal> {
    text.parse().map_err(|error| Refusal::invalid(format_args!("{error}")))
}

/// The cluster, unless it is gone or on the way out.
pub(crate) fn cluster(store: &Store, id: &str) -> Result<Arc<Entry>, Refusal> {
    let id = cluster_id(id)?;
    let entry = store.snapshot().get(&id).cloned().ok_or_else(|| Refusal::no_cluster(id))?;
    if entry.cluster.wish == Wish::Deleted {
        return Err(Refusal::no_cluster(id));
    }
    Ok(entry)
}

/// The cluster, once it is made.
pub(crate) fn made(store: &Store, id: &str) -> Result<Arc<Entry>, Refusal> {
    let entry = cluster(store, id)?;
    match entry.cluster.state(&entry.seen) {
        model::ClusterState::Created | model::ClusterState::Locked => Ok(entry),
        model::ClusterState::Creating => Err(Refusal::wrong_state(
            "the cluster is still being created; ask again when its state is CREATED",
        )),
        model::ClusterState::CreationFailed => {
            Err(Refusal::wrong_state("the cluster could not be created; delete it and create another"))
        }
        model::ClusterState::Deleted => Err(Refusal::no_cluster(entry.cluster.id)),
    }
}

/// A user's name that is not one of ours.
pub(crate) fn role(text: &str) -> Result<RoleName, Refusal> {
    let name: RoleName = text.parse().map_err(|error| Refusal::invalid(format_args!("{error}")))?;
    if name.is_reserved() {
        return Err(Refusal::invalid(format_args!("the user name '{name}' is reserved; choose another")));
    }
    Ok(name)
}

/// A database's name that is not one of ours.
pub(crate) fn database(text: &str) -> Result<DatabaseName, Refusal> {
    let name: DatabaseName = text.parse().map_err(|error| Refusal::invalid(format_args!("{error}")))?;
    if name.is_reserved() {
        return Err(Refusal::invalid(format_args!("the database name '{name}' is reserved; choose another")));
    }
    Ok(name)
}

/// The time of day to the microsecond, as answers write it, so that what is kept is what is answered.
pub(crate) fn now(state: &State) -> OffsetDateTime {
    let now = state.clock.now();
    now.replace_nanosecond(now.microsecond() * 1_000).unwrap_or(now)
}

/// Changes a cluster's document, off the threads that serve requests: the file is synced.
pub(crate) async fn edit<T: Send + 'static>(
    state: &State,
    id: ClusterId,
    change: impl FnOnce(&mut Cluster) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    edit_among(state, id, |cluster, _| change(cluster)).await
}

/// As [`edit`], where the change depends on other clusters: nothing changes between the look at them and the write.
pub(crate) async fn edit_among<T: Send + 'static>(
    state: &State,
    id: ClusterId,
    change: impl FnOnce(&mut Cluster, &Snapshot) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let (store, now) = (state.store.clone(), state.clock.now());
    let work = move || {
        store.edit_among(id, now, |cluster, all| {
            // A deletion may have been wished for since the caller looked.
            if cluster.wish == Wish::Deleted {
                return Err(Refusal::no_cluster(id));
            }
            change(cluster, all)
        })
    };
    tokio::task::spawn_blocking(work).await.map_err(Refusal::internal)?
}
