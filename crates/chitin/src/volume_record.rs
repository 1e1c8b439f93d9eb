//! What the sealed state says of clusters' volumes, for the host of the engines.

use std::sync::{Arc, OnceLock};

use model::{Checkpoint, ClusterId, Template, VolumeId};
use store::Store;

/// The record. It knows nothing, and so permits nothing, until the state is open.
#[derive(Default)]
pub struct VolumeRecord(OnceLock<Arc<Store>>);

impl VolumeRecord {
    /// Lets it look at the state. To be called once.
    pub fn connect(&self, store: Arc<Store>) {
        let _ = self.0.set(store);
    }

    fn store(&self) -> Result<&Store, String> {
        self.0.get().map(Arc::as_ref).ok_or_else(|| "the cloud is still starting".to_owned())
    }
}

impl engine::VolumeRecord for VolumeRecord {
    fn check(&self, id: ClusterId, found: VolumeId) -> Result<(), String> {
        let snapshot = self.store()?.snapshot();
        let entry = snapshot.get(&id).ok_or("the cloud's sealed state knows no such cluster")?;
        entry.seen.check_volume(found)
    }

    fn major(&self, id: ClusterId) -> Result<Option<u32>, String> {
        let snapshot = self.store()?.snapshot();
        let entry = snapshot.get(&id).ok_or("the cloud's sealed state knows no such cluster")?;
        Ok(entry.cluster.postgres_major(&entry.seen))
    }

    fn checkpoint(&self, id: ClusterId) -> Option<Checkpoint> {
        self.0.get()?.snapshot().get(&id)?.seen.volume.checkpoint
    }

    fn template(&self, major: u32) -> Result<Option<Template>, String> {
        self.store()?.template(major).map_err(|cause| cause.to_string())
    }

    fn keep_template(&self, major: u32, template: &Template) -> Result<(), String> {
        self.store()?.put_template(major, template).map_err(|cause| cause.to_string())
    }
}

impl std::fmt::Debug for VolumeRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VolumeRecord")
    }
}
