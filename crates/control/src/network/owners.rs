//! Owners whose private endpoints may be accepted. Without any, every owner's may.

use api::{AddTrustedOwner, OneTrustedOwner, OwnerType, TrustedOwners};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use model::{ClusterId, EndpointConnection, EndpointState, TRUSTED_OWNERS_MAX, TrustedOwner};
use uuid::Uuid;

use crate::create::REPEAT_MAX;
use crate::{Refusal, State, input};

/// Digits of an AWS account.
const ACCOUNT_DIGITS: usize = 12;
const EVERYBODY: &str = "*";

/// Lists them, oldest first.
pub(crate) async fn list(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<TrustedOwners>, Refusal> {
    let cluster = &input::cluster(&state.store, &id)?.cluster;
    let trusted_owners =
        cluster.network.trusted_owners.iter().map(|owner| shown(owner, cluster.id)).collect();
    Ok(Json(TrustedOwners { trusted_owners }))
}

/// Shows one.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path((id, owner)): Path<(String, String)>,
) -> Result<Json<OneTrustedOwner>, Refusal> {
    let cluster = &input::cluster(&state.store, &id)?.cluster;
    let wanted = entry(&owner)?;
    let owner = cluster.network.trusted_owners.iter().find(|owner| owner.id == wanted);
    owner.map(|owner| answer(owner, cluster.id)).ok_or_else(missing)
}

/// Adds one. A client whose connection broke sends its request again and gets the first result.
pub(crate) async fn add(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<OneTrustedOwner>, Refusal> {
    let AddTrustedOwner { kind: OwnerType::AwsAccountId, external_owner_id } = input::body(&body)?;
    let external_owner_id =
        if external_owner_id == EVERYBODY { external_owner_id } else { account(external_owner_id)? };
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let now = input::now(&state);
    let added = input::edit(&state, id, move |cluster| {
        let owners = &mut cluster.network.trusted_owners;
        if let Some(known) = owners.iter().find(|owner| owner.external_owner_id == external_owner_id) {
            if input::is_repeated(known.created_at, now, REPEAT_MAX) {
                return Ok(known.clone());
            }
            return Err(Refusal::exists("this owner is trusted already"));
        }
        if owners.len() >= TRUSTED_OWNERS_MAX {
            return Err(Refusal::wrong_state(format!(
                "the cluster trusts {TRUSTED_OWNERS_MAX} owners, which is the most; remove one first"
            )));
        }
        let owner = TrustedOwner { id: Uuid::new_v4(), external_owner_id, created_at: now };
        owners.push(owner.clone());
        Ok(owner)
    })
    .await?;
    Ok(answer(&added, id))
}

/// Removes one, and rejects the endpoints that only it made acceptable.
pub(crate) async fn remove(
    Shared(state): Shared<State>,
    Path((id, owner)): Path<(String, String)>,
) -> Result<Json<OneTrustedOwner>, Refusal> {
    let wanted = entry(&owner)?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let removed = input::edit(&state, id, move |cluster| {
        let network = &mut cluster.network;
        let at = network.trusted_owners.iter().position(|owner| owner.id == wanted).ok_or_else(missing)?;
        let removed = network.trusted_owners.remove(at);
        for endpoint in &mut network.endpoints {
            if is_rejected_by(&removed, &network.trusted_owners, endpoint) {
                endpoint.state = EndpointState::Rejected;
            }
        }
        Ok(removed)
    })
    .await?;
    Ok(answer(&removed, id))
}

/// Whether endpoints of this owner may be accepted; `None` where it is not known whose they are.
pub(super) fn trust(owners: &[TrustedOwner], owner: Option<&str>) -> bool {
    let is_it = |known: &TrustedOwner| is_everybody(known) || Some(known.external_owner_id.as_str()) == owner;
    owners.is_empty() || owners.iter().any(is_it)
}

/// Reads an owner's id.
pub(super) fn account(text: String) -> Result<String, Refusal> {
    if text.len() != ACCOUNT_DIGITS || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::invalid(format_args!(
            "external_owner_id is an AWS account's {ACCOUNT_DIGITS} digits; among trusted owners, `*` means every owner"
        )));
    }
    Ok(text)
}

/// What lived by an owner that is removed. With `*` gone, that is whoever is not trusted by name; but where nobody is
/// named any more, every owner is trusted again.
fn is_rejected_by(removed: &TrustedOwner, left: &[TrustedOwner], endpoint: &EndpointConnection) -> bool {
    if is_everybody(removed) {
        return endpoint.is_available() && !trust(left, endpoint.owner.as_deref());
    }
    endpoint.owner.as_deref() == Some(removed.external_owner_id.as_str()) && !left.iter().any(is_everybody)
}

fn is_everybody(owner: &TrustedOwner) -> bool {
    owner.external_owner_id == EVERYBODY
}

/// Reads an entry's id. What is none cannot be found.
fn entry(text: &str) -> Result<Uuid, Refusal> {
    text.parse().map_err(|_| missing())
}

fn missing() -> Refusal {
    Refusal::not_found("the cluster has no trusted owner of this id")
}

fn answer(owner: &TrustedOwner, cluster: ClusterId) -> Json<OneTrustedOwner> {
    Json(OneTrustedOwner { trusted_owner: shown(owner, cluster) })
}

fn shown(owner: &TrustedOwner, cluster: ClusterId) -> api::TrustedOwner {
    api::TrustedOwner {
        id: owner.id,
        cluster_id: cluster,
        kind: OwnerType::AwsAccountId,
        external_owner_id: owner.external_owner_id.clone(),
        created_at: owner.created_at,
    }
}
