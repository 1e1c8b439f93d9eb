//! Clusters as the Cloud API writes them.

use std::collections::BTreeMap;

use model::{ClusterId, ClusterState, EgressPolicy, Provider, Tier, Visibility};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::Pagination;

/// Whether deletion is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protection {
    /// Refused.
    Enabled,
    /// Allowed.
    Disabled,
}

/// Who decides about new versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum UpgradeType {
    /// The cloud.
    Automatic,
    /// The customer.
    Manual,
}

/// Limits of a serverless cluster. Storage is enforced; the rest is recorded and answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageLimits {
    /// Request units a month.
    #[serde(default, with = "crate::number", skip_serializing_if = "Option::is_none")]
    pub request_unit_limit: Option<i64>,
    /// The storage limit in MiB, 1,024 or more; 0 or absent for the plan's own.
    #[serde(default, with = "crate::number", skip_serializing_if = "Option::is_none")]
    pub storage_mib_limit: Option<i64>,
    /// Processors.
    #[serde(default, with = "crate::number", skip_serializing_if = "Option::is_none")]
    pub provisioned_virtual_cpus: Option<i64>,
}

/// `POST /clusters`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateCluster {
    /// The name.
    pub name: String,
    /// Stored and shown.
    pub provider: Provider,
    /// The rest.
    pub spec: CreateSpec,
}

/// What shall be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateSpec {
    /// BASIC, STANDARD or ADVANCED.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Tier>,
    /// Present for a serverless cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serverless: Option<CreateServerless>,
    /// Present for a dedicated cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dedicated: Option<CreateDedicated>,
    /// A folder; only `root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<String>,
    /// Labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Whether deletion is refused from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete_protection: Option<Protection>,
    /// Somebody's own cloud account. Not built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer_cloud_account: Option<serde_json::Value>,
    /// Seconds after which the cluster is deleted by itself, 30 to 2,592,000. Ours, for clusters that are thrown away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u32>,
    /// Sessions at a time, 10 to 2,000; absent for the plan's own, which grows. Ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Whether cancel requests in plaintext are taken, from the session's own address; absent means that they are. Ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plaintext_cancels: Option<bool>,
    /// The major version of PostgreSQL, one of those that `GET /chitin/status` lists; absent for the default there. Ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_version: Option<u32>,
}

/// A serverless cluster to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateServerless {
    /// Region names.
    pub regions: Vec<String>,
    /// The first of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_region: Option<String>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_limits: Option<UsageLimits>,
    /// Who decides about new versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade_type: Option<UpgradeType>,
    /// Start with no address allowed instead of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_empty_ip_allowlist: Option<bool>,
    /// Start with nothing allowed to leave. Ours; the Cloud API has it for dedicated clusters only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restrict_egress_traffic: Option<bool>,
    /// PUBLIC or PRIVATE. Ours; the Cloud API has private clusters on the dedicated plan only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_visibility: Option<String>,
    /// The private network's addresses. Ours too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cidr_range: Option<String>,
}

/// A dedicated cluster to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateDedicated {
    /// Nodes by region. Recorded; there is one engine.
    pub region_nodes: BTreeMap<String, u32>,
    /// Sizes. Storage is the cluster's limit; the rest is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// A version of CockroachDB. Not built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cockroach_version: Option<String>,
    /// PUBLIC or PRIVATE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_visibility: Option<String>,
    /// The private network's addresses; a private cluster gets some where this is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cidr_range: Option<String>,
    /// Start with nothing allowed to leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restrict_egress_traffic: Option<bool>,
    /// Not built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region_machine_specs: Option<serde_json::Value>,
}

/// Sizes of a dedicated cluster's nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    /// The machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_spec: Option<MachineSpec>,
    /// The storage limit in GiB; 0 or absent for the plan's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_gib: Option<u32>,
    /// Disk operations a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_iops: Option<u32>,
}

/// A node's machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineSpec {
    /// By name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_type: Option<String>,
    /// By processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_virtual_cpus: Option<u32>,
}

/// `PATCH /clusters/{id}`: what is absent stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateCluster {
    /// BASIC or STANDARD, in place of the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Tier>,
    /// Serverless settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serverless: Option<UpdateServerless>,
    /// Dedicated settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dedicated: Option<UpdateDedicated>,
    /// All labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// A folder; only `root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<String>,
    /// Whether deletion is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete_protection: Option<Protection>,
    /// Not built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cockroach_version: Option<String>,
    /// Not built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade_status: Option<String>,
    /// Sessions at a time from the engine's next start on, 10 to 2,000; 0 for the plan's own, which grows. Ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Whether cancel requests in plaintext are taken, from the session's own address. Ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plaintext_cancels: Option<bool>,
}

/// Serverless settings to change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateServerless {
    /// All regions; they may only grow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<String>>,
    /// The first of several; empty means unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_region: Option<String>,
    /// All limits; `{}` means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_limits: Option<UsageLimits>,
    /// Who decides about new versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade_type: Option<UpgradeType>,
}

/// Dedicated settings to change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateDedicated {
    /// The whole map of nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region_nodes: Option<BTreeMap<String, u32>>,
    /// Sizes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// Not built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region_machine_specs: Option<serde_json::Value>,
    /// Keys of regions that are added: they must be the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmek_region_specs: Option<serde_json::Value>,
}

/// A cluster in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Its name.
    pub name: String,
    /// The engine's version in the contract's form, `v15.18.0`; empty until the engine has run.
    pub cockroach_version: String,
    /// Always `FINALIZED`.
    pub upgrade_status: String,
    /// What was bought.
    pub plan: Tier,
    /// The cloud that the client named.
    pub cloud_provider: Provider,
    /// Where it stands.
    pub state: ClusterState,
    /// Who made it; nobody in particular is recorded.
    pub creator_id: String,
    /// What is under way with the customer-managed key, or failed; else `UNSPECIFIED`.
    pub operation_status: String,
    /// The plan's settings.
    pub config: ClusterConfig,
    /// Its regions.
    pub regions: Vec<Region>,
    /// The private network's addresses; empty without one.
    pub cidr_range: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Always false.
    #[serde(default)]
    pub is_customer_cloud_account: bool,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When its document last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    /// When its deletion was asked for.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<OffsetDateTime>,
    /// Whether deletion is refused.
    pub delete_protection: Protection,
    /// Always `root`.
    pub parent_id: String,
    /// The name for SNI routing.
    pub sql_dns: String,
    /// Who can see the front door.
    pub network_visibility: Visibility,
    /// What may leave it where no rule says more.
    #[serde(default)]
    pub egress_traffic_policy: EgressPolicy,
}

impl Cluster {
    /// The address label `NAME-NUMBER`. The number is part of every plan's first SQL name.
    pub fn handle(&self) -> &str {
        self.sql_dns.split('.').next().unwrap_or(&self.sql_dns)
    }
}

/// The plan's settings; exactly one is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterConfig {
    /// Of a serverless cluster.
    Serverless(ServerlessConfig),
    /// Of a dedicated cluster.
    Dedicated(DedicatedConfig),
}

/// Settings of a serverless cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerlessConfig {
    /// `NAME-NUMBER`.
    pub routing_id: String,
    /// Who decides about new versions.
    pub upgrade_type: UpgradeType,
    /// Limits, as given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_limits: Option<UsageLimits>,
}

/// Settings of a dedicated cluster, as given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedicatedConfig {
    /// A machine's name.
    pub machine_type: String,
    /// Processors.
    pub num_virtual_cpus: u32,
    /// Storage.
    pub storage_gib: u32,
    /// Memory.
    pub memory_gib: u32,
    /// Disk operations a second.
    pub disk_iops: u32,
}

/// A region of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// The name for SNI routing.
    pub sql_dns: String,
    /// Always empty.
    pub ui_dns: String,
    /// The name inside the private network; empty without one.
    pub internal_dns: String,
    /// The name over private endpoints; empty until their service is made.
    pub private_endpoint_dns: String,
    /// Nodes as asked for; 0 on serverless.
    pub node_count: u32,
    /// Whether it is the first of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<bool>,
}

/// A page of clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clusters {
    /// The clusters.
    pub clusters: Vec<Cluster>,
    /// How to go on.
    #[serde(default)]
    pub pagination: Pagination,
}
