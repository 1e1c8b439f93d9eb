//! Wrapping data keys: the one small trait that every provider of key-encryption keys has, what a wrapped key says of
//! itself, and the ring in which a cluster's key is found.

use async_trait::async_trait;
use model::{Cluster, ClusterId, KeySpec};
use serde::{Deserialize, Deserializer, Serialize};

use crate::DataKey;

/// What a data key is for. It is part of what wrapping authenticates: a wrapped key opens in its own place only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binding {
    /// A cluster's volume.
    Volume(ClusterId),
    /// The file of the cloud's root key.
    Root,
}

impl Binding {
    /// The associated data: stable text, the same for every provider.
    pub fn context(&self) -> String {
        match self {
            Self::Volume(cluster) => format!("data key of cluster {cluster}"),
            Self::Root => "root key of the cloud".to_owned(),
        }
    }

    /// The cluster that it belongs to, on whose behalf key services are asked.
    pub fn cluster(&self) -> Option<ClusterId> {
        match self {
            Self::Volume(cluster) => Some(*cluster),
            Self::Root => None,
        }
    }
}

/// A data key that only its key-encryption key can open, and only in its own place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// Which key wrapped it.
    #[serde(default = "KeySpec::root")]
    pub key: KeySpec,
    /// The key-encryption key's id, as its service says it.
    pub key_id: String,
    /// The key-encryption key's version, as its service says it; empty where it does not.
    #[serde(deserialize_with = "version")]
    pub key_version: String,
    /// How the data key is wrapped.
    pub algorithm: String,
    /// The wrapped key: base64, or the service's own text.
    pub wrapped: String,
}

/// Versions of the root key were once written as numbers.
fn version<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u32),
        Text(String),
    }
    Ok(match Either::deserialize(from)? {
        Either::Number(number) => number.to_string(),
        Either::Text(text) => text,
    })
}

/// Why a data key was not wrapped or unwrapped. No variant carries a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFailure {
    /// The service answered, with authority, that this key may not be used now: disabled, scheduled for destruction,
    /// gone, or not ours to use.
    #[error("{key} may not be used: {reason}")]
    Denied {
        /// Which key.
        key: String,
        /// What the service said.
        reason: String,
    },
    /// The service does not accept what we sign in with. It says nothing of the key: whoever mistyped a token, or let one
    /// end, took no key away.
    #[error("{key} cannot be asked for: {reason}")]
    Unauthenticated {
        /// Which key.
        key: String,
        /// What the service said, and what to do.
        reason: String,
    },
    /// The service gave no answer, or said that it cannot answer now. Nothing is known of the key.
    #[error("{key} cannot be asked for now: {reason}")]
    Unreachable {
        /// Which key.
        key: String,
        /// What was seen.
        reason: String,
    },
    /// The service's answer makes no sense, or something is set that cannot be.
    #[error("{key} cannot be used: {reason}")]
    Unusable {
        /// Which key.
        key: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// The wrapped key does not open: it was changed, or belongs elsewhere.
    #[error(
        "the wrapped data key does not open with {key}: it was changed, moved from another cluster, or wrapped by another key"
    )]
    DoesNotOpen {
        /// Which key.
        key: String,
    },
    /// The wrapped key names a key that is not this cluster's: somebody put an old or a foreign file there.
    #[error(
        "the data key is wrapped by {found}, and the cluster's key is {wanted}; restore its key.json from your newest backup"
    )]
    NotItsKey {
        /// The key in the file.
        found: String,
        /// The key that the state names.
        wanted: String,
    },
}

impl KeyFailure {
    /// Whether nothing is known of the key, so that what needs it is kept until more is.
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Unauthenticated { .. } | Self::Unreachable { .. } => true,
            Self::Denied { .. }
            | Self::Unusable { .. }
            | Self::DoesNotOpen { .. }
            | Self::NotItsKey { .. } => false,
        }
    }
}

/// One key-encryption key at one provider.
#[async_trait]
pub trait KeyEncryption: Send + Sync + std::fmt::Debug + 'static {
    /// Wraps with the key's newest version.
    async fn wrap(&self, key: &DataKey, place: &Binding) -> Result<WrappedKey, KeyFailure>;

    /// Opens what an earlier or the newest version wrapped, for its own place only.
    async fn unwrap(&self, wrapped: &WrappedKey, place: &Binding) -> Result<DataKey, KeyFailure>;
}

/// Finds the key-encryption key of each cluster. Answered by the program.
#[async_trait]
pub trait KeyRing: Send + Sync + std::fmt::Debug + 'static {
    /// Wraps with the key that the cluster's document names.
    async fn wrap(&self, cluster: &Cluster, key: &DataKey) -> Result<WrappedKey, KeyFailure>;

    /// Unwraps with the key that the wrapped key names, if that is one that the cluster uses.
    async fn unwrap(&self, cluster: ClusterId, wrapped: &WrappedKey) -> Result<DataKey, KeyFailure>;
}
