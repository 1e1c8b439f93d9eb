//! Many operations at once, on clusters that work meanwhile: each does what it says, and nothing of them is left over.

use std::collections::BTreeSet;

use house::cloud::PATIENCE;
use house::command::{eventually, run_with};
use house::ledger::Ledger;
use house::machine::{self, open_descriptors};
use house::{Cloud, Cluster};
use serde_json::Value;

/// Descriptors that one cluster more may have open.
const OF_ONE_MORE: usize = 12;

/// Commands of one person, one after the other.
type Person = Vec<Vec<String>>;

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// What people do at the same time. All of it is undone at the end but what [`is_as_they_left_it`] looks for.
fn people() -> Vec<Person> {
    let lines = |lines: &[&str]| lines.iter().map(|line| words(line)).collect();
    let mut all: Vec<Person> = Vec::new();
    for number in 0..3 {
        all.push(lines(&[
            &format!("cluster create passing-{number}"),
            &format!("user create passing-{number} ivan"),
            &format!("cluster sleep passing-{number}"),
            &format!("cluster delete passing-{number} --yes"),
        ]));
        all.push(lines(&[
            &format!("user create busy-one user_{number}"),
            &format!("database create busy-one base_{number}"),
            &format!("user password busy-one user_{number}"),
            &format!("database rename busy-one base_{number} kept_{number}"),
            &format!("user create busy-one gone_{number}"),
            &format!("user delete busy-one gone_{number} --yes"),
        ]));
        all.push(lines(&[
            &format!("allowlist add busy-two 10.{number}.0.0/24"),
            &format!("allowlist add busy-two 10.{number}.1.0/24"),
            &format!("allowlist remove busy-two 10.{number}.1.0/24"),
            "status",
        ]));
    }
    all.push(lines(&[
        "cluster update busy-two --storage 20",
        "key rotate busy-two --data-key",
        "cluster list",
    ]));
    all.push(lines(&["cluster create stays-there", "cluster protect stays-there", "key rotate --root"]));
    all
}

fn run_all(cloud: &Cloud, people: &[Person]) {
    std::thread::scope(|scope| {
        for person in people {
            scope.spawn(move || {
                for command in person {
                    let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
                    let said = run_with(&mut cloud.command_of(&arguments), b"", 2 * PATIENCE);
                    assert!(said.status.success(), "{}: {said:?}", command.join(" "));
                }
            });
        }
    });
}

fn names(rows: &Value, field: &str) -> BTreeSet<String> {
    let rows = rows.as_array().expect("a list").iter();
    rows.map(|row| row[field].as_str().expect("a name").to_owned()).collect()
}

fn is_as_they_left_it(cloud: &Cloud, busy: &Cluster<'_>) {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    let clusters = names(&cloud.json(["cluster", "list"]), "name");
    assert_eq!(clusters, set(&["busy-one", "busy-two", "napping-one", "stays-there"]));
    let users = names(&cloud.json(["user", "list", "busy-one"]), "name");
    assert_eq!(users, set(&["maria", "user_0", "user_1", "user_2"]));
    let kept = "select count(*) from pg_database where datname like 'kept\\_%' or datname like 'base\\_%'";
    assert_eq!(busy.sign_in().value(kept), "3");
    let listed = cloud.json(["allowlist", "list", "busy-two"]).to_string();
    for number in 0..3 {
        assert!(
            listed.contains(&format!("10.{number}.0.0")) && !listed.contains(&format!("10.{number}.1.0")),
            "{listed}"
        );
    }
}

/// What the machine shows of a cloud: its mounts, loop devices, clusters' folders and sockets' folders.
fn shown(cloud: &Cloud) -> [usize; 4] {
    let count = |folder: &str| {
        let names = std::fs::read_dir(cloud.data().join(folder)).expect("a folder").flatten();
        names.filter(|entry| entry.file_name() != "templates").count()
    };
    let devices = machine::loop_devices_below(&cloud.data()).len();
    [cloud.mounts().len(), devices, count("clusters"), count("run")]
}

/// Waits until it shows what so many running clusters need, and nothing else.
fn shows_only(cloud: &Cloud, of_one: [usize; 4], running: usize) {
    let wanted = of_one.map(|count| count * running);
    eventually("nothing else is left", PATIENCE, || (shown(cloud) == wanted).then_some(()));
}

pub fn many_operations_at_once_do_what_they_say_and_leave_nothing() {
    let cloud = Cloud::plain();
    let [one, two, napping] = ["busy-one", "busy-two", "napping-one"].map(|name| cloud.cluster(name, &[]));
    let ledgers = [Ledger::open(&one), Ledger::open(&two)];
    napping.sign_in().query("create table t as select 42 as x").expect("a table");
    let before = open_descriptors(cloud.pid());
    let of_one = shown(&cloud).map(|count| count / 3);
    shows_only(&cloud, of_one, 3);
    ledgers[0].during(|| {
        ledgers[1].during(|| {
            std::thread::scope(|scope| {
                // Falls asleep and is woken again and again; what sleeps while somebody signs in is woken.
                scope.spawn(|| {
                    for _ in 0..4 {
                        cloud.chitin(["cluster", "sleep", &napping.name]).ok();
                        assert_eq!(napping.sign_in().value("select x from t"), "42");
                    }
                });
                run_all(&cloud, &people());
            });
        });
    });
    for ledger in &ledgers {
        ledger.is_kept();
    }
    is_as_they_left_it(&cloud, &one);
    napping.sign_in();
    shows_only(&cloud, of_one, 4);
    eventually("descriptors are as before, and those of one cluster more", PATIENCE, || {
        (open_descriptors(cloud.pid()) <= before + OF_ONE_MORE).then_some(())
    });
    // And once more after a restart.
    cloud.stop();
    cloud.boot();
    for ledger in &ledgers {
        ledger.is_kept();
    }
    is_as_they_left_it(&cloud, &one);

    cloud.chitin(["cluster", "protect", "stays-there", "--off"]).ok();
    for name in ["busy-one", "busy-two", "napping-one", "stays-there"] {
        cloud.chitin(["cluster", "delete", name, "--yes"]).ok();
    }
    shows_only(&cloud, of_one, 0);
    // The companion alone.
    eventually("no process is left", PATIENCE, || (cloud.processes().len() == 1).then_some(()));
    cloud.stop();
}
