//! `chitin client-ca`: show, set, delete.

use api::ClientAuthority;

use crate::cloud::Cloud;
use crate::command::ClientCaCommand;
use crate::failure::Failure;
use crate::output::{self, Printer, table};
use crate::text;

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: ClientCaCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        ClientCaCommand::Show(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            if one.pem {
                let bundle = cloud.api.client_ca(cluster.id).await?;
                if bundle.x509_pem_cert.is_empty() && !printer.is_json() {
                    output::say(&none(&cluster.name));
                    return Ok(());
                }
                return printer.result(&bundle, || text::shown(&bundle.x509_pem_cert));
            }
            let found = cloud.api.client_authorities(cluster.id).await?.authorities;
            if found.is_empty() && !printer.is_json() {
                output::say(&none(&cluster.name));
                return Ok(());
            }
            printer.result(&found, || listed(&found))
        }
        ClientCaCommand::Set(bundle) => {
            let pem = text::read(&bundle.file, model::SIGN_IN_TEXT_BYTES_MAX)?;
            let cluster = cloud.cluster(&bundle.cluster).await?;
            let set = cloud.api.set_client_ca(cluster.id, pem).await?;
            printer.result(&set, || {
                format!("{} accepts client certificates of these authorities from now on", cluster.name)
            })
        }
        ClientCaCommand::Delete(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let deleted = cloud.api.delete_client_ca(cluster.id).await?;
            printer.result(&deleted, || format!("{} accepts no client certificates any more", cluster.name))
        }
    }
}

fn none(name: &str) -> String {
    format!("{name} accepts no client certificates; say whose it shall: chitin client-ca set {name} ca.pem")
}

fn listed(authorities: &[ClientAuthority]) -> String {
    let rows = authorities
        .iter()
        .map(|one| [one.subject.clone(), one.not_after.date().to_string(), one.sha256.clone()]);
    table(["AUTHORITY", "VALID UNTIL", "SHA-256"], rows)
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn an_authority_is_shown_with_what_tells_it_apart() {
        let one = ClientAuthority {
            subject: "CN=Corp Root".to_owned(),
            not_after: OffsetDateTime::UNIX_EPOCH,
            sha256: "ab".repeat(32),
        };
        let text = listed(&[one]);
        for part in ["CN=Corp Root", "1970-01-01", "abab"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
