//! Answers of responders, by cluster, certificate and responder. Bounded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use keys::client::Step;
use keys::ocsp::Answer;
use model::ClusterId;
use time::OffsetDateTime;

/// One certificate, one responder, on behalf of one cluster: what one customer's responder says is not believed about
/// another's certificates.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    cluster: ClusterId,
    /// SHA-256 of the certificate and its issuer's: a serial number counts only beside its issuer.
    step: [u8; 32],
    responder: String,
}

impl Key {
    pub(super) fn new(cluster: ClusterId, step: &Step, responder: &str) -> Self {
        let mut context = Context::new(&SHA256);
        // DER says its own length, so one cannot run into the other.
        context.update(&step.issuer);
        context.update(&step.certificate);
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Self { cluster, step: hash, responder: responder.to_owned() }
    }

    pub(super) fn cluster(&self) -> ClusterId {
        self.cluster
    }
}

/// What is known under a key. Who holds its lock may ask.
#[derive(Default)]
pub(super) struct Kept {
    /// The last answer, and when it was asked for.
    pub(super) answer: Option<(Answer, OffsetDateTime)>,
    /// Why the last question got no answer, and when.
    pub(super) failure: Option<(String, OffsetDateTime)>,
}

type Entry = Arc<tokio::sync::Mutex<Kept>>;

pub(super) struct Cache {
    entries: Mutex<HashMap<Key, (Entry, OffsetDateTime)>>,
    entries_max: usize,
}

impl Cache {
    pub(super) fn new(entries_max: usize) -> Self {
        Self { entries: Mutex::default(), entries_max: entries_max.max(1) }
    }

    /// The entry under this key, made if there is none.
    pub(super) fn entry(&self, key: &Key, now: OffsetDateTime) -> Entry {
        // Single inserts and removals.
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((entry, used_at)) = entries.get_mut(key) {
            *used_at = now;
            return entry.clone();
        }
        if entries.len() >= self.entries_max {
            make_room(&mut entries, self.entries_max);
        }
        let entry = Entry::default();
        entries.insert(key.clone(), (entry.clone(), now));
        entry
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.lock().unwrap().len()
    }
}

/// Forgets the tenth that was not used for longest: a whole tenth, so that a full cache does not search at each insert.
fn make_room(entries: &mut HashMap<Key, (Entry, OffsetDateTime)>, entries_max: usize) {
    let mut times: Vec<OffsetDateTime> = entries.values().map(|(_, used_at)| *used_at).collect();
    let rank = (entries_max / 10).min(times.len().saturating_sub(1));
    let (_, oldest, _) = times.select_nth_unstable(rank);
    let oldest = *oldest;
    let mut too_many = rank + 1;
    entries.retain(|_, (_, used_at)| {
        let goes = *used_at <= oldest && too_many > 0;
        too_many -= usize::from(goes);
        !goes
    });
}
