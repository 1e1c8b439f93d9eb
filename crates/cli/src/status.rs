//! `chitin status`: the cloud, what the machine gives, and the clusters' numbers.

use api::Status;

use crate::cloud::Cloud;
use crate::failure::Failure;
use crate::output::{self, Printer, facts, table};

/// Prints the status.
pub async fn run(cloud: &Cloud, printer: Printer) -> Result<(), Failure> {
    let status = cloud.api.status().await?;
    printer.result(&status, || shown(&status))?;
    if !printer.is_json() {
        for warning in &status.warnings {
            output::say(&format!("warning: {warning}"));
        }
    }
    Ok(())
}

fn shown(status: &Status) -> String {
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
    let clusters = format!("{} ({} running, {} asleep)", status.clusters, status.running, status.asleep);
    let head = facts([
        ("chitin", status.version.clone()),
        ("SQL", status.sql.clone()),
        ("API", format!("https://{}", status.http)),
        ("clusters", clusters),
        ("engine", format!("PostgreSQL {}", machine.postgres_version)),
        ("encryption", encryption),
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
            machine: api::Machine {
                no_encryption_reason: Some("the file system has none".to_owned()),
                is_unencrypted_allowed: true,
                capabilities: vec![api::Capability {
                    name: "cgroups".to_owned(),
                    is_present: false,
                    explanation: "no controllers".to_owned(),
                    next_step: None,
                }],
                ..api::Machine::default()
            },
            warnings: Vec::new(),
            alerts: Vec::new(),
        };
        let text = shown(&status);
        assert!(text.contains("NONE: the file system has none (--allow-unencrypted is on)"), "{text}");
        assert!(text.contains("MISSING"), "{text}");
    }
}
