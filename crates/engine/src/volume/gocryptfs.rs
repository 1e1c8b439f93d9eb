//! gocryptfs over FUSE: AES-256-GCM, for machines without fscrypt and for ordinary users.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use keys::DataKey;
use zeroize::Zeroizing;

use super::{FILES, Seen};
use crate::Error;
use crate::places::{is_root, make_folder, mount_at, mounts_below};
use crate::process::spawn;

/// The folder of ciphertext. A sibling of the mount point, never below it: gocryptfs must not need its own mount.
pub(super) const CIPHER: &str = "cipher";
/// For gocryptfs to mount, and to end.
const MOUNT_MAX: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);

/// Serves until its input ends, then kills itself and all that it started.
///
/// The kernel's own way to die with a parent (`PR_SET_PDEATHSIG`) does not hold for gocryptfs: it is lost whenever a
/// process changes its user, and gocryptfs does so for each file that it makes.
const SERVE: &str =
    r#"IFS= read -r key; { printf '%s\n' "$key" | "$@"; kill -9 0; } & key=; read -r end; kill -9 0"#;

/// A mounted file system and the process that serves it.
#[derive(Debug)]
pub(super) struct Unlocked {
    server: Child,
    /// Open as long as the volume is to be served: its end, for whatever reason, ends the server.
    _lifeline: ChildStdin,
    mounted: PathBuf,
}

pub(super) fn create(folder: &Path, key: &DataKey) -> Result<(), Error> {
    let cipher = folder.join(CIPHER);
    make_folder(&cipher, 0o700)?;
    make_folder(&folder.join(FILES), 0o700)?;
    // The password has 512 random bits, so scrypt has nothing to slow down.
    let mut init = Command::new("gocryptfs");
    init.args(["-init", "-q", "-nosyslog", "-scryptn", "10"]).arg(&cipher);
    let (mut child, input) = with_password(init, key)?;
    drop(input);
    let mut reason = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut reason);
    }
    let status = child.wait().map_err(|cause| failed(&cause.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(reason.trim())) }
}

pub(super) fn unlock(folder: &Path, key: &DataKey) -> Result<Unlocked, Error> {
    let mounted = folder.join(FILES);
    let mut serve = Command::new("sh");
    serve.process_group(0).args(["-c", SERVE, "serve", "gocryptfs", "-fg", "-nosyslog"]);
    if is_root() {
        // The engine runs as a user of its own, and the kernel checks its rights.
        serve.arg("-allow_other");
    }
    serve.arg(folder.join(CIPHER)).arg(&mounted);
    let (server, lifeline) = with_password(serve, key)?;
    let mut unlocked = Unlocked { server, _lifeline: lifeline, mounted };
    if wait_ready(&mut unlocked.server) && !mounts_below(&unlocked.mounted).is_empty() {
        return Ok(unlocked);
    }
    let mut reason = String::new();
    unlocked.kill();
    if let Some(mut stderr) = unlocked.server.stderr.take() {
        let _ = stderr.read_to_string(&mut reason);
    }
    let _ = unlocked.server.wait();
    Err(failed(reason.trim()))
}

/// Waits for gocryptfs's own word. The mount is in the kernel's table a moment before that, but whoever touches it then
/// holds a lock that gocryptfs itself still needs: both would wait for ever.
fn wait_ready(server: &mut Child) -> bool {
    let Some(stdout) = server.stdout.take() else {
        return false;
    };
    let (told, heard) = channel();
    let listen = move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.contains("mounted and ready") {
                let _ = told.send(());
            }
        }
    };
    // Reads on until gocryptfs ends, so that what it says later never fills the pipe.
    let listening =
        std::thread::Builder::new().name("gocryptfs".to_owned()).stack_size(64 * 1024).spawn(listen);
    listening.is_ok() && heard.recv_timeout(MOUNT_MAX).is_ok()
}

impl Unlocked {
    /// Unmounts; the key ends with the process that held it.
    pub(super) fn lock(mut self) -> Result<(), Error> {
        use rustix::mount::{UnmountFlags, unmount};
        let by_kernel = unmount(&self.mounted, UnmountFlags::empty());
        if by_kernel.is_err() {
            let helper =
                Command::new("fusermount3").arg("-u").arg(&self.mounted).stderr(Stdio::null()).status();
            if !helper.is_ok_and(|status| status.success()) {
                let _ = unmount(&self.mounted, UnmountFlags::DETACH);
            }
        }
        let deadline = Instant::now() + MOUNT_MAX;
        while Instant::now() < deadline {
            if matches!(self.server.try_wait(), Ok(Some(_))) {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        self.kill();
        let _ = self.server.wait();
        let left = mounts_below(&self.mounted);
        if left.is_empty() { Ok(()) } else { Err(failed("the volume is still mounted")) }
    }

    /// Ends the server and the shell that holds it.
    fn kill(&mut self) {
        let group = i32::try_from(self.server.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// What the kernel says of the mount and of the process that serves it; the cipher as gocryptfs wrote it down.
pub(super) fn seen(folder: &Path) -> Seen {
    let servers: Vec<String> = servers_of(&folder.join(CIPHER)).iter().map(u32::to_string).collect();
    match mount_at(&folder.join(FILES)) {
        None if servers.is_empty() => {
            Seen::locked("nothing of it is mounted, and no process that could hold its key runs".to_owned())
        }
        None => Seen::wrong(format!(
            "it is not mounted, but gocryptfs still runs as process {}",
            servers.join(", ")
        )),
        Some(mounted) if mounted.kind == "fuse.gocryptfs" && !servers.is_empty() => {
            let cipher =
                cipher_of(&std::fs::read(folder.join(CIPHER).join("gocryptfs.conf")).unwrap_or_default());
            let named = cipher.clone().unwrap_or_else(|| "an unknown cipher".to_owned());
            Seen {
                is_unlocked: true,
                is_proven: cipher.is_some(),
                cipher,
                key: None,
                evidence: format!(
                    "gocryptfs, {named}, mounted as {} and served by process {}; the key is in its memory only",
                    mounted.kind,
                    servers.join(", ")
                ),
            }
        }
        Some(mounted) => Seen::wrong(format!("{} ({}) is mounted there", mounted.source, mounted.kind)),
    }
}

/// Processes called gocryptfs that name the folder of ciphertext.
fn servers_of(cipher: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let serves = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let named = cipher.as_os_str().as_encoded_bytes();
        name.trim() == "gocryptfs" && words.split(|byte| *byte == 0).any(|word| word == named)
    };
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(serves).collect()
}

/// What `gocryptfs.conf` says in its feature flags (gocryptfs' own `configfile/feature_flags.go`).
fn cipher_of(config: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Config {
        #[serde(rename = "FeatureFlags")]
        flags: Vec<String>,
    }
    let Config { flags } = serde_json::from_slice(config).ok()?;
    let has = |name: &str| flags.iter().any(|flag| flag == name);
    let contents = if has("XChaCha20Poly1305") {
        "XChaCha20-Poly1305"
    } else if has("AESSIV") {
        "AES-512-SIV"
    } else if has("GCMIV128") {
        "AES-256-GCM"
    } else {
        return None;
    };
    let names = if has("EMENames") { "AES-256-EME" } else { "nothing" };
    Some(format!("{contents} and {names} for names"))
}

fn with_password(mut command: Command, key: &DataKey) -> Result<(Child, ChildStdin), Error> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command).map_err(|cause| failed(&cause.to_string()))?;
    let mut password = Zeroizing::new([b'\n'; 2 * 64 + 1]);
    hex::encode_to_slice(key.expose(), &mut password[..2 * 64])
        .map_err(|cause| failed(&cause.to_string()))?;
    if let Some(mut input) = child.stdin.take()
        && input.write_all(password.as_ref()).is_ok()
    {
        return Ok((child, input));
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(failed("it took no password; is gocryptfs installed?"))
}

fn failed(reason: &str) -> Error {
    Error::Program { program: "gocryptfs", reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cipher_is_what_gocryptfs_wrote_down() {
        let config = br#"{"Creator":"gocryptfs 2.3","FeatureFlags":["HKDF","GCMIV128","DirIV","EMENames","LongNames"]}"#;
        assert_eq!(cipher_of(config).as_deref(), Some("AES-256-GCM and AES-256-EME for names"));
        assert_eq!(cipher_of(br#"{"FeatureFlags":[]}"#), None, "a name that we do not know proves nothing");
        assert_eq!(cipher_of(b"nonsense"), None);
    }
}
