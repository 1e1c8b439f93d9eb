//! What new clusters are copied from: a data directory that `initdb` made once, in a place where no tenant ever was, with the
//! roles and the database that every cluster has.
//!
//! Its archive holds no secret and nothing of anybody's, so it lies on the disk in plaintext; each copy is written into the new
//! cluster's own encrypted volume. What the archive must be is on record beside it, and each part of it is compared with that
//! before it is copied, so whoever writes to the disk plants nothing in new clusters. Each copy gets a name of its own.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{self, digest};
use model::Template;
use rustix::fs::renameat;
use time::OffsetDateTime;

use super::{Host, lock};
use crate::inside::{Inside, failed};
use crate::jail::{Jail, libraries};
use crate::places::{Owner, make_folder, remove_folder};
use crate::{Error, archive, control_file, initialize};

/// The folder in which one is made. What is left of one that was broken off goes with the next.
const MAKING: &str = "making";
/// Timeline and number of a part of the write-ahead log (PostgreSQL's `XLogFileName`).
const SEGMENT_NAME_BYTES: usize = 24;
/// By these libraries text is sorted, and so indexes are.
const SORTING: &[&str] = &["libc.so.", "libicui18n.so.", "libicudata.so."];

impl Host {
    /// Fills the empty data directory of a new cluster, in whose jail PostgreSQL's own program finishes it.
    pub(super) fn copy_template(&self, jail: &Jail<'_>) -> Result<(), Error> {
        let (template, archive) = self.template()?;
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

    /// The template of the PostgreSQL that runs here, and its archive as it is on record. It is made where there is none yet, or
    /// one of something else.
    fn template(&self) -> Result<(Template, File), Error> {
        let major = self.postgres.major;
        let _making = lock(&self.templates);
        let made_with = self.made_with();
        let on_record = self.record.template(major).map_err(|reason| unrecorded("read", reason))?;
        if let Some(template) = on_record.filter(|kept| kept.made_with == made_with)
            && let Some(mut archive) = self.archive(&template)?
        {
            let Err(cause) = archive::check(&mut archive, &template.parts) else {
                return Ok((template, archive));
            };
            tracing::warn!(
                %cause,
                "what new clusters are copied from was changed on the disk; nothing of it is used, and it is made anew. If \
                 nobody restored the data directory, look who can write to it"
            );
        }
        let template = Template { made_with, parts: self.make_template()? };
        self.record.keep_template(major, &template).map_err(|reason| unrecorded("write", reason))?;
        let gone = || Error::file("read", &self.places.templates())(ErrorKind::NotFound.into());
        let archive = self.archive(&template)?.ok_or_else(gone)?;
        Ok((template, archive))
    }

    /// The archive of this template, where there is a plain file of its name.
    fn archive(&self, template: &Template) -> Result<Option<File>, Error> {
        match Inside::at(&self.places.templates()) {
            Err(Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            opened => {
                Ok(opened?.file(file_name(self.postgres.major, &template.parts))?.map(|(archive, _)| archive))
            }
        }
    }

    /// Makes the archive, instead of all that there are of this major version, and says what its parts are.
    fn make_template(&self) -> Result<Vec<String>, Error> {
        let (folder, owner) = (self.places.templates(), Owner::of_templates());
        make_folder(&folder, 0o700)?;
        let making = folder.join(MAKING);
        remove_folder(&making)?;
        let [base, run, etc] = ["volume", "run", "etc"].map(|name| making.join(name));
        for place in [&making, &base, &run, &etc] {
            make_folder(place, 0o711)?;
        }
        let volume = Inside::at(&base)?;
        volume.give(owner)?;
        Inside::at(&run)?.give(owner)?;
        let data = volume.make_folder("pg", 0o700, owner)?;
        let jail = self.jail(owner, &base, (&run, &etc), None);
        initialize::initdb(&jail)?;
        initialize::furnish_files(&jail)?;

        let folder = Inside::at(&folder)?;
        let prefix = format!("{}-", self.postgres.major);
        for name in folder.names()? {
            if name.to_str().is_some_and(|name| name.starts_with(&prefix)) {
                folder.remove_tree(&name)?;
            }
        }
        let beside = format!("{prefix}new");
        let parts = archive::pack(&data, &mut folder.create(&beside, Owner::own())?, is_log)?;
        let renamed = renameat(&folder, &beside, &folder, file_name(self.postgres.major, &parts));
        renamed.map_err(failed("rename", &folder.path().join(&beside)))?;
        remove_folder(&making)?;
        Ok(parts)
    }

    /// What decides how the files look: PostgreSQL's programs, what they are told, and what sorts text.
    fn made_with(&self) -> String {
        let postgres = &self.postgres;
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
