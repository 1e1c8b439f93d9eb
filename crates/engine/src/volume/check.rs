//! The check of an ext4 file system that says of itself that something went wrong, before it is used again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Error;
use crate::places::disk_room;
use crate::process::run_to;

/// Where the superblock's magic number and state are (kernel documentation, `filesystems/ext4/super.rst`).
const MAGIC_AT: u64 = 1_024 + 0x38;
const MAGIC: u16 = 0xEF53;
/// The bit of the state that says that errors were found.
const ERRORS_FOUND: u16 = 2;
/// For a large file system on a slow disk.
const CHECK_MAX: Duration = Duration::from_secs(3_600);
/// Exit codes of e2fsck(8): nothing to do, errors corrected, errors corrected and the machine should be started again (which
/// is about file systems that are mounted; ours is not).
const GOOD: &[i32] = &[0, 1, 2];

/// So much must be free below an image before it is recovered, checked or mounted, in bytes: a journal that is played back in
/// part because the disk below is full leaves worse than it found.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// Refuses to touch an image where the disk below is full, or has no room for so many bytes more.
///
/// # Errors
///
/// It is, or cannot be asked.
pub(super) fn must_have_room(folder: &Path, more_bytes: u64) -> Result<(), Error> {
    if free_bytes(folder)? >= FREE_BYTES_MIN.saturating_add(more_bytes) {
        return Ok(());
    }
    let full = std::io::Error::new(
        std::io::ErrorKind::StorageFull,
        "the disk below is full, and what is mounted now could be damaged; free some space there, and it starts by itself",
    );
    Err(Error::file("unlock", folder)(full))
}

/// What the disk below has beside what must stay free.
pub(super) fn spare_bytes(folder: &Path) -> Result<u64, Error> {
    Ok(free_bytes(folder)?.saturating_sub(FREE_BYTES_MIN))
}

fn free_bytes(folder: &Path) -> Result<u64, Error> {
    Ok(disk_room(folder).map_err(Error::file("look at", folder))?.free_bytes)
}

/// Repairs what can be repaired without a question, where the file system says that it must be. Must not be mounted.
///
/// # Errors
///
/// It cannot be read, or e2fsck wants somebody's decision.
pub(super) fn mend(device: &Path) -> Result<(), Error> {
    if !has_errors(device)? {
        return Ok(());
    }
    tracing::warn!(image = %device.display(), "the file system says that it had errors; it is checked before it is used");
    check(device)
}

/// Checks and repairs, whatever it says of itself. Must not be mounted.
///
/// # Errors
///
/// As of [`mend`].
pub(super) fn check(device: &Path) -> Result<(), Error> {
    // Never `-y`: what it would ask a person about, it must not guess. It ends with us: else it would go on beside the mount of
    // whoever is started after us.
    let mut check = Command::new("setpriv");
    check.args(["--pdeathsig", "KILL", "e2fsck", "-f", "-p"]).arg(device);
    let said = run_to("e2fsck", check, &[], CHECK_MAX, GOOD)?;
    tracing::warn!(image = %device.display(), said = said.trim(), "the file system was checked");
    Ok(())
}

fn has_errors(device: &Path) -> Result<bool, Error> {
    let file = File::open(device).map_err(Error::file("open", device))?;
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, MAGIC_AT).map_err(Error::file("read", device))?;
    let [magic_low, magic_high, state_low, state_high] = bytes;
    // What is no ext4 is for mount to refuse.
    Ok(u16::from_le_bytes([magic_low, magic_high]) == MAGIC
        && u16::from_le_bytes([state_low, state_high]) & ERRORS_FOUND != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_with_errors_is_checked_and_one_without_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create_new(&image).unwrap().set_len(64 << 20).unwrap();
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F"]).arg(&image);
        run_to("mkfs.ext4", make, &[], CHECK_MAX, &[0]).unwrap();
        assert!(!has_errors(&image).unwrap());
        let mut spoil = Command::new("debugfs");
        spoil.args(["-w", "-R", "set_super_value state 3"]).arg(&image);
        run_to("debugfs", spoil, &[], CHECK_MAX, &[0]).unwrap();
        assert!(has_errors(&image).unwrap());
        mend(&image).unwrap();
        assert!(!has_errors(&image).unwrap(), "it still says that it has errors");
    }
}
