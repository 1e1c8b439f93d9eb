//! What the sealed state says of clusters' volumes, for the host of the engines.

use std::sync::{Arc, OnceLock};

use model::{Checkpoint, ClusterId, VolumeId};
use store::Store;

/// The record. It knows nothing, and so permits nothing, until the state is open.
#[derive(Default)]
pub struct VolumeRecord(OnceLock<Arc<Store>>);

impl VolumeRecord {
    /// Lets it look at the state. To be called once.
    pub fn connect(&self, store: Arc<Store>) {
        let _ = self.0.set(store);
    }
}

impl engine::VolumeRecord for VolumeRecord {
    fn check(&self, id: ClusterId, found: VolumeId) -> Result<(), String> {
        let store = self.0.get().ok_or("the cloud is still starting")?;
        let snapshot = store.snapshot();
        let entry = snapshot.get(&id).ok_or("the cloud's sealed state knows no such cluster")?;
        entry.seen.check_volume(found)
    }

    fn checkpoint(&self, id: ClusterId) -> Option<Checkpoint> {
        self.0.get()?.snapshot().get(&id)?.seen.volume.checkpoint
    }
}

impl std::fmt::Debug for VolumeRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VolumeRecord")
    }
}
