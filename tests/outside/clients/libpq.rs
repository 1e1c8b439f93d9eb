//! PostgreSQL's own clients: psql in every TLS mode, pgbench, dump and restore.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use house::Cluster;
use house::cloud::PATIENCE;
use house::command::{Finished, run, run_with};
use house::shared::{cloud, cluster};

const LONG: Duration = Duration::from_secs(180);

fn select_one(one: &Cluster<'_>, more: &str) -> Finished {
    let conninfo = format!("{} {more}", one.conninfo("defaultdb"));
    let mut command = one.client("psql", &["-X", "-A", "-t", "-c", "select 'in'", &conninfo]);
    run(command.env_remove("PGSSLMODE"))
}

fn root() -> String {
    format!("sslrootcert={}", cloud().root_certificate().display())
}

/// The major version of the installed libpq's psql.
fn psql_major() -> u32 {
    let version = run(std::process::Command::new("psql").arg("--version")).ok();
    let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    number.and_then(|number| number.split('.').next()?.parse().ok()).expect("psql tells its version")
}

pub fn sslmode_disable_is_refused() {
    let said = select_one(cluster(), "sslmode=disable").refused();
    assert!(said.to_lowercase().contains("tls") || said.to_lowercase().contains("ssl"), "{said}");
    let said = select_one(cluster(), "sslmode=disable gssencmode=disable").refused();
    assert!(!said.contains("password authentication failed"), "{said}");
}

pub fn sslmode_allow_is_only_ever_served_in_tls() {
    // `allow` tries plaintext first and comes back with TLS when that is refused. Whatever psql makes of the
    // refusal, nothing may be answered in plaintext.
    let conninfo = format!("{} sslmode=allow", cluster().conninfo("defaultdb"));
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid(); \\conninfo";
    let mut command = cluster().client("psql", &["-X", "-A", "-t", &conninfo]);
    let finished = run_with(command.env_remove("PGSSLMODE"), sql.as_bytes(), LONG);
    if finished.status.success() {
        assert!(finished.stdout.contains("TLSv1.3"), "{}", finished.stdout);
    }
}

pub fn sslmodes_prefer_and_stronger_work() {
    for mode in ["prefer", "require"] {
        assert_eq!(select_one(cluster(), &format!("sslmode={mode}")).ok(), "in\n", "{mode}");
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        assert_eq!(select_one(cluster(), &format!("sslmode={mode} {}", root())).ok(), "in\n", "{mode}");
    }
}

pub fn verify_full_by_the_clusters_own_name_works() {
    let one = cluster();
    let address = cloud().sql_address();
    let conninfo = format!(
        "host={}.localhost hostaddr={} port={} user=maria dbname=defaultdb sslmode=verify-full {}",
        one.handle,
        address.ip(),
        address.port(),
        root()
    );
    let mut command = one.client("psql", &["-X", "-A", "-t", "-c", "select 'in'", &conninfo]);
    assert_eq!(run(command.env_remove("PGOPTIONS")).ok(), "in\n");
}

pub fn a_client_that_trusts_others_refuses_us() {
    let foreign = cloud().scratch().join("foreign.pem");
    let mut command = std::process::Command::new("openssl");
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
    ]);
    command.args(["-subj", "/CN=foreign", "-keyout", "/dev/null", "-out"]).arg(&foreign);
    run(&mut command).ok();
    for mode in ["verify-ca", "verify-full"] {
        let more = format!("sslmode={mode} sslrootcert={}", foreign.display());
        let said = select_one(cluster(), &more).refused();
        assert!(said.contains("certificate verify failed"), "{said}");
    }
    let more = format!("sslmode=verify-full {} host=elsewhere.example", root());
    assert!(select_one(cluster(), &more).refused().contains("does not match host name"));
}

pub fn tls_1_2_is_refused_to_psql() {
    let more = format!("sslmode=require {} ssl_max_protocol_version=TLSv1.2", root());
    let said = select_one(cluster(), &more).refused();
    assert!(said.contains("protocol version"), "{said}");
}

pub fn channel_binding_can_be_required() {
    for binding in ["disable", "prefer", "require"] {
        let more = format!("sslmode=verify-full {} channel_binding={binding}", root());
        assert_eq!(select_one(cluster(), &more).ok(), "in\n", "{binding}");
    }
}

pub fn direct_tls_works_where_libpq_has_it() {
    // libpq knows `sslnegotiation` from 17; wire::hello shows the same with raw bytes for older ones.
    if psql_major() >= 17 {
        let more = format!("sslmode=verify-full {} sslnegotiation=direct", root());
        assert_eq!(select_one(cluster(), &more).ok(), "in\n");
    }
}

pub fn the_pasted_url_signs_in() {
    let url = cloud().chitin(["cluster", "url", &cluster().name, "maria"]).ok();
    let mut command = std::process::Command::new("psql");
    command
        .args(["-X", "-A", "-t", "-c", "select current_user", url.trim()])
        .env("PGPASSWORD", &cluster().password);
    assert_eq!(run(&mut command).ok(), "maria\n");
}

pub fn wrong_password_unknown_user_and_unknown_cluster_read_alike() {
    let said = |one: &Cluster<'_>| {
        let said = select_one(one, &format!("sslmode=verify-full {}", root())).refused();
        said.replace(&one.user, "USER").replace(&one.handle, "CLUSTER")
    };
    let wrong = said(&cluster().with_user("maria", "wrong"));
    assert!(wrong.contains("password authentication failed"), "{wrong}");
    assert_eq!(wrong, said(&cluster().with_user("nobody", "wrong")));
    let mut unknown = cluster().with_user("maria", "wrong");
    unknown.handle = "no-such-cluster-99".into();
    assert_eq!(wrong, said(&unknown));
}

pub fn pgbench_runs_with_fifty_clients() {
    let one = cloud().cluster("bench-cluster", &["--plan", "dedicated", "--allow", "127.0.0.0/8"]);
    run_with(&mut one.client("pgbench", &["-i", "-q", "-s", "5"]), b"", LONG).ok();
    for (protocol, script) in
        [("simple", "tpcb-like"), ("extended", "select-only"), ("prepared", "tpcb-like")]
    {
        let arguments = ["-n", "-c", "50", "-j", "2", "-T", "4", "-M", protocol, "-b", script];
        let said = run_with(&mut one.client("pgbench", &arguments), b"", LONG).ok();
        assert!(said.contains("number of failed transactions: 0") || !said.contains("failed"), "{said}");
    }
    let balance =
        "select (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)";
    assert_eq!(one.psql(balance).ok(), "t\n");
}

pub fn createdb_and_dropdb_and_whoever_opens_the_database_postgres_first_work() {
    let one = cluster();
    // Both open it to say what they want.
    run(&mut one.client("createdb", &["made-by-createdb"])).ok();
    let mut there = one.client("psql", &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    there.env("PGDATABASE", "postgres");
    let sql = "create table t_first as select 7 as n; select n from t_first; \
               select string_agg(datname, ' ' order by datname) from pg_database where not datistemplate; \
               select has_database_privilege('chitin_internal', 'connect'); drop table t_first";
    let said = run_with(&mut there, sql.as_bytes(), LONG).ok();
    assert!(said.starts_with("7\n"), "{said}");
    for name in ["defaultdb", "made-by-createdb", "postgres"] {
        assert!(said.contains(name), "{said}");
    }
    assert!(said.ends_with("f\n"), "ours is closed: {said}");
    run(&mut one.client("dropdb", &["made-by-createdb"])).ok();
    let mut closed = one.client("psql", &["-X", "-c", "select 1"]);
    let refused = run(closed.env("PGDATABASE", "chitin_internal")).refused();
    assert!(refused.contains("permission denied for database"), "{refused}");
}

pub fn a_client_certificate_of_x509_version_1_counts_as_none() {
    let one = cluster();
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let (key, certificate) = (scratch.path().join("old.key"), scratch.path().join("old.pem"));
    // As OpenSSL makes it of a request without extensions.
    let steps = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout \"$0\" -subj /CN=maria | \
                 openssl x509 -req -signkey \"$0\" -days 10 -out \"$1\" && chmod 600 \"$0\"";
    run(std::process::Command::new("sh").args(["-c", steps]).arg(&key).arg(&certificate)).ok();
    let mut there = one.client("psql", &["-X", "-q", "-A", "-t", "-c", "select 7"]);
    // libpq sends what it finds, whether or not anybody has a use for it.
    let said = run(there.env("PGSSLCERT", &certificate).env("PGSSLKEY", &key)).ok();
    assert_eq!(said.trim(), "7");
    assert!(cloud().log().contains("a client certificate counts as none"), "{}", cloud().log_end());
}

pub fn a_dump_restores_to_the_same_dump() {
    let one = cluster();
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/schema/shop.sql");
    one.psql(&std::fs::read_to_string(schema).expect("the schema file")).ok();
    one.psql("create database restored").ok();
    let facts = "select count(*), sum(cents) from shop.purchase; select sum(cents) from shop.spender; \
                 select count(*) from shop.history; select md5(string_agg(lo_get(photo)::text, '' order by id)) \
                 from shop.purchase where photo is not null; select * from shop.summary order by 1";
    let before = one.psql(facts).ok();
    let dump = |database: &str, more: &[&str]| {
        let mut arguments = vec!["--no-sync", "-d", database];
        arguments.extend(more);
        one.client("pg_dump", &arguments)
    };
    let mut dumping = dump("defaultdb", &["-Fc", "-n", "shop", "--blobs"]);
    let mut dumping = dumping.stdout(Stdio::piped()).spawn().expect("pg_dump starts");
    let pipe = dumping.stdout.take().expect("stdout is piped");
    let mut restoring = one.client("pg_restore", &["--exit-on-error", "-d", "restored"]);
    let restored = restoring.stdin(pipe).output().expect("pg_restore runs");
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    assert!(dumping.wait().expect("pg_dump ends").success());
    let mut again = one.client("psql", &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    let after = run_with(again.env("PGDATABASE", "restored"), facts.as_bytes(), LONG).ok();
    assert_eq!(before, after);
    // By four sessions at once.
    let (scratch, database) = (tempfile::tempdir().expect("a scratch directory"), "restored-by-four");
    one.psql(&format!("create database \"{database}\"")).ok();
    let file = scratch.path().join("dump");
    let file = file.to_str().expect("a plain path");
    run(&mut dump("defaultdb", &["-Fc", "-n", "shop", "--blobs", "-f", file])).ok();
    run(&mut one.client("pg_restore", &["--exit-on-error", "-j4", "-d", database, file])).ok();
    let mut by_four = one.client("psql", &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    assert_eq!(before, run_with(by_four.env("PGDATABASE", database), facts.as_bytes(), LONG).ok());
    // The trigger and the foreign key work there, too.
    let proof = "begin; update shop.purchase set state = 'sent' where id = 1; \
                 select count(*) from shop.history where became = 'sent'; \
                 delete from shop.customer where id = 2; select count(*) from shop.purchase where customer = 2; rollback";
    let mut proving = one.client("psql", &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    assert_eq!(run_with(proving.env("PGDATABASE", "restored"), proof.as_bytes(), LONG).ok(), "1\n0\n");
}

pub fn control_c_in_psql_cancels_also_where_libpq_sends_it_in_plaintext() {
    let mut child = cluster()
        .client("psql", &["-X", "-c", "select pg_sleep(600)"])
        .env("PGAPPNAME", "interrupted")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql starts");
    let mut watcher = cluster().sign_in();
    let look =
        "select count(*) from pg_stat_activity where application_name = 'interrupted' and state = 'active'";
    house::command::eventually("it works", PATIENCE, || (watcher.value(look) == "1").then_some(()));
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("not zero");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("psql is ours");
    let status = house::command::eventually("psql ends", PATIENCE, || child.try_wait().expect("ours"));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut said).expect("text");
    assert!(!status.success() && said.contains("canceling statement due to user request"), "{said}");
}
