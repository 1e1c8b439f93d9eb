//! Station 1: the door. Every listener counts its own connections that are not signed in.

use std::sync::Arc;
use std::time::Duration;

use identity::hba::Rules;
use identity::throttle::Throttle;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cancel::Cancels;
use crate::directory::{Directory, Waker};
use crate::door::Door;
use crate::examine::Examiner;
use crate::journey::travel;
use crate::sign_in::checks::Checks;
use crate::{Certificates, Crowding, Cut, Sessions, Settings, Unauthenticated};

/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A peer that acknowledges nothing for so long is gone: what was sent to it, a question whether it is still there, or one
/// whether it has room for more. With the pauses between the questions it is noticed within a minute.
pub(crate) const VANISHED_MAX: Duration = Duration::from_secs(45);
/// From when on a silent peer is asked, and how often.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
/// Bytes that the kernel keeps for a client beside those under way. With more, one that takes little would be seen to take
/// something only after a megabyte.
const UNSENT_BYTES_MAX: u32 = 512 * 1024;

/// The front door for SQL.
pub struct Gateway {
    house: Arc<House>,
    /// Who has not signed in at the doors inside of private networks.
    private: Arc<Unauthenticated>,
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
    pub(crate) clear_checks: Arc<Checks>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) cancels: Cancels,
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
            clear_checks: Checks::new(settings.clear_checks_max),
            sessions: Sessions::new(settings.sessions_max),
            cancels: Cancels::new(settings.cancels_per_cluster_max),
        };
        let private = Unauthenticated::new("SQL in private networks", crowding(&settings));
        Self { house: Arc::new(house), private, tasks: TaskTracker::new() }
    }

    /// Everybody who is signed in.
    pub fn sessions(&self) -> Arc<Sessions> {
        self.house.sessions.clone()
    }

    /// Lets clients in through one more door until `stop`. Whoever is inside stays. Each door counts by itself, so that a
    /// crowd at one keeps nobody out of another.
    pub async fn serve(&self, listener: TcpListener, door: Door, stop: CancellationToken) {
        let settings = &self.house.settings;
        let unauthenticated = match &door {
            // There are as many as there are private networks, so together they have no more than one other door.
            Door::Private(_) => self.private.clone(),
            Door::Public | Door::Balanced(_) | Door::Endpoints(_) | Door::Proxies => {
                Unauthenticated::new(door.name(), crowding(settings))
            }
        };
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(cause) => {
                    tracing::warn!(%cause, "a connection could not be accepted");
                    unauthenticated.not_accepted(&cause);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let slot = unauthenticated.enter(door.origin(peer).as_ref());
            prepare(&tcp);
            self.tasks.spawn(travel(self.house.clone(), tcp, peer, door.clone(), slot));
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

fn crowding(settings: &Settings) -> Crowding {
    Crowding {
        connections_max: settings.unauthenticated_max,
        per_network_max: settings.unauthenticated_per_network_max,
        first_byte_max: settings.sign_in_max,
    }
}

/// Sets a client's connection so that a peer that vanishes without a word is noticed within a minute.
pub fn prepare(tcp: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_EVERY);
    // Best effort: a socket without these works, only later.
    let socket = SockRef::from(tcp);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(VANISHED_MAX));
    let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
    let _ = tcp.set_nodelay(true);
}
