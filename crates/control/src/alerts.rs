//! What somebody must look at, from what was last seen. Every word of a key service has been bounded where it was read.

use api::{Alert, Machine, Severity};
use model::{CONNECTIONS_PER_CLUSTER_MAX, Cluster, Enforcement, Fullness, KeyServiceName, Wish};
use store::{Entry, Snapshot, Trouble, TroubleKind};
use time::OffsetDateTime;

use crate::versions;

/// Most alerts of one answer.
const ALERTS_MAX: usize = 1_000;

/// Everything that is wrong, the worst first; `troubles` are those of the state itself.
pub(crate) fn all(snapshot: &Snapshot, troubles: Vec<Trouble>, machine: &Machine) -> Vec<Alert> {
    let mut alerts: Vec<Alert> = snapshot.iter().flat_map(|entry| of(entry)).collect();
    // Also of what sleeps, which says nothing of it itself.
    let is_broken = |entry: &Entry| matches!(entry.seen.phase, model::Phase::Broken { .. });
    let others = snapshot.iter().filter(|entry| !is_broken(entry));
    alerts.extend(others.filter_map(|entry| versions::gone(entry, machine)));
    alerts.extend(troubles.into_iter().map(of_state));
    // An order of its own, so that two looks can be compared.
    alerts.sort_by(|one, other| (one.severity, &one.cluster).cmp(&(other.severity, &other.cluster)));
    alerts.truncate(ALERTS_MAX);
    alerts
}

/// The disk below all clusters has nothing left to give.
pub(crate) fn reserve_reached(disk: &api::Disk) -> Alert {
    let mib = |bytes: u64| bytes >> 20;
    Alert {
        severity: Severity::Critical,
        cluster: None,
        what: format!(
            "the disk below {} has {} MiB left, and the machine's reserve is {} MiB: no cluster is made, and none grows",
            disk.path,
            mib(disk.free_bytes),
            mib(disk.reserve_bytes)
        ),
        since: None,
        next_step: "free some space there, or delete a cluster; clusters grow again by themselves".to_owned(),
    }
}

/// The worst of one cluster.
pub(crate) fn worst(entry: &Entry) -> Option<Alert> {
    of(entry).into_iter().min_by_key(|alert| alert.severity)
}

/// What is wrong with the state, which is no cluster's.
fn of_state(trouble: Trouble) -> Alert {
    let Trouble { kind, since, reason } = trouble;
    let (severity, next_step) = match kind {
        TroubleKind::Removed => (Severity::Critical, "do as it says; it is noticed by itself"),
        TroubleKind::Unwritable => {
            (Severity::Critical, "see to the reason (space, the disk, rights); it is tried again by itself")
        }
        TroubleKind::Older => (
            Severity::Critical,
            "stop Chitin and put the newest state.redb back; clusters that the state does not know are left as they are",
        ),
        TroubleKind::Full => (Severity::Warning, "free some space on the file system of the data directory"),
    };
    let what = format!("{}: {reason}", kind.as_str());
    Alert { severity, cluster: None, what, since: Some(since), next_step: next_step.to_owned() }
}

pub(crate) fn of_cluster(
    cluster: &Cluster,
    severity: Severity,
    what: String,
    since: Option<OffsetDateTime>,
    next_step: String,
) -> Alert {
    Alert { severity, cluster: Some(cluster.name.to_string()), what, since, next_step }
}

/// What is wrong with one cluster.
fn of(entry: &Entry) -> Vec<Alert> {
    let (cluster, seen) = (&entry.cluster, &entry.seen.keys);
    if cluster.wish == Wish::Deleted {
        return Vec::new();
    }
    let name = &cluster.name;
    let spec = cluster.keys.spec();
    let test = test_command(&spec, name.as_str());
    let alert = |severity, what, since, next_step| of_cluster(cluster, severity, what, since, next_step);
    let mut alerts = Vec::new();
    if let Some(reason) = &entry.seen.roles.failure {
        alerts.push(alert(
            Severity::Warning,
            format!(
                "the roles of the engine cannot be kept for sign-in, so it is not put to sleep: {reason}"
            ),
            None,
            "see to the reason; it is tried again by itself every minute".to_owned(),
        ));
    }
    if let Some(reason) = &entry.seen.volume.alarm {
        alerts.push(alert(
            Severity::Critical,
            reason.clone(),
            None,
            "what runs goes on with the volume that is on record; it is not started with another".to_owned(),
        ));
    }
    if let Some(since) = entry.seen.memory.killed_at {
        alerts.push(alert(
            Severity::Warning,
            format!(
                "the engine used up its memory {} times since it was started, and the kernel ended processes of it",
                entry.seen.memory.kills
            ),
            Some(since),
            "lower work_mem or the number of sessions, or give the cluster more processors and memory".to_owned(),
        ));
    }
    if let Some(silence) = &entry.seen.silence {
        alerts.push(alert(
            Severity::Warning,
            format!(
                "its engine did not answer any more ({}), and was ended and started again",
                silence.reason
            ),
            Some(silence.ended_at),
            "see the log, and the engine's own, for what may have been the reason".to_owned(),
        ));
    }
    alerts.extend(entry.seen.connections_used_up_at.map(|since| of_connections(cluster, since)));
    alerts.extend(of_storage(entry));
    // Of a key that cannot be had, what follows says more.
    if let model::Phase::Broken { reason } = &entry.seen.phase
        && seen.hindrance(&cluster.keys).is_none()
        && seen.outage.is_none()
    {
        alerts.push(alert(
            Severity::Critical,
            format!("the engine is not running: {reason}"),
            None,
            "see to the reason; it is tried again by itself".to_owned(),
        ));
    }
    if cluster.keys.is_revoked {
        let state = if seen.is_locked_away { "is stopped and locked" } else { "is being stopped" };
        alerts.push(alert(
            Severity::Critical,
            format!("{spec} was revoked: the cluster {state}"),
            None,
            format!("to give the key back: chitin key restore {name}"),
        ));
    }
    if let Some(reason) = &seen.denied {
        alerts.push(alert(
            Severity::Critical,
            format!("the key service refuses the cluster's key: {reason}"),
            None,
            format!(
                "allow {spec} at the service again; the cluster comes back by itself{}",
                test.as_ref().map(|test| format!("; to try the key: {test}")).unwrap_or_default()
            ),
        ));
    }
    if let Some(outage) = &seen.outage {
        let (what, remedy) = if outage.are_credentials_refused {
            let service = spec.service.as_ref().map_or("NAME", KeyServiceName::as_str);
            (
                "the key service does not accept the credentials",
                format!("set others: chitin key service set {service}; it is asked again by itself"),
            )
        } else {
            (
                "the key service does not answer",
                "bring the service back; it is asked again by itself".to_owned(),
            )
        };
        alerts.push(alert(
            Severity::Warning,
            format!("{what}: {}; what runs goes on, what sleeps cannot wake", outage.reason),
            Some(outage.since),
            format!(
                "{remedy}{}",
                test.as_ref().map(|test| format!("; to try the key: {test}")).unwrap_or_default()
            ),
        ));
    }
    if let Some(reason) = cluster.keys.failure(seen) {
        let what = if cluster.keys.data_keys > seen.data_keys {
            "the volume could not be encrypted anew"
        } else {
            "the data key could not be wrapped anew"
        };
        alerts.push(alert(
            Severity::Warning,
            format!("{what}: {reason}; the earlier key is still used"),
            None,
            format!("it is tried again by itself; look at it: chitin key list {name}"),
        ));
    }
    alerts
}

/// What is wrong where somebody was refused for want of sessions.
fn of_connections(cluster: &Cluster, since: OffsetDateTime) -> Alert {
    let (name, next) = (&cluster.name, cluster.connections_max());
    let choose = format!("chitin cluster update {name} --connections COUNT");
    let next_step = if next == CONNECTIONS_PER_CLUSTER_MAX {
        "no cluster has more; have clients share sessions, for instance by a pooler before them".to_owned()
    } else if cluster.asked.connections_max.is_some() {
        format!(
            "it has the number that was chosen; see whether clients need so many, or choose another, which holds from its \
             engine's next start on: {choose}"
        )
    } else {
        format!(
            "start its engine again, which ends its sessions: chitin cluster sleep {name}, chitin cluster wake {name}; or \
             choose a number: {choose}"
        )
    };
    let what = format!(
        "its sessions were used up, and somebody was refused; from its engine's next start on it may have {next}"
    );
    of_cluster(cluster, Severity::Warning, what, Some(since), next_step)
}

/// What is wrong with what a cluster stores.
fn of_storage(entry: &Entry) -> Vec<Alert> {
    let (cluster, seen) = (&entry.cluster, &entry.seen.storage);
    let name = &cluster.name;
    let alert = |severity, what, next_step| of_cluster(cluster, severity, what, None, next_step);
    let mut alerts = Vec::new();
    if let Some(reason) = &seen.is_read_only {
        let next = "it comes back by itself; see to the disk below, which may be full or broken".to_owned();
        alerts.push(alert(Severity::Critical, reason.clone(), next));
    }
    if seen.is_stopped_for_machine {
        let what =
            "it went on storing when the machine's disk had nothing left to give, and is stopped".to_owned();
        let next = "free some space on the machine's disk; it may run again by itself then".to_owned();
        alerts.push(alert(Severity::Critical, what, next));
        return alerts;
    }
    let Some(last) = seen.last else {
        return alerts;
    };
    let mib = |bytes: u64| bytes >> 20;
    let of = format!("{} of {} MiB are in use", mib(last.used_bytes), mib(last.data_limit_bytes));
    let more = format!("free some space in it, or give it more: chitin cluster update {name} --storage GIB");
    let (severity, what) = match (last.fullness, last.enforcement) {
        (Fullness::Ample, _) => return alerts,
        (Fullness::Filling, _) => (Severity::Warning, format!("it fills: {of}")),
        (Fullness::Low, _) => (Severity::Warning, format!("it is near its storage limit: {of}")),
        (Fullness::Full, Enforcement::Enforced) => {
            (Severity::Critical, format!("it has reached its storage limit, and what grows is refused: {of}"))
        }
        (Fullness::Full, Enforcement::Watched) if seen.is_stopped(cluster.storage()) => {
            (Severity::Critical, format!("it stores more than its limit, and is stopped: {of}"))
        }
        (Fullness::Full, Enforcement::Watched) => (
            Severity::Critical,
            format!(
                "it has reached its storage limit, and its transactions are read-only unless they say otherwise: {of}"
            ),
        ),
    };
    alerts.push(alert(severity, what, more));
    alerts
}

fn test_command(spec: &model::KeySpec, cluster: &str) -> Option<String> {
    let service = spec.service.as_ref().map(KeyServiceName::as_str)?;
    Some(format!("chitin key service test {service} --uri '{}' --cluster {cluster}", spec.uri))
}
