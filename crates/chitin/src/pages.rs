//! Where people's browsers reach the sign-in pages: at the public URL, or at a front door inside a private network.

use std::net::IpAddr;
use std::sync::Arc;

use model::{ClusterId, Visibility, Way};
use store::Store;

/// The origins of the pages.
pub struct Pages {
    store: Arc<Store>,
    /// Without a slash at the end.
    public_url: String,
    /// Of the front doors inside private networks.
    http_port: u16,
}

impl Pages {
    /// Of this cloud.
    pub fn new(store: Arc<Store>, public_url: String, http_port: u16) -> Arc<Self> {
        Arc::new(Self { store, public_url, http_port })
    }

    /// The origin for a browser that came this way, without a slash at the end.
    pub fn origin(&self, way: &Way) -> String {
        match way {
            Way::Public | Way::Endpoint(_) => self.public_url.clone(),
            Way::Private(cluster) => self.inside(*cluster).unwrap_or_else(|| self.public_url.clone()),
        }
    }

    /// The origin for a person who is to sign in for a program that came this way to the cluster. A private cluster has
    /// no page outside, whatever the program's way.
    pub fn origin_for(&self, cluster: ClusterId, way: &Way) -> String {
        let snapshot = self.store.snapshot();
        let is_private = snapshot
            .get(&cluster)
            .is_some_and(|entry| entry.cluster.network.visibility == Visibility::Private);
        match way {
            Way::Public | Way::Endpoint(_) if !is_private => self.public_url.clone(),
            Way::Public | Way::Endpoint(_) | Way::Private(_) => self.origin(&Way::Private(cluster)),
        }
    }

    fn inside(&self, cluster: ClusterId) -> Option<String> {
        let front_door = self.store.snapshot().get(&cluster)?.cluster.network.front_door()?;
        Some(match front_door {
            IpAddr::V4(address) => format!("https://{address}:{}", self.http_port),
            IpAddr::V6(address) => format!("https://[{address}]:{}", self.http_port),
        })
    }
}
