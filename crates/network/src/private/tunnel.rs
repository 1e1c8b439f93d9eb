//! WireGuard: the socket in the machine's network, the tunnel's other end in the cluster's.
//!
//! In user space on every kernel. The kernel's own WireGuard would be faster, but then two machines would run two
//! implementations, and a door for databases is seldom held up by its tunnel.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures::FutureExt;
use gotatun::device::{DefaultDeviceTransports, Device, DeviceBuilder, Error, Peer};
use gotatun::tun::tun;
use gotatun::tun::tun_async_device::TunDevice;
use gotatun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use model::WireGuardPeer;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout};

use super::Failure;
use super::local::Own;
use super::plan::LinkPlan;
use crate::wireguard_key;

/// For finding the other side's address by its name.
const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// Without a handshake for so long, the other side may have another address now. WireGuard makes one every two minutes
/// while it is used.
const SILENT_MAX: Duration = Duration::from_secs(180);
/// Tries to take a port that we may just have given back.
const BIND_TRIES_MAX: u32 = 10;
const BIND_PAUSE: Duration = Duration::from_millis(50);
/// For what was sent into the tunnel to leave it: it is encrypted and passed on in the tunnel's own time.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Seconds between packets that keep the way to the other side open through routers that forget, where we know its
/// address and so may be the one that is behind such a router.
const KEEPALIVE_SECONDS: u16 = 25;
/// What is left of 1500 bytes when WireGuard, UDP and IPv6 have taken theirs.
const PACKET_BYTES_MAX: u16 = 1420;

/// A tunnel that runs.
pub(crate) struct Tunnel {
    device: Device<DefaultDeviceTransports>,
    /// The number of its link in the cluster's network.
    index: u32,
    peer: WireGuardPeer,
    public_key: PublicKey,
    allowed: Vec<IpNet>,
    endpoint: Option<SocketAddr>,
    resolved_at: Instant,
}

impl Tunnel {
    /// Makes the tunnel, or makes what differs in the one that runs.
    pub(crate) async fn ensure(
        running: &mut Option<Self>,
        own: &Own<'_>,
        link: &LinkPlan,
        peer: &WireGuardPeer,
    ) -> Result<(), Failure> {
        let here = own.find(link).await?;
        if let Some(tunnel) = running
            && here.as_ref().is_some_and(|here| here.index == tunnel.index)
            && tunnel.is_alive()
            && tunnel.is_of(peer)
        {
            own.finish(link, tunnel.index).await?;
            return tunnel.follow(link, peer).await;
        }
        if let Some(old) = running.take() {
            old.close().await;
        }
        if let Some(old) = here {
            own.delete(&old).await?;
        }
        *running = Some(Self::open(own, link, peer).await?);
        Ok(())
    }

    async fn open(own: &Own<'_>, link: &LinkPlan, peer: &WireGuardPeer) -> Result<Self, Failure> {
        let public_key = peer.public_key.as_deref().and_then(wireguard_key::bytes).ok_or_else(|| {
            Failure(
                "the other side's public key is not known; set it, then the peering follows by itself"
                    .to_owned(),
            )
        })?;
        let private_key = wireguard_key::bytes(&peer.private_key).ok_or_else(|| {
            Failure("our own private key is damaged; delete the peering and make it again".to_owned())
        })?;
        let public_key = PublicKey::from(*public_key);
        let endpoint = resolve(peer).await?;
        wait_for_port(peer.listen_port).await?;
        // The link is switched on before the socket is there: a packet for a link that is off ends the tunnel.
        let (tun, index) = make_link(own, link).await?;
        let device = DeviceBuilder::new()
            .with_default_udp()
            .with_listen_port(peer.listen_port)
            .with_ip(tun)
            .with_private_key(StaticSecret::from(*private_key))
            .with_peer(describe(public_key, endpoint, &link.sources));
        let device = device.build().await.map_err(|cause| match cause {
            Error::Bind(cause, _) => port_taken(peer.listen_port, &cause),
            cause => Failure(format!("WireGuard could not be started: {cause}; it is tried again by itself")),
        })?;
        Ok(Self {
            device,
            index,
            peer: peer.clone(),
            public_key,
            allowed: link.sources.clone(),
            endpoint,
            resolved_at: Instant::now(),
        })
    }

    /// Whether it could go on; it ends when its link is removed.
    fn is_alive(&mut self) -> bool {
        self.device.wait().now_or_never().is_none()
    }

    /// Whether it has these keys, this port and this endpoint; what else differs can be changed while it runs.
    fn is_of(&self, peer: &WireGuardPeer) -> bool {
        let WireGuardPeer { private_key, public_key, listen_port, endpoint, address: _ } = peer;
        (private_key, public_key, listen_port, endpoint)
            == (&self.peer.private_key, &self.peer.public_key, &self.peer.listen_port, &self.peer.endpoint)
    }

    /// Follows the document's ranges, and the other side to another address when it has long been silent.
    async fn follow(&mut self, link: &LinkPlan, peer: &WireGuardPeer) -> Result<(), Failure> {
        if self.allowed != link.sources {
            let allowed: Vec<_> = link.sources.iter().map(to_network).collect();
            let changed = self.device.modify_peer(&self.public_key, |peer| {
                peer.clear_allowed_ips();
                peer.add_allowed_ips(allowed);
            });
            changed.await.map_err(|cause| Failure(format!("WireGuard could not be changed: {cause}")))?;
            self.allowed.clone_from(&link.sources);
        }
        let may_have_moved = peer.endpoint.is_some() && self.resolved_at.elapsed() > SILENT_MAX;
        if may_have_moved && self.is_silent().await {
            self.resolved_at = Instant::now();
            // A name that is not found now was found before, and the other side may still call us.
            if let Ok(endpoint) = resolve(peer).await
                && endpoint != self.endpoint
            {
                let changed = self.device.modify_peer(&self.public_key, |peer| {
                    peer.set_endpoint(endpoint);
                });
                changed.await.map_err(|cause| Failure(format!("WireGuard could not be changed: {cause}")))?;
                self.endpoint = endpoint;
            }
        }
        Ok(())
    }

    async fn is_silent(&self) -> bool {
        let peers = self.device.peers().await;
        peers.iter().all(|peer| peer.stats.last_handshake.is_none_or(|since| since > SILENT_MAX))
    }

    /// Ends the tunnel; its link and its socket are gone with it. The last words to those behind it were said a moment ago.
    pub(crate) async fn close(self) {
        sleep(LAST_WORDS).await;
        self.device.stop().await;
    }
}

/// Makes the tunnel's link in the cluster's network and switches it on.
async fn make_link(own: &Own<'_>, link: &LinkPlan) -> Result<(TunDevice, u32), Failure> {
    let name = link.name.clone();
    let made = own.namespace.inside(move || {
        let mut wanted = tun::Configuration::default();
        wanted.tun_name(name).mtu(PACKET_BYTES_MAX);
        let device = tun::create_as_async(&wanted).map_err(io::Error::from)?;
        TunDevice::from_tun_device(device).map_err(io::Error::other)
    });
    let device = made.await.map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => Failure(
            "this machine has no /dev/net/tun; `modprobe tun` makes it, or give the container that device"
                .to_owned(),
        ),
        _ => Failure::because("the tunnel's link could not be made", &cause),
    })?;
    let found = own.made(link).await?;
    own.finish(link, found.index).await?;
    Ok((device, found.index))
}

/// Waits a moment for the port to be free: we may just have given it back.
async fn wait_for_port(port: u16) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        let six = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).await;
        let taken = match six {
            Ok(_) => return Ok(()),
            Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => cause,
            // Without IPv6 the tunnel takes an IPv4 socket.
            Err(_) => match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await {
                Ok(_) => return Ok(()),
                Err(cause) => cause,
            },
        };
        tries += 1;
        if tries == BIND_TRIES_MAX {
            return Err(port_taken(port, &taken));
        }
        sleep(BIND_PAUSE).await;
    }
}

fn port_taken(port: u16, cause: &io::Error) -> Failure {
    match cause.kind() {
        io::ErrorKind::AddrInUse => Failure(format!(
            "UDP port {port} is used by another program or peering; stop that one, or make the peering again with \
             another port"
        )),
        _ => Failure::because(&format!("UDP port {port} could not be opened"), cause),
    }
}

async fn resolve(peer: &WireGuardPeer) -> Result<Option<SocketAddr>, Failure> {
    let Some(endpoint) = &peer.endpoint else {
        return Ok(None);
    };
    let mut found = match timeout(RESOLVE_MAX, tokio::net::lookup_host(endpoint)).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    let any = found.first().copied();
    // The name's owner chooses its addresses, and our packets would go wherever they point.
    found.retain(|address| model::never_reached(address.ip()).is_none());
    if let (Some(address), []) = (any, found.as_slice()) {
        return Err(Failure(format!(
            "the other side's address '{endpoint}' is {}, which is never reached from here; correct it",
            address.ip()
        )));
    }
    found.first().copied().map(Some).ok_or_else(|| {
        Failure(format!(
            "the other side's address '{endpoint}' was not found; correct it, or check this machine's DNS"
        ))
    })
}

fn describe(public_key: PublicKey, endpoint: Option<SocketAddr>, allowed: &[IpNet]) -> Peer {
    let mut peer = Peer::new(public_key).with_allowed_ips(allowed.iter().map(to_network));
    peer.endpoint = endpoint;
    peer.keepalive = endpoint.map(|_| KEEPALIVE_SECONDS);
    peer
}

fn to_network(range: &IpNet) -> ipnetwork::IpNetwork {
    ipnetwork::IpNetwork::new(range.addr(), range.prefix_len()).expect("a range's prefix fits its address")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(endpoint: &str) -> WireGuardPeer {
        WireGuardPeer {
            private_key: String::new(),
            public_key: None,
            listen_port: 51_820,
            endpoint: Some(endpoint.to_owned()),
            address: "10.77.0.2".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn t51_a_tunnel_calls_no_metadata_and_nobody_s_neighbours() {
        for never in
            ["169.254.169.254:80", "[fd00:ec2::254]:80", "[::ffff:169.254.169.254]:80", "[fe80::1]:9"]
        {
            let Failure(why) = resolve(&peer(never)).await.unwrap_err();
            assert!(why.contains("never reached"), "{never}: {why}");
        }
        let good = resolve(&peer("192.0.2.7:51820")).await.unwrap();
        assert_eq!(good, Some("192.0.2.7:51820".parse().unwrap()));
    }
}
