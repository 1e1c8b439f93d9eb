//! `chitin peering`: create, accept, list, show, delete, config.

use api::{AcceptPeering, ClusterNetwork, CreatePeering, JoinWith, JoinedWith, Peering};
use time::format_description::well_known::Rfc3339;

use crate::cloud::Cloud;
use crate::command::{PeeringCommand, PeeringCreate};
use crate::failure::Failure;
use crate::output::{self, Printer, facts, table};
use crate::text;

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: PeeringCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        PeeringCommand::Create(wanted) => {
            let cluster = cloud.cluster(&wanted.peering.cluster).await?;
            let made = cloud.api.create_peering(cluster.id, &request(*wanted)).await?;
            printer.result(&made, || proposed(&cluster.name, &made))
        }
        PeeringCommand::Accept { peering, public_key } => {
            let cluster = cloud.cluster(&peering.cluster).await?;
            let acceptance = AcceptPeering { public_key };
            let accepted = cloud.api.accept_peering(cluster.id, &peering.name, &acceptance).await?;
            let network = cloud.api.network(cluster.id).await?;
            printer.result(&accepted, || what_happens(&cluster.name, &accepted, &network))
        }
        PeeringCommand::List(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let peerings = cloud.api.peerings(cluster.id).await?;
            if peerings.is_empty() && !printer.is_json() {
                let name = &cluster.name;
                output::say(&format!(
                    "{name} is joined with no network; propose one: chitin peering create {name} NAME --namespace NAMESPACE"
                ));
                return Ok(());
            }
            printer.result(&peerings, || listed(&peerings))
        }
        PeeringCommand::Show(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let peering = cloud.api.peering(cluster.id, &one.name).await?;
            printer.result(&peering, || shown(&peering))
        }
        PeeringCommand::Delete(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let deleted = cloud.api.delete_peering(cluster.id, &one.name).await?;
            printer.result(&deleted, || format!("{} is joined with {} no more", cluster.name, one.name))
        }
        PeeringCommand::Config(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let answer = cloud.api.peering_config(cluster.id, &one.name).await?;
            printer.result(&answer, || text::shown(&answer.config))
        }
    }
}

/// The command line lets exactly one kind through, and with a bridge or an interface an address.
fn request(wanted: PeeringCreate) -> CreatePeering {
    let address = wanted.address.unwrap_or_default();
    let with = match (wanted.namespace, wanted.bridge, wanted.interface) {
        (Some(namespace), _, _) => JoinWith::Namespace { namespace },
        (None, Some(bridge), _) => JoinWith::Bridge { bridge, address },
        (None, None, Some(interface)) => JoinWith::Interface { interface, address },
        (None, None, None) => JoinWith::WireGuard {
            public_key: wanted.public_key,
            listen_port: wanted.listen_port,
            endpoint: wanted.endpoint,
        },
    };
    CreatePeering {
        name: wanted.peering.name.to_string(),
        with,
        ranges: wanted.ranges.iter().map(ToString::to_string).collect(),
    }
}

fn proposed(cluster: &str, made: &Peering) -> String {
    let name = &made.status.name;
    match &made.with {
        Some(JoinedWith::WireGuard { public_key, own_public_key, .. }) => {
            let rest = if public_key.is_some() { "" } else { " --public-key KEY" };
            format!(
                "proposed {name}: {}\nour public key  {own_public_key}\n\
                 next: give the other side its file: chitin peering config {cluster} {name}\n\
                 then: chitin peering accept {cluster} {name}{rest}",
                described(made)
            )
        }
        Some(JoinedWith::Namespace { .. } | JoinedWith::Bridge { .. } | JoinedWith::Interface { .. })
        | None => {
            format!("proposed {name}: {}\nnext: chitin peering accept {cluster} {name}", described(made))
        }
    }
}

/// What the acceptance leads to, for whoever looks after the other side.
fn what_happens(cluster: &str, accepted: &Peering, network: &ClusterNetwork) -> String {
    let name = &accepted.status.name;
    let door =
        network.front_door.map(|door| format!("{door}, port {}", network.sql_port)).unwrap_or_default();
    let joined = match &accepted.with {
        Some(JoinedWith::Namespace { namespace, address }) => {
            format!("the namespace {namespace} gets the address {address} and a way to {door}")
        }
        Some(JoinedWith::Bridge { bridge, address }) => format!(
            "the cluster gets the address {address} on the bridge {bridge}; machines there reach {door} by that address"
        ),
        Some(JoinedWith::Interface { interface, address }) => format!(
            "the cluster gets the address {address} behind {interface}; machines there reach {door} by that address"
        ),
        Some(JoinedWith::WireGuard { listen_port, address, .. }) => format!(
            "this machine waits for the tunnel on UDP port {listen_port}; the other side is {address} and reaches {door}"
        ),
        None => String::new(),
    };
    format!("accepted {name}: {joined}\nnext: chitin peering show {cluster} {name}")
}

fn listed(peerings: &[Peering]) -> String {
    let row = |peering: &Peering| {
        let state = match &peering.status.reason {
            Some(reason) => format!("{}: {reason}", peering.status.state.as_str()),
            None => peering.status.state.as_str().to_owned(),
        };
        [peering.status.name.clone(), described(peering), address(peering), ranges(peering), state]
    };
    table(["NAME", "WITH", "ADDRESS", "RANGES", "STATE"], peerings.iter().map(row))
}

fn shown(peering: &Peering) -> String {
    let (own, theirs, endpoint) = match &peering.with {
        Some(JoinedWith::WireGuard { own_public_key, public_key, endpoint, .. }) => {
            let theirs = public_key.clone().unwrap_or_else(|| "not known yet".to_owned());
            (own_public_key.clone(), theirs, endpoint.clone().unwrap_or_default())
        }
        Some(JoinedWith::Namespace { .. } | JoinedWith::Bridge { .. } | JoinedWith::Interface { .. })
        | None => Default::default(),
    };
    let address_of = match &peering.with {
        Some(JoinedWith::Namespace { .. } | JoinedWith::WireGuard { .. }) => "its address here",
        Some(JoinedWith::Bridge { .. } | JoinedWith::Interface { .. }) | None => "our address there",
    };
    facts([
        ("name", peering.status.name.clone()),
        ("with", described(peering)),
        ("state", peering.status.state.as_str().to_owned()),
        ("reason", peering.status.reason.clone().unwrap_or_default()),
        (address_of, address(peering)),
        ("behind it", ranges(peering)),
        ("our public key", own),
        ("its public key", theirs),
        ("it is reached at", endpoint),
        ("proposed", peering.created_at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()),
    ])
}

fn described(peering: &Peering) -> String {
    peering.with.as_ref().map(JoinedWith::describe).unwrap_or_default()
}

fn address(peering: &Peering) -> String {
    match &peering.with {
        Some(JoinedWith::Namespace { address, .. } | JoinedWith::WireGuard { address, .. }) => {
            address.to_string()
        }
        Some(JoinedWith::Bridge { address, .. } | JoinedWith::Interface { address, .. }) => address.clone(),
        None => String::new(),
    }
}

fn ranges(peering: &Peering) -> String {
    peering.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use api::{PeeringState, PeeringStatus};

    use super::*;

    fn peering(with: Option<JoinedWith>, state: PeeringState) -> Peering {
        let status = PeeringStatus { name: "office".to_owned(), state, reason: None };
        Peering { status, with, ranges: vec!["192.168.5.0/24".parse().unwrap()], created_at: None }
    }

    fn tunnel(public_key: Option<&str>) -> JoinedWith {
        JoinedWith::WireGuard {
            own_public_key: "OURS=".to_owned(),
            public_key: public_key.map(str::to_owned),
            listen_port: 51820,
            endpoint: None,
            address: "10.77.0.2".parse().unwrap(),
        }
    }

    #[test]
    fn the_next_step_of_a_tunnel_names_the_key_that_is_missing() {
        let unknown = proposed("my-shop", &peering(Some(tunnel(None)), PeeringState::Pending));
        assert!(unknown.ends_with("chitin peering accept my-shop office --public-key KEY"), "{unknown}");
        let known = proposed("my-shop", &peering(Some(tunnel(Some("THEIRS="))), PeeringState::Pending));
        assert!(known.ends_with("chitin peering accept my-shop office"), "{known}");
    }

    #[test]
    fn an_acceptance_says_where_the_cluster_is_reached() {
        let network: ClusterNetwork = serde_json::from_value(serde_json::json!({
            "visibility": "PRIVATE", "cidr_range": "10.77.0.0/24", "front_door": "10.77.0.1", "sql_port": 26257,
            "http_port": 8080, "state": "active", "peerings": []
        }))
        .unwrap();
        let (namespace, device) = ("office".to_owned(), "br0".to_owned());
        for with in [
            JoinedWith::Namespace { namespace, address: "10.77.0.2".parse().unwrap() },
            JoinedWith::Bridge { bridge: device.clone(), address: "192.168.5.2/24".to_owned() },
            JoinedWith::Interface { interface: device, address: "192.168.5.2/24".to_owned() },
            tunnel(None),
        ] {
            let said = what_happens("my-shop", &peering(Some(with), PeeringState::Pending), &network);
            assert!(said.contains("10.77.0.1, port 26257"), "{said}");
        }
    }

    #[test]
    fn what_is_being_taken_apart_is_listed_too() {
        let gone = peering(None, PeeringState::Deleting);
        assert!(listed(std::slice::from_ref(&gone)).contains("deleting"));
        assert!(shown(&gone).contains("deleting"));
    }
}
