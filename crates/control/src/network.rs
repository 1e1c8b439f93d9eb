//! Who can see a cluster, and its private network. Nothing here makes a network: the wish is written, a loop acts.

pub(crate) mod endpoints;
mod join;
pub(crate) mod owners;
pub(crate) mod peerings;
pub(crate) mod ranges;
mod wireguard;

use api::{ClusterNetwork, NetworkState, PutNetwork};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use model::{AddressRange, Cluster, Network, NetworkSeen, Visibility};

use crate::network::ranges::Others;
use crate::{Refusal, Settings, State, input, shape};

/// What the machine's list of capabilities calls them.
const CAPABILITY: &str = "private networks";

/// Shows it.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<ClusterNetwork>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    Ok(Json(shown(&entry.cluster, &entry.seen.network, &state.settings)))
}

/// Replaces it. It holds for new connections.
pub(crate) async fn put(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<ClusterNetwork>, Refusal> {
    let PutNetwork { visibility, cidr_range } = input::body(&body)?;
    let range = range(cidr_range.as_deref())?;
    if visibility == Visibility::Private || range.is_some() {
        machine_allows(&state)?;
    }
    let id = input::cluster(&state.store, &id)?.cluster.id;
    input::edit_among(&state, id, move |cluster, all| {
        settle(&mut cluster.network, visibility, range, &Others::of(Some(id), all))
    })
    .await?;
    show(Shared(state), Path(id.to_string())).await
}

/// What a client asks for when it makes a cluster; the range is completed by [`complete`].
pub(crate) fn asked(visibility: Option<&str>, cidr_range: Option<&str>) -> Result<Network, Refusal> {
    let visibility = match visibility {
        None | Some("" | "PUBLIC") => Visibility::Public,
        Some("PRIVATE") => Visibility::Private,
        Some(_) => return Err(Refusal::invalid("network_visibility is PUBLIC or PRIVATE")),
    };
    Ok(Network { visibility, range: range(cidr_range)?, ..Network::default() })
}

/// Gives a cluster that is being made the range that it asked for, or a free one where it needs one.
pub(crate) fn complete(network: &mut Network, others: &Others<'_>) -> Result<(), Refusal> {
    let Network { visibility, range, refuses_plaintext_cancels, .. } = std::mem::take(network);
    network.refuses_plaintext_cancels = refuses_plaintext_cancels;
    settle(network, visibility, range, others)
}

/// Whether what was made is what was asked for, when a range may have been added.
pub(crate) fn is_same(made: &Network, asked: &Network) -> bool {
    let was_given = asked.visibility == Visibility::Private && asked.range.is_none();
    let range = if was_given { made.range } else { asked.range };
    *made == Network { range, ..asked.clone() }
}

/// Refuses where the machine cannot have private networks. What it does not list it allows.
pub(crate) fn machine_allows(state: &State) -> Result<(), Refusal> {
    let machine = state.administration.machine();
    let wall = machine.capabilities.into_iter().find(|capability| capability.name == CAPABILITY);
    match wall {
        Some(wall) if !wall.is_present => {
            let next_step =
                wall.next_step.unwrap_or_else(|| "run Chitin as root or with CAP_NET_ADMIN".to_owned());
            Err(Refusal::wrong_state(format!(
                "this machine cannot have private networks: {}; {next_step}",
                wall.explanation
            )))
        }
        Some(_) | None => Ok(()),
    }
}

fn range(text: Option<&str>) -> Result<Option<AddressRange>, Refusal> {
    text.filter(|text| !text.is_empty()).map(ranges::cluster_range).transpose()
}

fn settle(
    network: &mut Network,
    visibility: Visibility,
    range: Option<AddressRange>,
    others: &Others<'_>,
) -> Result<(), Refusal> {
    let has_peerings = !network.peerings.is_empty();
    network.range = match (range, visibility, network.range) {
        (Some(wanted), _, Some(present)) if wanted == present => Some(present),
        (Some(_), _, Some(present)) if has_peerings => {
            return Err(Refusal::wrong_state(format!(
                "the private network stays {present} while it is joined with other networks; delete the peerings \
                 first: chitin peering delete"
            )));
        }
        (Some(wanted), _, _) => {
            others.leave_free(wanted)?;
            Some(wanted)
        }
        (None, Visibility::Private, Some(present)) => Some(present),
        (None, Visibility::Private, None) => Some(others.free_range()?),
        (None, Visibility::Public, present) => present.filter(|_| has_peerings),
    };
    network.visibility = visibility;
    Ok(())
}

fn shown(cluster: &Cluster, seen: &NetworkSeen, settings: &Settings) -> ClusterNetwork {
    let network = &cluster.network;
    ClusterNetwork {
        visibility: network.visibility,
        cidr_range: network.range,
        front_door: network.front_door(),
        sql_port: settings.sql_port,
        http_port: settings.http_port,
        internal_dns: network.range.map(|_| shape::sql_dns(cluster, settings)),
        state: state(network, seen),
        // A reason of a network that is no longer wanted is nobody's.
        reason: seen.reason.clone().filter(|_| network.range.is_some()),
        peerings: peerings::statuses(network, seen),
    }
}

fn state(network: &Network, seen: &NetworkSeen) -> NetworkState {
    match (network.front_door(), seen.front_door, &seen.reason) {
        (None, None, _) => NetworkState::None,
        (None, Some(_), _) => NetworkState::Deleting,
        (Some(_), _, Some(_)) => NetworkState::Failed,
        (Some(wanted), Some(open), None) if wanted == open => NetworkState::Active,
        (Some(_), _, None) => NetworkState::Pending,
    }
}
