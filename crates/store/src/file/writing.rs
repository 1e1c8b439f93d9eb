//! Changes of the state file: one transaction at a time, and what follows when one fails.
//!
//! After an I/O error the library takes no change before it was opened again, on the same file, which stays open and locked.
//! What became of the last transaction is found out then, so that nobody hears of a failure that was none, or the other way
//! round. Before each change the path is asked whether it still leads to this file.

use std::time::{Duration, Instant};

use redb::ReadableDatabase;

use super::{File, Open, Unsettled, Writing, definition, failed, guarded, io, keep, open_database};
use crate::Error;
use crate::manifest::Manifest;
use crate::medium::Medium;
use crate::trouble::TroubleKind;

/// Between two tries to open the library on the file again, each of which reads all of it.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// For how long it is said that the state could not be written: on a full disk small changes go well between large ones.
pub(super) const SAID_FOR: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

impl File {
    /// Sets one row, or removes it, and counts it.
    pub(super) fn set_row(
        &self,
        writing: &mut Writing<'_>,
        table: &str,
        key: &str,
        sealed: Option<Vec<u8>>,
    ) -> Result<(), Error> {
        let failed = |cause: redb::Error| failed(&self.path, "written", cause);
        let mut rows = writing.write.open_table(definition(table)).map_err(|cause| failed(cause.into()))?;
        let old = match &sealed {
            Some(sealed) => rows.insert(key, sealed.as_slice()),
            None => rows.remove(key),
        };
        let old = old.map_err(|cause| failed(cause.into()))?.map(|old| old.value().to_vec());
        if let Some(old) = &old {
            writing.manifest.take(&mut writing.sums, table, key, old);
        }
        if let Some(sealed) = &sealed {
            writing.manifest.add(&mut writing.sums, table, key, sealed);
        }
        writing.before.push((table.to_owned(), key.to_owned(), old));
        Ok(())
    }

    /// One transaction with its manifest, all of it or nothing. What fails is found out at once where the file can be opened
    /// again: a transaction that got to the disk all the same has not failed.
    pub(super) fn transact(
        &self,
        grows: bool,
        change: impl FnOnce(&mut Writing<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut manifest = self.manifest();
        let mut open = self.opened();
        self.ready(&mut open, &mut manifest)?;
        if grows {
            let shortage = open.medium.shortage();
            self.troubles.set(TroubleKind::Full, shortage.clone());
            if let Some(reason) = shortage {
                return Err(Error::Full { path: self.path.clone(), reason });
            }
        }
        open.medium.permit_reserve(!grows);
        let Some(database) = &open.database else { return Err(self.unwritten(&"it is closed")) };
        let write = match database.begin_write() {
            Ok(write) => write,
            Err(cause) => return Err(self.broken(&mut open, failed(&self.path, "written", cause))),
        };
        let mut writing =
            Writing { write: &write, manifest: &manifest, sums: manifest.sums.clone(), before: Vec::new() };
        let changed = change(&mut writing)
            .and_then(|()| keep(&self.path, &self.sealer, &write, &manifest, &writing.sums));
        let Writing { sums, before, .. } = writing;
        if let Err(cause) = changed {
            // Nothing was begun on the disk.
            drop(write);
            return Err(if matches!(cause, Error::File { .. }) {
                self.broken(&mut open, cause)
            } else {
                cause
            });
        }
        let committed = write.commit().map_err(|cause| failed(&self.path, "written", cause));
        let Err(cause) = committed else {
            manifest.sums = sums;
            manifest.commits += 1;
            return Ok(());
        };
        let commits = manifest.commits;
        open.unsettled = Some(Unsettled { sums: sums.clone(), before });
        let cause = self.broken(&mut open, cause);
        match self.settle(&mut open, &mut manifest, true) {
            // Else it did not get there, or was undone.
            Ok(()) if manifest.commits > commits && manifest.sums == sums => Ok(()),
            Ok(()) => Err(cause),
            Err(_) => Err(Error::Unsettled { path: self.path.clone(), reason: cause.to_string() }),
        }
    }

    /// Closes the library after an error: it takes no more changes before it was opened again.
    fn broken(&self, open: &mut Open, cause: Error) -> Error {
        open.database = None;
        open.tried_at = None;
        open.failed_at = Some(Instant::now());
        self.troubles.set(TroubleKind::Unwritable, Some(cause.to_string()));
        cause
    }

    /// Sees to it that the next transaction can be written, or says why it cannot.
    pub(super) fn ready(&self, open: &mut Open, manifest: &mut Manifest) -> Result<(), Error> {
        self.find(open, manifest)?;
        if open.database.is_some() && open.unsettled.is_none() {
            return Ok(());
        }
        if open.tried_at.is_some_and(|tried| tried.elapsed() < REOPEN_EVERY) {
            return Err(
                self.unwritten(&"it could not be opened again after an error; it is tried every second")
            );
        }
        self.settle(open, manifest, false)
    }

    /// Opens the library on the same file again, and finds out what became of the last transaction. One that its caller still
    /// waits for is kept (`may_keep`) where it got to the disk; of any other its caller heard that it failed, so it is undone.
    fn settle(&self, open: &mut Open, manifest: &mut Manifest, may_keep: bool) -> Result<(), Error> {
        open.tried_at = Some(Instant::now());
        open.medium.permit_reserve(true);
        // After a sync that failed what can be read may be in memory alone, and is not counted on.
        let may_keep = open.medium.forget_what_is_in_memory() && may_keep;
        let settled = guarded(&self.path, || {
            if open.database.is_none() {
                open.database = Some(open_database(&self.path, &open.medium)?);
            }
            let Some(database) = &open.database else { return Ok(()) };
            let read = database.begin_read().map_err(|cause| failed(&self.path, "read", cause))?;
            let found = self.kept_manifest(&read)?.ok_or_else(|| self.another())?;
            self.compare(&read, &found)?;
            drop(read);
            if !found.is_of(manifest) {
                return Err(self.another());
            }
            let unsettled = open.unsettled.as_ref();
            // With the change that nobody knew of, and with what undid it, it has come one or two transactions further.
            let further = if unsettled.is_some() { 2 } else { 0 };
            let is_as_before = found.sums == manifest.sums
                && (manifest.commits..=manifest.commits + further).contains(&found.commits);
            if is_as_before {
                manifest.commits = found.commits;
                return Ok(());
            }
            let Some(Unsettled { sums, before }) = unsettled else { return Err(self.another()) };
            if found.commits != manifest.commits + 1 || found.sums != *sums {
                return Err(self.another());
            }
            if may_keep {
                (manifest.commits, manifest.sums) = (found.commits, found.sums);
                return Ok(());
            }
            let write = database.begin_write().map_err(|cause| failed(&self.path, "written", cause))?;
            let mut writing =
                Writing { write: &write, manifest: &found, sums: found.sums.clone(), before: Vec::new() };
            for (table, key, sealed) in before.iter().rev() {
                self.set_row(&mut writing, table, key, sealed.clone())?;
            }
            let sums = writing.sums;
            keep(&self.path, &self.sealer, &write, &found, &sums)?;
            write.commit().map_err(|cause| failed(&self.path, "written", cause))?;
            // Only now: where this fails, what is found the next time is compared with what counted before.
            manifest.commits = found.commits + 1;
            tracing::warn!(
                "a change of the state that was said to have failed had got to the disk; it is undone"
            );
            Ok(())
        });
        match settled {
            Ok(()) => {
                // Whether it can be written again, a transaction shows.
                open.unsettled = None;
                open.medium.count_on_memory();
                Ok(())
            }
            Err(cause) => {
                open.database = None;
                open.failed_at = Some(Instant::now());
                self.troubles.set(TroubleKind::Unwritable, Some(cause.to_string()));
                Err(cause)
            }
        }
    }

    /// Makes sure that the path still leads to the open file. Where another file lies there that holds the very same state,
    /// because somebody copied it back, that one is used from now on.
    fn find(&self, open: &mut Open, manifest: &mut Manifest) -> Result<(), Error> {
        let removed = match open.medium.is_in_place() {
            Ok(true) => None,
            Ok(false) => Some(match self.adopt(open, manifest) {
                Ok(()) => {
                    self.troubles.set(TroubleKind::Removed, None);
                    return Ok(());
                }
                Err(cause) => cause,
            }),
            Err(cause) => Some(io(&self.path, "found", &cause)),
        };
        self.troubles.set(TroubleKind::Removed, removed.as_ref().map(Error::to_string));
        removed.map_or(Ok(()), Err)
    }

    fn adopt(&self, open: &mut Open, manifest: &Manifest) -> Result<(), Error> {
        let descriptor = open.medium.descriptor();
        let gone = || Error::Removed { path: self.path.clone(), pid: std::process::id(), descriptor };
        if open.unsettled.is_some() || !self.path.try_exists().unwrap_or(false) {
            return Err(gone());
        }
        let adopted = guarded(&self.path, || {
            let medium = Medium::open(&self.path).map_err(|cause| io(&self.path, "opened", &cause))?;
            let database = open_database(&self.path, &medium)?;
            let read = database.begin_read().map_err(|cause| failed(&self.path, "read", cause))?;
            let found = self.kept_manifest(&read)?.ok_or_else(|| self.another())?;
            self.compare(&read, &found)?;
            let is_same =
                found.is_of(manifest) && found.commits == manifest.commits && found.sums == manifest.sums;
            if is_same { Ok((medium, database)) } else { Err(self.another()) }
        });
        let (medium, database) = adopted.map_err(|cause| {
            tracing::debug!(%cause, "what lies in the place of the state is not used");
            gone()
        })?;
        (open.medium, open.database) = (medium, Some(database));
        tracing::warn!(
            "the state lies in its place again, in another file with the same content, which is used from now on"
        );
        Ok(())
    }

    fn another(&self) -> Error {
        self.tampered("it is not what was written last".to_owned())
    }
}
