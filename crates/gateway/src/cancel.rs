//! Cancel requests, with keys of our own: inside TLS only, from an admitted address only, and silent in every case.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{ClusterId, Origin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use wire::hello::CancelKey;

use crate::Sessions;
use crate::directory::{Directory, Engine};

/// For the engine to take a cancel request and close.
const ENGINE_MAX: Duration = Duration::from_secs(5);

/// Before a key is looked at. On a small machine what a right one sets going would compete with whoever reads that the
/// connection was closed, and so tell him.
const SETTLE: Duration = Duration::from_millis(10);

/// Cancel requests at work, of each cluster by itself: an engine that takes none, or takes its time, holds up those of its own
/// cluster and of no other.
pub(crate) struct Cancels {
    per_cluster_max: usize,
    clusters: Mutex<HashMap<ClusterId, Arc<Semaphore>>>,
}

impl Cancels {
    /// So many of one cluster at a time.
    pub(crate) fn new(per_cluster_max: usize) -> Self {
        Self { per_cluster_max, clusters: Mutex::default() }
    }

    fn of(&self, cluster: ClusterId) -> Arc<Semaphore> {
        // Single inserts and removals.
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.retain(|_, slots| Arc::strong_count(slots) > 1);
        clusters.entry(cluster).or_insert_with(|| Arc::new(Semaphore::new(self.per_cluster_max))).clone()
    }
}

/// Passes the request on if its key is right. The client's connection is closed before this is called, so that nobody
/// can tell a right key from a wrong one by waiting.
pub(crate) async fn cancel(
    sessions: &Sessions,
    directory: &dyn Directory,
    cancels: &Cancels,
    key: &CancelKey,
    origin: &Origin,
) {
    tokio::time::sleep(SETTLE).await;
    let Some((facts, engine, engine_key)) = sessions.find_cancel(key) else {
        return;
    };
    if !directory.admits(facts.cluster, origin) {
        return;
    }
    // Nobody is promised that a cancel has an effect (PostgreSQL's manual, 55.2.8): a flood is dropped, not queued.
    let slots = cancels.of(facts.cluster);
    let Ok(_slot) = slots.try_acquire() else {
        tracing::warn!(cluster = %facts.cluster, %origin, "a cancel was dropped: too many at once");
        return;
    };
    if timeout(ENGINE_MAX, pass_on(&*engine, &engine_key)).await.is_ok_and(|sent| sent.is_ok()) {
        tracing::info!(cluster = %facts.cluster, user = %facts.user, %origin, "canceled a query");
    }
}

/// Ends what the engine does for a session that was cut. Unlike a client's request it waits for its turn.
pub(crate) async fn interrupt(
    cancels: &Cancels,
    cluster: ClusterId,
    engine: &dyn Engine,
    engine_key: Option<&CancelKey>,
) {
    let Some(engine_key) = engine_key else {
        return;
    };
    let slots = cancels.of(cluster);
    let sent = timeout(ENGINE_MAX, async {
        let _slot = slots.acquire().await;
        pass_on(engine, engine_key).await
    });
    match sent.await {
        Ok(Ok(())) => {}
        // An engine that stops takes no more requests, and needs none.
        Ok(Err(cause)) => tracing::debug!(%cause, "the engine of a session that was cut was not interrupted"),
        Err(_) => tracing::warn!("the engine of a session that was cut was not interrupted in time"),
    }
}

async fn pass_on(engine: &dyn Engine, engine_key: &CancelKey) -> io::Result<()> {
    let mut engine = engine.connect().await?;
    engine.write_all(&engine_key.to_request()).await?;
    // The engine closes once the signal is sent.
    engine.read(&mut [0]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures::FutureExt;
    use tokio::net::UnixStream;

    use super::*;

    /// Takes cancel requests, or keeps whoever brings one waiting.
    struct Double {
        is_stuck: bool,
        kept: Mutex<Vec<UnixStream>>,
    }

    impl Double {
        fn new(is_stuck: bool) -> Self {
            Self { is_stuck, kept: Mutex::default() }
        }
    }

    #[async_trait]
    impl Engine for Double {
        fn has_run_out_of_memory(&self) -> bool {
            false
        }

        async fn connect(&self) -> io::Result<UnixStream> {
            let (ours, mut theirs) = UnixStream::pair()?;
            if self.is_stuck {
                self.kept.lock().unwrap().push(theirs);
            } else {
                tokio::spawn(async move { theirs.read_exact(&mut [0; 16]).await.map(drop) });
            }
            Ok(ours)
        }
    }

    #[tokio::test]
    async fn an_engine_that_takes_no_cancels_holds_up_its_own_cluster_s_only() {
        let cancels = Cancels::new(2);
        let (stuck, good) = (Double::new(true), Double::new(false));
        let (mine, other) = (ClusterId::random(), ClusterId::random());
        let key = CancelKey { process_id: 7, secret: vec![1, 2, 3, 4] };
        let mut waiting: Vec<_> =
            (0..200).map(|_| interrupt(&cancels, mine, &stuck, Some(&key)).boxed()).collect();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        tokio::task::yield_now().await;
        assert!(stuck.kept.lock().unwrap().len() <= 2, "more than its share is at work");
        assert_eq!(cancels.of(mine).available_permits(), 0);
        // Far below what the stuck ones take.
        let passed = timeout(ENGINE_MAX / 2, interrupt(&cancels, other, &good, Some(&key))).await;
        assert!(passed.is_ok(), "another cluster's cancel waits");
        drop(waiting);
        assert_eq!(cancels.of(mine).available_permits(), 2);
        let _ = cancels.of(other);
        assert_eq!(cancels.clusters.lock().unwrap().len(), 1, "clusters are remembered for nothing");
    }
}
