//! Private endpoints of a cluster: the service that they find, and which of them may come in. A change holds for new
//! connections when it is answered, and cuts the sessions that it no longer allows.

use api::{
    AddPrivateEndpointConnection, AwsEndpointConnection, AwsEndpointConnections, AwsServiceDetail,
    EndpointDecision, EndpointStatus, PrivateEndpointConnection, PrivateEndpointConnections,
    PrivateEndpointService, PrivateEndpointServices, Removed, SetAwsEndpointConnection,
};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use model::{
    Cluster, ClusterId, ENDPOINT_WAIT_DAYS, ENDPOINTS_MAX, EndpointConnection, EndpointId, EndpointState,
    Plan, Provider,
};
use store::Snapshot;
use time::OffsetDateTime;

use crate::network::owners;
use crate::network::ranges::Others;
use crate::{Refusal, Settings, State, input};

/// Lists the services, one a region; on a dedicated cluster none until they are made.
pub(crate) async fn services(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<PrivateEndpointServices>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    Ok(Json(PrivateEndpointServices { services: services_of(&entry.cluster, &state.settings) }))
}

/// Makes the services. They may be there: clients send this without looking. The body is not looked at.
pub(crate) async fn create_services(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<PrivateEndpointServices>, Refusal> {
    let cluster = input::cluster(&state.store, &id)?.cluster.id;
    input::edit(&state, cluster, |cluster| {
        // On a serverless cluster they exist by themselves.
        cluster.network.has_endpoint_service = cluster.plan == Plan::Dedicated;
        Ok(())
    })
    .await?;
    services(Shared(state), Path(id)).await
}

/// Lists the connections, those that wait for acceptance too.
pub(crate) async fn list(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<PrivateEndpointConnections>, Refusal> {
    let (entry, now) = (input::cluster(&state.store, &id)?, state.clock.now());
    let connections =
        by_id(&entry.cluster).into_iter().map(|one| connection(&entry.cluster, one, now)).collect();
    Ok(Json(PrivateEndpointConnections { connections }))
}

/// Adds a connection. The cluster's owner names it, and that is the acceptance, if the endpoint's owner is trusted.
pub(crate) async fn add(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<PrivateEndpointConnection>, Refusal> {
    let request: AddPrivateEndpointConnection = input::body(&body)?;
    let given = request.external_owner_id.map(owners::account).transpose()?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let now = input::now(&state);
    let added = input::edit_among(&state, id, move |cluster, all| {
        needs_service(cluster)?;
        let endpoint = read(&request.endpoint_id, cluster.provider)?;
        check_nobody_else_has(&endpoint, id, all)?;
        let network = &mut cluster.network;
        let at = network.endpoints.iter().position(|known| known.id == endpoint);
        let known = at.map(|at| network.endpoints[at].clone());
        let owner = given.or_else(|| known.as_ref().and_then(|known| known.owner.clone()));
        // Sent again, it changes nothing.
        if let Some(known) = known.filter(|known| known.is_available() && known.owner == owner) {
            return Ok(connection(cluster, &known, now));
        }
        let is_trusted = owners::trust(&network.trusted_owners, owner.as_deref());
        let state = if is_trusted { EndpointState::Available } else { EndpointState::PendingAcceptance };
        let wanted = EndpointConnection { id: endpoint, owner, state, created_at: now };
        match at {
            Some(at) => network.endpoints[at] = wanted.clone(),
            None if network.endpoints.len() >= ENDPOINTS_MAX => {
                return Err(Refusal::wrong_state(format!(
                    "the cluster has {ENDPOINTS_MAX} private endpoints, which is the most; remove one first"
                )));
            }
            None => network.endpoints.push(wanted.clone()),
        }
        Ok(connection(cluster, &wanted, now))
    })
    .await?;
    Ok(Json(added))
}

/// Removes a connection.
pub(crate) async fn remove(
    Shared(state): Shared<State>,
    Path((id, endpoint)): Path<(String, String)>,
) -> Result<Json<Removed>, Refusal> {
    let id = input::cluster(&state.store, &id)?.cluster.id;
    input::edit(&state, id, move |cluster| {
        let endpoint = read(&endpoint, cluster.provider)?;
        let endpoints = &mut cluster.network.endpoints;
        let at = endpoints.iter().position(|known| known.id == endpoint).ok_or_else(|| missing(&endpoint))?;
        endpoints.remove(at);
        Ok(())
    })
    .await?;
    Ok(Json(Removed {}))
}

/// Lists the connections in the older form.
pub(crate) async fn list_older(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<AwsEndpointConnections>, Refusal> {
    let (entry, now) = (input::cluster(&state.store, &id)?, state.clock.now());
    let connections = by_id(&entry.cluster).into_iter().map(|one| older(&entry.cluster, one, now)).collect();
    Ok(Json(AwsEndpointConnections { connections }))
}

/// Accepts or rejects a connection of any kind. As the contract says, the answer has the status from before.
pub(crate) async fn decide(
    Shared(state): Shared<State>,
    Path((id, endpoint)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<AwsEndpointConnection>, Refusal> {
    let request: SetAwsEndpointConnection = input::body(&body)?;
    let given = request.external_owner_id.map(owners::account).transpose()?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let now = input::now(&state);
    let before = input::edit_among(&state, id, move |cluster, all| {
        let endpoint = read(&endpoint, cluster.provider)?;
        let at = cluster.network.endpoints.iter().position(|known| known.id == endpoint);
        let at = at.ok_or_else(|| missing(&endpoint))?;
        let known = cluster.network.endpoints[at].clone();
        let before = older(cluster, &known, now);
        let owner = given.or_else(|| known.owner.clone());
        let state = match request.status {
            EndpointDecision::Rejected => EndpointState::Rejected,
            EndpointDecision::Available => {
                needs_service(cluster)?;
                may_be_accepted(cluster, &known, owner.as_deref(), now)?;
                check_nobody_else_has(&endpoint, id, all)?;
                EndpointState::Available
            }
        };
        cluster.network.endpoints[at] = EndpointConnection { owner, state, ..known };
        Ok(before)
    })
    .await?;
    Ok(Json(before))
}

fn needs_service(cluster: &Cluster) -> Result<(), Refusal> {
    if cluster.has_endpoint_service() {
        return Ok(());
    }
    Err(Refusal::wrong_state(format!(
        "the cluster has no private endpoint service yet; make it first: chitin endpoint service {} --create",
        cluster.name
    )))
}

/// An endpoint leads to one cluster, so that nobody reaches two customers by it. Whose the other is stays unsaid.
fn check_nobody_else_has(endpoint: &EndpointId, own: ClusterId, all: &Snapshot) -> Result<(), Refusal> {
    let is_elsewhere = Others::of(Some(own), all)
        .any(|network| network.endpoint(endpoint).is_some_and(EndpointConnection::is_available));
    if is_elsewhere {
        return Err(Refusal::exists("this endpoint is connected already"));
    }
    Ok(())
}

fn may_be_accepted(
    cluster: &Cluster,
    known: &EndpointConnection,
    owner: Option<&str>,
    now: OffsetDateTime,
) -> Result<(), Refusal> {
    let (name, id) = (&cluster.name, write(&known.id, cluster.provider));
    if status(known, now) == EndpointStatus::Expired {
        return Err(Refusal::wrong_state(format!(
            "nobody accepted the endpoint within {ENDPOINT_WAIT_DAYS} days, so it is expired; add it again: chitin \
             endpoint add {name} {id}"
        )));
    }
    if owners::trust(&cluster.network.trusted_owners, owner) {
        return Ok(());
    }
    Err(Refusal::wrong_state(match owner {
        None => format!(
            "the cluster trusts certain owners only, and whose this endpoint is was not said; say it: chitin \
             endpoint accept {name} {id} --owner OWNER"
        ),
        Some(owner) => format!(
            "the endpoint's owner {owner} is not trusted; trust it first: chitin endpoint owner add {name} {owner}"
        ),
    }))
}

fn missing(endpoint: &EndpointId) -> Refusal {
    Refusal::not_found(format!("the cluster has no private endpoint {endpoint}"))
}

/// Reads an id. A bare number is what the cluster's own provider calls an endpoint.
fn read(text: &str, provider: Provider) -> Result<EndpointId, Refusal> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let read = match (provider, is_number) {
        (Provider::Gcp, true) => format!("psc:{text}").parse(),
        (Provider::Azure, true) => format!("azure:{text}").parse(),
        (Provider::Aws, true) | (_, false) => text.parse(),
    };
    read.map_err(|error| Refusal::invalid(format_args!("{error}")))
}

/// Writes an id as the cluster's own provider does: official clients look for the text that they sent.
fn write(id: &EndpointId, provider: Provider) -> String {
    match (provider, id) {
        (Provider::Gcp, EndpointId::Gcp(number)) => number.to_string(),
        (Provider::Azure, EndpointId::Azure(number)) => number.to_string(),
        (Provider::Gcp | Provider::Aws | Provider::Azure, id) => id.to_string(),
    }
}

fn by_id(cluster: &Cluster) -> Vec<&EndpointConnection> {
    let mut all: Vec<&EndpointConnection> = cluster.network.endpoints.iter().collect();
    all.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    all
}

fn status(connection: &EndpointConnection, now: OffsetDateTime) -> EndpointStatus {
    match connection.state {
        EndpointState::PendingAcceptance if connection.is_expired(now) => EndpointStatus::Expired,
        EndpointState::PendingAcceptance => EndpointStatus::PendingAcceptance,
        EndpointState::Available => EndpointStatus::Available,
        EndpointState::Rejected => EndpointStatus::Rejected,
    }
}

fn connection(
    cluster: &Cluster,
    connection: &EndpointConnection,
    now: OffsetDateTime,
) -> PrivateEndpointConnection {
    PrivateEndpointConnection {
        endpoint_id: write(&connection.id, cluster.provider),
        cloud_provider: cluster.provider,
        region_name: region(cluster),
        region: region(cluster),
        endpoint_service_id: service_id(cluster),
        service_name: service_name(cluster),
        status: status(connection, now),
        external_owner_id: connection.owner.clone(),
    }
}

fn older(cluster: &Cluster, connection: &EndpointConnection, now: OffsetDateTime) -> AwsEndpointConnection {
    AwsEndpointConnection {
        region_name: region(cluster),
        cloud_provider: cluster.provider,
        status: status(connection, now),
        endpoint_id: write(&connection.id, cluster.provider),
        service_id: service_id(cluster),
        external_owner_id: connection.owner.clone(),
    }
}

fn services_of(cluster: &Cluster, settings: &Settings) -> Vec<PrivateEndpointService> {
    if !cluster.has_endpoint_service() {
        return Vec::new();
    }
    let aws = || AwsServiceDetail {
        service_name: service_name(cluster),
        service_id: service_id(cluster),
        availability_zone_ids: Vec::new(),
    };
    let service = |region: &String| PrivateEndpointService {
        region_name: region.clone(),
        cloud_provider: cluster.provider,
        status: "AVAILABLE".to_owned(),
        name: service_name(cluster),
        endpoint_service_id: service_id(cluster),
        availability_zone_ids: Vec::new(),
        aws: (cluster.provider == Provider::Aws).then(aws),
        listener: settings.endpoint.clone(),
    };
    cluster.regions.iter().map(service).collect()
}

fn service_name(cluster: &Cluster) -> String {
    format!("com.chitin.{}", cluster.handle())
}

fn service_id(cluster: &Cluster) -> String {
    cluster.id.to_string()
}

/// Every region is this machine; a connection is shown in the first.
fn region(cluster: &Cluster) -> String {
    cluster.asked.primary_region.clone().or_else(|| cluster.regions.first().cloned()).unwrap_or_default()
}
