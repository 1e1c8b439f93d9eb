//! What the API tells of storage: of the disk below all clusters, and of a cluster's limit.

use api::{Disk, Outcome, ProofRow};
use engine::Host;
use model::{ClusterId, Enforcement};
use store::Store;

/// The disk below all clusters.
pub(crate) fn disk(host: &Host) -> Option<Disk> {
    let room = host.machine_room().ok()?;
    Some(Disk {
        path: room.path.display().to_string(),
        total_bytes: room.total_bytes,
        free_bytes: room.free_bytes,
        reserve_bytes: room.reserve_bytes,
        is_used_up: room.is_used_up(),
    })
}

/// Whether something holds a cluster to its storage limit, and what.
pub(crate) fn row(host: &Host, store: &Store, id: ClusterId) -> ProofRow {
    let limit = store.snapshot().get(&id).map(|entry| entry.cluster.storage());
    let mib = |bytes: u64| bytes >> 20;
    let (outcome, evidence) = match (host.last_storage(id), limit) {
        (Some(usage), Some(limit)) if usage.enforcement == Enforcement::Enforced => {
            let wal = usage.wal_used_bytes.map_or_else(
                || "; the write-ahead log has no part of its own".to_owned(),
                |used| {
                    format!(
                        "; {} of {} MiB of the write-ahead log's own part",
                        mib(used),
                        mib(usage.wal_limit_bytes.unwrap_or(limit.wal_bytes()))
                    )
                },
            );
            let evidence = format!(
                "enforced by its own file system: {} of {} MiB in use{wal}",
                mib(usage.used_bytes),
                mib(usage.data_limit_bytes)
            );
            (Outcome::Proven, evidence)
        }
        (Some(usage), Some(limit)) => {
            let evidence = format!(
                "watched, not enforced: {} of {} MiB in use; at the limit its sessions are cut and transactions are read-only \
                 unless they say otherwise, at {} MiB it is stopped. Volumes in images of their own, which need root, enforce it",
                mib(usage.used_bytes),
                mib(limit.bytes()),
                mib(limit.stopped_at_bytes())
            );
            (Outcome::Missing, evidence)
        }
        _ => (Outcome::Failed, "what it stores has not been measured".to_owned()),
    };
    ProofRow {
        feature: "storage limit".to_owned(),
        claim: "the cluster cannot take the disk of the others".to_owned(),
        outcome,
        evidence,
    }
}
