//! The gateway's questions to the outside: who and what exists, and may I have its engine.

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use identity::scram::Verifier;
use model::{ClusterHandle, ClusterId, RoleName};

/// A cluster that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: ClusterId,
    /// Most sessions of the cluster at a time.
    pub connections_max: u32,
    /// Most sessions of one user at a time.
    pub connections_per_user_max: u32,
}

/// What a user can prove itself against.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The password's verifier.
    pub verifier: Verifier,
    /// The role's own connection limit, if it has one.
    pub connections_max: Option<u32>,
}

/// Who and what exists.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// The cluster of this name, if there is one. Answers at once, from memory.
    fn find(&self, handle: &ClusterHandle) -> Option<Found>;

    /// Whether the cluster's allowlist lets SQL clients in from the address. A cluster that is gone admits nobody.
    fn admits(&self, cluster: ClusterId, address: IpAddr) -> bool;

    /// What the user can sign in with at this moment: `None` for one that does not exist, may not sign in, has
    /// expired or has no usable password. Fresh while the engine runs; never wakes it.
    async fn credential(&self, cluster: ClusterId, user: &RoleName) -> Option<Credential>;

    /// A secret value, always the same for the same names, from which the stand-in for a missing user is made.
    fn stand_in_seed(&self, handle: &ClusterHandle, user: &str) -> [u8; 32];
}

/// Why there is no engine to attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// The cluster is being deleted, or is gone.
    Gone,
    /// The engine did not start. The reason is in the operator's log.
    Failed,
    /// The engine did not start in time.
    TimedOut,
}

/// Brings a cluster's engine to the point where a session can be opened.
#[async_trait]
pub trait Waker: Send + Sync + 'static {
    /// Wakes the engine if it sleeps, makes it accept sessions of this role from us, and tells its socket. Called
    /// only for somebody who has signed in.
    async fn engine(&self, cluster: ClusterId, role: &RoleName) -> Result<PathBuf, NotReady>;
}
