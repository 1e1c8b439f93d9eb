//! Keys live in memory while the cloud runs: they must not reach a swap area or a core file. And where the machine has no memory
//! left, this is not the program that the kernel ends.

use std::fs;
use std::path::{Path, PathBuf};

use engine::Capability;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// Most bytes of core files, for this program and every engine: none. For a file, less than a page is as good as nothing
/// (`fs/binfmt_elf.c`: `min_coredump`); for a program in `core_pattern` the kernel does not look at the limit, unless it
/// is 1 (`fs/coredump.c`).
const CORE_BYTES_MAX: u64 = 1;

/// Keeps core files from being written and, where that is allowed, memory from being swapped. To be called before there
/// are engines, which inherit the first.
pub fn keep_in() {
    let bound = Rlimit { current: Some(CORE_BYTES_MAX), maximum: Some(CORE_BYTES_MAX) };
    // Who may not raise a bound that is at 0 already stays at 0.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(cause) = setrlimit(Resource::Core, bound).or_else(|_| setrlimit(Resource::Core, none)) {
        tracing::warn!(%cause, "core files could not be switched off");
    }
    if let Err(cause) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%cause, "memory dumps could not be switched off");
    }
    // Under a bound, a later allocation would fail instead of being swapped.
    if may_lock_all()
        && let Err(cause) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
    {
        tracing::warn!(%cause, "memory could not be locked");
    }
}

fn may_lock_all() -> bool {
    let has_right = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    has_right || getrlimit(Resource::Memlock).current.is_none()
}

/// Whom the kernel ends first in a shortage of memory: not us. To be called before there are engines, which inherit it.
pub fn protect() {
    if let Err(cause) = engine::protect_in_shortage() {
        tracing::info!(%cause, "the kernel does not let this program be protected in a shortage of memory");
    }
}

/// Whether this program's memory is locked.
pub fn locked() -> Capability {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmLck:")).and_then(|line| {
        let digits: String = line.chars().filter(char::is_ascii_digit).collect();
        digits.parse::<u64>().ok()
    });
    match kibibytes {
        Some(1..) => Capability::Present { how: "mlockall: Chitin's own memory is never swapped".to_owned() },
        Some(0) | None => Capability::Missing {
            why: "Chitin may not lock its memory, so keys may reach the swap".to_owned(),
            next_step: "start Chitin as root, or with LimitMEMLOCK=infinity".to_owned(),
        },
    }
}

/// Whether what engines hold in memory can reach a disk in plaintext.
pub fn swap() -> Capability {
    swap_of(Path::new("/proc/swaps"), Path::new("/sys/class/block"))
}

fn swap_of(swaps: &Path, blocks: &Path) -> Capability {
    let missing = |why: String| {
        Capability::Missing {
        why,
        next_step: "switch it off (swapoff -a), or encrypt it with a random key (crypttab(5): `swap` and /dev/urandom)"
            .to_owned(),
    }
    };
    let Ok(text) = fs::read_to_string(swaps) else {
        return missing(format!("{} cannot be read, so what is swapped is not known", swaps.display()));
    };
    let areas: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let plain: Vec<&str> = areas.iter().copied().filter(|area| !is_safe(Path::new(area), blocks)).collect();
    if areas.is_empty() {
        Capability::Present { how: "none, so nothing of an engine's memory is written to a disk".to_owned() }
    } else if plain.is_empty() {
        Capability::Present { how: format!("encrypted, or compressed in memory: {}", areas.join(", ")) }
    } else {
        missing(format!("PLAIN: memory of running engines may be written to {}", plain.join(", ")))
    }
}

/// Whether a swap area is encrypted by the kernel, or lies in memory. A file is not: below it may be anything.
fn is_safe(area: &Path, blocks: &Path) -> bool {
    let device = fs::canonicalize(area).unwrap_or_else(|_| area.to_owned());
    let Some(name) = device.strip_prefix("/dev").ok().and_then(Path::to_str) else {
        return false;
    };
    let block: PathBuf = blocks.join(name);
    let read = |file: &str| fs::read_to_string(block.join(file)).unwrap_or_default();
    if name.starts_with("zram") {
        return matches!(read("backing_dev").trim(), "" | "none");
    }
    read("dm/uuid").starts_with("CRYPT-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(swaps: &str, files: &[(&str, &str)]) -> Capability {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swaps");
        fs::write(&path, format!("Filename\tType\tSize\tUsed\tPriority\n{swaps}")).unwrap();
        for (name, text) in files {
            let file = folder.path().join("block").join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        swap_of(&path, &folder.path().join("block"))
    }

    fn is_present(capability: &Capability) -> bool {
        matches!(capability, Capability::Present { .. })
    }

    #[test]
    fn swap_is_told_apart_by_what_the_kernel_says_of_it() {
        assert!(is_present(&look("", &[])));
        let line = |area: &str| format!("{area} partition 1 0 -2\n");
        assert!(is_present(&look(&line("/dev/dm-77"), &[("dm-77/dm/uuid", "CRYPT-PLAIN-swap\n")])));
        assert!(!is_present(&look(&line("/dev/dm-77"), &[("dm-77/dm/uuid", "LVM-abc\n")])));
        assert!(!is_present(&look(&line("/dev/dm-77"), &[])));
        assert!(is_present(&look(&line("/dev/zram77"), &[("zram77/backing_dev", "none\n")])));
        assert!(!is_present(&look(&line("/dev/zram77"), &[("zram77/backing_dev", "/dev/sda3\n")])));
        let both = format!("{}{}", line("/dev/dm-77"), line("/swapfile"));
        match look(&both, &[("dm-77/dm/uuid", "CRYPT-PLAIN-swap\n")]) {
            Capability::Missing { why, .. } => {
                assert!(why.contains("/swapfile") && !why.contains("dm-77"), "{why}");
            }
            Capability::Present { how } => panic!("{how}"),
        }
        assert!(!is_present(&swap_of(Path::new("/nowhere/swaps"), Path::new("/nowhere"))));
    }
}
