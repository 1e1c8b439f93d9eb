//! A stop in good order: what clients of the API hear, what a second signal does, and the last words.

use std::fs::File;
use std::process::Stdio;

use house::api::read_answer;
use house::cloud::PATIENCE;
use house::command::{Finished, eventually, run_with};
use house::runner::skip;
use house::{Cloud, Cluster, Options, Wire};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const NAMES: [&str; 6] = ["stop-one", "stop-two", "stop-three", "stop-four", "stop-five", "stop-six"];

fn state_of(cloud: &Cloud, name: &str) -> Option<String> {
    let listed = cloud.json(["cluster", "list"]);
    let all = listed.as_array().expect("a list");
    let one = all.iter().find(|one| one["name"] == name)?;
    Some(one["state"].as_str().expect("a state").to_owned())
}

pub fn what_six_creates_are_told_at_a_stop_is_what_exists_afterwards() {
    let cloud = Cloud::plain();
    let told: Vec<(&str, Finished)> = std::thread::scope(|scope| {
        let create =
            |name| (name, run_with(&mut cloud.command(["cluster", "create", name]), b"", 3 * PATIENCE));
        let clients: Vec<_> = NAMES.into_iter().map(|name| scope.spawn(move || create(name))).collect();
        eventually("some are being made", PATIENCE, || {
            let listed = cloud.json(["cluster", "list"]);
            (listed.as_array().expect("a list").len() >= 3).then_some(())
        });
        cloud.signal(Signal::TERM);
        assert!(cloud.await_end().success(), "{}", cloud.log_end());
        clients.into_iter().map(|client| client.join().expect("it ends")).collect()
    });
    cloud.boot();
    let mut on_record = 0;
    for (name, told) in told {
        let said = format!("{}{}", told.stdout, told.stderr);
        println!("  {name} was told: {}", said.trim());
        assert!(!said.contains("no cloud answers"), "{name}: {said}");
        let state = state_of(&cloud, name);
        if told.status.success() {
            assert_eq!(state.as_deref(), Some("CREATED"), "{name}: {said}");
        } else if said.contains("is on record") {
            on_record += 1;
            assert!(said.contains("Chitin is stopping") && said.contains("cluster show"), "{name}: {said}");
            assert!(state.is_some(), "{name}: {said}");
            eventually("it is made after the next start", PATIENCE, || {
                (state_of(&cloud, name)? == "CREATED").then_some(())
            });
        } else {
            assert!(
                said.contains("Chitin is stopping") && said.contains("nothing was changed"),
                "{name}: {said}"
            );
            assert_eq!(state, None, "{name}: {said}");
        }
    }
    assert!(on_record > 0, "the stop came too late to show anything");
}

/// A connection to the API, on which nothing was asked yet.
fn api(cloud: &Cloud) -> Wire {
    let mut wire = cloud.connect(cloud.http_address(), None).expect("the API listens");
    wire.handshake(cloud.trust(), "localhost").expect("the API speaks TLS 1.3");
    wire
}

/// A session that is in the middle of a statement, which a stop waits for.
fn busy(one: &Cluster<'_>) -> Wire {
    let mut working = one.sign_in();
    working.begin("select pg_sleep(600)", &mut one.sign_in());
    working
}

fn await_log(cloud: &Cloud, text: &str) {
    eventually(text, PATIENCE, || cloud.log().contains(text).then_some(()));
}

pub fn a_request_in_flight_at_a_stop_is_answered_and_a_new_one_is_refused_in_words() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = cloud.cluster("in-flight", &[]);
    let session = busy(&one);
    // An engine that does not answer: a request that needs it is in flight for as long as it takes.
    let inside = house::machine::descendants(one.engine_processes().first().expect("it runs").pid);
    let is_postgres = |pid: u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "postgres")
    };
    let first = inside.iter().map(|process| process.pid).filter(|pid| is_postgres(*pid)).min();
    let first = Pid::from_raw(first.expect("an engine").cast_signed()).expect("not zero");
    kill_process(first, Signal::STOP).expect("ours");
    let path = format!("/api/v1/clusters/{}/sql-users", one.id);
    let mut in_flight = api(&cloud);
    let user = json!({"name": "late", "password": "a long enough password"});
    cloud.ask(&mut in_flight, "POST", &path, Some(&user)).expect("it is read");
    // Another request after it has been answered.
    cloud.call("GET", "/api/v1/clusters", None).ok();
    cloud.signal(Signal::TERM);
    await_log(&cloud, "stopping: open sessions and requests may finish");

    for (method, path) in
        [("GET", "/api/v1/clusters"), ("POST", "/api/v1/clusters"), ("GET", "/api/v1/chitin/status")]
    {
        let new = cloud.call(method, path, Some(&json!({})));
        assert_eq!(new.status, 503, "{}", new.text);
        assert!(
            new.text.contains("Chitin is stopping") && new.text.contains("nothing was changed"),
            "{}",
            new.text
        );
        assert_eq!(new.body["details"][0]["reason"], "STOPPING", "{}", new.text);
    }
    let said = cloud.chitin(["cluster", "list"]);
    assert_eq!(said.code(), 1, "{said:?}");
    assert!(said.stderr.contains("Chitin is stopping") && said.stderr.contains("chitin start"), "{said:?}");
    assert!(!said.stderr.contains("no cloud answers"), "{said:?}");

    // What was begun is not waited for any longer. Where its own limit was over before, it has its own answer.
    cloud.signal(Signal::TERM);
    let answer = read_answer(&mut in_flight).expect("it is answered");
    assert_eq!(answer.status, 503, "{}", answer.text);
    // On a busy machine it may not have been begun when the signal came; that is told as well.
    let is_own_answer =
        ["it took too long to open a session", "this request was refused and nothing was changed"]
            .iter()
            .any(|words| answer.text.contains(words));
    for part in ["did not finish", "whether it was carried out is not known", "chitin user list in-flight"] {
        assert!(is_own_answer || answer.text.contains(part), "{part}: {}", answer.text);
    }
    drop(session);
    assert!(cloud.await_end().success(), "{}", cloud.log_end());
    cloud.boot();
    one.sign_in();
}

pub fn a_second_signal_is_no_error_and_does_not_wait_for_sessions() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("hurried", &[]);
    one.sign_in().query("create table t as select 42 as x").expect("a table");
    let rounds = [(Signal::TERM, Signal::TERM), (Signal::TERM, Signal::INT), (Signal::INT, Signal::TERM)];
    for (round, (first, second)) in rounds.into_iter().enumerate() {
        let mut session = busy(&one);
        let before = cloud.log().len();
        cloud.signal(first);
        eventually("it stops", PATIENCE, || {
            cloud.log()[before..].contains("letting open sessions finish").then_some(())
        });
        cloud.signal(second);
        let log = || cloud.log()[before..].to_owned();
        eventually("it hurries", PATIENCE, || log().contains("told to stop once more").then_some(()));
        // A third changes nothing, and may come when it has ended.
        if Pid::from_raw(cloud.pid().cast_signed()).is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok())
        {
            println!("  a third signal was sent in round {round}");
        }
        assert!(cloud.await_end().success(), "{}", cloud.log_end());
        assert!(!log().contains("ERROR"), "{}", log());
        assert!(log().contains("stopped: no engine runs, and no volume is unlocked"), "{}", log());
        assert!(!log().contains("sessions did not end in time"), "it did wait: {}", log());
        let told = session.results().expect_err("it is over");
        assert!(["57P01", "closed", "08006"].contains(&told.code.as_str()), "{told:?}");
        cloud.boot();
        assert_eq!(one.sign_in().value("select x from t"), "42");
    }
}

/// A file that somebody who looks into the volume of a running cluster has open, in the cloud's own mount namespace.
fn held(one: &Cluster<'_>) -> File {
    let volume = one.cloud.data().join("clusters").join(&one.id);
    if !volume.join("image").exists() {
        skip("no volume of this machine has a file system of its own");
    }
    let inside = format!("/proc/{}/root{}/files/v/pg/PG_VERSION", one.cloud.pid(), volume.display());
    File::open(&inside).unwrap_or_else(|cause| panic!("{inside}: {cause}"))
}

pub fn a_cluster_whose_volume_somebody_holds_is_not_asleep_until_it_is_locked() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("held-awake", &[]);
    one.sign_in().query("create table t as select 42 as x").expect("a table");
    let held = held(&one);
    let before = cloud.log().len();
    let mut sleeping = cloud.command(["cluster", "sleep", &one.name]);
    let mut sleeping = sleeping.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let since = || cloud.log()[before..].to_owned();
    eventually("it is tried again", PATIENCE, || {
        (since().matches("could not be put to sleep; it is tried again").count() >= 2).then_some(())
    });
    assert!(!since().contains("its key has left the kernel"), "{}", since());
    assert_ne!(one.phase(), "asleep");
    let shown = cloud.get(&format!("/api/v1/chitin/clusters/{}", one.id));
    assert!(shown.to_string().contains("\"is_unlocked\":true"), "{shown}");
    drop(held);
    eventually("it sleeps", PATIENCE, || (one.phase() == "asleep").then_some(()));
    assert!(since().contains("its key has left the kernel"), "{}", since());
    sleeping.wait().expect("ours");
    assert_eq!(one.sign_in().value("select x from t"), "42");
    cloud.stop();
}

pub fn a_stop_that_cannot_lock_a_volume_says_so_and_ends_with_an_error() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("held-open", &[]);
    one.sign_in().query("create table t as select 42 as x").expect("a table");
    let held = held(&one);
    let before = cloud.log().len();
    cloud.signal(Signal::TERM);
    let ended = cloud.await_end();
    assert_eq!(ended.code(), Some(1), "{}", cloud.log_end());
    let log = cloud.log()[before..].to_owned();
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap_or_else(|| panic!("{log}"));
    for part in
        [one.id.as_str(), "stopped, but the kernel still has volumes unlocked", "start Chitin once more"]
    {
        assert!(last.contains(part), "{part}: {last}");
    }
    assert!(!log.contains("no volume is unlocked"), "{log}");
    drop(held);
    cloud.boot();
    assert_eq!(eventually("it starts", PATIENCE, || one.try_sign_in().ok()).value("select x from t"), "42");
    cloud.stop();
}

pub fn a_stop_whose_data_directory_was_moved_says_what_the_kernel_has_unlocked() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("moved-away", &[]);
    one.sign_in().query("create table t as select 42 as x").expect("a table");
    drop(held(&one));
    let (before, moved) = (cloud.log().len(), cloud.scratch().join("moved"));
    std::fs::rename(cloud.data(), &moved).expect("the same file system");
    let mut sleeping = cloud.program(house::cloud::program());
    sleeping.args(["cluster", "sleep", &one.name, "--data"]).arg(&moved);
    let refused = run_with(&mut sleeping, b"", PATIENCE).refused();
    assert!(refused.contains("removed or replaced") && refused.contains("nothing was changed"), "{refused}");
    cloud.signal(Signal::TERM);
    let ended = cloud.await_end();
    assert_eq!(ended.code(), Some(1), "{}", cloud.log_end());
    let log = cloud.log()[before..].to_owned();
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap_or_else(|| panic!("{log}"));
    let place = moved.display().to_string();
    for part in [one.id.as_str(), "still has volumes unlocked", &place, "move the data directory back"] {
        assert!(last.contains(part), "{part}: {last}");
    }
    for untrue in ["no volume is unlocked", "its key has left the kernel"] {
        assert!(!log.contains(untrue), "{untrue}: {log}");
    }
    std::fs::rename(&moved, cloud.data()).expect("the same file system");
    cloud.boot();
    assert_eq!(eventually("it starts", PATIENCE, || one.try_sign_in().ok()).value("select x from t"), "42");
    cloud.stop();
}
