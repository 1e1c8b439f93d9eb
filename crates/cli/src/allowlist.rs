//! `chitin allowlist`: list, add, edit, remove, default.

use api::{AllowlistChange, AllowlistEntry, Organization};
use model::AddressRange;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cloud::Cloud;
use crate::command::{AllowlistCommand, AllowlistStart, Expiry};
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
            let range = range(cloud, line.range).await?;
            let (expires_at, _) = end(line.expires);
            let entry = AllowlistEntry {
                cidr_ip: range.address().to_string(),
                cidr_mask: range.prefix_bits(),
                name: line.name.unwrap_or_default(),
                ui: line.ui.unwrap_or(false),
                sql: line.sql.unwrap_or(true),
                expires_at,
            };
            let made = cloud.api.add_allowlist_entry(cluster.id, &entry).await?;
            warn_of_everybody(range, &made, &cluster.name);
            printer.result(&made, || match made.expires_at {
                Some(end) => format!("{range} may connect to {} until {}", cluster.name, moment(end)),
                None => format!("{range} may connect to {}", cluster.name),
            })
        }
        AllowlistCommand::Edit(line) => {
            let cluster = cloud.cluster(&line.cluster).await?;
            if (&line.name, line.sql, line.ui, line.expires) == (&None, None, None, None) {
                return Err(Failure::new(Kind::Usage, "nothing to change was said")
                    .next("say --name, --sql true|false, --ui true|false or --expires WHEN"));
            }
            let range = range(cloud, line.range).await?;
            let (expires_at, never_expires) = end(line.expires);
            let change =
                AllowlistChange { name: line.name, ui: line.ui, sql: line.sql, expires_at, never_expires };
            let changed = cloud.api.edit_allowlist_entry(cluster.id, range, &change).await?;
            warn_of_everybody(range, &changed, &cluster.name);
            printer.result(&changed, || listed(std::slice::from_ref(&changed)))
        }
        AllowlistCommand::Remove { cluster, range: wanted, current: _ } => {
            let cluster = cloud.cluster(&cluster).await?;
            let range = range(cloud, wanted).await?;
            let removed = cloud.api.delete_allowlist_entry(cluster.id, range).await?;
            printer.result(&removed, || format!("{range} may no longer connect to {}", cluster.name))
        }
        AllowlistCommand::Default { start } => {
            let organization = match start {
                None => cloud.api.organization().await?,
                Some(start) => {
                    let allowlist_starts_closed = start == AllowlistStart::Closed;
                    cloud.api.set_organization(Organization { allowlist_starts_closed }).await?
                }
            };
            printer.result(&organization, || {
                if organization.allowlist_starts_closed {
                    "closed: new clusters of every plan begin with an empty allowlist".to_owned()
                } else {
                    "by-plan: new serverless clusters are open to every address, dedicated ones to nobody"
                        .to_owned()
                }
            })
        }
    }
}

/// The range that was named, or the address that this machine has for the cloud.
async fn range(cloud: &Cloud, named: Option<AddressRange>) -> Result<AddressRange, Failure> {
    if let Some(range) = named {
        return Ok(range);
    }
    let address = cloud.api.whoami().await?.address;
    address.to_string().parse().map_err(|error| Failure::new(Kind::Failed, format!("{error}")))
}

/// When a line ends, and whether it shall no longer end.
fn end(expires: Option<Expiry>) -> (Option<OffsetDateTime>, bool) {
    match expires {
        None => (None, false),
        Some(Expiry::Never) => (None, true),
        Some(Expiry::At(moment)) => (Some(moment), false),
        Some(Expiry::After(lasts)) => (Some(OffsetDateTime::now_utc() + lasts), false),
    }
}

fn warn_of_everybody(range: AddressRange, entry: &AllowlistEntry, cluster: &str) {
    if range.prefix_bits() == 0 && entry.sql {
        output::say(&format!(
            "warning: {range} is every address: whoever finds {cluster} may try to sign in (passwords and TLS still \
             protect it)\n  to close it again: chitin allowlist remove {cluster} {range}"
        ));
    }
}

fn moment(moment: OffsetDateTime) -> String {
    moment.replace_nanosecond(0).unwrap_or(moment).format(&Rfc3339).unwrap_or_default()
}

fn listed(entries: &[AllowlistEntry]) -> String {
    let mark = |is_allowed| if is_allowed { "yes" } else { "no" }.to_owned();
    let now = OffsetDateTime::now_utc();
    let row = |entry: &AllowlistEntry| {
        let range = format!("{}/{}", entry.cidr_ip, entry.cidr_mask);
        let until = match entry.expires_at {
            None => String::new(),
            Some(end) if end <= now => "expired".to_owned(),
            Some(end) => moment(end),
        };
        [range, entry.name.clone(), mark(entry.sql), mark(entry.ui), until]
    };
    table(["RANGE", "NAME", "SQL", "UI", "UNTIL"], entries.iter().map(row))
}
