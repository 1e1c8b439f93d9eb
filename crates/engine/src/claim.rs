//! The claim on a data directory: two programs on one would destroy each other's work.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock, major, minor};
use rustix::io::Errno;

use crate::{Error, leftovers};

/// Makes a data directory ours alone for as long as it lives.
#[derive(Debug)]
pub struct Claim {
    /// The folder itself, which stays the same whatever is removed in it. None where its file system has no locks of folders.
    folder: Option<File>,
    /// The file that other versions lock.
    file: File,
}

impl Claim {
    /// Takes it, or says that somebody else has it. Neither a file that was removed nor another folder in the old one's place
    /// makes it free while engines run that belong to another Chitin.
    pub fn take(data: &Path) -> Result<Self, Error> {
        let data = data.canonicalize().map_err(Error::file("find", data))?;
        let in_use = |process| Error::InUse { path: data.clone(), process };
        let folder = File::open(&data).map_err(Error::file("open", &data))?;
        let folder = match lock(&folder) {
            Ok(()) => Some(folder),
            Err(Errno::WOULDBLOCK) => return Err(in_use(holder(&data))),
            // As over NFS; the file's lock and the living engines are what is left.
            Err(_) => None,
        };
        let path = data.join("lock");
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let file = options.open(&path).map_err(Error::file("open", &path))?;
        match lock(&file) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(in_use(holder(&path))),
            Err(cause) => return Err(Error::file("lock", &path)(cause.into())),
        }
        let claim = Self { folder, file };
        match leftovers::owner_of_engines(&data) {
            Some(process) => Err(in_use(Some(process))),
            None => Ok(claim),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Closing is not enough: a program that another thread is starting has a copy of the open file until it runs, and
        // would hold the lock for that long.
        for file in self.folder.iter().chain([&self.file]) {
            let _ = flock(file, FlockOperation::Unlock);
        }
    }
}

/// Locks a file or folder, unless somebody else has.
pub(crate) fn lock(file: &File) -> Result<(), Errno> {
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// The process that has a file or folder locked, as far as the kernel says it. For people: it may have ended since.
pub fn holder(path: &Path) -> Option<u32> {
    let facts = std::fs::metadata(path).ok()?;
    let wanted = format!("{:02x}:{:02x}:{}", major(facts.dev()), minor(facts.dev()), facts.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "FLOCK");
        let pid = words.nth(3)?.parse().ok().filter(|pid| *pid > 0);
        words.next().filter(|place| *place == wanted).and(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_claimed_once_and_free_again_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::take(folder.path()).unwrap();
        assert!(matches!(Claim::take(folder.path()), Err(Error::InUse { .. })));
        // As a child has them between its birth and the program that it becomes.
        let copies = [claim.file.try_clone().unwrap(), claim.folder.as_ref().unwrap().try_clone().unwrap()];
        drop(claim);
        let again = Claim::take(folder.path());
        assert!(again.is_ok(), "a copy of the open file still holds the lock: {again:?}");
        drop(copies);
        assert!(
            matches!(Claim::take(folder.path()), Err(Error::InUse { .. })),
            "the copy's end frees nothing"
        );
    }

    #[test]
    fn a_claim_outlives_its_lock_file_and_each_lock_alone_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::take(folder.path()).unwrap();
        std::fs::remove_file(folder.path().join("lock")).unwrap();
        let refused = Claim::take(folder.path()).unwrap_err();
        assert!(
            matches!(refused, Error::InUse { process: Some(process), .. } if process == std::process::id()),
            "it names who has it: {refused}"
        );
        drop(claim);
        // As an earlier version takes it, and as it is where a folder cannot be locked.
        let file = File::create(folder.path().join("lock")).unwrap();
        lock(&file).unwrap();
        assert!(matches!(Claim::take(folder.path()), Err(Error::InUse { process: Some(_), .. })));
    }
}
