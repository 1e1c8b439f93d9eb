//! The loop that asks running engines whether they answer, and has one started again that does not for long.
//!
//! An engine can live and be of no use: its socket is gone, or its first process is stopped or stuck. Nobody can sign in then, and
//! nothing else tells it apart from one that works.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::Run;
use model::{ClusterId, SilenceSeen};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Reconciler;
use crate::ticks::Ticks;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So often each is asked.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// For which one may not answer. A machine that is overloaded is no reason to end an engine.
const SILENT_MAX: Duration = Duration::from_secs(60);
/// So often is looked for what was said long enough: it looks at all clusters.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// For which it is said afterwards.
const SAID_FOR: time::Duration = time::Duration::hours(1);

/// What is known of one engine.
struct Asked {
    run: Run,
    asking: Option<JoinHandle<Result<(), engine::Error>>>,
    next: Instant,
    silent_since: Option<Instant>,
}

pub(crate) async fn run(house: &Arc<Reconciler>, stop: &CancellationToken) {
    let mut ticks = Ticks::every(LOOK_EVERY, stop);
    let mut all: HashMap<ClusterId, Asked> = HashMap::new();
    let mut next_forgetting = Instant::now();
    while ticks.next().await {
        if Instant::now() >= next_forgetting {
            next_forgetting = Instant::now() + FORGET_EVERY;
            forget_old(house).await;
        }
        all.retain(|id, asked| house.host.run(*id) == Some(asked.run));
        for id in house.host.running_clusters() {
            let Some(run) = house.host.run(id) else {
                continue;
            };
            let asked = all.entry(id).or_insert_with(|| Asked {
                run,
                asking: None,
                next: Instant::now(),
                silent_since: None,
            });
            asked.turn(house, id).await;
        }
    }
}

impl Asked {
    /// Takes the last answer, and asks again where it is time.
    async fn turn(&mut self, house: &Arc<Reconciler>, id: ClusterId) {
        if let Some(asking) = self.asking.take() {
            if !asking.is_finished() {
                self.asking = Some(asking);
                return;
            }
            match asking.await {
                Ok(Err(silent)) => {
                    let since = *self.silent_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= SILENT_MAX {
                        self.silent_since = None;
                        // In a task of its own: ending it takes some seconds.
                        tokio::spawn(start_again(house.clone(), id, silent.to_string()));
                    }
                }
                // One that broke off says nothing.
                Ok(Ok(())) | Err(_) => self.silent_since = None,
            }
        }
        if Instant::now() >= self.next {
            self.next = Instant::now() + ASK_EVERY;
            let host = house.host.clone();
            self.asking = Some(tokio::spawn(async move { host.answers(id).await }));
        }
    }
}

/// Ends an engine that does not answer; it is started again because the cluster is wished to run.
async fn start_again(house: Arc<Reconciler>, id: ClusterId, reason: String) {
    tracing::error!(cluster = %id, reason, "the engine does not answer any more: it is ended and started again");
    let seen = SilenceSeen { ended_at: house.now(), reason };
    if let Err(cause) = house.write(move |store| store.note(id, |now| now.silence = Some(seen))).await {
        tracing::warn!(cluster = %id, %cause, "could not write that an engine did not answer");
    }
    if let Err(cause) = house.host.stop_at_once(id).await {
        tracing::error!(cluster = %id, %cause, "an engine that does not answer could not be ended");
    }
}

/// Ends what was said long enough.
async fn forget_old(house: &Reconciler) {
    let now = house.now();
    let is_old = |silence: &SilenceSeen| now - silence.ended_at >= SAID_FOR;
    house.forget(|seen| seen.silence.as_ref().is_some_and(is_old), |seen| seen.silence = None).await;
}
