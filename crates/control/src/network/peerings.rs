//! What a private network is joined with. A peering is proposed, then accepted; a loop joins the two sides.

use std::sync::Arc;

use api::{AcceptPeering, CreatePeering, JoinedWith, PeeringConfig, PeeringState, PeeringStatus, Peerings};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use model::{
    Network, NetworkSeen, Peering, PeeringName, PeeringPhase, PeeringWish, PeeringWith, WireGuardPeer,
};
use store::Entry;

use crate::network::join::Proposal;
use crate::network::ranges::Others;
use crate::network::{machine_allows, wireguard};
use crate::{Administration, Refusal, State, input};

/// Lists them, those that are being taken apart too.
pub(crate) async fn list(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<Peerings>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    let (network, seen) = (&entry.cluster.network, &entry.seen.network);
    let peerings = names(network, seen)
        .into_iter()
        .map(|name| shown(name, network.peering(name), seen, &*state.administration))
        .collect::<Result<_, Refusal>>()?;
    Ok(Json(Peerings { peerings }))
}

/// Shows one.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path((id, text)): Path<(String, String)>,
) -> Result<Json<api::Peering>, Refusal> {
    let (entry, name) = (input::cluster(&state.store, &id)?, name(&text)?);
    one(&state, &entry, &name)
}

/// Proposes one.
pub(crate) async fn create(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<api::Peering>, Refusal> {
    let request: CreatePeering = input::body(&body)?;
    let entry = input::cluster(&state.store, &id)?;
    let (id, name) = (entry.cluster.id, name(&request.name)?);
    let proposal = Proposal::read(request)?;
    machine_allows(&state)?;
    // What was made of one of that name must be gone first, or it could be taken for this one.
    if entry.cluster.network.peering(&name).is_none() && entry.seen.network.peerings.contains_key(&name) {
        return Err(Refusal::busy(format!(
            "a peering {name} was deleted and is still being taken apart; try again in a moment"
        )));
    }
    let (administration, now) = (state.administration.clone(), input::now(&state));
    input::edit_among(&state, id, move |cluster, all| {
        let peering = proposal.fit(cluster, &Others::of(Some(id), all), &*administration, now)?;
        cluster.network.peerings.push(peering);
        Ok(())
    })
    .await?;
    one(&state, &input::cluster(&state.store, &id.to_string())?, &name)
}

/// Accepts one. Again, it changes nothing.
pub(crate) async fn accept(
    Shared(state): Shared<State>,
    Path((id, text)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<api::Peering>, Refusal> {
    let request: AcceptPeering = if body.is_empty() { AcceptPeering::default() } else { input::body(&body)? };
    let key = request.public_key.as_deref().map(wireguard::public_key).transpose()?;
    let (entry, name) = (input::cluster(&state.store, &id)?, name(&text)?);
    machine_allows(&state)?;
    let (administration, wanted) = (state.administration.clone(), name.clone());
    input::edit(&state, entry.cluster.id, move |cluster| {
        let cluster_name = cluster.name.clone();
        let network = &mut cluster.network;
        let peering = network.peering(&wanted).ok_or_else(|| missing(&wanted))?;
        if let Some(key) = &key {
            wireguard::check_foreign(key, network, Some(peering), &*administration)?;
        }
        let known = network
            .peerings
            .iter_mut()
            .find(|peering| peering.name == wanted)
            .ok_or_else(|| missing(&wanted))?;
        match (&mut known.with, key) {
            (PeeringWith::WireGuard(tunnel), key) => {
                learn(tunnel, key, known.wish, &format!("{cluster_name} {wanted}"))?;
            }
            (
                PeeringWith::Namespace { .. } | PeeringWith::Bridge { .. } | PeeringWith::Interface { .. },
                None,
            ) => {}
            (
                PeeringWith::Namespace { .. } | PeeringWith::Bridge { .. } | PeeringWith::Interface { .. },
                Some(_),
            ) => return Err(Refusal::invalid("`public_key` is for WireGuard peerings only")),
        }
        known.wish = PeeringWish::Accepted;
        Ok(())
    })
    .await?;
    one(&state, &input::cluster(&state.store, &id)?, &name)
}

/// Ends one.
pub(crate) async fn remove(
    Shared(state): Shared<State>,
    Path((id, text)): Path<(String, String)>,
) -> Result<Json<api::Peering>, Refusal> {
    let (entry, name) = (input::cluster(&state.store, &id)?, name(&text)?);
    let wanted = name.clone();
    let removed = input::edit(&state, entry.cluster.id, move |cluster| {
        let peerings = &mut cluster.network.peerings;
        let at =
            peerings.iter().position(|peering| peering.name == wanted).ok_or_else(|| missing(&wanted))?;
        Ok(peerings.remove(at))
    })
    .await?;
    let mut answer = shown(&name, Some(&removed), &entry.seen.network, &*state.administration)?;
    answer.status = PeeringStatus { name: name.to_string(), state: PeeringState::Deleting, reason: None };
    Ok(Json(answer))
}

/// Shows what the other side of a WireGuard peering needs.
pub(crate) async fn config(
    Shared(state): Shared<State>,
    Path((id, text)): Path<(String, String)>,
) -> Result<Json<PeeringConfig>, Refusal> {
    let (entry, name) = (input::cluster(&state.store, &id)?, name(&text)?);
    let peering = entry.cluster.network.peering(&name).ok_or_else(|| missing(&name))?;
    let tunnel = wireguard::tunnel(peering).ok_or_else(|| {
        Refusal::wrong_state(
            "only the other side of a WireGuard peering has a configuration file; this one is joined on this machine",
        )
    })?;
    let own = wireguard::own_public_key(tunnel, &*state.administration)?;
    let config = wireguard::config(&entry.cluster, peering, tunnel, &own, &state.settings)?;
    Ok(Json(PeeringConfig { config }))
}

/// Where each peering stands, by name.
pub(super) fn statuses(network: &Network, seen: &NetworkSeen) -> Vec<PeeringStatus> {
    names(network, seen).into_iter().map(|name| status(name, network.peering(name), seen)).collect()
}

/// Reads a peering's name.
pub(super) fn name(text: &str) -> Result<PeeringName, Refusal> {
    text.parse().map_err(|error| Refusal::invalid(format_args!("{error}")))
}

/// Takes the other side's public key, if it comes with the acceptance. Without one there is nobody to accept.
fn learn(
    tunnel: &mut WireGuardPeer,
    key: Option<String>,
    wish: PeeringWish,
    who: &str,
) -> Result<(), Refusal> {
    match (key, &tunnel.public_key, wish) {
        (None, None, _) => Err(Refusal::wrong_state(format!(
            "the other side's public key is not known yet; name it: chitin peering accept {who} --public-key KEY"
        ))),
        (None, Some(_), _) => Ok(()),
        (Some(key), Some(known), PeeringWish::Accepted) if key != *known => Err(Refusal::wrong_state(
            "the peering was accepted with another public key; delete it and propose it anew",
        )),
        (Some(key), _, _) => {
            tunnel.public_key = Some(key);
            Ok(())
        }
    }
}

fn missing(name: &PeeringName) -> Refusal {
    Refusal::not_found(format!("the cluster has no peering {name}"))
}

fn names<'a>(network: &'a Network, seen: &'a NetworkSeen) -> Vec<&'a PeeringName> {
    let mut names: Vec<&PeeringName> =
        network.peerings.iter().map(|peering| &peering.name).chain(seen.peerings.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn one(state: &State, entry: &Arc<Entry>, name: &PeeringName) -> Result<Json<api::Peering>, Refusal> {
    let (peering, seen) = (entry.cluster.network.peering(name), &entry.seen.network);
    if peering.is_none() && !seen.peerings.contains_key(name) {
        return Err(missing(name));
    }
    shown(name, peering, seen, &*state.administration).map(Json)
}

fn shown(
    name: &PeeringName,
    peering: Option<&Peering>,
    seen: &NetworkSeen,
    administration: &dyn Administration,
) -> Result<api::Peering, Refusal> {
    Ok(api::Peering {
        status: status(name, peering, seen),
        with: peering.map(|peering| joined_with(&peering.with, administration)).transpose()?,
        ranges: peering.map(|peering| peering.ranges.clone()).unwrap_or_default(),
        created_at: peering.map(|peering| peering.created_at),
    })
}

fn status(name: &PeeringName, peering: Option<&Peering>, seen: &NetworkSeen) -> PeeringStatus {
    let (state, reason) = match (peering.map(|peering| peering.wish), seen.peerings.get(name)) {
        (None, _) | (Some(PeeringWish::Accepted), Some(PeeringPhase::Deleting)) => {
            (PeeringState::Deleting, None)
        }
        (Some(PeeringWish::Proposed), _)
        | (Some(PeeringWish::Accepted), None | Some(PeeringPhase::Pending)) => (PeeringState::Pending, None),
        (Some(PeeringWish::Accepted), Some(PeeringPhase::Active)) => (PeeringState::Active, None),
        (Some(PeeringWish::Accepted), Some(PeeringPhase::Failed { reason })) => {
            (PeeringState::Failed, Some(reason.clone()))
        }
    };
    PeeringStatus { name: name.to_string(), state, reason }
}

fn joined_with(with: &PeeringWith, administration: &dyn Administration) -> Result<JoinedWith, Refusal> {
    Ok(match with {
        PeeringWith::Namespace { namespace, address } => {
            JoinedWith::Namespace { namespace: namespace.clone(), address: *address }
        }
        PeeringWith::Bridge { bridge, address } => {
            JoinedWith::Bridge { bridge: bridge.clone(), address: address.to_string() }
        }
        PeeringWith::Interface { interface, address } => {
            JoinedWith::Interface { interface: interface.clone(), address: address.to_string() }
        }
        PeeringWith::WireGuard(tunnel) => JoinedWith::WireGuard {
            own_public_key: wireguard::own_public_key(tunnel, administration)?,
            public_key: tunnel.public_key.clone(),
            listen_port: tunnel.listen_port,
            endpoint: tunnel.endpoint.clone(),
            address: tunnel.address,
        },
    })
}
