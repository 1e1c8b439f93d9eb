//! The threads of the program: as many as are always needed are there before anything is started that would have to be ended
//! again without them.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// Threads for what waits for the disk or for a program, kept for good. While the machine has no further thread, what needs one
/// waits for its turn on these.
const WAITING_MIN: usize = 8;
/// So many that are needed for a moment only, of which none may be lacking at the start.
const MOMENTARY: usize = 8;
/// Threads that nobody needs any more are kept: a limit that is reached later would keep their work waiting for good.
const KEPT_FOR: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);
/// For threads that were started to run.
const THERE_WITHIN: Duration = Duration::from_secs(30);
const TRIED_BYTES: usize = 64 * 1024;

/// There are too few threads to begin with.
#[derive(Debug, thiserror::Error)]
#[error(
    "the program could not start the {needed} threads that it begins with: {cause}; a limit on processes and threads is reached: \
     raise it (TasksMax= of a systemd unit, pids.max of a control group, ulimit -u of the user)"
)]
pub struct TooFew {
    needed: usize,
    cause: io::Error,
}

/// The runtime, with its threads.
pub fn runtime() -> Result<Runtime, TooFew> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let needed = workers + WAITING_MIN + MOMENTARY;
    // The runtime would break off where it lacks one.
    let too_few = |cause| TooFew { needed, cause };
    try_out(needed).map_err(too_few)?;
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(workers).thread_keep_alive(KEPT_FOR).enable_all().build();
    let runtime = runtime.map_err(too_few)?;
    let (hold, held) = channel::<()>();
    let (held, (here, arrived)) = (Arc::new(Mutex::new(held)), channel());
    for _ in 0..WAITING_MIN {
        let (held, here) = (held.clone(), here.clone());
        runtime.spawn_blocking(move || {
            // Whoever counts may have given up.
            let _ = here.send(());
            wait_for_end(&held);
        });
    }
    for _ in 0..WAITING_MIN {
        arrived.recv_timeout(THERE_WITHIN).map_err(|cause| too_few(io::Error::other(cause)))?;
    }
    drop(hold);
    Ok(runtime)
}

/// Returns when the other end of the channel is gone.
fn wait_for_end(held: &Mutex<Receiver<()>>) {
    let held = held.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = held.recv();
}

/// Whether so many threads can be had at once.
fn try_out(count: usize) -> io::Result<()> {
    let (hold, held) = channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let mut threads = Vec::with_capacity(count);
    let mut tried = Ok(());
    for _ in 0..count {
        let held = held.clone();
        match std::thread::Builder::new().stack_size(TRIED_BYTES).spawn(move || wait_for_end(&held)) {
            Ok(thread) => threads.push(thread),
            Err(cause) => {
                tried = Err(cause);
                break;
            }
        }
    }
    drop(hold);
    for thread in threads {
        // It only waited.
        let _ = thread.join();
    }
    tried
}
