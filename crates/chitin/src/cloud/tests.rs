//! A whole cloud in one process, with real PostgreSQL and `psql`.

use std::fs::File;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Instant;

use clap::Parser;
use identity::scram::Verifier;
use keys::SecretText;
use model::{AddressRange, AllowlistEntry, Cluster, ClusterId, Phase, Plan, Power, Provider, Wish};
use store::Draft;
use tokio::process::Command;
use tokio::time::sleep;

use super::*;
use crate::folder::Folder;

const PATIENCE: Duration = Duration::from_secs(120);

fn options(data: &Path, idle_after: Duration) -> StartOptions {
    // A killed test must not leave mounts behind; the engine's own tests cover encrypted volumes.
    let plain =
        ["chitin", "--sql=127.0.0.1:0", "--http=127.0.0.1:0", "--allow-unencrypted", "--encryption=none"];
    let Line { options } = Line::parse_from(plain);
    StartOptions { data: data.to_owned(), idle_after, ..options }
}

/// The options as somebody would say them, so that the defaults are those of the program.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: StartOptions,
}

fn root() -> File {
    File::open("/").unwrap()
}

fn create(cloud: &Cloud, name: &str, plan: Plan) -> Cluster {
    let everybody = AllowlistEntry {
        range: AddressRange::EVERY_IPV4,
        name: String::new(),
        sql: true,
        ui: true,
        expires_at: None,
    };
    let draft = Draft {
        name: name.parse().unwrap(),
        plan,
        provider: Provider::Gcp,
        regions: vec!["local".to_owned()],
        labels: std::collections::BTreeMap::new(),
        is_delete_protected: false,
        allowlist: vec![everybody],
        network: model::Network::default(),
        egress: model::Egress::default(),
        asked: model::Asked::default(),
    };
    cloud.store.create(draft, SystemClock.now()).unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn phase(cloud: &Cloud, id: ClusterId) -> Phase {
    cloud.store.snapshot().get(&id).unwrap().seen.phase.clone()
}

async fn add_user(cloud: &Cloud, id: ClusterId, name: &str, password: &str) {
    let verifier = Verifier::from_password(&SecretText::new(password.to_owned())).to_string();
    let administration = cloud.host.administration(id).await.unwrap();
    administration.create_user(&name.parse().unwrap(), &verifier).await.unwrap();
}

fn psql(cloud: &Cloud, cluster: &Cluster, password: &str, statement: &str) -> Command {
    let url = format!(
        "postgresql://maria@localhost:{}/defaultdb?options=--cluster%3D{}&sslmode=verify-full&sslrootcert={}&connect_timeout=30",
        cloud.sql.port(),
        cluster.handle(),
        cloud.paths.root_certificate().display()
    );
    let mut psql = Command::new("psql");
    psql.args(["-X", "-At", "-v", "ON_ERROR_STOP=1", "-c", statement, &url])
        .env("PGPASSWORD", password)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    psql
}

async fn ask(cloud: &Cloud, cluster: &Cluster, password: &str, statement: &str) -> Output {
    psql(cloud, cluster, password, statement).output().await.unwrap()
}

/// Waits until a session is in the middle of `pg_sleep`.
async fn until_it_sleeps_in_a_statement(cloud: &Cloud, cluster: &Cluster, password: &str) {
    let count = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    let began = Instant::now();
    while answer(&ask(cloud, cluster, password, count).await) != "1" {
        assert!(began.elapsed() < PATIENCE, "no session sleeps");
    }
}

fn answer(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_sleeps_keeps_changed_passwords_wakes_for_the_right_one_and_outlives_a_restart() {
    let folder = Folder::new();
    let options = options(&folder.path().join("data"), Duration::from_secs(1));
    let cloud = Cloud::open(&options, root()).await.unwrap();
    let cluster = create(&cloud, "lazy-roach", Plan::Serverless);
    until("it runs", || phase(&cloud, cluster.id) == Phase::Running).await;
    add_user(&cloud, cluster.id, "maria", "first password").await;
    let made =
        "create table t as select 42 as n; alter role maria password 'second password'; select current_user";
    assert!(answer(&ask(&cloud, &cluster, "first password", made).await).ends_with("maria"));

    until("it sleeps", || phase(&cloud, cluster.id) == Phase::Asleep).await;
    assert!(!cloud.host.is_running(cluster.id));
    let refused = ask(&cloud, &cluster, "first password", "select 1").await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("password authentication failed"));
    assert_eq!(phase(&cloud, cluster.id), Phase::Asleep, "a failed sign-in woke the cluster");

    // Many waiters, one start: the last number of the postmaster's start time is the same for all.
    let mut waiters = JoinSet::new();
    for _ in 0..12 {
        let mut waiter =
            psql(&cloud, &cluster, "second password", "select n, pg_postmaster_start_time() from t");
        waiters.spawn(async move { answer(&waiter.output().await.unwrap()) });
    }
    let answers = waiters.join_all().await;
    assert!(answers[0].starts_with("42|"), "{answers:?}");
    assert!(answers.iter().all(|other| *other == answers[0]), "{answers:?}");

    cloud.close(CancellationToken::new()).await;
    let cloud = Cloud::open(&options, root()).await.unwrap();
    assert_eq!(answer(&ask(&cloud, &cluster, "second password", "select n from t").await), "42");

    // Deletion ends the open session with a reason, destroys everything, and the name is unknown at once.
    let mut long = psql(&cloud, &cluster, "second password", "select pg_sleep(600)").spawn().unwrap();
    until_it_sleeps_in_a_statement(&cloud, &cluster, "second password").await;
    cloud.store.wish(cluster.id, Wish::Deleted, SystemClock.now()).unwrap();
    let ended = timeout(PATIENCE, long.wait()).await.unwrap().unwrap();
    assert!(!ended.success());
    until("it is forgotten", || cloud.store.snapshot().get(&cluster.id).is_none()).await;
    assert!(cloud.host.on_disk().is_empty());
    let gone = ask(&cloud, &cluster, "second password", "select 1").await;
    assert!(String::from_utf8_lossy(&gone.stderr).contains("password authentication failed"));
    cloud.close(CancellationToken::new()).await;
    assert!(!folder.path().join("data/endpoint.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dedicated_cluster_stays_awake_and_a_removed_address_is_cut() {
    let folder = Folder::new();
    let cloud =
        Cloud::open(&options(&folder.path().join("data"), Duration::from_millis(200)), root()).await.unwrap();
    let cluster = create(&cloud, "busy-roach", Plan::Dedicated);
    until("it runs", || phase(&cloud, cluster.id) == Phase::Running).await;
    add_user(&cloud, cluster.id, "maria", "first password").await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(phase(&cloud, cluster.id), Phase::Running);

    let long = psql(&cloud, &cluster, "first password", "select pg_sleep(600)").spawn().unwrap();
    until_it_sleeps_in_a_statement(&cloud, &cluster, "first password").await;
    cloud
        .store
        .edit(cluster.id, SystemClock.now(), |cluster| {
            cluster.allowlist.clear();
            Ok::<_, store::Error>(())
        })
        .unwrap();
    let ended = timeout(PATIENCE, long.wait_with_output()).await.unwrap().unwrap();
    assert!(!ended.status.success());
    // No cluster admits the address any more, so whether this one exists is not said.
    let refused = ask(&cloud, &cluster, "first password", "select 1").await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("access denied"), "{said}");

    // The operator may put it to sleep; the next start of the program leaves it so.
    cloud.store.wish(cluster.id, Wish::Exists(Power::Asleep), SystemClock.now()).unwrap();
    until("it sleeps", || phase(&cloud, cluster.id) == Phase::Asleep).await;
    cloud.close(CancellationToken::new()).await;
}

/// The process ids of one cluster's engine: those that see its folder.
fn engine_processes(id: ClusterId) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    let is_engine = |pid: &i32| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("comm").trim() == "postgres" && read("mountinfo").contains(&id.to_string())
    };
    pids.filter(is_engine).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_killed_comes_back_with_every_committed_row() {
    let folder = Folder::new();
    let cloud =
        Cloud::open(&options(&folder.path().join("data"), Duration::from_secs(300)), root()).await.unwrap();
    let cluster = create(&cloud, "phoenix-roach", Plan::Serverless);
    until("it runs", || phase(&cloud, cluster.id) == Phase::Running).await;
    add_user(&cloud, cluster.id, "maria", "first password").await;
    answer(&ask(&cloud, &cluster, "first password", "create table t as select 42 as n").await);
    let long = psql(&cloud, &cluster, "first password", "select pg_sleep(600)").spawn().unwrap();
    until_it_sleeps_in_a_statement(&cloud, &cluster, "first password").await;

    let pids = engine_processes(cluster.id);
    assert!(!pids.is_empty(), "no engine was found");
    for pid in pids {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    let ended = timeout(PATIENCE, long.wait_with_output()).await.unwrap().unwrap();
    assert!(!ended.status.success());
    until("the death is seen", || phase(&cloud, cluster.id) != Phase::Running).await;
    until("it runs again", || phase(&cloud, cluster.id) == Phase::Running).await;
    assert_eq!(answer(&ask(&cloud, &cluster, "first password", "select n from t").await), "42");
    cloud.close(CancellationToken::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_half_made_is_made_anew_and_what_was_being_deleted_is_deleted() {
    let folder = Folder::new();
    let options = options(&folder.path().join("data"), Duration::from_secs(300));
    let cloud = Cloud::open(&options, root()).await.unwrap();
    let (half, doomed) =
        (create(&cloud, "half-roach", Plan::Serverless), create(&cloud, "doomed-roach", Plan::Serverless));
    for id in [half.id, doomed.id] {
        until("it runs", || phase(&cloud, id) == Phase::Running).await;
    }
    cloud.close(CancellationToken::new()).await;

    // As after a kill in the middle of making the one and of deleting the other.
    {
        let paths = Paths::prepare(&options.data).unwrap();
        let kek = keys::RootKey::open_or_create(&paths.key_encryption_key()).unwrap();
        let store = Store::open(&paths.state(), kek.sealer("state").unwrap()).unwrap();
        store.observe(half.id, model::Observation::nothing_yet()).unwrap();
        store.wish(doomed.id, Wish::Deleted, SystemClock.now()).unwrap();
    }
    let cloud = Cloud::open(&options, root()).await.unwrap();
    until("the one is forgotten", || cloud.store.snapshot().get(&doomed.id).is_none()).await;
    until("the other runs", || phase(&cloud, half.id) == Phase::Running).await;
    assert_eq!(cloud.host.on_disk(), [half.id]);
    cloud.close(CancellationToken::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clouds_cannot_share_a_data_directory() {
    let folder = Folder::new();
    let options = options(&folder.path().join("data"), Duration::from_secs(300));
    let cloud = Cloud::open(&options, root()).await.unwrap();
    let second = Cloud::open(&options, root()).await.map(|_| ()).unwrap_err();
    assert!(second.to_string().contains("in use by another Chitin"), "{second}");
    assert!(
        folder.path().join("data/endpoint.json").exists(),
        "the second took away the first one's endpoint"
    );
    cloud.close(CancellationToken::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_of_an_engine_may_leave_a_core_file_or_shows_a_secret() {
    crate::memory::keep_in();
    let folder = Folder::new();
    let options = options(&folder.path().join("data"), Duration::from_secs(300));
    let cloud = Cloud::open(&options, root()).await.unwrap();
    let cluster = create(&cloud, "mute-roach", Plan::Serverless);
    until("it runs", || phase(&cloud, cluster.id) == Phase::Running).await;
    let kek = std::fs::read_to_string(cloud.paths.key_encryption_key()).unwrap();
    let key = kek["chitin-kek-1 ".len()..].trim_end();
    let pids = engine_processes(cluster.id);
    assert!(!pids.is_empty(), "no engine was found");
    let mut looked_at = 0;
    for pid in pids.iter().map(ToString::to_string).chain(["self".to_owned()]) {
        let process = Path::new("/proc").join(&pid);
        // PostgreSQL ends processes of its own at any time; nothing else may keep us from reading (ENOENT, ESRCH).
        let read = |file: &str| match std::fs::read(process.join(file)) {
            Ok(shown) => Some(shown),
            Err(cause) => {
                assert!(matches!(cause.raw_os_error(), Some(2 | 3)), "{pid} {file}: {cause}");
                None
            }
        };
        let Some(limits) = read("limits") else { continue };
        let limits = String::from_utf8(limits).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let bounds: Vec<&str> = core["Max core file size".len()..].split_whitespace().collect();
        // 1 and not 0: with a program in core_pattern the kernel looks at no other bound (fs/coredump.c).
        assert_eq!(bounds, ["1", "1", "bytes"], "process {pid}");
        for file in ["environ", "cmdline"] {
            let Some(shown) = read(file) else { continue };
            assert!(!shown.windows(key.len()).any(|bytes| bytes == key.as_bytes()), "{pid} {file}");
        }
        looked_at += 1;
    }
    assert!(looked_at > 1, "of {} processes only {looked_at} could be looked at", pids.len());
    cloud.close(CancellationToken::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_key_of_a_running_cloud_is_rotated_under_open_sessions() {
    let folder = Folder::new();
    let options = options(&folder.path().join("data"), Duration::from_secs(300));
    let cloud = Cloud::open(&options, root()).await.unwrap();
    let cluster = create(&cloud, "turning-roach", Plan::Serverless);
    until("it runs", || phase(&cloud, cluster.id) == Phase::Running).await;
    add_user(&cloud, cluster.id, "maria", "first password").await;
    let long = psql(&cloud, &cluster, "first password", "select pg_sleep(3), 'went on'").spawn().unwrap();
    until_it_sleeps_in_a_statement(&cloud, &cluster, "first password").await;
    let before = std::fs::read_to_string(cloud.paths.key_encryption_key()).unwrap();
    let standing = cloud.rotation.rotate_root().await.unwrap();
    assert_eq!((standing.current, standing.earlier), (2, vec![1]));
    let used = cloud.host.rewrap(&cluster).await.unwrap();
    assert_eq!(used.version, "2");
    let ended = timeout(PATIENCE, long.wait_with_output()).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&ended.stdout).contains("went on"));
    assert_eq!(answer(&ask(&cloud, &cluster, "first password", "select 7").await), "7");
    cloud.close(CancellationToken::new()).await;

    // The next start finds nothing under the old version and destroys it.
    let cloud = Cloud::open(&options, root()).await.unwrap();
    until("the old version is gone", || cloud.rotation.standing().earlier.is_empty()).await;
    let after = std::fs::read_to_string(cloud.paths.key_encryption_key()).unwrap();
    assert!(!after.contains(before["chitin-kek-1 ".len()..].trim_end()));
    assert_eq!(answer(&ask(&cloud, &cluster, "first password", "select 8").await), "8");
    cloud.close(CancellationToken::new()).await;
}
