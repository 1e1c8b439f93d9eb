//! The document of a cluster: what should be true (the wish) and what was last seen true (the observation).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{AllowlistEntry, ClusterHandle, ClusterId, ClusterName, RoutingId};

/// Most lines of one cluster's allowlist, unless the operator says otherwise.
pub const ALLOWLIST_ENTRIES_MAX: usize = 1_000;

/// What holds for every cluster of the cloud.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Organization {
    /// Whether new clusters of every plan begin with an empty allowlist.
    pub allowlist_starts_closed: bool,
}

/// What a customer buys: many tenants on shared machines, or a machine's worth of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plan {
    /// Shares the machine, sleeps when idle.
    Serverless,
    /// Has its resources to itself, never sleeps by itself.
    Dedicated,
}

impl Plan {
    /// The plan's name as people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serverless => "serverless",
            Self::Dedicated => "dedicated",
        }
    }
}

/// The cloud that a client named when it created the cluster. Stored and shown; the machine is always the operator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Provider {
    /// Google Cloud.
    Gcp,
    /// Amazon Web Services.
    Aws,
    /// Microsoft Azure.
    Azure,
}

/// Whether the engine should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// The engine runs and its volume is unlocked.
    Running,
    /// No process, and the volume's key is not in the kernel.
    Asleep,
}

/// What should be true of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// The cluster exists, with its engine in this state.
    Exists(Power),
    /// The cluster is destroyed: key first, then data.
    Deleted,
}

/// What was last seen of a cluster's engine and volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing is made yet, or half of it.
    Creating,
    /// Creation failed for good; only deletion is left.
    Failed {
        /// What went wrong and what to do, for the operator.
        reason: String,
    },
    /// The engine is not running and the volume is locked.
    Asleep,
    /// The engine is being started.
    Waking,
    /// The engine answers on its socket.
    Running,
    /// The engine is stopping, or the volume is being locked.
    Stopping,
    /// The engine died or could not be started; the next attempt follows by itself.
    Broken {
        /// What went wrong and what to do, for the operator.
        reason: String,
    },
    /// Key and data are being destroyed.
    Deleting,
}

impl Phase {
    /// The phase as one word for people and programs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Failed { .. } => "failed",
            Self::Asleep => "asleep",
            Self::Waking => "waking",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Broken { .. } => "broken",
            Self::Deleting => "deleting",
        }
    }
}

/// How a cluster's files are encrypted at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    /// The file system's own encryption (fscrypt v2 policy, AES-256-XTS).
    Fscrypt,
    /// fscrypt inside an ext4 image that Chitin made.
    FscryptImage,
    /// LUKS2 (dm-crypt, AES-256-XTS) inside an image that Chitin made.
    Luks2,
    /// The gocryptfs file system over FUSE (AES-256-GCM).
    Gocryptfs,
    /// By what lies below, as the operator says. Chitin cannot prove it, and it never counts as proven.
    Attested,
    /// None: the operator started Chitin with `--allow-unencrypted`.
    None,
}

impl Encryption {
    /// The kind as people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fscrypt => "fscrypt",
            Self::FscryptImage => "fscrypt-image",
            Self::Luks2 => "luks2",
            Self::Gocryptfs => "gocryptfs",
            Self::Attested => "attested",
            Self::None => "none",
        }
    }
}

/// What was last seen true, written by the reconciler alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Where the cluster stands.
    pub phase: Phase,
    /// How its volume is encrypted, once the volume exists.
    pub encryption: Option<Encryption>,
    /// The engine's version, for instance `15.18`, once it has run.
    pub engine_version: Option<String>,
    /// Set when the data directory was completely made; never cleared. Before it, a crash undoes what is there.
    pub is_initialized: bool,
    /// Its private network.
    #[serde(default)]
    pub network: crate::NetworkSeen,
    /// Its keys.
    #[serde(default)]
    pub keys: crate::KeysSeen,
    /// The copy of its roles.
    #[serde(default)]
    pub roles: crate::RolesSeen,
    /// Its volume.
    #[serde(default)]
    pub volume: crate::VolumeSeen,
    /// Its memory.
    #[serde(default)]
    pub memory: crate::MemorySeen,
    /// What it stores.
    #[serde(default)]
    pub storage: crate::StorageSeen,
    /// When its engine last did not answer.
    #[serde(default)]
    pub silence: Option<SilenceSeen>,
    /// When its running engine's sessions were used up and somebody was refused. None where that has not been since it was
    /// started.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub connections_used_up_at: Option<OffsetDateTime>,
    /// The sessions that its engine was started for when it last ran.
    #[serde(default)]
    pub connections_running: Option<u32>,
}

/// An engine that lived and did not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilenceSeen {
    /// When it was ended, to be started again.
    #[serde(with = "time::serde::rfc3339")]
    pub ended_at: OffsetDateTime,
    /// What was seen of it.
    pub reason: String,
}

impl Observation {
    /// Whether the copy of the roles holds all that the engine had when it stopped, so that people can be let in by it. Of
    /// what an earlier version wrote, it is that of a cluster that was put to sleep, and of one that was never made.
    pub fn is_copy_whole(&self) -> bool {
        self.roles.is_whole.unwrap_or(self.phase == Phase::Asleep || !self.is_initialized)
    }

    /// Of a cluster that was just wished for.
    pub fn nothing_yet() -> Self {
        Self {
            phase: Phase::Creating,
            encryption: None,
            engine_version: None,
            is_initialized: false,
            network: crate::NetworkSeen::default(),
            keys: crate::KeysSeen::default(),
            roles: crate::RolesSeen { is_whole: Some(true), ..crate::RolesSeen::default() },
            volume: crate::VolumeSeen::default(),
            memory: crate::MemorySeen::default(),
            storage: crate::StorageSeen::default(),
            silence: None,
            connections_used_up_at: None,
            connections_running: None,
        }
    }
}

/// The Cloud API's cluster states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClusterState {
    /// Being made.
    Creating,
    /// Usable, asleep or awake.
    Created,
    /// Could not be made.
    CreationFailed,
    /// Gone, or on the way.
    Deleted,
    /// Exists, but cannot run: its key was taken away.
    Locked,
}

/// A cluster: the document that the API edits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The API's id.
    pub id: ClusterId,
    /// The number in its address.
    pub routing_id: RoutingId,
    /// Its name, unique among clusters that exist.
    pub name: ClusterName,
    /// What was bought.
    pub plan: Plan,
    /// The cloud that the client named.
    pub provider: Provider,
    /// The regions that the client named, in its order; at least one.
    pub regions: Vec<String>,
    /// Labels, as given.
    pub labels: std::collections::BTreeMap<String, String>,
    /// While set, deletion is refused.
    pub is_delete_protected: bool,
    /// Who may connect, by address. Empty means nobody.
    pub allowlist: Vec<AllowlistEntry>,
    /// What the client asked for in its own words; see there for what of it counts.
    #[serde(default)]
    pub asked: crate::Asked,
    /// Its storage limit at least: what it got because it stored more than its limit before limits were enforced. Ends with the next
    /// limit that somebody asks for.
    #[serde(default)]
    pub storage_floor: Option<crate::StorageLimit>,
    /// The sessions that it may have at least, where nobody asked for a number. It grows when they are used up, and is 2,000 where an
    /// earlier version made the cluster.
    #[serde(default = "crate::connections::of_earlier_versions")]
    pub connections_floor: Option<u32>,
    /// How people sign in.
    #[serde(default)]
    pub sign_in: crate::SignIn,
    /// Who can see its front door, and what leads to it.
    #[serde(default)]
    pub network: crate::Network,
    /// What may leave it.
    #[serde(default)]
    pub egress: crate::Egress,
    /// What encrypts it at rest.
    #[serde(default)]
    pub keys: crate::KeyWish,
    /// What should be true.
    pub wish: Wish,
    /// Goes up by one with each change of the document; lost updates are refused by it.
    pub revision: u64,
    /// When it was wished for, to the microsecond.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the document last changed, to the microsecond.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    /// When its deletion was wished for.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub deleted_at: Option<OffsetDateTime>,
}

impl Cluster {
    /// The address label that clients use.
    pub fn handle(&self) -> ClusterHandle {
        ClusterHandle { name: self.name.clone(), routing_id: self.routing_id }
    }

    /// Whether the allowlist lets SQL clients in from the address. An empty list admits nobody.
    pub fn admits_sql(&self, address: IpAddr) -> bool {
        self.allowlist.iter().any(|entry| entry.sql && entry.range.contains(address))
    }

    /// The major version of PostgreSQL that its files are of; none where that was never kept, because it was not made yet.
    pub fn postgres_major(&self, seen: &Observation) -> Option<u32> {
        self.asked.postgres_major.or_else(|| {
            let version = seen.engine_version.as_deref()?;
            version.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
        })
    }

    /// Whether it is to be deleted by itself at this moment: its time has come, and nothing protects it.
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        let is_there = matches!(self.wish, Wish::Exists(_)) && !self.is_delete_protected;
        is_there && self.asked.expires_at.is_some_and(|end| end <= now)
    }

    /// Whether private endpoints may lead to it: on serverless clusters the service is there by itself.
    pub fn has_endpoint_service(&self) -> bool {
        match self.plan {
            Plan::Serverless => true,
            Plan::Dedicated => self.network.has_endpoint_service,
        }
    }

    /// The Cloud API's state for this document and what was last seen of it.
    pub fn state(&self, seen: &Observation) -> ClusterState {
        match (self.wish, &seen.phase) {
            (Wish::Deleted, _) | (_, Phase::Deleting) => ClusterState::Deleted,
            (_, Phase::Failed { .. }) => ClusterState::CreationFailed,
            (_, Phase::Creating) => ClusterState::Creating,
            _ if !seen.is_initialized => ClusterState::Creating,
            _ if seen.keys.hindrance(&self.keys).is_some() => ClusterState::Locked,
            _ => ClusterState::Created,
        }
    }
}
