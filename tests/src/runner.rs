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
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(threads);
    let first = libtest_mimic::run(&arguments, side_by_side.into_iter().map(trial).collect());
    arguments.test_threads = Some(1);
    let second = libtest_mimic::run(&arguments, alone.into_iter().map(trial).collect());
    let is_clean = shared::stop();
    if first.has_failed() || second.has_failed() || !is_clean { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
