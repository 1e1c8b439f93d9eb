//! A limit on processes and threads is reached: what needs one more is refused and said as that, and nothing breaks.

use std::path::{Path, PathBuf};
use std::process::Command;

use house::cloud::{PATIENCE, program};
use house::command::{eventually, run_with};
use house::ledger::Ledger;
use house::machine::descendants;
use house::runner::skip;
use house::{Cloud, Cluster, Options};

/// Processes and threads that are left: from hardly one to nearly all that a start needs.
const STEPS: [u32; 6] = [1, 3, 6, 10, 14, 18];

/// What fails with them: the sandbox, what is in it, and the engine.
const FAILURES: [&str; 4] = [
    "Creating new namespace failed",
    "Can't fork",
    "could not start a process for a session",
    "Future log output will appear",
];

/// A control group of version 1 for processes and threads.
struct Few(PathBuf);

impl Few {
    fn make(name: &str) -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let ours = own.lines().find_map(|line| line.split_once(":pids:/")).map(|(_, path)| path.to_owned());
        let Some(ours) = ours else {
            skip("there are no control groups of version 1 for processes");
        };
        let name = format!("chitin-{name}-{}", std::process::id());
        let group = Path::new("/sys/fs/cgroup/pids").join(ours).join(name);
        if let Err(cause) = std::fs::create_dir(&group) {
            skip(format!("no control group can be made: {cause}"));
        }
        Self(group)
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.0.join(file), text).unwrap_or_else(|cause| panic!("{file}: {cause}"));
    }

    /// Those that are there stay, and none comes.
    fn close(&self) {
        self.write("pids.max", "0");
    }

    /// Those that are there stay, and so many more may come.
    fn leave(&self, more: u32) {
        let count = std::fs::read_to_string(self.0.join("pids.current")).expect("a count");
        let count: u32 = count.trim().parse().expect("a number");
        self.write("pids.max", &(count + more).to_string());
    }

    fn open(&self) {
        self.write("pids.max", "max");
    }

    /// The process and everything that it has started. What they start is there too.
    fn move_in(&self, process: u32) {
        for pid in descendants(process).into_iter().map(|process| process.pid).chain([process]) {
            // One that has ended since is nowhere.
            let _ = std::fs::write(self.0.join("cgroup.procs"), pid.to_string());
        }
    }

    fn is_empty(&self) -> bool {
        std::fs::read_to_string(self.0.join("cgroup.procs")).is_ok_and(|pids| pids.trim().is_empty())
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

pub fn a_failed_fork_in_an_engine_is_said_as_that() {
    let few = Few::make("fork");
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let (full, neighbour) = (cloud.cluster("is-full", &[]), cloud.cluster("is-not", &[]));
    let mut session = full.sign_in();
    let ledger = Ledger::open(&neighbour);
    few.move_in(full.engine_processes()[0].pid);
    few.close();
    let refused = ledger.during(|| full.try_sign_in().err().expect("there is no process for it"));
    ledger.is_kept();
    assert_eq!(refused.code, "53000", "{refused:?}");
    assert!(refused.message.contains("could not start a process for the session"), "{refused:?}");
    assert!(refused.fields.contains_key(&'H'), "it says what to do: {refused:?}");
    let log = cloud.log();
    let line =
        log.lines().find(|line| line.contains("the cluster's engine could not start a process for it"));
    let line = line.unwrap_or_else(|| panic!("{}", cloud.log_end()));
    assert!(line.contains(" WARN ") && line.contains("could not fork new process for connection"), "{line}");
    assert_eq!(neighbour.sign_in().value("select 1"), "1");
    assert_eq!(session.value("select 1"), "1");
    few.open();
    assert_eq!(full.sign_in().value("select 1"), "1");
    drop(cloud);
    eventually("the group is empty", PATIENCE, || few.is_empty().then_some(()));
}

pub fn where_no_thread_can_be_started_nothing_breaks_and_what_was_refused_succeeds_later() {
    let few = Few::make("threads");
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let (asleep, awake) = (cloud.cluster("sleeps-first", &[]), cloud.cluster("runs-beside", &[]));
    let others: Vec<_> = STEPS.iter().map(|more| cloud.cluster(&format!("has-{more}-more"), &[])).collect();
    others.iter().chain([&asleep]).for_each(Cluster::sleep);
    let mut session = awake.sign_in();
    let backend = session.value("select pg_backend_pid()");
    let ledger = Ledger::open(&awake);
    let refused = ledger.during(|| {
        few.move_in(cloud.pid());
        few.close();
        asleep.try_sign_in().err().expect("its engine cannot be started")
    });
    assert_eq!(refused.code, "57P03", "{refused:?}");
    let said = "a limit on processes and threads is reached";
    eventually("the log says why", PATIENCE, || cloud.log().contains(said).then_some(()));
    cloud.chitin(["status"]).ok();
    assert_eq!(session.value("select pg_backend_pid()"), backend);
    // With a few more than there are, starts fail at one step after the other, up to those of the engine itself.
    few.open();
    ledger.during(|| {
        for (more, other) in STEPS.iter().zip(&others) {
            few.leave(*more);
            if let Err(refused) = other.try_sign_in() {
                assert!(matches!(refused.code.as_str(), "57P03" | "53000"), "{more} more: {refused:?}");
            }
        }
    });
    let log = cloud.log();
    let failed: Vec<&&str> = FAILURES.iter().filter(|failure| log.contains(**failure)).collect();
    println!("  {failed:?}");
    assert!(failed.len() > 1, "all failed at one step: {failed:?}");
    assert_eq!(session.value("select pg_backend_pid()"), backend);
    few.open();
    let mut back = eventually("it wakes", PATIENCE, || asleep.try_sign_in().ok());
    assert_eq!(back.value("select 1"), "1");
    assert_eq!(session.value("select pg_backend_pid()"), backend, "the other's engine is the same");
    ledger.is_kept();
    assert!(!cloud.log().contains("panicked"), "{}", cloud.log_end());
    drop(cloud);
    eventually("the group is empty", PATIENCE, || few.is_empty().then_some(()));
}

pub fn a_start_without_enough_threads_is_refused_with_the_limit_that_is_reached() {
    let few = Few::make("start");
    let folder = tempfile::tempdir().expect("a temporary directory");
    few.write("pids.max", "6");
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(few.0.join("cgroup.procs"));
    command.arg(program()).args(["start", "--sql", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]);
    let refused = run_with(command.arg(folder.path().join("data")), b"", PATIENCE).refused();
    assert!(refused.contains("could not start the") && refused.contains("TasksMax="), "{refused}");
    assert!(!refused.contains("panicked"), "{refused}");
    assert!(!folder.path().join("data").exists(), "it has begun nothing");
}
