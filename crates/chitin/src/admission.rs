//! Whether a cluster lets somebody in from there: by its allowlist, an accepted private endpoint, or an accepted peering.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{Cluster, ClusterId, Origin, Surface, Visibility, Way, Wish};
use network::Matcher;
use time::OffsetDateTime;

/// Clusters whose lists are kept ready; more are made ready again when they are asked for.
const KEPT_MAX: usize = 10_000;

/// The clusters' allowlists, ready to be asked: each is read once a change of its document.
#[derive(Default)]
pub struct Admissions(Mutex<HashMap<ClusterId, (u64, Arc<Matcher>)>>);

impl Admissions {
    /// Whether the cluster lets the client in to this surface at this moment.
    pub fn admit(&self, cluster: &Cluster, origin: &Origin, surface: Surface, now: OffsetDateTime) -> bool {
        if cluster.wish == Wish::Deleted {
            return false;
        }
        match &origin.way {
            Way::Public => {
                is_visible(cluster, &origin.way) && self.lists(cluster, origin.address, surface, now)
            }
            Way::Endpoint(id) => {
                cluster.network.endpoint(id).is_some_and(model::EndpointConnection::is_available)
            }
            Way::Private(own) => *own == cluster.id && cluster.network.admits(origin.address),
        }
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

    fn lists(&self, cluster: &Cluster, address: IpAddr, surface: Surface, now: OffsetDateTime) -> bool {
        self.ready(cluster).admits(address, surface, now)
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
