//! What the Cloud API has no words for, under `/api/v1/chitin`.

use model::{ClusterId, Encryption, Phase, Plan};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{Alert, Pagination};

/// `GET /chitin/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Chitin's version.
    pub version: String,
    /// Where SQL clients connect, `HOST:PORT`.
    pub sql: String,
    /// Where this API answers, `HOST:PORT`.
    pub http: String,
    /// Clusters that exist.
    pub clusters: usize,
    /// Of them, those whose engine runs.
    pub running: usize,
    /// Of them, those that sleep.
    pub asleep: usize,
    /// Of them, those whose engine could not be started or has died, and is tried again.
    #[serde(default)]
    pub broken: usize,
    /// What the machine gives.
    pub machine: Machine,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// What somebody must look at, the worst first; at most 1,000.
    #[serde(default)]
    pub alerts: Vec<Alert>,
}

/// What the machine gives to engines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The version of PostgreSQL that new clusters get where nobody asks for another.
    pub postgres_version: String,
    /// Every version that clusters can run on, one of each major version, the oldest first.
    #[serde(default)]
    pub postgres: Vec<Postgres>,
    /// The major version that new clusters get where nobody asks for another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_major: Option<u32>,
    /// Installations of PostgreSQL that were found or named and are not used, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unusable_postgres: Vec<String>,
    /// How new volumes are encrypted; absent means not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Why no volume can be encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_encryption_reason: Option<String>,
    /// Whether the operator said `--allow-unencrypted`.
    pub is_unencrypted_allowed: bool,
    /// Walls around engines.
    pub capabilities: Vec<Capability>,
    /// What is left of the disk below all clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
}

/// An installation of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postgres {
    /// Its major version.
    pub major: u32,
    /// Its version, for instance `15.18`.
    pub version: String,
    /// The folder with its programs.
    pub programs: String,
}

/// The disk below all clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Where.
    pub path: String,
    /// Its size.
    pub total_bytes: u64,
    /// What may still be written to it.
    pub free_bytes: u64,
    /// With less than this free no cluster is made, and none grows.
    pub reserve_bytes: u64,
    /// No cluster is made, and none grows: there was less free, and there is not clearly more yet.
    pub is_used_up: bool,
}

/// One wall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// Which.
    pub name: String,
    /// Whether it stands.
    pub is_present: bool,
    /// How it is built, or why it is missing.
    pub explanation: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_step: Option<String>,
}

/// `GET /chitin/ca`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// The root certificate.
    pub pem: String,
    /// Where it lies on the cloud's machine.
    pub path: String,
}

/// `GET /chitin/whoami`: what the cloud sees of whoever asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The address that the request came from, IPv4 in its own form.
    pub address: std::net::IpAddr,
}

/// `GET` and `PUT /chitin/organization`: what holds for every cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    /// Whether new clusters of every plan begin with an empty allowlist, whatever was asked for.
    pub allowlist_starts_closed: bool,
}

/// `GET /chitin/clusters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPhases {
    /// By id.
    pub clusters: Vec<ClusterPhase>,
    /// Where the list goes on.
    pub pagination: Pagination,
}

/// Where a cluster stands, which the Cloud API's states do not tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPhase {
    /// Its id.
    pub id: ClusterId,
    /// With the reason when something is wrong.
    pub phase: Phase,
}

/// `GET /chitin/clusters/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterDetail {
    /// Its id.
    pub id: ClusterId,
    /// Its name.
    pub name: String,
    /// `NAME-NUMBER`.
    pub handle: String,
    /// What was bought.
    pub plan: Plan,
    /// Where it stands, with the reason when something is wrong.
    pub phase: Phase,
    /// Whether cancel requests in plaintext are taken, from the session's own address.
    pub plaintext_cancels: bool,
    /// How its volume is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// The engine's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// What it may use of the machine, where the machine can limit that: see the wall of resource limits in the status.
    pub resources: model::Resources,
    /// Sessions at a time that it may have, from its engine's next start on.
    pub connections_max: u32,
    /// Lines of its allowlist.
    pub allowlist_entries: usize,
    /// Whether SQL clients from every IPv4 or IPv6 address are let in.
    pub is_open_to_every_address: bool,
    /// Goes up with each change of the document.
    pub revision: u64,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it is deleted by itself.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<OffsetDateTime>,
    /// What it may store, in bytes, its write-ahead log included.
    #[serde(default)]
    pub storage_limit_bytes: u64,
    /// What was measured just now.
    pub facts: Facts,
}

/// `PUT /chitin/clusters/{cluster_id}/expiry`: how long a cluster goes on to exist, from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutExpiry {
    /// Seconds, 30 to 2,592,000; absent means until somebody deletes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u32>,
}

/// When a cluster is deleted by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// The moment; absent means never.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<OffsetDateTime>,
}

/// What only the machine knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Client sessions.
    pub sessions: usize,
    /// How many there may be at a time, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions_max: Option<u32>,
    /// Whether the volume's key is in the kernel, as the kernel says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_unlocked: Option<bool>,
    /// What was read for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_evidence: Option<String>,
    /// What it stores, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<model::StorageUse>,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was attacked or measured and holds.
    Proven,
    /// It does not hold.
    Failed,
    /// The machine lacks what it takes, or the operator allowed it to be missing.
    Missing,
    /// It is said, not measured.
    Stated,
}

/// A row of the security table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofRow {
    /// The feature.
    pub feature: String,
    /// What is claimed.
    pub claim: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What was seen.
    pub evidence: String,
}

/// `POST /chitin/clusters/{id}/proof`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The rows.
    pub rows: Vec<ProofRow>,
}
