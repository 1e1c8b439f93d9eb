//! `chitin crl`: show, set, delete.

use std::fmt::Write as _;

use api::{Crls, SetCrls};
use time::OffsetDateTime;

use crate::cloud::Cloud;
use crate::command::{CrlCommand, CrlSet};
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
                if one.pem { text::shown(&crls.pem) } else { listed(&crls, OffsetDateTime::now_utc()) }
            })
        }
        CrlCommand::Set(CrlSet { bundle, accept_without_list }) => {
            let pem = text::read(&bundle.file, model::CRL_TEXT_BYTES_MAX)?;
            let cluster = cloud.cluster(&bundle.cluster).await?;
            let crls = cloud.api.set_crls(cluster.id, SetCrls { pem, accept_without_list }).await?;
            printer.result(&crls, || listed(&crls, OffsetDateTime::now_utc()))
        }
        CrlCommand::Delete(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let deleted = cloud.api.delete_crls(cluster.id).await?;
            printer.result(&deleted, || format!("{} has no revocation lists any more", cluster.name))
        }
    }
}

fn listed(crls: &Crls, now: OffsetDateTime) -> String {
    let rows = crls.lists.iter().map(|list| {
        let next = instant(list.next_update);
        let next = if list.next_update <= now { format!("{next} (PASSED: nobody is let in)") } else { next };
        [list.issuer.clone(), list.revoked.to_string(), instant(list.this_update), next]
    });
    let mut shown = table(["AUTHORITY", "REVOKED", "MADE", "HOLDS UNTIL"], rows);
    for authority in &crls.authorities_without_list {
        let comes_of_it = if crls.accept_without_list {
            "whom it certified is let in (--accept-without-list)"
        } else {
            "NOBODY whom it certified is let in; set a list of it too, or permit that with --accept-without-list"
        };
        // A text takes whatever is written to it.
        let _ = write!(shown, "\n{authority} has no list: {comes_of_it}");
    }
    shown
}

fn instant(at: OffsetDateTime) -> String {
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use api::Crl;
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
        let of = |accept_without_list, without: &[&str]| Crls {
            pem: String::new(),
            lists: vec![list.clone()],
            accept_without_list,
            authorities_without_list: without.iter().map(|&name| name.to_owned()).collect(),
        };
        let fresh = listed(&of(false, &[]), made);
        assert!(fresh.contains("1970-01-02T00:00:00Z") && !fresh.contains("PASSED"), "{fresh}");
        let stale = listed(&of(false, &[]), made + Duration::DAY);
        assert!(stale.contains("PASSED"), "{stale}");
        let without = listed(&of(false, &["CN=Other"]), made);
        assert!(without.contains("CN=Other has no list: NOBODY"), "{without}");
        assert!(listed(&of(true, &["CN=Other"]), made).contains("is let in"));
    }
}
