//! Measures what the walls of a sandbox cost for `bench/sandbox`: engines with all of them, and with fewer, in turns. Prints
//! one line of JSON. Walls are left out by this program alone, which is no part of what people run.

mod common;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Host, HostConfig, Launcher};
use keys::RootKey;
use model::{Cluster, Encryption};
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde_json::{Value, json};

use common::{Nothing, cluster, median};

/// How a launcher gets its orders, as the engine's room does it.
const ORDERS: &str = "CHITIN_LAUNCH";
/// First uid of those who may open sessions.
const FIRST_NODE_UID: u32 = 2_000_000_000;
/// Sleeps and wakes of one turn.
const WAKES: usize = 5;
/// Connections of one turn, each way.
const CONNECTS: usize = 200;

/// What stands between bubblewrap and PostgreSQL, from all walls to none. Bubblewrap's own stand always.
const VARIANTS: [&str; 3] = ["all", "noexec", "none"];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let done = match (words.get(1).map(String::as_str), to_close()) {
        (Some(variant), Some(orders)) if variant != "all" => open(&orders, variant == "noexec"),
        _ => {
            // As what people run is launched.
            if let Some(code) = engine::launch_if_asked() {
                return code;
            }
            measure(&words)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("{cause}");
            ExitCode::FAILURE
        }
    }
}

/// The orders of whoever is inside a sandbox: there the walls are, and not where a control group is entered on the way to it.
fn to_close() -> Option<Value> {
    let mut orders: Value = serde_json::from_str(&std::env::var(ORDERS).ok()?).ok()?;
    orders.get_mut("Close").map(Value::take)
}

/// Becomes the engine's user and the program that was ordered, with nothing else given up.
fn open(orders: &Value, is_noexec: bool) -> Result<(), Box<dyn Error>> {
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    if is_noexec {
        for folder in words(&orders["writable"]) {
            forbid_programs(&folder)?;
        }
    }
    if let (Some(uid), Some(gid)) = (orders["owner"][0].as_u64(), orders["owner"][1].as_u64()) {
        let (uid, gid) = (Uid::from_raw(uid.try_into()?), Gid::from_raw(gid.try_into()?));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    let program = &orders["then"]["Become"];
    let name = program["program"].as_str().ok_or("no program was ordered")?;
    Err(Command::new(name).args(words(&program["arguments"])).env_remove(ORDERS).exec().into())
}

fn forbid_programs(folder: &str) -> Result<(), Box<dyn Error>> {
    let has = statvfs(folder)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    for (is, flag) in [
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        if has.contains(is) {
            flags |= flag;
        }
    }
    Ok(mount_remount(folder, flags, "")?)
}

/// One variant's host with its cluster, asleep between its turns.
struct Place {
    variant: &'static str,
    host: Arc<Host>,
    cluster: Cluster,
    run: PathBuf,
}

struct Wanted {
    pgbench: String,
    rounds: usize,
    seconds: u32,
    scale: u32,
    clients: u32,
}

#[tokio::main]
async fn measure(words: &[String]) -> Result<(), Box<dyn Error>> {
    let [_, data, pgbench, rounds, seconds, scale, clients] = words else {
        return Err("usage: sandbox DATA PGBENCH ROUNDS SECONDS SCALE CLIENTS".into());
    };
    let wanted = Wanted {
        pgbench: pgbench.clone(),
        rounds: rounds.parse()?,
        seconds: seconds.parse()?,
        scale: scale.parse()?,
        clients: clients.parse()?,
    };
    let mut places = Vec::new();
    for variant in VARIANTS {
        places.push(make(Path::new(data), variant, &wanted).await?);
    }
    let mut found: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    let mut connects: Vec<Value> = Vec::new();
    for round in 0..wanted.rounds {
        // Nobody is always first.
        let count = places.len();
        for place in (0..count).map(|index| &places[(index + round) % count]) {
            let (turn, connected) = turn(place, &wanted).await?;
            found.entry(place.variant).or_default().push(turn);
            connects.extend(connected);
        }
    }
    for place in &places {
        place.host.shutdown().await;
    }
    println!("{}", json!({ "variants": found, "connects": connects }));
    Ok(())
}

async fn make(data: &Path, variant: &'static str, wanted: &Wanted) -> Result<Place, Box<dyn Error>> {
    let data = data.join(variant);
    std::fs::create_dir(&data)?;
    std::fs::set_permissions(&data, Permissions::from_mode(0o711))?;
    let host = Host::open(HostConfig {
        data: data.clone(),
        keys: Arc::new(RootKey::open_or_create(&data.join("kek"))?),
        allow_unencrypted: true,
        postgres: Vec::new(),
        default_major: None,
        encryption: Some(Encryption::None),
        attestation: None,
        launcher: Launcher { program: std::env::current_exe()?, arguments: vec![variant.to_owned()] },
        record: Arc::new(Nothing::default()),
    })
    .await?;
    let cluster = cluster()?;
    host.create(&cluster).await?;
    let run = data.join("run").join(cluster.routing_id.to_string());
    let place = Place { variant, host, cluster, run };
    pgbench(&place, wanted, &["-i", "-q", "-s", &wanted.scale.to_string()])?;
    place.host.stop(place.cluster.id).await?;
    Ok(place)
}

async fn turn(place: &Place, wanted: &Wanted) -> Result<(Value, Option<Value>), Box<dyn Error>> {
    let mut wakes = Vec::new();
    for _ in 0..WAKES {
        place.host.stop(place.cluster.id).await?;
        let began = Instant::now();
        place.host.start(&place.cluster).await?;
        wakes.push(began.elapsed().as_secs_f64() * 1e3);
    }
    // The connector is the same for all.
    let connected = if place.variant == "all" { Some(connect(place).await?) } else { None };
    let (clients, seconds) = (wanted.clients.to_string(), wanted.seconds.to_string());
    let run = ["-n", "-c", &clients, "-j", "2", "-T", &seconds, "-b"];
    let select = pgbench(place, wanted, &[&run[..], &["select-only"]].concat())?;
    let tpcb = pgbench(place, wanted, &[&run[..], &["tpcb-like"]].concat())?;
    place.host.stop(place.cluster.id).await?;
    let turn = json!({ "wake_ms": median(wakes), "select_tps": select, "tpcb_tps": tpcb });
    Ok((turn, connected))
}

/// Opens connections through the connector and by path in turns, and says what each took.
async fn connect(place: &Place) -> Result<Value, Box<dyn Error>> {
    let connector = place.host.connector(place.cluster.id).ok_or("the engine does not run")?;
    let path = place.run.join(".s.PGSQL.5432");
    let (mut proven, mut by_path) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTS {
        let began = Instant::now();
        drop(connector.connect().await?);
        proven.push(began.elapsed().as_secs_f64() * 1e6);
        let began = Instant::now();
        drop(UnixStream::connect(&path)?);
        by_path.push(began.elapsed().as_secs_f64() * 1e6);
        // Each is a new process of the engine's.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(json!({ "connector_us": median(proven), "path_us": median(by_path) }))
}

/// Runs pgbench as the engine's own node, on its socket. Returns the rate, where it tells one.
fn pgbench(place: &Place, wanted: &Wanted, arguments: &[&str]) -> Result<Option<f64>, Box<dyn Error>> {
    let mut command = if rustix::process::geteuid().is_root() {
        std::fs::set_permissions(&place.run, Permissions::from_mode(0o711))?;
        let node = (FIRST_NODE_UID + place.cluster.routing_id.get()).to_string();
        let mut as_node = Command::new("setpriv");
        as_node.args(["--reuid", &node, "--regid", &node, "--clear-groups"]).arg(&wanted.pgbench);
        as_node
    } else {
        Command::new(&wanted.pgbench)
    };
    command.arg("-h").arg(&place.run).args(["-U", model::INTERNAL_ROLE]).args(arguments).arg("postgres");
    let done = command.current_dir("/").output()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        return Err(format!("pgbench: {}", String::from_utf8_lossy(&done.stderr).trim()).into());
    }
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    Ok(rate)
}
