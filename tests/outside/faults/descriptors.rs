//! A cloud that may open few files: nobody's sessions take what the API, engines and neighbours need, and one that can open
//! nothing at all for a while goes on afterwards.

use std::path::Path;
use std::process::Command;

use house::api::curl;
use house::cloud::{Cluster, PATIENCE, program};
use house::command::{eventually, run, run_with};
use house::ledger::Ledger;
use house::machine::open_descriptors;
use house::{Cloud, Options, Wire};

/// Descriptors of a cloud that has few.
const FEW: u32 = 256;
/// Descriptors with which nobody can be served.
const TOO_FEW: u32 = 100;
/// Lines with a warning that a crowd may cause.
const WARNINGS_MAX: usize = 20;

fn started_with_few(options: Options) -> Cloud {
    Cloud::start(Options { descriptors: Some(FEW), ..options })
}

/// Signs in until that is refused.
fn all_that_it_gets(cluster: &Cluster<'_>) -> Vec<Wire> {
    let sessions: Vec<Wire> =
        std::iter::from_fn(|| cluster.try_sign_in().inspect_err(|refused| assert_no_room(refused)).ok())
            .take(FEW as usize)
            .collect();
    assert!(sessions.len() < FEW as usize, "nobody was refused");
    sessions
}

#[track_caller]
fn assert_no_room(refused: &house::wire::Refusal) {
    assert_eq!(refused.code, "53300", "{refused:?}");
    assert!(refused.message.contains("no room for another session of this cluster"), "{refused:?}");
}

/// Asks the API by TCP, as others than the operator do.
#[track_caller]
fn api_answers(cloud: &Cloud) {
    let key = std::fs::read_to_string(cloud.data().join("admin-key")).expect("the key");
    let mut command = Command::new("curl");
    command.arg("--cacert").arg(cloud.root_certificate());
    command.args(["-H", &format!("Authorization: Bearer {}", key.trim())]);
    command.arg(format!("https://localhost:{}/api/v1/clusters", cloud.http_address().port()));
    curl(&mut command, None).ok();
}

fn warnings(cloud: &Cloud) -> usize {
    cloud.log().lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).count()
}

/// Sets how many files a process that runs may open.
fn limit(pid: u32, files: usize) {
    run(Command::new("prlimit").arg(format!("--pid={pid}")).arg(format!("--nofile={files}:{FEW}"))).ok();
}

pub fn one_tenant_s_sessions_leave_the_api_engines_and_neighbours_what_they_need() {
    let cloud = started_with_few(Options::unencrypted(&[]));
    let (greedy, neighbour) = (cloud.cluster("takes-all", &[]), cloud.cluster("has-none-yet", &[]));
    let ledger = Ledger::open(&neighbour);
    ledger.during(|| take_all(&cloud, &greedy, &neighbour));
    ledger.is_kept();
}

/// One takes every session that it gets, and the other one and a third have what they need.
fn take_all(cloud: &Cloud, greedy: &Cluster<'_>, neighbour: &Cluster<'_>) {
    let before = warnings(cloud);
    let mut taken = all_that_it_gets(greedy);
    assert!(taken.len() >= 8, "{} sessions are too few", taken.len());
    for _ in 0..100 {
        assert_no_room(&greedy.try_sign_in().err().expect("there is no room"));
    }
    // Who has not signed in takes nothing of that either.
    let silent: Vec<Wire> = (0..FEW).map(|_| Wire::tcp(cloud.sql_address())).collect();
    api_answers(cloud);
    cloud.chitin(["status"]).ok();
    assert_eq!(neighbour.sign_in().value("select 1"), "1");
    let others = all_that_it_gets(neighbour);
    assert!(!others.is_empty() && others.len() < taken.len());
    // A third one is made, its engine started, and its client let in beside both.
    let late = cloud.cluster("comes-last", &[]);
    assert_eq!(late.sign_in().value("select 1"), "1");
    api_answers(cloud);
    assert!(open_descriptors(cloud.pid()) < FEW as usize);
    for session in &mut taken {
        assert_eq!(session.value("select 1"), "1");
    }
    let more = warnings(cloud) - before;
    assert!(more <= WARNINGS_MAX, "{more} warnings:\n{}", cloud.log_end());
    assert!(cloud.log().contains("raise the limit on open files (LimitNOFILE="), "{}", cloud.log_end());

    let count = taken.len();
    drop((taken, others, silent));
    eventually("everything is given back", PATIENCE, || {
        let sessions: Vec<Wire> = (0..count).map_while(|_| greedy.try_sign_in().ok()).collect();
        (sessions.len() == count).then_some(())
    });
}

pub fn a_limit_on_open_files_that_is_too_low_is_said_at_the_start() {
    let cloud = started_with_few(Options::unencrypted(&[]));
    let low = format!("the limit on open files is low: {FEW}");
    assert!(cloud.log().contains(&low), "{}", cloud.log());
    let status = cloud.json(["status"]);
    let walls = status["machine"]["capabilities"].as_array().expect("a list");
    let wall = walls.iter().find(|wall| wall["name"] == "open files").expect("a line of its own");
    assert_eq!(wall["is_present"], false, "{wall}");
    let told = |field: &str| wall[field].as_str().unwrap_or_default();
    assert!(told("explanation").contains(&low) && told("next_step").contains("LimitNOFILE="), "{wall}");

    let folder = tempfile::tempdir().expect("a temporary directory");
    let refused = start_in(folder.path(), "prlimit", &[&format!("--nofile={TOO_FEW}:{TOO_FEW}")]);
    assert!(
        refused.contains(&format!("the limit on open files is {TOO_FEW}, and Chitin needs at least ")),
        "{refused}"
    );
    assert!(refused.contains("LimitNOFILE=") && refused.contains("ulimit -n"), "{refused}");
    assert!(!folder.path().join("data").exists(), "it has begun nothing");
}

/// Starts a cloud in vain, by way of another program, and returns what it said.
fn start_in(folder: &Path, by: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(by);
    command.args(arguments).arg(program()).args([
        "start",
        "--sql",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--data",
    ]);
    run_with(command.arg(folder.join("data")), b"", PATIENCE).refused()
}

pub fn equal_warnings_are_counted_and_everything_goes_on_when_files_can_be_opened_again() {
    // Encrypted, if this machine can: volumes are looked at all the time.
    let cloud = started_with_few(Options::with(&["--allow-unencrypted"]));
    let one = cloud.cluster("goes-on", &[]);
    let mut session = one.sign_in();
    let backend = session.value("select pg_backend_pid()");
    let before = cloud.log().len();
    let ledger = Ledger::open(&one);
    ledger.during(|| {
        limit(cloud.pid(), 3);
        ledger.goes_on();
    });
    let waiting: Vec<Wire> = (0..4).map(|_| Wire::tcp(cloud.sql_address())).collect();
    let said = "a connection could not be accepted cause=";
    let since = || cloud.log()[before..].to_owned();
    eventually("it is counted", PATIENCE, || since().contains(" more in 10 seconds: ").then_some(()));
    // Twenty times a second, if each were logged.
    let lines = since().lines().filter(|line| line.contains(said) && !line.contains(" more in ")).count();
    assert_eq!(lines, 1, "{}", since());
    assert_eq!(session.value("select pg_backend_pid()"), backend, "what is open goes on");
    limit(cloud.pid(), FEW as usize);
    drop(waiting);
    let mut another = eventually("others come in again", PATIENCE, || one.try_sign_in().ok());
    assert_eq!(another.value("select 1"), "1");
    api_answers(&cloud);
    cloud.chitin(["status"]).ok();
    assert_eq!(session.value("select pg_backend_pid()"), backend, "its engine is the same");
    ledger.is_kept();
    for harm in ["panicked", "was lost", "does not answer any more"] {
        assert!(!since().contains(harm), "{}", since());
    }
}

pub fn an_engine_more_than_there_is_room_for_is_refused_with_the_reason_and_runs_once_another_sleeps() {
    let cloud = started_with_few(Options::unencrypted(&[]));
    let one = cloud.cluster("engine-0", &[]);
    one.sleep();
    let mut running = Vec::new();
    let refused = loop {
        let name = format!("engine-{}", running.len() + 1);
        let made = run_with(&mut cloud.command(["cluster", "create", &name]), b"", PATIENCE);
        if !made.status.success() {
            break made.refused();
        }
        running.push(name);
        assert!(running.len() < FEW as usize / 8, "nobody was refused");
    };
    assert!(running.len() >= 2, "{refused}");
    let reason = "the limit on open files leaves no room for another";
    assert!(refused.contains(reason) && refused.contains("LimitNOFILE="), "{refused}");
    let refused = one.try_sign_in().err().expect("its engine is one more than there is room for");
    assert_eq!(refused.code, "57P03", "{refused:?}");
    let alerts = cloud.json(["status"])["alerts"].to_string();
    assert!(alerts.contains(&one.name) && alerts.contains(reason), "{alerts}");
    cloud.chitin(["cluster", "sleep", &running[0]]).ok();
    let mut session = eventually("there is room for it", PATIENCE, || one.try_sign_in().ok());
    assert_eq!(session.value("select 1"), "1");
}
