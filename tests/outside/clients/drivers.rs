//! The drivers that applications use.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use house::Cluster;
use house::cloud::PATIENCE;
use house::command::eventually;
use house::command::run_with;
use house::shared::{cloud, cluster};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn runs_well(program: &Path, arguments: &[&Path], one: &Cluster<'_>, expected: &str) {
    assert!(
        program.is_absolute() == program.exists(),
        "{} is missing; ./test installs it",
        program.display()
    );
    let mut command: Command = one.client(&program.to_string_lossy(), &[]);
    command.args(arguments).env("CLUSTER", &one.handle);
    let said = run_with(&mut command, b"", Duration::from_secs(120)).ok();
    assert!(said.contains(expected), "{said}");
}

fn python(script: &str, expected: &str) {
    let interpreter = here("../target/test-clients/python/bin/python");
    runs_well(&interpreter, &[&here(&format!("clients/python/{script}"))], cluster(), expected);
}

pub fn psycopg_works() {
    python("psycopg_client.py", "psycopg ok");
}

pub fn asyncpg_works() {
    python("asyncpg_client.py", "asyncpg ok");
}

pub fn sqlalchemy_works() {
    python("sqlalchemy_client.py", "sqlalchemy ok");
}

pub fn node_postgres_works() {
    runs_well(Path::new("node"), &[&here("clients/node/client.js")], cluster(), "node ok");
}

pub fn jdbc_works() {
    let mut command = cluster().client("java", &["-cp", "/usr/share/java/postgresql.jar"]);
    command.arg(here("clients/jdbc/Client.java")).env("CLUSTER", &cluster().handle);
    let said = run_with(&mut command, b"", Duration::from_secs(120)).ok();
    assert!(said.contains("jdbc ok"), "{said}");
}

pub fn tokio_postgres_works() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let one = cluster();
        let stream = connect_tls().await;
        let mut config = tokio_postgres::Config::new();
        config
            .user(&one.user)
            .password(&one.password)
            .dbname("defaultdb")
            .options(format!("--cluster={}", one.handle));
        let (client, connection) = config.connect_raw(stream, tokio_postgres::NoTls).await.expect("signs in");
        let driver = tokio::spawn(connection);
        let rows = client.query("select $1::int8 * 2", &[&21_i64]).await.expect("a row");
        assert_eq!(rows[0].get::<_, i64>(0), 42);
        let statement = client.prepare("select $1::text || '!'").await.expect("prepares");
        // Three at once: tokio-postgres sends them without waiting for the answers.
        let (a, b, c) = tokio::join!(
            client.query_one(&statement, &[&"one"]),
            client.query_one(&statement, &[&"two"]),
            client.query_one(&statement, &[&"three"]),
        );
        let texts: Vec<String> = [a, b, c].into_iter().map(|row| row.expect("a row").get(0)).collect();
        assert_eq!(texts, ["one!", "two!", "three!"]);
        let token = client.cancel_token();
        let process: i32 = client.query_one("select pg_backend_pid()", &[]).await.expect("a row").get(0);
        let sleeping = tokio::spawn(async move {
            let watch = move || until_it_works(one, process);
            tokio::task::spawn_blocking(watch).await.expect("it works");
            token.cancel_query_raw(connect_tls().await, tokio_postgres::NoTls).await
        });
        let error = client.batch_execute("select pg_sleep(600)").await.expect_err("cancelled");
        assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED));
        sleeping.await.expect("the task ends").expect("the cancel is sent");
        drop(client);
        driver.await.expect("the task ends").expect("the connection ends well");
    });
}

/// Waits until a session of the engine is in the middle of a statement.
fn until_it_works(one: &Cluster<'_>, process: i32) {
    let look = format!("select count(*) from pg_stat_activity where pid = {process} and state = 'active'");
    let mut watcher = one.sign_in();
    eventually("it works", PATIENCE, || (watcher.value(&look) == "1").then_some(()));
}

/// A TLS stream after SSLRequest, as a TLS connector of tokio-postgres makes it.
async fn connect_tls() -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(cloud().sql_address()).await.expect("connects");
    stream.write_all(&house::wire::SSL_REQUEST).await.expect("asks for TLS");
    assert_eq!(stream.read_u8().await.expect("an answer"), b'S');
    let name = rustls_pki_types::ServerName::try_from("localhost").expect("a name");
    tokio_rustls::TlsConnector::from(cloud().trust().clone()).connect(name, stream).await.expect("TLS")
}
