//! One cluster's private network: brought to what its document says, and taken apart.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::time::Duration;

use ipnet::IpNet;
use model::{NetworkSeen, PeeringName, PeeringPhase, PeeringWith};
use rtnetlink::packet_route::link::InfoKind;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::local::{self, Own};
use super::namespace::Namespace;
use super::netlink::{Link, Netlink};
use super::plan::{LinkPlan, Plan};
use super::tunnel::Tunnel;
use super::{Failure, Unavailable};

/// For one link with its addresses and routes.
const LINK_MAX: Duration = Duration::from_secs(10);
/// For what is the network's own: its front door's address and its rules.
const OWN_MAX: Duration = Duration::from_secs(10);

/// A private network that is there.
pub(crate) struct ClusterNetwork {
    namespace: Namespace,
    tunnels: HashMap<PeeringName, Tunnel>,
}

impl ClusterNetwork {
    /// Makes an empty one.
    pub(crate) async fn make() -> Result<Self, Unavailable> {
        let made = async {
            let namespace = Namespace::make().await?;
            let netlink = namespace.netlink().await?;
            for link in netlink.links().await?.into_iter().filter(|link| link.is_loopback) {
                netlink.switch_on(link.index).await?;
            }
            Ok(namespace)
        };
        let namespace = made.await.map_err(|cause: io::Error| Unavailable::because(&cause))?;
        Ok(Self { namespace, tunnels: HashMap::new() })
    }

    /// Looks at the kernel and makes what is missing or differs from the plan.
    pub(crate) async fn ensure(&mut self, root: &File, plan: Plan) -> NetworkSeen {
        let mut peerings = plan.without_link.clone();
        let netlink = match timeout(OWN_MAX, self.ensure_own(&plan)).await {
            Ok(Ok(netlink)) => netlink,
            Ok(Err(cause)) => {
                return none(&plan, Failure::because("the private network could not be set up", &cause));
            }
            Err(_) => return none(&plan, too_slow(OWN_MAX)),
        };
        for link in &plan.links {
            let phase = match timeout(LINK_MAX, self.join(&netlink, root, &plan, link)).await {
                Ok(Ok(())) => PeeringPhase::Active,
                Ok(Err(Failure(reason))) => self.part(&netlink, link, reason).await,
                Err(_) => self.part(&netlink, link, too_slow(LINK_MAX).0).await,
            };
            peerings.insert(link.peering.clone(), phase);
        }
        NetworkSeen { front_door: Some(plan.front_door), reason: None, peerings }
    }

    /// What is not a link's. Rules go after links and come before them: there is no link without its rules.
    async fn ensure_own(&mut self, plan: &Plan) -> io::Result<Netlink> {
        let is_tunnel = |link: &LinkPlan| matches!(link.with, PeeringWith::WireGuard(_));
        let gone: Vec<PeeringName> = self
            .tunnels
            .keys()
            .filter(|name| !plan.links.iter().any(|link| link.peering == **name && is_tunnel(link)))
            .cloned()
            .collect();
        for tunnel in gone.iter().filter_map(|name| self.tunnels.remove(name)).collect::<Vec<_>>() {
            tunnel.close().await;
        }
        let netlink = self.namespace.netlink().await?;
        for link in netlink.links().await? {
            if link.is_loopback {
                netlink.set_addresses(link.index, &[IpNet::from(plan.front_door)]).await?;
                netlink.switch_on(link.index).await?;
            } else if !plan.links.iter().any(|wanted| wanted.name == link.name) && is_made(&link) {
                netlink.delete(link.index).await?;
            }
        }
        netlink.set_rules(&plan.rules()).await?;
        Ok(netlink)
    }

    async fn join(
        &mut self,
        netlink: &Netlink,
        root: &File,
        plan: &Plan,
        link: &LinkPlan,
    ) -> Result<(), Failure> {
        let own = Own { namespace: &self.namespace, netlink };
        match &link.with {
            PeeringWith::Namespace { namespace, address } => {
                let there = Namespace::named(root, namespace)?;
                local::namespace(&own, plan, link, &there, (namespace, *address)).await
            }
            PeeringWith::Bridge { bridge, address: _ } => local::bridge(&own, link, bridge).await,
            PeeringWith::Interface { interface, address: _ } => local::interface(&own, link, interface).await,
            PeeringWith::WireGuard(peer) => {
                let mut running = self.tunnels.remove(&link.peering);
                let ensured = Tunnel::ensure(&mut running, &own, link, peer).await;
                self.tunnels.extend(running.map(|tunnel| (link.peering.clone(), tunnel)));
                ensured
            }
        }
    }

    /// Removes what is there of a link that could not be made whole. What is said to have failed carries nobody.
    async fn part(&mut self, netlink: &Netlink, link: &LinkPlan, reason: String) -> PeeringPhase {
        if let Some(tunnel) = self.tunnels.remove(&link.peering) {
            tunnel.close().await;
        }
        let removed = async {
            match netlink.link(&link.name).await? {
                Some(rest) => netlink.delete(rest.index).await,
                None => Ok(()),
            }
        };
        let removed = timeout(LINK_MAX, removed).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        if let Err(cause) = removed {
            tracing::warn!(peering = %link.peering, %cause, "what was half made of a peering could not be removed yet");
        }
        PeeringPhase::Failed { reason }
    }

    /// Listens inside, on every address.
    pub(crate) async fn listen(&self, port: u16) -> io::Result<TcpListener> {
        TcpListener::from_std(self.namespace.listen(port).await?)
    }

    /// Removes every link with its other end. The namespace itself ends with the last socket in it.
    pub(crate) async fn dismantle(self) -> io::Result<()> {
        for (_, tunnel) in self.tunnels {
            tunnel.close().await;
        }
        let netlink = self.namespace.netlink().await?;
        for link in netlink.links().await?.iter().filter(|link| is_made(link)) {
            netlink.delete(link.index).await?;
        }
        Ok(())
    }
}

/// Whether it is of a kind that we make. Some kernels put tunnels that lead nowhere into every new network; those cannot
/// be removed.
fn is_made(link: &Link) -> bool {
    matches!(link.kind, Some(InfoKind::Veth | InfoKind::MacVlan | InfoKind::Tun))
}

/// What is seen where there is no network: the reason, for each peering too.
pub(crate) fn none(plan: &Plan, Failure(reason): Failure) -> NetworkSeen {
    let failed =
        plan.links.iter().map(|link| (link.peering.clone(), PeeringPhase::Failed { reason: reason.clone() }));
    let peerings: BTreeMap<_, _> = plan.without_link.clone().into_iter().chain(failed).collect();
    NetworkSeen { front_door: None, reason: Some(reason), peerings }
}

fn too_slow(limit: Duration) -> Failure {
    Failure(format!("the kernel took longer than {} s; it is tried again", limit.as_secs()))
}
