//! Runs the tests from outside: those that may run beside each other as long as the processors have time for more of them,
//! then, one after the other, those that measure and need the machine for themselves. It says how far it is, and at the end
//! what failed, what this machine could not run, and what took longest.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::arguments::Arguments;
use crate::crates::{self, Program};
use crate::machine::Processors;

/// How many tests run beside each other whatever else the machine does.
const AT_A_TIME_MIN: usize = 4;
/// How many do when the processors are idle all the same, because every test waits for something.
const AT_A_TIME_MAX: usize = 20;
/// The idle share of the processors from which a further test begins.
const IDLE_SHARE_MIN: f64 = 0.25;
/// Between two looks at what runs, and between the beginnings of two tests beyond [`AT_A_TIME_MIN`]: the work of the one
/// before must be seen.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// So long without a word, what still runs is said.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// No test takes as long, on no machine.
const TEST_MAX: Duration = Duration::from_mins(30);
/// How many of the slowest tests are named at the end.
const SLOWEST: usize = 20;
/// A test's stack: debug builds of TLS are deep.
const STACK_BYTES: usize = 8 << 20;

/// A test's name and body.
pub type Test = (&'static str, fn());

/// Lists test functions with their paths as names.
#[macro_export]
macro_rules! tests {
    ($($path:path),* $(,)?) => { vec![$((stringify!($path), $path as fn())),*] };
}

/// When a test's turn is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// At once: it waits for long, and others run meanwhile.
    First,
    /// Beside others.
    Beside,
    /// When nothing else runs.
    Alone,
}

/// Tests of one subject.
pub struct Suite {
    name: &'static str,
    jobs: Vec<Job>,
}

/// What the tests of some suites share, such as a cloud that the first of them starts.
pub struct Shares {
    /// The names of the suites.
    pub suites: &'static [&'static str],
    /// Ends it, if it ever began, and says whether nothing was left behind.
    pub stop: fn() -> bool,
}

struct Job {
    name: String,
    body: Body,
    turn: Turn,
    /// What this machine lacks for it.
    missing: Option<String>,
}

impl Suite {
    /// A suite without tests yet.
    pub fn new(name: &'static str) -> Self {
        Self { name, jobs: Vec::new() }
    }

    fn add(mut self, turn: Turn, missing: Option<&str>, tests: Vec<Test>) -> Self {
        self.jobs.extend(tests.into_iter().map(|(path, body)| Job {
            name: format!("{}::{}", self.name, path.replace(' ', "")),
            body: Body::Test(body),
            turn,
            missing: missing.map(str::to_owned),
        }));
        self
    }

    /// Tests that wait for long, so that they begin before all others.
    pub fn first(self, tests: Vec<Test>) -> Self {
        self.add(Turn::First, None, tests)
    }

    /// As [`Suite::first`], skipped where something is missing.
    pub fn first_unless(self, missing: Option<&str>, tests: Vec<Test>) -> Self {
        self.add(Turn::First, missing, tests)
    }

    /// Tests that may run beside others.
    pub fn beside(self, tests: Vec<Test>) -> Self {
        self.add(Turn::Beside, None, tests)
    }

    /// As [`Suite::beside`], skipped where something is missing.
    pub fn beside_unless(self, missing: Option<&str>, tests: Vec<Test>) -> Self {
        self.add(Turn::Beside, missing, tests)
    }

    /// Tests that measure, and need the machine for themselves.
    pub fn alone(self, tests: Vec<Test>) -> Self {
        self.add(Turn::Alone, None, tests)
    }

    /// As [`Suite::alone`], skipped where something is missing.
    pub fn alone_unless(self, missing: Option<&str>, tests: Vec<Test>) -> Self {
        self.add(Turn::Alone, missing, tests)
    }
}

/// What a job does.
enum Body {
    /// One test.
    Test(fn()),
    /// A program with tests of its own.
    Program(Program),
}

impl Job {
    fn of_program(program: Program) -> Self {
        let name = program.name.clone();
        Self { name, body: Body::Program(program), turn: Turn::First, missing: None }
    }
}

/// What a test that this machine cannot run ends with.
struct Skipped(String);

/// Ends the test: this machine cannot run it, for this reason. It is counted and named, and not taken for passed.
pub fn skip(reason: impl Into<String>) -> ! {
    resume_unwind(Box::new(Skipped(reason.into())))
}

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

struct Ended {
    name: String,
    taken: Duration,
    outcome: Outcome,
    /// The tests in it, where it was a program.
    inside: Vec<crates::Result>,
}

static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// Whether a test has failed, so that what it used is worth a look.
pub fn has_failed() -> bool {
    HAS_FAILED.load(Ordering::Relaxed)
}

thread_local! {
    /// What this thread's last panic said, with its place.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps what panics say, beside saying it.
fn keep_panics() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        LAST_PANIC.set(Some(panic.to_string()));
        say(panic);
    }));
}

fn outcome(ended: Result<(), Box<dyn Any + Send>>) -> Outcome {
    match ended {
        Ok(()) => Outcome::Passed,
        Err(payload) => match payload.downcast::<Skipped>() {
            Ok(skipped) => Outcome::Skipped(skipped.0),
            Err(_) => Outcome::Failed(LAST_PANIC.take().unwrap_or_else(|| "panicked".to_owned())),
        },
    }
}

impl Body {
    fn run(self) -> (Vec<crates::Result>, Outcome) {
        match self {
            Self::Test(body) => (Vec::new(), outcome(catch_unwind(AssertUnwindSafe(body)))),
            Self::Program(program) => match catch_unwind(AssertUnwindSafe(|| program.run())) {
                Ok((inside, Ok(()))) => (inside, Outcome::Passed),
                Ok((inside, Err(said))) => (inside, Outcome::Failed(said)),
                Err(payload) => (Vec::new(), outcome(Err(payload))),
            },
        }
    }
}

/// Runs everything that the command line asks for.
pub fn run(suites: Vec<Suite>, shares: Vec<Shares>) -> ExitCode {
    let arguments = Arguments::of_command_line();
    let mut jobs: Vec<Job> = suites.into_iter().flat_map(|suite| suite.jobs).collect();
    jobs.extend(arguments.built.iter().flat_map(|built| crates::built(built)).map(Job::of_program));
    jobs.retain(|job| arguments.asks_for(&job.name));
    if arguments.list {
        jobs.iter().for_each(|job| println!("{}: test", job.name));
        return ExitCode::SUCCESS;
    }
    if jobs.is_empty() {
        // No failure: `cargo test NAME` asks every program for the same name.
        println!("no test from outside has such a name; --list prints all names");
        return ExitCode::SUCCESS;
    }
    keep_panics();
    let mut run = Run::new(jobs.len(), shares);
    // A stable sort: within a turn the order is the suites'.
    jobs.sort_by_key(|job| job.turn != Turn::First);
    let (alone, beside): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.turn == Turn::Alone);
    run.beside(beside, arguments.at_a_time_max.unwrap_or(AT_A_TIME_MAX));
    // What only finished tests used would disturb those that measure.
    run.stop_all_but(&alone);
    run.alone(alone);
    run.stop_all_but(&[]);
    run.conclude()
}

struct Run {
    begun: Instant,
    count: usize,
    running: BTreeMap<String, Instant>,
    ended: Vec<Ended>,
    said: Instant,
    results: (Sender<Ended>, Receiver<Ended>),
    shares: Vec<Shares>,
    is_clean: bool,
}

impl Run {
    fn new(count: usize, shares: Vec<Shares>) -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            count,
            running: BTreeMap::new(),
            ended: Vec::new(),
            said: now,
            results: channel(),
            shares,
            is_clean: true,
        }
    }

    fn beside(&mut self, jobs: Vec<Job>, at_a_time_max: usize) {
        let mut waiting: VecDeque<Job> = jobs.into();
        let mut processors = Processors::watch();
        let mut last_begun = Instant::now();
        loop {
            let idle_share = processors.idle_share();
            while let Some(job) = waiting.front() {
                let has_time = idle_share >= IDLE_SHARE_MIN && last_begun.elapsed() >= LOOK_EVERY;
                let may_begin = self.running.len() < AT_A_TIME_MIN.min(at_a_time_max)
                    || (self.running.len() < at_a_time_max && has_time)
                    || job.missing.is_some();
                if !may_begin {
                    break;
                }
                last_begun = Instant::now();
                waiting.pop_front().into_iter().for_each(|job| self.begin(job));
            }
            if self.running.is_empty() && waiting.is_empty() {
                return;
            }
            self.look(waiting.len());
        }
    }

    fn alone(&mut self, jobs: Vec<Job>) {
        let mut waiting = jobs.len();
        for job in jobs {
            waiting -= 1;
            self.begin(job);
            while !self.running.is_empty() {
                self.look(waiting);
            }
        }
    }

    fn begin(&mut self, Job { name, body, missing, .. }: Job) {
        let begun = Instant::now();
        self.running.insert(name.clone(), begun);
        let results = self.results.0.clone();
        let thread = std::thread::Builder::new().name(name.clone());
        let act = move || {
            let (inside, outcome) = match missing {
                Some(reason) => (Vec::new(), Outcome::Skipped(reason)),
                None => body.run(),
            };
            // The receiver lives until every test has ended.
            let _ = results.send(Ended { taken: begun.elapsed(), name, outcome, inside });
        };
        thread.stack_size(STACK_BYTES).spawn(act).expect("a thread starts");
    }

    /// Waits a moment for a test to end, and says so; after a long silence, says what runs.
    fn look(&mut self, waiting: usize) {
        match self.results.1.recv_timeout(LOOK_EVERY) {
            Ok(ended) => self.end(ended),
            Err(RecvTimeoutError::Timeout) if self.said.elapsed() >= SILENCE_MAX => {
                self.say_what_runs(waiting);
                self.end_what_hangs();
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }

    fn end(&mut self, ended: Ended) {
        self.running.remove(&ended.name);
        if matches!(ended.outcome, Outcome::Failed(_)) {
            HAS_FAILED.store(true, Ordering::Relaxed);
        }
        let word = match &ended.outcome {
            Outcome::Passed => "ok     ",
            Outcome::Failed(_) => "FAILED ",
            Outcome::Skipped(_) => "skipped",
        };
        let at = format!("{:>3}/{}", self.ended.len() + 1, self.count);
        let tests = match ended.inside.len() {
            0 => String::new(),
            count => format!(" ({count} tests)"),
        };
        self.say(&format!("{at} {word} {:>6.1} s  {}{tests}", ended.taken.as_secs_f64(), ended.name));
        self.ended.push(ended);
    }

    fn say_what_runs(&mut self, waiting: usize) {
        let list: Vec<String> = self
            .running
            .iter()
            .map(|(name, begun)| format!("{name} ({} s)", begun.elapsed().as_secs()))
            .collect();
        self.say(&format!("{waiting} wait, {} run: {}", self.running.len(), list.join(", ")));
    }

    /// A thread cannot be ended from outside, so a test that hangs ends the run.
    fn end_what_hangs(&self) {
        let hangs = |(_, begun): &(&String, &Instant)| begun.elapsed() > TEST_MAX;
        if let Some((name, _)) = self.running.iter().find(hangs) {
            println!("{name} has not ended in {} minutes; the run ends here", TEST_MAX.as_secs() / 60);
            std::process::exit(101);
        }
    }

    fn say(&mut self, text: &str) {
        let seconds = self.begun.elapsed().as_secs();
        println!("[{:>2}:{:02}] {text}", seconds / 60, seconds % 60);
        self.said = Instant::now();
    }

    /// Ends what is shared by none of these tests.
    fn stop_all_but(&mut self, jobs: &[Job]) {
        let is_of = |job: &Job, suite: &&str| job.name.split("::").next() == Some(*suite);
        let is_needed =
            |one: &Shares| one.suites.iter().any(|suite| jobs.iter().any(|job| is_of(job, suite)));
        for one in self.shares.extract_if(.., |one| !is_needed(one)) {
            if !catch_unwind(one.stop).unwrap_or(false) {
                eprintln!("what the tests of {} share did not end as it should", one.suites.join(", "));
                self.is_clean = false;
            }
        }
    }

    fn conclude(self) -> ExitCode {
        let mut count = Count::default();
        let mut by_version: BTreeMap<String, [usize; 3]> = BTreeMap::new();
        let is_whole = self.ended.len() == self.count;
        if !is_whole {
            println!("{} of {} jobs have ended", self.ended.len(), self.count);
        }
        for Ended { name, taken, outcome, inside } in self.ended {
            // A program counts with its tests, and by itself only when it failed beside them.
            let is_counted = inside.is_empty() || matches!(outcome, Outcome::Failed(_));
            let is_failed_inside = inside.iter().any(|one| one.is_passed == Some(false));
            for crates::Result { name, is_passed, reason, taken } in inside {
                if let Some((_, version)) = name.split("::").next().and_then(|name| name.split_once(" on ")) {
                    let all = by_version.entry(version.to_owned()).or_default();
                    all[match is_passed {
                        Some(true) => 0,
                        Some(false) => 1,
                        None => 2,
                    }] += 1;
                }
                match is_passed {
                    Some(true) => count.passed += 1,
                    Some(false) => count.failed_count += 1,
                    None => count.skipped.push(format!("{name}: {reason}")),
                }
                count.times.push((taken, name));
            }
            match outcome {
                _ if !is_counted => continue,
                Outcome::Passed => count.passed += 1,
                Outcome::Failed(said) => {
                    count.failed_count += usize::from(!is_failed_inside);
                    count.failed.push(format!("{name}\n    {}", said.replace('\n', "\n    ")))
                }
                Outcome::Skipped(reason) => count.skipped.push(format!("{name}: {reason}")),
            }
            count.times.push((taken, name));
        }
        let lines = by_version.into_iter().map(|(version, [passed, failed, skipped])| {
            format!("{version}: {passed} passed, {failed} failed, {skipped} skipped")
        });
        say_list("By version of PostgreSQL, beside the machine's:", &lines.collect::<Vec<_>>());
        count.say(self.begun.elapsed(), self.is_clean && is_whole)
    }
}

/// What all tests together came to.
#[derive(Default)]
struct Count {
    passed: usize,
    /// Each with what it said.
    failed: Vec<String>,
    /// Tests that failed. Those in a program stand in `failed` together.
    failed_count: usize,
    /// Each with its reason.
    skipped: Vec<String>,
    times: Vec<(Duration, String)>,
}

impl Count {
    fn say(mut self, taken: Duration, is_clean: bool) -> ExitCode {
        self.times.sort_by_key(|(taken, _)| std::cmp::Reverse(*taken));
        if self.times.len() > 1 {
            println!("\nThe slowest:");
            for (taken, name) in self.times.iter().take(SLOWEST) {
                println!("  {:>6.1} s  {name}", taken.as_secs_f64());
            }
        }
        say_list("Skipped, because this machine cannot run them:", &self.skipped);
        say_list("Failed:", &self.failed);
        let is_good = self.failed.is_empty() && is_clean;
        // In the words of Rust's own test runner, so that one reader of results understands both.
        println!(
            "\ntest result: {}. {} passed; {} failed; {} ignored; finished in {} s",
            if is_good { "ok" } else { "FAILED" },
            self.passed,
            self.failed_count,
            self.skipped.len(),
            taken.as_secs()
        );
        if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn say_list(heading: &str, lines: &[String]) {
    if !lines.is_empty() {
        println!("\n{heading}");
        lines.iter().for_each(|line| println!("  {line}"));
    }
}
