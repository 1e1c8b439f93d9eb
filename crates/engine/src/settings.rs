//! An engine's configuration files: sized to the plan, closed to everybody but the node.

use std::fmt::Write as _;

use model::{Cluster, ClusterId, INTERNAL_ROLE, Plan, StorageLimit};

use crate::Error;
use crate::inside::Inside;
use crate::jail::{NODE, RUN, VOLUME};
use crate::places::{Owner, is_root};
use crate::postgres::Postgres;

/// What administration and reserve need beside the cluster's sessions, and sessions whose client has gone and whose process has not
/// noticed yet.
const CONNECTIONS_MORE: u32 = 20;
const CONNECTIONS_MORE_PART: u32 = 4;
/// Locks that all sessions together can hold at least; PostgreSQL alone gives 6,400. A dump takes one for each table.
const LOCKS_MIN: u32 = 16_384;
/// PostgreSQL's own.
const LOCKS_PER_CONNECTION_MIN: u32 = 64;
/// Left for the internal superuser when tenants have taken all others.
const CONNECTIONS_RESERVED: u32 = 10;
/// Subscriptions of one engine. Until PostgreSQL 17 they are counted as replication slots are, which nobody can make here.
const ORIGINS_MAX: u32 = 10;
/// Twice what PostgreSQL takes at least with segments of 16 MiB.
const WAL_MIB_MIN: u64 = 64;
/// Longest name of a cluster that PostgreSQL takes (`NAMEDATALEN` less one).
const CLUSTER_NAME_BYTES_MAX: usize = 63;
/// First major version whose `pg_ident.conf` knows `all`.
const IDENT_ALL_MAJOR: u32 = 16;

/// What the write-ahead log may grow to between checkpoints, in MiB. PostgreSQL takes it as an aim: while a checkpoint waits for
/// a slow disk more is written, so it is a quarter of what there is.
fn wal_mib(limit: StorageLimit, of_plan: u64) -> u64 {
    (limit.wal_bytes() / 4 / (1 << 20)).clamp(WAL_MIB_MIN, of_plan)
}

/// What the write-ahead log of an engine may grow to that aims at this, in bytes: while a checkpoint is under way it is exceeded.
pub(crate) fn log_bytes_max(cluster: &Cluster) -> u64 {
    2 * (wal_mib(cluster.storage(), wal_mib_of(cluster.plan)) << 20)
}

fn wal_mib_of(plan: Plan) -> u64 {
    match plan {
        Plan::Serverless => 512,
        Plan::Dedicated => 2_048,
    }
}

/// Writes `postgresql.conf` and `pg_hba.conf` anew. What may subscribe elsewhere keeps track of how far it came.
pub(crate) fn write(
    data: &Inside,
    postgres: &Postgres,
    cluster: &Cluster,
    owner: Owner,
) -> Result<(), Error> {
    let origins = if cluster.egress.engine { ORIGINS_MAX } else { 0 };
    let memory = cluster.resources().memory_bytes.unwrap_or(u64::MAX).min(memory_bytes());
    let checks_passwords = postgres.has_library("passwordcheck");
    let text = postgresql_conf(cluster.plan, cluster.storage(), memory, checks_passwords, origins)
        + &process_titles(cluster.id)
        + &connections(cluster.connections_max());
    data.write("postgresql.conf", &text, owner)?;
    // Whatever ALTER SYSTEM once wrote does not count: only the superuser could, and nobody else configures engines.
    data.write("postgresql.auto.conf", "", owner)?;
    data.write("pg_hba.conf", "local all all peer map=chitin\n", owner)
}

/// Writes the identity map: which SQL roles the node may open sessions as. True if every role is in it.
pub(crate) fn write_identities<'a>(
    data: &Inside,
    postgres: &Postgres,
    roles: impl Iterator<Item = &'a str>,
    owner: Owner,
) -> Result<(), Error> {
    let mut map = format!("chitin {NODE} {INTERNAL_ROLE}\n");
    if postgres.major >= IDENT_ALL_MAJOR {
        map = format!("chitin {NODE} all\n");
    } else {
        for role in roles {
            // Infallible: the target is a string.
            let _ = writeln!(map, "chitin {NODE} \"{}\"", role.replace('"', "\"\""));
        }
    }
    data.write("pg_ident.conf", &map, owner)
}

/// Whether sessions of every role are admitted without naming each.
pub(crate) fn admits_all(postgres: &Postgres) -> bool {
    postgres.major >= IDENT_ALL_MAJOR
}

fn connections(sessions: u32) -> String {
    let all = sessions + sessions / CONNECTIONS_MORE_PART + CONNECTIONS_MORE;
    let locks = LOCKS_PER_CONNECTION_MIN.max(LOCKS_MIN.div_ceil(all));
    format!(
        "max_connections = {all}\nmax_locks_per_transaction = {locks}\nmax_pred_locks_per_transaction = {locks}\n"
    )
}

fn postgresql_conf(
    plan: Plan,
    limit: StorageLimit,
    memory_bytes: u64,
    checks_passwords: bool,
    origins: u32,
) -> String {
    let megabyte = 1 << 20;
    let (shared, work, maintenance) = match plan {
        Plan::Serverless => (32, 4, 64),
        // A quarter of its memory, as PostgreSQL's manual advises (20.4.1).
        Plan::Dedicated => ((memory_bytes / megabyte / 4).clamp(128, 8_192), 16, 256),
    };
    let wal = wal_mib(limit, wal_mib_of(plan));
    let temp = limit.temp_kib_per_session();
    // Its rules for passwords in clear are PostgreSQL's own: eight characters, letters and others, not the user's name.
    let libraries = if checks_passwords { "passwordcheck" } else { "" };
    let jit = if plan == Plan::Dedicated { "on" } else { "off" };
    // The node has a user of its own and comes through a folder that is open to the engine alone.
    let socket_mode = if is_root() { "0777" } else { "0700" };
    format!(
        "# Written by Chitin at every start; changes are lost.
listen_addresses = ''
unix_socket_directories = '{RUN}'
unix_socket_permissions = {socket_mode}
superuser_reserved_connections = {CONNECTIONS_RESERVED}
password_encryption = 'scram-sha-256'
shared_preload_libraries = '{libraries}'
ssl = off
shared_buffers = '{shared}MB'
work_mem = '{work}MB'
maintenance_work_mem = '{maintenance}MB'
max_wal_size = '{wal}MB'
min_wal_size = '32MB'
# Nobody makes replication slots here; one that was made all the same must not fill the disk.
max_slot_wal_keep_size = '{wal}MB'
wal_keep_size = 0
temp_file_limit = '{temp}kB'
wal_level = replica
max_wal_senders = 0
max_replication_slots = {origins}
wal_compression = on
fsync = on
full_page_writes = on
jit = {jit}
huge_pages = off
max_prepared_transactions = 0
client_connection_check_interval = '10s'
timezone = 'UTC'
log_timezone = 'UTC'
default_text_search_config = 'pg_catalog.english'
logging_collector = on
log_directory = '{VOLUME}/log'
log_filename = 'postgresql-%a.log'
log_truncate_on_rotation = on
log_rotation_age = '1d'
log_rotation_size = 0
log_file_mode = 0600
log_line_prefix = '%m [%p] %u@%d '
# A statement may hold a password, so none is ever logged.
log_statement = none
log_min_error_statement = panic
log_min_duration_statement = -1
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
"
    )
}

/// Every user of the machine reads the titles of processes. Without updates they show no statement, but each process writes one
/// when it begins: `postgres: CLUSTER_NAME: USER DATABASE`, into the place of its first arguments and variables. A name that fills
/// that place leaves none for the rest; how long it is, is in [`crate::launch`].
fn process_titles(id: ClusterId) -> String {
    let name = format!("{:.<CLUSTER_NAME_BYTES_MAX$}", format!("cluster {id} of Chitin no names"));
    format!("update_process_title = off\ncluster_name = '{name}'\n")
}

pub(crate) fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    // The type differs between machines of 32 and 64 bits.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "a no-op on 64 bits only")]
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(gib: u64) -> StorageLimit {
        StorageLimit::from_gib(gib).unwrap()
    }

    #[test]
    fn the_log_aims_at_a_quarter_of_its_part_and_a_session_s_temporary_files_have_a_limit() {
        let text = |gib, plan| postgresql_conf(plan, storage(gib), 4 << 30, true, 0);
        for (gib, plan, line) in [
            (1, Plan::Serverless, "max_wal_size = '64MB'"),
            (10, Plan::Serverless, "max_wal_size = '320MB'"),
            (1_000, Plan::Serverless, "max_wal_size = '512MB'"),
            (1_000, Plan::Dedicated, "max_wal_size = '2048MB'"),
            (1, Plan::Serverless, "temp_file_limit = '196608kB'"),
        ] {
            assert!(text(gib, plan).lines().any(|found| found == line), "{gib} GiB: {line}");
        }
    }

    #[test]
    fn few_sessions_have_as_many_locks_as_a_dump_needs() {
        for (sessions, all, locks) in [(10, 32, 512), (200, 270, 64), (2_000, 2_520, 64)] {
            let wanted = format!(
                "max_connections = {all}\nmax_locks_per_transaction = {locks}\nmax_pred_locks_per_transaction = {locks}\n"
            );
            assert_eq!(connections(sessions), wanted);
            assert!(all * locks >= LOCKS_MIN);
        }
    }

    #[test]
    fn nothing_listens_on_a_network_and_no_statement_is_logged() {
        for plan in [Plan::Serverless, Plan::Dedicated] {
            let text = postgresql_conf(plan, storage(10), 24 << 30, true, 0);
            for line in ["listen_addresses = ''", "log_min_error_statement = panic", "fsync = on"] {
                assert!(text.lines().any(|found| found == line), "{line}");
            }
        }
        assert!(
            postgresql_conf(Plan::Dedicated, storage(10), 4 << 30, true, 0)
                .contains("shared_buffers = '1024MB'")
        );
    }

    #[test]
    fn a_title_has_no_place_for_more_than_the_cluster_s_name() {
        let text = process_titles(ClusterId::random());
        let name = text.lines().find_map(|line| line.strip_prefix("cluster_name = '")?.strip_suffix('\''));
        assert_eq!(name.unwrap().len(), CLUSTER_NAME_BYTES_MAX);
        let title = "postgres: ".len() + CLUSTER_NAME_BYTES_MAX + ": ".len();
        assert!(crate::launch::title_bytes(&["-D/volume/pg"]) <= title);
    }

    #[test]
    fn a_role_s_name_cannot_leave_its_quotes() {
        let folder = tempfile::tempdir().unwrap();
        let data = Inside::open(folder.path(), ".").unwrap();
        let mut postgres = crate::postgres::tests::of_machine();
        postgres.major = 15;
        let owner =
            Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        write_identities(&data, &postgres, ["a\" chitin"].into_iter(), owner).unwrap();
        let text = data.read("pg_ident.conf").unwrap();
        assert_eq!(text, "chitin chitin-node chitin\nchitin chitin-node \"a\"\" chitin\"\n");
        postgres.major = 16;
        write_identities(&data, &postgres, std::iter::empty(), owner).unwrap();
        let text = data.read("pg_ident.conf").unwrap();
        assert_eq!(text, "chitin chitin-node all\n");
    }
}
