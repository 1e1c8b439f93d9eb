//! Why a call is refused, as the client reads it.

use api::{Code, ErrorBody};
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use model::ClusterId;

/// What a message begins with that is the whole truth.
const UNCHANGED: &str = "nothing was changed: ";

/// A refusal: a code and a sentence for people, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The code.
    pub code: Code,
    /// What was refused, why, and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal with this code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What it says to the client.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Why, without the word that nothing was changed: for where something was, after all.
    pub fn reason(&self) -> &str {
        self.message.strip_prefix(UNCHANGED).unwrap_or(&self.message)
    }

    /// What was sent is wrong.
    pub fn invalid(what: impl std::fmt::Display) -> Self {
        Self::new(Code::InvalidArgument, format!("invalid argument: {what}"))
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// There is no such cluster.
    pub fn no_cluster(id: ClusterId) -> Self {
        Self::not_found(format!("cluster '{id}' not found"))
    }

    /// There is one already.
    pub fn exists(message: impl Into<String>) -> Self {
        Self::new(Code::AlreadyExists, message)
    }

    /// Not in this state.
    pub fn wrong_state(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    /// Not now.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// Not built.
    pub fn unbuilt(what: impl std::fmt::Display) -> Self {
        Self::new(Code::Unimplemented, format!("{what} not built yet"))
    }

    /// Our fault. The cause goes to the log, not to the client.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "an API call failed");
        Self::new(Code::Internal, "something failed inside the cloud; its log says what")
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NameTaken(_) => Self::exists(error.to_string()),
            store::Error::NotFound(id) => Self::no_cluster(id),
            store::Error::TooMany { .. } => Self::wrong_state(error.to_string()),
            // Whoever may call the API is to see to these.
            store::Error::File { .. }
            | store::Error::InUse { .. }
            | store::Error::Full { .. }
            | store::Error::Removed { .. } => Self::busy(format!("{UNCHANGED}{error}")),
            store::Error::Unsettled { .. } => Self::busy(error.to_string()),
            store::Error::Tampered { .. } | store::Error::Corrupted { .. } => Self::internal(error),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody::new(self.code, self.message))).into_response()
    }
}
