//! `chitin allowlist`: list, add, edit, remove.

use api::{AllowlistChange, AllowlistEntry};

use crate::cloud::Cloud;
use crate::command::AllowlistCommand;
use crate::failure::{Failure, Kind};
use crate::output::{self, Printer, table};

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: AllowlistCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        AllowlistCommand::List(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let entries = cloud.api.allowlist(cluster.id).await?;
            if entries.is_empty() && !printer.is_json() {
                let name = &cluster.name;
                output::say(&format!(
                    "nobody may connect to {name}; let somebody in: chitin allowlist add {name} CIDR"
                ));
                return Ok(());
            }
            printer.result(&entries, || listed(&entries))
        }
        AllowlistCommand::Add(line) => {
            let cluster = cloud.cluster(&line.cluster).await?;
            let entry = AllowlistEntry {
                cidr_ip: line.range.address().to_string(),
                cidr_mask: line.range.prefix_bits(),
                name: line.name.unwrap_or_default(),
                ui: line.ui.unwrap_or(false),
                sql: line.sql.unwrap_or(true),
            };
            let made = cloud.api.add_allowlist_entry(cluster.id, &entry).await?;
            printer.result(&made, || format!("{} may connect to {}", line.range, cluster.name))
        }
        AllowlistCommand::Edit(line) => {
            let cluster = cloud.cluster(&line.cluster).await?;
            if (&line.name, line.sql, line.ui) == (&None, None, None) {
                return Err(Failure::new(Kind::Usage, "nothing to change was said")
                    .next("say --name, --sql true|false or --ui true|false"));
            }
            let change = AllowlistChange { name: line.name, ui: line.ui, sql: line.sql };
            let changed = cloud.api.edit_allowlist_entry(cluster.id, line.range, &change).await?;
            printer.result(&changed, || listed(std::slice::from_ref(&changed)))
        }
        AllowlistCommand::Remove { cluster, range } => {
            let cluster = cloud.cluster(&cluster).await?;
            let removed = cloud.api.delete_allowlist_entry(cluster.id, range).await?;
            printer.result(&removed, || format!("{range} may no longer connect to {}", cluster.name))
        }
    }
}

fn listed(entries: &[AllowlistEntry]) -> String {
    let mark = |is_allowed| if is_allowed { "yes" } else { "no" }.to_owned();
    let row = |entry: &AllowlistEntry| {
        let range = format!("{}/{}", entry.cidr_ip, entry.cidr_mask);
        [range, entry.name.clone(), mark(entry.sql), mark(entry.ui)]
    };
    table(["RANGE", "NAME", "SQL", "UI"], entries.iter().map(row))
}
