//! Finding PostgreSQL on the machine: each major version that is supported, in folders that nobody else may write to.
//!
//! A cluster runs on the major version that it was made with, so versions lie side by side. Their programs are a stranger's until
//! they are known: even to ask for its version, each is run in a sandbox.

mod installations;
mod owners;
#[cfg(test)]
pub(crate) mod tests;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Error;

pub(crate) use installations::Installations;

/// Oldest and newest major version that is supported.
pub const MAJOR_VERSIONS: std::ops::RangeInclusive<u32> = 14..=18;
/// What engines are made and run with.
const PROGRAMS: &[&str] = &["postgres", "initdb"];
/// What new clusters are finished with where they are copied.
const RESET_LOG: &str = "pg_resetwal";
/// Tells where an installation has its files, where that is not known by its layout.
const CONFIG: &str = "pg_config";
/// Debian has one folder for what is run and another for what is read.
const DEBIAN: &str = "/usr/lib/postgresql";
const DEBIAN_SHARE: &str = "/usr/share/postgresql";

/// A PostgreSQL installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Postgres {
    pub(crate) bin: PathBuf,
    /// Empty where it is not known yet.
    pub(crate) share: PathBuf,
    /// Empty where it is not known yet.
    pub(crate) lib: PathBuf,
    /// The folder with the shared libraries that came with it, where it has one to itself.
    own_libraries: Option<PathBuf>,
    /// For instance `15.18`.
    pub(crate) version: String,
    pub(crate) major: u32,
    mark: Mark,
}

/// By what a program is known to be another than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    device: u64,
    number: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// What the programs of an installation tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    version: String,
    /// Where its files are, in places that are not known by its layout.
    share: Option<PathBuf>,
    lib: Option<PathBuf>,
}

/// Runs a program of an installation whose version is not known yet, and hands back what it says.
pub(crate) type Ask = dyn Fn(&Postgres, &'static str, &[&str]) -> Result<String, Error> + Send + Sync;

impl Postgres {
    /// What is known by its layout of the one whose programs are in this folder. `Err` says why it is not used.
    fn in_folder(bin: &Path) -> Result<Self, String> {
        // Where the program lies itself: in `/usr/local/bin` there are often links.
        let program = owners::found(&bin.join("postgres"))?;
        let mark = Mark::of(&program).map_err(|cause| cause.to_string())?;
        let bin = program.parent().ok_or("it is the root of the file system")?;
        if let Some(missing) = PROGRAMS.iter().find(|name| !bin.join(name).is_file()) {
            return Err(format!("there is no {missing} in {}", bin.display()));
        }
        let prefix = bin.parent().ok_or("it is the root of the file system")?;
        let mut shares: Vec<PathBuf> =
            ["share/postgresql", "share/pgsql", "share"].map(|below| prefix.join(below)).into();
        if prefix.starts_with(DEBIAN) {
            shares.push(Path::new(DEBIAN_SHARE).join(prefix.file_name().unwrap_or_default()));
        }
        let libraries = ["lib/postgresql", "lib64/pgsql", "lib/pgsql", "lib64", "lib"];
        let libraries = libraries.map(|below| prefix.join(below));
        let share = shares.into_iter().find(|share| is_share(share));
        let lib = libraries.into_iter().find(|lib| is_lib(lib));
        let found =
            |path: Option<PathBuf>| path.map_or_else(|| Ok(PathBuf::new()), |path| owners::found(&path));
        let (share, lib) = (found(share)?, found(lib)?);
        let own_libraries = own_libraries(prefix, &lib)?;
        let (version, major) = (String::new(), 0);
        let one = Self { bin: bin.to_owned(), share, lib, own_libraries, version, major, mark };
        owners::check(&one)?;
        Ok(one)
    }

    /// Has its programs tell what is not known yet.
    fn ask(&self, ask: &Ask) -> Result<Told, String> {
        let said = |program, arguments: &[&str]| {
            let said = ask(self, program, arguments).map_err(|cause| cause.to_string())?;
            // The last line: what is started on the way may have said something before.
            Ok::<String, String>(said.trim_end().lines().next_back().unwrap_or_default().to_owned())
        };
        let elsewhere = |known: &Path, which| {
            if !known.as_os_str().is_empty() {
                return Ok(None);
            }
            let told = said(CONFIG, &[which]).map(PathBuf::from).map_err(|cause| {
                format!("its files are in no place that is known, and pg_config does not tell: {cause}")
            })?;
            if !told.is_absolute() {
                return Err(format!("pg_config says that its files are in '{}'", told.display()));
            }
            owners::found(&told).map(Some)
        };
        Ok(Told {
            share: elsewhere(&self.share, "--sharedir")?,
            lib: elsewhere(&self.lib, "--pkglibdir")?,
            version: parse_version(&said("postgres", &["--version"])?)
                .ok_or("it does not tell its version")?,
        })
    }

    /// The same with what its programs told, if it can be used.
    fn with(self, told: Told) -> Result<Self, String> {
        let version = told.version;
        let end = version.find(|character: char| !character.is_ascii_digit()).unwrap_or(version.len());
        let (digits, rest) = version.split_at(end);
        let major = digits.parse().map_err(|_| "it does not tell its version")?;
        if !MAJOR_VERSIONS.contains(&major) {
            return Err(format!("it is PostgreSQL {version}, and 14 to 18 are supported"));
        }
        if !rest.starts_with('.') {
            return Err(format!(
                "it is PostgreSQL {version}, whose files no later version may be able to read"
            ));
        }
        let (share, lib) = (told.share.unwrap_or(self.share), told.lib.unwrap_or(self.lib));
        if !is_share(&share) || !is_lib(&lib) {
            return Err(format!(
                "there is no postgres.bki in {}, or no plpgsql.so in {}",
                share.display(),
                lib.display()
            ));
        }
        let one = Self { share, lib, version, major, ..self };
        // With the folders that it named itself.
        owners::check(&one)?;
        Ok(one)
    }

    /// The folders with its files, as far as they are known, none within another.
    pub(crate) fn folders(&self) -> Vec<&Path> {
        let own = self.own_libraries.as_deref();
        let mut all = vec![self.share.as_path()];
        all.extend(own);
        if !own.is_some_and(|own| self.lib.starts_with(own)) {
            all.push(&self.lib);
        }
        all.retain(|folder| !folder.as_os_str().is_empty());
        all
    }

    /// Its programs that are used.
    pub(crate) fn programs(&self) -> Vec<PathBuf> {
        let all = PROGRAMS.iter().chain(&[RESET_LOG, CONFIG]);
        all.map(|name| self.bin.join(name)).filter(|program| program.is_file()).collect()
    }

    /// Whether the installation has this loadable library.
    pub(crate) fn has_library(&self, name: &str) -> bool {
        self.lib.join(format!("{name}.so")).is_file()
    }

    /// Whether clusters can be copied from files that it made once.
    pub(crate) fn can_copy(&self) -> bool {
        self.bin.join(RESET_LOG).is_file()
    }

    /// Whether its program is still the one that told its version.
    fn is_unchanged(&self) -> bool {
        Mark::of(&self.bin.join("postgres")).is_ok_and(|mark| mark == self.mark)
    }
}

impl Mark {
    fn of(program: &Path) -> std::io::Result<Self> {
        let facts = std::fs::metadata(program)?;
        Ok(Self {
            device: facts.dev(),
            number: facts.ino(),
            bytes: facts.size(),
            changed: (facts.ctime(), facts.ctime_nsec()),
        })
    }
}

fn is_share(folder: &Path) -> bool {
    folder.join("postgres.bki").is_file()
}

fn is_lib(folder: &Path) -> bool {
    folder.join("plpgsql.so").is_file()
}

/// The folder of shared libraries of an installation with a prefix of its own, where its loadable ones are in it. What the whole
/// system has is in every sandbox anyway, as far as it may be.
fn own_libraries(prefix: &Path, lib: &Path) -> Result<Option<PathBuf>, String> {
    let is_shared = ["/", "/usr", "/usr/local"].iter().any(|shared| prefix == Path::new(shared));
    let libraries = prefix.join("lib");
    if is_shared || !libraries.is_dir() {
        return Ok(None);
    }
    let libraries = owners::found(&libraries)?;
    // Its programs may need them even to tell where the others are.
    let is_needed = lib.as_os_str().is_empty() || lib.starts_with(&libraries);
    Ok(is_needed.then_some(libraries))
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` is 15.18.
fn parse_version(text: &str) -> Option<String> {
    let rest = text.strip_prefix("postgres (PostgreSQL) ")?;
    Some(rest.split_whitespace().next()?.to_owned())
}
