//! What happens to volumes while their engines run is noticed: each is looked at, and one that is lost is not counted on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::ClusterId;
use tokio::sync::oneshot;

use super::{Host, lock};
use crate::running::Running;
use crate::volume::{self, Trouble};

/// Of the stack of a thread that looks at a volume.
const LOOKER_BYTES: usize = 128 << 10;

/// A look at one volume that is under way. What serves the volume may not answer, so nobody waits for it.
#[derive(Debug)]
pub struct Look {
    running: Arc<Running>,
    begun: Instant,
    answer: oneshot::Receiver<Result<(), Trouble>>,
}

impl Look {
    /// How long the volume has not answered.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// What a look has come to.
#[derive(Debug)]
pub enum Looked {
    /// It is still under way.
    Waiting(Look),
    /// The volume is as it was unlocked, or its engine was stopped meanwhile.
    Well,
    /// It works, and somebody must look at it.
    Warned(String),
    /// It is lost: from now on the engine does not count as running, and is to be stopped.
    Lost(String),
}

impl Host {
    /// Clusters whose engines run.
    pub fn running_clusters(&self) -> Vec<ClusterId> {
        let ids: Vec<ClusterId> = lock(&self.slots).keys().copied().collect();
        ids.into_iter().filter(|id| self.is_running(*id)).collect()
    }

    /// Begins to look at the volume of an engine that runs, or that has died and was not stopped yet. None where there is none,
    /// and where the volume is known to be lost.
    pub fn look_at_volume(&self, id: ClusterId) -> Option<Look> {
        let slot = lock(&self.slots).get(&id).cloned()?;
        let running = lock(&slot.running).clone().filter(|running| running.lost().is_none())?;
        let base = lock(&running.volume).as_ref()?.base.clone();
        let (folder, kind) = (self.places.volume(id, running.on.generation), running.on.encryption);
        let (told, answer) = oneshot::channel();
        let look = move || {
            let look = || volume::look(&folder, &base, kind);
            let mut found = look();
            if found.is_err() {
                if std::io::pipe().is_err() {
                    // With no descriptor left nothing was looked at, which says nothing about the volume.
                    return;
                }
                found = look();
            }
            // Whoever asked may have stopped listening.
            let _ = told.send(found);
        };
        let looker = std::thread::Builder::new().name("volume-look".to_owned()).stack_size(LOOKER_BYTES);
        looker.spawn(look).ok()?;
        Some(Look { running, begun: Instant::now(), answer })
    }

    /// Whether the look has an answer, and which. One that takes longer than `patience` has one too: whatever serves the volume
    /// does not answer.
    pub fn see(&self, mut look: Look, patience: Duration) -> Looked {
        let found = match look.answer.try_recv() {
            Ok(found) => found,
            Err(oneshot::error::TryRecvError::Empty) if look.begun.elapsed() < patience => {
                return Looked::Waiting(look);
            }
            Err(oneshot::error::TryRecvError::Empty) => {
                Err(Trouble::Lost(format!("it has not answered for {} seconds", patience.as_secs())))
            }
            Err(oneshot::error::TryRecvError::Closed) => return Looked::Well,
        };
        match found {
            Ok(()) => Looked::Well,
            // It was being stopped while it was looked at.
            Err(_) if look.running.is_stopping() => Looked::Well,
            Err(Trouble::Warned(reason)) => Looked::Warned(reason),
            Err(Trouble::Lost(reason)) => {
                look.running.lose(&reason);
                // Nobody listening means that nobody is left to act on it.
                let _ = self.deaths.send(look.running.id);
                Looked::Lost(reason)
            }
        }
    }

    /// Why the cluster's volume was lost, while what is left of its engine waits to be stopped.
    pub fn lost(&self, id: ClusterId) -> Option<String> {
        let slot = lock(&self.slots).get(&id).cloned()?;
        let running = lock(&slot.running).clone()?;
        running.lost()
    }
}
