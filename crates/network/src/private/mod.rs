//! Private networks: for each cluster that has one a network namespace in which nothing lives but its front door, and
//! links that join it with other networks.
//!
//! A namespace has no name and no mount. It is held by a descriptor of this process, so the kernel takes it apart, with
//! both ends of every link, when the process ends in whatever way. Nothing is remembered of what was made: each
//! [`PrivateNetworks::ensure`] looks at the kernel and makes the difference.
//!
//! Who may come in is decided by source addresses, so these must be true. Over a link only those packets are taken that
//! come from what the document says is behind it: for IPv4 the kernel compares the source with the routes (`rp_filter`),
//! for IPv6, where it has no such thing, rules are asked before the local addresses. Nothing is forwarded from link to
//! link, and nothing listens but the front door.

mod cluster;
mod local;
mod namespace;
mod netlink;
mod plan;
mod tunnel;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{ClusterId, Network, NetworkSeen, RoutingId};
use tokio::net::TcpListener;
use tokio::time::timeout;

use self::cluster::ClusterNetwork;
use self::plan::Plan;

/// For a network to be taken apart.
const REMOVE_MAX: Duration = Duration::from_secs(10);

/// A cluster's place: empty before its network is made and after it is removed.
type Place = Arc<tokio::sync::Mutex<Option<ClusterNetwork>>>;

/// The private networks of this process.
pub struct PrivateNetworks {
    /// Where named namespaces are looked up; `None` for the process's own root.
    root: Option<File>,
    places: Mutex<HashMap<ClusterId, Place>>,
}

/// This machine, or what we may do on it, has no private networks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("private networks are not available: {why}; {next_step}")]
pub struct Unavailable {
    /// What failed.
    pub why: String,
    /// What to do.
    pub next_step: String,
}

/// Why a link is not there, for the operator: what was refused, why, and the next step.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl PrivateNetworks {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { root: None, places: Mutex::default() })
    }

    /// None yet, in a process that has mounts of its own. The root (`/`) was opened before it got them: a name that
    /// `ip netns` gives later is a mount elsewhere, and seen through that root only.
    pub fn with_root(root: File) -> Arc<Self> {
        Arc::new(Self { root: Some(root), places: Mutex::default() })
    }

    /// Makes a network and removes it, to see whether that works here.
    pub async fn probe() -> Result<(), Unavailable> {
        let made = ClusterNetwork::make().await?;
        made.dismantle().await.map_err(|cause| Unavailable::because(&cause))
    }

    /// Brings the cluster's network to what the document says; without a front door it is removed. Can be called at any
    /// time, also with an unchanged document: what somebody removed by hand is made again.
    ///
    /// What is seen has the front door's address when the network is there; whether somebody listens there is the
    /// caller's to know. A WireGuard peering is active when our end is: whether the other end lives is seen only when
    /// it calls.
    pub async fn ensure(&self, cluster: ClusterId, routing: RoutingId, network: &Network) -> NetworkSeen {
        let Some(plan) = Plan::new(cluster, routing, network) else {
            self.remove(cluster).await;
            return NetworkSeen::default();
        };
        let mut place = loop {
            let place = self.places().entry(cluster).or_default().clone();
            let taken = place.clone().lock_owned().await;
            // A removal that went before may have given the place up.
            if self.is_known(cluster, &place) {
                break taken;
            }
        };
        let standing = match &mut *place {
            Some(standing) => standing,
            empty @ None => match ClusterNetwork::make().await {
                Ok(made) => empty.insert(made),
                Err(unavailable) => {
                    self.places().remove(&cluster);
                    return cluster::none(&plan, Failure(unavailable.to_string()));
                }
            },
        };
        let root = match &self.root {
            Some(root) => root.try_clone(),
            None => File::open("/"),
        };
        match root {
            Ok(root) => standing.ensure(&root, plan).await,
            Err(cause) => {
                cluster::none(&plan, Failure::because("named namespaces cannot be looked up", &cause))
            }
        }
    }

    /// Takes the cluster's network apart, with both ends of every link. Sockets inside are the caller's to close.
    pub async fn remove(&self, cluster: ClusterId) {
        let Some(place) = self.places().get(&cluster).cloned() else {
            return;
        };
        let mut taken = place.lock().await;
        if let Some(standing) = taken.take() {
            match timeout(REMOVE_MAX, standing.dismantle()).await {
                Ok(Ok(())) => {}
                // The descriptor is closed all the same, and with the last socket inside the kernel removes the rest.
                Ok(Err(cause)) => {
                    tracing::warn!(%cluster, %cause, "a private network could not be taken apart link by link");
                }
                Err(_) => tracing::warn!(%cluster, "a private network was slow to be taken apart"),
            }
        }
        if self.is_known(cluster, &place) {
            self.places().remove(&cluster);
        }
    }

    /// The clusters that have a network here.
    pub fn known(&self) -> Vec<ClusterId> {
        self.places().keys().copied().collect()
    }

    /// Listens inside the cluster's network on every address, IPv4 and IPv6.
    pub async fn listen(&self, cluster: ClusterId, port: u16) -> io::Result<TcpListener> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "the cluster has no private network");
        let place = self.places().get(&cluster).cloned().ok_or_else(none)?;
        let place = place.lock().await;
        place.as_ref().ok_or_else(none)?.listen(port).await
    }

    fn is_known(&self, cluster: ClusterId, place: &Place) -> bool {
        self.places().get(&cluster).is_some_and(|known| Arc::ptr_eq(known, place))
    }

    fn places(&self) -> MutexGuard<'_, HashMap<ClusterId, Place>> {
        // Single inserts and removals: a panic elsewhere leaves the map whole.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for PrivateNetworks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrivateNetworks").field("known", &self.known()).finish()
    }
}

impl Unavailable {
    fn because(cause: &io::Error) -> Self {
        let next_step = match cause.kind() {
            io::ErrorKind::PermissionDenied => {
                "start Chitin as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN; in a container allow both and a \
                 writable /proc/sys/net"
            }
            io::ErrorKind::ReadOnlyFilesystem => "give the container a writable /proc/sys/net",
            _ => "a kernel with network namespaces, veth and policy routing is needed",
        };
        Self { why: cause.to_string(), next_step: next_step.to_owned() }
    }
}

impl Failure {
    fn because(what: &str, cause: &io::Error) -> Self {
        let next_step = match cause.kind() {
            io::ErrorKind::PermissionDenied => {
                "start Chitin as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN"
            }
            io::ErrorKind::Unsupported => {
                "this kernel cannot do that; load its module or choose another peering"
            }
            _ => "it is tried again by itself",
        };
        Self(format!("{what}: {cause}; {next_step}"))
    }
}
