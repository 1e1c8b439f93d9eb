//! What a client of the Cloud API asked for in its own words.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The Cloud API's name of what is bought. The first two are our serverless plan, the third is dedicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Tier {
    /// Serverless, paid by use.
    Basic,
    /// Serverless, with a size.
    Standard,
    /// Dedicated.
    Advanced,
}

/// Kept because clients compare our answers with what they sent. Of it only storage ([`crate::StorageLimit`]), processors and disk
/// operations ([`crate::Resources`]), [`Self::connections_max`], [`Self::postgres_major`] and [`Self::expires_at`] change anything here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// The plan by the Cloud API's name.
    pub tier: Option<Tier>,
    /// The first among several regions.
    pub primary_region: Option<String>,
    /// Request units a month.
    pub request_unit_limit: Option<i64>,
    /// The storage limit of a serverless cluster, in MiB.
    pub storage_mib_limit: Option<i64>,
    /// The size of a STANDARD cluster.
    pub provisioned_virtual_cpus: Option<i64>,
    /// Whether versions change only when somebody says so.
    pub is_upgraded_by_hand: bool,
    /// Nodes by region.
    pub region_nodes: BTreeMap<String, u32>,
    /// A machine's name.
    pub machine_type: Option<String>,
    /// Processors of a node.
    pub virtual_cpus: Option<u32>,
    /// The storage limit of a dedicated cluster, in GiB.
    pub storage_gib: Option<u32>,
    /// Disk operations a second.
    pub disk_iops: Option<u32>,
    /// Sessions at a time.
    pub connections_max: Option<u32>,
    /// The major version of PostgreSQL. Where nobody asked for one, that of new clusters when it was created; none where an earlier
    /// version of Chitin created it.
    pub postgres_major: Option<u32>,
    /// When the cluster is deleted by itself, unless it is protected then.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
}
