//! The command line of the tests from outside, which knows the words of Rust's own test runner.

use std::path::PathBuf;

use clap::Parser;

/// Attacks and uses the real program from outside, over a real PostgreSQL.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// Run only tests whose name contains one of these.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Run only tests whose whole name is one of these.
    #[arg(long)]
    exact: bool,
    /// Leave out tests whose name contains this.
    #[arg(long, value_name = "NAME")]
    skip: Vec<String>,
    /// Print the names of the tests, and run none.
    #[arg(long)]
    pub list: bool,
    /// How many tests may run beside each other at most; 1 runs them one after the other.
    #[arg(long = "test-threads", value_name = "COUNT")]
    pub at_a_time_max: Option<usize>,
    /// Run the tests of the crates too: every program with tests in what cargo said about their build
    /// (`--message-format=json`).
    #[arg(long, value_name = "FILE")]
    pub built: Option<PathBuf>,
    /// Nothing is captured here; taken because `cargo test` passes it to every runner.
    #[arg(long, hide = true)]
    nocapture: bool,
    /// As `--nocapture`.
    #[arg(long, short, hide = true)]
    quiet: bool,
}

impl Arguments {
    /// Those of this process. Wrong ones end it with a word on what is right.
    pub fn of_command_line() -> Self {
        let mut arguments = Self::parse();
        arguments.at_a_time_max = arguments.at_a_time_max.map(|count| count.max(1));
        arguments
    }

    /// Whether a test is to run.
    pub fn asks_for(&self, test: &str) -> bool {
        let is_named = |name: &String| if self.exact { test == name } else { test.contains(name.as_str()) };
        (self.names.is_empty() || self.names.iter().any(is_named))
            && !self.skip.iter().any(|name| test.contains(name.as_str()))
    }
}
