//! Finding PostgreSQL on the machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// Oldest and newest major version that is supported.
pub const MAJOR_VERSIONS: std::ops::RangeInclusive<u32> = 14..=18;

/// A PostgreSQL installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Postgres {
    pub(crate) bin: PathBuf,
    pub(crate) share: PathBuf,
    pub(crate) lib: PathBuf,
    /// For instance `15.18`.
    pub(crate) version: String,
    pub(crate) major: u32,
}

impl Postgres {
    /// The newest supported installation, or the one in the folder that the operator named.
    pub(crate) fn find(named: Option<&Path>) -> Result<Self, Error> {
        if let Some(bin) = named {
            return Self::at(bin).ok_or_else(|| Error::NoPostgres { searched: bin.display().to_string() });
        }
        let mut candidates: Vec<PathBuf> = Vec::new();
        for root in ["/usr/lib/postgresql", "/usr/local/pgsql", "/opt/postgresql"] {
            candidates.push(Path::new(root).join("bin"));
            let versions = std::fs::read_dir(root).into_iter().flatten().flatten();
            candidates.extend(versions.map(|entry| entry.path().join("bin")));
        }
        // Red Hat's layout.
        candidates.extend(MAJOR_VERSIONS.map(|major| PathBuf::from(format!("/usr/pgsql-{major}/bin"))));
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Not what lies in the working directory, where anybody may have put it.
        candidates.extend(std::env::split_paths(&path).filter(|folder| folder.is_absolute()));
        candidates
            .iter()
            // Of two alike the first: a distribution's own layout before whatever PATH holds.
            .rev()
            .filter(|bin| bin.join("postgres").is_file() && bin.join("initdb").is_file())
            .filter_map(|bin| Self::at(bin))
            .max_by_key(|found| found.major)
            .ok_or_else(|| Error::NoPostgres { searched: "/usr/lib/postgresql and PATH".to_owned() })
    }

    fn at(bin: &Path) -> Option<Self> {
        let bin = bin.canonicalize().ok()?;
        let answer = |program: &str, argument: &str| {
            let output = Command::new(bin.join(program)).arg(argument).env_clear().output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let version = parse_version(&answer("postgres", "--version")?)?;
        let major: u32 = version.split('.').next()?.parse().ok()?;
        if !MAJOR_VERSIONS.contains(&major) {
            return None;
        }
        let folder = |argument: &str, relative: &str| {
            answer("pg_config", argument).map(PathBuf::from).or_else(|| Some(bin.parent()?.join(relative)))
        };
        // Debian keeps pg_config in another package; its layout is fixed.
        let debian_share = PathBuf::from(format!("/usr/share/postgresql/{major}"));
        let share = if debian_share.is_dir() && bin.starts_with("/usr/lib/postgresql") {
            debian_share
        } else {
            folder("--sharedir", "share")?
        };
        let lib = if bin.starts_with("/usr/lib/postgresql") {
            bin.parent()?.join("lib")
        } else {
            folder("--pkglibdir", "lib")?
        };
        let is_whole = share.join("postgres.bki").is_file();
        is_whole.then_some(Self { bin, share, lib, version, major })
    }

    /// Whether the installation has this loadable library.
    pub(crate) fn has_library(&self, name: &str) -> bool {
        self.lib.join(format!("{name}.so")).is_file()
    }
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` is 15.18.
fn parse_version(text: &str) -> Option<String> {
    let rest = text.strip_prefix("postgres (PostgreSQL) ")?;
    Some(rest.split_whitespace().next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_postgres_says() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)";
        assert_eq!(parse_version(debian).as_deref(), Some("15.18"));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1").as_deref(), Some("18beta1"));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn the_machine_s_own_is_found_and_a_wrong_folder_is_not() {
        let found = Postgres::find(None).unwrap();
        assert!(MAJOR_VERSIONS.contains(&found.major));
        assert!(found.share.join("postgres.bki").is_file(), "{found:?}");
        let missing = Postgres::find(Some(Path::new("/nowhere"))).unwrap_err().to_string();
        assert!(missing.contains("apt-get install postgresql"), "{missing}");
    }
}
