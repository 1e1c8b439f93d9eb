//! A new cluster's data directory: `initdb` in the jail, then the roles and databases that every cluster has.

use std::time::Duration;

use model::{ADMIN_ROLE, DEFAULT_DATABASE, INTERNAL_ROLE};

use crate::Error;
use crate::administration::Administration;
use crate::jail::{Jail, Purpose};
use crate::postgres::Postgres;
use crate::process::run;

/// First major version in which CREATEROLE gives power only over roles that one has made or been given.
const SAFE_CREATEROLE_MAJOR: u32 = 16;

/// For `initdb`, which writes some forty megabytes.
const INITDB_MAX: Duration = Duration::from_secs(120);

/// Runs `initdb`. The internal superuser has no password; it signs in by being the node. What it writes is not on the disk
/// yet: that is for the caller, who does it for all files at once instead of for each.
pub(crate) fn initdb(jail: &Jail<'_>) -> Result<(), Error> {
    let arguments = [
        "-D",
        "/volume/pg",
        "-U",
        INTERNAL_ROLE,
        "--auth=peer",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--data-checksums",
        "--no-instructions",
        "--no-sync",
    ];
    run("initdb", jail.command(Purpose::Initialize, "initdb", &arguments)?, INITDB_MAX)
}

/// Makes what every cluster starts with. Safe to repeat.
pub(crate) async fn furnish(administration: &Administration, postgres: &Postgres) -> Result<(), Error> {
    if postgres.major < SAFE_CREATEROLE_MAJOR {
        // Here whoever may create roles may also grant any role but a superuser's. These reach files and
        // programs, or read every catalog, verifiers included; so they must not exist at all.
        administration
            .batch(
                "SET allow_system_table_mods = on;
                 DELETE FROM pg_auth_members WHERE roleid IN (SELECT oid FROM pg_authid WHERE rolname IN
                   ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files', 'pg_read_all_data'));
                 DELETE FROM pg_authid WHERE rolname IN
                   ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files', 'pg_read_all_data');
                 RESET allow_system_table_mods",
            )
            .await?;
    }
    administration.ensure_admin().await?;
    administration.batch("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC").await?;
    if !administration.has_database(DEFAULT_DATABASE).await? {
        administration.batch(&format!("CREATE DATABASE {DEFAULT_DATABASE} OWNER {ADMIN_ROLE}")).await?;
    }
    administration.checkpoint().await
}
