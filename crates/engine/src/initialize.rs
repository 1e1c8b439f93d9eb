//! A new data directory: `initdb` in the jail, then the roles and databases that every cluster has.

use std::time::Duration;

use model::{ADMIN_ROLE, DEFAULT_DATABASE, INTERNAL_ROLE};

use crate::administration::ensured_admin;
use crate::jail::{Jail, Purpose};
use crate::postgres::Postgres;
use crate::process::{run, run_with};
use crate::{Error, own_database};

/// First major version in which CREATEROLE gives power only over roles that one has made or been given.
const SAFE_CREATEROLE_MAJOR: u32 = 16;

/// For `initdb`, which writes some forty megabytes.
const INITDB_MAX: Duration = Duration::from_secs(60);
/// PostgreSQL's single-user mode, which ends at the first error. Nothing of it has to be on the disk.
const SINGLE: &[&str] =
    &["--single", "-j", "-D", "/volume/pg", "-c", "exit_on_error=on", "-c", "fsync=off", "postgres"];
/// For that to copy a database.
const FURNISH_MAX: Duration = Duration::from_secs(30);
/// For `pg_resetwal`, which writes one segment.
const RESET_LOG_MAX: Duration = Duration::from_secs(30);

/// How `initdb` is told to work. The internal superuser has no password; it signs in by being the node. What is written is not on the
/// disk yet: that is for the caller, who does it for all files at once instead of for each.
pub(crate) const INITDB: &[&str] = &[
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

/// Runs `initdb`.
pub(crate) fn initdb(jail: &Jail<'_>) -> Result<(), Error> {
    run("initdb", jail.command(Purpose::Initialize, "initdb", INITDB)?, INITDB_MAX)
}

/// Begins the write-ahead log of files anew that were renamed.
pub(crate) fn reset_log(jail: &Jail<'_>) -> Result<(), Error> {
    let command = jail.command(Purpose::Run, "pg_resetwal", &["-D", "/volume/pg"])?;
    run("pg_resetwal", command, RESET_LOG_MAX)
}

/// What makes the roles and the databases that every cluster starts with: statements, each for itself.
pub(crate) fn furnishing(postgres: &Postgres) -> String {
    let mut all = Vec::new();
    if postgres.major < SAFE_CREATEROLE_MAJOR {
        // Here whoever may create roles may also grant any role but a superuser's. These reach files and
        // programs, or read every catalog, verifiers included; so they must not exist at all.
        const TOO_MUCH: &str = "('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files', 'pg_read_all_data')";
        let too_much = format!("(SELECT oid FROM pg_authid WHERE rolname IN {TOO_MUCH})");
        all.extend([
            "SET allow_system_table_mods = on".to_owned(),
            format!("DELETE FROM pg_auth_members WHERE roleid IN {too_much}"),
            format!("DELETE FROM pg_authid WHERE rolname IN {TOO_MUCH}"),
            "RESET allow_system_table_mods".to_owned(),
        ]);
    }
    all.push(ensured_admin());
    all.extend(own_database::made());
    all.push("REVOKE ALL ON DATABASE template1 FROM PUBLIC".to_owned());
    // Which `createdb`, graphical clients and test runners open first.
    all.push(format!("ALTER DATABASE postgres OWNER TO {ADMIN_ROLE}"));
    all.push(format!("CREATE DATABASE {DEFAULT_DATABASE} OWNER {ADMIN_ROLE}"));
    // What ends a statement with the option -j (PostgreSQL's manual, postgres).
    all.into_iter().map(|statement| statement + ";\n\n").collect()
}

/// Makes what every cluster starts with in files on which no engine runs.
pub(crate) fn furnish_files(jail: &Jail<'_>) -> Result<(), Error> {
    let command = jail.command(Purpose::Run, "postgres", SINGLE)?;
    let said = furnishing(jail.postgres);
    run_with("postgres --single", command, said.as_bytes(), FURNISH_MAX).map(drop)
}
