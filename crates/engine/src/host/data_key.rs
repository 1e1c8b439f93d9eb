//! The wrapped data key of a cluster: told, tried, wrapped anew. The data are not touched.

use std::sync::Arc;

use model::{Cluster, ClusterId, KeySpec};

use super::{Host, blocking, to_its_end};
use crate::Error;
use crate::volume;

/// What wraps a cluster's data key, as the key file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// Which key.
    pub spec: KeySpec,
    /// Its id, as its service says it.
    pub id: String,
    /// Its version, as its service says it; empty where it does not.
    pub version: String,
    /// How the data key is wrapped.
    pub algorithm: String,
}

impl From<keys::WrappedKey> for KeyUse {
    fn from(wrapped: keys::WrappedKey) -> Self {
        let keys::WrappedKey { key, key_id, key_version, algorithm, wrapped: _ } = wrapped;
        Self { spec: key, id: key_id, version: key_version, algorithm }
    }
}

impl Host {
    /// What the data key on the disk says of itself. Asks no service.
    pub async fn key_use(self: &Arc<Self>, id: ClusterId) -> Result<KeyUse, Error> {
        self.wrapped_key(id).await.map(Into::into)
    }

    /// The wrapped data key of the volume in use.
    pub async fn wrapped_key(self: &Arc<Self>, id: ClusterId) -> Result<keys::WrappedKey, Error> {
        let host = self.clone();
        blocking(move || volume::wrapped_key(&host.current_volume(id)?)).await
    }

    /// Whether the data key could be unwrapped at this moment; what was unwrapped is thrown away.
    pub async fn try_key(self: &Arc<Self>, id: ClusterId) -> Result<(), Error> {
        let wrapped = self.wrapped_key(id).await?;
        self.keys.unwrap(id, &wrapped).await?;
        Ok(())
    }

    /// Wraps the data key anew with the newest version of the key that the cluster's document names. No data are
    /// rewritten, and a running engine does not notice. Safe to repeat: until the last moment the old file is there,
    /// and after it the new one.
    pub async fn rewrap(self: &Arc<Self>, cluster: &Cluster) -> Result<KeyUse, Error> {
        let (host, cluster) = (self.clone(), cluster.clone());
        to_its_end(async move {
            let slot = host.slot(cluster.id);
            let _turn = slot.turn.lock().await;
            let id = cluster.id;
            let old = host.wrapped_key(id).await?;
            let key = host.keys.unwrap(id, &old).await?;
            fail::fail_point!("rewrap-unwrapped");
            let new = host.keys.wrap(&cluster, &key).await?;
            // A key that was wrapped and cannot be unwrapped would cost the data.
            host.keys.unwrap(id, &new).await?;
            fail::fail_point!("rewrap-wrapped");
            let (keeper, kept) = (host.clone(), new.clone());
            blocking(move || volume::keep_wrapped_key(&keeper.current_volume(id)?, &kept)).await?;
            fail::fail_point!("rewrap-written");
            host.rewrap_next(&slot, &cluster).await?;
            Ok(new.into())
        })
        .await
    }
}
