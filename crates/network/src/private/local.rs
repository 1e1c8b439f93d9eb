//! Links to networks of this machine: another namespace, a bridge, the network behind an interface.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, MacVlanMode};
use rtnetlink::{LinkMacVlan, LinkUnspec, LinkVeth};

use super::Failure;
use super::namespace::Namespace;
use super::netlink::{Link, Netlink, Route};
use super::plan::{LinkPlan, Plan};

/// The cluster's own network, and the way to the kernel for it.
pub(crate) struct Own<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) netlink: &'a Netlink,
}

impl Own<'_> {
    /// Switches the link on with its addresses and routes.
    pub(crate) async fn finish(&self, link: &LinkPlan, index: u32) -> Result<(), Failure> {
        let set = async {
            self.netlink.set_addresses(index, &link.addresses).await?;
            self.netlink.switch_on(index).await?;
            self.netlink.set_routes(index, &link.routes).await
        };
        set.await
            .map_err(|cause| Failure::because("the link's addresses and routes could not be set", &cause))
    }

    /// The link as it is now.
    pub(crate) async fn find(&self, link: &LinkPlan) -> Result<Option<Link>, Failure> {
        find(self.netlink, &link.name).await
    }

    /// The link that was just made.
    pub(crate) async fn made(&self, link: &LinkPlan) -> Result<Link, Failure> {
        self.find(link).await?.ok_or_else(vanished)
    }

    /// Removes a link that is not what is wanted.
    pub(crate) async fn delete(&self, link: &Link) -> Result<(), Failure> {
        let deleted = self.netlink.delete(link.index).await;
        deleted.map_err(|cause| Failure::because("an older link could not be removed", &cause))
    }
}

/// Joins with a named namespace by a pair, one end there. That end is made, addressed and routed too.
pub(crate) async fn namespace(
    own: &Own<'_>,
    plan: &Plan,
    link: &LinkPlan,
    there: &Namespace,
    (name, address): (&str, IpAddr),
) -> Result<(), Failure> {
    let entered = there.netlink().await;
    let theirs = entered
        .map_err(|cause| Failure::because(&format!("namespace '{name}' could not be entered"), &cause))?;
    let (here, beyond) = pair(own, there, &theirs, link).await?;
    if !beyond.is_up {
        let _ = there.skip_wait(&link.name).await;
    }
    own.finish(link, here.index).await?;
    let route = Route { destination: plan.range, gateway: None, source: Some(address) };
    let set = async {
        theirs.set_addresses(beyond.index, &[IpNet::from(address)]).await?;
        if !beyond.is_up || beyond.alias.as_ref() != Some(&link.alias) {
            let on = LinkUnspec::new_with_index(beyond.index).up().alias(link.alias.clone());
            theirs.change(on.build()).await?;
        }
        theirs.set_routes(beyond.index, &[route]).await
    };
    set.await.map_err(|cause| match cause.kind() {
        io::ErrorKind::AlreadyExists => Failure(format!(
            "namespace '{name}' has a route to {} already; remove it there (`ip netns exec {name} ip route`), or \
             give the private network another range",
            plan.range
        )),
        _ => Failure::because(&format!("the end in namespace '{name}' could not be set up"), &cause),
    })
}

/// Joins with a bridge by a pair, one end of which is a port of it.
pub(crate) async fn bridge(own: &Own<'_>, link: &LinkPlan, name: &str) -> Result<(), Failure> {
    let machine = Netlink::open().map_err(|cause| unseen(&cause))?;
    let bridge = match find(&machine, name).await? {
        Some(found) if found.kind == Some(InfoKind::Bridge) => found,
        Some(_) => {
            return Err(Failure(format!(
                "'{name}' is no bridge; name a bridge (`ip link show type bridge`), or make the peering with the \
                 interface instead"
            )));
        }
        None => {
            return Err(Failure(format!(
                "there is no bridge named '{name}' on this machine; `ip link add {name} type bridge` makes it, and \
                 the peering follows by itself"
            )));
        }
    };
    let (here, port) =
        pair(own, &Namespace::of_machine().map_err(|cause| unseen(&cause))?, &machine, link).await?;
    if port.controller != Some(bridge.index) || !port.is_up {
        let joined =
            LinkUnspec::new_with_index(port.index).controller(bridge.index).up().alias(link.alias.clone());
        let changed = machine.change(joined.build()).await;
        changed.map_err(|cause| {
            Failure::because(&format!("the link could not be made a port of '{name}'"), &cause)
        })?;
    }
    own.finish(link, here.index).await
}

/// Joins with the network behind an interface by a link on it that has a hardware address of its own.
pub(crate) async fn interface(own: &Own<'_>, link: &LinkPlan, name: &str) -> Result<(), Failure> {
    let machine = Netlink::open().map_err(|cause| unseen(&cause))?;
    let below = find(&machine, name).await?.ok_or_else(|| {
        Failure(format!(
            "there is no interface named '{name}' on this machine; `ip link` lists them. The peering follows by \
             itself when it is there"
        ))
    })?;
    if !below.is_up {
        return Err(Failure(format!("'{name}' is off; `ip link set {name} up` switches it on")));
    }
    let here = match own.find(link).await? {
        Some(here) if here.kind == Some(InfoKind::MacVlan) && here.other == Some(below.index) => here,
        other => {
            if let Some(old) = other {
                own.delete(&old).await?;
            }
            let made = LinkMacVlan::new(&link.name, below.index, MacVlanMode::Bridge)
                .address(link.hardware.clone())
                .setns_by_fd(own.namespace.descriptor());
            let added = machine.add(made.build()).await;
            added.map_err(|cause| Failure::because(&format!("no link could be made on '{name}'"), &cause))?;
            own.made(link).await?
        }
    };
    own.finish(link, here.index).await
}

/// The two ends of a pair, ours and the one there. Made if they are missing or belong to nothing that is wanted.
async fn pair(
    own: &Own<'_>,
    there: &Namespace,
    theirs: &Netlink,
    link: &LinkPlan,
) -> Result<(Link, Link), Failure> {
    let found = [own.find(link).await?, find(theirs, &link.name).await?];
    let (here, beyond) = match found {
        [Some(here), Some(beyond)] if is_pair(&here, &beyond) => return Ok((here, beyond)),
        [here, beyond] => (here, beyond),
    };
    clear(own, theirs, here, beyond).await?;
    let end = LinkUnspec::new_with_name(&link.name)
        .address(link.other_hardware.clone())
        .setns_by_fd(there.descriptor());
    let pair = LinkVeth::new(&link.name, &link.name)
        .address(link.hardware.clone())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(end.build())));
    let made = own.netlink.add(pair.build()).await;
    made.map_err(|cause| Failure::because("the pair of links could not be made", &cause))?;
    let beyond = find(theirs, &link.name).await?.ok_or_else(vanished)?;
    Ok((own.made(link).await?, beyond))
}

/// Whether the two are ends of one pair.
fn is_pair(one: &Link, two: &Link) -> bool {
    let is_end = |link: &Link| link.kind == Some(InfoKind::Veth);
    is_end(one) && is_end(two) && one.other == Some(two.index) && two.other == Some(one.index)
}

/// Removes ends that do not belong together: of a peering that led elsewhere before, or of a Chitin that was killed and
/// whose network the kernel has not cleared away yet.
async fn clear(
    own: &Own<'_>,
    theirs: &Netlink,
    here: Option<Link>,
    beyond: Option<Link>,
) -> Result<(), Failure> {
    if let Some(old) = here {
        own.delete(&old).await?;
    }
    if let Some(old) = beyond {
        let deleted = theirs.delete(old.index).await;
        deleted.map_err(|cause| Failure::because("an older link could not be removed", &cause))?;
    }
    Ok(())
}

async fn find(netlink: &Netlink, name: &str) -> Result<Option<Link>, Failure> {
    netlink.link(name).await.map_err(|cause| unseen(&cause))
}

/// Somebody else was at work at the same moment.
fn vanished() -> Failure {
    Failure("the link vanished while it was made; it is made again".to_owned())
}

fn unseen(cause: &io::Error) -> Failure {
    Failure::because("the kernel did not say which links there are", cause)
}
