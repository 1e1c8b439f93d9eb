//! WireGuard peerings: keys, ports, and the configuration for the other side. Our private keys stay in the document.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use model::{Cluster, Network, Peering, PeeringWith, WireGuardPeer};

use crate::network::ranges::Others;
use crate::{Administration, Refusal, Settings};

/// WireGuard's own; the first that is given out.
const PORT_FIRST: u16 = 51_820;
/// So that an answer finds its way through address translation, which forgets after 30 seconds and later.
const KEEPALIVE_SECONDS: u8 = 25;
const HOST_CHARACTERS_MAX: usize = 253;
const LABEL_CHARACTERS_MAX: usize = 63;

/// Reads another side's public key. What is refused is not repeated: it may be a private key in the wrong place.
pub(super) fn public_key(text: &str) -> Result<String, Refusal> {
    if !model::is_wireguard_key(text) {
        return Err(Refusal::invalid(
            "a WireGuard public key is 44 characters of base64 that end in `=`; `wg pubkey` prints it",
        ));
    }
    Ok(text.to_owned())
}

/// Reads where the other side is reached. The text goes into a configuration, so it holds a host and a port and nothing
/// else.
pub(super) fn endpoint(text: &str) -> Result<String, Refusal> {
    let refused = || {
        Refusal::invalid(
            "the endpoint is HOST:PORT, for instance vpn.example.org:51820, 203.0.113.7:51820 or [2001:db8::1]:51820",
        )
    };
    let is_good = if let Ok(address) = text.parse::<SocketAddr>() {
        let ip = address.ip();
        address.port() > 0 && !ip.is_unspecified() && !ip.is_multicast() && !text.contains('%')
    } else {
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let is_number = !port.starts_with('+') && port.parse::<u16>().is_ok_and(|port| port > 0);
        is_number && is_host_name(host)
    };
    if is_good { Ok(text.to_owned()) } else { Err(refused()) }
}

fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_CHARACTERS_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A name that ends in a number is an address that was mistyped.
    let ends_in_a_name = text.rsplit('.').next().is_some_and(|last| last.parse::<u64>().is_err());
    text.len() <= HOST_CHARACTERS_MAX && text.split('.').all(is_label) && ends_in_a_name
}

/// The port for a new tunnel: the one that is asked for, or the lowest that no tunnel of the cloud has.
pub(super) fn listen_port(asked: Option<u16>, others: &Others<'_>) -> Result<u16, Refusal> {
    let used: BTreeSet<u16> = others
        .peerings()
        .filter_map(|(_, peering)| tunnel(peering))
        .map(|tunnel| tunnel.listen_port)
        .collect();
    match asked {
        Some(0) => Err(Refusal::invalid("the listen port is 1 to 65535")),
        Some(port) if used.contains(&port) => Err(Refusal::exists(format!(
            "another WireGuard peering of this cloud listens on port {port}; choose another, or none to get a free one"
        ))),
        Some(port) => Ok(port),
        None => (PORT_FIRST..=u16::MAX).find(|port| !used.contains(port)).ok_or_else(|| {
            Refusal::wrong_state(format!("no port from {PORT_FIRST} on is free; name one below it"))
        }),
    }
}

/// Checks that a public key belongs to another side, and to one of this cluster only once.
pub(super) fn check_foreign(
    key: &str,
    network: &Network,
    but: Option<&Peering>,
    administration: &dyn Administration,
) -> Result<(), Refusal> {
    for peering in &network.peerings {
        let Some(tunnel) = tunnel(peering) else { continue };
        check_not_ours(key, &tunnel.private_key, administration)?;
        let is_other = but.is_none_or(|but| but.name != peering.name);
        if is_other && tunnel.public_key.as_deref() == Some(key) {
            return Err(Refusal::exists(format!(
                "the peering {} has this public key already; each other side has a key of its own",
                peering.name
            )));
        }
    }
    Ok(())
}

/// Checks that a public key is not the one of this side.
pub(super) fn check_not_ours(
    key: &str,
    private_key: &str,
    administration: &dyn Administration,
) -> Result<(), Refusal> {
    if administration.wireguard_public_key(private_key).as_deref() == Some(key) {
        return Err(Refusal::invalid(
            "this is the cluster's own public key; the other side's is printed there by `wg pubkey`",
        ));
    }
    Ok(())
}

/// Our public key of a tunnel.
pub(super) fn own_public_key(
    tunnel: &WireGuardPeer,
    administration: &dyn Administration,
) -> Result<String, Refusal> {
    administration
        .wireguard_public_key(&tunnel.private_key)
        .ok_or_else(|| Refusal::internal("a WireGuard key that is kept is none"))
}

/// The tunnel of a peering, where it is one.
pub(super) fn tunnel(peering: &Peering) -> Option<&WireGuardPeer> {
    match &peering.with {
        PeeringWith::WireGuard(tunnel) => Some(tunnel),
        PeeringWith::Namespace { .. } | PeeringWith::Bridge { .. } | PeeringWith::Interface { .. } => None,
    }
}

/// The other side's file, as `wg-quick` reads it. Nothing in it is secret.
pub(super) fn config(
    cluster: &Cluster,
    peering: &Peering,
    tunnel: &WireGuardPeer,
    own_public_key: &str,
    settings: &Settings,
) -> Result<String, Refusal> {
    let range = cluster.network.range.ok_or_else(|| {
        Refusal::wrong_state("the cluster has no private network any more, so nothing can be joined with it")
    })?;
    let bits = match tunnel.address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let (name, handle) = (&peering.name, cluster.handle());
    let mut text =
        format!("# The other side of the peering {name} with the cluster {handle}.\n[Interface]\n");
    // Writing to a string cannot fail.
    let _ = match &tunnel.public_key {
        Some(key) => writeln!(text, "# The private key whose public key is {key}"),
        None => writeln!(
            text,
            "# Make one with `wg genkey`; its public key is needed here: chitin peering accept {} {name} --public-key KEY",
            cluster.name
        ),
    };
    let _ = writeln!(text, "PrivateKey = <paste your private key>\nAddress = {}/{bits}", tunnel.address);
    if let Some((_, port)) = tunnel.endpoint.as_deref().and_then(|endpoint| endpoint.rsplit_once(':')) {
        let _ = writeln!(text, "ListenPort = {port}");
    }
    if !peering.ranges.is_empty() {
        let ranges: Vec<String> = peering.ranges.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            text,
            "# Behind this side lies {}: it must pass packets on (sysctl net.ipv4.ip_forward=1, or net.ipv6.conf.all.forwarding=1)",
            ranges.join(", ")
        );
    }
    let host = &settings.public_host;
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.clone() };
    let _ = write!(
        text,
        "\n[Peer]\nPublicKey = {own_public_key}\nAllowedIPs = {range}\n\
         # The cloud's machine; change the host if this side reaches it by another\n\
         Endpoint = {host}:{}\nPersistentKeepalive = {KEEPALIVE_SECONDS}\n",
        tunnel.listen_port
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_a_port_and_nothing_else() {
        for good in [
            "vpn.example.org:51820",
            "localhost:1",
            "203.0.113.7:51820",
            "[2001:db8::1]:65535",
            "a-1.example:9",
        ] {
            assert_eq!(endpoint(good).unwrap(), good);
        }
        let long = format!("{}:1", "a.".repeat(200));
        for wrong in [
            "",
            "vpn.example.org",
            "vpn.example.org:",
            "vpn.example.org:0",
            "vpn.example.org:65536",
            "vpn.example.org:+1",
            ":51820",
            "2001:db8::1:51820",
            "[2001:db8::1]",
            "[fe80::1%2]:51820",
            "0.0.0.0:51820",
            "[::]:51820",
            "224.0.0.1:51820",
            "203.0.113.300:51820",
            "203.0.113:51820",
            "-x.example.org:51820",
            "x..example.org:51820",
            "vpn.example.org:51820\nPostUp = reboot",
            "vpn.example.org\n:51820",
            "vpn example org:51820",
            "vpn.example.org:51820 ",
            "http://vpn.example.org:51820",
            &long,
        ] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
