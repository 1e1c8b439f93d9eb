//! Who may write to an installation: whoever may do that may do what engines may.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Postgres;
use crate::jail::WRITABLE;

/// Files of one installation that are looked at; PostgreSQL's own are some 1,500.
const FILES_MAX: usize = 50_000;

/// Refuses an installation whose folders, files and programs, or the folders on the way to them, belong to somebody else than
/// root and our own user, or may be written to by others.
pub(super) fn check(one: &Postgres) -> Result<(), String> {
    let folders = || one.folders().into_iter().chain([one.bin.as_path()]);
    for hidden in WRITABLE.iter().chain(&["/proc"]) {
        if folders().any(|folder| folder.starts_with(hidden)) {
            return Err(format!("it is in {hidden}, where a sandbox has something else: move it"));
        }
    }
    for program in one.programs() {
        // Another name is bound into sandboxes as what it leads to.
        let program = found(&program)?;
        check_entry(&program)?;
        check_way(&program)?;
    }
    let mut left = FILES_MAX;
    check_entry(&one.bin)?;
    for folder in one.folders() {
        check_tree(folder, &mut left)?;
    }
    folders().try_for_each(check_way)
}

/// Where a path leads, without any link.
pub(super) fn found(path: &Path) -> Result<PathBuf, String> {
    path.canonicalize().map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |cause| format!("{}: {cause}", path.display())
}

/// Links are let pass: what they lead to is in a sandbox only if it is in one of the folders itself.
fn check_entry(path: &Path) -> Result<(), String> {
    let facts = std::fs::symlink_metadata(path).map_err(failed(path))?;
    if facts.is_symlink() { Ok(()) } else { check_facts(path, &facts, false) }
}

fn check_facts(path: &Path, facts: &Metadata, is_above: bool) -> Result<(), String> {
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

/// A folder, what is in it, and below.
fn check_tree(folder: &Path, left: &mut usize) -> Result<(), String> {
    check_entry(folder)?;
    for entry in std::fs::read_dir(folder).map_err(failed(folder))? {
        *left = left.checked_sub(1).ok_or_else(|| format!("more than {FILES_MAX} files are in it"))?;
        let entry = entry.map_err(failed(folder))?;
        if entry.file_type().map_err(failed(folder))?.is_dir() {
            check_tree(&entry.path(), left)?;
        } else {
            check_entry(&entry.path())?;
        }
    }
    Ok(())
}

/// The folders on the way to it.
fn check_way(path: &Path) -> Result<(), String> {
    for folder in path.ancestors().skip(1) {
        let facts = std::fs::metadata(folder).map_err(failed(folder))?;
        check_facts(folder, &facts, true)?;
    }
    Ok(())
}
