//! The state in memory: immutable, indexed by everything that somebody asks for.

use std::sync::Arc;

use imbl::{HashMap, HashSet};
use model::{
    Cluster, ClusterHandle, ClusterId, ClusterName, IdentityProvider, KeyService, KeyServiceName,
    Observation, Organization, RoutingId, SqlRole, SqlRoles,
};

use crate::file::{File, Table};
use crate::providers::Users;
use crate::{ApiKey, Error};

/// One cluster that exists: its document, what was last seen of it, and its roles for sign-in.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What should be true.
    pub cluster: Cluster,
    /// What was last seen true.
    pub seen: Observation,
    /// The engine's roles as last read. Nobody is let in by them unless [`Observation::is_copy_whole`].
    pub roles: Arc<SqlRoles>,
    /// Which reading they are of.
    pub(crate) reading: Reading,
}

/// When somebody began to read roles, among all readings of this process. Of two that overlap, what began first may be
/// older than what it is about to replace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reading(pub(crate) u64);

impl Entry {
    /// A cluster without roles.
    pub fn new(cluster: Cluster, seen: Observation) -> Self {
        Self { cluster, seen, roles: Arc::default(), reading: Reading::default() }
    }

    /// The role of this name, as last read.
    pub fn role(&self, name: &str) -> Option<&SqlRole> {
        self.roles.get(name)
    }
}

/// The state at one moment.
#[derive(Clone, Default)]
pub struct Snapshot {
    pub(crate) entries: HashMap<ClusterId, Arc<Entry>>,
    pub(crate) by_name: HashMap<ClusterName, ClusterId>,
    pub(crate) by_routing_id: HashMap<RoutingId, ClusterId>,
    /// Those with networks of their own.
    pub(crate) apart: HashSet<ClusterId>,
    /// Those whose engines may reach the outside.
    pub(crate) reaching: HashSet<ClusterId>,
    pub(crate) deleted: HashMap<ClusterId, Arc<Cluster>>,
    pub(crate) api_keys: HashMap<String, Arc<ApiKey>>,
    /// By scope and name.
    pub(crate) providers: HashMap<String, Arc<IdentityProvider>>,
    pub(crate) provisioned: HashMap<ClusterId, Arc<Users>>,
    pub(crate) organization: Organization,
    pub(crate) key_services: HashMap<KeyServiceName, Arc<KeyService>>,
    pub(crate) next_routing_id: u32,
}

impl Snapshot {
    pub(crate) fn read(file: &File) -> Result<Self, Error> {
        let mut observations: std::collections::HashMap<String, Observation> =
            file.read_all(Table::Observations)?.into_iter().collect();
        let mut roles: std::collections::HashMap<String, Vec<SqlRole>> =
            file.read_all(Table::Roles)?.into_iter().collect();
        let mut snapshot = Self { next_routing_id: RoutingId::FIRST.get(), ..Self::default() };
        for (key, cluster) in file.read_all::<Cluster>(Table::Clusters)? {
            // Forgetting a cluster removes its observation; that is what tells the gone from the living.
            match observations.remove(&key) {
                Some(seen) => {
                    let roles = Arc::new(SqlRoles::new(roles.remove(&key).unwrap_or_default()));
                    snapshot.insert(Entry { roles, ..Entry::new(cluster, seen) });
                }
                None => {
                    snapshot.deleted.insert(cluster.id, Arc::new(cluster));
                }
            }
        }
        for (key, value) in file.read_all::<ApiKey>(Table::ApiKeys)? {
            snapshot.api_keys.insert(key, Arc::new(value));
        }
        for (key, value) in file.read_all::<IdentityProvider>(Table::Providers)? {
            snapshot.providers.insert(key, Arc::new(value));
        }
        for (key, users) in file.read_all::<Users>(Table::Provisioned)? {
            if let Ok(id) = key.parse() {
                snapshot.provisioned.insert(id, Arc::new(users));
            }
        }
        for (_, organization) in file.read_all::<Organization>(Table::Organization)? {
            snapshot.organization = organization;
        }
        for (_, service) in file.read_all::<KeyService>(Table::KeyServices)? {
            snapshot.key_services.insert(service.name.clone(), Arc::new(service));
        }
        for (_, next) in file.read_all::<u32>(Table::Counters)? {
            snapshot.next_routing_id = next;
        }
        Ok(snapshot)
    }

    pub(crate) fn insert(&mut self, entry: Entry) {
        let cluster = &entry.cluster;
        self.by_name.insert(cluster.name.clone(), cluster.id);
        self.by_routing_id.insert(cluster.routing_id, cluster.id);
        note(&mut self.apart, cluster.id, cluster.network.is_apart());
        note(&mut self.reaching, cluster.id, cluster.egress.engine);
        self.entries.insert(cluster.id, Arc::new(entry));
    }

    /// The routing id that the next cluster gets.
    pub fn next_routing_id(&self) -> u32 {
        self.next_routing_id
    }

    /// The clusters that exist, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// The clusters that have networks of their own, in no order. Few of many, so looking through them is cheap.
    pub fn apart(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.apart.iter().filter_map(|id| self.entries.get(id))
    }

    /// The clusters whose engines may reach the outside, in no order.
    pub fn reaching(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.reaching.iter().filter_map(|id| self.entries.get(id))
    }

    /// How many clusters exist.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no cluster exists.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The cluster with this id.
    pub fn get(&self, id: &ClusterId) -> Option<&Arc<Entry>> {
        self.entries.get(id)
    }

    /// The cluster with this name.
    pub fn by_name(&self, name: &ClusterName) -> Option<&Arc<Entry>> {
        self.entries.get(self.by_name.get(name)?)
    }

    /// The cluster that a client names; name and routing id must both be right.
    pub fn by_handle(&self, handle: &ClusterHandle) -> Option<&Arc<Entry>> {
        let entry = self.entries.get(self.by_routing_id.get(&handle.routing_id)?)?;
        (entry.cluster.name == handle.name).then_some(entry)
    }

    /// The clusters that are gone, in no order.
    pub fn deleted(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.deleted.values()
    }

    /// The cluster with this id that is gone.
    pub fn deleted_by_id(&self, id: &ClusterId) -> Option<&Arc<Cluster>> {
        self.deleted.get(id)
    }

    /// The API key with this id.
    pub fn api_key(&self, id: &str) -> Option<&Arc<ApiKey>> {
        self.api_keys.get(id)
    }
}

fn note(set: &mut HashSet<ClusterId>, id: ClusterId, is_in: bool) {
    if is_in {
        set.insert(id);
    } else {
        set.remove(&id);
    }
}
