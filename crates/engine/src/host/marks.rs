//! What each cluster's folder says of the state at that time, so that a state that was put back from an older copy is noticed.

use model::{ClusterId, RoutingId};
use serde::{Deserialize, Serialize};

use super::Host;
use crate::Error;
use crate::inside::Inside;

/// The file beside the marker. Nobody but us writes it, and nothing is decided by it but whether to raise an alarm.
const MARK: &str = "state.json";

/// How far the state had come when it was last marked in a cluster's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMark {
    /// Transactions of the state by then.
    pub commits: u64,
    /// The revision of the cluster's document by then.
    pub revision: u64,
}

/// A cluster's folder, as it tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDisk {
    /// Which cluster.
    pub id: ClusterId,
    /// Its routing id, where it was made whole.
    pub routing_id: Option<RoutingId>,
    /// How far the state had come; `None` in folders of earlier versions of the program.
    pub mark: Option<StateMark>,
}

impl Host {
    /// What the folders of all clusters on the disk tell of the state.
    pub fn marks(&self) -> Vec<OnDisk> {
        let of = |id| {
            let mark = Inside::at(&self.places.cluster(id)).ok().and_then(|folder| folder.read_bytes(MARK));
            OnDisk {
                id,
                routing_id: self.places.read_marker(id).map(|marker| marker.routing_id),
                mark: mark.and_then(|text| serde_json::from_slice(&text).ok()),
            }
        };
        self.on_disk().into_iter().map(of).collect()
    }

    /// Marks in the cluster's folder how far the state has come. Nothing where the cluster is not made yet.
    pub fn mark(&self, id: ClusterId, mark: StateMark) -> Result<bool, Error> {
        if self.places.read_marker(id).is_none() {
            return Ok(false);
        }
        let path = self.places.cluster(id).join(MARK);
        let known = Inside::at(&self.places.cluster(id)).ok().and_then(|folder| folder.read_bytes(MARK));
        let known: Option<StateMark> = known.and_then(|text| serde_json::from_slice(&text).ok());
        // A mark that is ahead is what shows that the state is older, now and at the next start.
        if known.is_some_and(|known| known.commits > mark.commits || known.revision > mark.revision) {
            return Ok(true);
        }
        let text = serde_json::to_vec(&mark).map_err(|cause| Error::Unready(cause.to_string()))?;
        keys::write_atomically(&path, &text)?;
        Ok(true)
    }
}
