//! What new clusters are copied from: a data directory that `initdb` made once, in a place where no tenant ever was, with the
//! roles and the database that every cluster has.
//!
//! Its archive holds no secret and nothing of anybody's, so it lies on the disk in plaintext; each copy is written into the new
//! cluster's own encrypted volume. What the archive must be is on record beside it, and each part of it is compared with that
//! before it is copied, so whoever writes to the disk plants nothing in new clusters. Each copy gets a name of its own.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{self, digest};
use keys::DataKey;
use model::{ClusterId, Plan, StorageLimit, Template};
use rustix::fs::renameat;
use time::OffsetDateTime;

use super::{Host, blocking};
use crate::inside::{Inside, failed};
use crate::jail::{Jail, libraries};
use crate::places::{Owner, give, make_folder, remove_folder};
use crate::postgres::{MAJOR_VERSIONS, Postgres};
use crate::{Error, archive, control_file, initialize, leftovers, volume};

/// An archive that is being written.
const BESIDE: &str = "new";
/// Timeline and number of a part of the write-ahead log (PostgreSQL's `XLogFileName`).
const SEGMENT_NAME_BYTES: usize = 24;
/// By these libraries text is sorted, and so indexes are.
const SORTING: &[&str] = &["libc.so.", "libicui18n.so.", "libicudata.so."];

/// Where the first files of a new cluster come from.
pub(super) enum Source {
    /// A template and its archive.
    Copied(Template, File),
    /// Its own `initdb`: the installation has no program that finishes a copy, as those of npm have none.
    Made,
}

impl Source {
    /// Whether nothing may be in the data directory before, not even the place of the write-ahead log: so `initdb` wants it.
    pub(super) fn fills_what_is_empty(&self) -> bool {
        matches!(self, Self::Made)
    }

    /// Fills the empty data directory of a new cluster, in its jail.
    pub(super) fn fill(self, jail: &Jail<'_>) -> Result<(), Error> {
        let Self::Copied(template, archive) = self else {
            initialize::initdb(jail)?;
            return initialize::furnish_files(jail);
        };
        let data = Inside::open(jail.base, "pg")?;
        archive::unpack(archive, &template.parts, &data, jail.owner)?;
        let global = data.below("global")?;
        let control = global.read_bytes("pg_control").unwrap_or_default();
        let renamed = control_file::renamed(&control, OffsetDateTime::now_utc());
        let renamed = renamed.ok_or_else(|| Error::Program {
            program: "initdb",
            reason: "its pg_control is of no version that is known".to_owned(),
        })?;
        let written = global.create("pg_control", jail.owner)?.write_all(&renamed);
        written.map_err(Error::file("write", &global.path().join("pg_control")))?;
        initialize::reset_log(jail)
    }
}

impl Host {
    /// What new clusters are copied from. It is made where there is none yet, or one of something else.
    pub(super) async fn source(self: &Arc<Self>, postgres: &Arc<Postgres>) -> Result<Source, Error> {
        if !postgres.can_copy() {
            return Ok(Source::Made);
        }
        // One makes it, and the others wait for that here, not in threads that others need.
        let _making = self.templates.lock().await;
        let (host, postgres) = (self.clone(), postgres.clone());
        blocking(move || host.template_now(&postgres)).await
    }

    fn template_now(&self, postgres: &Postgres) -> Result<Source, Error> {
        let (major, made_with) = (postgres.major, made_with(postgres));
        let on_record = self.record.template(major).map_err(|reason| unrecorded("read", reason))?;
        if let Some(template) = on_record.filter(|kept| kept.made_with == made_with)
            && let Some(archive) = self.whole_archive(major, &template)
        {
            return Ok(Source::Copied(template, archive));
        }
        let template = Template { made_with, parts: self.make_template(postgres)? };
        self.record.keep_template(major, &template).map_err(|reason| unrecorded("write", reason))?;
        let gone = || Error::file("read", &self.places.templates())(ErrorKind::NotFound.into());
        let archive = self.whole_archive(major, &template).ok_or_else(gone)?;
        Ok(Source::Copied(template, archive))
    }

    /// The archive of this template; none where it is not there, or another. Where it is another, that is told.
    fn whole_archive(&self, major: u32, template: &Template) -> Option<File> {
        let folder = Inside::at(&self.places.templates()).ok()?;
        let name = file_name(major, &template.parts);
        folder.look(&name).ok()??;
        let checked = match folder.file(&name) {
            Ok(Some((mut archive, _))) => archive::check(&mut archive, &template.parts).map(|()| archive),
            Ok(None) => Err(std::io::Error::new(ErrorKind::InvalidData, "it is no plain file")),
            Err(cause) => Err(std::io::Error::other(cause.to_string())),
        };
        match checked {
            Ok(archive) => Some(archive),
            Err(cause) if cause.kind() == ErrorKind::InvalidData => {
                tracing::warn!(
                    %cause,
                    "what new clusters are copied from was changed on the disk; nothing of it is used, and it is made anew. If \
                     nobody restored the data directory, look who can write to it"
                );
                None
            }
            Err(cause) => {
                tracing::warn!(%cause, "what new clusters are copied from cannot be read, so it is made anew");
                None
            }
        }
    }

    /// Makes the archive, instead of all of this major version that there are, and says what its parts are.
    fn make_template(&self, postgres: &Postgres) -> Result<Vec<String>, Error> {
        make_folder(&self.places.templates(), 0o700)?;
        let folder = Inside::at(&self.places.templates())?;
        let own = format!("{}-", postgres.major);
        let of_another = |name: &OsStr| {
            let others = MAJOR_VERSIONS.map(|major| format!("{major}-")).filter(|start| *start != own);
            others.into_iter().any(|start| name.as_bytes().starts_with(start.as_bytes()))
        };
        let mut names = folder.names()?;
        names.retain(|name| !of_another(name));
        names.iter().try_for_each(|name| folder.remove_tree(name).map(drop))?;
        // A cluster that was never completely made, so what a kill leaves of it goes with the others of its kind.
        let id = ClusterId::random();
        let made = self.make_in_volume((id, postgres), &folder);
        let place = self.places.cluster(id);
        if made.is_err() {
            leftovers::end_processes_of(&place);
        }
        let put_away = volume::destroy_all(&self.places, id);
        self.companion.forget(&place);
        match made {
            Ok(parts) => put_away.map(|()| parts),
            Err(cause) => {
                folder.remove_tree(BESIDE)?;
                Err(cause)
            }
        }
    }

    /// Makes it in a volume that is encrypted as the clusters' are, with a key that nobody keeps: whoever writes to the disk has no
    /// more of what `initdb` writes there before it is in the archive than of any cluster.
    fn make_in_volume(
        &self,
        (id, postgres): (ClusterId, &Postgres),
        folder: &Inside,
    ) -> Result<Vec<String>, Error> {
        let (place, owner, run) =
            (self.places.cluster(id), Owner::of_templates(), self.places.run_of_probe());
        make_folder(&place, 0o711)?;
        let (kind, limit) = (self.posture.encryption_of_new()?, StorageLimit::of_plan(Plan::Serverless));
        let key = DataKey::random();
        let volume = volume::create(&self.companion, &place, kind, &key, owner, (limit, 0))?;
        let made = (|| {
            make_folder(&run, 0o700)?;
            give(&run, owner)?;
            let data = Inside::at(&volume.base)?.make_folder("pg", 0o700, owner)?;
            let etc = self.etc(id);
            let jail = self.jail(postgres, (owner, &volume.base), (&run, &etc), None);
            initialize::initdb(&jail)?;
            initialize::furnish_files(&jail)?;
            let parts = archive::pack(&data, &mut folder.create(BESIDE, Owner::own())?, is_log)?;
            let renamed = renameat(folder, BESIDE, folder, file_name(postgres.major, &parts));
            renamed.map_err(failed("rename", &folder.path().join(BESIDE)))?;
            Ok(parts)
        })();
        let cleared = volume.lock().and(remove_folder(&run));
        made.and_then(|parts| cleared.map(|()| parts))
    }
}

/// What decides how the files look: PostgreSQL's programs, what they are told, and what sorts text.
fn made_with(postgres: &Postgres) -> String {
    let mut files: Vec<PathBuf> = [
        postgres.bin.join("initdb"),
        postgres.bin.join("postgres"),
        postgres.share.join("postgres.bki"),
        postgres.share.join("system_views.sql"),
    ]
    .into();
    let is_sorting = |name: &str| SORTING.iter().any(|library| name.starts_with(library));
    for folder in libraries() {
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        files.extend(
            names.filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_sorting)),
        );
    }
    files.sort();
    let seen = files.iter().filter_map(|file| {
        let facts = std::fs::metadata(file).ok()?;
        Some(format!("{} {} {}", file.display(), facts.size(), facts.mtime()))
    });
    let told = [initialize::INITDB.join(" "), initialize::furnishing(postgres)];
    let text = told.into_iter().chain(seen).collect::<Vec<String>>().join("\n");
    let sum = hex::encode(digest(&digest::SHA256, text.as_bytes()));
    format!("PostgreSQL {}, files {}", postgres.version, &sum[..16])
}

/// The write-ahead log of the first one: each copy begins its own.
fn is_log(path: &Path) -> bool {
    let is_segment =
        |name: &str| name.len() == SEGMENT_NAME_BYTES && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = path.file_name().and_then(|name| name.to_str());
    path.parent() == Some(Path::new("pg_wal")) && name.is_some_and(is_segment)
}

/// Named by what is in it: one that is not on record, because that could not be written, is none that was changed.
fn file_name(major: u32, parts: &[String]) -> String {
    let sum = hex::encode(digest(&digest::SHA256, parts.concat().as_bytes()));
    format!("{major}-{}.tar", &sum[..16])
}

fn unrecorded(action: &'static str, reason: String) -> Error {
    Error::file(action, Path::new("the state"))(std::io::Error::other(reason))
}
