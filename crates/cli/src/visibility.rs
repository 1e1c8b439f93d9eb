//! `chitin cluster visibility`: who can see a cluster, and its private network.

use api::{ClusterNetwork, NetworkState, PutNetwork};
use model::Visibility;

use crate::cloud::Cloud;
use crate::command::ClusterVisibility;
use crate::failure::Failure;
use crate::output::{self, Printer, facts};

/// Carries out the command.
pub async fn run(cloud: &Cloud, wanted: ClusterVisibility, printer: Printer) -> Result<(), Failure> {
    let cluster = cloud.cluster(&wanted.cluster).await?;
    let Some(visibility) = wanted.visibility else {
        let network = cloud.api.network(cluster.id).await?;
        return printer.result(&network, || shown(&cluster.name, &network));
    };
    let wish =
        PutNetwork { visibility: visibility.into(), cidr_range: wanted.cidr.map(|range| range.to_string()) };
    let network = cloud.api.set_network(cluster.id, &wish).await?;
    printer.result(&network, || shown(&cluster.name, &network))?;
    if !printer.is_json() {
        output::say(&next(&cluster.name, &network));
    }
    Ok(())
}

/// The network in one line, for `chitin cluster show`.
pub fn line(network: &ClusterNetwork) -> String {
    let who = word(network.visibility);
    let Some((range, door)) = network.cidr_range.zip(network.front_door) else { return who.to_owned() };
    let reason = network.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{who}, private listener {door} in {range} ({}{reason})", network.state.as_str())
}

fn shown(name: &str, network: &ClusterNetwork) -> String {
    let door = network.front_door;
    let state = match network.state {
        NetworkState::None => String::new(),
        NetworkState::Pending | NetworkState::Active | NetworkState::Failed | NetworkState::Deleting => {
            network.state.as_str().to_owned()
        }
    };
    let peerings: Vec<String> = network
        .peerings
        .iter()
        .map(|peering| format!("{} ({})", peering.name, peering.state.as_str()))
        .collect();
    facts([
        ("visibility", word(network.visibility).to_owned()),
        ("addresses", network.cidr_range.map(|range| range.to_string()).unwrap_or_default()),
        ("state", state),
        ("reason", network.reason.clone().unwrap_or_default()),
        (
            "private listener",
            door.map(|door| format!("{door} (SQL on {}, HTTP on {})", network.sql_port, network.http_port))
                .unwrap_or_default(),
        ),
        ("name there", network.internal_dns.clone().unwrap_or_default()),
        (
            "connect there",
            door.map(|door| match network.visibility {
                // The connection string of a private cluster names it already.
                Visibility::Private => format!("psql \"$(chitin cluster url {name} USER)\""),
                Visibility::Public => format!("psql \"$(chitin cluster url {name} USER)&hostaddr={door}\""),
            })
            .unwrap_or_default(),
        ),
        ("peerings", peerings.join(", ")),
    ])
}

fn next(name: &str, network: &ClusterNetwork) -> String {
    match (network.visibility, network.peerings.is_empty()) {
        (Visibility::Private, true) => format!(
            "note: only its private network and accepted private endpoints reach {name} now\n  \
             next: chitin peering create {name} NAME --namespace NAMESPACE, or: chitin endpoint add {name} ENDPOINT"
        ),
        (Visibility::Private, false) => {
            format!("note: only its peerings and accepted private endpoints reach {name} now")
        }
        (Visibility::Public, _) => {
            format!("note: {name} may be reached from outside again\n  by whom: chitin allowlist list {name}")
        }
    }
}

fn word(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::Public => "public",
        Visibility::Private => "private",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(visibility: Visibility, range: Option<&str>, state: NetworkState) -> ClusterNetwork {
        ClusterNetwork {
            visibility,
            cidr_range: range.map(|range| range.parse().unwrap()),
            front_door: range.map(|_| "10.77.0.1".parse().unwrap()),
            sql_port: 26257,
            http_port: 8080,
            internal_dns: None,
            state,
            reason: None,
            peerings: Vec::new(),
        }
    }

    #[test]
    fn a_network_is_one_line_and_says_why_it_failed() {
        assert_eq!(line(&network(Visibility::Public, None, NetworkState::None)), "public");
        let private = network(Visibility::Private, Some("10.77.0.0/24"), NetworkState::Active);
        assert_eq!(line(&private), "private, private listener 10.77.0.1 in 10.77.0.0/24 (active)");
        let failed =
            ClusterNetwork { state: NetworkState::Failed, reason: Some("not root".to_owned()), ..private };
        assert!(line(&failed).ends_with("(failed: not root)"));
        assert!(shown("my-shop", &failed).contains("psql \"$(chitin cluster url my-shop USER)\""));
        let public = network(Visibility::Public, Some("10.77.0.0/24"), NetworkState::Active);
        assert!(shown("my-shop", &public).contains("&hostaddr=10.77.0.1\""));
    }

    #[test]
    fn whoever_closes_a_cluster_hears_how_to_reach_it() {
        let private = network(Visibility::Private, Some("10.77.0.0/24"), NetworkState::Pending);
        assert!(next("my-shop", &private).contains("chitin peering create my-shop"));
        let public = network(Visibility::Public, None, NetworkState::None);
        assert!(next("my-shop", &public).contains("chitin allowlist list my-shop"));
    }
}
