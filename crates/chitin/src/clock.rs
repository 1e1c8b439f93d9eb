//! Notices that the machine's clock was set, at once: what holds for a span of time is looked at again then.
//!
//! The kernel says it through a timer that is cancelled when the clock is set (`TFD_TIMER_CANCEL_ON_SET`). Beside that the
//! clock is compared with the one that nobody sets every second, for kernels and containers that do not say it.

use std::sync::Arc;
use std::time::Duration;

use model::Clock;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the two clocks are compared.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A difference from here on is a clock that was set; less is one that is led to the right time (NTP slews).
const STEP_MIN: time::Duration = time::Duration::seconds(1);
/// Between two answers of the kernel, so that whoever sets the clock in a loop does not keep us busy.
const PAUSE: Duration = Duration::from_millis(100);
/// Two clocks are read beside each other this often, until nothing came between.
const READINGS_MAX: usize = 8;
/// Readings that lie further apart are no comparison.
const APART_MAX: time::Duration = time::Duration::milliseconds(50);

/// Tells its listeners when the clock was set.
pub struct ClockWatch {
    clock: Arc<dyn Clock>,
    jumps: watch::Sender<u64>,
}

impl ClockWatch {
    /// Watches this clock, from [`Self::run`] on.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, jumps: watch::Sender::new(0) })
    }

    /// Changes whenever the clock was set.
    pub fn jumps(&self) -> watch::Receiver<u64> {
        self.jumps.subscribe()
    }

    /// Watches until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut alarm = match SetAlarm::new() {
            Ok(alarm) => Some(alarm),
            Err(cause) => {
                tracing::warn!(%cause, "the kernel does not tell when the clock is set; it is looked at every second");
                None
            }
        };
        let mut known = self.ahead();
        loop {
            let was_told = tokio::select! {
                () = stop.cancelled() => return,
                told = next(alarm.as_ref()) => {
                    if let Err(cause) = &told {
                        tracing::warn!(%cause, "the kernel no longer tells when the clock is set; it is looked at every second");
                        alarm = None;
                    }
                    told.is_ok()
                }
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let ahead = self.ahead();
            let by = ahead.zip(known).map_or(time::Duration::ZERO, |(ahead, known)| ahead - known);
            known = ahead.or(known);
            let is_step = by.abs() >= STEP_MIN;
            if is_step {
                let direction = if by.is_negative() { "back" } else { "forward" };
                tracing::warn!(
                    now = %self.clock.now(), seconds = by.whole_seconds(), was_told,
                    "the machine's clock was set {direction}: what holds for a span of time is looked at again"
                );
            }
            if is_step || was_told {
                self.jumps.send_modify(|count| *count += 1);
            }
            if was_told {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// How far the clock is ahead of the one that nobody sets, which runs on while the machine sleeps. `None` where the two
    /// could not be read at one moment.
    fn ahead(&self) -> Option<time::Duration> {
        (0..READINGS_MAX).find_map(|_| {
            let before = since_boot();
            let wall = self.clock.now() - time::OffsetDateTime::UNIX_EPOCH;
            let apart = since_boot() - before;
            (apart <= APART_MAX).then(|| wall - before)
        })
    }
}

impl std::fmt::Debug for ClockWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClockWatch")
    }
}

fn since_boot() -> time::Duration {
    let now = clock_gettime(ClockId::Boottime);
    time::Duration::new(now.tv_sec, i32::try_from(now.tv_nsec).unwrap_or(0))
}

async fn next(alarm: Option<&SetAlarm>) -> Result<(), Errno> {
    match alarm {
        Some(alarm) => alarm.next().await,
        None => std::future::pending().await,
    }
}

/// A timer of the kernel that never rings, and is cancelled when somebody sets the clock.
struct SetAlarm(AsyncFd<OwnedFd>);

impl SetAlarm {
    fn new() -> Result<Self, Errno> {
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        arm(&timer)?;
        #[expect(
            deprecated,
            reason = "what took its place cannot be called from safe code; the descriptor is owned here until the end"
        )]
        let watched = AsyncFd::with_interest(timer, Interest::READABLE);
        Ok(Self(watched.map_err(|cause| Errno::from_io_error(&cause).unwrap_or(Errno::IO))?))
    }

    /// Waits until the clock is set.
    async fn next(&self) -> Result<(), Errno> {
        loop {
            let mut ready = self.0.readable().await.map_err(|_| Errno::IO)?;
            match rustix::io::read(self.0.get_ref(), &mut [0; 8]) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                // Cancelled, or rung because the clock was set beyond its end.
                Err(Errno::CANCELED) | Ok(_) => {
                    ready.clear_ready();
                    return arm(self.0.get_ref());
                }
                Err(other) => return Err(other),
            }
        }
    }
}

fn arm(timer: &OwnedFd) -> Result<(), Errno> {
    let never = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: i64::MAX, tv_nsec: 0 },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    match timerfd_settime(timer, flags, &never) {
        // The clock was set since: the next reading says it.
        Ok(_) | Err(Errno::CANCELED) => Ok(()),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::testing::Turned;

    #[tokio::test]
    async fn a_clock_that_is_set_is_told_in_both_directions_and_one_that_is_not_is_quiet() {
        let clock = Arc::new(Turned(AtomicI64::new(0)));
        let (watch, stop) = (ClockWatch::new(clock.clone()), CancellationToken::new());
        let mut jumps = watch.jumps();
        let watching = tokio::spawn(watch.clone().run(stop.clone()));
        tokio::time::sleep(3 * LOOK_EVERY).await;
        assert!(!jumps.has_changed().unwrap(), "nobody set it");
        for seconds in [365 * 86_400, 0, -5, 0] {
            clock.0.store(seconds, Ordering::Relaxed);
            tokio::time::timeout(Duration::from_secs(60), jumps.changed()).await.unwrap().unwrap();
        }
        stop.cancel();
        watching.await.unwrap();
    }

    /// Nobody may set the clock of the machine that tests run on, so this is how far the kernel is asked: the timer is
    /// accepted, armed for ever, and says nothing by itself.
    #[tokio::test]
    async fn the_kernel_s_timer_is_armed_for_ever_and_says_nothing_by_itself() {
        let alarm = SetAlarm::new().unwrap();
        let armed = rustix::time::timerfd_gettime(alarm.0.get_ref()).unwrap();
        assert!(armed.it_value.tv_sec > 100 * 365 * 86_400, "{armed:?}");
        assert!(tokio::time::timeout(Duration::from_millis(300), alarm.next()).await.is_err());
        assert_eq!(rustix::io::read(alarm.0.get_ref(), &mut [0; 8]), Err(Errno::AGAIN));
    }
}
