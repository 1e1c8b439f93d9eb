//! PostgreSQL 14 to 18 as npm's packages have them, each in a folder of its own, beside the machine's.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::command::run;

/// The major versions that are supported.
pub const MAJOR_VERSIONS: std::ops::RangeInclusive<u32> = 14..=18;

/// A minor version of 17 before the one that the package of 17 is of.
pub const EARLIER: &str = "17-earlier";

/// Where the program under test, and the tests of the crates, look for versions beside the machine's.
pub const FOLDERS: &str = "CHITIN_POSTGRES";
/// Which of them new clusters are of.
pub const DEFAULT_VERSION: &str = "CHITIN_DEFAULT_VERSION";

fn packages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/postgres/node_modules")
}

/// Where the package of a version has it.
pub fn package(name: &str) -> PathBuf {
    packages().join(format!("postgres-{name}/native"))
}

/// Why these tests cannot be run here; `None` where they can.
pub fn missing() -> Option<&'static str> {
    if std::env::var_os(FOLDERS).is_some() {
        return Some("everything is to run on one version of PostgreSQL");
    }
    let mut all: Vec<String> = MAJOR_VERSIONS.map(|major| major.to_string()).collect();
    all.push(EARLIER.to_owned());
    let are_there = all.iter().all(|name| package(name).join("bin/postgres").is_file());
    (!are_there).then_some(
        "npm's packages of PostgreSQL are not there (they are for x86_64 alone): npm ci --prefix tests/clients/postgres",
    )
}

/// Copies the package of a version to a place that does not exist yet, as whoever installs it for others would have it: their own,
/// and to be written to by themselves alone.
pub fn install(name: &str, prefix: &Path) {
    run(Command::new("cp").args(["-R", "--preserve=mode,links"]).arg(package(name)).arg(prefix)).ok();
    run(Command::new("chmod").args(["-R", "go-w"]).arg(prefix)).ok();
}

/// A folder for installations, which is not in `/tmp`: there a sandbox has something else.
pub fn shelf() -> TempDir {
    let shelf = tempfile::Builder::new().prefix("pg").tempdir_in("/var/tmp").expect("a temporary directory");
    // Also for tests that are run as another user.
    std::fs::set_permissions(shelf.path(), PermissionsExt::from_mode(0o755)).expect("a mode");
    shelf
}

/// The major versions that the machine has itself.
fn of_machine() -> Vec<u32> {
    let all = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A version that the machine does not have.
pub fn another() -> u32 {
    let own = of_machine();
    MAJOR_VERSIONS.into_iter().find(|major| !own.contains(major) && *major != 17).expect("not all of them")
}
