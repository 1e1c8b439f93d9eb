//! The part of a volume that the write-ahead log has for itself.
//!
//! An engine that finds no room for its data refuses one statement. One that finds no room for its write-ahead log ends
//! (PANIC), and one that finds none for what a checkpoint writes cannot recycle its log, which ends the same way. So these
//! folders are on a file system of their own, and full tables take nothing from them. They are mounted over the folders in
//! `pg`, not linked to: what copies a data directory, ours or PostgreSQL's, sees plain folders.
//!
//! Not by reserved blocks of one file system, which go by user, and an engine has one; not by a project quota, which many
//! kernels are built without.
//!
//! The image has its final name only when everything is in it. So one that is missing is either still to be made, and then the
//! log lies among everything else, or was taken away, and then nothing starts.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rustix::fs::renameat;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::Error;
use crate::copying::{self, Looks, Progress, Stopped};
use crate::inside::{Inside, MOUNTED, failed};
use crate::places::{Owner, make_folder, mounts_below};

/// Makes the folders, empty, in a volume that nobody has used yet.
pub(super) fn make_folders(base: &Path) -> Result<(), Error> {
    MOUNTED.iter().try_for_each(|name| make_folder(&base.join("pg").join(name), 0o700))
}

/// Moves the folders into their part and mounts them where they were. No engine may run.
pub(super) fn separate(base: &Path, wal_base: &Path, owner: Owner) -> Result<(), Error> {
    fill(base, wal_base, owner)?;
    let wal = Inside::at(wal_base)?;
    for (name, place) in folders(base)? {
        // What was copied takes no room twice.
        place.names()?.iter().try_for_each(|name| place.remove_tree(name).map(drop))?;
        bind(&wal.below(name)?, &place).map_err(failed("mount", place.path()))?;
    }
    Ok(())
}

/// Copies the folders into their part, those that are not there. Everything is on the disk when it returns.
pub(super) fn fill(base: &Path, wal_base: &Path, owner: Owner) -> Result<(), Error> {
    let wal = Inside::at(wal_base)?;
    wal.give(owner)?;
    for (name, place) in folders(base)? {
        if wal.look(name)?.is_none() {
            copy_into(&place, &wal, name, owner)?;
        }
    }
    Ok(())
}

/// The folders of a data directory, where there is one. Nothing may be mounted over them.
fn folders(base: &Path) -> Result<Vec<(&'static str, Inside)>, Error> {
    let data = match Inside::open(base, "pg") {
        Err(Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut found = Vec::new();
    for name in MOUNTED {
        if data.look(name)?.is_some() {
            found.push((*name, data.below(name)?));
        }
    }
    Ok(found)
}

/// What the folders take in bytes, wherever they lie.
pub(crate) fn used_bytes(base: &Path) -> Result<u64, Error> {
    let folders = folders(base)?;
    folders.iter().try_fold(0_u64, |sum, (_, folder)| Ok(sum.saturating_add(copying::used_bytes(folder)?)))
}

/// Refuses a data directory that has its log neither among everything else nor in an image.
pub(super) fn must_be_here(base: &Path, image: &Path) -> Result<(), Error> {
    let folders = folders(base)?;
    let Some((_, log)) = folders.iter().find(|(name, _)| *name == "pg_wal") else {
        return Ok(());
    };
    if !log.names()?.is_empty() {
        return Ok(());
    }
    let missing = std::io::Error::new(
        ErrorKind::NotFound,
        "the image of the cluster's write-ahead log is missing; put it back from a backup, together with the image beside it",
    );
    Err(Error::file("open", image)(missing))
}

/// Copies a folder, and keeps the copy under its name once it is on the disk.
fn copy_into(from: &Inside, wal: &Inside, name: &str, owner: Owner) -> Result<(), Error> {
    let beside = format!("{name}.new");
    let to = wal.make_folder(&beside, 0o700, owner)?;
    let never = AtomicBool::new(false);
    let (looks, progress) = (&mut Looks::default(), Progress::default());
    copying::pass(&by_descriptor(from), &by_descriptor(&to), looks, &progress, &never).map_err(
        |stopped| match stopped {
            Stopped::Failed(cause) => cause,
            Stopped::GivenUp => Error::Unready("the copy was given up".to_owned()),
        },
    )?;
    wal.sync()?;
    renameat(wal, &beside, wal, name).map_err(failed("rename", to.path()))?;
    wal.sync()
}

/// A path of a folder that is open, whatever lies at its name by now.
fn by_descriptor(folder: &Inside) -> PathBuf {
    // With the dot it is a folder and not a link, which is not followed.
    Path::new("/proc/self/fd").join(folder.as_fd().as_raw_fd().to_string()).join(".")
}

/// Mounts a folder on another, both by descriptor.
fn bind(folder: &Inside, place: &Inside) -> Result<(), Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(folder, "", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH.union(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH);
    move_mount(tree.as_fd(), "", place, "", flags)
}

/// Unmounts all that is mounted inside a volume. The kernel says where that is, so that no link is on the way.
pub(super) fn unbind(mounted: &Path) -> Result<(), Error> {
    mounts_below(mounted)
        .into_iter()
        .filter(|at| at != mounted)
        .map(|at| super::image::unmount_wholly(&at).map_err(failed("unmount", &at)))
        .fold(Ok(()), Result::and)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::places::is_root;

    fn owner() -> Owner {
        Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// Also what an earlier version left, with the log among everything else, and what a crash left half moved.
    #[test]
    fn the_log_moves_once_and_is_seen_where_it_was() {
        if !is_root() {
            return crate::skipped::skipped("only root may mount");
        }
        let folder = tempfile::tempdir().unwrap();
        let (base, wal) = (folder.path().join("v"), folder.path().join("w"));
        for name in MOUNTED {
            std::fs::create_dir_all(base.join("pg").join(name)).unwrap();
        }
        std::fs::create_dir_all(wal.join("pg_wal.new/half")).unwrap();
        let segment = base.join("pg/pg_wal/000000010000000000000001");
        std::fs::write(&segment, "records").unwrap();
        for _ in 0..2 {
            separate(&base, &wal, owner()).unwrap();
            assert_eq!(std::fs::read_to_string(&segment).unwrap(), "records");
            let moved = wal.join("pg_wal").join(segment.file_name().unwrap());
            assert_eq!(std::fs::read_to_string(moved).unwrap(), "records");
            assert!(!wal.join("pg_wal/half").exists() && !wal.join("pg_wal.new").exists());
            unbind(&base).unwrap();
            assert!(!segment.exists(), "it takes room twice");
        }
    }

    #[test]
    fn a_log_that_lies_nowhere_is_refused_and_one_that_was_not_moved_yet_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (base, image) = (folder.path().join("v"), folder.path().join("wal"));
        std::fs::create_dir(&base).unwrap();
        must_be_here(&base, &image).unwrap();
        std::fs::create_dir_all(base.join("pg/pg_wal")).unwrap();
        let refused = must_be_here(&base, &image).unwrap_err().to_string();
        assert!(refused.contains("write-ahead log is missing"), "{refused}");
        std::fs::write(base.join("pg/pg_wal/000000010000000000000001"), "records").unwrap();
        must_be_here(&base, &image).unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_the_log_leads_nowhere() {
        if !is_root() {
            return crate::skipped::skipped("only root may mount");
        }
        let (folder, machine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (base, wal) = (folder.path().join("v"), folder.path().join("w"));
        std::fs::create_dir_all(base.join("pg")).unwrap();
        std::fs::create_dir_all(&wal).unwrap();
        std::fs::write(machine.path().join("victim"), "untouched").unwrap();
        symlink(machine.path(), base.join("pg/pg_wal")).unwrap();
        assert!(separate(&base, &wal, owner()).is_err());
        // And on the other side.
        std::fs::remove_file(base.join("pg/pg_wal")).unwrap();
        std::fs::create_dir(base.join("pg/pg_wal")).unwrap();
        symlink(machine.path(), wal.join("pg_wal")).unwrap();
        assert!(separate(&base, &wal, owner()).is_err());
        assert_eq!(std::fs::read_to_string(machine.path().join("victim")).unwrap(), "untouched");
        assert!(mounts_below(machine.path()).is_empty() && mounts_below(&base).is_empty());
    }
}
