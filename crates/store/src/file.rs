//! The state file: one B-tree of sealed values, each bound to its table and key, with a manifest over all of them.

mod writing;

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ::keys::Sealer;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle,
    WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::manifest::{self, Difference, Manifest, Sums};
use crate::medium::{Backend, Medium};
use crate::trouble::{TroubleKind, Troubles};

/// Where a kind of value lies.
#[derive(Clone, Copy)]
pub(crate) enum Table {
    Clusters,
    Observations,
    Roles,
    ApiKeys,
    Counters,
    Providers,
    Provisioned,
    Organization,
    KeyServices,
    Secrets,
    Templates,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Clusters => "clusters",
            Self::Observations => "observations",
            Self::Roles => "roles",
            Self::ApiKeys => "api_keys",
            Self::Counters => "counters",
            Self::Providers => "providers",
            Self::Provisioned => "provisioned",
            Self::Organization => "organization",
            Self::KeyServices => "key_services",
            Self::Secrets => "secrets",
            Self::Templates => "templates",
        }
    }

    /// Those whose rows belong to a cluster of the same key.
    const OF_CLUSTERS: [Self; 3] = [Self::Observations, Self::Roles, Self::Provisioned];
}

pub(crate) struct File {
    open: Mutex<Open>,
    troubles: Arc<Troubles>,
    path: PathBuf,
    sealer: Sealer,
    /// As the last transaction left it. What is on the disk by then is what it was made from, or will not match.
    manifest: Mutex<Manifest>,
}

/// The file and the library on it.
struct Open {
    medium: Arc<Medium>,
    /// `None` after an I/O error, until it could be opened again.
    database: Option<Database>,
    /// When that was tried last.
    tried_at: Option<Instant>,
    /// When something failed last.
    failed_at: Option<Instant>,
    /// A transaction of which it is not known whether it got to the disk. Its caller heard that nothing was changed.
    unsettled: Option<Unsettled>,
}

/// What one transaction would leave, and what was there before.
struct Unsettled {
    sums: Sums,
    before: Rows,
}

/// Rows of tables, with the sealed value that each has or is to have; `None` where there is none.
type Rows = Vec<(String, String, Option<Vec<u8>>)>;

/// What one transaction changes.
#[derive(Default)]
pub(crate) struct Batch {
    rows: Vec<(Table, String, Option<Vec<u8>>)>,
    /// Whether it makes the state grow and can wait: refused while room is short, so that there is some for what cannot.
    grows: bool,
}

/// The parts of a transaction under way.
struct Writing<'a> {
    write: &'a WriteTransaction,
    manifest: &'a Manifest,
    sums: Sums,
    before: Rows,
}

/// The state file, open and locked, before anything of it was read. The lock is the file's own: whoever has it is the only one
/// who uses this state, whatever other files say.
#[derive(Debug)]
pub struct StateLock {
    path: PathBuf,
    /// None where there is no state yet.
    medium: Option<Arc<Medium>>,
}

impl StateLock {
    /// Takes it, where there is a state. Fails with [`Error::InUse`] where another program has it.
    pub fn take(path: &Path) -> Result<Self, Error> {
        let medium = match Medium::open(path) {
            Ok(medium) => Some(medium),
            Err(cause) if cause.kind() == ErrorKind::NotFound => None,
            Err(cause) if cause.kind() == ErrorKind::ResourceBusy => {
                return Err(Error::InUse { path: path.to_owned() });
            }
            Err(cause) => return Err(io(path, "opened", &cause)),
        };
        Ok(Self { path: path.to_owned(), medium })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl File {
    /// Opens the file whose lock was taken, or makes it where there was none. One that an earlier version of the program wrote
    /// gets its manifest.
    pub(crate) fn open(lock: StateLock, sealer: Sealer) -> Result<Self, Error> {
        let StateLock { path, medium } = lock;
        let path = path.as_path();
        let medium = if let Some(medium) = medium {
            medium
        } else {
            create(path, &sealer)?;
            Medium::open(path).map_err(|cause| io(path, "opened", &cause))?
        };
        let database = open_database(path, &medium)?;
        let open =
            Open { medium, database: Some(database), tried_at: None, failed_at: None, unsettled: None };
        let mut file = Self {
            open: Mutex::new(open),
            troubles: Arc::default(),
            path: path.to_owned(),
            sealer,
            manifest: Mutex::new(Manifest::new()),
        };
        let kept = file.kept_manifest(&file.begin_read()?)?;
        match kept {
            Some(manifest) => file.manifest = Mutex::new(manifest),
            None => file.take_over()?,
        }
        file.look_at_room();
        Ok(file)
    }

    #[cfg(test)]
    pub(crate) fn with_medium<T>(&self, look: impl FnOnce(&Medium) -> T) -> T {
        look(&self.opened().medium)
    }

    /// What is wrong with it.
    pub(crate) fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Looks whether all is well with the file, and puts right what can be.
    pub(crate) fn look_after(&self) {
        let is_over = {
            let mut manifest = self.manifest();
            let mut open = self.opened();
            // Whatever is wrong is among the troubles by then.
            let is_ready = self.ready(&mut open, &mut manifest).is_ok();
            is_ready && open.failed_at.is_none_or(|failed| failed.elapsed() >= writing::SAID_FOR)
        };
        self.look_at_room();
        // A transaction that changes nothing: where it goes well, so do others.
        if is_over && self.troubles.has(TroubleKind::Unwritable) && self.try_write().is_ok() {
            self.troubles.set(TroubleKind::Unwritable, None);
        }
    }

    /// Writes a transaction that changes nothing.
    pub(crate) fn try_write(&self) -> Result<(), Error> {
        self.transact(false, |_| Ok(()))
    }

    fn look_at_room(&self) {
        let shortage = self.opened().medium.shortage();
        self.troubles.set(TroubleKind::Full, shortage);
    }

    /// Every value of a table with its key.
    pub(crate) fn read_all<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, Error> {
        let mut values = Vec::new();
        self.each_row(&self.begin_read()?, table.name(), |key, sealed| {
            values.push((key.to_owned(), self.unseal(table, key, sealed)?));
            Ok(())
        })?;
        Ok(values)
    }

    /// One value.
    pub(crate) fn read<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>, Error> {
        let failed = |cause: redb::Error| failed(&self.path, "read", cause);
        let read = self.begin_read()?;
        let rows = match read.open_table(definition(table.name())) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(cause) => return Err(failed(cause.into())),
        };
        match rows.get(key).map_err(|cause| failed(cause.into()))? {
            Some(sealed) => self.unseal(table, key, sealed.value()).map(Some),
            None => Ok(None),
        }
    }

    fn unseal<T: DeserializeOwned>(&self, table: Table, key: &str, sealed: &[u8]) -> Result<T, Error> {
        let tampered =
            || self.tampered(format!("{} {key} does not open with this cloud's key", table.name()));
        let plain = self.sealer.open(&context(table.name(), key), sealed).map_err(|_| tampered())?;
        serde_json::from_slice(plain.expose()).map_err(|_| tampered())
    }

    /// Compares everything that is there with the manifest.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let read = self.begin_read()?;
        self.compare(&read, &self.manifest())
    }

    fn compare(&self, read: &ReadTransaction, manifest: &Manifest) -> Result<(), Error> {
        let mut found = Sums::default();
        for table in self.tables(read)? {
            self.each_row(read, &table, |key, sealed| {
                manifest.add(&mut found, &table, key, sealed);
                Ok(())
            })?;
        }
        match manifest.sums.difference(&found) {
            None => Ok(()),
            Some(difference) => Err(self.tampered(self.describe(read, &difference)?)),
        }
    }

    /// Says which table is wrong, and which row where that can be known.
    fn describe(&self, read: &ReadTransaction, difference: &Difference) -> Result<String, Error> {
        let Difference { table, wanted, found } = difference;
        if wanted != found {
            let text = format!("the table {table} must have {wanted} rows and has {found}");
            let missing = if table == Table::Clusters.name() { self.orphan(read)? } else { None };
            return Ok(match missing {
                Some(key) => format!("{text}: {key} was removed"),
                None => text,
            });
        }
        let mut keys = self.keys(read, table)?;
        Ok(match (keys.pop(), keys.is_empty()) {
            (Some(only), true) => format!("{table} {only} was put back from an older copy"),
            _ => {
                format!("a row of the table {table} was put back from an older copy, or in place of another")
            }
        })
    }

    /// A row of a cluster whose own row is not there.
    fn orphan(&self, read: &ReadTransaction) -> Result<Option<String>, Error> {
        let clusters: std::collections::HashSet<String> =
            self.keys(read, Table::Clusters.name())?.into_iter().collect();
        for table in Table::OF_CLUSTERS {
            let found = self.keys(read, table.name())?.into_iter().find(|key| !clusters.contains(key));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    pub(crate) fn put<T: Serialize>(
        &self,
        batch: &mut Batch,
        table: Table,
        key: &str,
        value: &T,
    ) -> Result<(), Error> {
        let plain =
            zeroize::Zeroizing::new(serde_json::to_vec(value).map_err(|cause| self.unwritten(&cause))?);
        let sealed =
            self.sealer.seal(&context(table.name(), key), &plain).map_err(|cause| self.unwritten(&cause))?;
        batch.rows.push((table, key.to_owned(), Some(sealed)));
        Ok(())
    }

    /// Makes the batch durable, all of it or nothing.
    pub(crate) fn commit(&self, batch: Batch) -> Result<(), Error> {
        self.transact(batch.grows, |writing| {
            for (table, key, sealed) in batch.rows {
                self.set_row(writing, table.name(), &key, sealed)?;
            }
            Ok(())
        })
    }

    /// Seals every value anew that is not under the root key's newest version, all of them or none. Gives how many.
    pub(crate) fn reseal(&self) -> Result<u64, Error> {
        let read = self.begin_read()?;
        let mut changed = 0;
        let mut rows_of = Vec::new();
        for table in self.tables(&read)? {
            let mut keys = Vec::new();
            self.each_row(&read, &table, |key, sealed| {
                if !self.sealer.is_current(sealed) {
                    keys.push(key.to_owned());
                }
                Ok(())
            })?;
            if !keys.is_empty() {
                rows_of.push((keys, table));
            }
        }
        drop(read);
        if rows_of.is_empty() && self.is_manifest_current()? {
            return Ok(0);
        }
        self.transact(false, |writing| {
            for (keys, table) in &rows_of {
                let failed = |cause: redb::Error| failed(&self.path, "written", cause);
                for key in keys {
                    let old = {
                        let rows = writing.write.open_table(definition(table));
                        let rows = rows.map_err(|cause| failed(cause.into()))?;
                        let old = rows.get(key.as_str()).map_err(|cause| failed(cause.into()))?;
                        old.map(|old| old.value().to_vec())
                    };
                    let Some(old) = old else {
                        continue;
                    };
                    let context = context(table, key);
                    let plain = self.sealer.open(&context, &old).map_err(|_| {
                        self.tampered(format!("{table} {key} does not open with this cloud's key"))
                    })?;
                    let new =
                        self.sealer.seal(&context, plain.expose()).map_err(|cause| self.unwritten(&cause))?;
                    self.set_row(writing, table, key, Some(new))?;
                    changed += 1;
                }
            }
            Ok(())
        })?;
        Ok(changed)
    }

    /// Transactions since the file was made.
    pub(crate) fn commits(&self) -> u64 {
        self.manifest().commits
    }

    /// Gives a file of an earlier version of the program its manifest. Such a file has rows, all in the first sealed
    /// form; anything else has lost a manifest that it had.
    fn take_over(&self) -> Result<(), Error> {
        let read = self.begin_read()?;
        let manifest = self.manifest();
        let (mut sums, mut rows, mut is_old) = (Sums::default(), 0_u64, true);
        for table in self.tables(&read)? {
            self.each_row(&read, &table, |key, sealed| {
                manifest.add(&mut sums, &table, key, sealed);
                rows += 1;
                is_old &= Sealer::is_first_form(sealed);
                Ok(())
            })?;
        }
        drop(manifest);
        if rows == 0 || !is_old {
            return Err(self.tampered("its manifest was removed".to_owned()));
        }
        self.manifest().sums = sums;
        self.reseal().map(drop)
    }

    fn kept_manifest(&self, read: &ReadTransaction) -> Result<Option<Manifest>, Error> {
        let mut kept = None;
        self.each_row(read, manifest::TABLE, |key, sealed| {
            if key == manifest::KEY {
                let plain = self.sealer.open(&context(manifest::TABLE, key), sealed);
                kept = plain.ok().and_then(|plain| Manifest::from_bytes(plain.expose()));
            }
            let does_not_open =
                || self.tampered("its manifest does not open with this cloud's key".to_owned());
            kept.is_some().then_some(()).ok_or_else(does_not_open)
        })?;
        Ok(kept)
    }

    fn is_manifest_current(&self) -> Result<bool, Error> {
        let mut is_current = false;
        self.each_row(&self.begin_read()?, manifest::TABLE, |_, sealed| {
            is_current = self.sealer.is_current(sealed);
            Ok(())
        })?;
        Ok(is_current)
    }

    fn begin_read(&self) -> Result<ReadTransaction, Error> {
        let open = self.opened();
        let database = open.database.as_ref().ok_or_else(|| Error::File {
            path: self.path.clone(),
            action: "read",
            reason: "it is closed after an error".to_owned(),
        })?;
        database.begin_read().map_err(|cause| failed(&self.path, "read", cause))
    }

    /// The tables that are there, without the manifest. Also those that a later version of the program made.
    fn tables(&self, read: &ReadTransaction) -> Result<Vec<String>, Error> {
        let tables = read.list_tables().map_err(|cause| failed(&self.path, "read", cause))?;
        let names = tables.map(|table| table.name().to_owned());
        Ok(names.filter(|name| name != manifest::TABLE).collect())
    }

    fn keys(&self, read: &ReadTransaction, table: &str) -> Result<Vec<String>, Error> {
        let mut keys = Vec::new();
        self.each_row(read, table, |key, _| {
            keys.push(key.to_owned());
            Ok(())
        })?;
        Ok(keys)
    }

    fn each_row(
        &self,
        read: &ReadTransaction,
        table: &str,
        mut look: impl FnMut(&str, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let failed = |cause: redb::Error| failed(&self.path, "read", cause);
        let rows = match read.open_table(definition(table)) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(cause) => return Err(failed(cause.into())),
        };
        for row in rows.iter().map_err(|cause| failed(cause.into()))? {
            let (key, sealed) = row.map_err(|cause| failed(cause.into()))?;
            look(key.value(), sealed.value())?;
        }
        Ok(())
    }

    fn opened(&self) -> MutexGuard<'_, Open> {
        // After a panic in between the library is closed or whole; `ready` finds out.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn manifest(&self) -> MutexGuard<'_, Manifest> {
        // It is changed after a commit only, in one step.
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tampered(&self, what: String) -> Error {
        Error::Tampered { path: self.path.clone(), what }
    }

    fn unwritten(&self, cause: &dyn std::fmt::Display) -> Error {
        Error::File { path: self.path.clone(), action: "written", reason: cause.to_string() }
    }
}

impl Batch {
    /// One that makes the state grow and can wait until there is room.
    pub(crate) fn growing() -> Self {
        Self { grows: true, ..Self::default() }
    }

    pub(crate) fn remove(&mut self, table: Table, key: &str) {
        self.rows.push((table, key.to_owned(), None));
    }
}

fn open_database(path: &Path, medium: &Arc<Medium>) -> Result<Database, Error> {
    let opened = Database::builder().create_with_backend(Backend(medium.clone()));
    let mut database = opened.map_err(|cause| failed(path, "opened", cause))?;
    // Values are sealed, but which pages are free is not: with a wrong list a later write would hit what is used.
    database.check_integrity().map_err(|cause| failed(path, "checked", cause))?;
    Ok(database)
}

/// Makes a file with a manifest over nothing, under another name first: a file without a manifest must never be there.
fn create(path: &Path, sealer: &Sealer) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    let io_failed = |cause: std::io::Error| io(path, "made", &cause);
    match std::fs::remove_file(&beside) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => return Err(io_failed(cause)),
        _ => {}
    }
    // Private from its first moment; the values are sealed, the names of tables are not.
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .map_err(io_failed)?;
    {
        let database = Database::create(&beside).map_err(|cause| failed(path, "made", cause))?;
        let write = database.begin_write().map_err(|cause| failed(path, "made", cause))?;
        keep(path, sealer, &write, &Manifest::new(), &Sums::default())?;
        write.commit().map_err(|cause| failed(path, "made", cause))?;
    }
    std::fs::rename(&beside, path).map_err(io_failed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_failed)
}

/// Writes the manifest into the transaction.
fn keep(
    path: &Path,
    sealer: &Sealer,
    write: &WriteTransaction,
    manifest: &Manifest,
    sums: &Sums,
) -> Result<(), Error> {
    let unwritten = |cause: &dyn std::fmt::Display| Error::File {
        path: path.to_owned(),
        action: "written",
        reason: cause.to_string(),
    };
    let plain = manifest.next_bytes(sums).map_err(|cause| unwritten(&cause))?;
    let sealed =
        sealer.seal(&context(manifest::TABLE, manifest::KEY), &plain).map_err(|cause| unwritten(&cause))?;
    let mut rows =
        write.open_table(definition(manifest::TABLE)).map_err(|cause| failed(path, "written", cause))?;
    let kept = rows.insert(manifest::KEY, sealed.as_slice());
    kept.map(drop).map_err(|cause| failed(path, "written", cause))
}

/// Reads a file that somebody may have changed: the library asserts what its own pages say, and that must not end the
/// program without a word.
pub(crate) fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Error::Corrupted { path: path.to_owned(), reason: "its pages contradict each other".to_owned() })
    })
}

fn failed(path: &Path, action: &'static str, cause: impl Into<redb::Error>) -> Error {
    let path = path.to_owned();
    match cause.into() {
        redb::Error::Corrupted(reason) => Error::Corrupted { path, reason },
        redb::Error::Io(cause)
            if matches!(cause.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            Error::Corrupted { path, reason: cause.to_string() }
        }
        other => Error::File { path, action, reason: other.to_string() },
    }
}

fn io(path: &Path, action: &'static str, cause: &std::io::Error) -> Error {
    Error::File { path: path.to_owned(), action, reason: cause.to_string() }
}

fn definition(table: &str) -> TableDefinition<'_, &'static str, &'static [u8]> {
    TableDefinition::new(table)
}

fn context(table: &str, key: &str) -> Vec<u8> {
    format!("{table}/{key}").into_bytes()
}
