//! Changing a cluster.

use api::{Hardware, Protection, UpdateCluster, UpdateDedicated, UpdateServerless, UsageLimits};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use model::{
    Asked, CONNECTIONS_PER_CLUSTER_MAX, CONNECTIONS_PER_CLUSTER_MIN, Cluster, Plan, StorageLimit, Tier,
};

use crate::create::{labels, parent, regions, upgrade};
use crate::{Refusal, State, clusters, cmek, input, shape};

/// Changes what the body names; what is absent stays. All of it or nothing.
pub(crate) async fn update(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<api::Cluster>, Refusal> {
    let request: UpdateCluster = input::body(&body)?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    if request.cockroach_version.is_some() || request.upgrade_status.is_some() {
        return Err(Refusal::unbuilt("version changes (cockroach_version, upgrade_status) are"));
    }
    parent(request.parent_id.as_deref())?;
    let labels = request.labels.map(labels).transpose()?;
    let connections_max = connections(request.max_connections)?;
    input::edit(&state, id, move |cluster| {
        if let Some(tier) = request.plan {
            move_plan(cluster, tier)?;
        }
        match (request.serverless, request.dedicated, cluster.plan) {
            (None, None, _) => {}
            (Some(serverless), None, Plan::Serverless) => change_serverless(cluster, serverless)?,
            (None, Some(dedicated), Plan::Dedicated) => change_dedicated(cluster, dedicated)?,
            _ => return Err(Refusal::invalid("the settings are not those of the cluster's plan")),
        }
        if let Some(labels) = labels {
            cluster.labels = labels;
        }
        if request.max_connections.is_some() {
            cluster.asked.connections_max = connections_max;
            cluster.connections_floor = None;
        }
        if let Some(takes) = request.plaintext_cancels {
            cluster.network.refuses_plaintext_cancels = !takes;
        }
        if let Some(protection) = request.delete_protection {
            cluster.is_delete_protected = protection == Protection::Enabled;
        }
        Ok(())
    })
    .await?;
    clusters::find(&state, id).map(Json)
}

/// The number of sessions that was asked for; none for the plan's own.
pub(crate) fn connections(wanted: Option<u32>) -> Result<Option<u32>, Refusal> {
    let wanted = wanted.filter(|count| *count > 0);
    if wanted
        .is_some_and(|count| !(CONNECTIONS_PER_CLUSTER_MIN..=CONNECTIONS_PER_CLUSTER_MAX).contains(&count))
    {
        return Err(Refusal::invalid(format!(
            "max_connections is {CONNECTIONS_PER_CLUSTER_MIN} to {CONNECTIONS_PER_CLUSTER_MAX}, or 0 for the plan's own"
        )));
    }
    Ok(wanted)
}

fn move_plan(cluster: &mut Cluster, tier: Tier) -> Result<(), Refusal> {
    if (tier == Tier::Advanced) != (cluster.plan == Plan::Dedicated) {
        return Err(Refusal::invalid("a cluster moves between BASIC and STANDARD, not to or from ADVANCED"));
    }
    // What was left out at creation stays left out.
    if shape::tier(cluster) != tier {
        cluster.asked.tier = Some(tier);
    }
    Ok(())
}

fn change_serverless(cluster: &mut Cluster, change: UpdateServerless) -> Result<(), Refusal> {
    if let Some(wanted) = change.regions.filter(|wanted| !wanted.is_empty()) {
        let wanted = regions(wanted)?;
        if !cluster.regions.iter().all(|region| wanted.contains(region)) {
            return Err(Refusal::invalid("regions can be added but not removed"));
        }
        cluster.regions = wanted;
    }
    if let Some(primary) = change.primary_region.filter(|primary| !primary.is_empty()) {
        if !cluster.regions.contains(&primary) {
            return Err(Refusal::invalid("primary_region is one of the regions"));
        }
        cluster.asked.primary_region = Some(primary);
    }
    if cluster.regions.len() > 1 && cluster.asked.primary_region.is_none() {
        return Err(Refusal::invalid("several regions need a primary_region"));
    }
    if change.usage_limits.is_some() {
        cluster.storage_floor = cluster
            .storage_floor
            .filter(|_| change.usage_limits.as_ref().is_none_or(|limits| limits.storage_mib_limit.is_none()));
        keep_limits(&mut cluster.asked, change.usage_limits)?;
    }
    if change.upgrade_type.is_some() {
        cluster.asked.is_upgraded_by_hand = upgrade(change.upgrade_type, Some(shape::tier(cluster)))?;
    }
    Ok(())
}

fn change_dedicated(cluster: &mut Cluster, change: UpdateDedicated) -> Result<(), Refusal> {
    if change.region_machine_specs.is_some() {
        return Err(Refusal::unbuilt("region_machine_specs are"));
    }
    if let Some(specs) = change.cmek_region_specs {
        cmek::of_added_regions(cluster, specs)?;
    }
    if let Some(nodes) = change.region_nodes {
        cluster.regions = regions(nodes.keys().cloned().collect())?;
        cluster.asked.region_nodes = nodes;
    }
    let asks = |hardware: &Hardware| hardware.storage_gib.is_some();
    cluster.storage_floor = cluster.storage_floor.filter(|_| !change.hardware.as_ref().is_some_and(asks));
    keep_hardware(&mut cluster.asked, change.hardware)
}

/// Records limits as given, all at once.
pub(crate) fn keep_limits(asked: &mut Asked, limits: Option<UsageLimits>) -> Result<(), Refusal> {
    let limits = limits.unwrap_or_default();
    let all = [limits.request_unit_limit, limits.storage_mib_limit, limits.provisioned_virtual_cpus];
    if all.into_iter().flatten().any(|limit| limit < 0) {
        return Err(Refusal::invalid("usage limits are not negative"));
    }
    if let Some(mib) = limits.storage_mib_limit.and_then(|mib| u64::try_from(mib).ok()).filter(|mib| *mib > 0)
    {
        StorageLimit::from_mib(mib)
            .map_err(|reason| Refusal::invalid(format!("storage_mib_limit: {reason}")))?;
    }
    asked.request_unit_limit = limits.request_unit_limit;
    asked.storage_mib_limit = limits.storage_mib_limit;
    asked.provisioned_virtual_cpus = limits.provisioned_virtual_cpus;
    Ok(())
}

/// Records sizes; what is absent stays.
pub(crate) fn keep_hardware(asked: &mut Asked, hardware: Option<Hardware>) -> Result<(), Refusal> {
    let hardware = hardware.unwrap_or_default();
    if let Some(gib) = hardware.storage_gib.filter(|gib| *gib > 0) {
        StorageLimit::from_gib(gib.into())
            .map_err(|reason| Refusal::invalid(format!("storage_gib: {reason}")))?;
    }
    let machine = hardware.machine_spec.unwrap_or_default();
    asked.machine_type = machine.machine_type.or_else(|| asked.machine_type.take());
    asked.virtual_cpus = machine.num_virtual_cpus.or(asked.virtual_cpus);
    asked.storage_gib = hardware.storage_gib.or(asked.storage_gib);
    asked.disk_iops = hardware.disk_iops.or(asked.disk_iops);
    Ok(())
}
