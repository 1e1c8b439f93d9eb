//! `chitin identity-map`: show, set.

use crate::cloud::Cloud;
use crate::command::IdentityMapCommand;
use crate::failure::Failure;
use crate::output::{self, Printer};
use crate::text;

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: IdentityMapCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        IdentityMapCommand::Show(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let map = cloud.api.identity_map(cluster.id).await?;
            if map.text.is_empty() && !printer.is_json() {
                output::say(&format!(
                    "{} has no identity map: every name means the SQL user of the same name",
                    cluster.name
                ));
                return Ok(());
            }
            printer.result(&map, || text::shown(&map.text))
        }
        IdentityMapCommand::Set { cluster, file, .. } => {
            let lines = match &file {
                Some(file) => text::read(file, model::SIGN_IN_TEXT_BYTES_MAX)?,
                None => String::new(),
            };
            let cluster = cloud.cluster(&cluster).await?;
            let map = cloud.api.set_identity_map(cluster.id, lines).await?;
            printer.result(&map, || {
                if map.text.is_empty() {
                    format!("{} has no identity map any more", cluster.name)
                } else {
                    format!("new connections to {} use this identity map from now on", cluster.name)
                }
            })
        }
    }
}
