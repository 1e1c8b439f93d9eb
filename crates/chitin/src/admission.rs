//! Whether a cluster lets somebody in from there: by its allowlist, an accepted private endpoint, or an accepted peering.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{AllowlistEntry, Cluster, ClusterId, Origin, Surface, Visibility, Way, Wish};
use network::Matcher;
use store::Snapshot;
use time::OffsetDateTime;

/// Clusters whose lists are kept ready; more are made ready again when they are asked for.
const KEPT_MAX: usize = 10_000;

/// Lines of all clusters together that are made ready as one list; with more, each cluster's own list is asked.
const LINES_MAX: usize = 100_000;

/// The clusters' allowlists, ready to be asked: each is read once a change of its document.
#[derive(Default)]
pub struct Admissions {
    kept: Mutex<HashMap<ClusterId, (u64, Arc<Matcher>)>>,
    all: Mutex<Option<Together>>,
    /// Keyed anew in each process, so that nobody can make two states look alike.
    hasher: RandomState,
}

/// The lists of all public clusters, and the state of which they were read.
struct Together {
    snapshot: Arc<Snapshot>,
    /// Of every public cluster and its revision.
    digest: u64,
    lists: Lists,
}

#[derive(Clone)]
enum Lists {
    /// No cluster is public, so there is nobody to be kept from.
    NoneThere,
    /// All of them as one.
    One(Arc<Matcher>),
    /// Each by itself, where together they are too long.
    Each(Arc<[Arc<Matcher>]>),
}

impl Lists {
    fn admit(&self, address: IpAddr, surface: Surface, now: OffsetDateTime) -> bool {
        match self {
            Self::NoneThere => true,
            Self::One(matcher) => matcher.admits(address, surface, now),
            Self::Each(matchers) => matchers.iter().any(|matcher| matcher.admits(address, surface, now)),
        }
    }
}

impl Admissions {
    /// Whether the cluster lets the client in to this surface at this moment.
    pub fn admit(&self, cluster: &Cluster, origin: &Origin, surface: Surface, now: OffsetDateTime) -> bool {
        if cluster.wish == Wish::Deleted {
            return false;
        }
        match &origin.way {
            Way::Public => {
                is_visible(cluster, &origin.way) && self.ready(cluster).admits(origin.address, surface, now)
            }
            Way::Endpoint(id) => {
                cluster.network.endpoint(id).is_some_and(model::EndpointConnection::is_available)
            }
            Way::Private(own) => *own == cluster.id && cluster.network.admits(origin.address),
        }
    }

    /// Whether any cluster lets anybody in to this surface from there, as the lists are in this state: whom none lets in is
    /// to see no difference between a cluster that exists and one that does not. True where no cluster is public.
    pub fn anywhere(
        &self,
        snapshot: &Arc<Snapshot>,
        origin: &Origin,
        surface: Surface,
        now: OffsetDateTime,
    ) -> bool {
        match &origin.way {
            Way::Public => self.together(snapshot).admit(origin.address, surface, now),
            Way::Endpoint(_) | Way::Private(_) => true,
        }
    }

    /// The lists of all public clusters, read again only when one of them, or which clusters there are, has changed. Whoever
    /// comes meanwhile waits for the one who reads.
    fn together(&self, snapshot: &Arc<Snapshot>) -> Lists {
        let mut all = self.all();
        if let Some(known) = all.as_ref().filter(|known| Arc::ptr_eq(&known.snapshot, snapshot)) {
            return known.lists.clone();
        }
        let public = || {
            let clusters = snapshot.iter().map(|entry| &entry.cluster);
            clusters.filter(|cluster| cluster.wish != Wish::Deleted && is_visible(cluster, &Way::Public))
        };
        // Most changes of the state are of no document. A sum, since the clusters come in no order.
        let one = |cluster: &Cluster| self.hasher.hash_one((cluster.id, cluster.revision));
        let digest = public().fold(0, |sum: u64, cluster| sum.wrapping_add(one(cluster)));
        let lists = match all.as_ref().filter(|known| known.digest == digest) {
            Some(known) => known.lists.clone(),
            None => self.read(public),
        };
        *all = Some(Together { snapshot: snapshot.clone(), digest, lists: lists.clone() });
        lists
    }

    fn read<'a, I: Iterator<Item = &'a Cluster>>(&self, public: impl Fn() -> I) -> Lists {
        if public().next().is_none() {
            return Lists::NoneThere;
        }
        if public().map(|cluster| cluster.allowlist.len()).sum::<usize>() > LINES_MAX {
            let listed = public().filter(|cluster| !cluster.allowlist.is_empty());
            return Lists::Each(listed.map(|cluster| self.ready(cluster)).collect());
        }
        let lines: Vec<AllowlistEntry> = public().flat_map(|cluster| cluster.allowlist.clone()).collect();
        Lists::One(Arc::new(Matcher::new(&lines)))
    }

    fn all(&self) -> MutexGuard<'_, Option<Together>> {
        // Replaced as a whole.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the next line of the cluster's allowlist ends by itself.
    pub fn next_expiry(&self, cluster: &Cluster, now: OffsetDateTime) -> Option<OffsetDateTime> {
        if cluster.allowlist.iter().all(|line| line.expires_at.is_none()) {
            return None;
        }
        self.ready(cluster).next_expiry(now)
    }

    /// Forgets clusters that are gone.
    pub fn retain(&self, exists: impl Fn(&ClusterId) -> bool) {
        self.kept().retain(|id, _| exists(id));
    }

    fn ready(&self, cluster: &Cluster) -> Arc<Matcher> {
        let (id, revision) = (cluster.id, cluster.revision);
        if let Some((_, matcher)) = self.kept().get(&id).filter(|(known, _)| *known == revision) {
            return matcher.clone();
        }
        let matcher = Arc::new(Matcher::new(&cluster.allowlist));
        let mut kept = self.kept();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(id, (revision, matcher.clone()));
        matcher
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<ClusterId, (u64, Arc<Matcher>)>> {
        // Single inserts.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the cluster is there at all for somebody on this way.
pub fn is_visible(cluster: &Cluster, way: &Way) -> bool {
    match way {
        Way::Public => cluster.network.visibility == Visibility::Public,
        Way::Endpoint(_) => true,
        Way::Private(own) => *own == cluster.id && cluster.network.range.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use model::{EndpointConnection, EndpointId, EndpointState, Visibility};

    use super::*;
    use crate::testing::cluster;

    fn line(range: &str, sql: bool, ui: bool) -> AllowlistEntry {
        AllowlistEntry { range: range.parse().unwrap(), name: String::new(), sql, ui, expires_at: None }
    }

    fn public(address: &str) -> Origin {
        Origin::public(address.parse().unwrap())
    }

    fn over(id: &EndpointId) -> Origin {
        Origin { address: "203.0.113.9".parse().unwrap(), way: Way::Endpoint(id.clone()) }
    }

    fn admit(cluster: &Cluster, origin: &Origin, surface: Surface) -> bool {
        Admissions::default().admit(cluster, origin, surface, OffsetDateTime::now_utc())
    }

    #[test]
    fn t57_the_surfaces_are_opened_separately_and_an_empty_list_opens_nothing() {
        let mut own = cluster();
        assert!(!admit(&own, &public("203.0.113.9"), Surface::Sql));
        own.allowlist = vec![line("203.0.113.0/24", true, false), line("198.51.100.0/24", false, true)];
        for (address, sql, web) in
            [("203.0.113.9", true, false), ("198.51.100.9", false, true), ("::1", false, false)]
        {
            assert_eq!(admit(&own, &public(address), Surface::Sql), sql, "{address}");
            assert_eq!(admit(&own, &public(address), Surface::Web), web, "{address}");
        }
        own.wish = Wish::Deleted;
        assert!(!admit(&own, &public("203.0.113.9"), Surface::Sql), "what is gone admits nobody");
    }

    #[test]
    fn t56_an_endpoint_counts_by_its_id_and_an_address_by_the_list() {
        let (mine, other) = (EndpointId::Gcp(1), EndpointId::Gcp(2));
        let mut own = cluster();
        let created_at = OffsetDateTime::now_utc();
        for (state, expected) in [
            (EndpointState::Available, true),
            (EndpointState::PendingAcceptance, false),
            (EndpointState::Rejected, false),
        ] {
            own.network.endpoints =
                vec![EndpointConnection { id: mine.clone(), owner: None, state, created_at }];
            assert_eq!(admit(&own, &over(&mine), Surface::Sql), expected, "{state:?}");
        }
        own.network.endpoints[0].state = EndpointState::Available;
        // The list opens no endpoint, and an endpoint opens no list.
        own.allowlist = vec![line("0.0.0.0/0", true, true)];
        assert!(!admit(&own, &over(&other), Surface::Sql));
        own.allowlist.clear();
        own.revision += 1;
        assert!(!admit(&own, &public("203.0.113.9"), Surface::Sql));
    }

    #[test]
    fn a_private_cluster_is_not_there_for_the_public() {
        let mut own = cluster();
        own.allowlist = vec![line("0.0.0.0/0", true, true)];
        own.network.range = Some("10.77.0.0/24".parse().unwrap());
        own.network.visibility = Visibility::Private;
        let (inside, elsewhere) = (Way::Private(own.id), Way::Private(ClusterId::random()));
        assert!(!is_visible(&own, &Way::Public) && is_visible(&own, &inside));
        assert!(!is_visible(&own, &elsewhere), "another cluster's network shows that cluster only");
        assert!(!admit(&own, &public("203.0.113.9"), Surface::Sql));
        assert!(!admit(&own, &Origin { address: "10.77.0.2".parse().unwrap(), way: inside }, Surface::Sql));
    }

    #[test]
    fn a_change_of_the_list_counts_at_the_next_question() {
        let (admissions, now) = (Admissions::default(), OffsetDateTime::now_utc());
        let (mut own, home) = (cluster(), public("203.0.113.9"));
        assert!(!admissions.admit(&own, &home, Surface::Sql, now));
        own.allowlist = vec![line("203.0.113.0/24", true, true)];
        own.revision += 1;
        assert!(admissions.admit(&own, &home, Surface::Sql, now));
        assert_eq!(admissions.next_expiry(&own, now), None);
        own.allowlist[0].expires_at = Some(now + time::Duration::SECOND);
        own.revision += 1;
        assert_eq!(admissions.next_expiry(&own, now), Some(now + time::Duration::SECOND));
        assert!(!admissions.admit(&own, &home, Surface::Sql, now + time::Duration::SECOND));
    }

    /// A state with two public clusters, none of which lets anybody in.
    struct World {
        store: Arc<store::Store>,
        admissions: Admissions,
        ids: [ClusterId; 2],
        _folder: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let kek = keys::RootKey::open_or_create(&folder.path().join("kek")).unwrap();
            let store =
                store::Store::open(&folder.path().join("state"), kek.sealer("state").unwrap()).unwrap();
            let ids = ["lazy-roach", "busy-roach"]
                .map(|name| store.create(crate::testing::draft(name), OffsetDateTime::now_utc()).unwrap().id);
            Self { store, admissions: Admissions::default(), ids, _folder: folder }
        }

        fn list(&self, of: usize, lines: Vec<AllowlistEntry>) {
            let change = |cluster: &mut Cluster| {
                cluster.allowlist = lines;
                Ok::<_, store::Error>(())
            };
            self.store.edit(self.ids[of], OffsetDateTime::now_utc(), change).unwrap();
        }

        fn anywhere(&self, address: &str, surface: Surface) -> bool {
            let snapshot = self.store.snapshot();
            self.admissions.anywhere(&snapshot, &public(address), surface, OffsetDateTime::now_utc())
        }
    }

    #[test]
    fn t57_whom_no_list_lets_in_any_more_is_let_in_nowhere_at_once() {
        let world = World::new();
        assert!(!world.anywhere("203.0.113.9", Surface::Sql), "public clusters without lines");
        world.list(0, vec![line("203.0.113.0/24", true, false)]);
        world.list(1, vec![line("198.51.100.0/24", false, true)]);
        assert!(world.anywhere("203.0.113.9", Surface::Sql) && !world.anywhere("203.0.113.9", Surface::Web));
        assert!(
            world.anywhere("198.51.100.9", Surface::Web) && !world.anywhere("198.51.100.9", Surface::Sql)
        );
        // Nobody who is not let in asks between the change and those whom it concerns.
        world.list(0, Vec::new());
        assert!(!world.anywhere("203.0.113.9", Surface::Sql), "the list that was remembered lets in");
        world.store.wish(world.ids[1], Wish::Deleted, OffsetDateTime::now_utc()).unwrap();
        assert!(!world.anywhere("198.51.100.9", Surface::Web), "nor does the list of one that is gone");
    }

    #[test]
    fn lists_are_read_again_only_when_rules_have_changed() {
        let world = World::new();
        let read = || match world.admissions.together(&world.store.snapshot()) {
            Lists::One(matcher) => matcher,
            Lists::NoneThere | Lists::Each(_) => panic!("two short lists"),
        };
        let first = read();
        world.store.note(world.ids[0], |_| {}).unwrap();
        assert!(Arc::ptr_eq(&first, &read()), "an observation is no rule");
        world.list(0, vec![line("203.0.113.0/24", true, false)]);
        assert!(!Arc::ptr_eq(&first, &read()));
    }

    #[test]
    fn lists_that_are_too_long_together_are_asked_one_by_one() {
        let world = World::new();
        let lines = |from: u32| {
            let one =
                |number: u32| line(&format!("{}/32", std::net::Ipv4Addr::from(from + number)), true, false);
            (0..u32::try_from(LINES_MAX / 2 + 1).unwrap()).map(one).collect::<Vec<_>>()
        };
        world.list(0, lines(0x0a00_0000));
        world.list(1, lines(0x0b00_0000));
        assert!(world.anywhere("10.0.0.7", Surface::Sql) && world.anywhere("11.0.0.7", Surface::Sql));
        assert!(!world.anywhere("12.0.0.7", Surface::Sql) && !world.anywhere("10.0.0.7", Surface::Web));
        world.list(0, Vec::new());
        assert!(!world.anywhere("10.0.0.7", Surface::Sql) && world.anywhere("11.0.0.7", Surface::Sql));
    }
}
