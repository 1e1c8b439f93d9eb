//! Starting and ending processes that must not outlive us.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::Error;

/// How often an ending process is looked at.
const PAUSE: Duration = Duration::from_millis(5);
/// What is kept of a failed program's words.
const SAID_BYTES_MAX: usize = 64 * 1024;
/// Reads of 4 KiB at a time; a pipe holds 16 of them (pipe(7)).
const READS_MAX: usize = 64;
/// A thread that only waits needs little.
const WATCHER_BYTES: usize = 256 * 1024;
/// What an operator does where there are too many processes and threads.
const NONE_LEFT: &str = "a limit on processes and threads is reached; raise it (TasksMax= of a systemd unit, pids.max of a \
                         control group, ulimit -u of the user), or let fewer clusters run";

type Order = (Command, Sender<io::Result<Child>>);

/// Starts a process from a thread that lives as long as the program.
///
/// A child that asked to die with its parent (`PR_SET_PDEATHSIG`) dies with the *thread* that started it, and threads
/// of a pool come and go.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: Mutex<Option<Sender<Order>>> = Mutex::new(None);
    let (answer, heard) = channel();
    let mut starter = STARTER.lock().unwrap_or_else(PoisonError::into_inner);
    // Started with the first process, or with the next one where there was no thread for it.
    let orders = match &mut *starter {
        Some(orders) => orders,
        none => none.insert(start_starter()?),
    };
    let gone = || io::Error::other("the thread that starts processes has ended");
    orders.send((command, answer)).map_err(|_| gone())?;
    drop(starter);
    heard.recv().map_err(|_| gone())?
}

fn start_starter() -> io::Result<Sender<Order>> {
    let (orders, inbox) = channel::<Order>();
    let work = move || {
        for (mut command, answer) in inbox {
            // Whoever asked may have gone; then the child ends when its handle is dropped here unseen.
            if let Err(unheard) = answer.send(command.spawn())
                && let Ok(mut child) = unheard.0
            {
                end(&mut child);
            }
        }
    };
    std::thread::Builder::new().name("starter".to_owned()).spawn(work)?;
    Ok(orders)
}

/// Runs a program to its end; kills it when it takes too long. One that fails is quoted.
pub(crate) fn run(name: &'static str, command: Command, patience: Duration) -> Result<(), Error> {
    run_with(name, command, &[], patience).map(drop)
}

/// The same with something to read on its input, which must fit into a pipe; hands back what it said on its output.
pub(crate) fn run_with(
    name: &'static str,
    command: Command,
    input: &[u8],
    patience: Duration,
) -> Result<String, Error> {
    run_to(name, command, input, patience, &[0])
}

/// The same, of a program that says what it did with its exit code: these are good.
pub(crate) fn run_to(
    name: &'static str,
    mut command: Command,
    input: &[u8],
    patience: Duration,
    good: &[i32],
) -> Result<String, Error> {
    let failed = |reason: String| Error::Program { program: name, reason };
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command).map_err(|cause| failed(none_left(&cause)))?;
    let pipes =
        Listener::new(child.stdout.take()).and_then(|out| Ok((out, Listener::new(child.stderr.take())?)));
    let (mut answer, mut complaint) = match pipes {
        Ok(pipes) => pipes,
        Err(cause) => {
            end(&mut child);
            return Err(failed(cause.to_string()));
        }
    };
    if let Some(mut stdin) = child.stdin.take() {
        // One that ended before it read says why itself.
        let _ = stdin.write_all(input);
    }
    let deadline = Instant::now() + patience;
    let status = loop {
        let status = child.try_wait().map_err(|cause| failed(cause.to_string()))?;
        // After the look, so that nothing is missed that was said before the end.
        answer.take();
        complaint.take();
        if let Some(status) = status {
            break status;
        }
        if Instant::now() >= deadline {
            end(&mut child);
            return Err(failed(format!("it did not end within {} seconds", patience.as_secs())));
        }
        await_words(&answer, &complaint);
    };
    if status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(answer.text());
    }
    let said = complaint.text();
    Err(failed(if said.is_empty() { status.to_string() } else { said }))
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// What a program says on one pipe, read without a thread of its own: a full pipe would stop the program, and where threads
/// have run out nobody would read.
struct Listener<P> {
    /// None once it has ended.
    pipe: Option<P>,
    said: Vec<u8>,
}

impl<P: Read + AsFd> Listener<P> {
    fn new(pipe: Option<P>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            // Of our end alone: what is waited for is the program's end, and others may hold theirs for longer.
            fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
        }
        Ok(Self { pipe, said: Vec::new() })
    }

    /// Takes what is there, more than a pipe holds at the most: a program that never stops talking has its time too. What is
    /// more than anybody needs is read and forgotten.
    fn take(&mut self) {
        let mut bytes = [0; 4096];
        for _ in 0..READS_MAX {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut bytes) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    let left = SAID_BYTES_MAX.saturating_sub(self.said.len());
                    self.said.extend_from_slice(&bytes[..count.min(left)]);
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.said).trim().to_owned()
    }
}

/// Waits a moment for one of the two to say something.
fn await_words<A: AsFd, B: AsFd>(one: &Listener<A>, other: &Listener<B>) {
    let mut what = Vec::with_capacity(2);
    what.extend(one.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
    what.extend(other.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
    // Whatever comes of it, the program is looked at next.
    let _ = poll(&mut what, Timespec::try_from(PAUSE).ok().as_ref());
}

/// Why there is no further process or thread, with the next step where the machine or a limit gives no more of them.
pub(crate) fn none_left(cause: &io::Error) -> String {
    if cause.kind() == io::ErrorKind::WouldBlock {
        format!("{cause}: {NONE_LEFT}")
    } else {
        cause.to_string()
    }
}

/// A thread that will wait for a process to end. It is there before the process is: where there can be no thread, there is
/// nothing to end again.
pub(crate) struct Watcher(Sender<Child>);

impl Watcher {
    /// Starts the thread; `ended` is called in it at the end of the process that it is given.
    pub(crate) fn start(
        name: &'static str,
        ended: impl FnOnce(u32, io::Result<ExitStatus>) + Send + 'static,
    ) -> io::Result<Self> {
        let (given, taken) = channel::<Child>();
        let watch = move || {
            if let Ok(mut child) = taken.recv() {
                let status = child.wait();
                ended(child.id(), status);
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(WATCHER_BYTES);
        thread.spawn(watch)?;
        Ok(Self(given))
    }

    /// Waits for this one.
    pub(crate) fn watch(self, child: Child) {
        // The thread waits for nothing else; were it gone, nobody would watch over the process.
        if let Err(mut unwatched) = self.0.send(child) {
            end(&mut unwatched.0);
        }
    }
}

/// The processes whose parent is this one, whichever of its threads started them.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// Every process that the kernel shows us.
pub(crate) fn all() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// What `/proc/PID/stat` says of a process, or of `self`, so many fields after its name (proc_pid_stat(5)): the state is the first.
pub(crate) fn stat(of: impl std::fmt::Display, field: usize) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{of}/stat")).ok()?;
    // The name before it stands in parentheses and may have anything in it.
    text.rsplit_once(')')?.1.split_whitespace().nth(field).map(str::to_owned)
}

/// The process that started another, or that took it over.
pub(crate) fn parent(of: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{of}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The arguments of a process, each with a zero byte at its end. Empty for one that has ended or is about to.
pub(crate) fn arguments(of: u32) -> Vec<u8> {
    std::fs::read(format!("/proc/{of}/cmdline")).unwrap_or_default()
}

/// Whether a process runs the same program as another, or is called as we are: which program runs is not shown to every user.
pub(crate) fn are_one_program(process: u32, other: u32) -> bool {
    use std::os::unix::fs::MetadataExt;
    let file = |pid| std::fs::metadata(format!("/proc/{pid}/exe")).ok().map(|file| (file.dev(), file.ino()));
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    match (file(process), file(other)) {
        (Some(one), Some(two)) => one == two,
        _ => name(&process.to_string()).is_some_and(|called| Some(called) == name("self")),
    }
}

/// A process and everything that it and its children have started, at most so many.
pub(crate) fn family(of: u32, count_max: usize) -> Vec<u32> {
    let mut found = vec![of];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied()
        && found.len() < count_max
    {
        found.extend(children(parent));
        at += 1;
    }
    found.truncate(count_max);
    found
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits until a process has ended, all of its threads, whether its parent has noticed or not.
pub(crate) fn wait_gone(pid: u32, patience: Duration) -> bool {
    let opened =
        i32::try_from(pid).ok().and_then(Pid::from_raw).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let Some(Ok(process)) = opened else {
        return true;
    };
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut what = [PollFd::new(&process, PollFlags::IN)];
        match poll(&mut what, Timespec::try_from(left).ok().as_ref()) {
            Ok(ended) => return ended > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_ended_and_one_that_fails_is_quoted() {
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let late = run("sleep", sleep, Duration::from_millis(50)).unwrap_err().to_string();
        assert!(late.contains("did not end within"), "{late}");
        let mut endless = Command::new("cat");
        endless.arg("/dev/zero");
        let late = run("cat", endless, Duration::from_millis(50)).unwrap_err().to_string();
        assert!(late.contains("did not end within"), "{late}");
        let mut missing = Command::new("ls");
        missing.arg("/nowhere");
        let refused = run("ls", missing, Duration::from_secs(60)).unwrap_err().to_string();
        assert!(refused.contains("/nowhere"), "{refused}");
    }

    #[test]
    fn what_a_program_says_is_read_however_much_it_is_and_whoever_else_holds_its_pipe() {
        let mut loud = Command::new("sh");
        // More than a pipe holds on both, and one that goes on with them open.
        loud.args([
            "-c",
            "head -c 300000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero >&2; sleep 60 & echo $! >&3",
        ]);
        let folder = tempfile::tempdir().unwrap();
        let number = folder.path().join("number");
        let mut outer = Command::new("sh");
        outer.args(["-c", "exec \"$@\" 3>\"$0\""]).arg(&number).arg("sh").args(loud.get_args());
        let begun = Instant::now();
        let said = run_with("sh", outer, &[], Duration::from_secs(60)).unwrap();
        assert_eq!(said.len(), SAID_BYTES_MAX);
        assert!(begun.elapsed() < Duration::from_secs(50), "it waited for the one that goes on");
        let left: u32 = std::fs::read_to_string(number).unwrap().trim().parse().unwrap();
        signal(left, Signal::KILL);
    }

    #[test]
    fn the_thread_that_watches_over_a_process_is_there_before_it_and_tells_its_end() {
        let (told, heard) = channel();
        let watcher = Watcher::start("watch-test", move |pid, ended| {
            told.send((pid, ended.unwrap().code())).unwrap();
        });
        let child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pid = child.id();
        watcher.unwrap().watch(child);
        assert_eq!(heard.recv_timeout(Duration::from_secs(60)), Ok((pid, Some(7))));
        // One that is given none ends without a word.
        let (told, heard) = channel::<()>();
        drop(Watcher::start("watch-test", move |_, _| told.send(()).unwrap()).unwrap());
        assert!(heard.recv_timeout(Duration::from_secs(60)).is_err());
    }

    #[test]
    fn a_machine_without_a_further_process_is_said_with_the_limits_to_look_at() {
        let text = none_left(&io::Error::from(rustix::io::Errno::AGAIN));
        assert!(text.contains("Resource temporarily unavailable") && text.contains("TasksMax="), "{text}");
        let other = none_left(&io::Error::from(rustix::io::Errno::NOENT));
        assert!(!other.contains("TasksMax="), "{other}");
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sleep", "30"]);
        let mut child = std::thread::spawn(move || spawn(command).unwrap()).join().unwrap();
        // It has asked for its death when it is `sleep`; had its starter ended, that would never come.
        let name = format!("/proc/{}/comm", child.id());
        while std::fs::read_to_string(&name).unwrap().trim() != "sleep" {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::sleep(PAUSE);
        }
        assert!(child.try_wait().unwrap().is_none());
        assert!(children(std::process::id()).contains(&child.id()));
        signal(child.id(), Signal::KILL);
        child.wait().unwrap();
        assert!(wait_gone(child.id(), Duration::from_secs(60)));
    }
}
