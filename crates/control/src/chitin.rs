//! What the Cloud API has no words for.

use api::{Authority, ClusterDetail, ClusterPhase, ClusterPhases, PageQuery, Proof, Status};
use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use model::{AddressRange, ClusterId, Phase};
use serde::Deserialize;

use crate::page::Page;
use crate::{Refusal, State, alerts, input, versions};

/// Shows the cloud.
pub(crate) async fn status(Shared(state): Shared<State>) -> Json<Status> {
    let snapshot = state.store.snapshot();
    let count = |phase: &Phase| snapshot.iter().filter(|entry| entry.seen.phase == *phase).count();
    let (settings, machine) = (&state.settings, state.administration.machine());
    let mut warnings = Vec::new();
    if machine.is_unencrypted_allowed {
        warnings
            .push("--allow-unencrypted is set: new clusters may lie on the disk as plain text".to_owned());
    }
    let plain = snapshot
        .iter()
        .filter(|entry| entry.seen.encryption == Some(model::Encryption::None))
        .map(|entry| entry.cluster.name.as_str());
    for name in plain.take(20) {
        warnings.push(format!("cluster {name} is not encrypted"));
    }
    warnings.extend(versions::updates(&snapshot, &machine));
    let mut alerts = alerts::all(&snapshot, state.store.troubles(), &machine);
    if let Some(disk) = machine.disk.as_ref().filter(|disk| disk.is_used_up) {
        alerts.insert(0, alerts::reserve_reached(disk));
    }
    Json(Status {
        version: settings.version.clone(),
        sql: settings.sql.clone(),
        http: settings.http.clone(),
        clusters: snapshot.len(),
        running: count(&Phase::Running),
        asleep: count(&Phase::Asleep),
        broken: snapshot.iter().filter(|entry| matches!(entry.seen.phase, Phase::Broken { .. })).count(),
        machine,
        warnings,
        alerts,
    })
}

/// Shows the root certificate.
pub(crate) async fn authority(Shared(state): Shared<State>) -> Json<Authority> {
    let path = state.settings.ca_path.clone().unwrap_or_default();
    Json(Authority { pem: state.settings.ca_pem.clone(), path })
}

/// Shows the OpenAPI document.
pub(crate) async fn openapi(Shared(state): Shared<State>) -> Json<serde_json::Value> {
    Json(api::openapi::document(&state.settings.version))
}

/// Lists where the clusters stand, by id.
pub(crate) async fn phases(
    Shared(state): Shared<State>,
    Query(query): Query<PageQuery>,
) -> Result<Json<ClusterPhases>, Refusal> {
    let page = Page::read("cluster phases", &query)?;
    let snapshot = state.store.snapshot();
    let phases = snapshot.iter().map(|entry| {
        let id = entry.cluster.id;
        (id.to_string(), ClusterPhase { id, phase: entry.seen.phase.clone() })
    });
    let (clusters, pagination) = page.cut(phases);
    Ok(Json(ClusterPhases { clusters, pagination }))
}

/// Shows what the Cloud API does not say of a cluster.
pub(crate) async fn detail(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<ClusterDetail>, Refusal> {
    let id = input::cluster(&state.store, &id)?.cluster.id;
    describe(&state, id).await
}

/// How a cluster is put to sleep.
#[derive(Debug, Deserialize)]
pub(crate) struct SleepQuery {
    /// Whether also where nobody could sign in to it afterwards.
    #[serde(default)]
    force: bool,
}

/// Puts a cluster to sleep.
pub(crate) async fn sleep(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    Query(query): Query<SleepQuery>,
) -> Result<Json<ClusterDetail>, Refusal> {
    let id = input::made(&state.store, &id)?.cluster.id;
    state.administration.sleep(id, query.force).await?;
    describe(&state, id).await
}

/// Wakes a cluster.
pub(crate) async fn wake(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<ClusterDetail>, Refusal> {
    let id = input::made(&state.store, &id)?.cluster.id;
    state.administration.wake(id).await?;
    describe(&state, id).await
}

/// Accepts the volume as it is, though the cloud has seen a newer one.
pub(crate) async fn accept_restored(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<ClusterDetail>, Refusal> {
    let id = input::made(&state.store, &id)?.cluster.id;
    state.administration.accept_restored(id).await?;
    describe(&state, id).await
}

/// Measures what can be proven from inside.
pub(crate) async fn prove(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<Proof>, Refusal> {
    let id = input::made(&state.store, &id)?.cluster.id;
    Ok(Json(Proof { rows: state.administration.prove(id).await? }))
}

async fn describe(state: &State, id: ClusterId) -> Result<Json<ClusterDetail>, Refusal> {
    let facts = state.administration.facts(id).await?;
    let entry = input::cluster(&state.store, &id.to_string())?;
    let (cluster, seen) = (&entry.cluster, &entry.seen);
    let everybody = [AddressRange::EVERY_IPV4, AddressRange::EVERY_IPV6];
    Ok(Json(ClusterDetail {
        resources: cluster.resources(),
        connections_max: cluster.connections_max(),
        id,
        name: cluster.name.to_string(),
        handle: cluster.handle().to_string(),
        plan: cluster.plan,
        phase: seen.phase.clone(),
        plaintext_cancels: !cluster.network.refuses_plaintext_cancels,
        encryption: seen.encryption,
        engine_version: seen.engine_version.clone(),
        allowlist_entries: cluster.allowlist.len(),
        is_open_to_every_address: cluster
            .allowlist
            .iter()
            .any(|line| line.sql && everybody.contains(&line.range)),
        revision: cluster.revision,
        created_at: cluster.created_at,
        expires_at: cluster.asked.expires_at,
        storage_limit_bytes: cluster.storage().bytes(),
        facts,
    }))
}
