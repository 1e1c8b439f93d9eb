//! Links, addresses, routes and rules of one network: looked up in the kernel, and changed where they differ.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use futures::{Stream, TryStreamExt};
use ipnet::{IpNet, Ipv6Net};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};
use rtnetlink::{Error, Handle, IpVersion, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio_util::task::AbortOnDropHandle;

/// Where the kernel's own rule for local addresses goes, behind ours. It is born at 0, before everybody's.
const LOCAL_RULE: u32 = 100;
/// The table of our own addresses (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u8 = 255;
const ICMPV6: IpProtocol = IpProtocol::Other(58);

/// The way to the kernel for one network. It stays in the network that it was opened in.
pub(crate) struct Netlink {
    handle: Handle,
    _connection: AbortOnDropHandle<()>,
}

/// A link as the kernel describes it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Option<InfoKind>,
    /// The other end of a pair, or what the link lies on; by its number in that one's network.
    pub(crate) other: Option<u32>,
    /// The bridge that it is a port of.
    pub(crate) controller: Option<u32>,
    /// What somebody wrote on it.
    pub(crate) alias: Option<String>,
    pub(crate) is_up: bool,
    pub(crate) is_loopback: bool,
}

/// A route over one link.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    /// The next hop, on the same link; `None` where the destination is on the link itself.
    pub(crate) gateway: Option<IpAddr>,
    /// The address that our packets carry.
    pub(crate) source: Option<IpAddr>,
}

/// A rule about IPv6 packets that come in over a link. The kernel compares sources with routes for IPv4 alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rule {
    /// Lower ones are asked first; below [`LOCAL_RULE`].
    pub(crate) priority: u32,
    pub(crate) link: String,
    pub(crate) verdict: Verdict,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    /// From this range it is delivered to our own addresses.
    Deliver(Ipv6Net),
    /// From this range it is delivered if it is ICMPv6.
    DeliverIcmp(Ipv6Net),
    /// It is dropped.
    Drop,
}

impl Netlink {
    /// Opens one in the network of the calling thread, which must have entered the runtime.
    pub(crate) fn open() -> io::Result<Self> {
        // Strict: the kernel then filters what is listed, and a namespace may have a million routes.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        Ok(Self { handle, _connection: AbortOnDropHandle::new(tokio::spawn(connection)) })
    }

    /// The link of this name.
    pub(crate) async fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let mut found = std::pin::pin!(self.handle.link().get().match_name(name).execute());
        match found.try_next().await {
            Ok(link) => Ok(link.map(Link::from)),
            Err(cause) => match to_io(cause) {
                absent if absent.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
                other => Err(other),
            },
        }
    }

    /// Every link.
    pub(crate) async fn links(&self) -> io::Result<Vec<Link>> {
        let links = collect(self.handle.link().get().execute()).await?;
        Ok(links.into_iter().map(Link::from).collect())
    }

    /// Makes a link.
    pub(crate) async fn add(&self, link: LinkMessage) -> io::Result<()> {
        self.handle.link().add(link).execute().await.map_err(to_io)
    }

    /// Changes a link.
    pub(crate) async fn change(&self, link: LinkMessage) -> io::Result<()> {
        self.handle.link().change(link).execute().await.map_err(to_io)
    }

    /// Switches a link on.
    pub(crate) async fn switch_on(&self, index: u32) -> io::Result<()> {
        self.change(LinkMessageBuilder::<LinkUnspec>::default().index(index).up().build()).await
    }

    /// Removes a link, with the other end if it has one.
    pub(crate) async fn delete(&self, index: u32) -> io::Result<()> {
        match self.handle.link().del(index).execute().await.map_err(to_io) {
            Err(absent) if absent.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
            done => done,
        }
    }

    /// Gives a link exactly these addresses, beside those that the kernel gives by itself.
    pub(crate) async fn set_addresses(&self, index: u32, wanted: &[IpNet]) -> io::Result<()> {
        let mut request = self.handle.address().get().set_link_index_filter(index);
        request.message_mut().header.index = index;
        let mut missing: Vec<IpNet> = wanted.to_vec();
        for message in collect(request.execute()).await? {
            let Some(address) = address_of(&message) else {
                continue;
            };
            if missing.contains(&address) {
                missing.retain(|other| *other != address);
            } else if !is_kernels_own(address.addr()) {
                self.handle.address().del(message).execute().await.map_err(to_io)?;
            }
        }
        for address in missing {
            let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
            if address.addr().is_ipv6() {
                // Nobody else has it; a wait for objections would only delay the first client.
                let flags = AddressAttribute::Flags(AddressFlags::Nodad);
                request.message_mut().attributes.push(flags);
            }
            request.execute().await.map_err(to_io)?;
        }
        Ok(())
    }

    /// Gives a link exactly these routes, beside those that the kernel made for its addresses.
    pub(crate) async fn set_routes(&self, index: u32, wanted: &[Route]) -> io::Result<()> {
        let mut missing: HashSet<&Route> = wanted.iter().collect();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            query.header.table = RouteHeader::RT_TABLE_MAIN;
            query.attributes.push(RouteAttribute::Oif(index));
            for message in collect(self.handle.route().get(query).execute()).await? {
                let is_over_link = message.attributes.contains(&RouteAttribute::Oif(index));
                if message.header.protocol != RouteProtocol::Static || !is_over_link {
                    continue;
                }
                let is_wanted = Route::from_message(&message).is_some_and(|route| missing.remove(&route));
                if !is_wanted {
                    self.handle.route().del(message).execute().await.map_err(to_io)?;
                }
            }
        }
        // A route through a next hop needs the one that leads to it.
        let (hops, others): (Vec<&Route>, Vec<&Route>) =
            wanted.iter().filter(|route| missing.contains(route)).partition(|route| route.gateway.is_none());
        for route in hops.into_iter().chain(others) {
            self.handle.route().add(route.to_message(index)?).execute().await.map_err(to_io)?;
        }
        Ok(())
    }

    /// Sets exactly these rules for IPv6. A kernel without IPv6 needs none.
    pub(crate) async fn set_rules(&self, wanted: &[Rule]) -> io::Result<()> {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            return Ok(());
        }
        let known = collect(self.handle.rule().get(IpVersion::V6).execute()).await?;
        if !known.iter().any(|message| priority_of(message) == LOCAL_RULE) {
            let request = self.handle.rule().add().v6().priority(LOCAL_RULE);
            let request = request.table_id(LOCAL_TABLE.into()).action(RuleAction::ToTable);
            request.execute().await.map_err(to_io)?;
        }
        let mut missing: HashSet<&Rule> = wanted.iter().collect();
        for message in known.into_iter().filter(|message| priority_of(message) < LOCAL_RULE) {
            let is_wanted = Rule::from_message(&message).is_some_and(|rule| missing.remove(&rule));
            if !is_wanted {
                self.handle.rule().del(message).execute().await.map_err(to_io)?;
            }
        }
        // Those that drop go first: a link is never without them while others are missing.
        let (drops, others): (Vec<&Rule>, Vec<&Rule>) =
            missing.into_iter().partition(|rule| rule.verdict == Verdict::Drop);
        for rule in drops.into_iter().chain(others) {
            let mut request = self.handle.rule().add().v6();
            *request.message_mut() = rule.to_message();
            request.execute().await.map_err(to_io)?;
        }
        Ok(())
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            other: None,
            controller: None,
            alias: None,
            is_up: flags.contains(LinkFlags::Up),
            is_loopback: flags.contains(LinkFlags::Loopback),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Link(index) => link.other = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

impl Route {
    fn from_message(message: &RouteMessage) -> Option<Self> {
        let to_ip = |address: &RouteAddress| match address {
            RouteAddress::Inet(four) => Some(IpAddr::V4(*four)),
            RouteAddress::Inet6(six) => Some(IpAddr::V6(*six)),
            _ => None,
        };
        let mut destination = None;
        let (mut gateway, mut source) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = to_ip(address),
                RouteAttribute::Gateway(address) => gateway = to_ip(address),
                RouteAttribute::PrefSource(address) => source = to_ip(address),
                _ => {}
            }
        }
        let destination = IpNet::new(destination?, message.header.destination_prefix_length).ok()?;
        Some(Self { destination, gateway, source })
    }

    fn to_message(&self, index: u32) -> io::Result<RouteMessage> {
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(self.destination.addr(), self.destination.prefix_len())
            .map_err(invalid)?
            .output_interface(index)
            .protocol(RouteProtocol::Static)
            .kind(RouteType::Unicast);
        // Only IPv4 knows scopes: without a next hop the destination is on the link.
        if self.gateway.is_none() && self.destination.addr().is_ipv4() {
            builder = builder.scope(RouteScope::Link);
        }
        if let Some(gateway) = self.gateway {
            builder = builder.gateway(gateway).map_err(invalid)?;
        }
        if let Some(source) = self.source {
            builder = builder.pref_source(source).map_err(invalid)?;
        }
        Ok(builder.build())
    }
}

impl Rule {
    fn from_message(message: &RuleMessage) -> Option<Self> {
        let mut link = None;
        let (mut source, mut protocol) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Iifname(name) => link = Some(name.clone()),
                RuleAttribute::Source(IpAddr::V6(address)) => source = Some(*address),
                RuleAttribute::IpProtocol(number) => protocol = Some(*number),
                _ => {}
            }
        }
        let range = source.and_then(|address| Ipv6Net::new(address, message.header.src_len).ok());
        let verdict = match (message.header.action, range, protocol) {
            (RuleAction::Blackhole, None, None) => Verdict::Drop,
            (RuleAction::ToTable, Some(range), None) => Verdict::Deliver(range),
            (RuleAction::ToTable, Some(range), Some(ICMPV6)) => Verdict::DeliverIcmp(range),
            _ => return None,
        };
        Some(Self { priority: priority_of(message), link: link?, verdict })
    }

    fn to_message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.attributes.push(RuleAttribute::Priority(self.priority));
        message.attributes.push(RuleAttribute::Iifname(self.link.clone()));
        let range = match &self.verdict {
            Verdict::Drop => {
                message.header.action = RuleAction::Blackhole;
                return message;
            }
            Verdict::Deliver(range) => range,
            Verdict::DeliverIcmp(range) => {
                message.attributes.push(RuleAttribute::IpProtocol(ICMPV6));
                range
            }
        };
        message.header.action = RuleAction::ToTable;
        message.header.table = LOCAL_TABLE;
        message.header.src_len = range.prefix_len();
        message.attributes.push(RuleAttribute::Source(range.addr().into()));
        message
    }
}

/// What link-local and loopback addresses the kernel gave stays.
fn is_kernels_own(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => four.is_loopback(),
        IpAddr::V6(six) => six.is_loopback() || six.is_unicast_link_local(),
    }
}

fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

/// A rule without a priority has the first.
fn priority_of(message: &RuleMessage) -> u32 {
    let priority = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    priority.unwrap_or(0)
}

async fn collect<T>(listed: impl Stream<Item = Result<T, Error>>) -> io::Result<Vec<T>> {
    listed.try_collect().await.map_err(to_io)
}

fn to_io(cause: Error) -> io::Error {
    match cause {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
