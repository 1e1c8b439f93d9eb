//! Waiting for an engine that was started.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{Host, blocking};
use crate::running::Running;
use crate::{Error, postmaster_pid};

/// For an engine to be ready after it was started; crash recovery of a large cluster takes longest.
const START_MAX: Duration = Duration::from_secs(120);
/// Between two looks at whether it is, at first and once it takes longer than usual.
const READY_PAUSE: Duration = Duration::from_millis(2);
const READY_SOON: Duration = Duration::from_secs(1);
const READY_PAUSE_LATER: Duration = Duration::from_millis(25);

impl Host {
    /// Waits until the engine says that it takes sessions. It is not asked: each try before it is ready costs it a process.
    pub(super) async fn wait_ready(&self, running: &Running, base: &Path) -> Result<(), Error> {
        let (begun, deadline) = (Instant::now(), Instant::now() + START_MAX);
        loop {
            if running.has_exited() {
                return Err(Error::Unready("it ended while starting".to_owned()));
            }
            if running.lost().is_some() {
                return Err(Error::Unready("its volume was lost while it started".to_owned()));
            }
            let place = base.to_owned();
            let look = blocking(move || Ok(postmaster_pid::is_ready(&place)));
            let looked = tokio::select! {
                looked = timeout_at(deadline, look) => looked,
                () = running.ended() => continue,
            };
            match looked {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) if Instant::now() < deadline => {
                    let is_soon = begun.elapsed() < READY_SOON;
                    sleep(if is_soon { READY_PAUSE } else { READY_PAUSE_LATER }).await;
                }
                Ok(Err(broken)) => return Err(broken),
                Ok(Ok(false)) | Err(_) => {
                    let late = format!("it was not ready within {} seconds", START_MAX.as_secs());
                    return Err(Error::Unready(late));
                }
            }
        }
    }
}
