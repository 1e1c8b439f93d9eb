//! Turns for passwords in clear to be checked. Each check costs us as many hashes as the verifier says, so few are made at a
//! time, and clusters take turns by what their checks cost: one whose verifiers are dear, or whom somebody floods with
//! guesses, waits for its own and keeps no other waiting.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::ClusterId;
use tokio::sync::oneshot;

use crate::refusal::Refusal;

/// Checks that wait for one cluster; further ones are refused.
const WAITING_MAX: usize = 64;

/// Whose check it is; none where there is no such cluster.
type Whose = Option<ClusterId>;

/// Who waits, and who is at work.
pub(crate) struct Checks {
    at_work_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    at_work: usize,
    /// Hashes that the cluster had had whose turn came last, when it came. Whoever begins to wait begins here, so that
    /// nobody saves up turns.
    level: u64,
    lanes: HashMap<Whose, Lane>,
    /// Lanes with somebody in them, the one that has had least first.
    waiting: BTreeMap<(u64, u64), Whose>,
    /// Lanes that are empty, until others have had as much.
    resting: BTreeMap<(u64, u64), Whose>,
    next: u64,
}

/// One cluster's checks.
struct Lane {
    /// Hashes that it has had.
    spent: u64,
    number: u64,
    queue: VecDeque<Waiting>,
}

struct Waiting {
    iterations: u32,
    go: oneshot::Sender<Turn>,
}

/// Leave to check one password. Given back when dropped.
pub(crate) struct Turn(Option<Arc<Checks>>);

impl Checks {
    /// So many at a time.
    pub(crate) fn new(at_work_max: usize) -> Arc<Self> {
        Arc::new(Self { at_work_max, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No step in between can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn for a check that costs so many iterations.
    pub(crate) async fn turn(self: &Arc<Self>, whose: Whose, iterations: u32) -> Result<Turn, Refusal> {
        let (go, gone) = oneshot::channel();
        {
            let mut inner = self.lock();
            inner.wait(whose, Waiting { iterations, go })?;
            self.begin(&mut inner);
        }
        // The sender is dropped unsent only with the whole gateway.
        gone.await.map_err(|_| Refusal::Lost)
    }

    /// Gives turns while there are some.
    fn begin(self: &Arc<Self>, inner: &mut Inner) {
        while inner.at_work < self.at_work_max
            && let Some(Waiting { iterations: _, go }) = inner.take()
        {
            inner.at_work += 1;
            if let Err(mut unwanted) = go.send(Turn(Some(self.clone()))) {
                // Its client is gone. Not dropped as it is: that would lock what is locked here.
                unwanted.0 = None;
                inner.at_work -= 1;
            }
        }
        if inner.at_work == 0 {
            // Nobody waits, so there is nobody to be fair to.
            *inner = Inner::default();
        }
    }
}

impl Inner {
    fn wait(&mut self, whose: Whose, one: Waiting) -> Result<(), Refusal> {
        let (level, next) = (self.level, &mut self.next);
        let lane = self.lanes.entry(whose).or_insert_with(|| {
            *next += 1;
            Lane { spent: level, number: *next, queue: VecDeque::new() }
        });
        if lane.queue.len() >= WAITING_MAX {
            lane.queue.retain(|other| !other.go.is_closed());
        }
        if lane.queue.len() >= WAITING_MAX {
            return Err(Refusal::TooManyChecks);
        }
        if lane.queue.is_empty() {
            self.resting.remove(&(lane.spent, lane.number));
            lane.spent = lane.spent.max(level);
            self.waiting.insert((lane.spent, lane.number), whose);
        }
        lane.queue.push_back(one);
        Ok(())
    }

    /// The next of the cluster that has had least.
    fn take(&mut self) -> Option<Waiting> {
        let ((spent, number), whose) = self.waiting.pop_first()?;
        let lane = self.lanes.get_mut(&whose)?;
        let one = lane.queue.pop_front()?;
        self.level = spent;
        // One that nobody wants any more costs nothing.
        let cost = if one.go.is_closed() { 0 } else { u64::from(one.iterations) };
        lane.spent = spent.saturating_add(cost);
        let lanes = if lane.queue.is_empty() { &mut self.resting } else { &mut self.waiting };
        lanes.insert((lane.spent, number), whose);
        // Those that others have caught up with are remembered for nothing.
        while let Some(resting) = self.resting.first_entry()
            && resting.key().0 < self.level
        {
            self.lanes.remove(&resting.remove());
        }
        Some(one)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(checks) = self.0.take() {
            let mut inner = checks.lock();
            inner.at_work -= 1;
            checks.begin(&mut inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;

    type Asked = BoxFuture<'static, Result<Turn, Refusal>>;

    /// Asks for a turn and waits in the queue.
    fn ask(checks: &Arc<Checks>, whose: Whose, iterations: u32) -> Asked {
        let checks = checks.clone();
        let mut asked = async move { checks.turn(whose, iterations).await }.boxed();
        assert!(asked.as_mut().now_or_never().is_none(), "a turn at once");
        asked
    }

    /// Lets the turn that is held go, and finds whose is next.
    fn next(held: &mut Option<Turn>, asked: &mut Vec<(char, Asked)>) -> char {
        *held = None;
        for place in 0..asked.len() {
            if let Some(turn) = asked[place].1.as_mut().now_or_never() {
                *held = turn.ok();
                return asked.remove(place).0;
            }
        }
        panic!("nobody has a turn")
    }

    #[tokio::test]
    async fn clusters_take_turns_by_what_their_checks_cost() {
        let checks = Checks::new(1);
        let (dear, cheap) = (Some(ClusterId::random()), Some(ClusterId::random()));
        let mut held = checks.turn(dear, 100_000).await.ok();
        let mut asked: Vec<(char, Asked)> =
            (0..WAITING_MAX).map(|_| ('d', ask(&checks, dear, 100_000))).collect();
        asked.extend((0..50).map(|_| ('c', ask(&checks, cheap, 4_096))));
        let order: String = (0..54).map(|_| next(&mut held, &mut asked)).collect();
        // 100,000 are 24 times 4,096: about so many of the cheap ones for each dear one, and the cheap ones first.
        assert!(order.starts_with(&"c".repeat(24)), "{order}");
        assert_eq!(order.matches('d').count(), 4, "{order}");
        drop((held, asked));
        assert!(checks.lock().lanes.is_empty(), "clusters are remembered though nobody waits");
    }

    #[tokio::test]
    async fn who_comes_one_by_one_is_not_a_newcomer_every_time() {
        let checks = Checks::new(1);
        let (dear, cheap) = (Some(ClusterId::random()), Some(ClusterId::random()));
        let mut held = checks.turn(dear, 100_000).await.ok();
        let mut asked = vec![('d', ask(&checks, dear, 100_000))];
        asked.extend((0..50).map(|_| ('c', ask(&checks, cheap, 4_096))));
        let mut order = String::new();
        for _ in 0..40 {
            let whose = next(&mut held, &mut asked);
            order.push(whose);
            if whose == 'd' {
                asked.push(('d', ask(&checks, dear, 100_000)));
            }
        }
        assert_eq!(order.matches('d').count(), 1, "{order}");
    }

    #[tokio::test]
    async fn a_cluster_s_queue_ends_and_others_have_their_own() {
        let checks = Checks::new(1);
        let (flooded, other) = (Some(ClusterId::random()), Some(ClusterId::random()));
        let mut held = checks.turn(flooded, 4_096).await.ok();
        let mut asked: Vec<(char, Asked)> =
            (0..WAITING_MAX).map(|_| ('f', ask(&checks, flooded, 4_096))).collect();
        assert_eq!(checks.turn(flooded, 4_096).await.err(), Some(Refusal::TooManyChecks));
        let mut others = vec![('o', ask(&checks, other, 100_000)), ('n', ask(&checks, None, 4_096))];
        // Those whose clients are gone make room, and cost nothing.
        asked.truncate(1);
        asked.push(('g', ask(&checks, flooded, 4_096)));
        asked.append(&mut others);
        let order: String = (0..4).map(|_| next(&mut held, &mut asked)).collect();
        assert!(order.starts_with("on") && order.ends_with("fg"), "{order}");
    }

    #[tokio::test]
    async fn a_turn_that_nobody_takes_is_given_back() {
        let checks = Checks::new(1);
        let held = checks.turn(None, 1).await.ok();
        let left = ask(&checks, None, 1);
        // It has its turn, and its client leaves before it knows.
        drop(held);
        drop(left);
        assert!(checks.turn(None, 1).now_or_never().is_some_and(|turn| turn.is_ok()));
    }
}
