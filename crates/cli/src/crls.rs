//! `chitin crl`: show, set, delete.

use api::Crl;
use time::OffsetDateTime;

use crate::cloud::Cloud;
use crate::command::CrlCommand;
use crate::failure::Failure;
use crate::output::{self, Printer, table};
use crate::text;

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: CrlCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        CrlCommand::Show(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let crls = cloud.api.crls(cluster.id).await?;
            if crls.lists.is_empty() && !printer.is_json() {
                let name = &cluster.name;
                output::say(&format!(
                    "{name} has no revocation lists; add some: chitin crl set {name} crl.pem"
                ));
                return Ok(());
            }
            printer.result(&crls, || {
                if one.pem { text::shown(&crls.pem) } else { listed(&crls.lists, OffsetDateTime::now_utc()) }
            })
        }
        CrlCommand::Set(bundle) => {
            let pem = text::read(&bundle.file, model::CRL_TEXT_BYTES_MAX)?;
            let cluster = cloud.cluster(&bundle.cluster).await?;
            let crls = cloud.api.set_crls(cluster.id, pem).await?;
            printer.result(&crls, || listed(&crls.lists, OffsetDateTime::now_utc()))
        }
        CrlCommand::Delete(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let deleted = cloud.api.delete_crls(cluster.id).await?;
            printer.result(&deleted, || format!("{} has no revocation lists any more", cluster.name))
        }
    }
}

fn listed(lists: &[Crl], now: OffsetDateTime) -> String {
    let rows = lists.iter().map(|list| {
        let next = instant(list.next_update);
        let next = if list.next_update <= now { format!("{next} (PASSED: nobody is let in)") } else { next };
        [list.issuer.clone(), list.revoked.to_string(), instant(list.this_update), next]
    });
    table(["AUTHORITY", "REVOKED", "MADE", "HOLDS UNTIL"], rows)
}

fn instant(at: OffsetDateTime) -> String {
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    #[test]
    fn a_list_that_no_longer_holds_stands_out() {
        let made = OffsetDateTime::UNIX_EPOCH;
        let list = Crl {
            issuer: "CN=Corp Root".to_owned(),
            this_update: made,
            next_update: made + Duration::DAY,
            revoked: 3,
        };
        let fresh = listed(std::slice::from_ref(&list), made);
        assert!(fresh.contains("1970-01-02T00:00:00Z") && !fresh.contains("PASSED"), "{fresh}");
        let stale = listed(std::slice::from_ref(&list), made + Duration::DAY);
        assert!(stale.contains("PASSED"), "{stale}");
    }
}
