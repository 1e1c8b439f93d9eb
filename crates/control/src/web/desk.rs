//! What the sign-in pages ask of whoever knows providers, waiting sessions and people.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use keys::SecretText;
use model::Origin;
use time::OffsetDateTime;

/// Somebody wants a web session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The cluster's `NAME-NUMBER`, as it was sent: at most 256 bytes, not checked further.
    pub cluster: String,
    /// The provider's name, as it was sent (at most 256 bytes); `None` for the cluster's only or first one.
    pub provider: Option<String>,
    /// Who asks, by which way; `None` where it is not known.
    pub from: Option<Origin>,
}

/// The way to a provider.
#[derive(Clone, Debug)]
pub struct Departure {
    /// The provider's authorization URL (`https`, or `http` for a provider on this machine), with `state` in its query.
    pub location: String,
    /// Kept by the browser and brought back with `state`: at most 1,024 of `A–Z a–z 0–9 . _ ~ -`.
    pub state_cookie: SecretText,
}

/// A browser comes back from a provider (RFC 6749, section 4.1.2; RFC 9207).
#[derive(Clone, Debug)]
pub struct Callback {
    /// The `state` parameter, at most 512 bytes.
    pub state: String,
    /// What this browser kept for that state, at most 1,024 bytes.
    pub cookie: Option<SecretText>,
    /// The code (at most 4,096 bytes), or the provider's `error` (at most 128 plain characters, for the log).
    pub outcome: Result<SecretText, String>,
    /// The `iss` parameter, where one was sent.
    pub issuer: Option<String>,
    /// Who asks.
    pub from: Option<Origin>,
}

/// What became of it.
#[derive(Clone, Debug)]
pub enum Arrival {
    /// A web session was made.
    Session {
        /// The token for the cookie: URL-safe text, made by [`super::WebSessions::open`].
        token: SecretText,
        /// How long it lasts.
        lasts: Duration,
        /// Who it is.
        session: WebSession,
    },
    /// The waiting SQL session was let in.
    Ticket {
        /// The SQL user.
        user: String,
        /// The cluster's `NAME-NUMBER`.
        cluster: String,
    },
}

/// A SQL session that waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The SQL user that it asks for.
    pub user: String,
    /// The cluster's `NAME-NUMBER`.
    pub cluster: String,
    /// Where it connects from.
    pub address: IpAddr,
    /// The provider's name.
    pub provider: String,
    /// The code that the client's program shows, `ABCD-EFGH`.
    pub code: String,
}

/// Who has a web session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSession {
    /// The cluster's `NAME-NUMBER`.
    pub cluster: String,
    /// The SQL user.
    pub user: String,
    /// The provider's name.
    pub provider: String,
    /// When the session ends.
    pub expires_at: OffsetDateTime,
}

/// Why not. The page says no more than the text here; the cause is for the desk's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeskRefused {
    /// No such cluster or provider, or the provider cannot be asked: one answer for all. 400.
    #[error("OIDC: unable to initiate authentication")]
    NotBegun,
    /// The state, the cookie, the code or the token is wrong. 400.
    #[error("OIDC: unable to complete authentication")]
    NotCompleted,
    /// The person is known to the provider, and may not be that SQL user. 403.
    #[error("OIDC: you may not sign in as this user")]
    Forbidden,
    /// The cluster's pages are not open to the address. 403.
    #[error(
        "this address is not on the cluster's IP allowlist for its pages; ask its operator: chitin allowlist edit"
    )]
    Address,
    /// No such waiting session, or not any more. 404.
    #[error("this sign-in does not exist, or not any more; connect again to get another link")]
    Gone,
    /// Too many are under way. 503.
    #[error("too many sign-ins are under way; try again in a moment")]
    Busy,
}

/// Whoever signs people in through a browser. Implementations answer within seconds and log causes themselves.
#[async_trait]
pub trait SignInDesk: Send + Sync + 'static {
    /// Begins a sign-in for a web session.
    async fn begin_login(&self, login: Login) -> Result<Departure, DeskRefused>;
    /// Finishes what [`Self::begin_login`] or [`Self::begin_ticket`] began. A state counts once; what has begun only takes no
    /// place.
    async fn finish(&self, callback: Callback) -> Result<Arrival, DeskRefused>;
    /// The waiting session of a ticket's id (1 to 64 of `A–Z a–z 0–9 _ -`). Changes nothing: previews of links come here.
    async fn ticket(&self, id: &str, from: Option<&Origin>) -> Result<Waiting, DeskRefused>;
    /// Begins the sign-in for a waiting session, after the person has confirmed its code.
    async fn begin_ticket(&self, id: &str, from: Option<&Origin>) -> Result<Departure, DeskRefused>;
    /// Whose token this is, if it counts, and the cluster's pages are open to whoever asks.
    async fn session(&self, token: &SecretText, from: Option<&Origin>) -> Option<WebSession>;
    /// Ends a session; whether there was one.
    async fn log_out(&self, token: &SecretText) -> bool;
}
