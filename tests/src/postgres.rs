//! PostgreSQL 14 to 18 as npm's packages have them, each in a folder of its own, beside the machine's.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::run;

/// The major versions that are supported.
pub const MAJOR_VERSIONS: std::ops::RangeInclusive<u32> = 14..=18;

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
pub fn missing() -> Option<String> {
    let are_there =
        MAJOR_VERSIONS.into_iter().all(|major| package(&major.to_string()).join("bin/postgres").is_file());
    (!are_there).then(|| "npm has PostgreSQL for other processors than this machine's".to_owned())
}

/// Copies the package of a version, as whoever installs it for others would have it: to be written to by its owner alone.
pub fn install(name: &str, prefix: &Path) {
    run(Command::new("cp").arg("-a").arg(package(name)).arg(prefix)).ok();
    run(Command::new("chmod").args(["-R", "go-w"]).arg(prefix)).ok();
}
