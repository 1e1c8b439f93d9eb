//! Every way to be refused, with the PostgreSQL error that drivers understand. No text helps an attacker.

use std::net::IpAddr;
use std::time::Duration;

use identity::scram;
use model::InvalidName;
use wire::Malformed;
use wire::backend::{Report, Severity};

use crate::examine::NotVouched;

/// Why a client was sent away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its bytes do not follow the protocol.
    Protocol(&'static str),
    /// It asked for a session without TLS.
    Plaintext,
    /// It names no cluster, or none that could exist.
    Route(crate::route::Unroutable),
    /// A parameter that clients may not set.
    Parameter(String),
    /// Replication, which the gateway does not carry.
    Replication,
    /// Its address is not on the allowlist.
    Address,
    /// Its private endpoint is not accepted.
    Endpoint,
    /// It is inside the private network, and behind no peering that was accepted.
    Peering,
    /// No user name.
    NoUser,
    /// A user name that the engine would not take as it is.
    UserName(InvalidName),
    /// A database name that the engine would not take as it is.
    DatabaseName(InvalidName),
    /// The sign-in failed: unknown cluster, unknown user and wrong password alike.
    Password { user: String },
    /// No rule of the cluster lets this client in.
    NoRule { user: String, database: String, address: IpAddr },
    /// A rule of the cluster sends this client away.
    Rejected,
    /// A certificate is needed, and there is none that counts.
    NoCertificate(NoCertificate),
    /// The certificate is good and somebody else's.
    Certificate { user: String },
    /// A proof that others had to check did not count, or could not be checked.
    NotVouched(NotVouched),
    /// OAUTHBEARER without a token: the client was told where to get one.
    NoToken,
    /// Nobody signed in with the browser in time.
    BrowserTooSlow,
    /// Too many sign-ins failed.
    Throttled { retry_after: Duration },
    /// The TLS channel is not the client's own: somebody is in between.
    Channel(scram::Refusal),
    /// A bound on sessions is reached.
    TooMany(&'static str),
    /// The program may open nothing more for the cluster.
    NoRoom,
    /// The engine could not start a process for the session: its own words, for the log.
    NoProcess { reason: String },
    /// It was not signed in, and had to make room for others.
    Crowded,
    /// Too many passwords in clear wait for their turn to be checked.
    TooManyChecks,
    /// The engine is not ready.
    NotReady(crate::directory::NotReady),
    /// The engine refused the session: its own words, to a client that has signed in.
    Engine { code: String, message: String },
    /// The engine did not follow the protocol or broke off.
    EngineLost(&'static str),
    /// The session was to end while it was being set up.
    Cut(crate::Cut),
    /// It took too long.
    TooSlow,
    /// The connection broke; there is nobody to tell.
    Lost,
}

/// Why there is no certificate that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoCertificate {
    /// The client sent none.
    None,
    /// None of the cluster's authorities issued it.
    Stranger,
}

impl Refusal {
    /// No provider can be signed in with; the same where there is no such cluster.
    pub(crate) fn no_browser() -> Self {
        Self::NotVouched(NotVouched::no_browser())
    }

    /// Whether a proof was wrong. Only that counts against somebody: an engine that is down, a protocol that is not
    /// kept or a rule that is not met say nothing about guessing.
    pub(crate) fn is_wrong_proof(&self) -> bool {
        match self {
            Self::Password { .. } | Self::Certificate { .. } => true,
            Self::NotVouched(why) => why.is_wrong,
            _ => false,
        }
    }

    /// What the client reads, or `None` where nobody is there to read it.
    pub(crate) fn report(&self) -> Option<Vec<u8>> {
        if let Self::Engine { code, message } = self {
            return Some(engine_error(code, message));
        }
        let (code, message, hint): (&'static str, String, Option<&str>) = match self {
            Self::Protocol(what) => ("08P01", (*what).to_owned(), None),
            Self::Plaintext => (
                "28000",
                "server requires encryption".to_owned(),
                Some(
                    "Connect with TLS 1.3: sslmode=verify-full and sslrootcert set to the cloud's root (chitin cert ca).",
                ),
            ),
            Self::Route(unroutable) => ("08004", unroutable.to_string(), Some(unroutable.hint())),
            Self::Parameter(name) => ("42501", format!("parameter {name} is not allowed"), None),
            Self::Replication => (
                "0A000",
                "replication connections are not supported".to_owned(),
                Some("Use pg_dump, or COPY, to take data out."),
            ),
            Self::Address => (
                "28000",
                "connection refused: this address is not on the cluster's IP allowlist".to_owned(),
                Some("Ask the cluster's operator to add it: chitin allowlist add CLUSTER CIDR"),
            ),
            Self::Endpoint => (
                "28000",
                "connection refused: this private endpoint is not accepted by the cluster".to_owned(),
                Some("Ask the cluster's operator to accept it: chitin endpoint accept CLUSTER ENDPOINT-ID"),
            ),
            Self::Peering => (
                "28000",
                "connection refused: this address is behind no accepted peering of the cluster".to_owned(),
                Some("Ask the cluster's operator: chitin peering list CLUSTER"),
            ),
            Self::NoUser => ("28000", "no PostgreSQL user name specified in startup packet".to_owned(), None),
            Self::UserName(why) => ("28000", why.to_string(), None),
            Self::DatabaseName(why) => ("3D000", why.to_string(), None),
            Self::Password { user } => {
                ("28P01", format!("password authentication failed for user \"{user}\""), None)
            }
            Self::NoRule { user, database, address } => (
                "28000",
                format!("no rule lets user \"{user}\" at {address} into database \"{database}\""),
                Some("Ask the cluster's operator, who finds out why with: chitin hba test CLUSTER"),
            ),
            Self::Rejected => (
                "28000",
                "authentication rejected by configuration".to_owned(),
                Some("Ask the cluster's operator, who finds out why with: chitin hba test CLUSTER"),
            ),
            Self::NoCertificate(NoCertificate::None) => (
                "28000",
                "connection requires a valid client certificate".to_owned(),
                Some("Set sslcert and sslkey to a certificate of one of the cluster's client authorities."),
            ),
            Self::NoCertificate(NoCertificate::Stranger) => (
                "28000",
                "connection requires a valid client certificate".to_owned(),
                Some("The certificate that was sent is of none of the cluster's client authorities."),
            ),
            Self::Certificate { user } => (
                "28000",
                format!("certificate authentication failed for user \"{user}\""),
                Some("The certificate is for another user, or the identity map does not allow this one."),
            ),
            Self::NotVouched(why) => ("28000", why.message.clone(), why.hint),
            Self::NoToken => (
                "28000",
                "a token is needed".to_owned(),
                Some("Set oauth_issuer and oauth_client_id, so that the client can get one."),
            ),
            Self::BrowserTooSlow => (
                "28000",
                "nobody signed in with the browser in time".to_owned(),
                Some("Connect again; the page that was shown is no longer good."),
            ),
            Self::Throttled { retry_after } => {
                let message = "too many failed authentication attempts".to_owned();
                let hint = format!("Try again in {} s.", retry_after.as_secs().max(1));
                let report = Report { severity: Severity::Fatal, code: "28000", message, hint: Some(hint) };
                return Some(report.to_error());
            }
            Self::Channel(scram::Refusal::Malformed(what)) => {
                ("08P01", format!("malformed SCRAM message ({what})"), None)
            }
            Self::Channel(refusal) => (
                "28000",
                refusal.to_string(),
                Some(
                    "Somebody may be between the client and this server; check sslmode=verify-full and the root certificate.",
                ),
            ),
            Self::TooMany(what) => ("53300", format!("too many connections for {what}"), None),
            Self::NoRoom => (
                "53300",
                "too many connections: there is no room for another session of this cluster".to_owned(),
                Some("Connect again later; the operator finds the next step in Chitin's log."),
            ),
            Self::NoProcess { .. } => (
                "53000",
                "the cluster's engine could not start a process for the session".to_owned(),
                Some(
                    "Connect again later, with fewer sessions at a time; the operator finds the next step in Chitin's log.",
                ),
            ),
            Self::Crowded => (
                "53300",
                "too many connections that are not signed in, most of them from this network".to_owned(),
                Some("Connect again, and sign in sooner."),
            ),
            Self::TooManyChecks => (
                "53300",
                "too many passwords are waiting to be checked for this cluster".to_owned(),
                Some(
                    "Connect again in a moment. With scram-sha-256 in the cluster's rules nothing has to wait.",
                ),
            ),
            Self::NotReady(reason) => not_ready(*reason),
            Self::EngineLost(what) => (
                "08006",
                format!("the cluster's engine could not be reached: {what}"),
                Some("Connect again."),
            ),
            Self::Cut(cut) => return Some(cut.report().to_error()),
            Self::TooSlow => ("57014", "canceling authentication due to timeout".to_owned(), None),
            Self::Engine { .. } | Self::Lost => return None,
        };
        let hint = hint.map(str::to_owned);
        Some(Report { severity: Severity::Fatal, code, message, hint }.to_error())
    }
}

fn not_ready(reason: crate::directory::NotReady) -> (&'static str, String, Option<&'static str>) {
    use crate::directory::NotReady;
    match reason {
        NotReady::Gone => ("57P01", "the cluster is being deleted".to_owned(), None),
        NotReady::Failed => (
            "57P03",
            "the cluster's engine could not be started".to_owned(),
            Some("The operator finds the reason with: chitin cluster show NAME"),
        ),
        NotReady::TimedOut => {
            ("57P03", "the cluster's engine did not start in time".to_owned(), Some("Connect again."))
        }
        NotReady::KeyRevoked => (
            "57P03",
            "the key that encrypts the cluster's data was revoked".to_owned(),
            Some(
                "Connect again once the key may be used; the operator finds out who revoked it, and the next step, with: chitin key list NAME",
            ),
        ),
        NotReady::KeyServiceSilent => (
            "57P03",
            "the service that keeps the key of the cluster's data gives no answer".to_owned(),
            Some("Connect again later; the operator finds more with: chitin key list NAME"),
        ),
        NotReady::KeyServiceNotLettingIn => (
            "57P03",
            "the service that keeps the key of the cluster's data does not accept the credentials that are set for it"
                .to_owned(),
            Some("The operator sets others with: chitin key service set NAME"),
        ),
        NotReady::StorageUsedUp => (
            "53100",
            "the cluster stores more than its limit, and was stopped".to_owned(),
            Some("The operator gives it more with: chitin cluster update NAME --storage GIB"),
        ),
        NotReady::Unasked => (
            "57P03",
            "the cluster cannot say at this moment who may sign in".to_owned(),
            Some("Connect again; if it stays so, the operator finds the reason with: chitin status"),
        ),
        NotReady::NotGranted => (
            "28000",
            "the user could not be made, or its roles could not be granted".to_owned(),
            Some("Connect again; if it stays so, the operator finds the reason in Chitin's log."),
        ),
    }
}

fn engine_error(code: &str, message: &str) -> Vec<u8> {
    let mut error = wire::backend::Message::new(b'E');
    for (field, text) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', code), (b'M', message)] {
        error.put_bytes(&[field]);
        error.put_text(text);
    }
    error.put_bytes(&[0]);
    error.finish()
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::Protocol(malformed.0)
    }
}

impl From<std::io::Error> for Refusal {
    fn from(_: std::io::Error) -> Self {
        Self::Lost
    }
}

impl From<tokio::time::error::Elapsed> for Refusal {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::TooSlow
    }
}
