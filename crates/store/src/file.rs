//! The state file: one B-tree of sealed values, each bound to its table and key.

use std::path::{Path, PathBuf};

use ::keys::Sealer;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

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
}

impl Table {
    const ALL: [Self; 9] = [
        Self::Clusters,
        Self::Observations,
        Self::Roles,
        Self::ApiKeys,
        Self::Counters,
        Self::Providers,
        Self::Provisioned,
        Self::Organization,
        Self::KeyServices,
    ];

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
        }
    }
}

pub(crate) struct File {
    database: Database,
    path: PathBuf,
    sealer: Sealer,
}

/// What one transaction changes.
#[derive(Default)]
pub(crate) struct Batch(Vec<(Table, String, Option<Vec<u8>>)>);

impl File {
    pub(crate) fn open(path: &Path, sealer: Sealer) -> Result<Self, Error> {
        use std::os::unix::fs::OpenOptionsExt;
        let failed = |reason: String| Error::File { path: path.to_owned(), action: "opened", reason };
        // Private from its first moment; the values are sealed, the names of tables are not.
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|cause| failed(cause.to_string()))?;
        let database = Database::create(path).map_err(|cause| failed(cause.to_string()))?;
        let file = Self { database, path: path.to_owned(), sealer };
        file.commit(Batch::default())?;
        Ok(file)
    }

    /// Every value of a table with its key.
    pub(crate) fn read_all<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, Error> {
        let failed = |reason: String| Error::File { path: self.path.clone(), action: "read", reason };
        let read = self.database.begin_read().map_err(|cause| failed(cause.to_string()))?;
        let rows = read.open_table(definition(table)).map_err(|cause| failed(cause.to_string()))?;
        let mut values = Vec::new();
        for row in rows.iter().map_err(|cause| failed(cause.to_string()))? {
            let (key, sealed) = row.map_err(|cause| failed(cause.to_string()))?;
            let key = key.value().to_owned();
            let tampered =
                || Error::Tampered { path: self.path.clone(), what: format!("{} {key}", table.name()) };
            let plain = self.sealer.open(&context(table, &key), sealed.value()).map_err(|_| tampered())?;
            let value = serde_json::from_slice(plain.expose()).map_err(|_| tampered())?;
            values.push((key, value));
        }
        Ok(values)
    }

    pub(crate) fn put<T: Serialize>(
        &self,
        batch: &mut Batch,
        table: Table,
        key: &str,
        value: &T,
    ) -> Result<(), Error> {
        let failed = |reason: String| Error::File { path: self.path.clone(), action: "written", reason };
        let plain =
            zeroize::Zeroizing::new(serde_json::to_vec(value).map_err(|cause| failed(cause.to_string()))?);
        let sealed =
            self.sealer.seal(&context(table, key), &plain).map_err(|cause| failed(cause.to_string()))?;
        batch.0.push((table, key.to_owned(), Some(sealed)));
        Ok(())
    }

    /// Makes the batch durable, all of it or nothing.
    pub(crate) fn commit(&self, batch: Batch) -> Result<(), Error> {
        let failed = |reason: String| Error::File { path: self.path.clone(), action: "written", reason };
        let write = self.database.begin_write().map_err(|cause| failed(cause.to_string()))?;
        {
            for table in Table::ALL {
                write.open_table(definition(table)).map_err(|cause| failed(cause.to_string()))?;
            }
            for (table, key, sealed) in &batch.0 {
                let mut rows =
                    write.open_table(definition(*table)).map_err(|cause| failed(cause.to_string()))?;
                match sealed {
                    Some(sealed) => rows.insert(key.as_str(), sealed.as_slice()).map(drop),
                    None => rows.remove(key.as_str()).map(drop),
                }
                .map_err(|cause| failed(cause.to_string()))?;
            }
        }
        write.commit().map_err(|cause| failed(cause.to_string()))
    }
}

impl Batch {
    pub(crate) fn remove(&mut self, table: Table, key: &str) {
        self.0.push((table, key.to_owned(), None));
    }
}

fn definition(table: Table) -> TableDefinition<'static, &'static str, &'static [u8]> {
    TableDefinition::new(table.name())
}

fn context(table: Table, key: &str) -> Vec<u8> {
    format!("{}/{key}", table.name()).into_bytes()
}
