//! A tenant with all the rights that tenants can have attacks what it shares with others, and the roles that hold it.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::sync::Arc;

use engine::{Administration, Error, Host, HostConfig, Subscriptions};
use keys::RootKey;
use model::{Cluster, ClusterId, Encryption, Plan, Power, Provider, RoleName, Wish};
use time::OffsetDateTime;
use tokio_postgres::Client;

const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

struct Place {
    host: Arc<Host>,
    cluster: Cluster,
    administration: Administration,
    _folder: common::Folder,
}

async fn place(routing_id: u32, plan: Plan) -> Place {
    let folder = common::folder();
    let kek = Arc::new(RootKey::open_or_create(&folder.path().join("kek")).unwrap());
    let config = HostConfig {
        data: folder.path().to_owned(),
        keys: kek,
        allow_unencrypted: true,
        postgres: common::postgres(),
        default_major: common::default_major(),
        encryption: Some(Encryption::None),
        attestation: None,
        launcher: common::launcher(),
        record: common::no_record(),
    };
    let host = Host::open(config).await.unwrap();
    let now = OffsetDateTime::UNIX_EPOCH;
    let cluster = Cluster {
        id: ClusterId::random(),
        routing_id: routing_id.try_into().unwrap(),
        name: "lazy-roach".parse().unwrap(),
        plan,
        provider: Provider::Gcp,
        regions: vec!["local".to_owned()],
        labels: std::collections::BTreeMap::new(),
        asked: model::Asked::default(),
        storage_floor: None,
        connections_floor: None,
        sign_in: model::SignIn::default(),
        network: model::Network::default(),
        egress: model::Egress::default(),
        keys: model::KeyWish::default(),
        is_delete_protected: false,
        allowlist: Vec::new(),
        wish: Wish::Exists(Power::Running),
        revision: 1,
        created_at: now,
        updated_at: now,
        deleted_at: None,
    };
    host.create(&cluster).await.unwrap();
    let administration = host.administration(cluster.id).await.unwrap();
    administration.create_user(&name("maria"), VERIFIER).await.unwrap();
    Place { host, cluster, administration, _folder: folder }
}

fn name(text: &str) -> RoleName {
    text.parse().unwrap()
}

impl Place {
    /// A session as a SQL user, as the gateway attaches it.
    async fn session(&self, user: &str, database: &str) -> Result<Client, tokio_postgres::Error> {
        self.host.admit(self.cluster.id, &name(user)).await.unwrap();
        self.attach(user, database).await
    }

    async fn attach(&self, user: &str, database: &str) -> Result<Client, tokio_postgres::Error> {
        common::attach(&self.host, self.cluster.id, user, database).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_still_made_after_a_tenant_renamed_or_dropped_the_role_that_holds_them() {
    let place = place(81, Plan::Dedicated).await;
    let maria = place.session("maria", "defaultdb").await.unwrap();
    // Before PostgreSQL 16 whoever may create roles may do this to every role but a superuser.
    let _ = maria.batch_execute("ALTER ROLE admin RENAME TO boss").await;
    let _ = maria.batch_execute("REASSIGN OWNED BY admin TO maria; DROP ROLE admin").await;
    place.administration.create_user(&name("paula"), VERIFIER).await.unwrap();
    place.administration.create_database(&"shop".parse().unwrap()).await.unwrap();
    let paula = place.session("paula", "shop").await.unwrap();
    paula.batch_execute("CREATE TABLE t (x int)").await.unwrap();
    place.administration.drop_user(&name("paula")).await.unwrap();
    place.host.destroy(&place.cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_our_own_are_refused_whoever_asks() {
    let place = place(82, Plan::Serverless).await;
    for reserved in ["chitin", "admin", "postgres", "pg_monitor"] {
        let reserved = name(reserved);
        let administration = &place.administration;
        for refused in [
            administration.create_user(&reserved, VERIFIER).await,
            administration.set_verifier(&reserved, VERIFIER).await,
            administration.drop_user(&reserved).await,
            place.host.admit(place.cluster.id, &reserved).await,
        ] {
            assert!(matches!(refused, Err(Error::Refused(_))), "{reserved}: {refused:?}");
        }
    }
    for reserved in ["chitin_internal", "template0", "template1"] {
        let (reserved, other) = (reserved.parse().unwrap(), "other".parse().unwrap());
        assert!(matches!(place.administration.drop_database(&reserved).await, Err(Error::Refused(_))));
        let renamed = place.administration.rename_database(&reserved, &other).await;
        assert!(matches!(renamed, Err(Error::Refused(_))));
    }
    place.host.destroy(&place.cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_reaches_no_database_of_the_engine_and_keeps_no_write_ahead_log() {
    let place = place(83, Plan::Serverless).await;
    for database in ["chitin_internal", "template1", "template0"] {
        let refused = place.session("maria", database).await.err().unwrap();
        assert!(refused.as_db_error().is_some(), "{database}: {refused}");
    }
    let maria = place.session("maria", "defaultdb").await.unwrap();
    for attack in [
        // A slot that nobody reads would keep every byte of the log for ever.
        "SELECT pg_create_physical_replication_slot('slot', true)",
        "SELECT pg_create_logical_replication_slot('slot', 'test_decoding')",
        "CREATE EXTENSION postgres_fdw",
        "CREATE EXTENSION file_fdw",
        "CREATE EXTENSION plperlu",
        "CREATE LANGUAGE plpython3u",
        "DO LANGUAGE plpgsql $$ BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''id'''; END $$",
        "ALTER DATABASE chitin_internal ALLOW_CONNECTIONS false",
        "ALTER DATABASE chitin_internal CONNECTION LIMIT -1",
        "DROP DATABASE chitin_internal",
        "CREATE DATABASE copied TEMPLATE chitin_internal",
        "ALTER DATABASE defaultdb SET session_preload_libraries = 'x'",
        "ALTER ROLE maria SET session_preload_libraries = 'x'",
        "ALTER ROLE maria SET log_statement = 'all'",
        "SET log_min_error_statement = 'error'",
        "SET ignore_checksum_failure = on",
        "GRANT SET ON PARAMETER log_statement TO maria",
        "SELECT pg_rotate_logfile()",
        "SELECT pg_reload_conf()",
        "CREATE FUNCTION f() RETURNS void LANGUAGE internal AS 'pg_reload_conf'",
        "ALTER ROLE maria BYPASSRLS",
        "ALTER ROLE maria REPLICATION",
    ] {
        assert!(maria.batch_execute(attack).await.is_err(), "{attack}");
    }
    place.host.destroy(&place.cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_the_jail_there_is_nothing_of_the_machine_and_nothing_of_other_clusters() {
    let place = place(84, Plan::Serverless).await;
    let maria = place.session("maria", "defaultdb").await.unwrap();
    let pid: i32 = maria.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    assert!(pid < 1_000, "its own process namespace: {pid}");
    // The internal superuser itself, which no tenant is, sees the jail's files only.
    let superuser = place.attach("chitin", "postgres").await.unwrap();
    let users: String = superuser.query_one("SELECT pg_read_file('/etc/passwd')", &[]).await.unwrap().get(0);
    assert!(!users.contains("root:"), "{users}");
    let sockets = superuser.query("SELECT pg_ls_dir('/run/chitin')", &[]).await.unwrap();
    assert!((1..=2).contains(&sockets.len()), "its own and no other");
    for attack in [
        "SELECT pg_read_file('/etc/shadow')",
        "SELECT pg_ls_dir('/home')",
        "SELECT pg_ls_dir('/root')",
        "SELECT pg_ls_dir('/sys')",
        "SELECT pg_ls_dir('/var/lib')",
        "COPY (SELECT 1) TO '/etc/new'",
        "COPY (SELECT 1) TO '/usr/new'",
        "COPY (SELECT 1) TO PROGRAM 'cat'",
    ] {
        assert!(superuser.batch_execute(attack).await.is_err(), "{attack}");
    }
    place.host.destroy(&place.cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_a_tenant_s_database_do_not_steer_our_own_sessions() {
    let place = place(86, Plan::Dedicated).await;
    place.administration.create_user(&name("paula"), VERIFIER).await.unwrap();
    place.administration.create_database(&"shop".parse().unwrap()).await.unwrap();
    let paula = place.session("paula", "shop").await.unwrap();
    drop(paula);
    let maria = place.session("maria", "shop").await.unwrap();
    for (setting, value) in [
        ("role", "maria"),
        ("session_authorization", "maria"),
        ("default_transaction_read_only", "on"),
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_deferrable", "on"),
        ("search_path", "public"),
        ("local_preload_libraries", "nope"),
        ("statement_timeout", "1ms"),
        ("lock_timeout", "1ms"),
        ("idle_session_timeout", "1ms"),
        ("standard_conforming_strings", "off"),
        ("row_security", "off"),
        ("synchronous_commit", "off"),
        ("exit_on_error", "on"),
        ("debug_print_parse", "on"),
        ("client_min_messages", "debug5"),
        ("default_table_access_method", "heap"),
    ] {
        maria.batch_execute(&format!("ALTER DATABASE shop SET {setting} = '{value}'")).await.unwrap();
    }
    // From PostgreSQL 17 on.
    let _ = maria.batch_execute("ALTER DATABASE shop SET transaction_timeout = '1ms'").await;
    assert!(place.session("maria", "shop").await.is_err(), "the settings hold for everybody else");
    // Both go into every database.
    place.administration.drop_user(&name("paula")).await.unwrap();
    place.administration.open_foreign_data().await.unwrap();
    place.host.destroy(&place.cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_servers_are_made_where_they_were_opened_and_reach_nothing_by_themselves() {
    let place = place(87, Plan::Dedicated).await;
    let server = |name: &str, host: &str| {
        format!(
            "CREATE SERVER {name} FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{host}', connect_timeout '3');
             CREATE USER MAPPING FOR CURRENT_USER SERVER {name} OPTIONS (user 'chitin', password 'x');
             CREATE FOREIGN TABLE {name}_t (x int) SERVER {name}"
        )
    };
    let maria = place.session("maria", "defaultdb").await.unwrap();
    assert!(maria.batch_execute(&server("early", "db.example")).await.is_err());
    let subscriptions = place.administration.open_foreign_data().await.unwrap();
    assert_ne!(subscriptions, Subscriptions::Open, "this engine was started before");
    place.administration.open_foreign_data().await.unwrap();
    // The engine's own socket, its loopback, another host, and what is not there.
    for (number, host) in
        ["/run/chitin", "127.0.0.1", "localhost", "192.0.2.1", "169.254.169.254", "db.example"]
            .iter()
            .enumerate()
    {
        let name = format!("s{number}");
        maria.batch_execute(&server(&name, host)).await.unwrap();
        let refused = maria.query(&format!("SELECT * FROM {name}_t"), &[]).await.unwrap_err();
        let code = refused.code().map(|code| code.code().to_owned());
        assert!(matches!(code.as_deref(), Some("08001" | "2F003")), "{host}: {refused:?}");
    }
    // A mapping without a password, or with files, is for superusers.
    maria
        .batch_execute("ALTER USER MAPPING FOR CURRENT_USER SERVER s0 OPTIONS (DROP password)")
        .await
        .unwrap();
    assert!(maria.query("SELECT * FROM s0_t", &[]).await.is_err());
    for option in ["ADD password_required 'false'", "ADD sslkey '/volume/pg/server.key'"] {
        let change = format!("ALTER USER MAPPING FOR CURRENT_USER SERVER s1 OPTIONS ({option})");
        assert!(maria.batch_execute(&change).await.is_err(), "{option}");
    }
    // Nor one by which libpq writes a file.
    let file = "ADD sslkeylogfile '/volume/pg/standby.signal'";
    for what in ["SERVER s1", "USER MAPPING FOR CURRENT_USER SERVER s1"] {
        assert!(maria.batch_execute(&format!("ALTER {what} OPTIONS ({file})")).await.is_err(), "{what}");
    }
    // Databases to come have it too, and what is not the gate's stays superusers'.
    place.administration.create_database(&"shop".parse().unwrap()).await.unwrap();
    let shop = place.session("maria", "shop").await.unwrap();
    shop.batch_execute(&server("s", "db.example")).await.unwrap();
    for extension in ["dblink", "file_fdw"] {
        assert!(shop.batch_execute(&format!("CREATE EXTENSION {extension}")).await.is_err(), "{extension}");
    }
    let publication = "CREATE SUBSCRIPTION a CONNECTION 'host=db.example password=x' PUBLICATION p \
                       WITH (connect = false, slot_name = NONE)";
    let is_made = shop.batch_execute(publication).await.is_ok();
    assert_eq!(is_made, subscriptions != Subscriptions::ForSuperusers);

    place.administration.close_foreign_data().await.unwrap();
    place.administration.close_foreign_data().await.unwrap();
    place.administration.create_database(&"late".parse().unwrap()).await.unwrap();
    let late = place.session("maria", "late").await.unwrap();
    for session in [&maria, &shop, &late] {
        assert!(session.batch_execute(&server("after", "db.example")).await.is_err());
    }
    // What she made does not hold her here.
    place.administration.drop_user(&name("maria")).await.unwrap();
    place.host.destroy(&place.cluster).await.unwrap();
}
