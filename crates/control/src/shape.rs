//! A cluster's document as the Cloud API writes it.

use api::{ClusterConfig, DedicatedConfig, Protection, Region, ServerlessConfig, UpgradeType, UsageLimits};
use model::{Asked, Cluster, Observation, Plan, Tier};

use crate::{Settings, cmek};

/// Nobody in particular: who made a cluster is not recorded.
const CREATOR: &str = "00000000-0000-0000-0000-000000000000";

/// The cluster in an answer.
pub(crate) fn cluster(cluster: &Cluster, seen: &Observation, settings: &Settings) -> api::Cluster {
    let asked = &cluster.asked;
    let handle = cluster.handle().to_string();
    let sql_dns = sql_dns(cluster, settings);
    let name_if = |is_there: bool| if is_there { sql_dns.clone() } else { String::new() };
    let config = match cluster.plan {
        Plan::Serverless => ClusterConfig::Serverless(ServerlessConfig {
            routing_id: handle,
            upgrade_type: if asked.is_upgraded_by_hand {
                UpgradeType::Manual
            } else {
                UpgradeType::Automatic
            },
            usage_limits: limits(asked),
        }),
        Plan::Dedicated => ClusterConfig::Dedicated(DedicatedConfig {
            machine_type: asked.machine_type.clone().unwrap_or_default(),
            num_virtual_cpus: asked.virtual_cpus.unwrap_or_default(),
            storage_gib: asked.storage_gib.unwrap_or_default(),
            memory_gib: cluster
                .resources()
                .memory_bytes
                .map_or(0, |bytes| u32::try_from(bytes >> 30).unwrap_or(0)),
            disk_iops: asked.disk_iops.unwrap_or_default(),
        }),
    };
    let region = |name: &String| Region {
        name: name.clone(),
        sql_dns: sql_dns.clone(),
        ui_dns: String::new(),
        internal_dns: name_if(cluster.network.range.is_some()),
        private_endpoint_dns: name_if(cluster.has_endpoint_service()),
        node_count: asked.region_nodes.get(name).copied().unwrap_or_default(),
        primary: (asked.primary_region.as_ref() == Some(name) && cluster.regions.len() > 1).then_some(true),
    };
    api::Cluster {
        id: cluster.id,
        name: cluster.name.to_string(),
        cockroach_version: version(seen),
        upgrade_status: "FINALIZED".to_owned(),
        plan: tier(cluster),
        cloud_provider: cluster.provider,
        state: cluster.state(seen),
        creator_id: CREATOR.to_owned(),
        operation_status: cmek::operation(cluster.keys.status(&seen.keys)).to_owned(),
        config,
        regions: cluster.regions.iter().map(region).collect(),
        cidr_range: cluster.network.range.map(|range| range.to_string()).unwrap_or_default(),
        labels: cluster.labels.clone(),
        is_customer_cloud_account: false,
        created_at: cluster.created_at,
        updated_at: cluster.updated_at,
        deleted_at: cluster.deleted_at,
        delete_protection: if cluster.is_delete_protected {
            Protection::Enabled
        } else {
            Protection::Disabled
        },
        parent_id: "root".to_owned(),
        network_visibility: cluster.network.visibility,
        sql_dns,
        egress_traffic_policy: cluster.egress.policy,
    }
}

/// The name that the cluster's certificate carries, by whichever way it is reached.
pub(crate) fn sql_dns(cluster: &Cluster, settings: &Settings) -> String {
    format!("{}.{}", cluster.handle(), settings.sql_host)
}

/// The plan by the Cloud API's name.
pub(crate) fn tier(cluster: &Cluster) -> Tier {
    cluster.asked.tier.unwrap_or(match cluster.plan {
        Plan::Serverless => Tier::Basic,
        Plan::Dedicated => Tier::Advanced,
    })
}

fn limits(asked: &Asked) -> Option<UsageLimits> {
    let limits = UsageLimits {
        request_unit_limit: asked.request_unit_limit,
        storage_mib_limit: asked.storage_mib_limit,
        provisioned_virtual_cpus: asked.provisioned_virtual_cpus,
    };
    (limits != UsageLimits::default()).then_some(limits)
}

/// `15.18` as the contract's clients read versions: `v15.18.0`.
fn version(seen: &Observation) -> String {
    match seen.engine_version.as_deref().and_then(|version| version.split_whitespace().next()) {
        None => String::new(),
        Some(version) => format!("v{version}.0"),
    }
}
