//! Somebody at a terminal waits for a person in a browser: who waits, where the person goes, and how the two meet.
//!
//! The address has 160 random bits and works once, for two minutes at most, as long as the connection at the terminal is
//! open. The code is no secret: the person compares it with what the terminal shows, so that nobody is talked into signing
//! in for a stranger's terminal (RFC 8628, section 5.4).

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use std::time::Instant;

use model::{ClusterHandle, ClusterId, IdentityProvider, Origin, ProviderName, RoleName};
use time::OffsetDateTime;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::abandoned::{Abandoned, Tally};
use crate::digest_of;
use crate::shares::{Part, Shares};

/// For how long a ticket is open.
pub const LIFE: Duration = Duration::from_secs(120);
/// Most open tickets. Where there are more, the oldest of the most crowded network at the most crowded cluster goes.
pub const TICKETS_MAX: usize = 10_000;
/// Most open tickets of one cluster. Where there are more, the oldest of its most crowded network goes.
pub const PER_CLUSTER_MAX: usize = 200;
/// Most open tickets of one cluster from one address (an IPv6 network of 64 bits), so that one cannot take all. An address that
/// came by another way is another one.
pub const PER_ADDRESS_MAX: usize = 20;

const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// 27 of 62 characters: 160 bits.
const ID_LENGTH: usize = 27;
/// No vowels, so no words, and nothing that looks like something else (RFC 8628, section 6.1).
const CODE_ALPHABET: &[u8] = b"BCDFGHJKLMNPQRSTVWXZ";

/// Who waits, for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketFacts {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name, as people know it.
    pub handle: ClusterHandle,
    /// The SQL user that the client asked for.
    pub user: RoleName,
    /// Where the terminal is, and by which way it came.
    pub origin: Origin,
    /// Who is to vouch.
    pub provider: ProviderName,
    /// Its issuer when the ticket was opened.
    pub issuer: String,
    /// The `map=` of the rule.
    pub map: Option<String>,
}

impl TicketFacts {
    /// Whether this provider may vouch for the ticket: it is the one that was named, and it counts in the ticket's cluster.
    /// A sign-in that began elsewhere must not end here.
    pub fn accepts(&self, provider: &IdentityProvider) -> bool {
        provider.name == self.provider
            && provider.issuer == self.issuer
            && provider.cluster.is_none_or(|cluster| cluster == self.cluster)
    }
}

/// The secret part of a ticket's address. It does not print.
#[derive(Clone)]
pub struct TicketId(String);

impl TicketId {
    /// The id, for the address: 27 letters and digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketId")
    }
}

/// There are too many tickets already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many people are signing in with a browser")]
pub struct TooMany;

/// There is no such ticket any more: it was used, its time is over, or whoever waited has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this sign-in is over")]
pub struct Gone;

/// A ticket that was opened.
#[derive(Debug)]
pub struct Opened<V> {
    /// Its address.
    pub id: TicketId,
    /// What the person compares, `BCDF-GHJK`.
    pub code: String,
    /// Ends with what the person brought. Dropping it closes the ticket.
    pub ticket: Ticket<V>,
}

/// All open tickets. They are found by the digest of their id, so that the time of a look-up tells nothing of the id.
pub struct Tickets<V> {
    open: Arc<Mutex<Open<V>>>,
}

type Key = [u8; 32];

struct Open<V> {
    entries: HashMap<Key, Entry<V>>,
    /// By cluster and by where the terminals are.
    shares: Shares<Key>,
    /// Those that came to nothing.
    abandoned: Tally,
}

struct Entry<V> {
    facts: TicketFacts,
    code: String,
    until: OffsetDateTime,
    sender: oneshot::Sender<V>,
}

/// The waiting side of a ticket: a future.
pub struct Ticket<V> {
    open: Arc<Mutex<Open<V>>>,
    key: Key,
    receiver: oneshot::Receiver<V>,
    lapse: Pin<Box<Sleep>>,
}

impl<V> Default for Tickets<V> {
    fn default() -> Self {
        let open = Open { entries: HashMap::new(), shares: Shares::default(), abandoned: Tally::default() };
        Self { open: Arc::new(Mutex::new(open)) }
    }
}

impl<V> Tickets<V> {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a ticket, at the cost of another where there are too many: whoever waits for that one hears that it is over.
    /// Must be called inside a tokio runtime.
    pub fn open(&self, facts: TicketFacts, now: OffsetDateTime) -> Result<Opened<V>, TooMany> {
        let id = TicketId(crate::random_text(ID_LENGTH, ALPHABET));
        let letters = crate::random_text(8, CODE_ALPHABET);
        let code = format!("{}-{}", &letters[..4], &letters[4..]);
        let key = digest_of(id.as_str());
        let (sender, receiver) = oneshot::channel();
        let mut path = vec![Part::Cluster(facts.cluster)];
        path.extend(Part::of(&facts.origin));
        let mut open = lock(&self.open);
        if open.shares.count(&path) >= PER_ADDRESS_MAX {
            return Err(TooMany);
        }
        if open.shares.count(&path[..1]) >= PER_CLUSTER_MAX {
            open.evict(&path[..1]);
        }
        if open.entries.len() >= TICKETS_MAX {
            open.evict(&[]);
        }
        open.shares.insert(key, path);
        open.entries.insert(key, Entry { facts, code: code.clone(), until: now + LIFE, sender });
        drop(open);
        let lapse = Box::pin(tokio::time::sleep(LIFE));
        Ok(Opened { id, code, ticket: Ticket { open: self.open.clone(), key, receiver, lapse } })
    }

    /// Who waits under this id, and the code that the terminal shows. Changes nothing.
    pub fn look(&self, id: &str, now: OffsetDateTime) -> Option<(TicketFacts, String)> {
        let open = lock(&self.open);
        let entry = open.entries.get(&digest_of(id)).filter(|entry| now < entry.until)?;
        Some((entry.facts.clone(), entry.code.clone()))
    }

    /// Hands the outcome to whoever waits. Only the first one counts. Whoever calls has seen to it that the outcome comes
    /// from a provider that the ticket accepts ([`TicketFacts::accepts`]).
    pub fn complete(&self, id: &str, outcome: V, now: OffsetDateTime) -> Result<(), Gone> {
        let entry = lock(&self.open).take(&digest_of(id)).ok_or(Gone)?;
        if now >= entry.until {
            return Err(Gone);
        }
        entry.sender.send(outcome).map_err(|_| Gone)
    }

    /// Tells the log what was abandoned since it was last told, at most once a minute. To be called now and then.
    pub fn tell_abandoned(&self) {
        lock(&self.open).abandoned.tell(Instant::now());
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        lock(&self.open).entries.len()
    }
}

impl<V> Open<V> {
    fn take(&mut self, key: &Key) -> Option<Entry<V>> {
        self.shares.remove(key);
        self.entries.remove(key)
    }

    /// Ends the ticket that goes first of those there.
    fn evict(&mut self, path: &[Part]) {
        if let Some(key) = self.shares.first_to_go(path)
            && let Some(entry) = self.take(&key)
        {
            self.abandon(&entry, Abandoned::PushedOut);
        }
    }

    fn abandon(&mut self, entry: &Entry<V>, how: Abandoned) {
        self.abandoned.note(how, &entry.facts.handle, &entry.facts.origin);
        self.abandoned.tell(Instant::now());
    }
}

impl<V> fmt::Debug for Tickets<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

impl<V> Future for Ticket<V> {
    type Output = Result<V, Gone>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(outcome) = Pin::new(&mut self.receiver).poll(context) {
            return Poll::Ready(outcome.map_err(|_| Gone));
        }
        self.lapse.as_mut().poll(context).map(|()| Err(Gone))
    }
}

impl<V> Drop for Ticket<V> {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        // Whoever was let in, or made room, is no longer there.
        if let Some(entry) = open.take(&self.key) {
            let how = if self.lapse.is_elapsed() { Abandoned::Lapsed } else { Abandoned::Left };
            open.abandon(&entry, how);
        }
    }
}

impl<V> fmt::Debug for Ticket<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

fn lock<V>(open: &Mutex<Open<V>>) -> MutexGuard<'_, Open<V>> {
    // No step in between can panic.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::IpAddr;

    use super::*;
    use crate::token::testing::{ISSUER, NOW, provider};

    fn facts(cluster: ClusterId) -> TicketFacts {
        TicketFacts {
            cluster,
            handle: "lazy-roach-3".parse().unwrap(),
            user: "maria".parse().unwrap(),
            origin: Origin::public("192.0.2.7".parse().unwrap()),
            provider: "corp".parse().unwrap(),
            issuer: ISSUER.into(),
            map: None,
        }
    }

    #[tokio::test]
    async fn a_person_in_a_browser_lets_the_terminal_in() {
        let tickets = Tickets::new();
        let facts = facts(ClusterId::random());
        let opened = tickets.open(facts.clone(), NOW).unwrap();
        assert_eq!(tickets.look(opened.id.as_str(), NOW), Some((facts, opened.code.clone())));
        let id = opened.id.clone();
        let waiting = tokio::spawn(opened.ticket);
        assert_eq!(tickets.complete(id.as_str(), "in", NOW), Ok(()));
        assert_eq!(waiting.await.unwrap(), Ok("in"));
        assert_eq!(tickets.count(), 0);
    }

    #[tokio::test]
    async fn t53_ids_cannot_be_guessed_and_codes_are_readable() {
        let tickets = Tickets::<()>::new();
        let mut seen = HashSet::new();
        for _ in 0..100 {
            let opened = tickets.open(facts(ClusterId::random()), NOW).unwrap();
            let id = opened.id.as_str();
            // 27 × log2(62) = 160 bits.
            assert!(id.len() == 27 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            assert!(seen.insert(id.to_owned()));
            let (left, right) = opened.code.split_once('-').unwrap();
            assert!([left, right].iter().all(|part| part.len() == 4));
            assert!(opened.code.bytes().all(|byte| byte == b'-' || CODE_ALPHABET.contains(&byte)));
            for guess in ["", &id[..26], &id.to_ascii_lowercase(), &format!("{id}0")] {
                assert!(guess == id || tickets.look(guess, NOW).is_none());
            }
            assert_eq!(format!("{:?}", opened.id), "TicketId");
        }
    }

    #[tokio::test]
    async fn t53_where_all_are_taken_the_most_crowded_cluster_gives_way_and_no_other() {
        const OTHERS: usize = 98;
        let tickets = Tickets::<()>::new();
        let open = |cluster: ClusterId, number: usize, net: usize| {
            let address: IpAddr = format!("10.{net}.{}.1", number / PER_ADDRESS_MAX).parse().unwrap();
            let facts = TicketFacts { origin: Origin::public(address), ..facts(cluster) };
            tickets.open(facts, NOW).unwrap()
        };
        let crowded = ClusterId::random();
        let mut of_crowded: Vec<_> = (0..PER_CLUSTER_MAX).map(|number| open(crowded, number, 200)).collect();
        let each = (TICKETS_MAX - PER_CLUSTER_MAX) / OTHERS;
        let others: Vec<_> = (0..OTHERS)
            .map(|net| (ClusterId::random(), net))
            .flat_map(|(cluster, net)| (0..each).map(move |number| (cluster, number, net)))
            .map(|(cluster, number, net)| open(cluster, number, net))
            .collect();
        assert_eq!(tickets.count(), TICKETS_MAX);
        let newcomer = open(ClusterId::random(), 0, 99);
        assert_eq!(tickets.count(), TICKETS_MAX);
        let is_open = |one: &Opened<()>| tickets.look(one.id.as_str(), NOW).is_some();
        assert!(is_open(&newcomer) && others.iter().all(is_open), "nobody else gives way");
        let gone: Vec<usize> = (0..of_crowded.len()).filter(|&at| !is_open(&of_crowded[at])).collect();
        assert_eq!(gone, [0], "the oldest of the most crowded");
        assert_eq!(of_crowded.remove(0).ticket.await, Err(Gone), "and whoever waits hears it");
    }

    #[tokio::test]
    async fn t53_a_ticket_counts_once() {
        let tickets = Tickets::new();
        let opened = tickets.open(facts(ClusterId::random()), NOW).unwrap();
        assert_eq!(tickets.complete(opened.id.as_str(), 1, NOW), Ok(()));
        assert_eq!(tickets.complete(opened.id.as_str(), 2, NOW), Err(Gone));
        assert_eq!(tickets.look(opened.id.as_str(), NOW), None);
        assert_eq!(opened.ticket.await, Ok(1));
    }

    #[tokio::test]
    async fn t53_a_ticket_belongs_to_its_connection() {
        let tickets = Tickets::new();
        let opened = tickets.open(facts(ClusterId::random()), NOW).unwrap();
        let id = opened.id.clone();
        drop(opened);
        assert_eq!(tickets.complete(id.as_str(), (), NOW), Err(Gone));
        assert_eq!(tickets.count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn t53_a_ticket_lapses() {
        let tickets = Tickets::new();
        let opened = tickets.open(facts(ClusterId::random()), NOW).unwrap();
        let (id, late) = (opened.id.clone(), NOW + LIFE);
        assert!(tickets.look(id.as_str(), late - time::Duration::SECOND).is_some());
        assert!(tickets.look(id.as_str(), late).is_none());
        assert_eq!(tickets.complete(id.as_str(), (), late), Err(Gone));
        let other = tickets.open(facts(ClusterId::random()), NOW).unwrap();
        assert_eq!(other.ticket.await, Err(Gone));
        assert_eq!(tickets.count(), 0);
    }

    #[test]
    fn t53_another_cluster_s_provider_cannot_finish_a_ticket() {
        let facts = facts(ClusterId::random());
        let mut provider = provider();
        assert!(facts.accepts(&provider));
        provider.cluster = Some(facts.cluster);
        assert!(facts.accepts(&provider));
        provider.cluster = Some(ClusterId::random());
        assert!(!facts.accepts(&provider));
        provider.cluster = None;
        provider.name = "other".parse().unwrap();
        assert!(!facts.accepts(&provider));
        // The same name, and meanwhile somebody else behind it.
        provider.name = "corp".parse().unwrap();
        assert!(facts.accepts(&provider));
        provider.issuer = "https://evil.example".into();
        assert!(!facts.accepts(&provider));
    }

    #[tokio::test]
    async fn tickets_are_bounded_and_one_address_cannot_take_all() {
        let tickets = Tickets::<()>::new();
        let (cluster, other) = (ClusterId::random(), ClusterId::random());
        let from = |cluster, last: u8| {
            let address = IpAddr::from([192, 0, 2, last]);
            tickets.open(TicketFacts { origin: Origin::public(address), ..facts(cluster) }, NOW)
        };
        let mut kept = Vec::new();
        for _ in 0..PER_ADDRESS_MAX {
            kept.push(from(cluster, 1).unwrap());
        }
        assert!(from(cluster, 1).is_err());
        assert!(from(other, 1).is_ok() && from(cluster, 2).is_ok());
        for index in PER_ADDRESS_MAX..PER_CLUSTER_MAX {
            kept.push(from(cluster, u8::try_from(index / PER_ADDRESS_MAX + 1).unwrap()).unwrap());
        }
        assert!(from(other, 99).is_ok());
        // The cluster is full with one network's. Somebody from elsewhere comes in all the same, and stays, whatever comes
        // from there afterwards.
        let elsewhere = |text: &str| {
            tickets
                .open(TicketFacts { origin: Origin::public(text.parse().unwrap()), ..facts(cluster) }, NOW)
                .unwrap()
        };
        let person = elsewhere("198.51.100.9");
        assert_eq!(tickets.count(), PER_CLUSTER_MAX);
        for index in 0..3 * PER_CLUSTER_MAX {
            let last = u8::try_from(100 + index % 100).unwrap();
            kept.extend(from(cluster, last));
            assert_eq!(tickets.count(), PER_CLUSTER_MAX);
        }
        assert!(tickets.look(person.id.as_str(), NOW).is_some(), "a flood of others pushed a person out");
        let gone = kept.iter().filter(|one| tickets.look(one.id.as_str(), NOW).is_none()).count();
        assert_eq!(gone, kept.len() + 1 - PER_CLUSTER_MAX);
        assert_eq!(kept.remove(0).ticket.await, Err(Gone), "whoever waited hears of it");
        drop((kept, person));
        assert!(from(cluster, 1).is_ok());
        let from = |text: &str| {
            tickets.open(TicketFacts { origin: Origin::public(text.parse().unwrap()), ..facts(cluster) }, NOW)
        };
        let kept: Vec<_> =
            (0..PER_ADDRESS_MAX).map(|index| from(&format!("2001:db8::{index}")).unwrap()).collect();
        assert!(from("2001:db8::ffff:0:0:1").is_err() && from("2001:db8:0:1::1").is_ok());
        drop(kept);
    }
}
