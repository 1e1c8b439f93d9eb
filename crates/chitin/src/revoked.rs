//! Ends sessions whose certificate no longer counts: revoked, on a list, or expired.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use gateway::Cut;
use keys::client::Verified;
use model::ClusterId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::examiner::Examiner;
use crate::presence::Presence;

/// Certificates of one cluster whose responders are asked side by side; each may have to be waited for.
const SIDE_BY_SIDE: usize = 16;

/// Every certificate once, whatever the number of its sessions.
type Certificates = HashMap<[u8; 32], Arc<Verified>>;

/// Looks at the certificates of all open sessions this often, until `stop`.
pub async fn run(examiner: Arc<Examiner>, presence: Arc<Presence>, every: Duration, stop: CancellationToken) {
    // A cluster whose responder is slow waits for itself and for no other.
    let busy: Arc<Mutex<HashSet<ClusterId>>> = Arc::default();
    let tasks = TaskTracker::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(every) => {}
        }
        for (cluster, certificates) in standing(&examiner, &presence) {
            if !busy.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster) {
                continue;
            }
            let (examiner, presence, busy) = (examiner.clone(), presence.clone(), busy.clone());
            let asking = async move {
                ask(&examiner, &presence, cluster, certificates).await;
                busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&cluster);
            };
            let stop = stop.clone();
            tasks.spawn(async move { stop.run_until_cancelled(asking).await });
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// The certificates of open sessions by cluster, without those that are known to be bad, whose sessions are ended.
fn standing(examiner: &Examiner, presence: &Presence) -> HashMap<ClusterId, Certificates> {
    let mut all: HashMap<ClusterId, Certificates> = HashMap::new();
    for (cluster, certificate) in presence.certificates() {
        all.entry(cluster).or_default().insert(certificate.fingerprint, certificate);
    }
    for (cluster, certificates) in &mut all {
        certificates.retain(|_, certificate| match examiner.looks_bad(*cluster, certificate) {
            Some(reason) => {
                end(presence, *cluster, certificate, reason);
                false
            }
            None => true,
        });
    }
    all
}

async fn ask(examiner: &Examiner, presence: &Presence, cluster: ClusterId, certificates: Certificates) {
    futures::stream::iter(certificates.into_values())
        .for_each_concurrent(SIDE_BY_SIDE, async |certificate| {
            if examiner.is_revoked(cluster, &certificate).await {
                end(presence, cluster, &certificate, "its responder says that it is revoked");
            }
        })
        .await;
}

fn end(presence: &Presence, cluster: ClusterId, certificate: &Verified, reason: &'static str) {
    let count = presence.cut(|facts| {
        let is_meant = facts.cluster == cluster
            && facts.certificate.as_ref().is_some_and(|own| own.fingerprint == certificate.fingerprint);
        is_meant.then_some(Cut::Certificate)
    });
    if count > 0 {
        tracing::info!(%cluster, ?certificate, reason, sessions = count, "ended sessions of a certificate");
    }
}
