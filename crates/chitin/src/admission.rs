//! Whether a cluster lets somebody in from there: by its allowlist, an accepted private endpoint, or an accepted peering.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{AllowlistEntry, Cluster, ClusterId, Origin, Surface, Visibility, Way, Wish};
use network::Matcher;
use store::Snapshot;
use time::OffsetDateTime;

/// Clusters whose lists are kept ready; more are made ready again when they are asked for.
const KEPT_MAX: usize = 10_000;

/// Lines of all clusters together that are made ready as one list; with more, nobody is refused by that list.
const LINES_MAX: usize = 100_000;

/// The clusters' allowlists, ready to be asked: each is read once a change of its document.
#[derive(Default)]
pub struct Admissions {
    kept: Mutex<HashMap<ClusterId, (u64, Arc<Matcher>)>>,
    all: Mutex<Option<Together>>,
}

/// The lists of all public clusters as one, and the state of which they were read.
struct Together {
    snapshot: Arc<Snapshot>,
    matcher: Arc<Matcher>,
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

    /// Whether any cluster might let SQL clients in from there.
    pub fn anywhere(&self, snapshot: &Arc<Snapshot>, origin: &Origin, now: OffsetDateTime) -> bool {
        match &origin.way {
            Way::Public => {
                let admits = |matcher: &Matcher| matcher.admits(origin.address, Surface::Sql, now);
                let known = self
                    .all()
                    .as_ref()
                    .map(|all| (all.matcher.clone(), Arc::ptr_eq(&all.snapshot, snapshot)));
                match known {
                    // An old list may let somebody in who is refused later; only a fresh one may refuse.
                    Some((matcher, is_fresh)) if is_fresh || admits(&matcher) => admits(&matcher),
                    _ => self.together(snapshot).is_none_or(|matcher| admits(&matcher)),
                }
            }
            Way::Endpoint(_) | Way::Private(_) => true,
        }
    }

    /// The lists of all public clusters as one; `None` where there are none, or they are too long for that.
    fn together(&self, snapshot: &Arc<Snapshot>) -> Option<Arc<Matcher>> {
        let public = || {
            let clusters = snapshot.iter().map(|entry| &entry.cluster);
            clusters.filter(|cluster| cluster.wish != Wish::Deleted && is_visible(cluster, &Way::Public))
        };
        // Where no cluster is public there is nobody to be kept from.
        let is_too_long = public().map(|cluster| cluster.allowlist.len()).sum::<usize>() > LINES_MAX;
        if is_too_long || public().next().is_none() {
            return None;
        }
        let lines: Vec<AllowlistEntry> = public().flat_map(|cluster| cluster.allowlist.clone()).collect();
        let matcher = Arc::new(Matcher::new(&lines));
        *self.all() = Some(Together { snapshot: snapshot.clone(), matcher: matcher.clone() });
        Some(matcher)
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
}
