//! The trace that rejected API keys leave in the log: a line at once, then one in ten seconds for all that follow.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::Origin;
use tokio::time::sleep;

/// Between two lines.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Most addresses that are told apart between two lines.
const ADDRESSES_MAX: usize = 256;

/// Counts rejected keys.
#[derive(Default)]
pub(crate) struct Rejected(Mutex<Counted>);

/// What came since the last line.
#[derive(Default)]
struct Counted {
    is_waiting: bool,
    keys: u64,
    addresses: BTreeSet<IpAddr>,
}

impl Rejected {
    /// Notes a key that does not count. Never what it was: `name` is that of the key whose id it has, if there is one.
    pub(crate) fn note(self: &Arc<Self>, from: Option<&Origin>, name: Option<&str>) {
        {
            let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if counted.is_waiting {
                counted.keys += 1;
                if let Some(from) = from
                    && counted.addresses.len() < ADDRESSES_MAX
                {
                    counted.addresses.insert(from.address);
                }
                return;
            }
            counted.is_waiting = true;
        }
        let from = from.map_or_else(|| "operator socket".to_owned(), ToString::to_string);
        tracing::warn!(target: "audit", from, claimed = name.unwrap_or("unknown"), "an API key was rejected");
        let counts = self.clone();
        // Ends ten seconds after the last one.
        tokio::spawn(async move {
            loop {
                sleep(LINE_EVERY).await;
                let Counted { keys, addresses, .. } = counts.take();
                if keys == 0 {
                    return;
                }
                let addresses = addresses.len();
                tracing::warn!(target: "audit", keys, addresses, "more API keys were rejected within ten seconds");
            }
        });
    }

    /// What was counted; where that is nothing, the next one is told at once again.
    fn take(&self) -> Counted {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_waiting = counted.keys > 0;
        std::mem::replace(&mut *counted, Counted { is_waiting, ..Counted::default() })
    }
}
