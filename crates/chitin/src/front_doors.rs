//! The front doors inside private networks: the same gateway and the same pages, seen from one cluster's network only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::SignInDesk;
use futures::future::BoxFuture;
use gateway::{Door, Gateway};
use model::{ClusterId, Way};
use store::Store;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certificates::{Certificates, Inside};
use crate::directory::Directory;
use crate::http::{self, HttpDoor};
use crate::presence::Presence;
use crate::watch;

/// For those inside who may not stay to be told so. Who does not read is not waited for longer.
const TOLD_MAX: Duration = Duration::from_secs(2);
/// How often it is looked whether they are gone.
const TOLD_LOOK: Duration = Duration::from_millis(10);

/// Opens and closes them.
pub struct FrontDoors {
    gateway: Arc<Gateway>,
    certificates: Arc<Certificates>,
    store: Arc<Store>,
    presence: Arc<Presence>,
    directory: Arc<Directory>,
    /// Whose pages are shown, without the API, which is the operator's.
    desk: Arc<dyn SignInDesk>,
    /// The connections of the pages in all networks.
    crowd: http::Crowd,
    open: Mutex<HashMap<ClusterId, CancellationToken>>,
    tasks: TaskTracker,
}

impl FrontDoors {
    /// None is open yet.
    pub fn new(
        gateway: Arc<Gateway>,
        certificates: Arc<Certificates>,
        store: Arc<Store>,
        presence: Arc<Presence>,
        directory: Arc<Directory>,
        desk: Arc<dyn SignInDesk>,
        crowd: http::Crowd,
    ) -> Arc<Self> {
        let (open, tasks) = (Mutex::default(), TaskTracker::new());
        Arc::new(Self { gateway, certificates, store, presence, directory, desk, crowd, open, tasks })
    }

    /// Closes them all and waits for requests that were begun. Sessions are the gateway's to end.
    pub async fn close_all(&self) {
        for (_, stop) in self.doors().drain() {
            stop.cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Whether somebody is in the cluster's private network who may not stay.
    fn is_anybody_to_go(&self, cluster: ClusterId) -> bool {
        let snapshot = self.store.snapshot();
        self.presence.any(|facts| {
            let is_inside = facts.cluster == cluster && facts.origin.way == Way::Private(cluster);
            is_inside && watch::verdict(&snapshot, &self.directory, facts).is_some()
        })
    }

    fn doors(&self) -> MutexGuard<'_, HashMap<ClusterId, CancellationToken>> {
        // Single inserts and removals.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl reconcile::FrontDoors for FrontDoors {
    fn open(&self, cluster: ClusterId, sql: TcpListener, http: TcpListener) {
        let snapshot = self.store.snapshot();
        let address = snapshot.get(&cluster).and_then(|entry| entry.cluster.network.front_door());
        let inside = Arc::new(Inside::new(self.certificates.clone(), address));
        // Pages of its own: they count their visitors by address, and other networks have the same addresses.
        let pages = control::pages(self.desk.clone());
        let web = match http::Server::new(inside, pages) {
            Ok(web) => web,
            Err(cause) => {
                return tracing::error!(%cluster, %cause, "the private listener in a private network could not be opened");
            }
        };
        let stop = CancellationToken::new();
        if let Some(before) = self.doors().insert(cluster, stop.clone()) {
            before.cancel();
        }
        let (gateway, stop_sql) = (self.gateway.clone(), stop.clone());
        self.tasks.spawn(async move { gateway.serve(sql, Door::Private(cluster), stop_sql).await });
        let crowd = self.crowd.clone();
        self.tasks.spawn(async move { web.serve(http, HttpDoor::Private(cluster), crowd, stop).await });
    }

    fn close(&self, cluster: ClusterId) {
        if let Some(stop) = self.doors().remove(&cluster) {
            stop.cancel();
        }
    }

    fn told(&self, cluster: ClusterId) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let gone = async {
                while self.is_anybody_to_go(cluster) {
                    sleep(TOLD_LOOK).await;
                }
            };
            if timeout(TOLD_MAX, gone).await.is_err() {
                tracing::warn!(%cluster, "somebody in a private network did not read that the session is over");
            }
        })
    }
}
