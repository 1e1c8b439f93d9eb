//! What is seen of clusters from outside: what lies on the disk, what runs, and what the kernel says of it.

use std::sync::Arc;

use model::ClusterId;

use super::{Host, blocking, lock};
use crate::{Connector, Error, Evidence, SearchReport, VolumeState, evidence, search, volume};

impl Host {
    /// Clusters that have anything on the disk.
    pub fn on_disk(&self) -> Vec<ClusterId> {
        let entries = std::fs::read_dir(self.places.clusters()).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Whether the engine runs.
    pub fn is_running(&self, id: ClusterId) -> bool {
        self.running(id).is_ok()
    }

    /// What opens connections to this run of the engine, while it runs.
    pub fn connector(&self, id: ClusterId) -> Option<Arc<Connector>> {
        self.running(id).ok().map(|running| running.connector.clone())
    }

    /// What the kernel says of the cluster's volume.
    pub fn volume_state(&self, id: ClusterId) -> Option<VolumeState> {
        let marker = self.places.read_marker(id)?;
        let folder = self.places.volume(id, marker.generation);
        Some(volume::state(&folder, marker.encryption, self.attestation.as_deref()))
    }

    /// What the kernel says of the running engine's sandbox.
    pub async fn sandbox_evidence(&self, id: ClusterId) -> Result<Vec<Evidence>, Error> {
        let running = self.running(id)?;
        let (jailer, has_limits) = (running.jailer, self.limits.is_some());
        let mut found = blocking(move || Ok(evidence::of(jailer, has_limits))).await?;
        found.push(evidence::own_socket(&running.connector).await);
        Ok(found)
    }

    /// Searches the raw bytes below the encryption for a text.
    pub async fn search(&self, id: ClusterId, needle: &str) -> Result<SearchReport, Error> {
        let marker = self.places.read_marker(id).ok_or(Error::Asleep)?;
        let running = self.running(id)?;
        let base = lock(&running.volume).as_ref().ok_or(Error::Asleep)?.base.clone();
        let (folder, needle) = (self.places.volume(id, marker.generation), needle.as_bytes().to_vec());
        blocking(move || search::search(&folder, &base, marker.encryption, &needle)).await
    }
}
