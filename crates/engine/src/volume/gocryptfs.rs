//! gocryptfs over FUSE: AES-256-GCM, for machines without fscrypt and for ordinary users.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use keys::DataKey;
use zeroize::Zeroizing;

use super::FILES;
use crate::Error;
use crate::places::{is_root, make_folder, mounts_below};
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

    pub(super) fn evidence(&self) -> String {
        format!(
            "gocryptfs, AES-256-GCM, served by process group {}; the key is in its memory only",
            self.server.id()
        )
    }
}

fn with_password(mut command: Command, key: &DataKey) -> Result<(Child, ChildStdin), Error> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command).map_err(|cause| failed(&cause.to_string()))?;
    let mut password = Zeroizing::new(hex::encode(key.expose()));
    password.push('\n');
    if let Some(mut input) = child.stdin.take()
        && input.write_all(password.as_bytes()).is_ok()
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
