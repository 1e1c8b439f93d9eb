//! Our own sessions in an engine: nobody sees what they say, and nobody keeps them from what they must do.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use common::{Place, VERIFIER, cluster, maria, place, session};
use engine::{Error, User};
use model::{Encryption, RoleName};

/// Settings of the context `user` that choose plans, sizes and formats: no statement of ours means or does something else
/// by them. By their beginnings.
const HARMLESS: &[&str] = &[
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "application_name",
    "backend_flush_after",
    "client_encoding",
    "commit_siblings",
    "constraint_exclusion",
    "cpu_",
    "cursor_tuple_fraction",
    "debug_logical_replication_streaming",
    "debug_pretty_print",
    "default_statistics_target",
    "default_text_search_config",
    "default_toast_compression",
    "effective_",
    "enable_",
    "escape_string_warning",
    "extra_float_digits",
    "file_copy_method",
    "from_collapse_limit",
    "geqo",
    "gin_",
    "hash_mem_multiplier",
    "icu_validation_level",
    "io_",
    "jit",
    "join_collapse_limit",
    "lc_",
    "logical_decoding_",
    "maintenance_",
    "max_parallel_",
    "md5_password_warnings",
    "min_parallel_",
    "parallel_",
    // We send verifiers.
    "password_encryption",
    "scram_iterations",
    "plan_cache_mode",
    "quote_all_identifiers",
    "random_page_cost",
    "recursive_worktable_factor",
    "seq_page_cost",
    "stats_fetch_consistency",
    "synchronize_seqscans",
    "tcp_",
    "temp_buffers",
    "timezone_abbreviations",
    "trace_",
    // Of the transaction that is open, and set anew with each.
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
    "vacuum_",
    "wal_",
    "work_mem",
    "xml",
];

fn name(text: &str) -> RoleName {
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_setting_that_a_tenant_can_give_is_pinned_or_means_nothing_to_us() {
    let Place { host, folder: _folder } = place(Some(Encryption::None)).await;
    let cluster = cluster(30);
    host.create(&cluster).await.unwrap();
    let administration = host.administration(cluster.id).await.unwrap();
    maria(&administration).await;
    let maria = session(&host, cluster.id, "maria", "defaultdb").await;
    let rows = maria.query("SELECT name FROM pg_settings WHERE context = 'user'", &[]).await.unwrap();
    let pinned = engine::pinned_settings();
    let open: Vec<String> = rows
        .iter()
        .map(|row| row.get(0))
        .filter(|name: &String| !HARMLESS.iter().any(|harmless| name.starts_with(harmless)))
        .filter(|name| !pinned.contains(&name.as_str()))
        .collect();
    assert_eq!(open, Vec::<String>::new(), "these could steer or show our sessions");
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_what_our_own_sessions_say() {
    let Place { host, folder: _folder } = place(Some(Encryption::None)).await;
    let cluster = cluster(31);
    host.create(&cluster).await.unwrap();
    let administration = host.administration(cluster.id).await.unwrap();
    maria(&administration).await;
    let maria = session(&host, cluster.id, "maria", "defaultdb").await;
    administration.create_user(&name("paula"), VERIFIER).await.unwrap();
    // The last statement of a session is shown as long as the session is open.
    administration.set_verifier(&name("paula"), VERIFIER).await.unwrap();
    let shown =
        "SELECT count(*), count(*) FILTER (WHERE query <> '') FROM pg_stat_activity WHERE usename = $1";
    let seen = maria.query_one(shown, &[&"chitin"]).await.unwrap();
    assert!(seen.get::<_, i64>(0) > 0, "the session is there");
    assert_eq!(seen.get::<_, i64>(1), 0, "a statement of ours is shown");
    let own = maria.query_one(shown, &[&"maria"]).await.unwrap();
    assert!(own.get::<_, i64>(1) > 0, "she would see it: she sees other statements");
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_cannot_be_removed_whole_is_out_and_stays_in_the_list() {
    let Place { host, folder: _folder } = place(Some(Encryption::None)).await;
    let cluster = cluster(32);
    host.create(&cluster).await.unwrap();
    let administration = host.administration(cluster.id).await.unwrap();
    maria(&administration).await;
    administration.create_user(&name("paula"), VERIFIER).await.unwrap();
    administration.create_database(&"shop".parse().unwrap()).await.unwrap();
    let maria = session(&host, cluster.id, "maria", "defaultdb").await;
    maria.batch_execute("CREATE ROLE readers; CREATE ROLE idle VALID UNTIL '-infinity'").await.unwrap();
    let paula = session(&host, cluster.id, "paula", "shop").await;
    paula.batch_execute("CREATE TABLE hers (x int)").await.unwrap();
    // Where nobody gets in, nothing can be taken from her.
    maria.batch_execute("ALTER DATABASE shop ALLOW_CONNECTIONS false").await.unwrap();

    let refused = administration.drop_user(&name("paula")).await.unwrap_err();
    let Error::Refused(text) = &refused else { panic!("{refused:?}") };
    assert!(text.contains("can no longer sign in") && text.contains("shop"), "{text}");
    assert!(paula.batch_execute("SELECT 1").await.is_err(), "her session ended");
    let user = |name: &str, is_leaving| User { name: name.to_owned(), is_leaving };
    let users = administration.users().await.unwrap();
    assert_eq!(users, [user("maria", false), user("paula", true)], "roles that nobody removes are no users");
    let left = administration.role(&name("paula")).await.unwrap().unwrap().role;
    assert!(!left.can_login && left.verifier.is_none());
    let again = administration.set_verifier(&name("paula"), VERIFIER).await.unwrap_err();
    assert!(again.to_string().contains("not finished"), "{again}");

    maria.batch_execute("ALTER DATABASE shop ALLOW_CONNECTIONS true").await.unwrap();
    administration.drop_user(&name("paula")).await.unwrap();
    assert_eq!(administration.users().await.unwrap(), [user("maria", false)]);
    assert!(matches!(administration.drop_user(&name("paula")).await, Err(Error::NotFound { .. })));
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_keeps_a_user_by_holding_its_role() {
    let Place { host, folder: _folder } = place(Some(Encryption::None)).await;
    let cluster = cluster(35);
    host.create(&cluster).await.unwrap();
    let administration = host.administration(cluster.id).await.unwrap();
    maria(&administration).await;
    for user in ["paula", "otto"] {
        administration.create_user(&name(user), VERIFIER).await.unwrap();
    }
    let session = async |user: &str| session(&host, cluster.id, user, "defaultdb").await;
    let verifier = async |user: &str| administration.role(&name(user)).await.unwrap().unwrap().role.verifier;
    let other = VERIFIER.replace("$4096:", "$4097:");

    // Up to PostgreSQL 15 everybody with CREATEROLE can; later whoever has ADMIN OPTION.
    let superuser = common::attach(&host, cluster.id, "chitin", "postgres").await.unwrap();
    let version: String = superuser.query_one("SHOW server_version_num", &[]).await.unwrap().get(0);
    if version.parse::<u32>().unwrap() >= 160_000 {
        superuser.batch_execute("GRANT otto TO maria WITH ADMIN OPTION").await.unwrap();
    }
    drop(superuser);
    let friend = session("maria").await;
    friend.batch_execute("BEGIN; ALTER ROLE otto CONNECTION LIMIT 7").await.unwrap();
    let began = std::time::Instant::now();
    administration.set_verifier(&name("otto"), &other).await.unwrap();
    assert!(began.elapsed() < std::time::Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(verifier("otto").await, Some(other.clone()));
    assert!(friend.batch_execute("COMMIT").await.is_err(), "whoever held the role is cut");
    assert_eq!(administration.role(&name("otto")).await.unwrap().unwrap().role.connection_limit, -1);

    // A user's own transaction keeps its password no longer.
    let own = session("paula").await;
    own.batch_execute("BEGIN; ALTER ROLE paula PASSWORD NULL").await.unwrap();
    administration.set_verifier(&name("paula"), &other).await.unwrap();
    assert_eq!(verifier("paula").await, Some(other));

    // Nor does a friend keep it from being removed. Who holds nothing goes on.
    let (friend, innocent) = (session("maria").await, session("maria").await);
    friend.batch_execute("BEGIN; ALTER ROLE otto CONNECTION LIMIT 7").await.unwrap();
    administration.drop_user(&name("otto")).await.unwrap();
    assert!(administration.role(&name("otto")).await.unwrap().is_none());
    innocent.batch_execute("SELECT 1").await.unwrap();
    host.destroy(&cluster).await.unwrap();
}
