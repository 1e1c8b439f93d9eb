//! Measures one kind of volume for `bench/at_rest`: waking, sleeping, and a new data key. Prints one line of JSON.

mod common;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use engine::{Copied, Host, HostConfig};
use keys::RootKey;
use model::{Cluster, Encryption};

use common::{Nothing, cluster, median};

/// Sleeps and wakes, of which the median counts.
const ROUNDS: usize = 7;

fn main() -> ExitCode {
    // In an engine's sandbox.
    if let Some(code) = engine::launch_if_asked() {
        return code;
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("{cause}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn measure() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().collect();
    let [_, data, kind, megabytes] = words.as_slice() else {
        return Err("usage: at_rest DATA KIND MEGABYTES".into());
    };
    let kinds = [Encryption::Fscrypt, Encryption::FscryptImage, Encryption::Luks2, Encryption::Gocryptfs];
    let kind = kinds.into_iter().find(|known| known.as_str() == kind).unwrap_or(Encryption::None);
    let data = Path::new(data);
    let host = Host::open(HostConfig {
        data: data.to_owned(),
        keys: Arc::new(RootKey::open_or_create(&data.join("kek"))?),
        allow_unencrypted: kind == Encryption::None,
        postgres: Vec::new(),
        default_major: None,
        encryption: Some(kind),
        attestation: None,
        launcher: engine::Launcher::this_program()?,
        record: Arc::new(Nothing::default()),
    })
    .await?;
    let cluster = cluster()?;
    host.create(&cluster).await?;
    fill(&host, &cluster, megabytes.parse()?).await?;

    let (mut sleeps, mut wakes) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        host.stop(cluster.id).await?;
        sleeps.push(began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        host.start(&cluster).await?;
        wakes.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let began = Instant::now();
    if host.copy_volume(&cluster).await? != Copied::Done {
        return Err("the copy was given up".into());
    }
    let copy_seconds = began.elapsed().as_secs_f64();
    let bytes = host.copy_progress(cluster.id).map_or(0, |progress| progress.total_bytes);
    let began = Instant::now();
    host.switch_volume(&cluster, host.copied(cluster.id).ok_or("nothing was copied")?).await?;
    let switch_seconds = began.elapsed().as_secs_f64();
    host.start(&cluster).await?;
    host.destroy(&cluster).await?;
    println!(
        "{}",
        serde_json::json!({
            "sleep_ms": median(sleeps), "wake_ms": median(wakes), "bytes": bytes,
            "copy_seconds": copy_seconds, "switch_seconds": switch_seconds,
        })
    );
    Ok(())
}

/// Rows that take about this much room and do not compress.
async fn fill(host: &Host, cluster: &Cluster, megabytes: u32) -> Result<(), Box<dyn Error>> {
    let stream = host.connector(cluster.id).ok_or("the engine does not run")?.connect().await?;
    let mut config = tokio_postgres::Config::new();
    config.user(model::INTERNAL_ROLE).dbname("postgres");
    let (client, connection) = config.connect_raw(stream, tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    client
        .batch_execute(&format!(
            "CREATE TABLE bulk AS SELECT g AS id, repeat(md5(g::text), 30) AS body
             FROM generate_series(1, {megabytes} * 1000) g; CHECKPOINT"
        ))
        .await?;
    drop(client);
    connection.await??;
    Ok(())
}
