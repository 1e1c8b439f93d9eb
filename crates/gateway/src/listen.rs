//! Station 1: the door. Strangers are counted, per address and all together.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use identity::hba::Rules;
use identity::throttle::Throttle;
use model::ClusterId;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::directory::{Directory, Waker};
use crate::door::Door;
use crate::examine::Examiner;
use crate::journey::travel;
use crate::pace::Pace;
use crate::{Certificates, Cut, Sessions, Settings};

/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A peer that vanished without a word is noticed after about two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);

/// The front door for SQL.
pub struct Gateway {
    house: Arc<House>,
    /// Everybody inside, through whichever door.
    tasks: TaskTracker,
}

/// Who answers the gateway's questions.
pub struct Answers {
    /// Which certificate is shown.
    pub certificates: Arc<dyn Certificates>,
    /// Who and what exists.
    pub directory: Arc<dyn Directory>,
    /// Who wakes engines.
    pub waker: Arc<dyn Waker>,
    /// Who checks proofs that need a look outside.
    pub examiner: Arc<dyn Examiner>,
    /// What failed sign-ins cost.
    pub throttle: Arc<Throttle>,
}

/// What every journey needs.
pub(crate) struct House {
    pub(crate) settings: Settings,
    pub(crate) certificates: Arc<dyn Certificates>,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) waker: Arc<dyn Waker>,
    pub(crate) examiner: Arc<dyn Examiner>,
    pub(crate) throttle: Arc<Throttle>,
    /// The rules of a cluster that does not exist: those that most clusters have.
    pub(crate) standard: Arc<Rules>,
    /// Passwords in clear that may be checked at this moment.
    pub(crate) clear_checks: Arc<Semaphore>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) cancels: Semaphore,
    pub(crate) pace: Pace,
    strangers: Arc<Strangers>,
}

/// Connections that are not signed in: those at the doors that everybody finds (`None`), and those of each private
/// network. A network full of strangers takes no place of anybody else's.
#[derive(Default)]
struct Strangers {
    by_address: Mutex<HashMap<(Option<ClusterId>, IpAddr), usize>>,
    all: Mutex<HashMap<Option<ClusterId>, usize>>,
}

/// A place among the strangers, given back when it is dropped.
pub(crate) struct Stranger {
    strangers: Arc<Strangers>,
    network: Option<ClusterId>,
    address: Option<IpAddr>,
}

impl Gateway {
    /// Puts the door into the wall; [`Self::serve`] opens it.
    pub fn new(settings: Settings, answers: Answers) -> Self {
        let Answers { certificates, directory, waker, examiner, throttle } = answers;
        let house = House {
            settings,
            certificates,
            directory,
            waker,
            examiner,
            throttle,
            standard: Arc::new(Rules::standard()),
            clear_checks: Arc::new(Semaphore::new(settings.clear_checks_max)),
            sessions: Sessions::new(),
            cancels: Semaphore::new(settings.cancels_max),
            pace: Pace::default(),
            strangers: Arc::default(),
        };
        Self { house: Arc::new(house), tasks: TaskTracker::new() }
    }

    /// Everybody who is signed in.
    pub fn sessions(&self) -> Arc<Sessions> {
        self.house.sessions.clone()
    }

    /// Lets clients in through one more door until `stop`. Whoever is inside stays.
    pub async fn serve(&self, listener: TcpListener, door: Door, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(cause) => {
                    tracing::warn!(%cause, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let address = door.shows_clients().then_some(peer.ip());
            let House { strangers, settings, .. } = &*self.house;
            let Some(stranger) = strangers.enter(settings, door.network(), address) else {
                tracing::warn!(address = %peer.ip(), "dropped a connection: too many that are not signed in");
                continue;
            };
            prepare(&tcp);
            self.tasks.spawn(travel(self.house.clone(), tcp, peer, door.clone(), stranger));
        }
    }

    /// Lets those inside finish what they are doing, for a while. To be called once every door is closed.
    pub async fn drain(&self) {
        self.tasks.close();
        let settings = &self.house.settings;
        let count = self.house.sessions.cut(|_| Some(Cut::Stopping));
        if count > 0 {
            tracing::info!(sessions = count, "letting open sessions finish");
        }
        let patience = settings.drain_max + 2 * settings.cut_max;
        if tokio::time::timeout(patience, self.house.sessions.empty()).await.is_err() {
            tracing::warn!(sessions = self.house.sessions.total(), "sessions did not end in time");
        }
        // Those who never signed in need no farewell; a moment for the last words of the others.
        let _ = tokio::time::timeout(settings.cut_max, self.tasks.wait()).await;
    }
}

impl Strangers {
    /// A place for a connection; the address is counted where it is the client's own.
    fn enter(
        self: &Arc<Self>,
        settings: &Settings,
        network: Option<ClusterId>,
        address: Option<IpAddr>,
    ) -> Option<Stranger> {
        {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            let count = all.entry(network).or_default();
            if *count >= bounds(settings, network).0 {
                return None;
            }
            *count += 1;
        }
        let stranger = Stranger { strangers: self.clone(), network, address: None };
        match address {
            Some(address) => stranger.at(settings, address),
            None => Some(stranger),
        }
    }
}

/// Most strangers in all, and from one address.
fn bounds(settings: &Settings, network: Option<ClusterId>) -> (usize, usize) {
    match network {
        None => (settings.strangers_max, settings.strangers_per_address_max),
        // No single machine takes a whole network's places.
        Some(_) => (settings.strangers_per_network_max, settings.strangers_per_network_max.div_ceil(2)),
    }
}

impl Stranger {
    /// Counts the stranger at its address too; `None` where there are too many from there.
    pub(crate) fn at(mut self, settings: &Settings, address: IpAddr) -> Option<Self> {
        let address = model::neighbourhood(address);
        {
            let mut by_address = self.strangers.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            let count = by_address.entry((self.network, address)).or_default();
            if *count >= bounds(settings, self.network).1 {
                return None;
            }
            *count += 1;
        }
        self.address = Some(address);
        Some(self)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        give_back(&self.strangers.all, &self.network);
        if let Some(address) = self.address {
            give_back(&self.strangers.by_address, &(self.network, address));
        }
    }
}

fn give_back<Key: Eq + Hash>(counts: &Mutex<HashMap<Key, usize>>, key: &Key) {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn prepare(tcp: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_EVERY);
    // Best effort: a socket without these works, only later.
    let _ = SockRef::from(tcp).set_tcp_keepalive(&keepalive);
    let _ = tcp.set_nodelay(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            strangers_max: 4,
            strangers_per_address_max: 2,
            strangers_per_network_max: 4,
            ..Settings::default()
        }
    }

    #[test]
    fn t09_strangers_of_one_private_network_take_nobody_else_s_places() {
        let (settings, strangers) = (settings(), Arc::new(Strangers::default()));
        let (one, other) = (Some(ClusterId::random()), Some(ClusterId::random()));
        let enter =
            |network, last: u8| strangers.enter(&settings, network, Some(IpAddr::from([192, 168, 5, last])));
        // Every place that one network can take, from addresses that others have too.
        let flood: Vec<Stranger> = (0..200).filter_map(|last| enter(one, last)).collect();
        assert_eq!(flood.len(), 4);
        let others: Vec<Option<Stranger>> =
            vec![enter(other, 0), enter(other, 0), enter(None, 0), enter(None, 0)];
        assert!(others.iter().all(Option::is_some), "another network, or the public, has no place left");
        drop((flood, others));
        assert!(strangers.all.lock().unwrap().is_empty() && strangers.by_address.lock().unwrap().is_empty());
    }

    #[test]
    fn one_machine_takes_no_more_than_its_part() {
        let (settings, strangers) = (settings(), Arc::new(Strangers::default()));
        for network in [None, Some(ClusterId::random())] {
            let enter = |last: u8| strangers.enter(&settings, network, Some(IpAddr::from([10, 0, 0, last])));
            let kept: Vec<Stranger> = (0..9).filter_map(|_| enter(1)).collect();
            assert_eq!(kept.len(), 2);
            assert!(enter(2).is_some(), "a neighbour is kept out");
        }
    }
}
