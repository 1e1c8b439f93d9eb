//! What the machine shows of a running cloud: processes, memory, descriptors, mounts and loop devices.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::cloud::{Cloud, Cluster};
use crate::wire::Wire;

/// A process that can be told from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub started_ticks: u64,
}

fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command stands in parentheses and may hold spaces; fields are counted after the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

impl Process {
    /// The process with this number, unless it is gone or a zombie.
    pub fn of(pid: u32) -> Option<Self> {
        let fields = stat_fields(pid)?;
        if fields.first()? == "Z" {
            return None;
        }
        Some(Self { pid, started_ticks: fields.get(19)?.parse().ok()? })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Its command line, with spaces between the arguments.
    pub fn command_line(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    }

    /// Sends it a signal; it must still be there.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        assert!(self.is_alive(), "process {} has ended", self.pid);
        kill_process(Pid::from_raw(self.pid.cast_signed()).expect("not zero"), signal).expect("ours");
    }
}

impl Process {
    /// Its number in the innermost of its pid namespaces.
    pub fn inner_pid(&self) -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        numbers.split_whitespace().next_back()?.parse().ok()
    }
}

impl Cluster<'_> {
    /// The first process of PostgreSQL in its engine's sandbox.
    pub fn postmaster(&self) -> Process {
        let sandbox = self.engine_processes().into_iter().next().expect("its engine runs");
        let is_postgres = |process: &Process| {
            let name = fs::read_to_string(format!("/proc/{}/comm", process.pid));
            name.is_ok_and(|name| name.trim() == "postgres")
        };
        // The others are its children, and began later.
        let inside = descendants(sandbox.pid).into_iter().filter(is_postgres);
        inside
            .min_by_key(|process| (process.started_ticks, process.pid))
            .expect("an engine has a first process")
    }

    /// The process in its engine that serves a session.
    pub fn process_of(&self, session: &mut Wire) -> Process {
        let inner: u32 = session.value("select pg_backend_pid()").parse().expect("a number");
        let all = self.engine_processes();
        let mut inside = all.iter().flat_map(|process| descendants(process.pid));
        inside
            .find(|process| process.inner_pid() == Some(inner))
            .expect("it is below its sandbox's first process")
    }
}

impl Cloud {
    /// The process that locks everything when the cloud is killed.
    pub fn companion(&self) -> Process {
        let mut found = self.processes();
        found.retain(|process| process.command_line().starts_with("chitin: companion"));
        let [companion] = found[..] else { panic!("{found:?}") };
        companion
    }

    /// Its mounts. They are seen in its own namespace, as long as it runs.
    pub fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).expect("it runs");
        let below = self.data().display().to_string();
        let places = table.lines().filter_map(|line| line.split(' ').nth(4));
        places.filter(|place| place.starts_with(&below)).map(str::to_owned).collect()
    }
}

fn all_pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Every process below `pid`, at any depth.
pub fn descendants(pid: u32) -> Vec<Process> {
    let parents: Vec<(u32, u32)> =
        all_pids().into_iter().filter_map(|p| Some((p, stat_fields(p)?.get(1)?.parse().ok()?))).collect();
    let mut known = BTreeSet::from([pid]);
    loop {
        let before = known.len();
        for (child, parent) in &parents {
            if known.contains(parent) {
                known.insert(*child);
            }
        }
        if known.len() == before {
            break;
        }
    }
    known.remove(&pid);
    known.into_iter().filter_map(Process::of).collect()
}

/// Processes whose command line names the path.
pub fn processes_naming(path: &Path) -> Vec<Process> {
    let needle = path.to_string_lossy().into_owned();
    all_pids()
        .into_iter()
        .filter(|pid| *pid != std::process::id())
        .filter_map(Process::of)
        .filter(|process| process.command_line().contains(&needle))
        .collect()
}

/// Mount points at or below the path.
pub fn mounts_below(path: &Path) -> Vec<String> {
    let needle = path.to_string_lossy().into_owned();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|point| point.starts_with(&needle))
        .map(str::to_owned)
        .collect()
}

/// Loop devices whose backing file lies below the path.
pub fn loop_devices_below(path: &Path) -> Vec<String> {
    let needle = path.to_string_lossy().into_owned();
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| {
            fs::read_to_string(entry.path().join("loop/backing_file"))
                .is_ok_and(|file| file.trim_start().starts_with(&needle))
        })
        .map(|entry| format!("/dev/{}", entry.file_name().to_string_lossy()))
        .collect()
}

/// Everything that a cloud under the path has left on the machine, as sentences; empty when it left nothing.
pub fn leftovers(path: &Path, once_running: &[Process]) -> Vec<String> {
    let alive = once_running.iter().filter(|process| process.is_alive()).copied();
    let processes: BTreeSet<Process> = alive.chain(processes_naming(path)).collect();
    let mut left: Vec<String> = processes
        .iter()
        .map(|process| format!("process {} still runs: {}", process.pid, process.command_line()))
        .collect();
    left.extend(mounts_below(path).into_iter().map(|point| format!("{point} is still mounted")));
    left.extend(loop_devices_below(path).into_iter().map(|device| format!("{device} is still attached")));
    left
}

/// Resident memory of the process in bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a live process has VmRSS");
    let kib: u64 = line.split_whitespace().nth(1).expect("VmRSS has a number").parse().expect("a number");
    kib * 1024
}

/// Open descriptors of the process.
pub fn open_descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").count()
}

/// Processor time that the process has used, in milliseconds (the kernel counts in hundredths of a second).
pub fn processor_milliseconds(pid: u32) -> u64 {
    let fields = stat_fields(pid).expect("the process runs");
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    ticks * 10
}

/// Lets this process open as many descriptors as the machine allows.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// How busy the processors are, from the kernel's own count.
pub struct Processors {
    looks: VecDeque<(Instant, u64, u64)>,
}

impl Processors {
    /// Begins to look.
    pub fn watch() -> Self {
        Self { looks: VecDeque::new() }
    }

    /// The idle share of all processors together over the last second, 0 to 1; 0 until there is something to compare.
    pub fn idle_share(&mut self) -> f64 {
        let now = Instant::now();
        let Some((all, idle)) = processor_ticks() else { return 0.0 };
        if self.looks.back().is_none_or(|last| last.1 != all) {
            self.looks.push_back((now, all, idle));
        }
        while self.looks.len() > 2 && self.looks[1].0.elapsed() > Duration::from_secs(1) {
            self.looks.pop_front();
        }
        let Some(first) = self.looks.front().filter(|first| all > first.1) else { return 0.0 };
        idle.saturating_sub(first.2) as f64 / (all - first.1) as f64
    }
}

/// Ticks of all processors since boot, and those of them without work: `cpu user nice system idle iowait ...` (proc(5)).
fn processor_ticks() -> Option<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    // What guests get is in the user's share already.
    Some((fields.iter().take(8).sum(), fields.get(3)? + fields.get(4)?))
}

/// How often the machine is looked at, and for how long what was seen counts.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const SEEN_FOR: Duration = Duration::from_secs(20);

/// What a promise may be exceeded by at the most on any machine.
const ALLOWED_MORE_MAX: Duration = Duration::from_secs(5);

static LATE: Mutex<VecDeque<(Instant, Duration)>> = Mutex::new(VecDeque::new());

/// Begins to watch how late this machine wakes whoever has something to do; see [`allowed`].
pub fn watch_lateness() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let watch = || loop {
            let begun = Instant::now();
            std::thread::sleep(LOOK_EVERY);
            let (now, late) = (Instant::now(), begun.elapsed().saturating_sub(LOOK_EVERY));
            let mut seen = LATE.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push_back((now, late));
            while seen.front().is_some_and(|(at, _)| now.duration_since(*at) > SEEN_FOR) {
                seen.pop_front();
            }
        };
        std::thread::Builder::new().name("lateness".into()).spawn(watch).expect("a thread");
    });
}

/// How long something may take here that was promised within a time: as long, and ten times more what a thread that has
/// nothing to do but to wake was late by at the worst just now, but never five seconds more. A promise is about
/// Chitin; how long a busy machine lets everybody wait is not its doing.
pub fn allowed(promised: Duration) -> Duration {
    let seen = LATE.lock().unwrap_or_else(PoisonError::into_inner);
    let late = seen.iter().map(|(_, late)| *late).max().unwrap_or_default();
    promised + (10 * late).min(ALLOWED_MORE_MAX)
}

/// Panics if more has passed since a moment than is [`allowed`] for what was promised.
#[track_caller]
pub fn assert_within(promised: Duration, since: Instant, what: &str) {
    let (taken, allowed) = (since.elapsed(), allowed(promised));
    assert!(
        taken < allowed,
        "{what}: {taken:?}, promised within {promised:?}, which is {allowed:?} on this machine now"
    );
}
