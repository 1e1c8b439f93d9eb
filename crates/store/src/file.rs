//! The state file: one B-tree of sealed values, each bound to its table and key, with a manifest over all of them.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::keys::Sealer;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle,
    WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::manifest::{self, Difference, Manifest, Sums};

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
        }
    }

    /// Those whose rows belong to a cluster of the same key.
    const OF_CLUSTERS: [Self; 3] = [Self::Observations, Self::Roles, Self::Provisioned];
}

pub(crate) struct File {
    database: Database,
    path: PathBuf,
    sealer: Sealer,
    /// As the last transaction left it. What is on the disk by then is what it was made from, or will not match.
    manifest: Mutex<Manifest>,
}

/// What one transaction changes.
#[derive(Default)]
pub(crate) struct Batch(Vec<(Table, String, Option<Vec<u8>>)>);

impl File {
    /// Opens the file, or makes it. One that an earlier version of the program wrote gets its manifest.
    pub(crate) fn open(path: &Path, sealer: Sealer) -> Result<Self, Error> {
        if !path.try_exists().map_err(|cause| io(path, "opened", &cause))? {
            create(path, &sealer)?;
        }
        let mut database = Database::create(path).map_err(|cause| failed(path, "opened", cause))?;
        // Values are sealed, but which pages are free is not: with a wrong list a later write would hit what is used.
        database.check_integrity().map_err(|cause| failed(path, "checked", cause))?;
        let mut file =
            Self { database, path: path.to_owned(), sealer, manifest: Mutex::new(Manifest::new()) };
        match file.kept_manifest()? {
            Some(manifest) => file.manifest = Mutex::new(manifest),
            None => file.take_over()?,
        }
        Ok(file)
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
        let manifest = self.manifest();
        let mut found = Sums::default();
        for table in self.tables(&read)? {
            self.each_row(&read, &table, |key, sealed| {
                manifest.add(&mut found, &table, key, sealed);
                Ok(())
            })?;
        }
        match manifest.sums.difference(&found) {
            None => Ok(()),
            Some(difference) => Err(self.tampered(self.describe(&read, &difference)?)),
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
        batch.0.push((table, key.to_owned(), Some(sealed)));
        Ok(())
    }

    /// Makes the batch durable, all of it or nothing.
    pub(crate) fn commit(&self, batch: Batch) -> Result<(), Error> {
        let failed = |cause: redb::Error| failed(&self.path, "written", cause);
        self.transact(|write, manifest, sums| {
            for (table, key, sealed) in &batch.0 {
                let mut rows =
                    write.open_table(definition(table.name())).map_err(|cause| failed(cause.into()))?;
                let old = match sealed {
                    Some(sealed) => rows.insert(key.as_str(), sealed.as_slice()),
                    None => rows.remove(key.as_str()),
                };
                if let Some(old) = old.map_err(|cause| failed(cause.into()))? {
                    manifest.take(sums, table.name(), key, old.value());
                }
                if let Some(sealed) = sealed {
                    manifest.add(sums, table.name(), key, sealed);
                }
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
        self.transact(|write, manifest, sums| {
            for (keys, table) in &rows_of {
                let failed = |cause: redb::Error| failed(&self.path, "written", cause);
                let mut rows = write.open_table(definition(table)).map_err(|cause| failed(cause.into()))?;
                for key in keys {
                    let old = rows.get(key.as_str()).map_err(|cause| failed(cause.into()))?;
                    let Some(old) = old.map(|old| old.value().to_vec()) else {
                        continue;
                    };
                    let context = context(table, key);
                    let plain = self.sealer.open(&context, &old).map_err(|_| {
                        self.tampered(format!("{table} {key} does not open with this cloud's key"))
                    })?;
                    let new =
                        self.sealer.seal(&context, plain.expose()).map_err(|cause| self.unwritten(&cause))?;
                    rows.insert(key.as_str(), new.as_slice()).map_err(|cause| failed(cause.into()))?;
                    manifest.take(sums, table, key, &old);
                    manifest.add(sums, table, key, &new);
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

    /// One transaction with its manifest.
    fn transact(
        &self,
        change: impl FnOnce(&WriteTransaction, &Manifest, &mut Sums) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let failed = |cause: redb::Error| failed(&self.path, "written", cause);
        let mut manifest = self.manifest();
        let write = self.database.begin_write().map_err(|cause| failed(cause.into()))?;
        let mut sums = manifest.sums.clone();
        change(&write, &manifest, &mut sums)?;
        keep(&self.path, &self.sealer, &write, &manifest, &sums)?;
        write.commit().map_err(|cause| failed(cause.into()))?;
        manifest.sums = sums;
        manifest.commits += 1;
        Ok(())
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

    fn kept_manifest(&self) -> Result<Option<Manifest>, Error> {
        let mut kept = None;
        self.each_row(&self.begin_read()?, manifest::TABLE, |key, sealed| {
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
        self.database.begin_read().map_err(|cause| failed(&self.path, "read", cause))
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
    pub(crate) fn remove(&mut self, table: Table, key: &str) {
        self.0.push((table, key.to_owned(), None));
    }
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
