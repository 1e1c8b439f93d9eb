//! A small process that locks what is unlocked when Chitin ends, in whatever way.
//!
//! Keys lie in the kernel and in gocryptfs, and mounts belong to nobody: after `kill -9` nobody of ours is left to take them away.
//! So Chitin starts itself once more, tells that process of each volume before it is unlocked, and holds one end of a line to
//! it. When the line breaks, or the kernel says that Chitin has ended, the companion ends the engines and locks what it was
//! told of ([`program`]). It holds no key and no open file of a volume. While there is no companion, nothing is unlocked.

mod program;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::Encryption;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown, socketpair,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Error;
use crate::launch::Launcher;
use crate::process::{self, Watcher, none_left};

pub(crate) use program::serve_if_asked;

/// Whether a process is called a companion.
pub(crate) fn is_called_so(pid: u32) -> bool {
    process::arguments(pid).starts_with(NAME.as_bytes())
}

/// Tells the program that it is to be a companion, and of which data directory.
const ORDERS: &str = "CHITIN_COMPANION";
/// What it is called in lists of processes.
const NAME: &str = "chitin: companion";
/// Held by a companion until everything is locked, so that the next Chitin does not begin before.
const LOCK: &str = "companion.lock";
/// For a companion to be ready. It waits for the one of a Chitin that was killed, which has its volumes to lock.
const READY_MAX: Duration = Duration::from_secs(90);
/// For an answer. It has nothing to do but to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Between tries to start another.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// For one that has nothing left to lock to end.
const END_MAX: Duration = Duration::from_secs(10);
/// Of one message: a path (`PATH_MAX`), and the words before it.
const MESSAGE_BYTES_MAX: usize = 8 << 10;

// What is said. The parts of a message are separated by a zero byte, which no path has.
const READY: &[u8] = b"ready";
const YES: &[u8] = b"yes";
const UNLOCKING: &str = "unlocking";
const LOCKED: &str = "locked";
const KNOWS: &str = "knows";

/// Chitin's side of the line.
#[derive(Debug)]
pub(crate) struct Companion(Arc<Shared>);

/// A volume that the companion was told of. Where it is dropped without [`Told::locked`], the companion goes on minding it.
#[derive(Debug)]
pub(crate) struct Told {
    companion: Arc<Shared>,
    folder: PathBuf,
}

#[derive(Debug)]
struct Shared {
    /// Open since the start: it is the program that runs, also when another version has taken its place.
    program: File,
    arguments: Vec<String>,
    data: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    /// Who it is or why there is none, for those who must not wait.
    standing: Mutex<Result<u32, String>>,
}

#[derive(Debug, Default)]
struct State {
    line: Option<Line>,
    unlocked: BTreeMap<PathBuf, Encryption>,
    is_closing: bool,
    /// Somebody tries again and again to start one.
    is_starting: bool,
}

#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    /// A descriptor of the process: its number may be another's by the time that it is used.
    process: OwnedFd,
    pid: u32,
}

impl Companion {
    /// Starts it, and returns when it listens; that is when the companion of a Chitin that was killed is done.
    pub(crate) fn start(data: &Path, launcher: &Launcher) -> Result<Self, Error> {
        let program = File::open(&launcher.program).map_err(Error::file("open", &launcher.program))?;
        let shared = Arc::new(Shared {
            program,
            arguments: launcher.arguments.clone(),
            data: data.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
            standing: Mutex::new(Err("it was not started".to_owned())),
        });
        shared.begin(&mut shared.state())?;
        Ok(Self(shared))
    }

    /// To be called before a volume is unlocked. Where it fails, the volume must not be unlocked.
    pub(crate) fn tell(&self, folder: &Path, kind: Encryption) -> Result<Told, Error> {
        let mut state = self.0.state();
        if state.line.is_none() {
            self.0.begin(&mut state)?;
        }
        let was_known = state.unlocked.contains_key(folder);
        if let Err(reason) = state.ask(&unlocking(folder, kind)) {
            state.end_process();
            return Err(Error::NoCompanion { reason });
        }
        if !was_known {
            state.unlocked.insert(folder.to_owned(), kind);
        }
        Ok(Told { companion: self.0.clone(), folder: folder.to_owned() })
    }

    /// Forgets what lies at or below a folder: it was destroyed.
    pub(crate) fn forget(&self, folder: &Path) {
        let mut state = self.0.state();
        let gone: Vec<PathBuf> =
            state.unlocked.keys().filter(|known| known.starts_with(folder)).cloned().collect();
        for folder in gone {
            state.forget(&folder);
        }
    }

    /// Who the companion is; or why there is none. Never waits.
    pub(crate) fn standing(&self) -> Result<u32, String> {
        self.0.standing().clone()
    }

    /// Whether the companion itself says that it knows of a volume. May wait.
    pub(crate) fn knows(&self, folder: &Path) -> Result<u32, String> {
        let state = self.0.state();
        let line = state.line.as_ref().ok_or("it has ended")?;
        line.say(&message(KNOWS, folder))?;
        match line.hear(ANSWER_MAX) {
            Ok(heard) if heard == YES => Ok(line.pid),
            Ok(heard) => Err(String::from_utf8_lossy(&heard).into_owned()),
            Err(reason) => {
                // An answer that comes late must not be taken for another's.
                state.end_process();
                Err(reason)
            }
        }
    }

    /// Lets it end, and waits for that. It is started again when it is needed.
    pub(crate) fn close(&self) {
        let mut state = self.0.state();
        let Some(line) = state.line.take() else {
            return;
        };
        state.is_closing = true;
        let _ = shutdown(&line.socket, Shutdown::Both);
        let has_ended = |state: &mut State| state.is_closing;
        let (mut state, waited) = self
            .0
            .changed
            .wait_timeout_while(state, END_MAX, has_ended)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            tracing::warn!(process = line.pid, "the companion still locks what could not be locked before");
        }
        state.is_closing = false;
        *self.0.standing() = Err("it was ended".to_owned());
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_closing = true;
        self.0.changed.notify_all();
        if let Some(line) = state.line.take() {
            let _ = shutdown(&line.socket, Shutdown::Both);
        }
    }
}

impl Told {
    /// Nothing of the volume is unlocked any more.
    pub(crate) fn locked(self) {
        self.companion.state().forget(&self.folder);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> MutexGuard<'_, Result<u32, String>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a companion and tells it everything that is unlocked.
    fn begin(self: &Arc<Self>, state: &mut State) -> Result<(), Error> {
        let began = self.try_begin(state);
        let standing = began.as_ref().map_or_else(Clone::clone, |()| String::new());
        *self.standing() = match &state.line {
            Some(line) if began.is_ok() => Ok(line.pid),
            _ => Err(standing),
        };
        began.map_err(|reason| Error::NoCompanion { reason })
    }

    fn try_begin(self: &Arc<Self>, state: &mut State) -> Result<(), String> {
        let said = |cause: &dyn std::fmt::Display| cause.to_string();
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|cause| said(&cause))?;
        let mut command = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()));
        command.arg0(NAME).args(&self.arguments).current_dir("/");
        // Nothing of our environment: secrets may be in it.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env(ORDERS, &self.data);
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
        let shared = self.clone();
        let watcher = Watcher::start("companion-watch", move |pid, ended| shared.ended(pid, &ended))
            .map_err(|cause| none_left(&cause))?;
        let mut child = process::spawn(command).map_err(|cause| none_left(&cause))?;
        let line = Pid::from_raw(child.id().cast_signed())
            .ok_or_else(|| "it has no number".to_owned())
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).map_err(|cause| said(&cause)))
            .map(|process| Line { socket: ours, process, pid: child.id() });
        let ready = line.and_then(|line| match line.hear(READY_MAX) {
            Ok(heard) if heard == READY => Ok(line),
            Ok(refused) => Err(String::from_utf8_lossy(&refused).into_owned()),
            Err(reason) => Err(reason),
        });
        let line = match ready {
            Ok(line) => line,
            Err(reason) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(reason);
            }
        };
        state.line = Some(line);
        let told = state.unlocked.iter().try_for_each(|(folder, kind)| state.ask(&unlocking(folder, *kind)));
        let pid = child.id();
        // In a thread of its own, which starts another when it ends.
        watcher.watch(child);
        told.inspect_err(|_| state.end_process()).map(|()| {
            tracing::debug!(process = pid, "the companion is there");
        })
    }

    fn ended(self: &Arc<Self>, pid: u32, how: &io::Result<std::process::ExitStatus>) {
        let mut state = self.state();
        if state.line.as_ref().is_some_and(|line| line.pid == pid) {
            state.line = None;
        }
        if state.is_closing {
            state.is_closing = false;
            self.changed.notify_all();
            return;
        }
        // One that did not come to work is the affair of whoever started it, unless there is something to mind.
        if state.line.is_some()
            || state.is_starting
            || (*self.standing() != Ok(pid) && state.unlocked.is_empty())
        {
            return;
        }
        let how = how.as_ref().map_or_else(ToString::to_string, ToString::to_string);
        *self.standing() = Err(format!("it ended unexpectedly ({how})"));
        tracing::error!(
            process = pid, %how,
            "the companion ended unexpectedly: were Chitin killed now, volumes would stay unlocked; another is started"
        );
        state.is_starting = true;
        while state.line.is_none() && !state.is_closing {
            match self.begin(&mut state) {
                Ok(()) => {
                    let volumes = state.unlocked.len();
                    tracing::info!(volumes, "another companion is there, and knows of everything unlocked");
                }
                Err(cause) => {
                    tracing::error!(%cause, "no companion could be started; nothing is unlocked without one");
                    let waited = self.changed.wait_timeout(state, AGAIN_AFTER);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        state.is_starting = false;
    }
}

impl State {
    /// Sends a message and waits for the answer yes.
    fn ask(&self, message: &[u8]) -> Result<(), String> {
        let line = self.line.as_ref().ok_or("there is none")?;
        line.say(message)?;
        let heard = line.hear(ANSWER_MAX)?;
        if heard == YES { Ok(()) } else { Err(String::from_utf8_lossy(&heard).into_owned()) }
    }

    fn forget(&mut self, folder: &Path) {
        if self.unlocked.remove(folder).is_some()
            && self.line.is_some()
            && let Err(reason) = self.ask(&message(LOCKED, folder))
        {
            // The next one is told of what is unlocked then.
            tracing::warn!(%reason, "the companion does not answer; another is started");
            self.end_process();
        }
    }

    /// One that does not answer is worth nothing. Whoever waits for its end starts another.
    fn end_process(&self) {
        if let Some(line) = &self.line {
            let _ = pidfd_send_signal(&line.process, Signal::KILL);
        }
    }
}

impl Line {
    fn say(&self, message: &[u8]) -> Result<(), String> {
        if message.len() > MESSAGE_BYTES_MAX {
            return Err("the volume's path is too long".to_owned());
        }
        let sent = send(&self.socket, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        sent.map(drop).map_err(|cause| format!("it cannot be told anything: {cause}"))
    }

    fn hear(&self, patience: Duration) -> Result<Vec<u8>, String> {
        if !is_readable(&self.socket, patience) {
            return Err(format!("it did not answer within {} seconds", patience.as_secs()));
        }
        let mut answer = vec![0; MESSAGE_BYTES_MAX];
        match recv(&self.socket, answer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((count @ 1.., _)) => {
                answer.truncate(count);
                Ok(answer)
            }
            Ok((0, _)) => Err("it has ended".to_owned()),
            Err(cause) => Err(cause.to_string()),
        }
    }
}

/// Whether there is something to read, or an end, within this time.
fn is_readable(socket: &OwnedFd, patience: Duration) -> bool {
    let until = std::time::Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let mut what = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut what, Timespec::try_from(left).ok().as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(count) => return count > 0,
            Err(_) => return false,
        }
    }
}

fn unlocking(folder: &Path, kind: Encryption) -> Vec<u8> {
    [UNLOCKING.as_bytes(), kind.as_str().as_bytes(), folder.as_os_str().as_bytes()].join(&0)
}

fn message(word: &str, folder: &Path) -> Vec<u8> {
    [word.as_bytes(), folder.as_os_str().as_bytes()].join(&0)
}
