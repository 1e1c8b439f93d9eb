//! A cluster's private network and what it is joined with, under `/api/v1/chitin`.

use std::net::IpAddr;

use model::{AddressRange, Visibility};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// `GET` and `PUT /chitin/clusters/{id}/network`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNetwork {
    /// Who can see the front door.
    pub visibility: Visibility,
    /// The private network's addresses; absent where the cluster has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr_range: Option<AddressRange>,
    /// The front door's address inside the private network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front_door: Option<IpAddr>,
    /// The port of SQL there.
    pub sql_port: u16,
    /// The port of HTTP there.
    pub http_port: u16,
    /// The name that the front door's certificate carries; who resolves it inside gives it that address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_dns: Option<String>,
    /// Where the private network stands.
    pub state: NetworkState,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where its peerings stand, by name.
    pub peerings: Vec<PeeringStatus>,
}

/// Where a private network stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkState {
    /// There is none, and none is wanted.
    None,
    /// It is being made.
    Pending,
    /// Its front door is open.
    Active,
    /// It could not be made; the next attempt follows by itself.
    Failed,
    /// It is being taken apart.
    Deleting,
}

impl NetworkState {
    /// The state by its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

/// The body of `PUT /chitin/clusters/{id}/network`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutNetwork {
    /// Who can see the front door.
    pub visibility: Visibility,
    /// The private network's addresses. Absent or empty: a private cluster keeps its own or gets one, a public one keeps
    /// its own only while something is joined with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr_range: Option<String>,
}

/// `POST /chitin/clusters/{id}/peerings`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreatePeering {
    /// Its name: 1 to 32 lower-case letters, digits and dashes.
    pub name: String,
    /// The other network.
    pub with: JoinWith,
    /// Further addresses that lie behind the other side, as CIDR ranges.
    #[serde(default)]
    pub ranges: Vec<String>,
}

/// A network to join with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum JoinWith {
    /// A network namespace of the cloud's machine.
    Namespace {
        /// Its name in `ip netns list`.
        namespace: String,
    },
    /// A bridge of the cloud's machine.
    Bridge {
        /// Its name.
        bridge: String,
        /// A free address of the bridge's network for the cluster, `IP/LENGTH`.
        address: String,
    },
    /// The network behind an interface of the cloud's machine.
    Interface {
        /// Its name.
        interface: String,
        /// A free address of that network for the cluster, `IP/LENGTH`.
        address: String,
    },
    /// A network elsewhere, by WireGuard.
    WireGuard {
        /// The other side's public key; may follow with the acceptance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        public_key: Option<String>,
        /// The UDP port on this machine; the lowest free one from 51820 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listen_port: Option<u16>,
        /// Where the other side is reached, `HOST:PORT`; absent where it always calls first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
    },
}

/// `POST /chitin/clusters/{id}/peerings/{name}/accept`. An empty body is as good as `{}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AcceptPeering {
    /// The other side's public key, for WireGuard, where it is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// A peering, as it is shown. The private key of a tunnel never is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peering {
    /// Its name and where it stands.
    #[serde(flatten)]
    pub status: PeeringStatus,
    /// The other network; absent of a peering that was deleted and is being taken apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<JoinedWith>,
    /// Further addresses that lie behind the other side.
    #[serde(default)]
    pub ranges: Vec<AddressRange>,
    /// When it was proposed.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub created_at: Option<OffsetDateTime>,
}

/// Where a peering stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeeringStatus {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: PeeringState,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The states of a peering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeeringState {
    /// It waits for acceptance, or was accepted and is being made.
    Pending,
    /// Both sides are joined.
    Active,
    /// It could not be made; the next attempt follows by itself.
    Failed,
    /// It was deleted and is being taken apart.
    Deleting,
}

impl PeeringState {
    /// The state by its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

/// A network that a cluster is joined with, or will be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum JoinedWith {
    /// A network namespace of the cloud's machine.
    Namespace {
        /// Its name.
        namespace: String,
        /// The namespace's address inside the cluster's private network.
        address: IpAddr,
    },
    /// A bridge of the cloud's machine.
    Bridge {
        /// Its name.
        bridge: String,
        /// The cluster's address in the bridge's network, `IP/LENGTH`.
        address: String,
    },
    /// The network behind an interface of the cloud's machine.
    Interface {
        /// Its name.
        interface: String,
        /// The cluster's address in that network, `IP/LENGTH`.
        address: String,
    },
    /// A network elsewhere, by WireGuard.
    WireGuard {
        /// The cluster's public key, for the other side.
        own_public_key: String,
        /// The other side's public key, once it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        public_key: Option<String>,
        /// The UDP port on this machine.
        listen_port: u16,
        /// Where the other side is reached, `HOST:PORT`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// The other side's address inside the cluster's private network.
        address: IpAddr,
    },
}

impl JoinedWith {
    /// The other network in a few words.
    pub fn describe(&self) -> String {
        match self {
            Self::Namespace { namespace, .. } => format!("namespace {namespace}"),
            Self::Bridge { bridge, .. } => format!("bridge {bridge}"),
            Self::Interface { interface, .. } => format!("interface {interface}"),
            Self::WireGuard { listen_port, .. } => format!("wireguard on port {listen_port}"),
        }
    }
}

/// `GET /chitin/clusters/{id}/peerings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peerings {
    /// By name.
    pub peerings: Vec<Peering>,
}

/// `GET /chitin/clusters/{id}/peerings/{name}/config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeeringConfig {
    /// The configuration file for the other side, as `wg-quick` reads it. Its private key is for the other side to fill in.
    pub config: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn exactly_one_network_is_joined_with() {
        let read = |value| serde_json::from_value::<JoinWith>(value);
        assert_eq!(
            read(json!({"kind": "namespace", "namespace": "office"})).unwrap(),
            JoinWith::Namespace { namespace: "office".to_owned() }
        );
        let tunnel = JoinWith::WireGuard { public_key: None, listen_port: None, endpoint: None };
        assert_eq!(read(json!({"kind": "wireguard"})).unwrap(), tunnel);
        assert_eq!(json!(tunnel), json!({"kind": "wireguard"}));
        for wrong in [json!({}), json!({"kind": "bridge", "bridge": "br0"}), json!({"kind": "vpn"})] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn states_are_written_as_they_are_called() {
        let all = [PeeringState::Pending, PeeringState::Active, PeeringState::Failed, PeeringState::Deleting];
        for state in all {
            assert_eq!(json!(state), json!(state.as_str()));
        }
        let all = [
            NetworkState::None,
            NetworkState::Pending,
            NetworkState::Active,
            NetworkState::Failed,
            NetworkState::Deleting,
        ];
        for state in all {
            assert_eq!(json!(state), json!(state.as_str()));
        }
    }

    #[test]
    fn a_peering_has_its_state_beside_its_name() {
        let status = PeeringStatus { name: "office".to_owned(), state: PeeringState::Deleting, reason: None };
        let shown = Peering { status, with: None, ranges: Vec::new(), created_at: None };
        let text = json!({"name": "office", "state": "deleting", "ranges": []});
        assert_eq!(json!(shown), text);
        assert_eq!(serde_json::from_value::<Peering>(text).unwrap(), shown);
    }
}
