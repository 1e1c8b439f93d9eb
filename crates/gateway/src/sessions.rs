//! Everybody who has signed in: counted, found by cancel key, and ended when they may not stay.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use aws_lc_rs::constant_time;
use keys::client::Verified;
use keys::fill_random;
use model::{ClusterId, Origin};
use tokio::sync::{oneshot, watch};
use wire::backend::{Report, Severity};
use wire::hello::CancelKey;

use crate::directory::Engine;
use crate::refusal::Refusal;

/// Why a session must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its address is no longer on the allowlist.
    Address,
    /// Its private endpoint is no longer accepted.
    Endpoint,
    /// Its peering is no longer there.
    Peering,
    /// It came in public, and the cluster is private now.
    Private,
    /// Its cluster is being deleted.
    Deleted,
    /// The key that encrypts its cluster's data was revoked.
    KeyRevoked,
    /// What holds its cluster's files went away under the engine.
    VolumeLost,
    /// Its user may no longer sign in.
    User,
    /// The certificate that it signed in with was revoked, or no longer counts.
    Certificate,
    /// The program stops.
    Stopping,
    /// The operator put the cluster to sleep.
    Asleep,
}

impl Cut {
    pub(crate) fn report(self) -> Report {
        let (message, hint) = match self {
            Self::Address => (
                "terminating connection: this address is no longer on the cluster's IP allowlist",
                "Ask the cluster's operator to add it: chitin allowlist add CLUSTER CIDR",
            ),
            Self::Endpoint => (
                "terminating connection: this private endpoint is no longer accepted by the cluster",
                "Ask the cluster's operator to accept it: chitin endpoint accept CLUSTER ENDPOINT-ID",
            ),
            Self::Peering => (
                "terminating connection: this address is no longer behind a peering of the cluster",
                "Ask the cluster's operator: chitin peering list CLUSTER",
            ),
            Self::Private => (
                "terminating connection: the cluster is private now",
                "Connect through its private network or a private endpoint.",
            ),
            Self::Deleted => {
                ("terminating connection: the cluster is being deleted", "Its data is gone for good.")
            }
            Self::KeyRevoked => (
                "terminating connection: the key that encrypts the cluster's data was revoked",
                "Connect again once the key may be used; the operator finds out who revoked it, and the next step, with: chitin key list NAME",
            ),
            Self::VolumeLost => (
                "terminating connection: the cluster's volume was lost while its engine ran",
                "It is unlocked again and the engine recovers by itself; connect again.",
            ),
            Self::User => {
                ("terminating connection: this user may no longer sign in", "Ask the cluster's operator.")
            }
            Self::Certificate => (
                "terminating connection: the client certificate no longer counts",
                "It was revoked, or has expired; ask whoever issued it.",
            ),
            Self::Stopping => (
                "terminating connection due to administrator command",
                "The service is stopping; connect again.",
            ),
            Self::Asleep => {
                ("terminating connection: the operator put the cluster to sleep", "Connect again to wake it.")
            }
        };
        Report {
            severity: Severity::Fatal,
            code: "57P01",
            message: message.to_owned(),
            hint: Some(hint.to_owned()),
        }
    }
}

/// What is known of a session when it is decided whether it stays.
#[derive(Clone, Debug)]
pub struct SessionFacts {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Who signed in.
    pub user: Arc<str>,
    /// From where, and by which way.
    pub origin: Origin,
    /// Whether its connection is the client's own, and not that of a balancer or proxy that speaks for many.
    pub is_direct: bool,
    /// The certificate that was its proof, or part of it.
    pub certificate: Option<Arc<Verified>>,
}

/// The registry of sessions.
pub struct Sessions {
    /// Most sessions of all clusters.
    max: usize,
    inner: Mutex<Inner>,
    total: watch::Sender<usize>,
}

#[derive(Default)]
struct Inner {
    seats: HashMap<u64, Entry>,
    last_seat: u64,
    /// Those that a cancel finds, by the process id that their clients were told. Engines count for themselves, so that many
    /// clusters have a session with the same one; of one cluster it is the newest, whatever its engine says.
    by_process: HashMap<u32, BTreeMap<ClusterId, u64>>,
    clusters: HashMap<ClusterId, Use>,
    /// Those that refused somebody because they had all sessions that they may have, and when last.
    used_up: HashMap<ClusterId, Instant>,
}

struct Entry {
    facts: SessionFacts,
    cut: Option<oneshot::Sender<Cut>>,
    /// What a cancel needs, once the session is attached.
    cancel: Option<Cancel>,
}

struct Cancel {
    /// What the client was told with the process id.
    secret: Vec<u8>,
    engine: Arc<dyn Engine>,
    /// What the engine told us. The process id is the client's too.
    engine_key: CancelKey,
    /// The key has come in plaintext, so somebody may have read it: from now on it counts from the session's own address only.
    is_exposed: bool,
}

#[derive(Default)]
struct Use {
    sessions: u32,
    by_user: HashMap<Arc<str>, u32>,
    last_end: Option<Instant>,
}

/// What a cancel key leads to.
pub(crate) struct Cancelled {
    pub(crate) facts: SessionFacts,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) engine_key: CancelKey,
    /// Whether the key has ever come in plaintext.
    pub(crate) is_exposed: bool,
}

/// A place in the registry; leaving it counts down, whatever way the session ends.
pub(crate) struct Seat {
    sessions: Arc<Sessions>,
    number: u64,
    pub(crate) facts: SessionFacts,
}

/// How many sessions a seat may stand beside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) per_cluster: u32,
    pub(crate) per_user: u32,
}

/// Clusters whose last session's end is remembered; older ones are forgotten first, which only delays sleep.
const IDLE_REMEMBERED_MAX: usize = 200_000;

impl Sessions {
    /// At most so many of all clusters together.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, inner: Mutex::default(), total: watch::channel(0).0 })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Counts are changed in one step each, so a panic elsewhere leaves them right.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sessions the cluster has, those that still wait for their engine included.
    pub fn count(&self, cluster: ClusterId) -> usize {
        self.lock().clusters.get(&cluster).map_or(0, |used| used.sessions as usize)
    }

    /// How many sessions there are.
    pub fn total(&self) -> usize {
        *self.total.borrow()
    }

    /// When the cluster's last session ended; `None` while it has sessions or never had one.
    pub fn idle_since(&self, cluster: ClusterId) -> Option<Instant> {
        self.lock().clusters.get(&cluster).filter(|used| used.sessions == 0)?.last_end
    }

    /// Ends every session for which the verdict is a reason. Each is told at its next message boundary.
    pub fn cut(&self, verdict: impl Fn(&SessionFacts) -> Option<Cut>) -> usize {
        let mut count = 0;
        for entry in self.lock().seats.values_mut() {
            if let Some(reason) = verdict(&entry.facts)
                && let Some(cut) = entry.cut.take()
            {
                // A session that has just ended needs no telling.
                let _ = cut.send(reason);
                count += 1;
            }
        }
        count
    }

    /// Whether there is a session for which this holds. One that was cut is there until its client has been told, or could
    /// not be.
    pub fn any(&self, holds: impl Fn(&SessionFacts) -> bool) -> bool {
        self.lock().seats.values().any(|entry| holds(&entry.facts))
    }

    /// Every session that stands on a certificate: its cluster and the certificate.
    pub fn certificates(&self) -> Vec<(ClusterId, Arc<Verified>)> {
        let inner = self.lock();
        let facts = inner.seats.values().map(|entry| &entry.facts);
        facts.filter_map(|facts| Some((facts.cluster, facts.certificate.clone()?))).collect()
    }

    /// The clusters that refused somebody since the last call because they had all sessions that they may have, and when last.
    pub fn take_used_up(&self) -> HashMap<ClusterId, Instant> {
        std::mem::take(&mut self.lock().used_up)
    }

    /// Waits until nobody is left.
    pub(crate) async fn empty(&self) {
        let mut total = self.total.subscribe();
        // The sender lives as long as we do.
        let _ = total.wait_for(|total| *total == 0).await;
    }

    /// Takes a seat if the limits leave one. A cluster has no more of them than are left for everybody, so that there is one for
    /// every other cluster, however many sessions it has itself.
    pub(crate) fn seat(
        self: &Arc<Self>,
        facts: SessionFacts,
        limits: Limits,
    ) -> Result<(Seat, oneshot::Receiver<Cut>), Refusal> {
        let (cut, cut_receiver) = oneshot::channel();
        let mut inner = self.lock();
        let left = self.max.saturating_sub(inner.seats.len());
        let used = inner.clusters.entry(facts.cluster).or_default();
        let by_user = used.by_user.get(&facts.user).copied().unwrap_or(0);
        let is_used_up = used.sessions >= limits.per_cluster;
        if is_used_up || by_user >= limits.per_user {
            // One user who has all that one may have stands for all; a role's own limit is its owner's wish.
            if is_used_up || by_user >= model::connections_per_user_max(limits.per_cluster) {
                inner.used_up.insert(facts.cluster, Instant::now());
            }
            return Err(Refusal::TooMany(if is_used_up { "this cluster" } else { "this user" }));
        }
        if used.sessions as usize >= left {
            return Err(Refusal::NoRoom);
        }
        used.sessions += 1;
        used.last_end = None;
        used.by_user.insert(facts.user.clone(), by_user + 1);
        inner.last_seat += 1;
        let number = inner.last_seat;
        inner.seats.insert(number, Entry { facts: facts.clone(), cut: Some(cut), cancel: None });
        self.total.send_replace(inner.seats.len());
        drop(inner);
        Ok((Seat { sessions: self.clone(), number, facts }, cut_receiver))
    }

    /// The session of a cancel key of ours. Unknown process ids and wrong secrets look alike. One that is right and comes in
    /// plaintext is remembered as exposed, whatever becomes of the request.
    pub(crate) fn find_cancel(&self, key: &CancelKey, is_encrypted: bool) -> Option<Cancelled> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let mut found = None;
        for number in inner.by_process.get(&key.process_id)?.values() {
            if let Some(entry) = inner.seats.get_mut(number)
                && let Some(cancel) = &mut entry.cancel
                && constant_time::verify_slices_are_equal(&cancel.secret, &key.secret).is_ok()
            {
                cancel.is_exposed |= !is_encrypted;
                found = Some(Cancelled {
                    facts: entry.facts.clone(),
                    engine: cancel.engine.clone(),
                    engine_key: cancel.engine_key.clone(),
                    is_exposed: cancel.is_exposed,
                });
            }
        }
        found
    }
}

impl Seat {
    /// From now on a cancel reaches the engine. Returns what the client is to be told: the process that works for it, as the
    /// engine itself calls it, and a secret of ours.
    pub(crate) fn attached(
        &self,
        engine: Arc<dyn Engine>,
        engine_key: CancelKey,
        secret_bytes: usize,
    ) -> CancelKey {
        let mut inner = self.sessions.lock();
        let process_id = engine_key.process_id;
        let others = inner.by_process.get(&process_id).into_iter().flat_map(BTreeMap::values);
        let known: HashSet<&[u8]> =
            others.filter_map(|number| Some(&*inner.seats.get(number)?.cancel.as_ref()?.secret)).collect();
        let mut secret = vec![0; secret_bytes];
        // The pair is what is looked up, so it is told to one client.
        loop {
            fill_random(&mut secret);
            if !known.contains(&*secret) {
                break;
            }
        }
        let told = CancelKey { process_id, secret: secret.clone() };
        if let Some(entry) = inner.seats.get_mut(&self.number) {
            entry.cancel = Some(Cancel { secret, engine, engine_key, is_exposed: false });
            inner.by_process.entry(process_id).or_default().insert(self.facts.cluster, self.number);
        }
        told
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.sessions.lock();
        let process_id =
            inner.seats.remove(&self.number).and_then(|left| Some(left.cancel?.engine_key.process_id));
        if let Some(process_id) = process_id
            && let Some(of_process) = inner.by_process.get_mut(&process_id)
        {
            if of_process.get(&self.facts.cluster) == Some(&self.number) {
                of_process.remove(&self.facts.cluster);
            }
            if of_process.is_empty() {
                inner.by_process.remove(&process_id);
            }
        }
        if let Some(used) = inner.clusters.get_mut(&self.facts.cluster) {
            used.sessions = used.sessions.saturating_sub(1);
            if used.sessions == 0 {
                used.last_end = Some(Instant::now());
            }
            if let Some(by_user) = used.by_user.get_mut(&self.facts.user) {
                *by_user = by_user.saturating_sub(1);
                if *by_user == 0 {
                    used.by_user.remove(&self.facts.user);
                }
            }
        }
        if inner.clusters.len() > IDLE_REMEMBERED_MAX {
            inner.clusters.retain(|_, used| used.sessions > 0);
        }
        self.sessions.total.send_replace(inner.seats.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { per_cluster: 3, per_user: 2 };

    /// An engine that nothing reaches.
    struct Nowhere;

    #[async_trait::async_trait]
    impl Engine for Nowhere {
        fn has_run_out_of_memory(&self) -> bool {
            false
        }

        async fn connect(&self) -> std::io::Result<tokio::net::UnixStream> {
            Err(std::io::ErrorKind::NotFound.into())
        }
    }

    fn facts(cluster: ClusterId, user: &str) -> SessionFacts {
        SessionFacts {
            cluster,
            user: user.into(),
            origin: Origin::public("127.0.0.1".parse().unwrap()),
            is_direct: true,
            certificate: None,
        }
    }

    #[test]
    fn limits_hold_per_cluster_and_user_and_seats_come_back() {
        let sessions = Sessions::new(usize::MAX);
        let (one, other) = (ClusterId::random(), ClusterId::random());
        let a = sessions.seat(facts(one, "a"), LIMITS).unwrap();
        let b = sessions.seat(facts(one, "a"), LIMITS).unwrap();
        assert_eq!(sessions.seat(facts(one, "a"), LIMITS).err(), Some(Refusal::TooMany("this user")));
        let c = sessions.seat(facts(one, "b"), LIMITS).unwrap();
        let used_up = || sessions.take_used_up().into_keys().collect::<Vec<_>>();
        assert_eq!(used_up(), [one], "one user has all that one may have");
        assert_eq!(sessions.seat(facts(one, "c"), LIMITS).err(), Some(Refusal::TooMany("this cluster")));
        assert_eq!(used_up(), [one]);
        let of_role = Limits { per_cluster: 100, per_user: 2 };
        assert_eq!(sessions.seat(facts(one, "a"), of_role).err(), Some(Refusal::TooMany("this user")));
        assert!(used_up().is_empty(), "a role's own limit uses nothing up");
        let d = sessions.seat(facts(other, "a"), LIMITS).unwrap();
        assert_eq!((sessions.count(one), sessions.total(), sessions.idle_since(one)), (3, 4, None));
        drop((a, b, c, d));
        assert_eq!((sessions.count(one), sessions.total()), (0, 0));
        assert!(sessions.idle_since(one).is_some());
    }

    #[test]
    fn t72_one_user_cannot_take_every_session_of_its_cluster() {
        let sessions = Sessions::new(usize::MAX);
        let cluster = ClusterId::random();
        let limits = Limits {
            per_cluster: model::CONNECTIONS_PER_CLUSTER_MAX,
            per_user: model::connections_per_user_max(model::CONNECTIONS_PER_CLUSTER_MAX),
        };
        let seat = |user| sessions.seat(facts(cluster, user), limits);
        let greedy: Vec<_> =
            (0..model::CONNECTIONS_PER_CLUSTER_MAX).map_while(|_| seat("greedy").ok()).collect();
        assert_eq!(seat("greedy").err(), Some(Refusal::TooMany("this user")));
        assert!(seat("maria").is_ok(), "{} sessions of one user leave none", greedy.len());
    }

    #[test]
    fn t62_t63_only_the_whole_key_finds_a_session() {
        let sessions = Sessions::new(usize::MAX);
        let (seat, _cut) = sessions.seat(facts(ClusterId::random(), "a"), LIMITS).unwrap();
        let of_engine = CancelKey { process_id: 1, secret: vec![0; 4] };
        assert!(
            sessions.find_cancel(&of_engine, true).is_none(),
            "before it is attached there is nothing to cancel"
        );
        let key = seat.attached(Arc::new(Nowhere), of_engine.clone(), 32);
        assert_eq!((key.process_id, key.secret.len()), (1, 32));
        assert!(sessions.find_cancel(&of_engine, true).is_none(), "the engine's own key is nobody's");
        assert!(sessions.find_cancel(&key, true).is_some());
        let guess = |secret: Vec<u8>| CancelKey { process_id: key.process_id, secret };
        for secret in [
            vec![],
            key.secret[..4].to_vec(),
            key.secret[..31].to_vec(),
            [key.secret.clone(), vec![0]].concat(),
        ] {
            assert!(sessions.find_cancel(&guess(secret), true).is_none());
        }
        let elsewhere = CancelKey { process_id: key.process_id ^ 1, secret: key.secret.clone() };
        assert!(sessions.find_cancel(&elsewhere, true).is_none());
        drop(seat);
        assert!(sessions.find_cancel(&key, true).is_none());
    }

    #[test]
    fn a_key_that_came_in_plaintext_is_known_as_exposed_from_then_on() {
        let sessions = Sessions::new(usize::MAX);
        let (seat, _cut) = sessions.seat(facts(ClusterId::random(), "a"), LIMITS).unwrap();
        let key = seat.attached(Arc::new(Nowhere), CancelKey { process_id: 1, secret: vec![0; 4] }, 4);
        let exposed = |is_encrypted| sessions.find_cancel(&key, is_encrypted).unwrap().is_exposed;
        assert_eq!([true, false, true].map(exposed), [false, true, true]);
    }

    #[test]
    fn sessions_whose_engines_call_them_the_same_are_told_apart_by_their_secrets() {
        let sessions = Sessions::new(usize::MAX);
        let many = Limits { per_cluster: u32::MAX, per_user: u32::MAX };
        let clusters: Vec<ClusterId> = (0..300).map(|_| ClusterId::random()).collect();
        // A secret of one byte, so that chance alone would tell two clients the same.
        let attach = |cluster: &ClusterId| {
            let (seat, _cut) = sessions.seat(facts(*cluster, "a"), many).unwrap();
            let key = seat.attached(Arc::new(Nowhere), CancelKey { process_id: 42, secret: vec![0; 4] }, 1);
            (seat, key)
        };
        let mut held: Vec<_> = clusters[..200].iter().map(attach).collect();
        let finds = |key: &CancelKey| sessions.find_cancel(key, true).map(|found| found.facts.cluster);
        for ((_, key), cluster) in held.iter().zip(&clusters) {
            assert_eq!(finds(key), Some(*cluster));
        }
        let (left, key) = held.swap_remove(7);
        drop(left);
        assert_eq!(finds(&key), None, "it has ended, and its secret is no other's");
        // An engine that calls all of its sessions the same makes no list that is long.
        let (older, newer) = (attach(&clusters[0]), attach(&clusters[0]));
        assert_eq!((finds(&older.1), finds(&newer.1)), (None, Some(clusters[0])));
        drop((older.0, held));
        assert_eq!(finds(&newer.1), Some(clusters[0]));
        drop(newer.0);
        assert!(sessions.lock().by_process.is_empty());
    }

    #[test]
    fn a_cut_reaches_those_it_concerns_once() {
        let sessions = Sessions::new(usize::MAX);
        let (one, other) = (ClusterId::random(), ClusterId::random());
        let (a, mut a_cut) = sessions.seat(facts(one, "a"), LIMITS).unwrap();
        let (_b, mut b_cut) = sessions.seat(facts(other, "a"), LIMITS).unwrap();
        let verdict = |facts: &SessionFacts| (facts.cluster == one).then_some(Cut::Deleted);
        assert_eq!((sessions.cut(verdict), sessions.cut(verdict)), (1, 0));
        assert!(sessions.any(|facts| facts.cluster == one), "its client was not told yet");
        assert_eq!(a_cut.try_recv(), Ok(Cut::Deleted));
        assert!(b_cut.try_recv().is_err());
        drop(a);
        assert!(!sessions.any(|facts| facts.cluster == one));
    }

    #[test]
    fn a_cluster_that_takes_all_it_can_get_leaves_sessions_for_every_other() {
        let sessions = Sessions::new(90);
        let many = Limits { per_cluster: u32::MAX, per_user: u32::MAX };
        let take = |cluster| -> Vec<_> {
            std::iter::from_fn(|| sessions.seat(facts(cluster, "maria"), many).ok()).collect()
        };
        let clusters = [(); 4].map(|()| ClusterId::random());
        let taken: Vec<Vec<_>> = clusters.iter().map(|cluster| take(*cluster)).collect();
        let counts: Vec<usize> = taken.iter().map(Vec::len).collect();
        // Each has as many as were left after it.
        assert_eq!(counts, [45, 23, 11, 6]);
        let refused = sessions.seat(facts(clusters[0], "maria"), many).err();
        assert_eq!(refused, Some(Refusal::NoRoom));
        assert!(sessions.seat(facts(ClusterId::random(), "maria"), many).is_ok());
        drop(taken);
        assert_eq!(take(clusters[3]).len(), 45, "everything is given back");
    }

    #[test]
    fn the_last_session_is_for_a_cluster_that_has_none() {
        let sessions = Sessions::new(1);
        let one = ClusterId::random();
        let first = sessions.seat(facts(one, "maria"), LIMITS).unwrap();
        assert_eq!(sessions.seat(facts(one, "maria"), LIMITS).err(), Some(Refusal::NoRoom));
        drop(first);
        assert!(sessions.seat(facts(one, "maria"), LIMITS).is_ok());
    }
}
