//! Starting and ending processes that must not outlive us.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// How often an ending process is looked at.
const PAUSE: Duration = Duration::from_millis(5);

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

/// The processes whose parent is this one, whichever of its threads started them.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits until a process that is not our child is gone.
pub(crate) fn wait_gone(pid: u32, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let is_alive =
            i32::try_from(pid).ok().and_then(Pid::from_raw).is_some_and(|pid| test_kill_process(pid).is_ok());
        if !is_alive {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sleep", "30"]);
        let mut child = std::thread::spawn(move || spawn(command).unwrap()).join().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(child.try_wait().unwrap().is_none());
        assert!(children(std::process::id()).contains(&child.id()));
        signal(child.id(), Signal::KILL);
        child.wait().unwrap();
        assert!(wait_gone(child.id(), Duration::from_secs(1)));
    }
}
