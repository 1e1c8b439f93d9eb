//! Cancel requests, with keys of our own: from an admitted address only, and silent in every case.
//!
//! In plaintext, as every libpq before 17 sends them, one counts only where it comes from the very address of the session, with
//! nobody between who speaks for many, and where the cluster takes such requests. A key that has come so counts from that address
//! alone from then on, encrypted or not, since somebody may have read it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::{ClusterHandle, ClusterId, Origin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use wire::hello::CancelKey;

use crate::Sessions;
use crate::directory::{Directory, Engine};
use crate::sessions::Cancelled;
use crate::unauthenticated::{Part, neighbourhoods};

/// For the engine to take a cancel request and close.
const ENGINE_MAX: Duration = Duration::from_secs(5);

/// Before a key is looked at. On a small machine what a right one sets going would compete with whoever reads that the
/// connection was closed, and so tell him.
const SETTLE: Duration = Duration::from_millis(10);

/// Wrong keys of 32 bits, as in protocol 3.0, that are looked at from one address within [`GUESSES_SPAN`]. A client whose session
/// ends while it cancels has one for nothing. At this rate a key of one session that is known takes a lifetime to find.
const GUESSES_MAX: u32 = 100;
/// Of a whole network: a neighbour alone does not use it up.
const GUESSES_OF_NETWORK_MAX: u32 = 1_000;
const GUESSES_BOUNDS: [u32; 2] = [GUESSES_MAX, GUESSES_OF_NETWORK_MAX];
const GUESSES_SPAN: Duration = Duration::from_secs(60);
/// Addresses and networks whose wrong keys are counted. Beyond, those that have not used up theirs are forgotten first.
const GUESSERS_MAX: usize = 20_000;
/// Secrets that are longer, as from protocol 3.2 on, cannot be found by trying.
const GUESSABLE_BYTES_MAX: usize = 8;

/// A cancel request.
pub(crate) struct Request<'a> {
    pub(crate) key: &'a CancelKey,
    pub(crate) origin: &'a Origin,
    /// The cluster that the connection named, if it did.
    pub(crate) named: Option<&'a ClusterHandle>,
    pub(crate) is_encrypted: bool,
    /// Whether the connection is the client's own.
    pub(crate) is_direct: bool,
}

impl Request<'_> {
    /// Whether it may reach this session, which its key belongs to.
    fn is_for(&self, found: &Cancelled, directory: &dyn Directory) -> bool {
        let facts = &found.facts;
        let find = |handle| directory.find(handle, &self.origin.way).map(|found| found.id);
        let is_in_its_cluster = self.named.is_none_or(|handle| find(handle) == Some(facts.cluster));
        let is_from_its_address = facts.origin == *self.origin;
        let is_let_through = if self.is_encrypted {
            !found.is_exposed || is_from_its_address
        } else {
            let is_from_its_client = self.is_direct && facts.is_direct && is_from_its_address;
            is_from_its_client && directory.takes_plaintext_cancels(facts.cluster)
        };
        is_in_its_cluster && is_let_through && directory.admits(facts.cluster, self.origin)
    }
}

/// Cancel requests at work, of each cluster by itself: an engine that takes none, or takes its time, holds up those of its own
/// cluster and of no other.
pub(crate) struct Cancels {
    per_cluster_max: usize,
    clusters: Mutex<HashMap<ClusterId, Arc<Semaphore>>>,
    wrong: Mutex<HashMap<Vec<Part>, Guesses>>,
}

/// Wrong keys of one address or network.
struct Guesses {
    since: Instant,
    count: u32,
}

impl Guesses {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= GUESSES_SPAN
    }
}

impl Cancels {
    /// So many of one cluster at a time.
    pub(crate) fn new(per_cluster_max: usize) -> Self {
        Self { per_cluster_max, clusters: Mutex::default(), wrong: Mutex::default() }
    }

    /// Whether a key from there is looked at.
    fn may_guess(&self, origin: &Origin, now: Instant) -> bool {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        neighbourhoods(origin).iter().zip(GUESSES_BOUNDS).all(|(part, most)| {
            wrong.get(part).is_none_or(|guesses| guesses.is_over(now) || guesses.count < most)
        })
    }

    /// Counts a wrong key.
    fn note_wrong(&self, origin: &Origin, now: Instant) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if wrong.len() + 2 > GUESSERS_MAX {
            wrong.retain(|_, guesses| !guesses.is_over(now) && guesses.count >= GUESSES_MAX);
            if wrong.len() + 2 > GUESSERS_MAX {
                wrong.clear();
            }
        }
        for (part, most) in neighbourhoods(origin).into_iter().zip(GUESSES_BOUNDS) {
            let guesses = wrong.entry(part).or_insert(Guesses { since: now, count: 0 });
            if guesses.is_over(now) {
                *guesses = Guesses { since: now, count: 0 };
            }
            guesses.count = guesses.count.saturating_add(1);
            if guesses.count == most {
                // Without an address, so that the log counts what is said again and again.
                tracing::warn!(
                    most,
                    "too many cancel requests with wrong keys from one address or network: its requests have no effect for up to a minute"
                );
                tracing::debug!(%origin, "cancel requests with wrong keys");
            }
        }
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
    request: Request<'_>,
) {
    tokio::time::sleep(SETTLE).await;
    let origin = request.origin;
    let is_guessable = request.key.secret.len() <= GUESSABLE_BYTES_MAX;
    // Whom no cluster lets in reaches nothing, so it has nothing to count.
    if !directory.might_admit(origin) || is_guessable && !cancels.may_guess(origin, Instant::now()) {
        return;
    }
    let Some(found) = sessions.find_cancel(request.key, request.is_encrypted) else {
        if is_guessable {
            cancels.note_wrong(origin, Instant::now());
        }
        return;
    };
    if !request.is_for(&found, directory) {
        return;
    }
    let Cancelled { facts, engine, engine_key, .. } = found;
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

    #[test]
    fn wrong_keys_are_looked_at_so_many_times_from_each_address_and_network() {
        let (cancels, begun) = (Cancels::new(1), Instant::now());
        let from = |text: &str| Origin::public(text.parse().unwrap());
        for count in 0..GUESSES_MAX {
            assert!(cancels.may_guess(&from("192.0.2.1"), begun), "{count}");
            cancels.note_wrong(&from("192.0.2.1"), begun);
        }
        assert!(!cancels.may_guess(&from("192.0.2.1"), begun), "the address has tried enough");
        assert!(cancels.may_guess(&from("192.0.2.2"), begun), "its neighbour has not");
        assert!(cancels.may_guess(&from("192.0.2.1"), begun + GUESSES_SPAN));
        for count in GUESSES_MAX..GUESSES_OF_NETWORK_MAX {
            cancels.note_wrong(&from(&format!("192.0.2.{}", 2 + count % 200)), begun);
        }
        assert!(!cancels.may_guess(&from("192.0.2.254"), begun), "the network has tried enough");
        assert!(cancels.may_guess(&from("192.0.3.1"), begun), "another one has not");
        // Certificates that anybody makes are no networks of their own.
        let with_certificate = |number: u32| Origin {
            way: model::Way::Endpoint(model::EndpointId::Certificate(number.to_string())),
            ..from("198.51.100.7")
        };
        for number in 0..GUESSES_MAX {
            cancels.note_wrong(&with_certificate(number), begun);
        }
        assert!(!cancels.may_guess(&with_certificate(7_777), begun));
        for number in 0..u32::try_from(GUESSERS_MAX).unwrap() {
            cancels.note_wrong(&from(&std::net::Ipv4Addr::from_bits(number << 8).to_string()), begun);
        }
        assert!(cancels.wrong.lock().unwrap().len() <= GUESSERS_MAX);
        assert!(
            !cancels.may_guess(&from("192.0.2.1"), begun),
            "a crowd makes nobody forgotten who has used up his"
        );
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
