//! What a killed predecessor may have left: processes, mounts, loop devices, trial folders. And keys, destroyed well.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{ClusterId, Encryption};
use rustix::process::Signal;

use crate::inside::Inside;
use crate::places::{Places, remove_folder};
use crate::process::{signal, wait_gone};
use crate::volume::{self, put_away_below};
use crate::{Error, companion, process};

/// For killed processes to be gone.
const GONE_MAX: Duration = Duration::from_secs(5);
/// Of the stack of a thread that locks one volume.
const LOCKER_BYTES: usize = 256 << 10;

/// Clears the data directory. We hold its claim, so nothing in it belongs to anybody alive. What cannot be cleared of
/// one cluster does not keep the others from being cleared.
pub(crate) fn clear(places: &Places) {
    end_processes_of(places.data());
    put_away_below(&places.clusters());
    let names_in = |folder: &Path| Inside::at(folder).and_then(|folder| folder.names()).unwrap_or_default();
    for name in names_in(&places.clusters()) {
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let cleared = match places.read_marker(id) {
            Some(marker) => {
                if marker.encryption == Encryption::Fscrypt {
                    volume::lock_native(&places.volume(id, marker.generation))
                } else {
                    Ok(())
                }
            }
            // A damaged marker is no proof that nothing was made: only an absent one is.
            None if places.has_marker(id) => Ok(()),
            None => shred_all(places, id).and_then(|()| volume::destroy_all(places, id)),
        };
        if let Err(cause) = cleared {
            tracing::warn!(cluster = %id, %cause, "what a killed Chitin left of a cluster could not be cleared");
        }
    }
    let run = places.data().join("run");
    for name in names_in(&run) {
        // Sockets without engines; one that cannot go is replaced when its engine starts.
        let _ = remove_folder(&run.join(name));
    }
}

/// Ends what runs below a folder, and locks volumes there that somebody else unlocked, all at once. Returns those that could
/// not be locked, with the reason.
pub(crate) fn lock(clusters: &Path, volumes: &BTreeMap<PathBuf, Encryption>) -> BTreeMap<PathBuf, String> {
    end_processes_of(clusters);
    std::thread::scope(|scope| {
        let begun: Vec<_> = volumes
            .iter()
            .map(|(folder, kind)| {
                let lock = move || volume::lock_left(folder, *kind, &[]);
                let locker = std::thread::Builder::new().name("lock".to_owned()).stack_size(LOCKER_BYTES);
                // Where there can be no further thread it is done here.
                (folder, locker.spawn_scoped(scope, lock).map_err(|_| lock()))
            })
            .collect();
        let ended = begun.into_iter().filter_map(|(folder, locking)| {
            let locked = match locking {
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::Unready("the thread that locks it broke off".to_owned()))),
                Err(done) => done,
            };
            Some((folder.clone(), locked.err()?.to_string()))
        });
        ended.collect()
    })
}

/// Programs that we start for volumes and engines.
const OURS: &[&str] = &[
    "bwrap",
    "gocryptfs",
    "setpriv",
    "fusermount3",
    // Of an earlier version.
    "mount",
    "losetup",
    "mkfs.ext4",
    "mke2fs",
    "e2fsck",
    "fsck.ext4",
    "cryptsetup",
];

/// Ends jails, volume servers, and tools that name a path below the folder in their arguments.
pub(crate) fn end_processes_of(folder: &Path) {
    let ended = processes_of(folder);
    for pid in &ended {
        signal(*pid, Signal::KILL);
    }
    for pid in ended {
        wait_gone(pid, GONE_MAX);
    }
}

/// The Chitin, other than ourselves, that lives and has started what runs below the folder: what the folder's locks cannot say
/// where another folder was put in its place. A Chitin is known by its companion, which each has as its child. Whoever takes
/// over both from one that was killed, as init does, is another program.
pub(crate) fn owner_of_engines(folder: &Path) -> Option<u32> {
    let parents: BTreeSet<u32> = processes_of(folder).into_iter().filter_map(process::parent).collect();
    parents.into_iter().find(|parent| {
        // One that was killed has no command line any more, before its locks are free.
        let is_alive = !process::arguments(*parent).is_empty();
        let is_companion = |child: &u32| companion::is_called_so(*child);
        let companion = || process::children(*parent).into_iter().find(is_companion);
        *parent != std::process::id()
            && is_alive
            && companion().is_some_and(|companion| process::are_one_program(*parent, companion))
    })
}

/// Jails, volume servers, and tools that name a path below the folder in their arguments.
fn processes_of(folder: &Path) -> Vec<u32> {
    let Some(folder) = folder.to_str() else {
        return Vec::new();
    };
    let below = format!("{}/", folder.trim_end_matches('/'));
    let is_of_it = |pid: &u32| {
        let arguments = process::arguments(*pid);
        let mut words = arguments.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let program = words.next().unwrap_or_default();
        let is_ours = program.rsplit('/').next().is_some_and(|name| OURS.contains(&name));
        is_ours && *pid != std::process::id() && words.any(|word| word.starts_with(&below))
    };
    process::all().filter(is_of_it).collect()
}

/// Destroys the keys of all volumes of a cluster.
pub(crate) fn shred_all(places: &Places, id: ClusterId) -> Result<(), Error> {
    let folders = places.generations(id).into_iter().map(|found| places.volume(id, found));
    folders.map(|folder| volume::shred_key(&folder)).fold(Ok(()), Result::and)
}

/// Overwrites a key file and removes it. The wrapped key is useless without the key-encryption key; this is so that
/// not even both together bring the data back.
pub(crate) fn shred(path: &Path) -> Result<(), Error> {
    let failed = || Error::file("destroy", path);
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed()(std::io::ErrorKind::InvalidInput.into()));
    };
    let folder = match Inside::at(above) {
        Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    if let Some((mut file, bytes)) = folder.file_to_overwrite(name)? {
        let mut zeros = std::io::repeat(0).take(bytes);
        std::io::copy(&mut zeros, &mut file).and_then(|_| file.sync_all()).map_err(failed())?;
    }
    // Also what is no file: nothing of that name may be left.
    folder.remove_tree(name)?;
    folder.into_file().sync_all().map_err(Error::file("sync", above))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn is_called(pid: u32, name: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|called| called.trim() == name)
    }

    #[test]
    fn only_processes_of_the_folder_are_ended() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = |folder: &Path| {
            let mut bwrap = Command::new("bwrap");
            bwrap
                .args(["--die-with-parent", "--dev-bind", "/", "/", "--setenv", "X"])
                .arg(folder.join("clusters"));
            bwrap.args(["--", "sleep", "60"]);
            process::spawn(bwrap).unwrap()
        };
        let (mut one, mut other) = (start(ours.path()), start(theirs.path()));
        for jail in [&one, &other] {
            // Until then it is on its way to what was asked of it.
            while !process::children(jail.id()).iter().any(|child| is_called(*child, "sleep")) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        end_processes_of(ours.path());
        assert!(one.wait().unwrap().code().is_none(), "killed by a signal");
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_shredded_key_is_gone_and_once_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.json");
        std::fs::write(&path, b"wrapped").unwrap();
        shred(&path).unwrap();
        assert!(!path.exists());
        shred(&path).unwrap();
    }
}
