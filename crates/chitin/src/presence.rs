//! Who is using a cluster: SQL sessions at the gateway, and errands that the API runs on its engine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use gateway::{Cut, SessionFacts};
use keys::client::Verified;
use model::ClusterId;

/// Counts both kinds. The gateway is joined later, because it is built from parts that already ask.
#[derive(Default)]
pub struct Presence {
    gateway: OnceLock<Arc<gateway::Sessions>>,
    errands: Mutex<HashMap<ClusterId, Errands>>,
}

#[derive(Clone, Copy, Default)]
struct Errands {
    count: usize,
    last_end: Option<Instant>,
}

/// While it lives, its cluster is in use and does not go to sleep by itself.
pub struct Errand {
    presence: Arc<Presence>,
    cluster: ClusterId,
}

impl Presence {
    /// Joins the gateway's sessions. The first call counts.
    pub fn join(&self, sessions: Arc<gateway::Sessions>) {
        let _ = self.gateway.set(sessions);
    }

    /// Begins an errand.
    pub fn errand(self: &Arc<Self>, cluster: ClusterId) -> Errand {
        self.errands().entry(cluster).or_default().count += 1;
        Errand { presence: self.clone(), cluster }
    }

    /// SQL sessions of the cluster.
    pub fn sessions(&self, cluster: ClusterId) -> usize {
        self.gateway.get().map_or(0, |sessions| sessions.count(cluster))
    }

    /// Ends the SQL sessions for which the verdict is a reason.
    pub fn cut(&self, verdict: impl Fn(&SessionFacts) -> Option<Cut>) -> usize {
        self.gateway.get().map_or(0, |sessions| sessions.cut(verdict))
    }

    /// Whether there is a SQL session for which this holds.
    pub fn any(&self, holds: impl Fn(&SessionFacts) -> bool) -> bool {
        self.gateway.get().is_some_and(|sessions| sessions.any(holds))
    }

    /// Every SQL session that stands on a certificate.
    pub fn certificates(&self) -> Vec<(ClusterId, Arc<Verified>)> {
        self.gateway.get().map_or_else(Vec::new, |sessions| sessions.certificates())
    }

    /// Forgets clusters that are gone.
    pub fn retain(&self, exists: impl Fn(&ClusterId) -> bool) {
        self.errands().retain(|id, errands| errands.count > 0 || exists(id));
    }

    fn errands(&self) -> MutexGuard<'_, HashMap<ClusterId, Errands>> {
        // Counts change in one step each, so a panic elsewhere leaves them right.
        self.errands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl reconcile::Sessions for Presence {
    fn count(&self, cluster: ClusterId) -> usize {
        let errands = self.errands().get(&cluster).map_or(0, |errands| errands.count);
        errands + self.sessions(cluster)
    }

    fn idle_since(&self, cluster: ClusterId) -> Option<Instant> {
        let errand = self.errands().get(&cluster).and_then(|errands| errands.last_end);
        let session = self.gateway.get().and_then(|sessions| sessions.idle_since(cluster));
        errand.max(session)
    }

    fn cut_for_lost_volume(&self, cluster: ClusterId) {
        self.cut(|facts| (facts.cluster == cluster).then_some(Cut::VolumeLost));
    }

    fn take_used_up(&self) -> HashMap<ClusterId, Instant> {
        self.gateway.get().map(|sessions| sessions.take_used_up()).unwrap_or_default()
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        if let Some(errands) = self.presence.errands().get_mut(&self.cluster) {
            errands.count = errands.count.saturating_sub(1);
            errands.last_end = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use reconcile::Sessions;

    use super::*;

    #[test]
    fn an_errand_counts_until_it_ends_and_then_begins_the_idle_time() {
        let presence = Arc::new(Presence::default());
        let id = ClusterId::random();
        let (one, two) = (presence.errand(id), presence.errand(id));
        drop(one);
        assert_eq!(presence.count(id), 1);
        drop(two);
        assert_eq!(presence.count(id), 0);
        assert!(presence.idle_since(id).is_some());
        presence.retain(|_| false);
        assert!(presence.idle_since(id).is_none());
    }
}
