//! What one cluster takes of the machine: no more than its own, whatever its SQL users do.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use house::cloud::PATIENCE;
use house::command::eventually;
use house::machine::descendants;
use house::runner::skip;
use house::{Cloud, Cluster, Options};
use serde_json::{Value, json};

/// For a limit to be seen at work.
const WATCHED: Duration = Duration::from_secs(4);

/// A cloud whose engines have limits; skips where the machine has none to give.
fn limited() -> Cloud {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let status = cloud.json(["status"]);
    let walls = status["machine"]["capabilities"].as_array().cloned().unwrap_or_default();
    let limits = walls.iter().find(|wall| wall["name"] == "resource limits").expect("a row for the limits");
    if limits["is_present"] != Value::Bool(true) {
        skip(format!("resource limits: {}; tests/vm tries it in a virtual machine", limits["explanation"]));
    }
    cloud
}

/// The control group of a cluster's engine, as the kernel says it of the engine's processes: one for all of them.
fn group(one: &Cluster<'_>) -> PathBuf {
    let sandbox = one.engine_processes().into_iter().next().expect("it runs");
    let all =
        [vec![sandbox.pid], descendants(sandbox.pid).iter().map(|process| process.pid).collect()].concat();
    let mut groups: Vec<String> = all
        .iter()
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok())
        .filter_map(|text| text.lines().find_map(|line| Some(line.strip_prefix("0::")?.to_owned())))
        .collect();
    groups.dedup();
    assert_eq!(groups.len(), 1, "no process of an engine is outside of its group: {groups:?}");
    Path::new("/sys/fs/cgroup").join(groups[0].trim_start_matches('/'))
}

fn read(group: &Path, file: &str) -> String {
    std::fs::read_to_string(group.join(file))
        .unwrap_or_else(|cause| panic!("{file}: {cause}"))
        .trim()
        .to_owned()
}

/// A number of a file with a name before each.
fn number(group: &Path, file: &str, name: &str) -> u64 {
    let text = read(group, file);
    let found = text.split_whitespace().skip_while(|word| *word != name).nth(1);
    found.unwrap_or_else(|| panic!("{name} in {text}")).parse().expect("a number")
}

/// The sum of a file's fields of this name.
fn sum(group: &Path, file: &str, name: &str) -> u64 {
    let text = read(group, file);
    text.split_whitespace().filter_map(|word| word.strip_prefix(name)?.parse::<u64>().ok()).sum()
}

pub fn a_cluster_that_eats_memory_loses_its_own_sessions_and_says_so() {
    let cloud = limited();
    let greedy = cloud.cluster("eats-memory", &["--virtual-cpus", "1"]);
    let neighbour = cloud.cluster("is-a-neighbour", &[]);
    let group = group(&greedy);
    assert_eq!(read(&group, "memory.max"), (2_u64 << 30).to_string());
    assert_eq!(read(&group, "memory.swap.max"), "0", "nothing of a tenant is swapped to a disk in plaintext");
    greedy.sign_in().query("create table kept as select 42 as x").expect("a table");
    let mut beside = neighbour.sign_in();
    let backend = beside.value("select pg_backend_pid()");

    // A value of a gigabyte is the largest that there is, and three are more than it may have.
    let eat = "select length(string_agg(repeat(md5(g::text), 31250), '')) from generate_series(1, 1000) g";
    let told: Vec<Option<String>> = std::thread::scope(|scope| {
        let eaters: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut wire = greedy.try_sign_in().ok()?;
                    let refused = wire.query(eat).err()?;
                    Some(format!("{} {}", refused.code, refused.message))
                })
            })
            .collect();
        eaters.into_iter().map(|eater| eater.join().expect("no panic")).collect()
    });
    assert!(number(&group, "memory.events", "oom_kill") > 0, "the kernel ended something: {told:?}");
    let said = "53200 terminating connection: the cluster's memory is used up";
    assert!(told.iter().flatten().any(|told| told == said), "its clients are told: {told:?}");

    let alert = eventually("the operator is told", PATIENCE, || {
        let alerts = cloud.json(["status"])["alerts"].clone();
        alerts.as_array()?.iter().find(|alert| alert["cluster"] == "eats-memory").cloned()
    });
    assert!(alert["what"].to_string().contains("used up its memory"), "{alert}");
    assert!(cloud.log().contains("the engine used up its memory"), "{}", cloud.log_end());
    // It comes back by itself with what was committed, and nobody else noticed anything.
    let mut back = eventually("it comes back", PATIENCE, || greedy.try_sign_in().ok());
    assert_eq!(back.value("select x from kept"), "42");
    assert_eq!(beside.value("select pg_backend_pid()"), backend, "the neighbour's session is the same");
    greedy.sleep();
    eventually("the alert ends with the engine", PATIENCE, || {
        let alerts = cloud.json(["status"])["alerts"].to_string();
        (!alerts.contains("used up its memory")).then_some(())
    });
    assert!(!group.exists(), "the group of an engine that is stopped is removed");
}

pub fn a_cluster_that_never_rests_has_no_more_processors_than_its_own() {
    let cloud = limited();
    let busy = cloud
        .cluster("never-rests", &["--plan", "dedicated", "--allow", "127.0.0.1/32", "--virtual-cpus", "1"]);
    let group = group(&busy);
    assert_eq!(read(&group, "cpu.max"), "100000 100000");
    assert_eq!(read(&group, "cpu.weight"), "100");
    let mut wires: Vec<_> = (0..4).map(|_| busy.sign_in()).collect();
    for wire in &mut wires {
        wire.send(b'Q', b"do $$ begin loop end loop; end $$\0").expect("it listens");
    }
    let used = || number(&group, "cpu.stat", "usage_usec");
    let (before, begun) = (used(), Instant::now());
    std::thread::sleep(WATCHED);
    let share = (used() - before) as f64 / begun.elapsed().as_micros() as f64;
    println!("  four sessions that never rest used {share:.2} of one processor");
    assert!(share < 1.2, "{share} processors");
    assert!(number(&group, "cpu.stat", "nr_throttled") > 0, "it was held back");

    // More, while it runs.
    let engine = busy.engine_processes();
    let spec = json!({"dedicated": {"hardware": {"machine_spec": {"num_virtual_cpus": 2}}}});
    cloud.call("PATCH", &format!("/api/v1/clusters/{}", busy.id), Some(&spec)).ok();
    eventually("the new limit holds", PATIENCE, || {
        (read(&group, "cpu.max") == "200000 100000").then_some(())
    });
    assert_eq!(
        read(&group, "memory.max"),
        read(&group.join(".."), "memory.max"),
        "as much as engines may have here"
    );
    assert_eq!(engine.len(), busy.engine_processes().len(), "the engine goes on");
    let shown = cloud.chitin(["cluster", "show", "never-rests"]).ok();
    assert!(shown.contains("2 processors, 8 GiB of memory, the whole disk"), "{shown}");
}

pub fn a_cluster_that_writes_without_end_has_no_more_of_the_disk_than_its_own() {
    const IOPS: u32 = 40;
    let cloud = limited();
    let iops = IOPS.to_string();
    let arguments = ["--plan", "dedicated", "--allow", "127.0.0.1/32", "--disk-iops", &iops];
    let busy = cloud.cluster("writes-on", &arguments);
    let group = group(&busy);
    if read(&group, "io.max").is_empty() {
        skip("the data directory lies on no disk whose operations can be limited");
    }
    assert!(read(&group, "io.max").contains(&format!("riops={IOPS} wiops={IOPS}")));
    busy.sign_in().query("create table t (x int)").expect("a table");
    let written = || sum(&group, "io.stat", "wios=");
    let (before, begun) = (written(), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut wire = busy.sign_in();
                while begun.elapsed() < WATCHED {
                    wire.query("insert into t values (1)").expect("slow, and no error");
                }
            });
        }
    });
    let rate = (written() - before) as f64 / begun.elapsed().as_secs_f64();
    println!("  four sessions that commit without end wrote {rate:.0} times a second");
    assert!(rate > 1.0 && rate < f64::from(IOPS) * 1.5, "{rate} a second");
}

pub fn engines_leave_a_reserve_and_an_engine_has_so_many_processes() {
    let cloud = limited();
    let one = cloud.cluster("has-its-share", &[]);
    let group = group(&one);
    assert_eq!(read(&group, "pids.max"), "2128");
    assert_eq!(read(&group, "cpu.max"), "200000 100000");
    let all = group.parent().expect("the engines' group");
    let machine = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let total: u64 = machine.split_whitespace().nth(1).expect("MemTotal").parse().expect("kibibytes");
    let left = total * 1024 - read(all, "memory.max").parse::<u64>().expect("bytes");
    assert!(left >= 500 << 20, "{left} bytes are left to everything else");
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", cloud.pid())).expect("it runs");
    assert!(own.trim_end().ends_with("/supervisor"), "{own}");
    // Two clouds in one group keep their engines apart.
    let other = limited();
    let theirs = other.cluster("has-its-share", &[]);
    assert_ne!(group.parent(), self::group(&theirs).parent());
    // After a kill nothing is in the way.
    cloud.kill();
    cloud.boot();
    one.sign_in().value("select 1");
    assert_eq!(self::group(&one), group);
}
