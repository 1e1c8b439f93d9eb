//! What code inside an engine can do to the machine: nothing. Tried from inside, as root and without.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Place, cluster, is_root, maria, place, session, skipped};
use model::{Cluster, Encryption, Plan};

/// The internal superuser's session: it stands for code in an engine that was taken over.
async fn taken_over(place: &Place, cluster: &Cluster) -> tokio_postgres::Client {
    common::attach(&place.host, cluster.id, "chitin", "postgres").await.unwrap()
}

/// A library that PostgreSQL loads, from where it keeps its own.
fn library() -> PathBuf {
    let asked = Command::new("pg_config").arg("--pkglibdir").output();
    let folder = asked.ok().map(|said| PathBuf::from(String::from_utf8(said.stdout).unwrap().trim()));
    let folders = (14..=18).rev().map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/lib")));
    let all = folders.chain(folder).map(|folder| folder.join("plpgsql.so"));
    all.into_iter().find(|library| library.is_file()).expect("plpgsql.so")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_possible_in_a_sandbox_is_tried_from_inside_and_refused() {
    let place = place(Some(Encryption::None)).await;
    let cluster = cluster(221);
    place.host.create(&cluster).await.unwrap();
    let evidence = place.host.sandbox_evidence(cluster.id).await.unwrap();
    for row in &evidence {
        assert_ne!(row.is_proven, Some(false), "{row:?}");
    }
    for claim in [
        "the sandbox permits no system calls that are not permitted",
        "the sandbox permits no new namespaces",
        "the sandbox permits no sockets of other families and protocols",
        "the sandbox permits no programs in folders that can be written to",
        "the sandbox permits no way to the memory and files of other processes",
        "the sandbox permits no keys of the kernel's keyrings",
        "the engine has the system calls that PostgreSQL needs and no other",
        "no program or library that was brought along can be run",
        "the engine has no privileges and can gain none",
    ] {
        let row = evidence.iter().find(|row| row.claim == claim);
        assert_eq!(row.and_then(|row| row.is_proven), Some(true), "{claim}: {evidence:?}");
    }
    let left: Vec<_> = std::fs::read_dir(place.folder.path().join("run")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "nothing of the probe is left: {left:?}");
    place.host.shutdown().await;
}

#[test]
fn without_root_the_sandbox_is_as_tight() {
    if !is_root() {
        return skipped("this is no root, so every other test shows it");
    }
    common::pass_as_nobody(
        &[
            "--exact",
            "what_must_not_be_possible_in_a_sandbox_is_tried_from_inside_and_refused",
            "a_library_that_was_brought_along_is_not_loaded",
            "code_in_an_engine_finds_no_way_to_the_process_that_holds_its_sandbox",
            "an_engine_gets_no_key_of_the_session_that_started_chitin",
        ],
        4,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn code_in_an_engine_finds_no_way_to_the_process_that_holds_its_sandbox() {
    let place = place(Some(Encryption::None)).await;
    let cluster = cluster(227);
    place.host.create(&cluster).await.unwrap();
    let inside = taken_over(&place, &cluster).await;
    // The same ways lead to its own process, so that they would be found.
    let own: Option<i64> = inside
        .query_one("SELECT size FROM pg_stat_file('/proc/self/status', true)", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(own, Some(0));
    let names = inside.query("SELECT pg_ls_dir('/proc/1')", &[]).await.unwrap();
    assert_eq!(names.len(), 0, "files of the first process");
    let row = inside.query_one("SELECT lo_from_bytea(0, 'written by the engine')", &[]).await.unwrap();
    let object: u32 = row.get(0);
    for path in ["/proc/1/mem", "/proc/1/task/1/mem", "/proc/1/oom_score_adj", "/proc/1/new"] {
        let written = inside.query("SELECT lo_export($1, $2)", &[&object, &path]).await.unwrap_err();
        let refused = written.as_db_error().unwrap().message().to_owned();
        assert!(refused.contains("could not create server file"), "{path}: {refused}");
        let read = inside.query("SELECT pg_read_binary_file($1, 0, 1)", &[&path]).await.unwrap_err();
        let refused = read.as_db_error().unwrap().message().to_owned();
        assert!(refused.contains("could not open file"), "{path}: {refused}");
    }
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_gets_no_key_of_the_session_that_started_chitin() {
    let place = place(Some(Encryption::None)).await;
    let cluster = cluster(229);
    place.host.create(&cluster).await.unwrap();
    let inside = taken_over(&place, &cluster).await;
    for path in ["/proc/keys", "/proc/key-users"] {
        let read = inside.query("SELECT pg_read_file($1, 0, 4096)", &[&path]).await;
        let text: String = read.map(|rows| rows[0].get(0)).unwrap_or_default();
        assert_eq!(text, "", "{path} tells of keys");
    }
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_that_was_brought_along_is_not_loaded() {
    let place = place(Some(Encryption::None)).await;
    let cluster = cluster(223);
    place.host.create(&cluster).await.unwrap();
    let inside = taken_over(&place, &cluster).await;
    let bytes = std::fs::read(library()).unwrap();
    let row = inside.query_one("SELECT lo_from_bytea(0, $1)", &[&bytes]).await.unwrap();
    let object: u32 = row.get(0);
    for folder in ["/volume", "/volume/pg", "/tmp", "/dev/shm", "/run/chitin"] {
        let at = format!("{folder}/brought.so");
        inside.query("SELECT lo_export($1, $2)", &[&object, &at]).await.unwrap();
        let refused = inside.batch_execute(&format!("LOAD '{at}'")).await.unwrap_err();
        let refused = refused.as_db_error().unwrap().message().to_owned();
        assert!(refused.contains("failed to map segment"), "{at}: {refused}");
    }
    // The same from where PostgreSQL keeps its own, so that it is the place that counts.
    inside.batch_execute("LOAD 'plpgsql'").await.unwrap();
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dedicated_cluster_compiles_its_queries_in_the_sandbox() {
    let place = place(Some(Encryption::None)).await;
    let cluster = Cluster { plan: Plan::Dedicated, ..cluster(224) };
    place.host.create(&cluster).await.unwrap();
    maria(&place.host.administration(cluster.id).await.unwrap()).await;
    let maria = session(&place.host, cluster.id, "maria", "defaultdb").await;
    let is_there: bool = maria.query_one("SELECT pg_jit_available()", &[]).await.unwrap().get(0);
    if is_there {
        maria.batch_execute("SET jit_above_cost = 0; SET jit_optimize_above_cost = 0").await.unwrap();
        let explain = "EXPLAIN (ANALYZE) SELECT sum(g * 2) FROM generate_series(1, 1000) g";
        let rows = maria.query(explain, &[]).await.unwrap();
        let text: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert!(text.iter().any(|line| line.contains("JIT:")), "{text:?}");
    } else {
        skipped("this PostgreSQL comes without JIT");
    }
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_a_few_devices_is_in_the_sandbox_s_dev() {
    let place = place(Some(Encryption::None)).await;
    let cluster = cluster(225);
    place.host.create(&cluster).await.unwrap();
    let inside = taken_over(&place, &cluster).await;
    let rows = inside.query("SELECT pg_ls_dir('/dev') ORDER BY 1", &[]).await.unwrap();
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let known = ["fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"];
    assert_eq!(names, known);
    let launcher = inside.query_one("SELECT size FROM pg_stat_file('/launcher')", &[]).await.unwrap();
    let size: i64 = launcher.get(0);
    assert_eq!(size, 0, "what started the engine is not there any more");
    assert!(!Path::new("/launcher").exists(), "nor on the machine");
    place.host.shutdown().await;
}
