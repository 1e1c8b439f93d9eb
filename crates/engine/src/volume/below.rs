//! What lies below a folder's file system, as the kernel says: is it a disk that dm-crypt encrypts?

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Devices on devices; more is a circle.
const DEPTH_MAX: u32 = 16;

/// The crypt devices below a folder, if every way down to the disks leads through one.
pub(super) fn crypt_devices(folder: &Path) -> Option<Vec<String>> {
    let device = std::fs::metadata(folder).ok()?.dev();
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    crypt_below(&Path::new("/sys/dev/block").join(number), DEPTH_MAX)
}

fn crypt_below(device: &Path, depth: u32) -> Option<Vec<String>> {
    let read = |fact: &str| std::fs::read_to_string(device.join("dm").join(fact)).unwrap_or_default();
    let uuid = read("uuid");
    if uuid.starts_with("CRYPT-") {
        return Some(vec![format!("{} ({})", read("name").trim(), uuid.trim())]);
    }
    let mut found = Vec::new();
    for slave in std::fs::read_dir(device.join("slaves")).ok()?.flatten() {
        found.extend(crypt_below(&slave.path(), depth.checked_sub(1)?)?);
    }
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device as `/sys` shows it.
    fn device(root: &Path, name: &str, uuid: &str) -> std::path::PathBuf {
        let path = root.join(name);
        std::fs::create_dir_all(path.join("slaves")).unwrap();
        std::fs::create_dir_all(path.join("dm")).unwrap();
        std::fs::write(path.join("dm/uuid"), uuid).unwrap();
        std::fs::write(path.join("dm/name"), format!("{name}-name\n")).unwrap();
        path
    }

    #[test]
    fn a_volume_group_counts_only_if_all_of_its_disks_are_encrypted() {
        let root = tempfile::tempdir().unwrap();
        let group = device(root.path(), "dm-2", "LVM-abc\n");
        let encrypted = device(root.path(), "dm-0", "CRYPT-LUKS2-123-sda3\n");
        let plain = device(root.path(), "sdb1", "");
        assert_eq!(crypt_below(&plain, 3), None);
        std::os::unix::fs::symlink(&encrypted, group.join("slaves/dm-0")).unwrap();
        assert_eq!(crypt_below(&group, 3).unwrap(), ["dm-0-name (CRYPT-LUKS2-123-sda3)"]);
        std::os::unix::fs::symlink(&plain, group.join("slaves/sdb1")).unwrap();
        assert_eq!(crypt_below(&group, 3), None, "a part of it lies on a plain disk");
    }

    #[test]
    fn devices_in_a_circle_do_not_keep_us() {
        let root = tempfile::tempdir().unwrap();
        let one = device(root.path(), "dm-0", "LVM-abc");
        std::os::unix::fs::symlink(&one, one.join("slaves/dm-0")).unwrap();
        assert_eq!(crypt_below(&one, 3), None);
    }
}
