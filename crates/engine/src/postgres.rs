//! Finding PostgreSQL on the machine: each major version that is supported, in folders that nobody else may write to.
//!
//! A cluster runs on the major version that it was made with, so versions lie side by side. Their programs are a stranger's until
//! they are known: even to ask for its version, each is run in a sandbox.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::Error;
use crate::host::lock;
use crate::jail::WRITABLE;

/// Oldest and newest major version that is supported.
pub const MAJOR_VERSIONS: std::ops::RangeInclusive<u32> = 14..=18;
/// Where distributions and `make install` put it: folders with one, or with one for each version.
const PLACES: &[&str] = &["/usr/lib/postgresql", "/usr/local/pgsql", "/opt/postgresql"];
/// Where one may lie without being known by its folder: as Arch and Fedora have it.
const SHARED: &[&str] = &["/usr/bin", "/usr/local/bin"];
/// What engines are made and run with, and what new clusters are finished with where they are copied.
const PROGRAMS: &[&str] = &["postgres", "initdb"];
pub(crate) const RESET_LOG: &str = "pg_resetwal";
/// Files of one installation that are looked at; PostgreSQL's own are some 1,500.
const FILES_MAX: usize = 50_000;

/// A PostgreSQL installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Postgres {
    pub(crate) bin: PathBuf,
    pub(crate) share: PathBuf,
    pub(crate) lib: PathBuf,
    /// The folder with the shared libraries that came with it, where it has one to itself.
    pub(crate) own_libraries: Option<PathBuf>,
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

/// Runs a program of an installation whose version is not known yet, and hands back what it says.
pub(crate) type Ask = dyn Fn(&Postgres, &'static str, &[&str]) -> Result<String, Error> + Send + Sync;

impl Postgres {
    /// The one whose programs are in this folder. `Err` says why it is not used.
    fn at(bin: &Path, ask: &Ask) -> Result<Self, String> {
        let bin = bin.to_owned();
        let mark = Mark::of(&bin.join("postgres")).map_err(|cause| cause.to_string())?;
        let prefix = bin.parent().ok_or("it is the root of the file system")?;
        let named = prefix.file_name().unwrap_or_default();
        let shares = ["share/postgresql", "share/pgsql", "share"].map(|below| prefix.join(below)).into_iter();
        // Debian has one folder for what is read and another for what is run.
        let share = shares
            .chain([Path::new("/usr/share/postgresql").join(named)])
            .find(|share| share.join("postgres.bki").is_file());
        let libraries =
            ["lib/postgresql", "lib64/pgsql", "lib/pgsql", "lib64", "lib"].map(|below| prefix.join(below));
        let lib = libraries.into_iter().find(|lib| lib.join("plpgsql.so").is_file());
        let mut found = Self {
            share: share.clone().unwrap_or_else(|| bin.clone()),
            lib: lib.clone().unwrap_or_else(|| bin.clone()),
            own_libraries: own_libraries(prefix),
            version: String::new(),
            major: 0,
            mark,
            bin,
        };
        found.check_owners()?;
        let said = |program, arguments: &[&str]| {
            let said = ask(&found, program, arguments).map_err(|cause| cause.to_string())?;
            // The last line: what is started on the way may have said something before.
            Ok::<String, String>(said.trim_end().lines().next_back().unwrap_or_default().to_owned())
        };
        let elsewhere = |which| {
            said("pg_config", &[which]).map(PathBuf::from).map_err(|cause| {
                format!("its files are in no place that is known, and pg_config does not tell: {cause}")
            })
        };
        let (share, lib) = match (share, lib) {
            (Some(share), Some(lib)) => (share, lib),
            (share, lib) => (
                share.map_or_else(|| elsewhere("--sharedir"), Ok)?,
                lib.map_or_else(|| elsewhere("--pkglibdir"), Ok)?,
            ),
        };
        let version =
            parse_version(&said("postgres", &["--version"])?).ok_or("it does not tell its version")?;
        let major = version.split(|character: char| !character.is_ascii_digit()).next();
        let major = major.and_then(|digits| digits.parse().ok()).ok_or("it does not tell its version")?;
        if !MAJOR_VERSIONS.contains(&major) {
            return Err(format!("it is PostgreSQL {version}, and 14 to 18 are supported"));
        }
        found = Self { share, lib, version, major, ..found };
        if !found.share.join("postgres.bki").is_file() {
            return Err(format!("there is no postgres.bki in {}", found.share.display()));
        }
        // Once more, with the folders that it named itself.
        found.check_owners()?;
        Ok(found)
    }

    /// The folders and files that it consists of, each once.
    pub(crate) fn folders(&self) -> Vec<&Path> {
        let mut all = vec![self.share.as_path()];
        all.extend(self.own_libraries.as_deref());
        if !self.own_libraries.as_deref().is_some_and(|libraries| self.lib.starts_with(libraries)) {
            all.push(&self.lib);
        }
        all
    }

    /// Its programs that are used.
    pub(crate) fn programs(&self) -> Vec<PathBuf> {
        let all = PROGRAMS.iter().chain(&[RESET_LOG, "pg_config"]);
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

    /// Whoever may write to a program that is run as every tenant's engine may do what engines may.
    fn check_owners(&self) -> Result<(), String> {
        for hidden in WRITABLE.iter().chain(&["/proc"]) {
            if self.folders().into_iter().chain([self.bin.as_path()]).any(|folder| folder.starts_with(hidden))
            {
                return Err(format!("it is in {hidden}, where a sandbox has something else: move it"));
            }
        }
        let mut left = FILES_MAX;
        check_file(&self.bin)?;
        for program in self.programs() {
            check_file(&program)?;
        }
        for folder in self.folders() {
            check_tree(folder, &mut left)?;
        }
        self.folders().into_iter().chain([self.bin.as_path()]).try_for_each(check_way)
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

/// The installations of this machine.
pub(crate) struct Installations {
    named: Vec<PathBuf>,
    /// Folders of programs in the system's places.
    system: fn() -> Vec<PathBuf>,
    default: Option<u32>,
    ask: Box<Ask>,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    by_major: BTreeMap<u32, Arc<Postgres>>,
    unusable: Vec<String>,
}

impl Installations {
    /// Looks in the system's places and in the folders that the operator named, which come first.
    ///
    /// # Errors
    ///
    /// Where there is none of a supported version, or none of the one that is to be the default.
    pub(crate) fn look(named: &[PathBuf], default: Option<u32>, ask: Box<Ask>) -> Result<Self, Error> {
        Self::look_in((named, in_system), default, ask)
    }

    fn look_in(
        (named, system): (&[PathBuf], fn() -> Vec<PathBuf>),
        default: Option<u32>,
        ask: Box<Ask>,
    ) -> Result<Self, Error> {
        let all = Self { named: named.to_vec(), system, default, ask, found: Mutex::default() };
        all.look_again();
        all.default()?;
        Ok(all)
    }

    /// What is known of one that is as it was, and else what it says.
    fn at(&self, bin: &Path) -> Result<Arc<Postgres>, String> {
        // Where the program lies itself: in `/usr/local/bin` there are often links.
        let program = bin.join("postgres").canonicalize().map_err(|cause| cause.to_string())?;
        let place = program.parent().unwrap_or(bin);
        let is_known = |one: &&Arc<Postgres>| one.bin == place && one.is_unchanged();
        if let Some(known) = lock(&self.found).by_major.values().find(is_known) {
            return Ok(known.clone());
        }
        Postgres::at(place, &*self.ask).map(Arc::new)
    }

    /// Looks for what was installed, updated or removed since. Runs programs, of what is new alone.
    pub(crate) fn look_again(&self) {
        let mut found = Found::default();
        for place in &self.named {
            let bins = bins_in(place);
            for bin in &bins {
                found.take(self.at(bin), bin);
            }
            if bins.is_empty() {
                let text = "no PostgreSQL is in it: name the folder that has bin/postgres in it, or one with such folders";
                found.unusable.push(format!("{}: {text}", place.display()));
            }
        }
        for bin in (self.system)() {
            found.take(self.at(&bin), &bin);
        }
        *lock(&self.found) = found;
    }

    /// The one of this major version, as it is installed now.
    pub(crate) fn of(&self, major: u32) -> Result<Arc<Postgres>, Error> {
        let known = |found: &Found| found.by_major.get(&major).filter(|one| one.is_unchanged()).cloned();
        if let Some(one) = known(&lock(&self.found)) {
            return Ok(one);
        }
        // It was updated, removed, or installed.
        self.look_again();
        let found = lock(&self.found);
        known(&found).ok_or_else(|| Error::VersionGone { major, installed: found.describe() })
    }

    /// The one that new clusters get where nobody asks for another.
    pub(crate) fn default(&self) -> Result<Arc<Postgres>, Error> {
        let searched = || {
            let mut places: Vec<String> =
                self.named.iter().map(|folder| folder.display().to_string()).collect();
            places.push("/usr/lib/postgresql and the like".to_owned());
            let why = self.unusable();
            let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
            Error::NoPostgres { searched: places.join(", ") + &why }
        };
        self.of(self.default_major().ok_or_else(searched)?)
    }

    /// Its major version; none where nothing is installed.
    pub(crate) fn default_major(&self) -> Option<u32> {
        self.default.or_else(|| lock(&self.found).by_major.keys().next_back().copied())
    }

    /// All that can be used, the oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Postgres>> {
        lock(&self.found).by_major.values().cloned().collect()
    }

    /// What was found or named and is not used, and why.
    pub(crate) fn unusable(&self) -> Vec<String> {
        lock(&self.found).unusable.clone()
    }
}

impl Found {
    /// Of two of the same major version the first counts.
    fn take(&mut self, found: Result<Arc<Postgres>, String>, bin: &Path) {
        match found {
            Ok(one) => {
                self.by_major.entry(one.major).or_insert(one);
            }
            Err(reason) => self.unusable.push(format!("{}: {reason}", bin.display())),
        }
    }

    fn describe(&self) -> String {
        let all: Vec<&str> = self.by_major.values().map(|one| one.version.as_str()).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    }
}

fn in_system() -> Vec<PathBuf> {
    let places = PLACES.iter().flat_map(|place| bins_in(Path::new(place)));
    // Red Hat's layout.
    let versions = MAJOR_VERSIONS.map(|major| PathBuf::from(format!("/usr/pgsql-{major}/bin")));
    let shared = SHARED.iter().map(PathBuf::from);
    places.chain(versions).chain(shared).filter(|bin| is_bin(bin)).collect()
}

/// Folders of programs in a place: itself, the `bin` in it, or those of the installations in it.
fn bins_in(place: &Path) -> Vec<PathBuf> {
    let own = [place.to_owned(), place.join("bin")];
    if let Some(bin) = own.into_iter().find(|bin| is_bin(bin)) {
        return vec![bin];
    }
    let below =
        std::fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let mut all: Vec<PathBuf> = below.filter(|bin| is_bin(bin)).collect();
    all.sort();
    all
}

fn is_bin(folder: &Path) -> bool {
    PROGRAMS.iter().all(|program| folder.join(program).is_file())
}

/// The folder of shared libraries of an installation with a prefix of its own. What the whole system has is in every sandbox
/// anyway, as far as it may be.
fn own_libraries(prefix: &Path) -> Option<PathBuf> {
    let is_shared = ["/", "/usr", "/usr/local"].iter().any(|shared| prefix == Path::new(shared));
    let libraries = prefix.join("lib");
    (!is_shared && libraries.is_dir()).then_some(libraries)
}

/// Whether only root and our own user may write to a file, by its own mode.
fn check_file(path: &Path) -> Result<(), String> {
    let facts = std::fs::symlink_metadata(path).map_err(|cause| format!("{}: {cause}", path.display()))?;
    if facts.is_symlink() {
        return Ok(());
    }
    check_facts(path, &facts, false)
}

fn check_facts(path: &Path, facts: &std::fs::Metadata, is_above: bool) -> Result<(), String> {
    let own = rustix::process::geteuid().as_raw();
    let path = path.display();
    if facts.uid() != 0 && facts.uid() != own {
        return Err(format!(
            "{path} belongs to user {}, who could put a program of their own there: chown it to root",
            facts.uid()
        ));
    }
    // In a folder like /tmp nobody touches what is somebody else's.
    let is_sticky = is_above && facts.mode() & 0o1000 != 0;
    if facts.mode() & 0o022 != 0 && !is_sticky {
        return Err(format!("{path} may be written to by others: chmod go-w {path}"));
    }
    Ok(())
}

/// The same of the folder, of what is in it, and below.
fn check_tree(folder: &Path, left: &mut usize) -> Result<(), String> {
    check_file(folder)?;
    for entry in std::fs::read_dir(folder).map_err(|cause| format!("{}: {cause}", folder.display()))? {
        *left = left.checked_sub(1).ok_or_else(|| format!("more than {FILES_MAX} files are in it"))?;
        let entry = entry.map_err(|cause| cause.to_string())?;
        if entry.file_type().map_err(|cause| cause.to_string())?.is_dir() {
            check_tree(&entry.path(), left)?;
        } else {
            check_file(&entry.path())?;
        }
    }
    Ok(())
}

/// The same of the folders on the way to it.
fn check_way(path: &Path) -> Result<(), String> {
    for folder in path.ancestors().skip(1) {
        let facts = std::fs::metadata(folder).map_err(|cause| format!("{}: {cause}", folder.display()))?;
        check_facts(folder, &facts, true)?;
    }
    Ok(())
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` is 15.18.
fn parse_version(text: &str) -> Option<String> {
    let rest = text.strip_prefix("postgres (PostgreSQL) ")?;
    Some(rest.split_whitespace().next()?.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    /// Without a sandbox: for tests that have none.
    fn plainly(one: &Postgres, program: &'static str, arguments: &[&str]) -> Result<String, Error> {
        let mut command = Command::new(one.bin.join(program));
        let failed = |cause: std::io::Error| Error::Program { program, reason: cause.to_string() };
        let said = command.args(arguments).env_clear().output().map_err(failed)?;
        Ok(String::from_utf8(said.stdout).unwrap())
    }

    /// The machine's own.
    pub(crate) fn of_machine() -> Postgres {
        let all = Installations::look(&[], None, Box::new(plainly)).unwrap();
        (*all.default().unwrap()).clone()
    }

    fn pretend(version: &'static str) -> Box<Ask> {
        Box::new(move |_, _, _| Ok(format!("postgres (PostgreSQL) {version}\n")))
    }

    /// A folder that looks like an installation.
    fn install(prefix: &Path) {
        for folder in ["bin", "lib/postgresql", "share/postgresql"] {
            std::fs::create_dir_all(prefix.join(folder)).unwrap();
        }
        for file in
            ["bin/postgres", "bin/initdb", "lib/postgresql/plpgsql.so", "share/postgresql/postgres.bki"]
        {
            std::fs::write(prefix.join(file), "").unwrap();
        }
    }

    #[test]
    fn versions_are_read_from_what_postgres_says() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)";
        assert_eq!(parse_version(debian).as_deref(), Some("15.18"));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1").as_deref(), Some("18beta1"));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn the_machine_s_own_is_found_and_a_wrong_folder_is_said() {
        let found = of_machine();
        assert!(MAJOR_VERSIONS.contains(&found.major));
        assert!(found.share.join("postgres.bki").is_file(), "{found:?}");
        let all = Installations::look(&["/nowhere".into()], None, Box::new(plainly)).unwrap();
        assert!(
            all.unusable().iter().any(|one| one.starts_with("/nowhere: no PostgreSQL")),
            "{:?}",
            all.unusable()
        );
        let missing = Installations::look(&[], Some(9), Box::new(plainly)).err().unwrap().to_string();
        assert!(missing.contains("PostgreSQL 9") && missing.contains(&found.version), "{missing}");
    }

    #[test]
    fn an_installation_in_a_folder_of_its_own_is_found_by_every_name_of_it() {
        let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
        let prefix = scratch.path().canonicalize().unwrap().join("seventeen");
        install(&prefix);
        for named in [prefix.clone(), prefix.join("bin"), scratch.path().to_owned()] {
            let all = Installations::look_in((&[named], Vec::new), None, pretend("17.3")).unwrap();
            let one = all.of(17).unwrap();
            assert_eq!((one.version.as_str(), &one.bin), ("17.3", &prefix.join("bin")));
            assert_eq!(
                (&one.lib, &one.share),
                (&prefix.join("lib/postgresql"), &prefix.join("share/postgresql"))
            );
            assert!(!one.can_copy());
        }
        let all =
            Installations::look_in((&[prefix], Vec::new), None, pretend("13.1")).err().unwrap().to_string();
        assert!(all.contains("it is PostgreSQL 13.1, and 14 to 18 are supported"), "{all}");
    }

    #[test]
    fn what_others_may_write_to_is_not_used() {
        let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
        let prefix = scratch.path().canonicalize().unwrap().join("pg");
        install(&prefix);
        let unusable = |what: &str, mode: u32, good: u32| {
            let path = prefix.join(what);
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let said =
                Installations::look_in((std::slice::from_ref(&prefix), Vec::new), None, pretend("17.3"))
                    .err()
                    .unwrap()
                    .to_string();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(good)).unwrap();
            assert!(
                said.contains("may be written to by others: chmod go-w") && said.contains(what),
                "{said}"
            );
        };
        unusable("bin/postgres", 0o775, 0o755);
        unusable("bin", 0o777, 0o755);
        unusable("lib/postgresql/plpgsql.so", 0o666, 0o644);
        unusable("share/postgresql", 0o775, 0o755);
        unusable("", 0o775, 0o755);
        if rustix::process::geteuid().is_root() {
            let program = prefix.join("bin/initdb");
            std::os::unix::fs::chown(&program, Some(4_242), None).unwrap();
            let said = Installations::look_in((&[prefix], Vec::new), None, pretend("17.3"))
                .err()
                .unwrap()
                .to_string();
            assert!(said.contains("belongs to user 4242"), "{said}");
        }
    }

    #[test]
    fn what_a_sandbox_cannot_have_is_not_used() {
        let scratch = tempfile::tempdir_in("/tmp").unwrap();
        let prefix = scratch.path().canonicalize().unwrap();
        install(&prefix);
        let said = Installations::look_in((&[prefix], Vec::new), None, pretend("17.3")).err().unwrap();
        assert!(said.to_string().contains("it is in /tmp, where a sandbox has something else"), "{said}");
    }

    #[test]
    fn an_update_is_seen_when_it_is_next_used_and_so_is_a_removal() {
        let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
        let prefix = scratch.path().canonicalize().unwrap().join("pg");
        install(&prefix);
        // What it says is what is in the file.
        let ask = |one: &Postgres, _: &'static str, _: &[&str]| {
            let version = std::fs::read_to_string(one.bin.join("postgres")).unwrap();
            Ok(format!("postgres (PostgreSQL) {version}"))
        };
        std::fs::write(prefix.join("bin/postgres"), "16.1").unwrap();
        let all =
            Installations::look_in((std::slice::from_ref(&prefix), Vec::new), None, Box::new(ask)).unwrap();
        assert_eq!(all.of(16).unwrap().version, "16.1");
        std::fs::write(prefix.join("bin/postgres"), "16.10").unwrap();
        assert_eq!(all.of(16).unwrap().version, "16.10");
        std::fs::remove_file(prefix.join("bin/postgres")).unwrap();
        let gone = all.of(16).unwrap_err().to_string();
        assert!(gone.contains("postgresql-16") && gone.contains("--postgres"), "{gone}");
    }
}
