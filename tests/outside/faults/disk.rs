//! The file system of the state is full, and is freed again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use house::cloud::{Cluster, PATIENCE};
use house::command::{eventually, run, run_with};
use house::ledger::Ledger;
use house::machine;
use house::runner::skip;
use house::{Cloud, Options};
use serde_json::Value;

/// Says that this process is the one in the mount namespace.
const INSIDE: &str = "CHITIN_TEST_INSIDE";

/// Runs the test once more in a mount namespace of its own, which takes what it mounts away with it. False in the one inside.
pub(super) fn goes_inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    if !rustix::process::geteuid().is_root() {
        skip("only root can mount a small file system");
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave"]).arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", name]).env(INSIDE, "1");
    let said = run_with(&mut command, b"", 6 * PATIENCE).ok();
    assert!(said.contains("1 passed"), "it did not run there: {said}");
    true
}

/// Puts everything of the data directory but the clusters' folders on a file system of its own with so many MiB.
fn move_state_to_small_disk(cloud: &Cloud, mebibytes: u32) {
    let (data, real) = (cloud.data(), cloud.scratch().join("large"));
    fs::rename(&data, &real).expect("the same file system");
    fs::create_dir(&data).expect("a new directory");
    let sized = format!("size={mebibytes}m,mode=0700");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &sized, "small"]).arg(&data)).ok();
    // The reserve has the size that its file system asks for, so the small one gets its own.
    let steps = "cd \"$0\" && rm -f state.redb.reserve && for each in *; do [ \"$each\" = clusters ] || cp -a \"$each\" \"$1\"; done && \
                 mkdir -m 700 \"$1/clusters\" && mount --bind clusters \"$1/clusters\"";
    run(Command::new("sh").args(["-c", steps]).arg(&real).arg(&data)).ok();
}

/// Ends everything, and counts what is left on the machine but for what the test has mounted itself.
pub(super) fn leaves_nothing(cloud: &Cloud, mounted: &[PathBuf]) {
    cloud.kill();
    let own: Vec<String> =
        mounted.iter().map(|point| format!("{} is still mounted", point.display())).collect();
    eventually("nothing is left", PATIENCE, || {
        let left = machine::leftovers(&cloud.data(), &[]);
        left.iter().all(|one| own.contains(one)).then_some(())
    });
}

/// Writes until nothing more goes in.
fn fill(data: &Path, name: &str) -> PathBuf {
    let path = data.join(name);
    let filled =
        run(Command::new("dd").arg("if=/dev/zero").arg(format!("of={}", path.display())).arg("bs=4k"));
    assert!(filled.stderr.contains("No space left"), "{}", filled.stderr);
    path
}

fn alerts(cloud: &Cloud) -> String {
    let status: Value = cloud.json(["status"]);
    status["alerts"].as_array().expect("a list").iter().map(|alert| alert["what"].to_string()).collect()
}

/// Sets another password, as an operator would. Whatever is answered is true: the new one works, or the old one does.
fn change_password<'cloud>(of: &Cluster<'cloud>) -> Cluster<'cloud> {
    let cloud = of.cloud;
    let command = ["user", "password", &of.name, &of.user, "--output", "json"];
    let answer = run_with(&mut cloud.command(command), b"", PATIENCE);
    if !answer.status.success() {
        of.sign_in();
        return of.clone();
    }
    let said: Value = serde_json::from_str(&answer.stdout).expect("JSON");
    let changed = of.with_user(&of.user, said["password"].as_str().expect("the new password"));
    changed.sign_in();
    changed
}

/// Makes a user. Whatever is answered is true: the user is there and signs in, or it is not.
fn make_user(of: &Cluster<'_>, name: &str) {
    let cloud = of.cloud;
    let answer =
        run_with(&mut cloud.command(["user", "create", &of.name, name, "--output", "json"]), b"", PATIENCE);
    let is_there =
        of.psql(&format!("select count(*) from pg_roles where rolname = '{name}'")).ok().trim() == "1";
    assert_eq!(answer.status.success(), is_there, "{answer:?}");
    if is_there {
        let said: Value = serde_json::from_str(&answer.stdout).expect("JSON");
        of.with_user(name, said["password"].as_str().expect("a password")).sign_in();
    }
}

/// Makes roles by SQL, as many as a user with CREATEROLE likes: the state keeps a copy of them.
fn make_roles(of: &Cluster<'_>, name: &str, count: u32) {
    of.psql(&format!(
        "do $$ begin for n in 1..{count} loop execute 'create role {name}_' || n; end loop; end $$"
    ))
    .ok();
}

pub fn a_full_disk_of_the_state_stops_nothing_that_runs_and_everything_goes_on_once_it_is_freed() {
    if goes_inside(
        "faults::disk::a_full_disk_of_the_state_stops_nothing_that_runs_and_everything_goes_on_once_it_is_freed",
    ) {
        return;
    }
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let mut busy = cloud.cluster("busy-one", &[]);
    let (greedy, sleeper) = (cloud.cluster("greedy-one", &[]), cloud.cluster("sleepy-one", &[]));
    cloud.cluster("goes-early", &[]);
    busy.psql("create table ledger (entry int)").ok();
    cloud.stop();
    move_state_to_small_disk(&cloud, 24);
    cloud.boot();
    let mut ledger = 0;
    let mut acknowledge = |busy: &Cluster<'_>| {
        busy.psql(&format!("insert into ledger values ({ledger})")).ok();
        ledger += 1;
        assert_eq!(busy.psql("select count(*) from ledger").ok().trim(), ledger.to_string());
    };
    acknowledge(&busy);
    for each in [&greedy, &sleeper] {
        each.sign_in();
    }
    let mut session = busy.sign_in();

    // Full for whoever comes first, and not for the state: what cannot wait has room, what makes it grow has not.
    let reserve = cloud.data().join("state.redb.reserve");
    let first = fill(&cloud.data(), "filler");
    let refused = cloud.chitin(["cluster", "create", "third-one"]).refused();
    assert!(refused.contains("nearly full") && refused.contains("nothing was changed"), "{refused}");
    assert!(alerts(&cloud).contains("nearly full"), "{}", alerts(&cloud));
    make_roles(&greedy, "early", 4_000);
    // What was kept for everybody is not for one cluster's many roles.
    sleeper.sleep();
    cloud.chitin(["cluster", "delete", "goes-early", "--yes"]).ok();
    make_user(&busy, "greta");
    acknowledge(&busy);

    // Full to the last byte, with the reserve's.
    let _ = fs::remove_file(&reserve);
    let second = fill(&cloud.data(), "filler-2");
    make_roles(&busy, "later", 400);
    make_user(&busy, "gretel");
    eventually("the state could not be written", PATIENCE, || {
        alerts(&cloud).contains("the state could not be written").then_some(())
    });
    assert!(alerts(&cloud).contains("nearly full"), "{}", alerts(&cloud));
    assert_eq!(session.value("select 7"), "7", "an open session goes on");
    acknowledge(&busy);
    busy = change_password(&busy);
    make_user(&busy, "during");
    assert_eq!(busy.phase(), "running");

    // Freed: everything goes on by itself.
    for filler in [first, second] {
        fs::remove_file(filler).expect("a filler");
    }
    eventually("the alerts of the state end", PATIENCE, || {
        (!alerts(&cloud).contains("the state ")).then_some(())
    });
    busy = change_password(&busy);
    make_user(&busy, "afterwards");
    acknowledge(&busy);
    let third = cloud.cluster("third-one", &[]);
    for each in [&third, &greedy] {
        each.sleep();
        each.sign_in();
    }
    sleeper.sign_in();
    run_with(&mut cloud.command(["cluster", "delete", "third-one", "--yes"]), b"", PATIENCE).ok();
    assert!(reserve.exists(), "the reserve is there again");
    drop(session);
    // Killed, so that nothing is put right on the way out.
    cloud.kill();
    cloud.boot();
    acknowledge(&busy);
    greedy.sign_in();
    leaves_nothing(&cloud, &[cloud.data(), cloud.data().join("clusters")]);
}

pub fn a_state_that_is_removed_while_it_is_in_use_is_an_alarm_and_nothing_is_lost() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let cluster = cloud.cluster("stays-here", &["--plan", "dedicated"]);
    cloud.chitin(["allowlist", "add", "stays-here", "127.0.0.0/8"]).ok();
    let ledger = Ledger::open(&cluster);
    ledger.during(|| remove_and_bring_back(&cloud, &cluster));
    cloud.cluster("not-lost-now", &[]);
    cloud.stop();
    cloud.boot();
    ledger.is_kept();
    assert_eq!(cloud.json(["status"])["clusters"], 2);
}

/// Removes the state, and brings it back as the alarm says it.
fn remove_and_bring_back(cloud: &Cloud, cluster: &Cluster<'_>) {
    let (state, aside) = (cloud.data().join("state.redb"), cloud.data().join("aside"));
    fs::rename(&state, &aside).expect("the state");
    let refused = cloud.chitin(["cluster", "create", "would-be-lost"]).refused();
    assert!(refused.contains("removed or replaced") && refused.contains("nothing was changed"), "{refused}");
    assert!(alerts(cloud).contains("removed or replaced"), "{}", alerts(cloud));
    cluster.sign_in();
    open_egress_in_vain(cluster);
    fs::remove_file(&aside).expect("the state");
    // As the alarm says it.
    let said = alerts(cloud);
    let (_, after) = said.split_once("cp /proc/").expect("the next step");
    let from = format!("/proc/{}", after.split(' ').next().expect("a path"));
    run(Command::new("cp").arg(from).arg(&state)).ok();
    eventually("the alarm ends", PATIENCE, || alerts(cloud).is_empty().then_some(()));
}

/// Opens the engine's way out, which is in the engine as well as in the state that cannot be written: in neither it stays.
fn open_egress_in_vain(cluster: &Cluster<'_>) {
    if !rustix::process::geteuid().is_root() {
        // Refused before anything is tried.
        return;
    }
    let refused = cluster.cloud.chitin(["egress", "engine", &cluster.name, "on"]).refused();
    assert!(refused.contains("nothing was changed"), "{refused}");
    assert_eq!(cluster.psql("select count(*) from pg_foreign_data_wrapper").ok().trim(), "0");
    assert_eq!(cluster.cloud.json(["egress", "show", &cluster.name])["engine"], false);
}

pub fn an_older_state_than_the_clusters_on_the_disk_is_an_alarm() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let known = cloud.cluster("known-to-both", &[]);
    let ledger = Ledger::open(&known);
    ledger.during(|| {});
    cloud.stop();
    let (state, older) = (cloud.data().join("state.redb"), cloud.scratch().join("older"));
    fs::copy(&state, &older).expect("a copy");
    cloud.boot();
    assert!(alerts(&cloud).is_empty(), "{}", alerts(&cloud));
    cloud.chitin(["allowlist", "add", "known-to-both", "10.9.8.0/24"]).ok();
    ledger.during(|| {});
    let newer = cloud.cluster("newer-than-it", &[]);
    cloud.stop();
    fs::copy(&older, &state).expect("the older state");
    cloud.boot();
    let shown = alerts(&cloud);
    assert!(shown.contains("older than what lies on the disk") && shown.contains(&newer.id), "{shown}");
    assert!(shown.contains("known-to-both"), "one that it knows has changed since: {shown}");
    assert!(cloud.log().contains("the state is older than what lies on the disk"));
    assert!(
        cloud.data().join("clusters").join(&newer.id).join("complete.json").exists(),
        "it is left as it is"
    );
    // Whoever is made now does not get the number of the one that lies there, nor the OS user that goes with it.
    let other = cloud.cluster("made-afterwards", &[]);
    let number =
        |of: &Cluster<'_>| of.handle.rsplit_once('-').expect("a number").1.parse::<u32>().expect("a number");
    assert!(number(&other) > number(&newer), "{} and {}", other.handle, newer.handle);
    ledger.is_kept();
}
