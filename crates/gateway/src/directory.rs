//! The gateway's questions to the outside: who and what exists, and may I have its engine.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use identity::hba::Rules;
use identity::scram::Verifier;
use model::{ClusterHandle, ClusterId, EndpointId, Origin, RoleName, Way};
use tokio::net::UnixStream;

use crate::examine::Vouched;

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

/// Somebody who may sign in.
#[derive(Clone, Debug, Default)]
pub struct Person {
    /// The password's verifier: `None` where there is no usable password at this moment.
    pub verifier: Option<Verifier>,
    /// The role's own connection limit, if it has one.
    pub connections_max: Option<u32>,
    /// Those of the roles that were named which it is a member of, directly or through others.
    pub member_of: Vec<String>,
}

/// What there is under a user's name.
#[derive(Clone, Debug)]
pub enum Account {
    /// Nothing.
    Missing,
    /// A role that may not sign in.
    Barred,
    /// Somebody who may.
    Open(Person),
    /// Nobody can say at this moment: the engine cannot be asked, and what was last seen of it may be old. The same whatever
    /// the name.
    Unknown,
}

impl Account {
    /// The person, if there is one who may sign in.
    pub fn person(&self) -> Option<&Person> {
        match self {
            Self::Open(person) => Some(person),
            Self::Missing | Self::Barred | Self::Unknown => None,
        }
    }
}

/// Who and what exists.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// The cluster of this name, if there is one that can be seen on this way. Answers at once, from memory.
    fn find(&self, handle: &ClusterHandle, way: &Way) -> Option<Found>;

    /// Whether the cluster lets SQL clients in from there: by its allowlist, by an accepted private endpoint, or from
    /// behind an accepted peering. A cluster that is gone admits nobody.
    fn admits(&self, cluster: ClusterId, origin: &Origin) -> bool;

    /// Whether the cluster takes cancel requests in plaintext, where they come from the session's own address.
    fn takes_plaintext_cancels(&self, cluster: ClusterId) -> bool;

    /// Whether any cluster at all lets SQL clients in from there, by the rules as they are. Whom none lets in hears the same
    /// whatever it asks for. Answers at once, from memory.
    fn might_admit(&self, origin: &Origin) -> bool;

    /// Hears of a private endpoint that wanted in and was not accepted. Must not wait.
    fn knocked(&self, cluster: ClusterId, endpoint: &EndpointId);

    /// The rules by which the cluster lets people in. Answers at once, from memory.
    fn rules(&self, cluster: ClusterId) -> Arc<Rules>;

    /// Who the user is at this moment, and of which of the named roles it is a member. Fresh while the engine runs; never
    /// wakes it. What it costs must not depend on whether there is such a user.
    async fn account(&self, cluster: ClusterId, user: &RoleName, named: &[String]) -> Account;

    /// Does what [`Self::account`] does for a user of a running cluster, but to ask the engine: for whom there is no place.
    async fn nobody(&self, user: &RoleName, named: &[String]);

    /// The roles and every role that they are members of at this moment; `None` where nobody can say.
    async fn with_inherited(&self, cluster: ClusterId, roles: &[RoleName]) -> Option<Vec<String>>;

    /// The stand-in for a user without a verifier: always the same for the same names, and of a form that verifiers of the
    /// cluster have; where there is no such cluster, of the usual form. Answers at once, from memory.
    fn stand_in(&self, handle: &ClusterHandle, cluster: Option<ClusterId>, user: &str) -> Verifier;
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
    /// The key that encrypts its data was revoked.
    KeyRevoked,
    /// The service that keeps the key of its data gives no answer.
    KeyServiceSilent,
    /// The service that keeps the key of its data does not let the cloud in.
    KeyServiceNotLettingIn,
    /// It was stopped because it stores more than its limit.
    StorageUsedUp,
    /// Who may sign in cannot be asked. The reason is in the operator's log.
    Unasked,
    /// The user could not be made, or its roles could not be granted. The reason is in the operator's log.
    NotGranted,
}

/// One run of a cluster's engine.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// An open connection to this run, on which nothing was said yet. A later run of the same cluster is not reached by it.
    async fn connect(&self) -> io::Result<UnixStream>;

    /// Whether the engine has used up its memory since this was handed out, and processes of it were ended for that.
    fn has_run_out_of_memory(&self) -> bool;
}

/// Brings a cluster's engine to the point where a session can be opened.
#[async_trait]
pub trait Waker: Send + Sync + 'static {
    /// Wakes the engine if it sleeps, and makes it accept sessions of this role from us. Called only for somebody who has
    /// signed in.
    /// Whoever was vouched for gets the user and the memberships that were spoken of first.
    async fn engine(
        &self,
        cluster: ClusterId,
        role: &RoleName,
        vouched: Option<&Vouched>,
    ) -> Result<Arc<dyn Engine>, NotReady>;
}
