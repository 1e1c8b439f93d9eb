//! Connections at one listener that nobody has signed in on yet: counted by the networks they come from, given less time the
//! more of them there are, and sent away, the oldest of the most crowded network first, when there is no place left.
//!
//! A newcomer always finds a place. So whoever fills a listener with silent connections fills it with his own network's, and
//! loses them to everybody else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{ClusterId, EndpointId, Origin, Way};
use rustix::io::Errno;
use tokio::sync::Notify;
use tokio::time::Instant;

/// For the first byte, when every place is taken.
const FIRST_BYTE_MIN: Duration = Duration::from_secs(1);
/// How often it is said that a listener is crowded.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// The bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Crowding {
    /// Connections that are not signed in. A /24 of IPv4, a /48 of IPv6 and a private endpoint get half of them, an address
    /// and a /64 a quarter.
    pub connections_max: usize,
    /// Of these, for each private network.
    pub per_network_max: usize,
    /// For the first byte, while fewer than a quarter of the places are taken.
    pub first_byte_max: Duration,
}

/// The connections of one listener that are not signed in.
pub struct Unauthenticated {
    /// Of the listener, for the log.
    name: &'static str,
    bounds: Crowding,
    inner: Mutex<Inner>,
}

/// A connection's place, given back when it is dropped: when somebody has signed in, or the connection is over.
pub struct Slot {
    unauthenticated: Arc<Unauthenticated>,
    /// Grows with each connection, so that it tells who was first.
    number: u64,
    entered: Instant,
    evicted: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    connections: HashMap<u64, Connection>,
    /// Those that have not sent a byte, and since when.
    silent: BTreeMap<u64, Instant>,
    networks: Group,
    said_at: Option<Instant>,
}

struct Connection {
    path: Vec<Part>,
    evicted: Arc<Notify>,
}

/// Where connections come from, from the widest part to the narrowest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    /// A balancer has not said yet whom it speaks for.
    Unannounced,
    /// A cluster's private network.
    Private(ClusterId),
    /// A private endpoint, whose clients' addresses mean nothing outside of their own network.
    Endpoint(EndpointId),
    /// All addresses with these first bits.
    Network(IpAddr, u8),
}

/// The connections of a part, and the narrower parts in it. Every step is logarithmic, and what is kept is a few numbers for
/// each connection.
#[derive(Default)]
struct Group {
    numbers: BTreeSet<u64>,
    parts: HashMap<Part, Group>,
    /// The most crowded last; of equal ones, the one with the oldest connection.
    ranked: BTreeSet<(usize, Reverse<u64>, Part)>,
}

impl Unauthenticated {
    /// None yet.
    pub fn new(name: &'static str, bounds: Crowding) -> Arc<Self> {
        let bounds = Crowding { connections_max: bounds.connections_max.max(1), ..bounds };
        Arc::new(Self { name, bounds, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No step in between can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a newcomer, and another's end where there was none left. `origin` is none while a balancer has not said
    /// whose connection it is.
    pub fn enter(self: &Arc<Self>, origin: Option<&Origin>) -> Slot {
        let (path, entered, evicted) = (path(origin), Instant::now(), Arc::<Notify>::default());
        let mut inner = self.lock();
        self.make_room_for(&mut inner, &path);
        let number = inner.next;
        inner.next += 1;
        inner.put(number, Connection { path, evicted: evicted.clone() });
        inner.silent.insert(number, entered);
        // The crowd grows here and nowhere else, so it is enough to look here for those whose time has become shorter.
        while let Some((&silent, &since)) = inner.silent.first_key_value()
            && entered.saturating_duration_since(since) > self.first_byte(inner.connections.len())
        {
            inner.evict(silent);
        }
        drop(inner);
        Slot { unauthenticated: self.clone(), number, entered, evicted }
    }

    /// To be told why a connection could not be accepted. Where the program has no descriptor or memory left for it, the
    /// oldest of the most crowded network goes.
    pub fn not_accepted(&self, cause: &io::Error) {
        let is_full = matches!(
            Errno::from_io_error(cause),
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
        );
        if !is_full {
            return;
        }
        let mut inner = self.lock();
        if let Some(number) = inner.networks.first_to_go() {
            self.say(&mut inner);
            inner.evict(number);
        }
    }

    fn make_room_for(&self, inner: &mut Inner, path: &[Part]) {
        // The narrowest first: whoever has too many already loses one of his own.
        for depth in (1..=path.len()).rev() {
            let Some(group) = inner.networks.within(&path[..depth]) else { continue };
            if group.numbers.len() >= self.share(&path[..depth])
                && let Some(number) = group.first_to_go()
            {
                self.say(inner);
                inner.evict(number);
            }
        }
        if inner.connections.len() >= self.bounds.connections_max {
            self.say(inner);
            if let Some(number) = inner.networks.first_to_go() {
                inner.evict(number);
            }
        }
    }

    /// Most connections from there.
    fn share(&self, path: &[Part]) -> usize {
        let all = self.bounds.connections_max;
        let (Some(first), Some(part)) = (path.first(), path.last()) else { return all };
        let all = if let Part::Private(_) = first { self.bounds.per_network_max.clamp(1, all) } else { all };
        match part {
            Part::Unannounced | Part::Private(_) => all,
            Part::Endpoint(_) | Part::Network(IpAddr::V4(_), ..32) | Part::Network(IpAddr::V6(_), ..64) => {
                all.div_ceil(2)
            }
            Part::Network(..) => all.div_ceil(4),
        }
    }

    /// For the first byte, with so many connections: the whole time while fewer than a quarter of the places are taken, then
    /// less in proportion, down to a second.
    fn first_byte(&self, count: usize) -> Duration {
        let Crowding { connections_max, first_byte_max: most, .. } = self.bounds;
        let quarter = connections_max / 4;
        let (over, span) = (count.saturating_sub(quarter), (connections_max - quarter).max(1));
        let shrinking = most.saturating_sub(FIRST_BYTE_MIN);
        most.saturating_sub(shrinking.mul_f64((over as f64 / span as f64).min(1.0)))
    }

    /// Once in a while: an attack must not fill the log.
    fn say(&self, inner: &mut Inner) {
        let now = Instant::now();
        if inner.said_at.is_none_or(|at| now.saturating_duration_since(at) >= SAY_EVERY) {
            inner.said_at = Some(now);
            let (most, from) =
                inner.networks.ranked.last().map_or((0, None), |(count, _, part)| (*count, Some(part)));
            let from = from.map(ToString::to_string).unwrap_or_default();
            tracing::warn!(
                listener = self.name, all = inner.connections.len(), most_from = %from, count = most,
                "crowded with connections that are not signed in; the oldest of the most crowded network are closed"
            );
        }
    }
}

impl Inner {
    fn put(&mut self, number: u64, connection: Connection) {
        self.networks.insert(&connection.path, number);
        self.connections.insert(number, connection);
    }

    fn take(&mut self, number: u64) -> Option<Connection> {
        let connection = self.connections.remove(&number)?;
        self.networks.remove(&connection.path, number);
        Some(connection)
    }

    fn evict(&mut self, number: u64) {
        self.silent.remove(&number);
        if let Some(connection) = self.take(number) {
            connection.evicted.notify_one();
        }
    }
}

impl Slot {
    /// Returns when the connection must make room for others, and is to be closed.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// When it came.
    pub fn entered(&self) -> Instant {
        self.entered
    }

    /// Until when the first byte must have come. Earlier, if it becomes more crowded: see [`Self::evicted`].
    pub fn first_byte_by(&self) -> Instant {
        let count = self.unauthenticated.lock().connections.len();
        self.entered + self.unauthenticated.first_byte(count)
    }

    /// The client has sent a byte of its own.
    pub fn heard(&self) {
        self.unauthenticated.lock().silent.remove(&self.number);
    }

    /// The balancer has said whose connection it is: from now on it is counted there.
    pub fn announced(&self, origin: &Origin) {
        let mut inner = self.unauthenticated.lock();
        // One that was evicted is counted nowhere any more.
        if let Some(connection) = inner.take(self.number) {
            let path = path(Some(origin));
            self.unauthenticated.make_room_for(&mut inner, &path);
            inner.put(self.number, Connection { path, ..connection });
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut inner = self.unauthenticated.lock();
        inner.silent.remove(&self.number);
        inner.take(self.number);
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Group {
    fn insert(&mut self, path: &[Part], number: u64) {
        self.change(path, &|numbers| {
            numbers.insert(number);
        });
    }

    fn remove(&mut self, path: &[Part], number: u64) {
        self.change(path, &|numbers| {
            numbers.remove(&number);
        });
    }

    /// Changes this group and those on the path below it, and keeps their order.
    fn change(&mut self, path: &[Part], change: &dyn Fn(&mut BTreeSet<u64>)) {
        change(&mut self.numbers);
        let Some((first, rest)) = path.split_first() else { return };
        let part = self.parts.entry(first.clone()).or_default();
        if let Some((count, oldest)) = part.rank() {
            self.ranked.remove(&(count, oldest, first.clone()));
        }
        part.change(rest, change);
        match part.rank() {
            Some((count, oldest)) => {
                self.ranked.insert((count, oldest, first.clone()));
            }
            None => {
                self.parts.remove(first);
            }
        }
    }

    /// How many, and the oldest; none where there is none.
    fn rank(&self) -> Option<(usize, Reverse<u64>)> {
        self.numbers.first().map(|oldest| (self.numbers.len(), Reverse(*oldest)))
    }

    fn within(&self, path: &[Part]) -> Option<&Self> {
        path.iter().try_fold(self, |group, part| group.parts.get(part))
    }

    /// The oldest connection of the most crowded part of the most crowded part.
    fn first_to_go(&self) -> Option<u64> {
        match self.ranked.last() {
            Some((_, _, part)) => self.parts.get(part)?.first_to_go(),
            None => self.numbers.first().copied(),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unannounced => f.write_str("a balancer"),
            Self::Private(cluster) => write!(f, "the private network of cluster {cluster}"),
            Self::Endpoint(id) => id.fmt(f),
            Self::Network(address, bits) => write!(f, "{address}/{bits}"),
        }
    }
}

/// The address that an origin lies in, a /64 of IPv6, and the network around that. What shows a certificate that anybody can
/// make counts by its address.
pub(crate) fn neighbourhoods(origin: &Origin) -> [Vec<Part>; 2] {
    let is_anybody = matches!(origin.way, Way::Endpoint(EndpointId::Certificate(_)));
    let public = is_anybody.then(|| Origin::public(origin.address));
    let mut address = path(Some(public.as_ref().unwrap_or(origin)));
    address.retain(|part| !matches!(part, Part::Network(_, 128)));
    let mut network = address.clone();
    network.pop();
    [address, network]
}

/// The parts that an origin lies in.
fn path(origin: Option<&Origin>) -> Vec<Part> {
    let Some(origin) = origin else { return vec![Part::Unannounced] };
    let address = model::canonical(origin.address);
    let way = match &origin.way {
        Way::Endpoint(id) => Some(Part::Endpoint(id.clone())),
        Way::Private(cluster) => Some(Part::Private(*cluster)),
        Way::Public => None,
    };
    let bits: &[u8] = if address.is_ipv4() { &[24, 32] } else { &[48, 64, 128] };
    way.into_iter().chain(bits.iter().map(|bits| network(address, *bits))).collect()
}

/// The first bits of an address.
fn network(address: IpAddr, bits: u8) -> Part {
    let address = match address {
        IpAddr::V4(four) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((four.to_bits() & mask).into())
        }
        IpAddr::V6(six) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((six.to_bits() & mask).into())
        }
    };
    Part::Network(address, bits)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const PLACES: usize = 16;

    fn listener() -> Arc<Unauthenticated> {
        let bounds = Crowding {
            connections_max: PLACES,
            per_network_max: PLACES / 4,
            first_byte_max: Duration::from_secs(9),
        };
        Unauthenticated::new("a test", bounds)
    }

    fn public(address: &str) -> Origin {
        Origin::public(address.parse().unwrap())
    }

    fn is_evicted(slot: &Slot) -> bool {
        slot.evicted().now_or_never().is_some()
    }

    /// So many connections, one from each of these addresses in turn.
    fn flood(listener: &Arc<Unauthenticated>, count: usize, addresses: &[&str]) -> Vec<Slot> {
        let origins: Vec<Origin> = addresses.iter().map(|address| public(address)).collect();
        (0..count).map(|number| listener.enter(Some(&origins[number % origins.len()]))).collect()
    }

    /// The numbers of those that had to go.
    fn gone(slots: &[Slot]) -> Vec<usize> {
        (0..slots.len()).filter(|number| is_evicted(&slots[*number])).collect()
    }

    fn is_empty(listener: &Unauthenticated) -> bool {
        let Inner { connections, silent, networks, .. } = &*listener.lock();
        let Group { numbers, parts, ranked } = networks;
        connections.is_empty()
            && silent.is_empty()
            && numbers.is_empty()
            && parts.is_empty()
            && ranked.is_empty()
    }

    #[tokio::test]
    async fn t09_when_there_is_no_place_the_oldest_of_the_most_crowded_network_goes() {
        let listener = listener();
        let honest = flood(&listener, 3, &["192.0.2.1", "198.51.100.1", "2001:db8:1::1"]);
        // A stranger with every address of one network, and another one with a whole /48.
        let four = flood(&listener, 7, &["203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4"]);
        let six = flood(&listener, 6, &["2001:db8:9:1::1", "2001:db8:9:2::1", "2001:db8:9:3::1"]);
        assert_eq!(gone(&four).len() + gone(&six).len(), 0, "nobody goes while there are places");
        let newcomers = flood(&listener, 4, &["192.0.2.9", "198.51.100.9", "100.64.0.1", "2001:db8:2::1"]);
        // Seven are more than six; then both networks have six and the older one goes; and so on by turns.
        assert_eq!((gone(&four), gone(&six)), (vec![0, 1, 2], vec![0]));
        assert!(gone(&honest).is_empty() && gone(&newcomers).is_empty(), "others had to go");
        drop((honest, four, six, newcomers));
        assert!(is_empty(&listener), "something is kept of those who have left");
    }

    #[tokio::test]
    async fn t09_no_network_and_no_address_has_more_than_its_share() {
        let shares: [(&[&str], usize); 5] = [
            (&["203.0.113.7"], PLACES / 4),
            (&["::ffff:203.0.113.7"], PLACES / 4),
            (&["203.0.113.1", "203.0.113.2", "203.0.113.3"], PLACES / 2),
            (&["2001:db8:9:1::1", "2001:db8:9:1::2", "2001:db8:9:1::3"], PLACES / 4),
            (&["2001:db8:9:1::1", "2001:db8:9:2::1", "2001:db8:9:3::1"], PLACES / 2),
        ];
        for (addresses, share) in shares {
            let listener = listener();
            let other = listener.enter(Some(&public("192.0.2.1")));
            let slots = flood(&listener, 3 * PLACES, addresses);
            let expected: Vec<usize> = (0..3 * PLACES - share).collect();
            assert_eq!(gone(&slots), expected, "{addresses:?}: the oldest go, the share stays");
            assert!(!is_evicted(&other), "{addresses:?}");
        }
    }

    #[tokio::test]
    async fn private_endpoints_with_the_same_addresses_are_told_apart() {
        let listener = listener();
        let of = |id: &str| Origin {
            address: "10.0.0.5".parse().unwrap(),
            way: Way::Endpoint(EndpointId::Aws(id.to_owned())),
        };
        let customer = listener.enter(Some(&of("vpce-0a")));
        let flood: Vec<Slot> = (0..3 * PLACES).map(|_| listener.enter(Some(&of("vpce-0b")))).collect();
        assert_eq!(gone(&flood).len(), 3 * PLACES - PLACES / 4);
        assert!(!is_evicted(&customer));
    }

    #[tokio::test]
    async fn a_balanced_client_counts_where_its_header_says() {
        let listener = listener();
        let announce = |address: &str| {
            let slot = listener.enter(None);
            slot.announced(&public(address));
            slot
        };
        let customer = announce("192.0.2.1");
        let flood: Vec<Slot> = (0..3 * PLACES).map(|_| announce("203.0.113.7")).collect();
        assert_eq!(gone(&flood).len(), 3 * PLACES - PLACES / 4);
        assert!(!is_evicted(&customer));
        let unannounced: Vec<Slot> = (0..3 * PLACES).map(|_| listener.enter(None)).collect();
        assert!(!is_evicted(&customer) && !unannounced.last().is_some_and(is_evicted));
        // One that had to go comes back by no later header.
        let evicted = unannounced.first().unwrap();
        evicted.announced(&public("198.51.100.1"));
        assert!(is_evicted(evicted) && listener.lock().connections.len() <= PLACES);
        drop((customer, flood, unannounced));
        assert!(is_empty(&listener));
    }

    #[tokio::test]
    async fn private_networks_share_their_places_and_each_keeps_its_own() {
        let listener = listener();
        let networks: Vec<ClusterId> = (0..12).map(|_| ClusterId::random()).collect();
        let inside = |network: usize, last: u8| Origin {
            address: IpAddr::from([10, 0, 0, last]),
            way: Way::Private(networks[network]),
        };
        let customer = listener.enter(Some(&inside(0, 9)));
        // One network has its share and no more, one address in it a quarter of that.
        let full: Vec<Slot> =
            (0..PLACES).map(|n| listener.enter(Some(&inside(1, u8::try_from(n % 8).unwrap())))).collect();
        assert_eq!(gone(&full).len(), PLACES - PLACES / 8, "its /24 has half of what the network has");
        let one_address: Vec<Slot> = (0..PLACES).map(|_| listener.enter(Some(&inside(2, 1)))).collect();
        assert_eq!(gone(&one_address).len(), PLACES - PLACES / 16);
        // All networks together have no more than there are places, and a customer in a quiet one keeps his.
        let floods: Vec<Slot> = (0..PLACES * 12)
            .map(|n| listener.enter(Some(&inside(1 + n % 11, u8::try_from(n / 11 % 200).unwrap()))))
            .collect();
        assert!(listener.lock().connections.len() <= PLACES && !is_evicted(&customer));
        drop((customer, full, one_address, floods));
        assert!(is_empty(&listener));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_the_first_byte_shrinks_with_the_crowd() {
        let listener = listener();
        let allowed = |count| listener.first_byte(count);
        assert_eq!([0, 4].map(allowed), [Duration::from_secs(9); 2], "all of it while there is room");
        assert_eq!([10, 16, 99].map(allowed), [5, 1, 1].map(Duration::from_secs), "less in proportion");
        // Those that wait have less time, too, when others come: the silent ones, and not those that have spoken.
        let early = flood(&listener, 8, &["192.0.2.1", "198.51.100.1", "203.0.113.1", "100.64.0.1"]);
        early[0].heard();
        tokio::time::sleep(Duration::from_secs(4)).await;
        let _late = flood(&listener, 8, &["192.0.3.1", "198.51.101.1", "203.0.114.1", "100.65.0.1"]);
        assert!(
            !is_evicted(&early[0]) && gone(&early).len() >= 4,
            "silent ones keep their places in a crowd"
        );
        assert!(early[0].first_byte_by() < early[0].entered() + Duration::from_secs(9));
    }

    #[tokio::test]
    async fn a_program_without_descriptors_gives_up_the_most_crowded() {
        let listener = listener();
        let customer = listener.enter(Some(&public("192.0.2.1")));
        let flood = flood(&listener, 3, &["203.0.113.7"]);
        // One that broke off by itself is nobody's fault.
        listener.not_accepted(&Errno::CONNABORTED.into());
        assert_eq!(gone(&flood), Vec::<usize>::new());
        listener.not_accepted(&Errno::MFILE.into());
        assert_eq!(gone(&flood), vec![0]);
        drop((flood, customer));
        listener.not_accepted(&Errno::MFILE.into());
        assert!(is_empty(&listener));
    }
}
