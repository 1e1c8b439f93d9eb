//! The loop that looks whether the volumes of running engines are as they were unlocked, and tells what became of one that is not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use engine::{Host, Look, Looked};
use model::ClusterId;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Reconciler;
use crate::ticks::Ticks;

/// What happens to a volume is noticed within this.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A volume that has not answered for so long is told.
const SLOW: Duration = Duration::from_secs(6);
/// For a volume to answer. A machine that is overloaded is no reason to end an engine.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// For the volume of an engine that died to say whether it was the reason.
const REASON_MAX: Duration = Duration::from_secs(2);
const REASON_PAUSE: Duration = Duration::from_millis(10);
/// For sessions that were cut to have heard why.
const LEAVE_MAX: Duration = Duration::from_secs(1);

pub(crate) async fn run(house: &Arc<Reconciler>, stop: &CancellationToken) {
    let mut ticks = Ticks::every(LOOK_EVERY, stop);
    let mut looks: HashMap<ClusterId, Look> = HashMap::new();
    let mut warned: HashSet<ClusterId> = HashSet::new();
    let mut slow: HashSet<ClusterId> = HashSet::new();
    while ticks.next().await {
        // One after the other only by their answers: each is looked at in a thread of its own.
        let mut waiting = HashMap::new();
        for (id, look) in looks.drain() {
            match house.host.see(look, ANSWER_MAX) {
                Looked::Waiting(look) => {
                    if look.age() >= SLOW && slow.insert(id) {
                        let (seconds, until) = (look.age().as_secs(), ANSWER_MAX.as_secs());
                        tracing::error!(
                            cluster = %id, seconds,
                            "the cluster's volume does not answer; its engine is ended when it has not after {until} seconds"
                        );
                    }
                    waiting.insert(id, look);
                }
                Looked::Well => {
                    warned.remove(&id);
                    if slow.remove(&id) {
                        tracing::info!(cluster = %id, "the cluster's volume answers again, or its engine was stopped");
                    }
                }
                Looked::Warned(reason) => {
                    if warned.insert(id) {
                        tracing::error!(cluster = %id, %reason, "the cluster's volume must be looked at");
                    }
                }
                Looked::Lost(reason) => tell_lost(id, &reason),
            }
        }
        looks = waiting;
        for id in house.host.running_clusters() {
            if !looks.contains_key(&id)
                && let Some(look) = house.host.look_at_volume(id)
            {
                looks.insert(id, look);
            }
        }
        warned.retain(|id| looks.contains_key(id));
        slow.retain(|id| looks.contains_key(id));
    }
}

fn tell_lost(id: ClusterId, reason: &str) {
    tracing::error!(cluster = %id, reason, "the cluster's volume is lost");
}

/// Whether the volume is why the engine does not work, for whoever buries it.
pub(crate) async fn reason(host: &Host, id: ClusterId) -> Option<String> {
    let until = Instant::now() + REASON_MAX;
    let mut look = host.look_at_volume(id);
    while let Some(begun) = look.take() {
        match host.see(begun, ANSWER_MAX) {
            Looked::Waiting(begun) if Instant::now() < until => {
                sleep(REASON_PAUSE).await;
                look = Some(begun);
            }
            Looked::Lost(reason) => tell_lost(id, &reason),
            Looked::Waiting(_) | Looked::Well | Looked::Warned(_) => {}
        }
    }
    host.lost(id)
}

/// Ends the cluster's sessions with the reason, and waits a moment for them to hear it.
pub(crate) async fn tell_sessions(house: &Reconciler, id: ClusterId) {
    house.sessions.cut_for_lost_volume(id);
    let left = async {
        while house.sessions.count(id) > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = timeout(LEAVE_MAX, left).await;
}
