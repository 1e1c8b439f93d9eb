//! What is seen of clusters from outside: what lies on the disk, what runs, and what the kernel says of it.

use std::path::PathBuf;

use model::ClusterId;

use super::{Host, blocking, lock};
use crate::{Error, Evidence, SearchReport, VolumeState, evidence, search, volume};

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

    /// The engine's socket, while it runs.
    pub fn socket(&self, id: ClusterId) -> Option<PathBuf> {
        self.running(id).ok().map(|running| self.places.socket(running.routing_id))
    }

    /// What the kernel says of the cluster's volume.
    pub fn volume_state(&self, id: ClusterId) -> Option<VolumeState> {
        let marker = self.places.read_marker(id)?;
        let folder = self.places.volume(id, marker.generation);
        Some(volume::state(&folder, marker.encryption, self.attestation.as_deref()))
    }

    /// What the kernel says of the running engine's sandbox.
    pub fn sandbox_evidence(&self, id: ClusterId) -> Result<Vec<Evidence>, Error> {
        let running = self.running(id)?;
        Ok(evidence::of(running.jailer, self.limits.is_some()))
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
