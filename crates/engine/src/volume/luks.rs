//! LUKS2 in an image of our own: dm-crypt, for machines whose kernel has it and whose ext4 has no fscrypt.
//!
//! The data key opens LUKS' own key slot. It is random, so the derivation has nothing to slow down.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keys::DataKey;
use model::StorageLimit;

use super::image::{self, IMAGE};
use super::{FILES, Seen, mounting};
use crate::Error;
use crate::places::{make_folder, mount_at};
use crate::process::{run, run_with};

/// For formatting, opening, closing, and making a file system.
const TOOL_MAX: Duration = Duration::from_secs(60);
/// The folder inside that the engine gets; the root of the file system has `lost+found`.
const INNER: &str = "v";
/// The least that cryptsetup takes.
const ITERATIONS: &str = "1000";
const SYS_BLOCK: &str = "/sys/block";

/// An open device with a mounted file system.
#[derive(Debug)]
pub(super) struct Unlocked {
    name: String,
    mounted: PathBuf,
}

pub(super) fn base(folder: &Path) -> PathBuf {
    folder.join(FILES).join(INNER)
}

/// Makes the image, its header and a file system in it; leaves it closed.
pub(super) fn create(folder: &Path, key: &DataKey, limit: StorageLimit) -> Result<(), Error> {
    image::allocate(folder, limit)?;
    format(&folder.join(IMAGE), key)?;
    let name = open(folder, key)?;
    let made = (|| {
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-m", "0", "-i", "65536", "-J", "size=16"])
            .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"])
            .arg(device(&name));
        run("mkfs.ext4", make, TOOL_MAX)?;
        let mounted = mount(folder, &name)?;
        let made = make_folder(&mounted.join(INNER), 0o700);
        let unmounted =
            image::unmount_wholly(&mounted).map_err(|cause| Error::file("unmount", &mounted)(cause.into()));
        made.and(unmounted)
    })();
    made.and(close(&name))
}

pub(super) fn unlock(folder: &Path, key: &DataKey) -> Result<Unlocked, Error> {
    super::check::must_have_room(folder, 0)?;
    let name = open(folder, key)?;
    match super::check::mend(&device(&name)).and_then(|()| mount(folder, &name)) {
        Ok(mounted) => Ok(Unlocked { name, mounted }),
        Err(cause) => {
            // Why it could not be mounted is the better reason.
            let _ = close(&name);
            Err(cause)
        }
    }
}

impl Unlocked {
    /// Unmounts and closes. Both are tried, whatever the first says; closing takes the key out of the kernel.
    pub(super) fn lock(self) -> Result<(), Error> {
        image::uncover(&self.mounted);
        let unmounted = image::unmount_wholly(&self.mounted)
            .map_err(|cause| Error::file("unmount", &self.mounted)(cause.into()));
        close(&self.name).and(unmounted)
    }
}

fn format(image: &Path, key: &DataKey) -> Result<(), Error> {
    let mut format = Command::new("cryptsetup");
    format
        .args(["luksFormat", "--batch-mode", "--type", "luks2", "--cipher", "aes-xts-plain64"])
        .args(["--key-size", "512", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", ITERATIONS])
        .args(["--key-file", "-", "--keyfile-size", "64"])
        .arg(image);
    run_with("cryptsetup", format, key.expose(), TOOL_MAX).map(drop)
}

/// Opens the device. Without discard: holes would tell how much of it is used.
fn open(folder: &Path, key: &DataKey) -> Result<String, Error> {
    let name = device_name(folder);
    let mut open = Command::new("cryptsetup");
    open.args(["open", "--type", "luks2", "--key-file", "-", "--keyfile-size", "64"])
        .arg(folder.join(IMAGE))
        .arg(&name);
    run_with("cryptsetup", open, key.expose(), TOOL_MAX)?;
    Ok(name)
}

fn close(name: &str) -> Result<(), Error> {
    let mut close = Command::new("cryptsetup");
    close.args(["close", name]);
    run("cryptsetup", close, TOOL_MAX)
}

/// Takes the key out of the kernel and leaves the device, on which everything waits from then on.
fn suspend(name: &str) -> Result<(), Error> {
    let mut suspend = Command::new("cryptsetup");
    suspend.args(["luksSuspend", name]);
    run("cryptsetup", suspend, TOOL_MAX)
}

fn mount(folder: &Path, name: &str) -> Result<PathBuf, Error> {
    let target = folder.join(FILES);
    mounting::mount_device(&device(name), &target)?;
    Ok(target)
}

/// Named after the cluster and the generation, so that no two volumes share one.
fn device_name(folder: &Path) -> String {
    let part = |path: Option<&Path>| {
        path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let own = part(Some(folder));
    if own.starts_with("volume-") {
        format!("chitin-{}-{own}", part(folder.parent()))
    } else {
        format!("chitin-{own}")
    }
}

fn device(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

/// Closes devices whose image lies at or below a folder, whoever left them open.
pub(super) fn close_below(folder: &Path) {
    for device in std::fs::read_dir(SYS_BLOCK).into_iter().flatten().flatten() {
        let slaves = std::fs::read_dir(device.path().join("slaves")).into_iter().flatten().flatten();
        let is_ours = slaves
            .filter_map(|slave| std::fs::read_to_string(slave.path().join("loop/backing_file")).ok())
            .any(|file| Path::new(file.trim_end()).starts_with(folder));
        if is_ours && let Ok(name) = std::fs::read_to_string(device.path().join("dm/name")) {
            // One that is in use for a moment longer keeps its device; its key goes at once.
            let _ = close(name.trim()).or_else(|_| suspend(name.trim()));
        }
    }
}

/// Whether the device is open, works, and is mounted.
pub(super) fn is_open(folder: &Path) -> Result<(), String> {
    let name = device_name(folder);
    let devices = std::fs::read_dir(SYS_BLOCK).into_iter().flatten().flatten();
    let fact = |device: &std::fs::DirEntry, fact: &str| {
        std::fs::read_to_string(device.path().join("dm").join(fact)).unwrap_or_default().trim().to_owned()
    };
    let Some(found) = devices.into_iter().find(|device| fact(device, "name") == name) else {
        return Err(format!("somebody closed its device {name}"));
    };
    if fact(&found, "suspended") == "1" {
        return Err(format!("somebody suspended its device {name}"));
    }
    super::trouble::mounted(folder, "ext4").map(drop)
}

/// What the kernel says of the device and its mount.
pub(super) fn seen(folder: &Path) -> Seen {
    let name = device_name(folder);
    let devices = std::fs::read_dir(SYS_BLOCK).into_iter().flatten().flatten();
    let fact = |device: &std::fs::DirEntry, fact: &str| {
        std::fs::read_to_string(device.path().join("dm").join(fact)).unwrap_or_default().trim().to_owned()
    };
    let Some(device) = devices.into_iter().find(|device| fact(device, "name") == name) else {
        return match mount_at(&folder.join(FILES)) {
            None => Seen::locked("no device of it is open, and its key ended with the device".to_owned()),
            Some(mounted) => Seen::wrong(format!("{} is mounted there, not its device", mounted.source)),
        };
    };
    let uuid = fact(&device, "uuid");
    let mut ask = Command::new("dmsetup");
    // Without `--showkeys` the key is not in the answer.
    ask.args(["table", "--target", "crypt", &name]);
    let table = run_with("dmsetup", ask, &[], TOOL_MAX).unwrap_or_default();
    let Some(cipher) = cipher_of(&table).filter(|_| uuid.starts_with("CRYPT-LUKS2-")) else {
        return Seen::wrong(format!("device {name} is open, but the kernel does not call it a crypt device"));
    };
    Seen {
        is_unlocked: true,
        is_proven: true,
        cipher: Some(cipher.to_owned()),
        key: Some(uuid.clone()),
        evidence: format!("dm-crypt, {cipher}; the kernel's device {name} is {uuid}"),
    }
}

/// `0 2064384 crypt aes-xts-plain64 :64:logon:... 0 7:0 32768` says how it encrypts in its fourth field.
fn cipher_of(table: &str) -> Option<&str> {
    let mut fields = table.split_whitespace().skip(2);
    (fields.next()? == "crypt").then(|| fields.next())?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_cipher_is_what_the_kernel_s_table_says() {
        let table =
            "0 2064384 crypt aes-xts-plain64 :64:logon:cryptsetup:x-d0 0 7:0 32768 1 sector_size:4096";
        assert_eq!(cipher_of(table), Some("aes-xts-plain64"));
        assert_eq!(cipher_of("0 2064384 linear 7:0 0"), None, "nothing is encrypted there");
        assert_eq!(cipher_of(""), None);
    }

    #[test]
    fn no_two_volumes_share_a_device() {
        let id = "6d0c4a52-9d1c-4d0e-9c0e-3b1f5a7c2d10";
        let folder = Path::new("/data/clusters").join(id);
        assert_eq!(device_name(&folder), format!("chitin-{id}"));
        assert_eq!(device_name(&folder.join("volume-3")), format!("chitin-{id}-volume-3"));
    }

    /// As far as a machine without dm-crypt can go: the header is made, and opens with its key only.
    #[test]
    fn a_header_opens_with_its_own_key_only_and_holds_no_key_in_clear() {
        let folder = tempfile::tempdir().unwrap();
        let (key, other) = (DataKey::random(), DataKey::random());
        image::allocate(folder.path(), StorageLimit::MIN).unwrap();
        let image = folder.path().join(IMAGE);
        format(&image, &key).unwrap();
        let opens = |key: &DataKey| {
            let mut open = Command::new("cryptsetup");
            open.args(["open", "--test-passphrase", "--type", "luks2", "--key-file", "-"]);
            open.args(["--keyfile-size", "64"]).arg(&image);
            run_with("cryptsetup", open, key.expose(), TOOL_MAX).is_ok()
        };
        assert!(opens(&key));
        assert!(!opens(&other), "another key opens it");
        let mut dump = Command::new("cryptsetup");
        dump.arg("luksDump").arg(&image);
        let said = run_with("cryptsetup", dump, &[], TOOL_MAX).unwrap();
        assert!(said.contains("aes-xts-plain64") && said.contains("512 bits"), "{said}");
        let mut header = vec![0; 20 << 20];
        std::fs::File::open(&image).unwrap().read_exact_at(&mut header, 0).unwrap();
        assert!(!header.windows(64).any(|bytes| bytes == key.expose()));
    }
}
