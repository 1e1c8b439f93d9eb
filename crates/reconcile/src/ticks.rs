//! The pace of a loop that looks again and again until it is told to stop.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Looks that are due: the first at once, and none made up for after one that took long.
pub(crate) struct Ticks<'a> {
    interval: Interval,
    stop: &'a CancellationToken,
}

impl<'a> Ticks<'a> {
    pub(crate) fn every(pause: Duration, stop: &'a CancellationToken) -> Self {
        let mut interval = interval(pause);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, stop }
    }

    /// Waits until the next look is due; false when there is to be none any more.
    pub(crate) async fn next(&mut self) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            _ = self.interval.tick() => true,
        }
    }
}
