//! Fetching from outside on somebody's behalf, as a question: whoever asks has no socket, whoever answers checks where it
//! may go.

use std::time::Duration;

use async_trait::async_trait;

use crate::ClusterId;

/// What is to be fetched.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// An absolute `http` or `https` URL.
    pub url: String,
    /// What is sent; `None` makes it a `GET`, else it is a `POST`.
    pub body: Option<FetchBody>,
    /// The `Accept` header.
    pub accept: &'static str,
    /// A bearer token or basic credentials for the `Authorization` header, whole. A secret.
    pub authorization: Option<Hidden>,
    /// Further headers, whose values may be secrets. With any, as with `authorization`, nothing travels in plaintext.
    pub headers: Vec<(&'static str, Hidden)>,
    /// Certificates (PEM) that are trusted instead of the machine's.
    pub ca_pem: Option<String>,
    /// Most bytes of the answer's body; a longer one is a failure, never cut.
    pub bytes_max: usize,
    /// For everything, from the name's look-up to the last byte.
    pub time_max: Duration,
    /// On whose behalf; `None` for the operator's own.
    pub cluster: Option<ClusterId>,
}

/// A body and its kind.
#[derive(Clone, Debug)]
pub struct FetchBody {
    /// The `Content-Type` header.
    pub kind: &'static str,
    /// The bytes. They may hold a secret.
    pub bytes: Hidden<Vec<u8>>,
}

/// A value that does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden<T = String>(pub T);

impl<T> std::fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[hidden]")
    }
}

/// An answer. Redirects are answers too: they are never followed.
#[derive(Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The HTTP status.
    pub status: u16,
    /// The `Content-Type`, in lower case and without parameters; empty where none was sent.
    pub kind: String,
    /// For how long the answer may be kept (`Cache-Control: max-age`), where it says so.
    pub max_age: Option<Duration>,
    /// The body.
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { status, kind, max_age, body } = self;
        write!(f, "Fetched({status} {kind} {max_age:?}, {} bytes)", body.len())
    }
}

/// Why nothing was fetched. The text is for the operator's log, never for a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchFailure {
    /// The address is one that may not be reached.
    #[error("refused: {0}")]
    Refused(String),
    /// It could not be reached, or broke off.
    #[error("{0}")]
    Failed(String),
    /// It took too long.
    #[error("no answer in time")]
    TimedOut,
    /// The answer is longer than was allowed.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// Whoever may open connections to the outside.
#[async_trait]
pub trait Fetcher: Send + Sync + 'static {
    /// Fetches once: no redirect is followed and nothing is tried again.
    async fn fetch(&self, fetch: Fetch) -> Result<Fetched, FetchFailure>;
}
