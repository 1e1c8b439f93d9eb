//! Runs the tests of one binary: first those that may run side by side, then those that measure and need the
//! machine for themselves; in the end the shared cloud is stopped and must have left nothing behind.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};

use crate::shared;

/// A test's name and body.
pub type Test = (&'static str, fn());

/// Lists test functions with their paths as names.
#[macro_export]
macro_rules! tests {
    ($($path:path),* $(,)?) => { vec![$((stringify!($path), $path as fn())),*] };
}

fn trial((name, body): Test) -> Trial {
    Trial::test(name.replace(' ', ""), move || {
        let begun = Instant::now();
        body();
        let taken = begun.elapsed();
        if taken > Duration::from_secs(8) {
            println!("  {name} took {:.1} s", taken.as_secs_f64());
        }
        Ok(())
    })
}

/// Runs everything that the command line asks for, four tests at a time.
pub fn run(side_by_side: Vec<Test>, alone: Vec<Test>) -> ExitCode {
    run_by(4, side_by_side, alone)
}

/// As [`run`], so many tests at a time: for those that mostly wait.
pub fn run_by(threads: usize, side_by_side: Vec<Test>, alone: Vec<Test>) -> ExitCode {
    run_all(threads, side_by_side, alone, None)
}

/// Tests that this machine cannot run, and why.
pub struct Impossible {
    /// The tests.
    pub tests: Vec<Test>,
    /// What is missing.
    pub why: String,
}

/// As [`run_by`]; tests that cannot be run here are counted as ignored, and the reason is said at the beginning and again at
/// the end, where it is read.
pub fn run_all(
    threads: usize,
    side_by_side: Vec<Test>,
    alone: Vec<Test>,
    impossible: Option<Impossible>,
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(threads);
    let is_run = !arguments.list;
    let loud = impossible.as_ref().filter(|_| is_run).map(|impossible| {
        format!("\n!! NOT RUN: {} tests, because {}\n", impossible.tests.len(), impossible.why)
    });
    let say = || loud.iter().for_each(|text| eprintln!("{text}"));
    say();
    let mut first: Vec<Trial> = side_by_side.into_iter().map(trial).collect();
    for test in impossible.into_iter().flat_map(|impossible| impossible.tests) {
        first.push(trial(test).with_ignored_flag(true));
    }
    let first = libtest_mimic::run(&arguments, first);
    arguments.test_threads = Some(1);
    let second = libtest_mimic::run(&arguments, alone.into_iter().map(trial).collect());
    say();
    let is_clean = shared::stop();
    if first.has_failed() || second.has_failed() || !is_clean { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
