//! The tests of the crates, each a program that cargo has built: run beside those from outside, and counted with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::command::run_with;
use crate::postgres::{self, MAJOR_VERSIONS};

/// For all tests of one program.
const PROGRAM_MAX: Duration = Duration::from_mins(20);
/// What a test that is skipped says in the file that this names: its name, a tab and the reason, on a line.
const SKIPPED: &str = "CHITIN_TESTS_SKIPPED";

/// The program that runs all others.
const OUTSIDE: &str = "outside";

/// Whose tests ask what PostgreSQL lets whom do, which differs by version: they run on the oldest and the newest, too.
const ON_OTHER_VERSIONS: &[&str] =
    &["crate engine: attacks", "crate engine: own_sessions", "crate reconcile: roles"];

/// A program with tests, as cargo names it.
#[derive(Clone, Debug)]
pub struct Program {
    /// `crate wire`, or `crate engine: life` for tests in a file of their own.
    pub name: String,
    folder: PathBuf,
    executable: PathBuf,
    /// The major version of PostgreSQL, where it is to be another than the machine's.
    version: Option<u32>,
}

/// One test of a program.
#[derive(Debug)]
pub struct Result {
    /// Its name, after the program's.
    pub name: String,
    /// Whether it passed; `None` when it was not run.
    pub is_passed: Option<bool>,
    /// Why it was not.
    pub reason: String,
    /// How long it took.
    pub taken: Duration,
}

/// Every program with tests in what cargo said about a build (`--message-format=json`), but the one that asks.
pub fn built(messages: &Path) -> Vec<Program> {
    let said = fs::read_to_string(messages)
        .unwrap_or_else(|error| panic!("could not read what was built at {}: {error}", messages.display()));
    let all = said.lines().filter_map(|line| program(&serde_json::from_str(line).ok()?));
    all.flat_map(|program| program.on_versions()).collect()
}

fn program(message: &Value) -> Option<Program> {
    let executable = PathBuf::from(message["executable"].as_str()?);
    let target = &message["target"];
    if message["profile"]["test"] != true || target["name"] == OUTSIDE {
        return None;
    }
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let (package, target_name) = (folder.file_name()?.to_str()?, target["name"].as_str()?);
    let is_file = target["kind"].as_array()?.iter().any(|kind| kind == "test" || kind == "example");
    let name = if is_file { format!("crate {package}: {target_name}") } else { format!("crate {package}") };
    Some(Program { name, folder, executable, version: None })
}

impl Program {
    /// The program as it is, and on the versions that it runs on beside the machine's.
    fn on_versions(self) -> Vec<Self> {
        let versions = [*MAJOR_VERSIONS.start(), *MAJOR_VERSIONS.end()];
        let mut all = vec![self.clone()];
        // Of the run on one version everything is on that one.
        let is_chosen = std::env::var_os(postgres::FOLDERS).is_some();
        if ON_OTHER_VERSIONS.contains(&self.name.as_str()) && !is_chosen && postgres::missing().is_none() {
            all.extend(versions.map(|major| Self {
                name: format!("{} on PostgreSQL {major}", self.name),
                version: Some(major),
                ..self.clone()
            }));
        }
        all
    }

    /// Runs its tests as `cargo test` would. An error is what it said when something failed.
    pub fn run(&self) -> (Vec<Result>, std::result::Result<(), String>) {
        let skipped = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut command = self.command();
        command
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .env(SKIPPED, skipped.path())
            // The stable runner knows how long a test took and says so only to those who ask like this.
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["-Z", "unstable-options", "--report-time"]);
        let shelf = self.version.map(|major| (major, postgres::shelf()));
        if let Some((major, shelf)) = &shelf {
            let place = shelf.path().join(major.to_string());
            postgres::install(&major.to_string(), &place);
            command.env(postgres::FOLDERS, place).env(postgres::DEFAULT_VERSION, major.to_string());
        }
        let ended = run_with(&mut command, b"", PROGRAM_MAX);
        let mut results: Vec<Result> = ended.stdout.lines().filter_map(|line| self.result(line)).collect();
        let reasons = fs::read_to_string(skipped.path()).unwrap_or_default();
        let is_whole = is_count(&ended.stdout, &results);
        self.skip(&mut results, &reasons);
        let said = format!("{}\n{}", ended.stdout, ended.stderr);
        if !ended.status.success() {
            return (results, Err(said));
        }
        let lost = || format!("{} tests were read, and the program counted others:\n{said}", results.len());
        let whole = if is_whole { Ok(()) } else { Err(lost()) };
        (results, whole)
    }

    /// The program with mounts of its own where that can be: a cloud that starts meanwhile would take a copy of its mounts into
    /// its own, and with that keep their devices busy.
    fn command(&self) -> Command {
        if !rustix::process::geteuid().is_root() {
            return Command::new(&self.executable);
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--"]).arg(&self.executable);
        command
    }

    /// Takes what says that it was skipped, a name, a tab and a reason a line, out of what has passed.
    fn skip(&self, results: &mut Vec<Result>, reasons: &str) {
        for (test, reason) in reasons.lines().filter_map(|line| line.split_once('\t')) {
            let name = format!("{}::{test}", self.name);
            match results.iter_mut().find(|one| one.name == name) {
                Some(one) => (one.is_passed, one.reason) = (None, reason.to_owned()),
                // A thread of a test's, or a part of it: named all the same.
                None => results.push(Result {
                    name,
                    is_passed: None,
                    reason: reason.to_owned(),
                    taken: Duration::ZERO,
                }),
            }
        }
    }

    /// Reads `test some::name ... ok <0.123s>`.
    fn result(&self, line: &str) -> Option<Result> {
        let (test, rest) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        let (word, taken) = rest.split_once(" <").unwrap_or((rest, ""));
        let seconds = taken.strip_suffix("s>").and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
        let (is_passed, reason) = match word.split_once(',') {
            None if word == "ok" => (Some(true), ""),
            None if word == "FAILED" => (Some(false), ""),
            None if word == "ignored" => (None, "marked as ignored"),
            Some(("ignored", reason)) => (None, reason.trim()),
            _ => return None,
        };
        let test = test.trim_end_matches(" - should panic");
        let name = format!("{}::{test}", self.name);
        Some(Result { name, is_passed, reason: reason.to_owned(), taken: Duration::from_secs_f64(seconds) })
    }
}

/// Whether these are as many results as the program itself counted: `test result: ok. 2 passed; 0 failed; 1 ignored; ...`.
fn is_count(said: &str, results: &[Result]) -> bool {
    let Some((_, counted)) =
        said.lines().find_map(|line| line.strip_prefix("test result: ")?.split_once(". "))
    else {
        return false;
    };
    let count = |word: &str| -> Option<usize> {
        let part = counted.split(';').find(|part| part.trim().ends_with(word))?;
        part.split_whitespace().next()?.parse().ok()
    };
    let read = |is_passed: Option<bool>| results.iter().filter(|one| one.is_passed == is_passed).count();
    [("passed", Some(true)), ("failed", Some(false)), ("ignored", None)]
        .into_iter()
        .all(|(word, is_passed)| count(word) == Some(read(is_passed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_of_its_tests_is_read() {
        let program = Program {
            name: "crate wire".into(),
            folder: PathBuf::new(),
            executable: PathBuf::new(),
            version: None,
        };
        let read = |line: &str| {
            let one = program.result(line)?;
            Some((one.name, one.is_passed, one.reason, one.taken.as_millis()))
        };
        let name = || "crate wire::hello::a".to_owned();
        assert_eq!(read("test hello::a ... ok <0.120s>"), Some((name(), Some(true), String::new(), 120)));
        assert_eq!(
            read("test hello::a ... FAILED <2.000s>"),
            Some((name(), Some(false), String::new(), 2000))
        );
        assert_eq!(
            read("test hello::a ... ignored, needs root"),
            Some((name(), None, "needs root".to_owned(), 0))
        );
        assert_eq!(read("test hello::a - should panic ... ok"), Some((name(), Some(true), String::new(), 0)));
        assert_eq!(read("test result: ok. 12 passed; 0 failed"), None);
        assert_eq!(read("running 12 tests"), None);
    }

    #[test]
    fn a_skipped_test_has_not_passed_and_a_lost_one_is_noticed() {
        let program = Program {
            name: "crate wire".into(),
            folder: PathBuf::new(),
            executable: PathBuf::new(),
            version: None,
        };
        let lines = ["test hello::a ... ok <0.120s>", "test hello::b ... ok <0.120s>"];
        let mut results: Vec<Result> = lines.iter().filter_map(|line| program.result(line)).collect();
        let said =
            |passed: usize| format!("test result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured");
        assert!(is_count(&said(2), &results) && !is_count(&said(3), &results) && !is_count("", &results));
        program.skip(&mut results, "hello::a\tno FUSE\nworker\tno loop device\n");
        let skipped: Vec<_> = results.iter().filter(|one| one.is_passed.is_none()).collect();
        let names: Vec<&str> = skipped.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["crate wire::hello::a", "crate wire::worker"]);
        assert_eq!(skipped[0].reason, "no FUSE");
    }
}
