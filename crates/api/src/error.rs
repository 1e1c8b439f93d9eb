//! Errors on the wire and as a client meets them.

use serde::{Deserialize, Serialize};

/// The gRPC codes that the Cloud API answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// What was sent is wrong in itself.
    InvalidArgument,
    /// It took too long.
    DeadlineExceeded,
    /// There is no such thing.
    NotFound,
    /// There is one already.
    AlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// Too much or too often.
    ResourceExhausted,
    /// Not in this state.
    FailedPrecondition,
    /// Not built.
    Unimplemented,
    /// Our fault.
    Internal,
    /// Not now.
    Unavailable,
    /// Nobody we know.
    Unauthenticated,
}

impl Code {
    /// The number in the body.
    pub fn number(self) -> u16 {
        match self {
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::NotFound => 5,
            Self::AlreadyExists => 6,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::FailedPrecondition => 9,
            Self::Unimplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::Unauthenticated => 16,
        }
    }

    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists => 409,
            Self::ResourceExhausted => 429,
            Self::Internal => 500,
            Self::Unimplemented => 501,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }
}

/// The body of every error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A gRPC code.
    pub code: u16,
    /// A sentence for people.
    pub message: String,
    /// Empty, or one `google.rpc.ErrorInfo` with a reason for programs.
    #[serde(default)]
    pub details: Vec<serde_json::Value>,
}

/// The reason of every refusal while the cloud stops.
pub const STOPPING: &str = "STOPPING";
/// Whose reasons those are.
const DOMAIN: &str = "chitin";

impl ErrorBody {
    /// A body without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code.number(), message: message.into(), details: Vec::new() }
    }

    /// A body with a reason that programs can tell apart.
    pub fn with_reason(code: Code, message: impl Into<String>, reason: &str) -> Self {
        let info = serde_json::json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason,
            "domain": DOMAIN,
        });
        Self { details: vec![info], ..Self::new(code, message) }
    }

    /// Whether it has this reason.
    pub(crate) fn has_reason(&self, reason: &str) -> bool {
        self.details.iter().any(|detail| detail["domain"] == DOMAIN && detail["reason"] == reason)
    }
}

/// Why a call did not work, as a client tells it apart.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cloud answered there, or not one whose certificate is trusted.
    #[error("no cloud answers at {url}: {reason}")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The cloud refused.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The gRPC code.
        code: u16,
        /// What the cloud said.
        message: String,
    },
    /// The cloud is stopping.
    #[error("{message}")]
    Stopping {
        /// What the cloud said: whether the request was refused, or what becomes of it.
        message: String,
    },
    /// The cloud has no such thing.
    #[error("{message}")]
    NotFound {
        /// What the cloud said.
        message: String,
    },
    /// The answer is not one that this API gives.
    #[error("{0}")]
    Unexpected(String),
}
