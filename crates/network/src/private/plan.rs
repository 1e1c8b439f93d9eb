//! What a cluster's document means for the kernel: which links, with which addresses, routes and rules. Nothing is done.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aws_lc_rs::digest;
use ipnet::{IpNet, Ipv6Net};
use model::{ClusterId, Network, Peering, PeeringName, PeeringPhase, PeeringWish, PeeringWith, RoutingId};

use super::netlink::{Route, Rule, Verdict};

/// What one private network should be.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The front door's address.
    pub(crate) front_door: IpAddr,
    /// The private network's addresses.
    pub(crate) range: IpNet,
    /// A link for each peering that can have one.
    pub(crate) links: Vec<LinkPlan>,
    /// The peerings that get none, and why.
    pub(crate) without_link: BTreeMap<PeeringName, PeeringPhase>,
}

/// What one link should be.
#[derive(Clone, Debug)]
pub(crate) struct LinkPlan {
    pub(crate) peering: PeeringName,
    pub(crate) with: PeeringWith,
    /// The link's name, the same at both ends, and the same again after a restart.
    pub(crate) name: String,
    /// What it is, for somebody who finds its other end.
    pub(crate) alias: String,
    /// Our end's hardware address; steady, so that neighbours need not learn a new one after a restart.
    pub(crate) hardware: Vec<u8>,
    /// The other end's, where we make it.
    pub(crate) other_hardware: Vec<u8>,
    /// Our end's addresses.
    pub(crate) addresses: Vec<IpNet>,
    /// What is behind it.
    pub(crate) routes: Vec<Route>,
    /// Where packets over it may come from.
    pub(crate) sources: Vec<IpNet>,
}

impl Plan {
    /// Reads the document; `None` where the cluster has no private network, or one without room for a front door.
    pub(crate) fn new(cluster: ClusterId, routing: RoutingId, network: &Network) -> Option<Self> {
        let (range, front_door) = (IpNet::from(network.range?), network.front_door()?);
        let mut plan = Self { front_door, range, links: Vec::new(), without_link: BTreeMap::new() };
        for peering in &network.peerings {
            let phase = match peering.wish {
                PeeringWish::Proposed => PeeringPhase::Pending,
                PeeringWish::Accepted => match plan.link(cluster, routing, peering) {
                    Ok(link) => {
                        plan.links.push(link);
                        continue;
                    }
                    Err(reason) => PeeringPhase::Failed { reason },
                },
            };
            plan.without_link.insert(peering.name.clone(), phase);
        }
        Some(plan)
    }

    /// Every IPv6 rule of the network.
    pub(crate) fn rules(&self) -> Vec<Rule> {
        self.links.iter().flat_map(LinkPlan::rules).collect()
    }

    fn link(&self, cluster: ClusterId, routing: RoutingId, peering: &Peering) -> Result<LinkPlan, String> {
        let (addresses, routes, sources) = match &peering.with {
            PeeringWith::Namespace { address, .. } => self.beyond(*address, peering)?,
            PeeringWith::WireGuard(peer) => self.beyond(peer.address, peering)?,
            PeeringWith::Bridge { address, .. } | PeeringWith::Interface { address, .. } => {
                beside(*address, peering)?
            }
        };
        for source in &sources {
            // Only the address that was given to the other side is in our range, and only as itself.
            let is_given =
                Some(source.addr()) == peering.tunnel_address() && source.prefix_len() == bits(source);
            if !is_given && overlap(source, &self.range) {
                return Err(format!(
                    "{source} overlaps the cluster's private network {}; give the private network another range, \
                     or leave this one out",
                    self.range
                ));
            }
            let other =
                self.links.iter().find(|link| link.sources.iter().any(|known| overlap(known, source)));
            if let Some(other) = other {
                return Err(format!(
                    "{source} is also behind the peering '{}', so nobody could tell whose clients come from \
                     there; remove it from one of the two",
                    other.peering
                ));
            }
        }
        let mark = mark(cluster, &peering.name);
        let start = format!("ct{routing}-");
        let name: String = start.chars().chain(hex::encode(mark).chars()).take(LINK_NAME_BYTES).collect();
        Ok(LinkPlan {
            peering: peering.name.clone(),
            with: peering.with.clone(),
            name,
            alias: format!("Chitin, cluster {routing}, peering {}", peering.name),
            hardware: hardware(0x02, mark),
            // A bridge takes the lowest address of its ports for its own; this one is never that.
            other_hardware: hardware(0xfe, mark),
            addresses,
            routes,
            sources,
        })
    }

    /// A network beyond a link that has two ends only: the other end's address, and what is behind that.
    fn beyond(&self, address: IpAddr, peering: &Peering) -> Result<Reach, String> {
        if !self.range.contains(&address) || address == self.front_door {
            return Err(format!(
                "{address} cannot be the other side's address; choose a free one in {}",
                self.range
            ));
        }
        let own = IpNet::from(address);
        let mut routes = vec![Route { destination: own, gateway: None, source: Some(self.front_door) }];
        let mut sources = vec![own];
        // A tunnel's packets find their peer by the address inside; there is no next hop.
        let is_tunnel = matches!(peering.with, PeeringWith::WireGuard(_));
        for range in &peering.ranges {
            let range = IpNet::from(*range);
            if range.addr().is_ipv6() != self.front_door.is_ipv6() {
                return Err(format!(
                    "nobody in {range} could reach the front door at {}, which is of the other IP version; \
                     remove that range",
                    self.front_door
                ));
            }
            let gateway = (!is_tunnel).then_some(address);
            if range != own {
                routes.push(Route { destination: range, gateway, source: Some(self.front_door) });
                sources.push(range);
            }
        }
        Ok((vec![IpNet::from(self.front_door)], routes, sources))
    }
}

type Reach = (Vec<IpNet>, Vec<Route>, Vec<IpNet>);

/// A network in which our end is one of many: the kernel's own route for our address leads there.
fn beside(address: IpNet, peering: &Peering) -> Result<Reach, String> {
    let network = address.trunc();
    match peering.ranges.iter().map(|range| IpNet::from(*range)).find(|range| !network.contains(range)) {
        Some(outside) => Err(format!(
            "{outside} is not in {network}, and no router to it is known; remove that range, or join the network \
             that has it"
        )),
        None => Ok((vec![address], Vec::new(), vec![network])),
    }
}

impl LinkPlan {
    fn rules(&self) -> Vec<Rule> {
        let rule = |priority, verdict| Rule { priority, link: self.name.clone(), verdict };
        let six: Vec<Ipv6Net> = self
            .sources
            .iter()
            .filter_map(|source| match source {
                IpNet::V6(six) => Some(*six),
                IpNet::V4(_) => None,
            })
            .collect();
        let mut rules = vec![rule(30, Verdict::Drop)];
        if !six.is_empty() {
            // Neighbours find each other by link-local addresses. Nothing else comes from there.
            rules.push(rule(10, Verdict::DeliverIcmp(LINK_LOCAL)));
        }
        rules.extend(six.into_iter().map(|range| rule(20, Verdict::Deliver(range))));
        rules
    }
}

fn overlap(one: &IpNet, two: &IpNet) -> bool {
    one.contains(two) || two.contains(one)
}

fn bits(range: &IpNet) -> u8 {
    range.max_prefix_len()
}

/// What tells one peering's link from every other on the machine, clusters of other clouds included.
fn mark(cluster: ClusterId, peering: &PeeringName) -> [u8; 8] {
    let digest = digest::digest(&digest::SHA256, format!("{cluster} {peering}").as_bytes());
    let mut mark = [0; 8];
    mark.copy_from_slice(&digest.as_ref()[..8]);
    mark
}

/// A hardware address of nobody's make: the first byte says that it was given locally.
fn hardware(first: u8, mark: [u8; 8]) -> Vec<u8> {
    std::iter::once(first).chain(mark[3..].iter().copied()).collect()
}

/// Most bytes of a link's name (`IFNAMSIZ` without its end).
const LINK_NAME_BYTES: usize = 15;
/// Link-local addresses of IPv6 (RFC 4291).
const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn peering(name: &str, with: PeeringWith, ranges: &[&str]) -> Peering {
        Peering {
            name: name.parse().unwrap(),
            with,
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            wish: PeeringWish::Accepted,
            created_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn namespace(address: &str) -> PeeringWith {
        PeeringWith::Namespace { namespace: "office".to_owned(), address: address.parse().unwrap() }
    }

    fn bridge(address: &str) -> PeeringWith {
        PeeringWith::Bridge { bridge: "br0".to_owned(), address: address.parse().unwrap() }
    }

    fn plan(range: &str, peerings: Vec<Peering>) -> Plan {
        let network = Network { range: Some(range.parse().unwrap()), peerings, ..Network::default() };
        Plan::new(ClusterId::random(), RoutingId::try_from(99_999_999).unwrap(), &network).unwrap()
    }

    fn reason(plan: &Plan, name: &str) -> String {
        match &plan.without_link[&name.parse().unwrap()] {
            PeeringPhase::Failed { reason } => reason.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_peering_that_nobody_accepted_gets_no_link() {
        let mut proposed = peering("office", namespace("10.77.0.2"), &[]);
        proposed.wish = PeeringWish::Proposed;
        let plan = plan("10.77.0.0/24", vec![proposed]);
        assert!(plan.links.is_empty());
        assert_eq!(plan.without_link.into_values().collect::<Vec<_>>(), [PeeringPhase::Pending]);
    }

    #[test]
    fn no_two_links_have_a_source_in_common() {
        let plan = plan(
            "10.77.0.0/24",
            vec![
                peering("a", namespace("10.77.0.2"), &["192.168.0.0/16"]),
                peering("b", namespace("10.77.0.3"), &["192.168.5.0/24"]),
                peering("c", bridge("192.168.7.9/24"), &[]),
                peering("d", namespace("10.77.0.2"), &[]),
                peering("e", namespace("10.77.0.4"), &[]),
            ],
        );
        let linked: Vec<&str> = plan.links.iter().map(|link| link.peering.as_str()).collect();
        assert_eq!(linked, ["a", "e"]);
        for name in ["b", "c", "d"] {
            assert!(reason(&plan, name).contains("behind the peering 'a'"), "{name}");
        }
    }

    #[test]
    fn nobody_outside_claims_the_private_network_s_own_addresses() {
        let plan = plan(
            "10.77.0.0/24",
            vec![
                peering("a", namespace("10.77.0.1"), &[]),
                peering("b", namespace("10.78.0.2"), &[]),
                peering("c", namespace("10.77.0.2"), &["10.0.0.0/8"]),
                peering("d", namespace("10.77.0.2"), &["10.77.0.1"]),
                peering("e", bridge("10.77.0.200/25"), &[]),
            ],
        );
        assert!(plan.links.is_empty());
        assert!(reason(&plan, "a").contains("cannot be the other side's address"));
        assert!(reason(&plan, "b").contains("choose a free one in 10.77.0.0/24"));
        for name in ["c", "d", "e"] {
            assert!(reason(&plan, name).contains("overlaps the cluster's private network"), "{name}");
        }
    }

    #[test]
    fn ranges_that_no_route_leads_to_are_refused() {
        let plan = plan(
            "10.77.0.0/24",
            vec![
                peering("a", bridge("172.20.0.9/24"), &["172.20.0.128/25"]),
                peering("b", bridge("172.21.0.9/24"), &["172.22.0.0/24"]),
                peering("c", namespace("10.77.0.2"), &["fd00::/64"]),
            ],
        );
        assert_eq!(plan.links.len(), 1);
        assert!(reason(&plan, "b").contains("no router to it is known"));
        assert!(reason(&plan, "c").contains("of the other IP version"));
    }

    #[test]
    fn names_fit_the_kernel_and_differ() {
        let plan = plan(
            "10.77.0.0/24",
            vec![peering("a", namespace("10.77.0.2"), &[]), peering("b", namespace("10.77.0.3"), &[])],
        );
        let [a, b] = &plan.links[..] else { panic!("two links") };
        assert_eq!((a.name.len(), a.hardware.len(), a.hardware[0]), (LINK_NAME_BYTES, 6, 2));
        assert_ne!((&a.name, &a.hardware), (&b.name, &b.hardware));
        assert_ne!(a.hardware, a.other_hardware);
    }

    #[test]
    fn without_an_ipv6_source_nothing_of_ipv6_comes_in() {
        let four = plan("10.77.0.0/24", vec![peering("a", namespace("10.77.0.2"), &[])]);
        assert_eq!(four.rules().into_iter().map(|rule| rule.verdict).collect::<Vec<_>>(), [Verdict::Drop]);
        let six = plan("fd00:77::/64", vec![peering("a", namespace("fd00:77::2"), &["fd00:5::/64"])]);
        let mut rules = six.rules();
        rules.sort_by_key(|rule| rule.priority);
        let verdicts: Vec<Verdict> = rules.into_iter().map(|rule| rule.verdict).collect();
        assert_eq!(
            verdicts,
            [
                Verdict::DeliverIcmp("fe80::/10".parse().unwrap()),
                Verdict::Deliver("fd00:77::2/128".parse().unwrap()),
                Verdict::Deliver("fd00:5::/64".parse().unwrap()),
                Verdict::Drop,
            ]
        );
    }
}
