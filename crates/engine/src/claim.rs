//! The claim on a data directory: two programs on one would destroy each other's work.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::Error;

/// Makes a data directory ours alone for as long as it lives.
#[derive(Debug)]
pub struct Claim(File);

impl Claim {
    /// Takes it, or says that somebody else has it.
    pub fn take(data: &Path) -> Result<Self, Error> {
        let path = data.join("lock");
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let file = options.open(&path).map_err(Error::file("open", &path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| Error::InUse { path: data.to_owned() })?;
        Ok(Self(file))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Closing is not enough: a program that another thread is starting has a copy of the open file until it runs, and
        // would hold the lock for that long.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_claimed_once_and_free_again_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::take(folder.path()).unwrap();
        assert!(matches!(Claim::take(folder.path()), Err(Error::InUse { .. })));
        // As a child has it between its birth and the program that it becomes.
        let copy = claim.0.try_clone().unwrap();
        drop(claim);
        let again = Claim::take(folder.path());
        assert!(again.is_ok(), "a copy of the open file still holds the lock: {again:?}");
        drop(copy);
        assert!(
            matches!(Claim::take(folder.path()), Err(Error::InUse { .. })),
            "the copy's end frees nothing"
        );
    }
}
