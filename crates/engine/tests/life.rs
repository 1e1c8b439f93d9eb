//! An engine's life on this machine: made, attacked, put to sleep, woken, killed, destroyed. Real PostgreSQL, real
//! encryption; every kind that the machine gives.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    Place, SOON, VERIFIER, cluster, files_below, maria, nothing_left, open, place, processes_of, session,
    skipped,
};
use engine::{Error, Host, HostConfig};
use keys::RootKey;
use model::{Cluster, Encryption, RoleName};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_lives_sleeps_wakes_and_goes() {
    let Place { folder, host } = place(None).await;
    let cluster = cluster(2);
    let made = host.create(&cluster).await.unwrap();
    assert_ne!(made.volume.encryption, Encryption::None);
    let administration = host.administration(cluster.id).await.unwrap();
    maria(&administration).await;
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    client
        .batch_execute("CREATE TABLE t (x int); INSERT INTO t SELECT generate_series(1, 1000)")
        .await
        .unwrap();
    let who = client.query_one("SELECT current_user::text, session_user::text", &[]).await.unwrap();
    assert_eq!((who.get::<_, &str>(0), who.get::<_, &str>(1)), ("maria", "maria"));
    let checksums = client.query_one("SHOW data_checksums", &[]).await.unwrap();
    assert_eq!(checksums.get::<_, &str>(0), "on");
    for proof in host.sandbox_evidence(cluster.id).await.unwrap() {
        assert_ne!(proof.is_proven, Some(false), "{proof:?}");
    }
    assert!(host.volume_state(cluster.id).unwrap().is_unlocked);
    drop((client, administration));

    host.stop(cluster.id).await.unwrap();
    assert!(!host.is_running(cluster.id));
    let asleep = host.volume_state(cluster.id).unwrap();
    assert!(!asleep.is_unlocked, "{asleep:?}");
    nothing_left(folder.path());

    host.start(&cluster).await.unwrap();
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    let count = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 1000);
    drop(client);

    host.destroy(&cluster).await.unwrap();
    assert!(host.on_disk().is_empty());
    nothing_left(folder.path());
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_in_no_raw_byte_of_an_encrypted_volume() {
    for (kind, is_readable) in
        common::kinds().into_iter().map(|kind| (kind, false)).chain([(Encryption::None, true)])
    {
        let Place { folder, host } = place(Some(kind)).await;
        let cluster = cluster(3);
        assert_eq!(host.create(&cluster).await.unwrap().volume.encryption, kind);
        let administration = host.administration(cluster.id).await.unwrap();
        administration.write_canary("canary-8f1c7ab2-canary").await.unwrap();
        let report = host.search(cluster.id, "canary-8f1c7ab2-canary").await.unwrap();
        assert!(report.hits_in_plaintext > 0, "the search itself works: {report:?}");
        assert_eq!(report.hits > 0, is_readable, "{kind:?} {report:?}");
        assert!(report.bytes > 1 << 20, "{report:?}");
        drop(administration);
        host.destroy(&cluster).await.unwrap();
        nothing_left(folder.path());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_in_a_luks2_volume_lives_sleeps_wakes_and_goes() {
    if let Some(reason) = common::lacking_for_luks() {
        return skipped(reason);
    }
    let Place { folder, host } = place(Some(Encryption::Luks2)).await;
    let cluster = cluster(11);
    assert_eq!(host.create(&cluster).await.unwrap().volume.encryption, Encryption::Luks2);
    host.administration(cluster.id).await.unwrap().write_canary("canary-luks-canary").await.unwrap();
    let open = host.volume_state(cluster.id).unwrap();
    assert!(open.is_unlocked && open.is_proven && open.cipher.is_some(), "{open:?}");
    host.stop(cluster.id).await.unwrap();
    let locked = host.volume_state(cluster.id).unwrap();
    assert!(!locked.is_unlocked && locked.is_proven, "{locked:?}");
    nothing_left(folder.path());
    host.start(&cluster).await.unwrap();
    let found = host.search(cluster.id, "canary-luks-canary").await.unwrap();
    assert!(found.hits_in_plaintext > 0 && found.hits == 0, "{found:?}");
    host.destroy(&cluster).await.unwrap();
    nothing_left(folder.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_reaches_neither_files_nor_programs_nor_the_superuser() {
    let Place { host, folder: _folder } = place(Some(Encryption::None)).await;
    let cluster = cluster(4);
    host.create(&cluster).await.unwrap();
    maria(&host.administration(cluster.id).await.unwrap()).await;
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    client.batch_execute("CREATE TABLE t (x text); CREATE ROLE helper LOGIN").await.unwrap();
    client.batch_execute("CREATE DATABASE own").await.unwrap();
    for attack in [
        "COPY t FROM PROGRAM 'id'",
        "COPY t TO PROGRAM 'cat'",
        "COPY t FROM '/etc/passwd'",
        "COPY t TO '/tmp/out'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_read_binary_file('postgresql.conf')",
        "SELECT pg_ls_dir('/')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT lo_export(lo_creat(-1), '/tmp/out')",
        "ALTER SYSTEM SET listen_addresses = '*'",
        "SET ROLE chitin",
        "SET SESSION AUTHORIZATION chitin",
        "ALTER ROLE chitin PASSWORD 'x'",
        "ALTER ROLE maria SUPERUSER",
        "CREATE ROLE super SUPERUSER",
        "GRANT chitin TO maria",
        "GRANT pg_execute_server_program TO maria",
        "GRANT pg_read_server_files TO maria",
        "GRANT pg_read_all_data TO maria",
        "GRANT pg_write_server_files TO helper",
        "CREATE EXTENSION dblink",
        "CREATE EXTENSION adminpack",
        "CREATE FUNCTION f() RETURNS int AS '/lib/x86_64-linux-gnu/libc.so.6', 'system' LANGUAGE C",
        "LOAD 'dblink'",
        "SET session_preload_libraries = 'dblink'",
        "SELECT * FROM pg_authid",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'chitin'",
        "UPDATE pg_database SET datname = 'x'",
        "DROP ROLE chitin",
        "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION version()",
        "CREATE TABLESPACE s LOCATION '/tmp'",
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1' PUBLICATION p",
    ] {
        let result = client.batch_execute(attack).await;
        let is_harmless = attack.contains("pg_terminate_backend") && result.is_ok();
        assert!(result.is_err() || is_harmless, "{attack}");
    }
    let superusers = client.query_one("SELECT count(*) FROM pg_roles WHERE rolsuper", &[]).await.unwrap();
    assert_eq!(superusers.get::<_, i64>(0), 1);
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_a_token_made_has_exactly_the_roles_of_its_groups() {
    let Place { host, folder: _folder } = place(Some(Encryption::None)).await;
    let cluster = cluster(6);
    host.create(&cluster).await.unwrap();
    let administration = host.administration(cluster.id).await.unwrap();
    maria(&administration).await;
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    client
        .batch_execute(
            "CREATE ROLE readers; CREATE ROLE writers; CREATE ROLE editors; GRANT readers TO editors",
        )
        .await
        .unwrap();
    let ana: RoleName = "ana".parse().unwrap();
    assert!(administration.provision(&ana).await.unwrap());
    assert!(!administration.provision(&ana).await.unwrap(), "made once");
    let made = administration.role(&ana).await.unwrap().unwrap().role;
    assert!(made.can_login && made.verifier.is_none() && made.member_of.is_empty());

    let roles = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<RoleName>>();
    let member_of = async || administration.role(&ana).await.unwrap().unwrap().inherited;
    // A group that is called like a user, like us or like nothing gives nothing.
    let wanted = roles(&["editors", "maria", "chitin", "nothing", "o'\"; DROP ROLE maria"]);
    administration.set_memberships(&ana, &wanted).await.unwrap();
    assert_eq!(member_of().await, ["editors", "readers"], "through others too");
    client.batch_execute("GRANT writers TO ana").await.unwrap();
    administration.set_memberships(&ana, &roles(&["readers"])).await.unwrap();
    assert_eq!(member_of().await, ["readers"], "what no group gives is revoked, whoever granted it");
    administration.set_memberships(&ana, &roles(&["admin"])).await.unwrap();
    assert_eq!(member_of().await[0], "admin");
    administration.set_memberships(&ana, &[]).await.unwrap();
    assert!(member_of().await.is_empty());
    for reserved in ["chitin", "admin", "pg_monitor"] {
        assert!(administration.provision(&reserved.parse().unwrap()).await.is_err(), "{reserved}");
        assert!(administration.set_memberships(&reserved.parse().unwrap(), &[]).await.is_err(), "{reserved}");
    }
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn weak_passwords_said_in_sql_are_refused() {
    let Place { host, folder: _folder } = place(Some(Encryption::None)).await;
    let cluster = cluster(8);
    host.create(&cluster).await.unwrap();
    maria(&host.administration(cluster.id).await.unwrap()).await;
    let client = session(&host, cluster.id, "maria", "defaultdb").await;
    for weak in ["a1b2c3", "12345678", "password", "maria-2024"] {
        let refused = client.batch_execute(&format!("ALTER ROLE maria PASSWORD '{weak}'")).await;
        assert!(refused.is_err(), "{weak}");
    }
    client.batch_execute("ALTER ROLE maria PASSWORD 'seven-blue-whales'").await.unwrap();
    client.batch_execute(&format!("ALTER ROLE maria PASSWORD '{VERIFIER}'")).await.unwrap();
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_databases_are_made_listed_and_removed() {
    let Place { host, folder: _folder } = place(Some(Encryption::None)).await;
    let cluster = cluster(5);
    host.create(&cluster).await.unwrap();
    let administration = host.administration(cluster.id).await.unwrap();
    let name: RoleName = "o'brien \"the\" first".parse().unwrap();
    administration.create_user(&name, VERIFIER).await.unwrap();
    assert!(matches!(administration.create_user(&name, VERIFIER).await, Err(Error::AlreadyExists { .. })));
    let users = administration.users().await.unwrap();
    assert_eq!(users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), [name.as_str()]);
    let role = administration.role(&name).await.unwrap().unwrap().role;
    assert_eq!(role.verifier.as_deref(), Some(VERIFIER));
    assert!(role.can_login && role.valid_until.is_none());

    administration.create_database(&"shop".parse().unwrap()).await.unwrap();
    let again = administration.create_database(&"shop".parse().unwrap()).await;
    assert!(matches!(again, Err(Error::AlreadyExists { what: "database", .. })));
    let client = session(&host, cluster.id, name.as_str(), "shop").await;
    client.batch_execute("CREATE TABLE kept (x int); INSERT INTO kept VALUES (7)").await.unwrap();
    administration.drop_user(&name).await.unwrap();
    assert!(matches!(administration.drop_user(&name).await, Err(Error::NotFound { .. })));
    assert!(client.batch_execute("SELECT 1").await.is_err(), "the session of a removed user goes on");

    maria(&administration).await;
    let client = session(&host, cluster.id, "maria", "shop").await;
    let kept = client.query_one("SELECT x FROM kept", &[]).await.unwrap();
    assert_eq!(kept.get::<_, i32>(0), 7, "what a removed user made belongs to admin now");
    let shop = "shop".parse().unwrap();
    let busy = administration.rename_database(&shop, &"store".parse().unwrap()).await;
    assert!(matches!(busy, Err(Error::Refused(_))), "in use: {busy:?}");
    administration.drop_database(&shop).await.unwrap();
    assert!(matches!(
        administration.drop_database(&shop).await,
        Err(Error::NotFound { what: "database", .. })
    ));
    assert!(client.batch_execute("SELECT 1").await.is_err(), "the session in a removed database goes on");
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cluster_has_a_database_postgres_of_its_own_also_one_of_an_earlier_version() {
    let Place { folder: _folder, host } = place(Some(Encryption::None)).await;
    let cluster = cluster(41);
    host.create(&cluster).await.unwrap();
    let administration = host.administration(cluster.id).await.unwrap();
    maria(&administration).await;
    let listed = async || {
        let all = host.administration(cluster.id).await.unwrap().databases().await.unwrap();
        all.into_iter().map(|one| (one.name, one.owner)).collect::<Vec<_>>()
    };
    let whole = ["defaultdb", "postgres"].map(|name| (name.to_owned(), "admin".to_owned()));
    assert_eq!(listed().await, whole);
    drop(administration);

    // As an earlier version left it: the database `postgres` is ours and closed, and there is no other of ours.
    let as_before = async |more: &[&str]| {
        let superuser = common::attach(&host, cluster.id, "chitin", "template1").await.unwrap();
        let before = [
            "DROP DATABASE IF EXISTS chitin_internal WITH (FORCE)",
            "REVOKE ALL ON DATABASE postgres FROM PUBLIC",
            "ALTER DATABASE postgres OWNER TO chitin",
        ];
        for statement in before.iter().chain(more) {
            superuser.batch_execute(statement).await.unwrap();
        }
        drop(superuser);
        host.stop(cluster.id).await.unwrap();
        host.start(&cluster).await.unwrap();
    };
    let until_whole = async || {
        let begun = Instant::now();
        while listed().await != whole {
            assert!(begun.elapsed() < SOON, "{:?}", listed().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    as_before(&[]).await;
    assert!(common::attach(&host, cluster.id, "maria", "postgres").await.is_err(), "it is closed");
    // Several of us at once.
    for connected in futures::future::join_all((0..4).map(|_| host.administration(cluster.id))).await {
        connected.unwrap();
    }
    until_whole().await;
    let own = session(&host, cluster.id, "maria", "postgres").await;
    own.batch_execute("CREATE TABLE hers (x int)").await.unwrap();
    let asked = "SELECT has_database_privilege('chitin_internal', 'CONNECT')";
    assert!(!own.query_one(asked, &[]).await.unwrap().get::<_, bool>(0));
    drop(own);
    assert!(common::attach(&host, cluster.id, "maria", "chitin_internal").await.is_err());

    // A tenant who took our name before it was ours keeps it, whatever they do with it, and is administered all the same.
    as_before(&["CREATE DATABASE chitin_internal OWNER admin"]).await;
    for (number, trick) in [
        "SELECT 1",
        "ALTER DATABASE chitin_internal SET statement_timeout = 1",
        "BEGIN; ALTER DATABASE chitin_internal RENAME TO held",
        "ALTER DATABASE chitin_internal ALLOW_CONNECTIONS false",
    ]
    .into_iter()
    .enumerate()
    {
        // What was begun stays open.
        let maria = session(&host, cluster.id, "maria", "defaultdb").await;
        maria.batch_execute(trick).await.unwrap();
        let administration =
            host.administration(cluster.id).await.unwrap_or_else(|error| panic!("{trick}: {error}"));
        administration.create_user(&format!("paula{number}").parse().unwrap(), VERIFIER).await.unwrap();
        drop(maria);
        // As if this were the first of a run.
        host.stop(cluster.id).await.unwrap();
        host.start(&cluster).await.unwrap();
    }
    assert!(common::attach(&host, cluster.id, "maria", "postgres").await.is_err(), "it stays closed");
    let superuser = common::attach(&host, cluster.id, "chitin", "template1").await.unwrap();
    superuser.batch_execute("ALTER DATABASE chitin_internal RENAME TO hers").await.unwrap();
    drop(superuser);
    assert_eq!(listed().await.len(), 2, "hers, and defaultdb");
    host.stop(cluster.id).await.unwrap();
    host.start(&cluster).await.unwrap();
    let begun = Instant::now();
    while listed().await.len() < 3 {
        assert!(begun.elapsed() < SOON, "{:?}", listed().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_is_reported_and_starts_again_with_everything() {
    let Place { folder, host } = place(None).await;
    let cluster = cluster(6);
    host.create(&cluster).await.unwrap();
    let mut deaths = host.deaths();
    host.administration(cluster.id).await.unwrap().write_canary("kept").await.unwrap();
    for pid in processes_of(folder.path()) {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() == "bwrap" {
            common::kill(pid);
        }
    }
    let dead = tokio::time::timeout(SOON, deaths.recv()).await.unwrap().unwrap();
    assert_eq!(dead, cluster.id);
    host.start(&cluster).await.unwrap();
    let report = host.search(cluster.id, "kept").await.unwrap();
    assert!(report.hits_in_plaintext > 0);
    host.destroy(&cluster).await.unwrap();
    nothing_left(folder.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_made_cluster_is_made_anew_and_two_hosts_never_share() {
    let Place { folder, host } = place(Some(Encryption::None)).await;
    let cluster = cluster(7);
    let half: PathBuf = folder.path().join("clusters").join(cluster.id.to_string());
    std::fs::create_dir_all(half.join("files/pg")).unwrap();
    std::fs::write(half.join("files/pg/PG_VERSION"), b"half").unwrap();
    host.create(&cluster).await.unwrap();
    let second = open(folder.path(), Some(Encryption::None)).await;
    assert!(matches!(second, Err(Error::InUse { .. })));
    host.shutdown().await;
    assert!(!host.is_running(cluster.id));
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_cluster_opens_nothing() {
    let Place { folder, host } = place(None).await;
    let (one, other) = (cluster(8), cluster(9));
    host.create(&one).await.unwrap();
    host.create(&other).await.unwrap();
    host.shutdown().await;
    let key =
        |cluster: &Cluster| folder.path().join("clusters").join(cluster.id.to_string()).join("key.json");
    std::fs::copy(key(&other), key(&one)).unwrap();
    let refused = host.start(&one).await;
    assert!(matches!(refused, Err(Error::DataKey(keys::KeyFailure::DoesNotOpen { .. }))));
    host.destroy(&one).await.unwrap();
    host.destroy(&other).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_encryption_nothing_is_made_unless_the_operator_said_so() {
    let folder = common::folder();
    let kek = Arc::new(RootKey::open_or_create(&folder.path().join("kek")).unwrap());
    let config = HostConfig {
        data: folder.path().to_owned(),
        keys: kek,
        allow_unencrypted: false,
        postgres: common::postgres(),
        default_major: common::default_major(),
        encryption: Some(Encryption::None),
        attestation: None,
        launcher: common::launcher(),
        record: common::no_record(),
    };
    let host = Host::open(config).await.unwrap();
    let refused = host.create(&cluster(10)).await.unwrap_err();
    assert!(refused.to_string().contains("--allow-unencrypted"), "{refused}");
    assert!(host.on_disk().is_empty());
}

/// Why new clusters are not copied; `None` where they are.
fn missing_copies(host: &Host) -> Option<&'static str> {
    let installed = host.installed();
    let default = installed.versions.iter().find(|one| Some(one.major) == installed.default_major);
    let can_copy = default.is_some_and(|one| one.programs.join("pg_resetwal").is_file());
    (!can_copy).then_some(
        "this installation of PostgreSQL has no pg_resetwal, so each cluster has an initdb of its own",
    )
}

/// The archive that new clusters are copied from.
fn archive(folder: &Path) -> PathBuf {
    let found = files_below(&folder.join("clusters/templates"));
    assert_eq!(found.len(), 1, "one archive, and nothing of how it was made: {found:?}");
    found[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_one_template_have_names_of_their_own_and_whole_files() {
    let Place { folder, host } = place(Some(Encryption::None)).await;
    if let Some(reason) = missing_copies(&host) {
        return skipped(reason);
    }
    let (one, other) = (cluster(20), cluster(21));
    let mut systems = Vec::new();
    for copy in [&one, &other] {
        host.create(copy).await.unwrap();
        let admin = common::attach(&host, copy.id, "chitin", "postgres").await.unwrap();
        let asked = "SELECT system_identifier, pg_is_in_recovery()::text FROM pg_control_system()";
        systems.push(admin.query_one(asked, &[]).await.unwrap().get::<_, i64>(0));
        drop(admin);
        host.stop(copy.id).await.unwrap();
    }
    assert_ne!(systems[0], systems[1]);
    // What only the two of them know is another too, where a stranger's attempt to sign in would show it.
    let controls = [&one, &other].map(|copy| {
        let files = files_below(&common::volume(folder.path(), copy, 0));
        let control = files.into_iter().find(|path| path.ends_with("global/pg_control")).unwrap();
        let checked = std::process::Command::new(postgres_program("pg_checksums"))
            .args(["--check", "-D"])
            .arg(control.parent().unwrap().parent().unwrap())
            .output()
            .unwrap();
        assert!(checked.status.success(), "{checked:?}");
        std::fs::read(control).unwrap()
    });
    let differs = |at: &usize| controls[0][*at] != controls[1][*at];
    // The nonce is some 250 bytes in; before it are the name, times and positions, which differ too.
    assert!((240..320).filter(differs).count() > 24, "they have one nonce");

    let before = std::fs::metadata(archive(folder.path())).unwrap().modified().unwrap();
    host.create(&cluster(22)).await.unwrap();
    assert_eq!(
        std::fs::metadata(archive(folder.path())).unwrap().modified().unwrap(),
        before,
        "it is made once"
    );
}

fn postgres_program(name: &str) -> PathBuf {
    let found = std::process::Command::new("sh")
        .args([
            "-c",
            "command -v \"$0\" || ls -1 /usr/lib/postgresql/*/bin/\"$0\" | sort -V | tail -n 1",
            name,
        ])
        .output()
        .unwrap();
    PathBuf::from(String::from_utf8(found.stdout).unwrap().trim())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_planted_in_a_template_is_in_no_new_cluster() {
    const PLANTED: &[u8] = b"planted-by-who-has-the-disk";
    let Place { folder, host } = place(Some(Encryption::None)).await;
    if let Some(reason) = missing_copies(&host) {
        return skipped(reason);
    }
    let first = cluster(20);
    host.create(&first).await.unwrap();
    host.destroy(&first).await.unwrap();
    assert!(host.on_disk().is_empty(), "what it was made in is gone");
    let made = std::fs::read(archive(folder.path())).unwrap();
    let written = |bytes: Option<Vec<u8>>| {
        let path = archive(folder.path());
        match bytes {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
    };
    let planted_at = |at: usize| {
        let mut bytes = made.clone();
        bytes[at..at + PLANTED.len()].copy_from_slice(PLANTED);
        bytes
    };
    for (number, (what, bytes)) in [
        ("in the first file's name", Some(planted_at(0))),
        ("in the middle", Some(planted_at(made.len() / 2))),
        ("in the last part", Some(planted_at(made.len() - 4_096))),
        ("cut off", Some(made[..made.len() / 2].to_vec())),
        ("nothing at all", Some(Vec::new())),
        ("removed", None),
    ]
    .into_iter()
    .enumerate()
    {
        written(bytes);
        let copy = cluster(30 + u32::try_from(number).unwrap());
        host.create(&copy).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let now = std::fs::read(archive(folder.path())).unwrap();
        assert_eq!(now.len(), made.len(), "{what}: it is made anew");
        let holds = |path: &Path| {
            std::fs::read(path).unwrap_or_default().windows(PLANTED.len()).any(|bytes| bytes == PLANTED)
        };
        let found: Vec<PathBuf> = files_below(folder.path()).into_iter().filter(|path| holds(path)).collect();
        assert_eq!(found, Vec::<PathBuf>::new(), "{what}");
        host.stop(copy.id).await.unwrap();
        host.start(&copy).await.unwrap();
        host.destroy(&copy).await.unwrap();
    }
    // A link instead of it, to something that root can read.
    let path = archive(folder.path());
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", &path).unwrap();
    host.create(&cluster(40)).await.unwrap();
    assert!(std::fs::symlink_metadata(archive(folder.path())).unwrap().is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_of_another_minor_version_is_made_anew() {
    let (folder, record) = (common::folder(), common::no_record());
    let host = common::open_recorded(folder.path(), record.clone()).await.unwrap();
    if let Some(reason) = missing_copies(&host) {
        return skipped(reason);
    }
    host.create(&cluster(20)).await.unwrap();
    let made = std::fs::metadata(archive(folder.path())).unwrap().modified().unwrap();
    let (major, kept) = (14..=18)
        .find_map(|major| Some((major, record.template(major).unwrap()?)))
        .expect("what it is, is on record");
    assert!(kept.made_with.starts_with(&format!("PostgreSQL {major}.")), "{kept:?}");
    let older = model::Template { made_with: format!("PostgreSQL {major}.0, files 0"), ..kept.clone() };
    record.keep_template(major, &older).unwrap();
    host.create(&cluster(21)).await.unwrap();
    assert_eq!(record.template(major).unwrap().map(|now| now.made_with), Some(kept.made_with));
    assert!(std::fs::metadata(archive(folder.path())).unwrap().modified().unwrap() > made);
}
