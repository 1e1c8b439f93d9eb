//! A cluster's network: who can see its front door, what it is joined with, and which private endpoints lead to it.
//! Documents only.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{AddressRange, EndpointId, InvalidName};

/// Most peerings of one cluster.
pub const PEERINGS_MAX: usize = 32;
/// Most ranges that lie behind one peering.
pub const PEERING_RANGES_MAX: usize = 16;
/// Most private endpoint connections of one cluster, those that wait for acceptance included.
pub const ENDPOINTS_MAX: usize = 100;
/// Most of them that came by themselves and wait for acceptance; further ones are refused and not remembered.
pub const ENDPOINTS_WAITING_MAX: usize = 20;
/// Most trusted owners of one cluster.
pub const TRUSTED_OWNERS_MAX: usize = 100;
/// An endpoint that nobody accepted within so many days is expired.
pub const ENDPOINT_WAIT_DAYS: i64 = 7;

/// Who can see a cluster's front door.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Visibility {
    /// Everybody whom the allowlist lets in, and the private network where there is one.
    #[default]
    Public,
    /// Only the cluster's private network and accepted private endpoints.
    Private,
}

impl Visibility {
    /// The Cloud API's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "PUBLIC",
            Self::Private => "PRIVATE",
        }
    }
}

/// What should be true of a cluster's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Who can see the front door.
    pub visibility: Visibility,
    /// The private network's addresses; `None` where the cluster has no private network. The front door has the first
    /// address after the network's own.
    pub range: Option<AddressRange>,
    /// What the private network is joined with.
    pub peerings: Vec<Peering>,
    /// Whether the private endpoint service was made (dedicated clusters; on serverless ones it exists by itself).
    pub has_endpoint_service: bool,
    /// Whether cancel requests in plaintext are refused; taken, they must come from the session's own address.
    pub refuses_plaintext_cancels: bool,
    /// Private endpoint connections.
    pub endpoints: Vec<EndpointConnection>,
    /// Owners whose endpoints may be accepted; empty means every owner.
    pub trusted_owners: Vec<TrustedOwner>,
}

impl Network {
    /// The front door's address inside the private network.
    pub fn front_door(&self) -> Option<IpAddr> {
        self.range.and_then(|range| nth(range, 1))
    }

    /// The lowest address of the private network, after the front door's, that no peering uses.
    pub fn free_address(&self) -> Option<IpAddr> {
        let range = self.range?;
        let used: Vec<IpAddr> = self.peerings.iter().filter_map(Peering::tunnel_address).collect();
        (2..=(PEERINGS_MAX as u128) + 2)
            .filter_map(|number| nth(range, number))
            .find(|address| !used.contains(address))
    }

    /// The peering of this name.
    pub fn peering(&self, name: &PeeringName) -> Option<&Peering> {
        self.peerings.iter().find(|peering| peering.name == *name)
    }

    /// The endpoint connection of this id.
    pub fn endpoint(&self, id: &EndpointId) -> Option<&EndpointConnection> {
        self.endpoints.iter().find(|endpoint| endpoint.id == *id)
    }

    /// Whether an address of the private network may come in: it lies behind a peering that was accepted. A WireGuard
    /// peer that is also a private endpoint needs that to be accepted too.
    pub fn admits(&self, address: IpAddr) -> bool {
        self.peerings.iter().any(|peering| {
            peering.wish == PeeringWish::Accepted
                && peering.covers(address)
                && peering
                    .endpoint_id()
                    .and_then(|id| self.endpoint(&id))
                    .is_none_or(EndpointConnection::is_available)
        })
    }

    /// Whether there is any network that is this cluster's alone.
    pub fn is_apart(&self) -> bool {
        self.range.is_some() || !self.peerings.is_empty()
    }

    /// Whether the address lies in a network that is this cluster's alone: its private one, or one that an accepted
    /// peering joins with it.
    pub fn owns(&self, address: IpAddr) -> bool {
        let address = crate::canonical(address);
        let is_joined = |peering: &Peering| {
            let own = match &peering.with {
                PeeringWith::Bridge { address, .. } | PeeringWith::Interface { address, .. } => {
                    Some(address.addr())
                }
                PeeringWith::Namespace { .. } | PeeringWith::WireGuard(_) => None,
            };
            peering.wish == PeeringWish::Accepted && (own == Some(address) || peering.covers(address))
        };
        self.range.is_some_and(|range| range.contains(address)) || self.peerings.iter().any(is_joined)
    }
}

/// The address so many after a range's first; `None` outside the range, and for an IPv4 range's broadcast address.
fn nth(range: AddressRange, number: u128) -> Option<IpAddr> {
    let address: IpAddr = match range.address() {
        IpAddr::V4(first) => {
            IpAddr::V4(u32::try_from(number).ok().and_then(|n| first.to_bits().checked_add(n))?.into())
        }
        IpAddr::V6(first) => IpAddr::V6(first.to_bits().checked_add(number)?.into()),
    };
    let is_broadcast = address.is_ipv4() && IpNet::from(range).broadcast() == address;
    (range.contains(address) && !is_broadcast).then_some(address)
}

/// A peering's name, unique in its cluster: 1 to 32 of `a-z`, `0-9` and `-`, no dash at either end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeeringName(String);

impl PeeringName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PeeringName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_name = (1..=32).contains(&text.len())
            && text.bytes().all(is_plain)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if !is_name {
            return Err(InvalidName::new(
                "peering name",
                "it has 1 to 32 lower-case letters, digits and dashes, with no dash at either end",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for PeeringName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PeeringName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<PeeringName> for String {
    fn from(name: PeeringName) -> String {
        name.0
    }
}

/// A cluster's private network joined with another network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peering {
    /// Its name.
    pub name: PeeringName,
    /// What it joins with.
    pub with: PeeringWith,
    /// Addresses of the other network: clients there may come in, and answers to them go that way. Beside them, what
    /// [`PeeringWith`] itself says.
    pub ranges: Vec<AddressRange>,
    /// What should become of it.
    pub wish: PeeringWish,
    /// When it was proposed.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

impl Peering {
    /// The other side's own address inside the cluster's private network, where it has one.
    pub fn tunnel_address(&self) -> Option<IpAddr> {
        match &self.with {
            PeeringWith::Namespace { address, .. } => Some(*address),
            PeeringWith::WireGuard(wireguard) => Some(wireguard.address),
            PeeringWith::Bridge { .. } | PeeringWith::Interface { .. } => None,
        }
    }

    /// Whether a client with this address comes through the peering.
    pub fn covers(&self, address: IpAddr) -> bool {
        let address = crate::canonical(address);
        let by_itself = match &self.with {
            PeeringWith::Namespace { address: own, .. } => *own == address,
            PeeringWith::WireGuard(wireguard) => wireguard.address == address,
            PeeringWith::Bridge { address: own, .. } | PeeringWith::Interface { address: own, .. } => {
                own.contains(&address) && own.addr() != address
            }
        };
        by_itself || self.ranges.iter().any(|range| range.contains(address))
    }

    /// The private endpoint that a WireGuard peer is, once its key is known.
    pub fn endpoint_id(&self) -> Option<EndpointId> {
        match &self.with {
            PeeringWith::WireGuard(wireguard) => wireguard.public_key.clone().map(EndpointId::WireGuard),
            PeeringWith::Namespace { .. } | PeeringWith::Bridge { .. } | PeeringWith::Interface { .. } => {
                None
            }
        }
    }
}

/// The other network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum PeeringWith {
    /// A network namespace of this machine (`ip netns`), joined by a veth pair.
    Namespace {
        /// The namespace's name, as `ip netns list` shows it.
        namespace: String,
        /// The namespace's address inside the cluster's private network.
        address: IpAddr,
    },
    /// A bridge of this machine, joined by a veth pair.
    Bridge {
        /// The bridge's name.
        bridge: String,
        /// Our address in the bridge's network, with that network's prefix length.
        address: IpNet,
    },
    /// The network behind an interface of this machine, joined by a macvlan link on it.
    Interface {
        /// The interface's name.
        interface: String,
        /// Our address in that network, with its prefix length.
        address: IpNet,
    },
    /// A network elsewhere, joined by WireGuard.
    WireGuard(WireGuardPeer),
}

/// Both ends of a WireGuard tunnel. Keys are 32 bytes in base64, as WireGuard writes them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireGuardPeer {
    /// Our private key. A secret: never shown.
    pub private_key: String,
    /// The other side's public key; `None` until it is known, and until then nothing can be accepted.
    #[serde(default)]
    pub public_key: Option<String>,
    /// The UDP port on which this machine listens for it, 1 to 65535.
    pub listen_port: u16,
    /// Where the other side is reached, `HOST:PORT`; `None` where it always calls first.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The other side's address inside the cluster's private network.
    pub address: IpAddr,
}

impl fmt::Debug for WireGuardPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireGuardPeer")
            .field("public_key", &self.public_key)
            .field("listen_port", &self.listen_port)
            .field("endpoint", &self.endpoint)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Whether a text is a WireGuard key: 32 bytes in padded base64.
pub fn is_wireguard_key(text: &str) -> bool {
    let is_symbol = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    // The 43rd symbol carries four bits; other ones would be second spellings of the same key.
    let is_last = |b: u8| b"AEIMQUYcgkosw048".contains(&b);
    text.len() == 44
        && text.ends_with('=')
        && text.bytes().take(43).all(is_symbol)
        && text.as_bytes().get(42).copied().is_some_and(is_last)
}

/// What should become of a peering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeeringWish {
    /// It was proposed and waits for acceptance.
    Proposed,
    /// It carries clients.
    Accepted,
}

/// A private endpoint that leads to a cluster, or wants to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointConnection {
    /// Which.
    pub id: EndpointId,
    /// Whose, where that is known: an AWS account's 12 digits.
    #[serde(default)]
    pub owner: Option<String>,
    /// Whether it may come in.
    pub state: EndpointState,
    /// When it was added, or first seen.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

impl EndpointConnection {
    /// Whether clients over it are let in.
    pub fn is_available(&self) -> bool {
        self.state == EndpointState::Available
    }

    /// Whether nobody decided about it in time ([`ENDPOINT_WAIT_DAYS`]).
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.state == EndpointState::PendingAcceptance
            && now - self.created_at > time::Duration::days(ENDPOINT_WAIT_DAYS)
    }
}

/// Whether a private endpoint may come in. The Cloud API's further states are derived or pass at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EndpointState {
    /// It came by itself, or its owner is not trusted, and nobody decided yet.
    PendingAcceptance,
    /// It was accepted.
    Available,
    /// It was rejected.
    Rejected,
}

/// An owner whose private endpoints may be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedOwner {
    /// Names this entry in the API.
    pub id: uuid::Uuid,
    /// An AWS account's 12 digits, or `*` for everybody.
    pub external_owner_id: String,
    /// When it was added.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// What was last seen of a cluster's private network, written by the reconciler alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSeen {
    /// The front door inside the private network, once it listens.
    pub front_door: Option<IpAddr>,
    /// Why there is none although there should be, for the operator.
    pub reason: Option<String>,
    /// Peerings, by name.
    pub peerings: std::collections::BTreeMap<PeeringName, PeeringPhase>,
}

/// What was last seen of a peering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeeringPhase {
    /// It waits for acceptance, or for its turn.
    Pending,
    /// Both sides are joined.
    Active,
    /// It could not be made; the next attempt follows by itself.
    Failed {
        /// What went wrong and what to do, for the operator.
        reason: String,
    },
    /// It is being taken apart.
    Deleting,
}

impl PeeringPhase {
    /// The phase as one word for people and programs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Failed { .. } => "failed",
            Self::Deleting => "deleting",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(range: &str) -> Network {
        Network { range: Some(range.parse().unwrap()), ..Network::default() }
    }

    fn namespace(network: &Network, name: &str, ranges: &[&str]) -> Peering {
        Peering {
            name: name.parse().unwrap(),
            with: PeeringWith::Namespace {
                namespace: "office".to_owned(),
                address: network.free_address().unwrap(),
            },
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            wish: PeeringWish::Accepted,
            created_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn addresses_are_given_out_in_order_and_end_with_the_range() {
        let mut own = network("10.77.0.0/29");
        assert_eq!(own.front_door(), Some("10.77.0.1".parse().unwrap()));
        for expected in ["10.77.0.2", "10.77.0.3", "10.77.0.4", "10.77.0.5", "10.77.0.6"] {
            assert_eq!(own.free_address(), Some(expected.parse().unwrap()));
            let next = namespace(&own, "a", &[]);
            own.peerings.push(next);
        }
        assert_eq!(own.free_address(), None, "10.77.0.7 is the broadcast address");
        assert_eq!(network("fd00:1::/64").front_door(), Some("fd00:1::1".parse().unwrap()));
        assert_eq!(Network::default().front_door(), None);
    }

    #[test]
    fn only_what_lies_behind_an_accepted_peering_is_admitted() {
        let mut own = network("10.77.0.0/24");
        let peering = namespace(&own, "office", &["192.168.5.0/24"]);
        own.peerings.push(peering);
        let admits = |own: &Network, text: &str| own.admits(text.parse().unwrap());
        assert!(
            admits(&own, "10.77.0.2") && admits(&own, "192.168.5.9") && admits(&own, "::ffff:192.168.5.9")
        );
        assert!(!admits(&own, "10.77.0.3") && !admits(&own, "192.168.6.1"));
        own.peerings[0].wish = PeeringWish::Proposed;
        assert!(!admits(&own, "10.77.0.2"));
    }

    #[test]
    fn a_cluster_owns_its_private_network_and_what_was_joined_with_it() {
        let mut own = network("10.77.0.0/24");
        let peering = namespace(&own, "office", &["192.168.5.0/24"]);
        own.peerings.push(peering.clone());
        own.peerings.push(Peering {
            with: PeeringWith::Bridge { bridge: "br0".to_owned(), address: "172.20.0.7/16".parse().unwrap() },
            ranges: Vec::new(),
            ..peering
        });
        let owns = |own: &Network, text: &str| own.owns(text.parse().unwrap());
        for address in ["10.77.0.1", "10.77.0.99", "::ffff:192.168.5.9", "172.20.0.7", "172.20.255.1"] {
            assert!(owns(&own, address), "{address}");
        }
        assert!(!owns(&own, "10.78.0.1") && !owns(&own, "192.168.6.1") && !owns(&own, "172.21.0.1"));
        own.peerings[0].wish = PeeringWish::Proposed;
        assert!(!owns(&own, "192.168.5.9"), "nobody takes a network by proposing it");
        assert!(own.is_apart() && !Network::default().is_apart());
    }

    #[test]
    fn a_wireguard_peer_that_was_rejected_as_an_endpoint_stays_out() {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let mut own = network("10.77.0.0/24");
        own.peerings.push(Peering {
            name: "far".parse().unwrap(),
            with: PeeringWith::WireGuard(WireGuardPeer {
                private_key: "canary".to_owned(),
                public_key: Some(key.to_owned()),
                listen_port: 51820,
                endpoint: None,
                address: "10.77.0.2".parse().unwrap(),
            }),
            ranges: Vec::new(),
            wish: PeeringWish::Accepted,
            created_at: OffsetDateTime::UNIX_EPOCH,
        });
        assert!(!format!("{own:?}").contains("canary"));
        let address = "10.77.0.2".parse().unwrap();
        assert!(own.admits(address));
        for (state, expected) in [
            (EndpointState::PendingAcceptance, false),
            (EndpointState::Available, true),
            (EndpointState::Rejected, false),
        ] {
            let id = EndpointId::WireGuard(key.to_owned());
            let created_at = OffsetDateTime::UNIX_EPOCH;
            own.endpoints = vec![EndpointConnection { id, owner: None, state, created_at }];
            assert_eq!(own.admits(address), expected, "{state:?}");
        }
    }

    #[test]
    fn a_key_has_one_spelling() {
        assert!(is_wireguard_key("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="));
        for wrong in [
            "",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdH-8=",
        ] {
            assert!(!is_wireguard_key(wrong), "{wrong}");
        }
    }
}
