//! What the verbs ask of whoever can speak to engines.

use std::net::IpAddr;

use api::{Database, EgressVerdict, Facts, KeyFacts, Machine, ProofRow, RootKey, SqlUser, ThrottleLine};
use async_trait::async_trait;
use model::{ClusterId, ClusterName, DatabaseName, IdentityProvider, KeyService, KeySpec, RoleName};

use crate::Refusal;

/// Everything that needs a running engine. Calls wake a cluster that sleeps and wait until they are done.
#[async_trait]
pub trait Administration: Send + Sync + 'static {
    /// The users that people made, without their source, and those that are not quite removed.
    async fn users(&self, id: ClusterId) -> Result<Vec<SqlUser>, Refusal>;
    /// Makes a user who is a member of `admin`. The verifier is in PostgreSQL's form.
    async fn create_user(&self, id: ClusterId, name: &RoleName, verifier: &str) -> Result<(), Refusal>;
    /// Gives a user another password.
    async fn set_verifier(&self, id: ClusterId, name: &RoleName, verifier: &str) -> Result<(), Refusal>;
    /// Takes from a user what lets it in, cuts its sessions, and removes it. What could not be removed stays, barred.
    async fn drop_user(&self, id: ClusterId, name: &RoleName) -> Result<(), Refusal>;
    /// The databases that a tenant sees.
    async fn databases(&self, id: ClusterId) -> Result<Vec<Database>, Refusal>;
    /// Makes a database.
    async fn create_database(&self, id: ClusterId, name: &DatabaseName) -> Result<(), Refusal>;
    /// Renames a database.
    async fn rename_database(
        &self,
        id: ClusterId,
        name: &DatabaseName,
        to: &DatabaseName,
    ) -> Result<(), Refusal>;
    /// Removes a database.
    async fn drop_database(&self, id: ClusterId, name: &DatabaseName) -> Result<(), Refusal>;
    /// Returns when the engine answers.
    async fn wake(&self, id: ClusterId) -> Result<(), Refusal>;
    /// Returns when the engine is stopped and the volume is locked. With `force` also where its roles could not be kept for
    /// sign-in; then nobody gets in before it runs again.
    async fn sleep(&self, id: ClusterId, force: bool) -> Result<(), Refusal>;
    /// Forgets how far the cluster's files had come, so that an older volume that was restored on purpose is started.
    async fn accept_restored(&self, id: ClusterId) -> Result<(), Refusal>;
    /// What is measured of a cluster. Does not wake it.
    async fn facts(&self, id: ClusterId) -> Result<Facts, Refusal>;
    /// What can be proven only from inside.
    async fn prove(&self, id: ClusterId) -> Result<Vec<ProofRow>, Refusal>;
    /// Whether the cluster would be let through to a URL or `HOST:PORT`. Neither wakes it nor connects to anything.
    async fn test_egress(&self, id: ClusterId, destination: &str) -> Result<EgressVerdict, Refusal>;
    /// Lets the engine reach what rules name, or not. Returns when it holds, with what the operator should know.
    async fn set_engine_egress(&self, id: ClusterId, engine: bool) -> Result<Vec<String>, Refusal>;
    /// What disk and kernel say of a cluster's keys. Neither wakes it nor asks a key service.
    async fn key_facts(&self, id: ClusterId) -> Result<KeyFacts, Refusal>;
    /// Wraps and unwraps a throw-away data key, on a cluster's behalf or on the cloud's own.
    async fn try_key(&self, spec: &KeySpec, cluster: Option<ClusterId>) -> Result<(), Refusal>;
    /// Whether the keys that clusters use through a key service could be used through it as it is to be set. Keeps nothing
    /// of it.
    async fn try_key_service(&self, service: &KeyService, keys: &[KeyInUse]) -> Result<(), Refusal>;
    /// Whether an identity provider that is to be set gives what sign-ins need, as far as that can be tried without a
    /// person. Keeps nothing of it.
    async fn try_provider(&self, provider: IdentityProvider) -> Result<(), Refusal>;
    /// The cloud's root key, described.
    fn root_key(&self) -> RootKey;
    /// Makes a new version of the root key. Returns when what is sealed by the cloud is under it; the data keys of
    /// clusters follow by themselves.
    async fn rotate_root_key(&self) -> Result<RootKey, Refusal>;
    /// What the machine gives.
    fn machine(&self) -> Machine;
    /// Failed sign-ins that are remembered, in any order.
    fn throttle(&self) -> Vec<ThrottleLine>;
    /// Forgets failed sign-ins and says how many lines.
    fn clear_throttle(&self, which: &ClearThrottle) -> usize;
    /// A new private key for a WireGuard tunnel, in base64. A secret.
    fn wireguard_private_key(&self) -> String;
    /// The public key of a WireGuard private key, in base64; `None` if that is none.
    fn wireguard_public_key(&self, private_key: &str) -> Option<String>;
}

/// A customer's key that wraps a cluster's data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInUse {
    /// Which key.
    pub spec: KeySpec,
    /// A cluster whose data key it wraps.
    pub cluster: ClusterId,
    /// That cluster's name.
    pub cluster_name: ClusterName,
    /// Whether the service denies the key already.
    pub is_denied: bool,
}

/// Which failed sign-ins are to be forgotten. What is absent means every one; with nothing, all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClearThrottle {
    /// Those at this cluster, by its `NAME-NUMBER` as clients say it.
    pub cluster: Option<String>,
    /// Those as this SQL user.
    pub user: Option<String>,
    /// Those from this address; IPv4 in IPv6 form is IPv4 here.
    pub address: Option<IpAddr>,
}
