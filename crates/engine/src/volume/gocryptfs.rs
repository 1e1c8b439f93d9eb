//! gocryptfs over FUSE: AES-256-GCM, for machines without fscrypt and for ordinary users.

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use keys::DataKey;
use rustix::mount::{MountFlags, UnmountFlags, unmount};
use zeroize::Zeroizing;

use super::{FILES, Seen};
use crate::Error;
use crate::inside::Inside;
use crate::places::{Owner, is_root, make_folder, mount_at, mounts_below};
use crate::process::{self, none_left, spawn};

/// The folder of ciphertext. A sibling of the mount point, never below it: gocryptfs must not need its own mount.
pub(super) const CIPHER: &str = "cipher";
/// For gocryptfs to be ready, and to end.
const READY_MAX: Duration = Duration::from_secs(20);
/// Of one line that it says; a longer one counts as several.
const LINE_BYTES_MAX: u64 = 4 << 10;
const PAUSE: Duration = Duration::from_millis(5);
/// Of one read through the kernel: the most that gocryptfs can take.
const READ_BYTES_MAX: u32 = 128 << 10;
/// What gocryptfs may do on the ciphertext although it is not root: pass folders that are closed to others, and serve
/// files whatever mode the engine gave them.
const CAPABILITIES: &str = "-all,+dac_override,+chown,+fowner";
/// What it says on the way to being ready, and then; the rest is why it is not.
const PROGRESS: [&str; 2] = ["Reading Password from stdin", "Decrypting master key"];
const READY: &str = "mounted and ready";

/// Serves until its input ends, then kills itself and all that it started. The standard error that it is given becomes
/// descriptor 3, the kernel's end of a mount that is there already; what gocryptfs says comes on the output.
///
/// The kernel's own way to die with a parent (`PR_SET_PDEATHSIG`) is not enough: it is lost when a program changes its
/// user, and speaks of the thread that started it, not of whoever holds the volume.
const SERVE: &str = r#"exec 3<&2 2>&1; IFS= read -r key
{ printf '%s\n' "$key" | "$@"; kill -9 0; } & key=; read -r end; kill -9 0"#;

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
    init.args(["-init", "-q", "-nosyslog", "-scryptn", "10"]).arg(&cipher).stderr(Stdio::piped());
    let (mut child, input) = with_password(init, key)?;
    drop(input);
    let mut reason = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut reason);
    }
    let status = child.wait().map_err(|cause| failed(&cause.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(reason.trim())) }
}

pub(super) fn unlock(folder: &Path, key: &DataKey, owner: Owner) -> Result<Unlocked, Error> {
    let (cipher, mounted) = (folder.join(CIPHER), folder.join(FILES));
    let mut shell = Command::new("sh");
    shell.process_group(0).args(["-c", SERVE, "serve"]);
    if !is_root() {
        shell.args(["gocryptfs", "-fg", "-nosyslog"]).arg(&cipher).arg(&mounted).stderr(Stdio::null());
        return serve(shell, key, mounted);
    }
    shell.stderr(mount(&cipher, &mounted)?);
    shell.args(as_owner(owner)).args(["gocryptfs", "-fg", "-nosyslog"]).arg(&cipher).arg("/dev/fd/3");
    serve(shell, key, mounted.clone()).inspect_err(|_| {
        let _ = unmount(&mounted, UnmountFlags::DETACH);
    })
}

/// Mounts what gocryptfs will serve, for everybody whom the kernel lets in by owner and mode, and returns the kernel's
/// end of it.
///
/// Not by gocryptfs itself as root (`-allow_other`): it then takes on each caller's user to make a file, with calls
/// that until 2.5.2 change all of its threads at once, so that of two requests at the same time one is refused or served
/// as the other's user; also with `-force_owner` until 2.6. As the engine's user it never changes its own.
fn mount(cipher: &Path, mounted: &Path) -> Result<File, Error> {
    let device = Path::new("/dev/fuse");
    let fuse = File::options().read(true).write(true).open(device).map_err(Error::file("open", device))?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={READ_BYTES_MAX}",
        fuse.as_raw_fd()
    );
    let options = CString::new(options).map_err(|cause| failed(&cause.to_string()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(cipher, mounted, "fuse.gocryptfs", flags, options.as_c_str())
        .map_err(|cause| Error::file("mount", mounted)(cause.into()))?;
    Ok(fuse)
}

/// What makes the program after it the engine's user, so that new files of the ciphertext are the engine's. Of root's
/// rights it keeps [`CAPABILITIES`]; whoever has less cannot look into its memory, where the key is.
fn as_owner(owner: Owner) -> [String; 10] {
    let (uid, gid) = (owner.uid.to_string(), owner.gid.to_string());
    let mut words =
        ["setpriv", "--reuid", &uid, "--regid", &gid, "--clear-groups", "--no-new-privs", "", "", ""]
            .map(str::to_owned);
    for (word, set) in words[7..].iter_mut().zip(["inh-caps", "ambient-caps", "bounding-set"]) {
        *word = format!("--{set}={CAPABILITIES}");
    }
    words
}

fn serve(shell: Command, key: &DataKey, mounted: PathBuf) -> Result<Unlocked, Error> {
    let (server, lifeline) = with_password(shell, key)?;
    let mut unlocked = Unlocked { server, _lifeline: lifeline, mounted };
    let reason = match wait_ready(&mut unlocked.server) {
        Ok(()) if !mounts_below(&unlocked.mounted).is_empty() => return Ok(unlocked),
        Ok(()) => "it is ready, but nothing is mounted".to_owned(),
        Err(reason) => reason,
    };
    unlocked.kill();
    let _ = unlocked.server.wait();
    Err(failed(&reason))
}

/// Waits for gocryptfs's own word, or for what it says instead. The mount is in the kernel's table a moment before that,
/// but whoever touches it then waits for gocryptfs, which may not come.
fn wait_ready(server: &mut Child) -> Result<(), String> {
    let Some(stdout) = server.stdout.take() else {
        return Err("its output cannot be read".to_owned());
    };
    let (told, heard) = channel();
    let listen = move || {
        let (mut output, mut line) = (BufReader::new(stdout), Vec::new());
        // Whatever it says: it would die of a pipe that nobody reads.
        while let Ok(1..) = output.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            let _ = told.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
        }
    };
    // Reads on until gocryptfs ends, so that what it says later never fills the pipe.
    let listener = std::thread::Builder::new().name("gocryptfs".to_owned()).stack_size(64 * 1024);
    listener.spawn(listen).map_err(|cause| none_left(&cause))?;
    let (deadline, mut said) = (Instant::now() + READY_MAX, Vec::new());
    loop {
        match heard.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains(READY) => return Ok(()),
            Ok(line) => said.push(line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                said.push(format!("it was not ready within {} seconds", READY_MAX.as_secs()));
                break;
            }
        }
    }
    said.retain(|line| !line.trim().is_empty() && !PROGRESS.contains(&line.trim()));
    Err(if said.is_empty() { "it ended without a word".to_owned() } else { said.join("; ") })
}

impl Unlocked {
    /// The process that serves it, and whose children do.
    pub(super) fn server(&self) -> u32 {
        self.server.id()
    }

    /// Unmounts; the key ends with the process that held it.
    pub(super) fn lock(mut self) -> Result<(), Error> {
        let by_kernel = unmount(&self.mounted, UnmountFlags::empty());
        if by_kernel.is_err() {
            let helper =
                Command::new("fusermount3").arg("-u").arg(&self.mounted).stderr(Stdio::null()).status();
            if !helper.is_ok_and(|status| status.success())
                && unmount(&self.mounted, UnmountFlags::DETACH).is_err()
            {
                let _ = Command::new("fusermount3")
                    .args(["-u", "-z"])
                    .arg(&self.mounted)
                    .stderr(Stdio::null())
                    .status();
            }
        }
        let deadline = Instant::now() + READY_MAX;
        while !self.has_ended() && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
        // Also what its shell left when somebody else ended that. It is not reaped yet, so its number is nobody else's.
        self.kill();
        let _ = self.server.wait();
        let (cipher, deadline) = (self.mounted.with_file_name(CIPHER), Instant::now() + READY_MAX);
        while !mounts_below(&self.mounted).is_empty() || !servers_of(&cipher).is_empty() {
            if Instant::now() >= deadline {
                return Err(failed(
                    "the volume is still mounted, or still served by a process that has its key",
                ));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
        let Some(shell) = Pid::from_raw(self.server.id().cast_signed()) else { return true };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(shell), look), Ok(None))
    }

    /// Ends the server and the shell that holds it.
    pub(super) fn kill(&mut self) {
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
            let config =
                Inside::open(folder, CIPHER).ok().and_then(|cipher| cipher.read_bytes("gocryptfs.conf"));
            let cipher = cipher_of(&config.unwrap_or_default());
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

/// Whether it is mounted. Whether it is served is told by whoever uses it.
pub(super) fn is_mounted(folder: &Path) -> Result<(), String> {
    super::trouble::mounted(folder, "fuse.gocryptfs").map(drop)
}

/// Processes called gocryptfs that name the folder of ciphertext.
fn servers_of(cipher: &Path) -> Vec<u32> {
    let serves = |pid: &u32| {
        let words = process::arguments(*pid);
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let named = cipher.as_os_str().as_encoded_bytes();
        name.trim() == "gocryptfs" && words.split(|byte| *byte == 0).any(|word| word == named)
    };
    process::all().filter(serves).collect()
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
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = spawn(command).map_err(|cause| failed(&none_left(&cause)))?;
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
mod tests;
