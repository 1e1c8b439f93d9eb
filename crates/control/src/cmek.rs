//! Customer-managed keys in the Cloud API's words. What is asked for is written down as a wish; the reconciler wraps,
//! stops and starts. One machine serves every region of a cluster with one volume, so all regions have one key.

use std::collections::BTreeMap;

use api::{CmekAction, CmekClusterInfo, CmekKeySpec, CmekRegionSpec, CmekSpecification, UpdateCmekStatus};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use model::{Cluster, ClusterId, ClusterName, CmekStatus, Encryption, KeyServiceName, KeySpec, KeyType};
use store::Snapshot;
use time::OffsetDateTime;

use crate::{Refusal, State, checks, input};

/// Most services that a refusal lists.
const CANDIDATES_MAX: usize = 10;

/// Shows where the key stands.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<CmekClusterInfo>, Refusal> {
    let id = input::cluster(&state.store, &id)?.cluster.id;
    info(&state, id)
}

/// Wishes for a key where there is none. Clients repeat a call whose answer was lost, so the same key is no conflict.
pub(crate) async fn enable(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<CmekClusterInfo>, Refusal> {
    let specs = region_specs(&body)?;
    let entry = input::made(&state.store, &id)?;
    let (id, encryption) = (entry.cluster.id, entry.seen.encryption);
    let now = input::now(&state);
    input::edit_among(&state, id, move |cluster, all| {
        not_revoked(cluster)?;
        encrypted_by_us(encryption, &cluster.name)?;
        let asked = one_key(&cluster.regions, None, &specs)?;
        let current = cluster.keys.cmek.clone().filter(KeySpec::is_customers);
        let spec = resolve(&asked, current.as_ref(), all)?;
        match current {
            Some(current) if current == spec => Ok(()),
            Some(current) => Err(Refusal::exists(format!(
                "the cluster has a key already, {current}; to go over to another, change that: chitin key rotate {} --uri URI",
                cluster.name
            ))),
            None => {
                demand(cluster, spec, now);
                Ok(())
            }
        }
    })
    .await?;
    info(&state, id)
}

/// Wishes for another key, or for the newest version of the same.
pub(crate) async fn update(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<CmekClusterInfo>, Refusal> {
    let specs = region_specs(&body)?;
    let id = input::made(&state.store, &id)?.cluster.id;
    let now = input::now(&state);
    input::edit_among(&state, id, move |cluster, all| {
        not_revoked(cluster)?;
        let current = cluster.keys.cmek.clone();
        let asked = one_key(&cluster.regions, current.as_ref(), &specs)?;
        let spec = resolve(&asked, current.as_ref(), all)?;
        demand(cluster, spec, now);
        Ok(())
    })
    .await?;
    info(&state, id)
}

/// Revokes the key. Whoever is in a hurry says it twice, so the second time is no error.
pub(crate) async fn set_status(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<CmekClusterInfo>, Refusal> {
    let UpdateCmekStatus { action } = input::body(&body)?;
    let id = input::made(&state.store, &id)?.cluster.id;
    input::edit(&state, id, move |cluster| {
        if !cluster.keys.spec().is_customers() {
            return Err(Refusal::wrong_state(
                "the cluster has no key of the customer's that could be revoked; give it one first: chitin key enable",
            ));
        }
        match action {
            CmekAction::Revoke => cluster.keys.is_revoked = true,
        }
        Ok(())
    })
    .await?;
    info(&state, id)
}

/// Regions that are added get the key that the cluster has: there is no other.
pub(crate) fn of_added_regions(cluster: &Cluster, specs: serde_json::Value) -> Result<(), Refusal> {
    let wrong = || Refusal::invalid("cmek_region_specs is a list of regions, each with its key_spec");
    let specs: Vec<CmekRegionSpec> = serde_json::from_value(specs).map_err(|_| wrong())?;
    let current = CmekKeySpec::from(&cluster.keys.spec());
    let is_it = |asked: &CmekKeySpec| {
        (asked.kind, &asked.uri, &asked.auth_principal)
            == (current.kind, &current.uri, &current.auth_principal)
    };
    if !specs.iter().all(|spec| is_it(&spec.key_spec)) {
        return Err(Refusal::invalid(format_args!(
            "one volume serves every region, so a region that is added has the cluster's key, {current}; change \
             that key first: chitin key rotate"
        )));
    }
    Ok(())
}

fn region_specs(body: &Bytes) -> Result<Vec<CmekRegionSpec>, Refusal> {
    let CmekSpecification { region_specs } = input::body(body)?;
    if region_specs.is_empty() {
        return Err(Refusal::invalid("region_specs is empty; name the regions and their key"));
    }
    for spec in &region_specs {
        checks::key(spec.key_spec.kind, &spec.key_spec.uri, &spec.key_spec.auth_principal)?;
    }
    Ok(region_specs)
}

/// A key that encrypts nothing would promise what does not hold.
fn encrypted_by_us(encryption: Option<Encryption>, name: &ClusterName) -> Result<(), Refusal> {
    match encryption {
        None
        | Some(Encryption::Fscrypt | Encryption::FscryptImage | Encryption::Luks2 | Encryption::Gocryptfs) => {
            Ok(())
        }
        Some(kind @ (Encryption::None | Encryption::Attested)) => Err(Refusal::wrong_state(format!(
            "the files of {name} are not encrypted by Chitin ({}), so no key of yours would lock them; start Chitin where \
             it can encrypt, then: chitin key rotate {name} --data-key",
            kind.as_str()
        ))),
    }
}

fn not_revoked(cluster: &Cluster) -> Result<(), Refusal> {
    if cluster.keys.is_revoked {
        return Err(Refusal::wrong_state(format!(
            "{} was revoked; give it back first: chitin key restore {}",
            cluster.keys.spec(),
            cluster.name
        )));
    }
    Ok(())
}

/// The key that all regions have after the change.
fn one_key(
    regions: &[String],
    current: Option<&KeySpec>,
    specs: &[CmekRegionSpec],
) -> Result<CmekKeySpec, Refusal> {
    let current = current.map(CmekKeySpec::from);
    let mut keys: BTreeMap<&str, Option<&CmekKeySpec>> =
        regions.iter().map(|region| (region.as_str(), current.as_ref())).collect();
    let mut named = std::collections::BTreeSet::new();
    for spec in specs {
        let Some(key) = keys.get_mut(spec.region.as_str()) else {
            return Err(Refusal::invalid(format_args!(
                "region_specs names a region that the cluster does not have; it has: {}",
                regions.join(", ")
            )));
        };
        if !named.insert(spec.region.as_str()) {
            return Err(Refusal::invalid(format_args!("the region {} is named twice", spec.region)));
        }
        *key = Some(&spec.key_spec);
    }
    let mut wanted: Option<&CmekKeySpec> = None;
    for (region, key) in keys {
        let Some(key) = key else {
            return Err(Refusal::invalid(format_args!(
                "region_specs leaves the region {region} out; name every region: {}",
                regions.join(", ")
            )));
        };
        // Which service leads there is looked up later; a key that is named without one may be the same.
        let is_same = |other: &CmekKeySpec| {
            (other.kind, &other.uri, &other.auth_principal) == (key.kind, &key.uri, &key.auth_principal)
                && (other.service == key.service || other.service.is_none() || key.service.is_none())
        };
        match wanted {
            Some(other) if !is_same(other) => {
                return Err(Refusal::invalid(format_args!(
                    "one volume serves every region, so all regions have one key, and region {region} would have \
                     another; name the same for: {}",
                    regions.join(", ")
                )));
            }
            Some(other) if other.service.is_some() => {}
            Some(_) | None => wanted = Some(key),
        }
    }
    wanted.cloned().ok_or_else(|| Refusal::invalid("region_specs is empty; name the regions and their key"))
}

/// Finds the service that leads to the key: the one that is named, or the cluster's, or the only one of its kind.
pub(crate) fn resolve(
    asked: &CmekKeySpec,
    current: Option<&KeySpec>,
    all: &Snapshot,
) -> Result<KeySpec, Refusal> {
    let spec = |service| KeySpec {
        kind: asked.kind,
        uri: asked.uri.clone(),
        auth_principal: asked.auth_principal.clone(),
        service,
    };
    let kind = asked.kind.as_str();
    if asked.kind == KeyType::Null {
        return match &asked.service {
            None => Ok(spec(None)),
            Some(_) => Err(Refusal::invalid("NULL_KMS is the cloud's own root key; leave `service` out")),
        };
    }
    if let Some(name) = &asked.service {
        let name: KeyServiceName = name.parse().map_err(|error| Refusal::invalid(format_args!("{error}")))?;
        return match all.key_service(&name) {
            Some(service) if service.kind == asked.kind => Ok(spec(Some(name))),
            Some(service) => Err(Refusal::invalid(format_args!(
                "the key service '{name}' is of type {}, and the key of type {kind}",
                service.kind.as_str()
            ))),
            None => Err(Refusal::invalid(format_args!(
                "there is no key service '{name}'; set it first: chitin key service set {name}"
            ))),
        };
    }
    let kept =
        current.filter(|current| current.kind == asked.kind).and_then(|current| current.service.as_ref());
    if let Some(name) = kept.filter(|name| all.key_service(name).is_some()) {
        return Ok(spec(Some(name.clone())));
    }
    let mut candidates: Vec<&KeyServiceName> = all
        .key_services()
        .filter(|service| service.kind == asked.kind)
        .map(|service| &service.name)
        .collect();
    candidates.sort();
    match candidates.as_slice() {
        [only] => Ok(spec(Some((*only).clone()))),
        [] => Err(Refusal::wrong_state(format!(
            "no key service of type {kind} is known; set one first: chitin key service set NAME"
        ))),
        [..] => {
            let names: Vec<&str> = candidates.iter().take(CANDIDATES_MAX).map(|name| name.as_str()).collect();
            Err(Refusal::invalid(format_args!(
                "{} key services are of type {kind} ({}); name one in `service`",
                candidates.len(),
                names.join(", ")
            )))
        }
    }
}

/// Writes the demand: for another key, or for the newest version of the one that is there.
fn demand(cluster: &mut Cluster, spec: KeySpec, now: OffsetDateTime) {
    let keys = &mut cluster.keys;
    if keys.cmek.as_ref() != Some(&spec) {
        keys.cmek = Some(spec);
        keys.cmek_since = Some(now);
    }
    keys.rewraps += 1;
}

fn info(state: &State, id: ClusterId) -> Result<Json<CmekClusterInfo>, Refusal> {
    let snapshot = state.store.snapshot();
    let entry = snapshot.get(&id).ok_or_else(|| Refusal::no_cluster(id))?;
    Ok(Json(CmekClusterInfo::of(&entry.cluster.regions, &entry.cluster.keys, &entry.seen.keys)))
}

/// The Cloud API's word for what is under way with a cluster's key; `UNSPECIFIED` where nothing is.
pub(crate) fn operation(status: CmekStatus) -> &'static str {
    match status {
        CmekStatus::Disabled | CmekStatus::Enabled | CmekStatus::Revoked => "UNSPECIFIED",
        CmekStatus::Disabling | CmekStatus::Enabling | CmekStatus::Rotating | CmekStatus::Revoking => {
            "CRDB_CMEK_OPERATION_RUNNING"
        }
        CmekStatus::DisableFailed
        | CmekStatus::EnableFailed
        | CmekStatus::RotateFailed
        | CmekStatus::RevokeFailed => "CRDB_CMEK_OPERATION_FAILED",
    }
}
