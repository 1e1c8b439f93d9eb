//! What a signed-in person may do: everything of theirs, nothing of ours.

use house::cloud::PATIENCE;
use house::scram::{self, Exchange};
use house::shared::{cloud, cluster};
use house::wire::Wire;

/// Everybody with a password in the cluster, from the API's own users to the least of SQL's roles.
fn everybody() -> Vec<Wire> {
    let shared = cluster();
    let mut admin = shared.sign_in();
    let _ = admin.query("create role t74_creator login createrole createdb password 'pass-word-1'");
    let _ = admin.query("create role t74_nobody login password 'pass-word-1'");
    vec![
        admin,
        shared.with_user("t74_creator", "pass-word-1").sign_in(),
        shared.with_user("t74_nobody", "pass-word-1").sign_in(),
    ]
}

pub fn t74_nobody_becomes_superuser_or_reaches_the_machine() {
    let forbidden = [
        "create role t74_super superuser",
        "alter role maria superuser",
        "alter role t74_nobody superuser",
        "create role t74_replication replication login",
        "create role t74_bypass bypassrls",
        "set role chitin",
        "set session authorization chitin",
        "grant chitin to maria",
        "grant chitin to t74_nobody",
        "alter role chitin password 'ours-now'",
        "alter role chitin rename to theirs",
        "drop role chitin",
        "alter role admin superuser",
        "drop role admin",
        "grant pg_execute_server_program to maria",
        "grant pg_read_server_files to maria",
        "grant pg_write_server_files to maria",
        "grant pg_execute_server_program to t74_creator",
        "set role pg_execute_server_program",
        "alter system set shared_preload_libraries = 'evil'",
        "alter system set listen_addresses = '*'",
        "copy (select 1) to program 'id'",
        "copy (select 1) to '/tmp/t74'",
        "create temporary table t74_in (x text); copy t74_in from '/etc/passwd'",
        "select pg_read_file('/etc/passwd')",
        "select pg_read_file('postgresql.conf')",
        "select pg_ls_dir('/')",
        "select lo_import('/etc/passwd')",
        "select rolpassword from pg_authid",
        "select * from pg_shadow",
        "load '/tmp/evil.so'",
        "create extension plpython3u",
        "create extension file_fdw",
        "create language c",
        "create function t74_system(text) returns int as 'libc.so.6', 'system' language c",
        "set log_statement = 'none'",
        "set session_preload_libraries = 'evil'",
        "alter database chitin_internal connection limit 0",
        "alter database template1 connection limit 0",
        "drop database template0",
        "drop database template1",
        "drop database chitin_internal",
        "select pg_promote()",
        "checkpoint; select pg_reload_conf()",
        "select pg_rotate_logfile()",
        "create subscription t74_sub connection 'host=127.0.0.1' publication p",
        "create tablespace t74_space location '/tmp'",
    ];
    let mut let_through = Vec::new();
    for (index, mut wire) in everybody().into_iter().enumerate() {
        for sql in forbidden {
            if wire.query(sql).is_ok() {
                let_through.push(format!("person {index}: {sql}"));
            }
            let _ = wire.query("rollback; reset role");
        }
        assert_eq!(wire.value("select current_setting('is_superuser')"), "off");
    }
    assert!(let_through.is_empty(), "not refused:\n{}", let_through.join("\n"));
    let supers =
        "select string_agg(rolname, ',') from pg_roles where rolsuper or rolreplication or rolbypassrls";
    assert_eq!(cluster().sign_in().value(supers), "chitin");
    // And after all that the internal role still cannot be signed in to.
    assert!(cluster().with_user("chitin", "ours-now").try_sign_in().is_err());
}

pub fn t74_the_creator_of_a_role_cannot_grant_itself_into_the_house() {
    let shared = cluster();
    let mut creator = everybody().remove(1);
    // Before PostgreSQL 16 CREATEROLE may grant any role that is not superuser; the house must still hold.
    let _ = creator.query("grant admin to t74_creator");
    let _ = creator.query("create role t74_child login password 'pass-word-2' in role admin");
    if let Ok(mut child) = shared.with_user("t74_child", "pass-word-2").try_sign_in() {
        assert!(child.query("copy (select 1) to program 'id'").is_err());
        assert!(child.query("select pg_read_file('/etc/passwd')").is_err());
        assert!(child.query("set role chitin").is_err());
    }
    for ours in ["pg_execute_server_program", "pg_read_server_files", "pg_write_server_files"] {
        let _ = creator.query(&format!("grant {ours} to t74_creator"));
        let mut again = shared.with_user("t74_creator", "pass-word-1").sign_in();
        assert!(again.query("copy (select 1) to program 'id'").is_err(), "{ours}");
        assert!(again.query("select pg_read_file('/etc/passwd')").is_err(), "{ours}");
        assert!(again.query("copy (select 1) to '/tmp/t74'").is_err(), "{ours}");
    }
}

pub fn users_of_the_api_are_members_of_admin_and_can_work() {
    let shared = cluster();
    let mut wire = shared.with_new_user("worker").sign_in();
    assert_eq!(wire.value("select pg_has_role('worker', 'admin', 'member')"), "t");
    for sql in [
        "create schema worker_room",
        "create table worker_room.jobs (id int generated always as identity primary key, what text not null)",
        "insert into worker_room.jobs (what) values ('sweep')",
        "create role worker_helper",
        "grant usage on schema worker_room to worker_helper",
        "create table public.worker_public (x int)",
        "drop table public.worker_public",
        "select * from pg_stat_activity",
    ] {
        wire.query(sql).unwrap_or_else(|refusal| panic!("{sql}: {refusal:?}"));
    }
    wire.query("create database worker_db").unwrap();
    let mut inside = shared.with_user("worker", &shared.password).clone();
    inside.password =
        cloud().json(["user", "password", &shared.name, "worker"])["password"].as_str().unwrap().into();
    let mut wire = inside.knock_with(&[("database", "worker_db")]);
    wire.expect_message().unwrap();
    scram::prove(&mut wire, &Exchange::bound(&inside.password)).unwrap();
    wire.expect_ready().unwrap();
    assert_eq!(wire.value("select current_database()"), "worker_db");
}

pub fn what_graphical_clients_ask_of_the_catalog_is_answered() {
    let mut wire = cluster().sign_in();
    for (asked, least) in [
        // Reads every file of the time zones, and one that is a link to the machine's own.
        ("pg_timezone_names", 300),
        ("pg_timezone_abbrevs", 100),
        ("pg_settings", 200),
        ("pg_available_extensions", 20),
        ("pg_stat_activity", 1),
        ("pg_stat_database", 1),
        ("information_schema.tables", 100),
    ] {
        let count: u32 = wire.value(&format!("select count(*) from {asked}")).parse().expect("a number");
        assert!(count >= least, "{asked}: {count}");
    }
}

pub fn t72_a_user_over_its_limit_is_refused_and_nobody_else() {
    let shared = cluster();
    let mut admin = shared.sign_in();
    admin.query("create role t72_limited login connection limit 2 password 'pass-word-1'").unwrap();
    let limited = shared.with_user("t72_limited", "pass-word-1");
    let held = [limited.sign_in(), limited.sign_in()];
    let refusal = limited.try_sign_in().err().expect("the third session");
    assert_eq!(refusal.code, "53300", "{refusal:?}");
    assert_eq!(shared.sign_in().value("select session_user"), "maria");
    drop(held);
    let mut wire = house::command::eventually("room again", PATIENCE, || limited.try_sign_in().ok());
    assert_eq!(wire.value("select session_user"), "t72_limited");
}

pub fn the_engine_has_no_network_and_no_shell() {
    let mut wire = cluster().sign_in();
    assert_eq!(wire.value("show listen_addresses"), "");
    assert_eq!(wire.value("show data_checksums"), "on");
    assert_eq!(wire.value("show password_encryption"), "scram-sha-256");
    assert!(
        wire.query("create extension dblink").is_err() || {
            let refused =
                wire.query("select dblink_connect('host=127.0.0.1 port=5432 user=chitin dbname=postgres')");
            refused.is_err()
        }
    );
    for process in cloud().processes() {
        let net = std::fs::read_link(format!("/proc/{}/ns/net", process.pid));
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        let is_engine = process.command_line().contains("postgres");
        if let (true, Ok(net)) = (is_engine && !process.command_line().contains("bwrap"), net) {
            assert_ne!(net, ours, "{} shares our network", process.command_line());
        }
    }
}
