//! Starting and ending processes that must not outlive us.

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::Error;

/// How often an ending process is looked at.
const PAUSE: Duration = Duration::from_millis(5);
/// What is kept of a failed program's words.
const SAID_BYTES_MAX: u64 = 64 * 1024;

type Order = (Command, Sender<io::Result<Child>>);

/// Starts a process from a thread that lives as long as the program.
///
/// A child that asked to die with its parent (`PR_SET_PDEATHSIG`) dies with the *thread* that started it, and threads
/// of a pool come and go.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        let work = move || {
            for (mut command, answer) in inbox {
                // Whoever asked may have gone; then the child ends when its handle is dropped here unseen.
                if let Err(unheard) = answer.send(command.spawn())
                    && let Ok(mut child) = unheard.0
                {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        };
        // Without this thread nothing can be started, and every order says so.
        let _ = std::thread::Builder::new().name("starter".to_owned()).spawn(work);
        Mutex::new(orders)
    });
    let (answer, heard) = channel();
    let gone = || io::Error::other("the thread that starts processes has ended");
    starter.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer)).map_err(|_| gone())?;
    heard.recv().map_err(|_| gone())?
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
    let mut child = spawn(command).map_err(|cause| failed(cause.to_string()))?;
    let (answering, listening) = (listen(child.stdout.take()), listen(child.stderr.take()));
    if let Some(mut stdin) = child.stdin.take() {
        // One that ended before it read says why itself.
        let _ = stdin.write_all(input);
    }
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|cause| failed(cause.to_string()))? {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(format!("it did not end within {} seconds", patience.as_secs())));
        }
        std::thread::sleep(PAUSE);
    };
    if status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(answering.join().unwrap_or_default());
    }
    let said = listening.join().unwrap_or_default();
    Err(failed(if said.is_empty() { status.to_string() } else { said }))
}

/// Reads to the side: a full pipe would stop the program.
fn listen(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = (&mut pipe).take(SAID_BYTES_MAX).read_to_end(&mut said);
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
        String::from_utf8_lossy(&said).trim().to_owned()
    })
}

/// The processes whose parent is this one, whichever of its threads started them.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
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
        let mut missing = Command::new("ls");
        missing.arg("/nowhere");
        let refused = run("ls", missing, Duration::from_secs(60)).unwrap_err().to_string();
        assert!(refused.contains("/nowhere"), "{refused}");
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
