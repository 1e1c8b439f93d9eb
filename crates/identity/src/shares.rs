//! Who came from where, of those who wait for a person in a browser: so that where there is no place left, the one who goes is
//! the oldest of the most crowded network and not somebody else's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;

use model::{ClusterId, Origin, Way, canonical, neighbourhood};

/// Where somebody comes from, from the widest part to the narrowest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// Whoever wants into this cluster.
    Cluster(ClusterId),
    /// Through a private endpoint, or from inside a private network: addresses mean nothing elsewhere.
    Way(Way),
    /// A /24 of IPv4, a /48 of IPv6.
    Network(IpAddr),
    /// An address of IPv4, a /64 of IPv6.
    Address(IpAddr),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(cluster) => write!(f, "{cluster}"),
            Self::Way(Way::Public) => f.write_str("the public way"),
            Self::Way(Way::Endpoint(id)) => write!(f, "endpoint {id}"),
            Self::Way(Way::Private(cluster)) => write!(f, "the private network of {cluster}"),
            Self::Network(address @ IpAddr::V4(_)) => write!(f, "{address}/24"),
            Self::Network(address @ IpAddr::V6(_)) => write!(f, "{address}/48"),
            Self::Address(address @ IpAddr::V4(_)) => write!(f, "{address}"),
            Self::Address(address @ IpAddr::V6(_)) => write!(f, "{address}/64"),
        }
    }
}

impl Part {
    fn of_address(address: IpAddr) -> [Self; 2] {
        let network = match canonical(address) {
            IpAddr::V4(four) => IpAddr::V4((four.to_bits() >> 8 << 8).into()),
            IpAddr::V6(six) => IpAddr::V6((six.to_bits() >> 80 << 80).into()),
        };
        [Self::Network(network), Self::Address(neighbourhood(address))]
    }

    /// Of a client.
    pub(crate) fn of(origin: &Origin) -> Vec<Self> {
        let [network, address] = Self::of_address(origin.address);
        match &origin.way {
            Way::Public => vec![network, address],
            way @ (Way::Endpoint(_) | Way::Private(_)) => vec![Self::Way(way.clone()), address],
        }
    }
}

/// Keys by where they come from.
pub(crate) struct Shares<K> {
    all: Group<K>,
    places: HashMap<K, (Vec<Part>, u64)>,
    next: u64,
}

/// The keys of one part, and of the parts within it.
struct Group<K> {
    /// In the order in which they came.
    keys: BTreeMap<u64, K>,
    within: HashMap<Part, Group<K>>,
}

impl<K> Default for Group<K> {
    fn default() -> Self {
        Self { keys: BTreeMap::new(), within: HashMap::new() }
    }
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self { all: Group::default(), places: HashMap::new(), next: 0 }
    }
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// One more, from there.
    pub(crate) fn insert(&mut self, key: K, path: Vec<Part>) {
        self.remove(&key);
        let number = self.next;
        self.next += 1;
        let mut group = &mut self.all;
        group.keys.insert(number, key.clone());
        for part in &path {
            group = group.within.entry(part.clone()).or_default();
            group.keys.insert(number, key.clone());
        }
        self.places.insert(key, (path, number));
    }

    /// One less.
    pub(crate) fn remove(&mut self, key: &K) {
        if let Some((path, number)) = self.places.remove(key) {
            self.all.remove(&path, number);
        }
    }

    /// How many there are in this part of the whole.
    pub(crate) fn count(&self, path: &[Part]) -> usize {
        self.group(path).map_or(0, |group| group.keys.len())
    }

    /// The oldest of the most crowded part, in this part of the whole.
    pub(crate) fn first_to_go(&self, path: &[Part]) -> Option<K> {
        let mut group = self.group(path)?;
        // The fullest; of several the one with the oldest in it.
        while let Some(fullest) =
            group.within.values().max_by_key(|one| (one.keys.len(), Reverse(one.keys.keys().next().copied())))
        {
            group = fullest;
        }
        group.keys.values().next().cloned()
    }

    fn group(&self, path: &[Part]) -> Option<&Group<K>> {
        path.iter().try_fold(&self.all, |group, part| group.within.get(part))
    }
}

impl<K> Group<K> {
    fn remove(&mut self, path: &[Part], number: u64) {
        self.keys.remove(&number);
        if let [part, rest @ ..] = path
            && let Some(within) = self.within.get_mut(part)
        {
            within.remove(rest, number);
            if within.keys.is_empty() {
                self.within.remove(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> Vec<Part> {
        Part::of(&Origin::public(address.parse().unwrap()))
    }

    #[test]
    fn the_oldest_of_the_most_crowded_network_goes() {
        let mut shares = Shares::default();
        shares.insert(0, from("192.0.2.1"));
        for number in 1..=20 {
            // Many addresses of one network, and the fullest of them.
            let last = if number % 2 == 0 { 7 } else { number };
            shares.insert(number, from(&format!("203.0.113.{last}")));
        }
        shares.insert(21, from("2001:db8:1:1::1"));
        shares.insert(22, from("2001:db8:1:1::2"));
        assert_eq!(shares.first_to_go(&[]), Some(2));
        assert_eq!(shares.first_to_go(&from("2001:db8:1:2::9")[..1]), Some(21));
        assert_eq!((shares.count(&from("203.0.113.7")), shares.count(&from("203.0.113.7")[..1])), (11, 20));
        for number in 1..=20 {
            shares.remove(&number);
        }
        assert_eq!(shares.count(&from("203.0.113.7")[..1]), 0);
        assert_eq!(shares.first_to_go(&[]), Some(21), "a /64 is one customer");
        shares.remove(&21);
        shares.remove(&22);
        assert_eq!(shares.first_to_go(&[]), Some(0));
        shares.remove(&0);
        assert!(shares.first_to_go(&[]).is_none() && shares.all.within.is_empty(), "nothing is remembered");
    }

    #[test]
    fn the_same_address_on_two_ways_is_two() {
        let address = "10.0.0.9".parse().unwrap();
        let inside = |cluster| Part::of(&Origin { address, way: Way::Private(cluster) });
        let (one, other) = (ClusterId::random(), ClusterId::random());
        assert_ne!(inside(one)[0], inside(other)[0]);
        assert_ne!(inside(one)[0], from("10.0.0.9")[0]);
    }
}
