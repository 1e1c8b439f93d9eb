//! All installations of the machine: found, looked at again, and chosen by their major version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Ask, MAJOR_VERSIONS, Mark, PROGRAMS, Postgres, Told};
use crate::Error;
use crate::host::lock;

/// Where distributions and `make install` put it: folders with one, or with one for each version.
const PLACES: &[&str] = &["/usr/lib/postgresql", "/usr/local/pgsql", "/opt/postgresql"];
/// Where one may lie without being known by its folder: as Arch and Fedora have it.
const SHARED: &[&str] = &["/usr/bin", "/usr/local/bin"];
/// A program that did not tell is asked again after this: it may have been unpacked in part.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The installations of this machine.
pub(crate) struct Installations {
    named: Vec<PathBuf>,
    /// Folders of programs in the system's places.
    system: fn() -> Vec<PathBuf>,
    default: Option<u32>,
    ask: Box<Ask>,
    found: Mutex<Found>,
    /// What programs have told of themselves, by their folder. Held while they are looked at, one look after the other.
    told: Mutex<BTreeMap<PathBuf, Remembered>>,
}

/// What the programs of a folder told when `postgres` was this one.
struct Remembered {
    mark: Mark,
    told: Result<Told, String>,
    at: Instant,
}

#[derive(Clone, Default)]
struct Found {
    by_major: BTreeMap<u32, Arc<Postgres>>,
    unusable: Vec<String>,
}

impl Installations {
    /// Looks in the system's places and in the folders that the operator named, which come first.
    ///
    /// # Errors
    ///
    /// Where there is none of a supported version.
    pub(crate) fn look(named: &[PathBuf], default: Option<u32>, ask: Box<Ask>) -> Result<Self, Error> {
        Self::look_in((named, in_system), default, ask)
    }

    pub(super) fn look_in(
        (named, system): (&[PathBuf], fn() -> Vec<PathBuf>),
        default: Option<u32>,
        ask: Box<Ask>,
    ) -> Result<Self, Error> {
        let named = named.to_vec();
        let all = Self { named, system, default, ask, found: Mutex::default(), told: Mutex::default() };
        all.look_again();
        if all.all().is_empty() {
            let mut places: Vec<String> =
                all.named.iter().map(|folder| folder.display().to_string()).collect();
            places.push("/usr/lib/postgresql and the like".to_owned());
            let why = all.unusable();
            let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
            return Err(Error::NoPostgres { searched: places.join(", ") + &why });
        }
        if let Err(cause) = all.default() {
            // The clusters of other versions go on.
            tracing::warn!(%cause, "the version of new clusters is not there");
        }
        Ok(all)
    }

    /// Looks for what was installed, updated or removed since, and at whom it belongs to. Runs the programs of what is new alone.
    pub(crate) fn look_again(&self) {
        let mut told = lock(&self.told);
        let mut found = Found::default();
        for place in &self.named {
            let bins = bins_in(place);
            for bin in &bins {
                found.take(self.at(bin, &mut told), bin);
            }
            if bins.is_empty() {
                let text = "no PostgreSQL is in it: name the folder that has bin/postgres in it, or one with such folders";
                found.unusable.push(format!("{}: {text}", place.display()));
            }
        }
        for bin in (self.system)() {
            found.take(self.at(&bin, &mut told), &bin);
        }
        *lock(&self.found) = found;
    }

    /// The installation whose programs are in this folder, or why it is not used.
    fn at(&self, bin: &Path, told: &mut BTreeMap<PathBuf, Remembered>) -> Result<Postgres, String> {
        let untold = Postgres::in_folder(bin)?;
        let is_known = told.get(&untold.bin).is_some_and(|known| {
            known.mark == untold.mark && (known.told.is_ok() || known.at.elapsed() < ASKED_AGAIN_AFTER)
        });
        if !is_known {
            let asked = untold.ask(&*self.ask);
            let remembered = Remembered { mark: untold.mark, told: asked, at: Instant::now() };
            told.insert(untold.bin.clone(), remembered);
        }
        let told = told.get(&untold.bin).map_or_else(|| Err(String::new()), |known| known.told.clone())?;
        untold.with(told)
    }

    fn found(&self) -> Found {
        lock(&self.found).clone()
    }

    /// The one of this major version, as it is installed now.
    pub(crate) fn of(&self, major: u32) -> Result<Arc<Postgres>, Error> {
        let known = |found: &Found| found.by_major.get(&major).filter(|one| one.is_unchanged()).cloned();
        if let Some(one) = known(&self.found()) {
            return Ok(one);
        }
        // It was updated, removed, or installed.
        self.look_again();
        let found = self.found();
        known(&found).ok_or_else(|| Error::VersionGone { major, installed: found.describe() })
    }

    /// The one that new clusters get where nobody asks for another.
    pub(crate) fn default(&self) -> Result<Arc<Postgres>, Error> {
        self.of(self.default_major().unwrap_or(*MAJOR_VERSIONS.end()))
    }

    /// Its major version; none where nothing is installed.
    pub(crate) fn default_major(&self) -> Option<u32> {
        self.default.or_else(|| lock(&self.found).by_major.keys().next_back().copied())
    }

    /// All that can be used, the oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Postgres>> {
        self.found().by_major.into_values().collect()
    }

    /// What was found or named and is not used, and why.
    pub(crate) fn unusable(&self) -> Vec<String> {
        self.found().unusable
    }
}

impl Found {
    /// Of two of the same major version the first counts.
    fn take(&mut self, found: Result<Postgres, String>, bin: &Path) {
        match found {
            Ok(one) => {
                self.by_major.entry(one.major).or_insert_with(|| Arc::new(one));
            }
            Err(reason) => self.unusable.push(format!("{}: {reason}", bin.display())),
        }
    }

    /// What is there, and what is there and not used.
    fn describe(&self) -> String {
        let all: Vec<&str> = self.by_major.values().map(|one| one.version.as_str()).collect();
        let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        self.unusable.iter().fold(all, |text, one| text + "; not used: " + one)
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
