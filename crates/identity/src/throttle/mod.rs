//! What failed sign-ins cost, asked before any expensive work. Two things are counted:
//!
//! - **address and cluster** (IPv6 by /64). After some free failures the address waits, and then is refused for a time that
//!   doubles with each failure.
//! - **user and cluster**. A user who is being guessed from many addresses is slowed for everybody, by a few seconds at
//!   most, and each address that fails for that user has no free failures: it waits and then is refused itself. Nobody is
//!   refused for what others did, so the owner gets in with the right password from elsewhere.
//!
//! An address from which the user has signed in before is known: it pays only for its own failures as that user, not for
//! those of its neighbours behind one NAT, nor for the guessing of others.
//!
//! A sign-in that succeeds takes back the failures of this user from this address, and no others: an account of one's own
//! does not wash away guesses at other accounts.
//!
//! **Only wrong proofs count.** Whoever calls [`Throttle::failed`] decides that the proof was wrong; a missing engine, a
//! time-out, a client that went away or a full house is no failure. [`Throttle::check`] alone counts nothing.
//!
//! **Memory is bounded** by `entries_max`, also where clusters and users are made up. Names are cut to 64 bytes. Small
//! counts never push out large ones, so a flood of made-up names cannot wash away a penalty; to push out a penalty, as many
//! others must be earned, each of more than the free failures, as there is room for. One address (IPv6: one /48) has
//! counts of its own at 64 clusters only; for further clusters it has a common one, so that a single address neither fills
//! the memory nor begins anew at each name that it makes up. Known addresses are kept apart, where only real sign-ins get.
//! Counts are lost when the program stops.

mod table;

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use table::{Count, Table, Youngest, later};

/// Clusters at which one address has counts of its own.
const CLUSTERS_PER_SITE_MAX: u32 = 64;
/// The cluster of the count that an address has for all others. No handle is written like it.
const OTHER_CLUSTERS: &str = "*";
/// Longest name that is kept, in bytes: users and handles that exist are not longer.
const NAME_BYTES_MAX: usize = 64;
/// A penalty of at most so many times `base` is waited for; a longer one is refused.
const WAITED_FOR: u32 = 2;
/// Tables that share `entries_max`.
const TABLES: usize = 5;

/// How hard the throttle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures of one address at one cluster that cost nothing.
    pub free_failures: u32,
    /// What the first failure after the free ones costs. Each further one doubles it.
    pub base: Duration,
    /// The most that a failure costs its address.
    pub max: Duration,
    /// The longest that an attempt is made to wait, before it is refused instead.
    pub user_delay_max: Duration,
    /// In which time a count is forgotten, little by little, after it has stopped to cost something.
    pub forget_after: Duration,
    /// Most counts that are kept in all.
    pub entries_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            free_failures: 5,
            base: Duration::from_secs(1),
            max: Duration::from_secs(3_600),
            user_delay_max: Duration::from_secs(4),
            forget_after: Duration::from_secs(3_600),
            entries_max: 100_000,
        }
    }
}

/// Somebody who tries to sign in.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The cluster's handle as the client said it, also where no such cluster exists.
    pub cluster: &'a str,
    /// The user as the client said it, also where no such user exists.
    pub user: &'a str,
    /// Where the client comes from. IPv4 inside IPv6 counts as IPv4.
    pub address: IpAddr,
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on after this wait, which is mostly zero.
    Go {
        /// At most [`Settings::user_delay_max`].
        wait: Duration,
    },
    /// It is refused unheard.
    Refuse {
        /// When it is worth trying again.
        retry_after: Duration,
    },
}

/// What a count means for the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing yet.
    Counted,
    /// It has to wait.
    Slowed,
    /// It is refused.
    Refused,
}

impl State {
    /// The state in a word: `counted`, `slowed` or `refused`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::Slowed => "slowed",
            Self::Refused => "refused",
        }
    }
}

/// One count, for people. With a user and an address it is what this address failed as this user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The cluster as clients said it, after a `?` where there is none on their way; `*` for all clusters at which an
    /// address has no count of its own.
    pub cluster: String,
    /// The user as clients said it, where failures are counted by user.
    pub user: Option<String>,
    /// The address or, for IPv6, the network, where failures are counted by address.
    pub address: Option<String>,
    /// How many failures.
    pub failures: u32,
    /// What they mean for the next attempt.
    pub state: State,
    /// For how much longer, where it is slowed or refused.
    pub remaining: Option<Duration>,
}

/// What is to be forgotten. What is `None` means every one; the default is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Failures at this cluster, by its handle.
    pub cluster: Option<String>,
    /// Failures as this user.
    pub user: Option<String>,
    /// Failures from this address; for IPv6, from its /64.
    pub address: Option<IpAddr>,
}

/// The failed sign-ins that are remembered.
pub struct Throttle {
    settings: Settings,
    counts: Mutex<Counts>,
}

struct Counts {
    places: Table<Place>,
    users: Table<User>,
    pairs: Table<Pair>,
    /// How many counts of their own sites have.
    sites: Table<IpAddr>,
    known: Youngest<Pair, ()>,
}

/// An address at a cluster.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    network: IpAddr,
    cluster: String,
}

/// A user of a cluster.
#[derive(Clone, PartialEq, Eq, Hash)]
struct User {
    cluster: String,
    user: String,
}

/// A user of a cluster, from an address.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Pair {
    user: User,
    network: IpAddr,
}

impl Throttle {
    /// One that remembers nothing.
    pub fn new(settings: Settings) -> Self {
        let Settings { free_failures, forget_after, entries_max, .. } = settings;
        let max = entries_max / TABLES;
        let counts = Counts {
            places: Table::new(max, free_failures, forget_after),
            users: Table::new(max, free_failures, forget_after),
            pairs: Table::new(max, free_failures, forget_after),
            sites: Table::new(max, CLUSTERS_PER_SITE_MAX - 1, forget_after),
            known: Youngest::new(max),
        };
        Self { settings, counts: Mutex::new(counts) }
    }

    /// Whether the attempt may go on. Cheap; to be asked before anything that is not.
    ///
    /// Attempts at the same moment by somebody who pays for failures go on one after the other, so that many connections at
    /// once do not get more guesses than one. Whoever has no failures yet gets as many at once as it may have connections.
    pub fn check(&self, attempt: &Attempt<'_>, now: Instant) -> Verdict {
        let mut counts = self.counts();
        let pair = Pair::of(attempt);
        let is_known = counts.known.contains(&pair);
        // What the address did itself.
        let place = (!is_known).then(|| counts.place(&pair, now));
        let own =
            [counts.pairs.get(&pair, now), place.as_ref().and_then(|place| counts.places.get(place, now))];
        let mut wait = Duration::ZERO;
        let mut refused: Option<Duration> = None;
        for count in own.iter().flatten() {
            let remaining = count.remaining(now);
            if self.is_waited_for(count) && remaining <= self.settings.user_delay_max {
                wait = wait.max(remaining);
            } else {
                refused = refused.max(Some(remaining));
            }
        }
        if let Some(retry_after) = refused.filter(|time| !time.is_zero()) {
            return Verdict::Refuse { retry_after };
        }
        if own[0].is_some_and(|count| self.is_one_by_one(&count, now))
            && let Some(count) = counts.pairs.get_mut(&pair)
        {
            self.queue(count, now);
        }
        if own[1].is_some_and(|count| self.is_one_by_one(&count, now))
            && let Some(count) = place.as_ref().and_then(|place| counts.places.get_mut(place))
        {
            self.queue(count, now);
        }
        // What others did to this user.
        if !is_known && let Some(count) = counts.users.get(&pair.user, now) {
            wait = wait.max(count.remaining(now).min(self.settings.user_delay_max));
        }
        Verdict::Go { wait }
    }

    /// Whether an attempt that [`Throttle::check`] let go on at `heard_at` may still prove itself; to be asked just before
    /// its proof is looked at. Of many attempts that were let in at once, those after the first wrong proofs are refused
    /// unseen, and where a wrong proof costs much, proofs are looked at one after the other. What the attempt itself has
    /// waited for is not held against it.
    pub fn recheck(&self, attempt: &Attempt<'_>, heard_at: Instant, now: Instant) -> Verdict {
        let mut counts = self.counts();
        let pair = Pair::of(attempt);
        let place = (!counts.known.contains(&pair)).then(|| counts.place(&pair, now));
        let own =
            [counts.pairs.get(&pair, now), place.as_ref().and_then(|place| counts.places.get(place, now))];
        let dear = own.map(|count| count.filter(|count| !self.is_waited_for(count)));
        let since = |count: &Count| {
            let failed = (count.last >= heard_at).then(|| later(count.last, count.penalty));
            let proving = count.proving.map(|moment| later(moment, self.longest_wait()));
            failed.max(proving).map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
        };
        let retry_after = dear.iter().flatten().map(since).max().unwrap_or_default();
        if !retry_after.is_zero() {
            return Verdict::Refuse { retry_after };
        }
        if dear[0].is_some()
            && let Some(count) = counts.pairs.get_mut(&pair)
        {
            count.proving = Some(now);
        }
        if dear[1].is_some()
            && let Some(count) = place.as_ref().and_then(|place| counts.places.get_mut(place))
        {
            count.proving = Some(now);
        }
        Verdict::Go { wait: Duration::ZERO }
    }

    /// Counts a wrong proof.
    pub fn failed(&self, attempt: &Attempt<'_>, now: Instant) {
        let mut counts = self.counts();
        let pair = Pair::of(attempt);
        let place = counts.place(&pair, now);
        let after_free = |failures| self.penalty(after(failures, self.settings.free_failures));
        if counts.places.get(&place, now).is_none() && !place.is_common() {
            counts.sites.add(site(pair.network), now, |_| Duration::ZERO);
        }
        counts.places.add(place, now, after_free);
        let guessed = counts.users.add(pair.user.clone(), now, after_free);
        let is_known = counts.known.contains(&pair);
        counts.pairs.add(pair, now, |failures| {
            // Others are guessing this user: no guess is free.
            let is_guessed = after(guessed.failures, failures) > self.settings.free_failures;
            if is_guessed && !is_known { self.penalty(failures) } else { after_free(failures) }
        });
    }

    /// Takes back what this address failed as this user, and remembers that it is the user's.
    pub fn succeeded(&self, attempt: &Attempt<'_>, _now: Instant) {
        let mut counts = self.counts();
        let pair = Pair::of(attempt);
        self.forgive(&mut counts, &pair);
        counts.known.put(pair, ());
    }

    /// What is remembered, in any order.
    pub fn list(&self, now: Instant) -> Vec<Line> {
        let counts = self.counts();
        let line = |cluster: &str, user: Option<&str>, address: Option<IpAddr>, count: &Count| {
            let remaining = Some(count.remaining(now)).filter(|time| !time.is_zero());
            let state = match remaining {
                None => State::Counted,
                // Others are never refused for what was done to a user.
                Some(_) if address.is_none() || self.is_waited_for(count) => State::Slowed,
                Some(_) => State::Refused,
            };
            Line {
                cluster: cluster.to_owned(),
                user: user.map(str::to_owned),
                address: address.map(|address| shown(address, cluster)),
                failures: count.failures,
                state,
                remaining,
            }
        };
        let places = counts.places.iter(now);
        let users = counts.users.iter(now);
        let pairs = counts.pairs.iter(now);
        places
            .map(|(place, count)| line(&place.cluster, None, Some(place.network), &count))
            .chain(users.map(|(user, count)| line(&user.cluster, Some(&user.user), None, &count)))
            .chain(pairs.map(|(pair, count)| {
                line(&pair.user.cluster, Some(&pair.user.user), Some(pair.network), &count)
            }))
            .collect()
    }

    /// Forgets what the filter names, and says how many lines. Who was forgiven as one user or from one address still pays
    /// for the rest. Known addresses stay known.
    pub fn clear(&self, filter: &Filter) -> usize {
        let mut counts = self.counts();
        let before = counts.len();
        let cluster = filter.cluster.as_deref().map(cut);
        let user = filter.user.as_deref().map(cut);
        let network = filter.address.map(model::neighbourhood);
        let is_of = |of: &str| cluster.is_none_or(|cluster| cluster == of);
        let is_from = |from: IpAddr| network.is_none_or(|network| network == from);
        let is_as = |name: &str| user.is_none_or(|user| user == name);

        let pairs: Vec<Pair> = keys(&counts.pairs, |pair| {
            is_of(&pair.user.cluster) && is_as(&pair.user.user) && is_from(pair.network)
        });
        for pair in pairs {
            self.forgive(&mut counts, &pair);
        }
        if user.is_none() {
            let places = keys(&counts.places, |place| {
                let is_common = place.is_common();
                let is_there = is_of(&place.cluster) || (is_common && network.is_some());
                is_there
                    && (is_from(place.network) || (is_common && network.map(site) == Some(place.network)))
            });
            for place in places {
                counts.remove_place(&place);
            }
        }
        if network.is_none() {
            for user in keys(&counts.users, |user| is_of(&user.cluster) && is_as(&user.user)) {
                counts.users.remove(&user);
            }
        }
        before - counts.len()
    }

    fn forgive(&self, counts: &mut Counts, pair: &Pair) {
        let Some(Count { failures, .. }) = counts.pairs.remove(pair) else { return };
        let after_free = |failures| self.penalty(after(failures, self.settings.free_failures));
        counts.users.lessen(&pair.user, failures, after_free);
        let own = Place::own(pair);
        if counts.places.contains(&own) {
            if counts.places.lessen(&own, failures, after_free) {
                counts.sites.lessen(&site(own.network), 1, |_| Duration::ZERO);
            }
        } else {
            counts.places.lessen(&Place::common(pair), failures, after_free);
        }
    }

    /// What so many failures cost that are not free.
    fn penalty(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let times = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.settings.base.saturating_mul(times).min(self.settings.max)
    }

    fn is_waited_for(&self, count: &Count) -> bool {
        count.penalty <= self.longest_wait()
    }

    /// The largest penalty that is waited for.
    fn longest_wait(&self) -> Duration {
        self.settings.base.saturating_mul(WAITED_FOR)
    }

    /// Whether attempts go on one by one: while they wait, and where the next failure would cost much.
    fn is_one_by_one(&self, count: &Count, now: Instant) -> bool {
        !count.remaining(now).is_zero() || !self.is_waited_for(count)
    }

    /// Makes the next attempt wait for the one that goes on now. Only for a moment: it may fail for a reason that is not
    /// its own.
    fn queue(&self, count: &mut Count, now: Instant) {
        let step = count.penalty.min(self.longest_wait());
        count.until = later(count.until.max(now), step);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counts are sound after every single step.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// Where failures of the address at the cluster are counted.
    fn place(&self, pair: &Pair, now: Instant) -> Place {
        let own = Place::own(pair);
        let count = self.sites.get(&site(pair.network), now);
        let is_full = count.is_some_and(|count| count.failures >= CLUSTERS_PER_SITE_MAX);
        if is_full && self.places.get(&own, now).is_none() { Place::common(pair) } else { own }
    }

    fn remove_place(&mut self, place: &Place) {
        if self.places.remove(place).is_some() && !place.is_common() {
            self.sites.lessen(&site(place.network), 1, |_| Duration::ZERO);
        }
    }

    /// Lines that people see.
    fn len(&self) -> usize {
        self.places.len() + self.users.len() + self.pairs.len()
    }
}

impl Place {
    fn own(pair: &Pair) -> Self {
        Self { network: pair.network, cluster: pair.user.cluster.clone() }
    }

    /// For all clusters at which the site has no count of its own.
    fn common(pair: &Pair) -> Self {
        Self { network: site(pair.network), cluster: OTHER_CLUSTERS.to_owned() }
    }

    fn is_common(&self) -> bool {
        self.cluster == OTHER_CLUSTERS
    }
}

impl Pair {
    fn of(attempt: &Attempt<'_>) -> Self {
        let user = User { cluster: cut(attempt.cluster).to_owned(), user: cut(attempt.user).to_owned() };
        Self { user, network: model::neighbourhood(attempt.address) }
    }
}

fn keys<K: std::hash::Hash + Eq + Clone>(table: &Table<K>, is_wanted: impl Fn(&K) -> bool) -> Vec<K> {
    table.all().filter(|(key, _)| is_wanted(key)).map(|(key, _)| key.clone()).collect()
}

/// How many of the failures are left without these.
fn after(failures: u32, without: u32) -> u32 {
    failures.saturating_sub(without)
}

fn cut(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// An IPv4 address, or an IPv6 /48, which is what one customer has at the most.
fn site(network: IpAddr) -> IpAddr {
    match network {
        IpAddr::V6(six) => IpAddr::V6((six.to_bits() >> 80 << 80).into()),
        four @ IpAddr::V4(_) => four,
    }
}

fn shown(network: IpAddr, cluster: &str) -> String {
    match network {
        IpAddr::V4(_) => network.to_string(),
        IpAddr::V6(_) if cluster == OTHER_CLUSTERS => format!("{network}/48"),
        IpAddr::V6(_) => format!("{network}/64"),
    }
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
