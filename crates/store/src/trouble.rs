//! What is wrong with the state itself, for whoever shows it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::{Clock, SystemClock};
use time::OffsetDateTime;

/// Kinds of trouble with the state; at a time there is one of each at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TroubleKind {
    /// The file is not where it was: what would be written now would be lost at the next start. Nothing is written.
    Removed,
    /// It could not be written a moment ago, or since; it is opened again and again until it can.
    Unwritable,
    /// Clusters on the disk are newer than it: it is an older one, put back.
    Older,
    /// Its file system is nearly full: changes that make it grow are refused.
    Full,
}

impl TroubleKind {
    /// What that means, in one sentence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Removed => "the state was removed or replaced while it is in use, and nothing is written",
            Self::Unwritable => {
                "the state could not be written: who is known signs in, what runs goes on, and it is tried again"
            }
            Self::Older => "the state is older than what lies on the disk",
            Self::Full => {
                "the file system of the state is nearly full, and changes that make the state grow are refused"
            }
        }
    }
}

/// Something that is wrong with the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What kind.
    pub kind: TroubleKind,
    /// Since when.
    pub since: OffsetDateTime,
    /// What exactly.
    pub reason: String,
}

/// What is wrong now.
#[derive(Default)]
pub(crate) struct Troubles(Mutex<BTreeMap<TroubleKind, Trouble>>);

impl Troubles {
    /// Says that there is this trouble, or none of this kind. The log hears of the beginning and of the end.
    pub(crate) fn set(&self, kind: TroubleKind, reason: Option<String>) {
        let mut known = self.known();
        match (known.get_mut(&kind), reason) {
            (None, None) => {}
            (Some(trouble), Some(reason)) => trouble.reason = reason,
            (None, Some(reason)) => {
                let what = kind.as_str();
                match kind {
                    TroubleKind::Full => tracing::warn!(reason, "{what}"),
                    TroubleKind::Removed | TroubleKind::Unwritable | TroubleKind::Older => {
                        tracing::error!(reason, "{what}");
                    }
                }
                let since = SystemClock.now();
                known.insert(kind, Trouble { kind, since, reason });
            }
            (Some(trouble), None) => {
                tracing::info!(?kind, since = %trouble.since, "the state is well again");
                known.remove(&kind);
            }
        }
    }

    pub(crate) fn has(&self, kind: TroubleKind) -> bool {
        self.known().contains_key(&kind)
    }

    pub(crate) fn all(&self) -> Vec<Trouble> {
        self.known().values().cloned().collect()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<TroubleKind, Trouble>> {
        // Single inserts and removals.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
