//! What is seen of clusters from outside: what lies on the disk, what runs, and what the kernel says of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::{Checkpoint, ClusterId};

use super::{Host, blocking, lock};
use crate::cgroup::Group;
use crate::control_file;
use crate::inside::Inside;
use crate::jail::{self, Purpose};
use crate::places::Owner;
use crate::process;
use crate::running::{Run, Running};
use crate::{
    Administration, Capability, Connector, Error, Evidence, MemoryKills, SearchReport, VolumeState, evidence,
    search, volume,
};

/// For everything that is tried in a sandbox.
const PROBE_MAX: Duration = Duration::from_secs(20);

impl Host {
    /// Clusters that have anything on the disk.
    pub fn on_disk(&self) -> Vec<ClusterId> {
        let names = Inside::at(&self.places.clusters()).and_then(|clusters| clusters.names());
        names.unwrap_or_default().iter().filter_map(|name| name.to_str()?.parse().ok()).collect()
    }

    /// Whether the cluster's folder says that it was made whole, also where that cannot be read.
    pub fn is_made(&self, id: ClusterId) -> bool {
        self.places.has_marker(id)
    }

    /// Whether the engine runs.
    pub fn is_running(&self, id: ClusterId) -> bool {
        self.running(id).is_ok()
    }

    /// Whether a running engine answers who wants to open a session, within a few seconds. One that is just being started, and one
    /// that does not run, is not asked.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub async fn answers(&self, id: ClusterId) -> Result<(), Error> {
        let Ok(running) = self.running(id) else {
            return Ok(());
        };
        if !running.is_settled.load(Ordering::SeqCst) || running.is_stopping() {
            return Ok(());
        }
        let answered = Administration::answers(&running.connector).await;
        // It may have ended, or been stopped, while it was asked.
        if running.has_exited() || running.is_stopping() { Ok(()) } else { answered }
    }

    /// What opens connections to this run of the engine, while it runs.
    pub fn connector(&self, id: ClusterId) -> Option<Arc<Connector>> {
        self.running(id).ok().map(|running| running.connector.clone())
    }

    /// Tells from now on whether the kernel ends processes of this run of the engine because its memory is used up.
    pub fn memory_kills(&self, id: ClusterId) -> Option<MemoryKills> {
        self.running(id).ok().map(|running| Group::watch_memory(running.group.as_ref()))
    }

    /// How often the kernel ended processes of the running engine because its memory was used up, since it was started.
    pub fn memory_kills_of_run(&self, id: ClusterId) -> Option<(Run, u64)> {
        self.running(id).ok().map(|running| (running.run, running.memory_kills.count()))
    }

    /// What the kernel says of the cluster's volume.
    pub fn volume_state(&self, id: ClusterId) -> Option<VolumeState> {
        let on = match self.running(id) {
            // What it was started on; the folder may say something else by now.
            Ok(running) => running.on,
            Err(_) => self.places.read_marker(id)?.volume(),
        };
        let folder = self.places.volume(id, on.generation);
        let mut state = volume::state(&folder, on.encryption, self.attestation.as_deref());
        if let Err(refused) = self.check_volume(id) {
            (state.is_proven, state.evidence) = (false, format!("{refused}; {}", state.evidence));
        }
        Some(state)
    }

    /// The folder of the volume that counts: of a running engine the one that it was started on, whatever the cluster's folder says by
    /// now.
    pub(super) fn current_volume(&self, id: ClusterId) -> Result<PathBuf, Error> {
        if let Ok(running) = self.running(id) {
            return Ok(self.places.volume(id, running.on.generation));
        }
        self.places.current_volume(id)
    }

    /// Whether the folder of a cluster that was completely made names the volume that is on record.
    pub fn check_volume(&self, id: ClusterId) -> Result<(), Error> {
        let none = || {
            Error::VolumeRefused {
            reason: "complete.json, which names the cluster's volume, is not there or cannot be read: put it back from a backup \
                     before Chitin starts again"
                .to_owned(),
        }
        };
        self.marker(id)?.map(drop).ok_or_else(none)
    }

    /// Up to where everything is on the disk: of a running engine now, of one that was stopped then. The files are the
    /// engine's, and reading them may take as long as it likes.
    pub fn checkpoint(&self, id: ClusterId) -> Option<Checkpoint> {
        let slot = lock(&self.slots).get(&id).cloned()?;
        let Ok(running) = self.running(id) else {
            return *lock(&slot.checkpoint);
        };
        let base = lock(&running.volume).as_ref()?.base.clone();
        control_file::checkpoint(&base).ok()
    }

    /// What the kernel says of the running engine's sandbox.
    pub async fn sandbox_evidence(self: &Arc<Self>, id: ClusterId) -> Result<Vec<Evidence>, Error> {
        let running = self.running(id)?;
        let looked = running.clone();
        let mut found = blocking(move || Ok(evidence::of(looked.jailer, looked.group.as_ref()))).await?;
        found.push(evidence::own_socket(&running.connector).await);
        let (host, companion) = (self.clone(), self.companion.clone());
        let folder = self.places.volume(id, running.on.generation);
        found.push(blocking(move || Ok(evidence::companion(&companion.knows(&folder)))).await?);
        found.extend(blocking(move || host.probe_sandbox(&running)).await?);
        Ok(found)
    }

    /// Whether a process is there that locks everything if this one is killed.
    pub fn companion(&self) -> Capability {
        match self.companion.standing() {
            Ok(pid) => {
                Capability::Present { how: format!("process {pid} locks every volume if Chitin is killed") }
            }
            Err(why) => Capability::Missing {
                why: format!(
                    "{why}; were Chitin killed now, volumes would stay unlocked until its next start"
                ),
                next_step: "it is started again by itself, and nothing is unlocked before; see the log"
                    .to_owned(),
            },
        }
    }

    /// Ends the companion, for a program that ends. Whoever unlocks a volume after this starts it again.
    pub async fn close(self: &Arc<Self>) {
        self.shutdown().await;
        let companion = self.companion.clone();
        let closed = blocking(move || {
            companion.close();
            Ok(())
        });
        if let Err(cause) = closed.await {
            tracing::warn!(%cause, "the companion was not waited for");
        }
    }

    /// Makes a sandbox as the engine's in every respect but what lies in it, and has tried from inside what must not be possible.
    fn probe_sandbox(&self, running: &Running) -> Result<Vec<Evidence>, Error> {
        let owner = Owner::of_routing_id(running.routing_id);
        let tried = jail::with_nothing_in_it(&self.places, owner, |[volume, run, etc]| {
            let jail = self.jail(&running.postgres, (owner, volume), (run, etc), running.group.as_ref());
            let probe = jail.command(Purpose::Probe, "", &[])?;
            process::run_with("the probe", probe, &[], PROBE_MAX)
        })?;
        Ok(evidence::of_probe(&tried))
    }

    /// Searches the raw bytes below the encryption for a text.
    pub async fn search(&self, id: ClusterId, needle: &str) -> Result<SearchReport, Error> {
        let running = self.running(id)?;
        let on = running.on;
        let base = lock(&running.volume).as_ref().ok_or(Error::Asleep)?.base.clone();
        let (folder, needle) = (self.places.volume(id, on.generation), needle.as_bytes().to_vec());
        blocking(move || search::search(&folder, &base, on.encryption, &needle)).await
    }
}
