//! A machine whose memory is used up: who goes, and who stays.

use std::path::{Path, PathBuf};

use house::cloud::PATIENCE;
use house::command::eventually;
use house::ledger::Ledger;
use house::machine::descendants;
use house::runner::skip;
use house::{Cloud, Options};

const MEMORY_BYTES: u64 = 900 << 20;
/// What grows without end, in memory that no limit of PostgreSQL's counts.
const VALUE: &str =
    "select length(string_agg(repeat(md5(g::text), 31250), '')) from generate_series(1, 1000) g";
/// Sorts, whose limit every session may raise.
const SORT: &str = "set work_mem = '2GB'; select count(*) from (select md5(g::text) from generate_series(1, 30000000) g order by 1) s";
const EATERS: [&str; 3] = [VALUE, SORT, VALUE];

/// A control group of version 1 below our own, with so little memory as a small machine has.
struct SmallMachine(PathBuf);

impl SmallMachine {
    fn make() -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let ours = own.lines().find_map(|line| line.split_once(":memory:/")).map(|(_, path)| path.to_owned());
        let Some(ours) = ours else {
            skip("there are no control groups of version 1 for memory");
        };
        let group =
            Path::new("/sys/fs/cgroup/memory").join(ours).join(format!("chitin-{}", std::process::id()));
        if let Err(cause) = std::fs::create_dir(&group) {
            skip(format!("no control group can be made: {cause}"));
        }
        let group = Self(group);
        group.write("memory.limit_in_bytes", &MEMORY_BYTES.to_string());
        group
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.0.join(file), text).unwrap_or_else(|cause| panic!("{file}: {cause}"));
    }

    fn move_in(&self, cloud: &Cloud) {
        let all = descendants(cloud.pid()).into_iter().map(|process| process.pid);
        for pid in all.chain([cloud.pid()]) {
            // One that has ended since is nowhere.
            let _ = std::fs::write(self.0.join("cgroup.procs"), pid.to_string());
        }
    }

    /// How many processes the kernel has ended in it.
    fn ended(&self) -> u64 {
        let text = std::fs::read_to_string(self.0.join("memory.oom_control")).expect("it is there");
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.expect("this kernel counts them").parse().expect("a number")
    }
}

impl Drop for SmallMachine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn score(pid: u32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it lives");
    text.trim().parse().expect("a number")
}

pub fn chitin_is_protected_engines_less_and_sessions_not() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    if score(cloud.pid()) >= 0 {
        skip(
            "the kernel lets nobody here be protected in a shortage of memory; tests/vm tries it in a virtual machine",
        );
    }
    let one = cloud.cluster("has-a-session", &[]);
    let mut session = one.sign_in();
    let backend = one.process_of(&mut session);
    let scores = [cloud.pid(), one.postmaster().pid, backend.pid].map(score);
    assert_eq!(scores, [-900, -100, 0]);
}

pub fn the_session_that_takes_all_memory_goes_and_neither_chitin_nor_a_neighbour() {
    let machine = SmallMachine::make();
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let (greedy, neighbour) = (cloud.cluster("takes-memory", &[]), cloud.cluster("has-a-session", &[]));
    greedy.sign_in().query("create table kept as select 42 as x").expect("a table");
    let (mut beside, ledger) = (neighbour.sign_in(), Ledger::open(&neighbour));
    let postmaster = greedy.postmaster();
    let backend = beside.value("select pg_backend_pid()");
    machine.move_in(&cloud);
    let ours = score(cloud.pid());
    for one in [&greedy, &neighbour] {
        assert!(score(one.postmaster().pid) > ours, "an engine goes before Chitin");
    }
    for (number, eat) in EATERS.into_iter().enumerate() {
        let before = machine.ended();
        ledger.during(|| {
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| greedy.try_sign_in().ok().map(|mut wire| wire.query(eat).is_ok()));
                }
            });
        });
        ledger.is_kept();
        assert!(machine.ended() > before, "the kernel ended nothing");
        assert_eq!(
            beside.value("select pg_backend_pid()"),
            backend,
            "the neighbour's session is the same ({number})"
        );
        let mut back = eventually("it comes back", PATIENCE, || greedy.try_sign_in().ok());
        assert_eq!(back.value("select x from kept"), "42");
        // Where Chitin could lower its own, it was a session that went, and not its engine.
        assert!(ours >= 0 || postmaster.is_alive(), "the engine itself was ended ({number})");
    }
    // It is our child, so it would still be there as one that has ended.
    assert_eq!(score(cloud.pid()), ours, "Chitin is the same");
    cloud.chitin(["status"]).ok();
    drop(cloud);
    eventually("the group is empty", PATIENCE, || {
        std::fs::read_to_string(machine.0.join("cgroup.procs")).ok().filter(|pids| pids.trim().is_empty())
    });
}
