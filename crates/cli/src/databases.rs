//! `chitin database`: create, list, rename, delete.

use crate::cloud::Cloud;
use crate::command::DatabaseCommand;
use crate::confirm;
use crate::failure::Failure;
use crate::output::{Printer, table};

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: DatabaseCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        DatabaseCommand::Create(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let made = cloud.api.create_database(cluster.id, &one.database).await?;
            printer.result(&made, || format!("created {}", made.name))
        }
        DatabaseCommand::List(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let databases = cloud.api.databases(cluster.id).await?;
            printer.result(&databases, || {
                let count = |count: Option<i64>| count.map(|count| count.to_string()).unwrap_or_default();
                let rows =
                    databases.iter().map(|database| [database.name.clone(), count(database.table_count)]);
                table(["DATABASE", "TABLES"], rows)
            })
        }
        DatabaseCommand::Rename { cluster, database, new_name } => {
            let cluster = cloud.cluster(&cluster).await?;
            let renamed = cloud.api.rename_database(cluster.id, &database, &new_name).await?;
            printer.result(&renamed, || format!("{database} is now {}", renamed.name))
        }
        DatabaseCommand::Delete { cluster, database, yes } => {
            let cluster = cloud.cluster(&cluster).await?;
            confirm::destruction("database", &database, yes)?;
            let deleted = cloud.api.delete_database(cluster.id, &database).await?;
            printer.result(&deleted, || format!("deleted {database}"))
        }
    }
}
