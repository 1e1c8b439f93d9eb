//! `chitin status`: the cloud, what the machine gives, and the clusters' numbers.

use api::{Alert, Disk, Machine, Postgres, RootKey, Status};
use time::format_description::well_known::Rfc3339;

use crate::cloud::Cloud;
use crate::failure::Failure;
use crate::keys;
use crate::output::{self, Printer, facts, table};

/// Prints the status.
pub async fn run(cloud: &Cloud, printer: Printer) -> Result<(), Failure> {
    let status = cloud.api.status().await?;
    let root = cloud.api.root_key().await?;
    printer.result(&status, || shown(&status, &root))?;
    if !printer.is_json() {
        for warning in &status.warnings {
            output::say(&format!("warning: {warning}"));
        }
    }
    Ok(())
}

fn shown(status: &Status, root: &RootKey) -> String {
    let machine = &status.machine;
    let encryption = match (machine.encryption, &machine.no_encryption_reason) {
        (Some(encryption), _) if encryption != model::Encryption::None => encryption.as_str().to_owned(),
        (_, Some(reason)) => format!("NONE: {reason}"),
        (_, None) => "NONE".to_owned(),
    };
    let encryption = if machine.is_unencrypted_allowed {
        format!("{encryption} (--allow-unencrypted is on)")
    } else {
        encryption
    };
    let broken = if status.broken > 0 { format!(", {} BROKEN", status.broken) } else { String::new() };
    let clusters =
        format!("{} ({} running, {} asleep{broken})", status.clusters, status.running, status.asleep);
    let head = alerts(&status.alerts)
        + &facts([
            ("chitin", status.version.clone()),
            ("SQL", status.sql.clone()),
            ("API", format!("https://{}", status.http)),
            ("clusters", clusters),
            ("engines", engines(machine)),
            ("encryption", encryption),
            ("disk", machine.disk.as_ref().map(disk).unwrap_or_default()),
            ("root key", keys::root_line(root)),
        ]);
    let rows = machine.capabilities.iter().map(|capability| {
        let present = if capability.is_present { "yes" } else { "MISSING" };
        let next = capability.next_step.clone().unwrap_or_default();
        [capability.name.clone(), present.to_owned(), capability.explanation.clone(), next]
    });
    if machine.capabilities.is_empty() {
        return head;
    }
    format!("{head}\n\n{}", table(["WALL", "STANDS", "HOW", "NEXT STEP"], rows))
}

/// The versions that clusters can run on, and what is not used.
fn engines(machine: &Machine) -> String {
    let word = |one: &Postgres| {
        let is_default = machine.postgres.len() > 1 && Some(one.major) == machine.default_major;
        format!("{}{}", one.version, if is_default { " (of new clusters)" } else { "" })
    };
    let all: Vec<String> = machine.postgres.iter().map(word).collect();
    let unusable: String =
        machine.unusable_postgres.iter().fold(String::new(), |text, one| text + "; NOT USED: " + one);
    format!("PostgreSQL {}{unusable}", if all.is_empty() { "NONE".to_owned() } else { all.join(", ") })
}

/// What the disk below all clusters has left.
fn disk(disk: &Disk) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let used_up = if disk.is_used_up { ", USED UP: no cluster is made, and none grows" } else { "" };
    format!(
        "{} of {} MiB free, {} of them kept for what runs{used_up}",
        mib(disk.free_bytes),
        mib(disk.total_bytes),
        mib(disk.reserve_bytes)
    )
}

/// What somebody must look at, before everything else.
fn alerts(alerts: &[Alert]) -> String {
    if alerts.is_empty() {
        return String::new();
    }
    let rows = alerts.iter().map(|alert| {
        let since = alert.since.and_then(|since| since.format(&Rfc3339).ok()).unwrap_or_default();
        [
            alert.severity.as_str().to_uppercase(),
            alert.cluster.clone().unwrap_or_default(),
            alert.what.clone(),
            since,
            alert.next_step.clone(),
        ]
    });
    format!("{}\n\n", table(["ALERT", "CLUSTER", "WHAT", "SINCE", "NEXT STEP"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_wall_and_missing_encryption_are_never_a_tick() {
        let status = Status {
            version: "0.1.0".to_owned(),
            sql: "127.0.0.1:26257".to_owned(),
            http: "127.0.0.1:8080".to_owned(),
            clusters: 0,
            running: 0,
            asleep: 0,
            broken: 0,
            machine: Machine {
                no_encryption_reason: Some("the file system has none".to_owned()),
                is_unencrypted_allowed: true,
                capabilities: vec![api::Capability {
                    name: "cgroups".to_owned(),
                    is_present: false,
                    explanation: "no controllers".to_owned(),
                    next_step: None,
                }],
                ..Machine::default()
            },
            warnings: Vec::new(),
            alerts: vec![Alert {
                severity: api::Severity::Critical,
                cluster: Some("my-shop".to_owned()),
                what: "its key was revoked".to_owned(),
                since: None,
                next_step: "restore it".to_owned(),
            }],
        };
        let root = RootKey {
            id: "0123456789abcdef".to_owned(),
            version: 2,
            protection: api::RootKeyProtection::Passphrase,
            protection_detail: String::new(),
            since: None,
            earlier_versions: Vec::new(),
            is_memory_locked: false,
            are_core_dumps_off: true,
        };
        let text = shown(&status, &root);
        assert!(text.contains("version 2, protected by a passphrase, memory NOT LOCKED"), "{text}");
        assert!(text.contains("NONE: the file system has none (--allow-unencrypted is on)"), "{text}");
        assert!(text.contains("MISSING"), "{text}");
        assert!(text.starts_with("ALERT") && text.lines().nth(1).unwrap().contains("CRITICAL"), "{text}");
    }
}
