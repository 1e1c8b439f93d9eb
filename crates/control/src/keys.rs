//! What encrypts clusters at rest, and the cloud's root key: shown, given back, made anew.

use api::{ClusterKeyLine, ClusterKeys, CmekKeyInfo, KeyList, RootKey};
use axum::Json;
use axum::extract::{Path, State as Shared};
use model::{ClusterId, Wish};
use store::Entry;

use crate::{Refusal, State, alerts, input};

/// Lists the root key, and what was last seen of every cluster's key.
pub(crate) async fn list(Shared(state): Shared<State>) -> Json<KeyList> {
    let snapshot = state.store.snapshot();
    let mut clusters: Vec<ClusterKeyLine> = snapshot
        .iter()
        .filter(|entry| entry.cluster.wish != Wish::Deleted)
        .map(|entry| line(entry))
        .collect();
    clusters.sort_by(|one, other| one.name.cmp(&other.name));
    Json(KeyList { root_key: state.administration.root_key(), clusters })
}

fn line(entry: &Entry) -> ClusterKeyLine {
    let (cluster, seen) = (&entry.cluster, &entry.seen.keys);
    let spec = cluster.keys.spec();
    let known = seen.keys.iter().find(|key| key.spec == spec);
    ClusterKeyLine {
        id: cluster.id,
        name: cluster.name.to_string(),
        status: cluster.keys.status(seen),
        key_spec: (&spec).into(),
        key_version: known.map(|key| key.version.clone()).unwrap_or_default(),
        since: cluster.keys.cmek_since,
        is_data_key_rotating: cluster.keys.data_keys > seen.data_keys,
        next_step: alerts::worst(entry).map(|alert| alert.next_step),
    }
}

/// Shows what encrypts a cluster, as disk and kernel say.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<ClusterKeys>, Refusal> {
    let id = input::made(&state.store, &id)?.cluster.id;
    describe(&state, id).await
}

/// Gives a revoked key back. One that is not revoked is there already.
pub(crate) async fn restore(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<ClusterKeys>, Refusal> {
    let id = input::made(&state.store, &id)?.cluster.id;
    input::edit(&state, id, |cluster| {
        cluster.keys.is_revoked = false;
        Ok(())
    })
    .await?;
    describe(&state, id).await
}

/// Wishes for another data key.
pub(crate) async fn rotate_data_key(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<ClusterKeys>, Refusal> {
    let id = input::made(&state.store, &id)?.cluster.id;
    input::edit_among(&state, id, move |cluster, all| {
        let seen = &all.get(&id).ok_or_else(|| Refusal::no_cluster(id))?.seen.keys;
        if let Some(reason) = seen.hindrance(&cluster.keys) {
            return Err(Refusal::wrong_state(format!(
                "the volume cannot be read, so it cannot be encrypted anew: {reason}; give the key back first: \
                 chitin key restore {}",
                cluster.name
            )));
        }
        if cluster.keys.data_keys > seen.data_keys {
            return Err(Refusal::wrong_state(format!(
                "the volume is being encrypted anew already; look how far it is: chitin key list {}",
                cluster.name
            )));
        }
        cluster.keys.data_keys += 1;
        Ok(())
    })
    .await?;
    describe(&state, id).await
}

/// Describes the root key.
pub(crate) async fn root(Shared(state): Shared<State>) -> Json<RootKey> {
    Json(state.administration.root_key())
}

/// Makes a new version of the root key.
pub(crate) async fn rotate_root(Shared(state): Shared<State>) -> Result<Json<RootKey>, Refusal> {
    state.administration.rotate_root_key().await.map(Json)
}

async fn describe(state: &State, id: ClusterId) -> Result<Json<ClusterKeys>, Refusal> {
    let facts = state.administration.key_facts(id).await?;
    let entry = input::cluster(&state.store, &id.to_string())?;
    let (cluster, seen) = (&entry.cluster, &entry.seen.keys);
    let keys: Vec<CmekKeyInfo> = cluster.keys.keys(seen).into_iter().map(Into::into).collect();
    Ok(Json(ClusterKeys {
        id,
        name: cluster.name.to_string(),
        status: cluster.keys.status(seen),
        key_spec: (&cluster.keys.spec()).into(),
        keys,
        facts,
        data_key_since: seen.data_key_since,
        is_data_key_rotating: cluster.keys.data_keys > seen.data_keys,
        is_revoked: cluster.keys.is_revoked,
        is_locked_away: seen.is_locked_away,
        denied: seen.denied.clone(),
        outage: seen.outage.as_ref().map(Into::into),
        failure: cluster.keys.failure(seen).cloned(),
        next_step: alerts::worst(&entry).map(|alert| alert.next_step),
    }))
}
