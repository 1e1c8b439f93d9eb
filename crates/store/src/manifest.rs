//! What the state file must hold: for each table how many rows, and a hash over all of them.
//!
//! Each value is sealed and bound to its place, so a changed or moved one is found by itself. What that cannot find is a
//! row that was removed, or put back from an older copy of the file. The manifest finds it: it changes in each
//! transaction, and is sealed as everything else. The hash of a table is the exclusive or of a keyed hash (HMAC-SHA-256)
//! of each row, so a transaction costs what it changes and not what is there. The hash's key and the sums are inside the
//! seal, so nobody without the root key can look for rows that cancel each other out.

use std::collections::BTreeMap;

use ::keys::{Fingerprints, Secret, fill_random};
use model::KeptSecret;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Where the manifest itself lies.
pub(crate) const TABLE: &str = "manifest";
/// There is one.
pub(crate) const KEY: &str = "rows";

/// What every table must hold.
pub(crate) struct Manifest {
    secret: KeptSecret,
    hash: Fingerprints,
    /// Transactions since the file was made.
    pub(crate) commits: u64,
    pub(crate) sums: Sums,
}

/// By table; a table without rows has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Sums(BTreeMap<String, Sum>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    rows: u64,
    #[serde(with = "hex::serde")]
    hash: [u8; 32],
}

/// A table that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) table: String,
    /// Rows that must be there.
    pub(crate) wanted: u64,
    /// Rows that are there.
    pub(crate) found: u64,
}

#[derive(Serialize)]
struct Written<'a> {
    secret: &'a KeptSecret,
    commits: u64,
    tables: &'a Sums,
}

#[derive(Deserialize)]
struct Read {
    secret: KeptSecret,
    commits: u64,
    tables: Sums,
}

impl Manifest {
    /// Of a file without rows.
    pub(crate) fn new() -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        fill_random(secret.as_mut());
        Self::with(KeptSecret::new(hex::encode(secret.as_ref())), 0, Sums::default())
    }

    fn with(secret: KeptSecret, commits: u64, sums: Sums) -> Self {
        let hash = Fingerprints::new(&Secret::new(secret.expose().as_bytes().to_vec()));
        Self { secret, hash, commits, sums }
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let Read { secret, commits, tables } = serde_json::from_slice(bytes).ok()?;
        Some(Self::with(secret, commits, tables))
    }

    /// Whether both are of the same state, at whatever time.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        self.row("", "", &[]) == other.row("", "", &[])
    }

    /// What is to be written with these sums, as the next transaction.
    pub(crate) fn next_bytes(&self, sums: &Sums) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
        let written = Written { secret: &self.secret, commits: self.commits + 1, tables: sums };
        serde_json::to_vec(&written).map(Zeroizing::new)
    }

    /// Counts a row in.
    pub(crate) fn add(&self, sums: &mut Sums, table: &str, key: &str, sealed: &[u8]) {
        let hash = self.row(table, key, sealed);
        let sum = sums.of(table);
        sum.rows = sum.rows.wrapping_add(1);
        sum.mix(&hash);
    }

    /// Counts a row out.
    pub(crate) fn take(&self, sums: &mut Sums, table: &str, key: &str, sealed: &[u8]) {
        let hash = self.row(table, key, sealed);
        let sum = sums.of(table);
        sum.rows = sum.rows.wrapping_sub(1);
        sum.mix(&hash);
        if *sum == Sum::default() {
            sums.0.remove(table);
        }
    }

    fn row(&self, table: &str, key: &str, sealed: &[u8]) -> [u8; 32] {
        self.hash.of(&[table.as_bytes(), key.as_bytes(), sealed])
    }
}

impl Sums {
    fn of(&mut self, table: &str) -> &mut Sum {
        self.0.entry(table.to_owned()).or_default()
    }

    /// The first table that differs, if any does. `self` is what must be.
    pub(crate) fn difference(&self, found: &Self) -> Option<Difference> {
        let tables = self.0.keys().chain(found.0.keys());
        let differs = |table: &&String| self.0.get(*table) != found.0.get(*table);
        let table = tables.into_iter().find(differs)?;
        let rows = |sums: &Self| sums.0.get(table).map_or(0, |sum| sum.rows);
        Some(Difference { table: table.clone(), wanted: rows(self), found: rows(found) })
    }
}

impl Sum {
    fn mix(&mut self, hash: &[u8; 32]) {
        for (sum, byte) in self.hash.iter_mut().zip(hash) {
            *sum ^= byte;
        }
    }
}
