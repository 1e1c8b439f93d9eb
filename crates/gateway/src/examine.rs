//! The gateway's question about proofs that it cannot check by itself: certificates, tokens, people in a browser.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use identity::hba::RuleOptions;
use keys::SecretText;
use keys::client::Verified;
use model::{ClusterHandle, ClusterId, Origin, RoleName};
use rustls::pki_types::CertificateDer;

/// What a provider said of somebody, beyond who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vouched {
    /// The roles that the user is to be a member of, and no others; `None` leaves them as they are.
    pub memberships: Option<Vec<RoleName>>,
    /// Where the user comes from, if it may be made where it does not exist yet.
    pub source: Option<String>,
}

/// Why nobody vouched. Nothing in it helps to guess.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotVouched {
    /// What the client reads.
    pub message: String,
    /// The next step, for the client.
    pub hint: Option<&'static str>,
    /// Whether it was a wrong proof, which counts against whoever brought it, and not a proof that could not be
    /// checked.
    pub is_wrong: bool,
}

impl NotVouched {
    /// No provider can be signed in with. Also what is said where there is no such cluster, so that nobody can tell.
    pub fn no_browser() -> Self {
        Self {
            message: "no identity provider of this cluster can be used with a browser".to_owned(),
            hint: Some("The operator adds one: chitin provider set --help"),
            is_wrong: false,
        }
    }
}

/// What became of a presented certificate.
#[derive(Clone, Debug)]
pub enum Certificate {
    /// It stands: of the cluster's authorities, valid now, not revoked.
    Good(Arc<Verified>),
    /// None of the cluster's authorities issued it, so it says nothing here.
    Stranger,
    /// It is of the cluster's authorities and does not count.
    Bad(NotVouched),
}

/// Who wants to be vouched for, and where.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name, as people know it.
    pub handle: ClusterHandle,
    /// The SQL user that the client asked for.
    pub user: RoleName,
    /// Where the client is, and by which way it came.
    pub origin: Origin,
}

/// Somebody at a terminal who waits for a person in a browser. Dropping it ends the waiting for good.
pub struct Waiting {
    /// Where the person must go.
    pub url: String,
    /// What the person compares there.
    pub code: String,
    /// Ends when the person has signed in, or will not.
    pub outcome: BoxFuture<'static, Result<Vouched, NotVouched>>,
}

/// Where a client of OAUTHBEARER finds its provider (RFC 7628, section 3.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// The provider's `.well-known/openid-configuration`.
    pub configuration: String,
    /// The scopes to ask for, separated by spaces.
    pub scope: String,
}

/// Checks proofs that need a look outside.
#[async_trait]
pub trait Examiner: Send + Sync + 'static {
    /// What a certificate is worth in the cluster. The handshake has proven that the client holds its key.
    async fn certificate(&self, cluster: ClusterId, presented: &[CertificateDer<'static>]) -> Certificate;

    /// Whether the certificate names the user, by itself or through the cluster's identity map.
    fn is_named(
        &self,
        cluster: ClusterId,
        certificate: &Verified,
        user: &RoleName,
        rule: &RuleOptions,
    ) -> bool;

    /// Whether the token is good for the guest.
    async fn token(
        &self,
        guest: &Guest,
        token: SecretText,
        rule: &RuleOptions,
    ) -> Result<Vouched, NotVouched>;

    /// Looks at a token for a user or a cluster that does not exist, as far as it would be looked at if they did: by the
    /// cloud's own providers. Nobody is let in by it.
    async fn stray_token(&self, user: &str, token: SecretText) -> Result<(), NotVouched>;

    /// Where OAUTHBEARER clients get a token; `None` where the cluster has no provider for them.
    fn discovery(&self, cluster: ClusterId, rule: &RuleOptions) -> Option<Discovery>;

    /// Opens a place where a person can sign in for the guest.
    async fn browser(&self, guest: &Guest, rule: &RuleOptions) -> Result<Waiting, NotVouched>;
}
