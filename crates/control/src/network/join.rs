//! A peering as somebody asks for it, and what must hold before it is written.

use api::{CreatePeering, JoinWith};
use ipnet::IpNet;
use model::{
    AddressRange, Cluster, PEERING_RANGES_MAX, PEERINGS_MAX, Peering, PeeringName, PeeringWish, PeeringWith,
    WireGuardPeer,
};
use time::OffsetDateTime;

use crate::network::ranges::{self, Others};
use crate::network::wireguard;
use crate::{Administration, Refusal};

/// The kernel's bound, IFNAMSIZ less its zero.
const INTERFACE_BYTES_MAX: usize = 15;
const NAMESPACE_BYTES_MAX: usize = 64;

/// A peering that is sound in itself. Whether it fits its cluster is seen in [`Proposal::fit`].
pub(super) struct Proposal {
    name: PeeringName,
    with: Other,
    ranges: Vec<AddressRange>,
}

enum Other {
    Namespace(String),
    Bridge(String, IpNet),
    Interface(String, IpNet),
    WireGuard { public_key: Option<String>, listen_port: Option<u16>, endpoint: Option<String> },
}

impl Proposal {
    /// Reads a request.
    pub(super) fn read(request: CreatePeering) -> Result<Self, Refusal> {
        let with = match request.with {
            JoinWith::Namespace { namespace } => {
                Other::Namespace(device("the namespace's name", namespace, NAMESPACE_BYTES_MAX)?)
            }
            JoinWith::Bridge { bridge, address } => Other::Bridge(
                device("the bridge's name", bridge, INTERFACE_BYTES_MAX)?,
                address_in_network(&address)?,
            ),
            JoinWith::Interface { interface, address } => Other::Interface(
                device("the interface's name", interface, INTERFACE_BYTES_MAX)?,
                address_in_network(&address)?,
            ),
            JoinWith::WireGuard { public_key, listen_port, endpoint } => Other::WireGuard {
                public_key: public_key.as_deref().map(wireguard::public_key).transpose()?,
                listen_port,
                endpoint: endpoint.as_deref().map(wireguard::endpoint).transpose()?,
            },
        };
        if request.ranges.len() > PEERING_RANGES_MAX {
            return Err(Refusal::invalid(format_args!(
                "a peering names at most {PEERING_RANGES_MAX} ranges; join neighbouring ones to wider ones"
            )));
        }
        let read = |text: &String| {
            let range: AddressRange =
                text.parse().map_err(|error| Refusal::invalid(format_args!("{error}")))?;
            ranges::may_lie_behind(range.into())?;
            Ok(range)
        };
        let ranges = request.ranges.iter().map(read).collect::<Result<_, Refusal>>()?;
        let name = super::peerings::name(&request.name)?;
        Ok(Self { name, with, ranges })
    }

    /// The peering, if it fits this cluster among all others. To be called under the store's lock.
    pub(super) fn fit(
        self,
        cluster: &Cluster,
        others: &Others<'_>,
        administration: &dyn Administration,
        now: OffsetDateTime,
    ) -> Result<Peering, Refusal> {
        let network = &cluster.network;
        let range = network.range.ok_or_else(|| no_network(cluster, others))?;
        if network.peering(&self.name).is_some() {
            return Err(Refusal::exists(format!(
                "the cluster has a peering {} already; choose another name, or delete that one first",
                self.name
            )));
        }
        if network.peerings.len() >= PEERINGS_MAX {
            return Err(Refusal::wrong_state(format!(
                "the cluster has {PEERINGS_MAX} peerings, which is the most; delete one first"
            )));
        }
        let address = || {
            network.free_address().ok_or_else(|| {
                Refusal::wrong_state(format!(
                    "no address of the private network {range} is free for another peering; delete one first"
                ))
            })
        };
        let with = match self.with {
            Other::Namespace(namespace) => PeeringWith::Namespace { namespace, address: address()? },
            Other::Bridge(bridge, address) => PeeringWith::Bridge { bridge, address },
            Other::Interface(interface, address) => PeeringWith::Interface { interface, address },
            Other::WireGuard { public_key, listen_port, endpoint } => {
                let private_key = administration.wireguard_private_key();
                if let Some(key) = &public_key {
                    wireguard::check_not_ours(key, &private_key, administration)?;
                    wireguard::check_foreign(key, network, None, administration)?;
                }
                PeeringWith::WireGuard(WireGuardPeer {
                    private_key,
                    public_key,
                    listen_port: wireguard::listen_port(listen_port, others)?,
                    endpoint,
                    address: address()?,
                })
            }
        };
        let peering = Peering {
            name: self.name,
            with,
            ranges: self.ranges,
            wish: PeeringWish::Proposed,
            created_at: now,
        };
        check_addresses(&peering, range.into(), cluster, others)?;
        check_own_address(&peering, others)?;
        Ok(peering)
    }
}

/// What lies behind a peering is of one kind with the private network, and belongs to nobody else that the cluster or the
/// cloud knows.
fn check_addresses(
    peering: &Peering,
    own: IpNet,
    cluster: &Cluster,
    others: &Others<'_>,
) -> Result<(), Refusal> {
    let mut seen: Vec<IpNet> = Vec::new();
    for net in ranges::behind(peering) {
        if net.addr().is_ipv4() != own.addr().is_ipv4() {
            let kind = if own.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(Refusal::invalid(format_args!(
                "the private network {own} is {kind}, so {net} cannot be joined with it"
            )));
        }
        if ranges::overlap(&net, &own) {
            return Err(Refusal::invalid(format_args!("{net} overlaps the private network {own} itself")));
        }
        if let Some(twice) = seen.iter().find(|known| ranges::overlap(known, &net)) {
            return Err(Refusal::invalid(format_args!("{net} and {twice} overlap; name one of them")));
        }
        for other in &cluster.network.peerings {
            if let Some(taken) = ranges::behind(other).find(|taken| ranges::overlap(taken, &net)) {
                return Err(Refusal::invalid(format_args!(
                    "{net} overlaps {taken}, which lies behind the peering {}; it cannot lie behind two",
                    other.name
                )));
            }
        }
        others.leave_to_others(net)?;
        seen.push(net);
    }
    Ok(())
}

/// Two clusters may be in one bridge's network, but not as one address.
fn check_own_address(peering: &Peering, others: &Others<'_>) -> Result<(), Refusal> {
    let place = |peering: &Peering| match &peering.with {
        PeeringWith::Bridge { bridge: device, address }
        | PeeringWith::Interface { interface: device, address } => Some((device.clone(), address.addr())),
        PeeringWith::Namespace { .. } | PeeringWith::WireGuard(_) => None,
    };
    match place(peering) {
        Some((device, address))
            if others.peerings().any(|(_, other)| place(other) == Some((device.clone(), address))) =>
        {
            Err(Refusal::invalid(format_args!(
                "{address} is another peering's address on {device} already; choose a free one of that network"
            )))
        }
        Some(_) | None => Ok(()),
    }
}

fn no_network(cluster: &Cluster, others: &Others<'_>) -> Refusal {
    let name = &cluster.name;
    let range = others.free_range().map_or_else(|_| "CIDR".to_owned(), |range| range.to_string());
    Refusal::wrong_state(format!(
        "the cluster has no private network to join with; make one: chitin cluster visibility {name} private, or to \
         stay public too: chitin cluster visibility {name} public --cidr {range}"
    ))
}

/// A name as the kernel takes it, and as no program takes for a path, an option or a pattern.
fn device(what: &str, name: String, bytes_max: usize) -> Result<String, Refusal> {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    let is_name = (1..=bytes_max).contains(&name.len())
        && name.bytes().all(is_plain)
        && name != "."
        && name != ".."
        && !name.starts_with('-');
    if !is_name {
        return Err(Refusal::invalid(format_args!(
            "{what} has 1 to {bytes_max} letters, digits and signs, without white space, `/`, `:` and `%`, and \
             no dash before it"
        )));
    }
    Ok(name)
}

/// An address for one machine of a network, with that network's prefix.
fn address_in_network(text: &str) -> Result<IpNet, Refusal> {
    let shown: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
    let refused = |why: &str| {
        Refusal::invalid(format_args!(
            "`{shown}` is not an address of that network for this cluster ({why}); write for instance 192.168.5.2/24"
        ))
    };
    let net: IpNet = text.parse().map_err(|_| refused("it is no IP/LENGTH"))?;
    ranges::may_lie_behind(net.trunc())?;
    // Two addresses are the least that a network of two has (RFC 3021, RFC 6164).
    if net.prefix_len() == net.max_prefix_len() {
        return Err(refused("no other machine has room in it"));
    }
    if net.max_prefix_len() - net.prefix_len() > 1 {
        let is_broadcast = net.addr().is_ipv4() && net.addr() == net.broadcast();
        if net.addr() == net.network() || is_broadcast {
            return Err(refused("it is the network's own or its broadcast address"));
        }
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_kernel_takes() {
        for good in ["office", "br-lan", "eth0.100", "a", "fifteen-letters", "en_p0@x"] {
            assert!(device("x", good.to_owned(), INTERFACE_BYTES_MAX).is_ok(), "{good}");
        }
        for wrong in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a b",
            "a\tb",
            "a\nb",
            "a\0b",
            "eth%d",
            "eth0:1",
            "-x",
            "sixteen-letters-",
            "b\u{fc}ro",
        ] {
            assert!(device("x", wrong.to_owned(), INTERFACE_BYTES_MAX).is_err(), "{wrong:?}");
        }
        assert!(device("x", "n".repeat(64), NAMESPACE_BYTES_MAX).is_ok());
        assert!(device("x", "n".repeat(65), NAMESPACE_BYTES_MAX).is_err());
    }

    #[test]
    fn an_address_is_one_machine_s_and_has_its_network() {
        for good in ["192.168.5.2/24", "10.0.0.0/31", "10.0.0.1/31", "fd00:5::2/64", "fd00::1/127"] {
            assert_eq!(address_in_network(good).unwrap().to_string(), good);
        }
        for wrong in [
            "",
            "192.168.5.2",
            "192.168.5.0/24",
            "192.168.5.255/24",
            "192.168.5.2/32",
            "192.168.5.2/33",
            "fd00:5::/64",
            "fd00:5::2/128",
            "127.0.0.1/24",
            "169.254.1.1/16",
            "10.1.1.1/7",
            "::ffff:192.168.5.2/120",
            "office/24",
        ] {
            assert!(address_in_network(wrong).is_err(), "{wrong}");
        }
    }
}
