//! One line of the security table: what was claimed, and what an attack on it showed.

use serde::{Deserialize, Serialize};

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The attack was made and beaten; the evidence says how.
    Proven,
    /// The attack succeeded, or could not be made where it should have been possible.
    Failed,
    /// This machine or this position cannot give or show it.
    Missing,
    /// The cluster says so of itself; nobody could check it from outside.
    Stated,
    /// The feature does not exist yet.
    NotBuilt,
}

impl Outcome {
    /// The outcome as people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Failed => "FAILED",
            Self::Missing => "missing",
            Self::Stated => "stated",
            Self::NotBuilt => "not built",
        }
    }
}

/// One line of the security table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The feature, as the design's table names it.
    pub feature: String,
    /// What is claimed.
    pub claim: String,
    /// What became of the claim.
    pub outcome: Outcome,
    /// What was seen.
    pub evidence: String,
}

/// What an attack showed: an outcome and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What became of the claim.
    pub outcome: Outcome,
    /// What was seen.
    pub evidence: String,
}

impl Verdict {
    /// The attack was beaten.
    pub fn proven(evidence: impl Into<String>) -> Self {
        Self { outcome: Outcome::Proven, evidence: evidence.into() }
    }

    /// The attack succeeded, or could not be made.
    pub fn failed(evidence: impl Into<String>) -> Self {
        Self { outcome: Outcome::Failed, evidence: evidence.into() }
    }

    /// The claim cannot be shown here.
    pub fn missing(evidence: impl Into<String>) -> Self {
        Self { outcome: Outcome::Missing, evidence: evidence.into() }
    }

    /// The verdict as the row of a claim.
    pub fn on(self, feature: &str, claim: &str) -> Row {
        Row {
            feature: feature.to_owned(),
            claim: claim.to_owned(),
            outcome: self.outcome,
            evidence: self.evidence,
        }
    }
}

/// An attack that broke off is no proof: the claim counts as failed, with the reason.
impl<E: std::fmt::Display> From<Result<Self, E>> for Verdict {
    fn from(result: Result<Self, E>) -> Self {
        result.unwrap_or_else(|error| Self::failed(format!("the attack could not be completed: {error}")))
    }
}
