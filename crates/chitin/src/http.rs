//! The API's door: HTTPS over TLS 1.3, HTTP/1.1 and HTTP/2, bounded in every direction.

mod connection;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use gateway::{Crowding, Slot, Unauthenticated};
use model::{AddressRange, ClusterId, Origin, Way};
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use connection::{DRAIN_MAX, UNAUTHENTICATED_MAX, answer};

use crate::operator;

/// For a request to be answered. A client waits a little less.
const REQUEST_MAX: Duration = Duration::from_secs(150);
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Which kind of door an HTTP listener is.
#[derive(Clone, Debug)]
pub enum HttpDoor {
    /// Everybody finds it.
    Public,
    /// Behind a balancer: every connection begins with a PROXY header, from one of these peers.
    Balanced(Arc<[AddressRange]>),
    /// The front door inside this cluster's private network.
    Private(ClusterId),
}

impl HttpDoor {
    /// What the log calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Public => "the API",
            Self::Balanced(_) => "the API behind a balancer",
            Self::Private(_) => "the pages in a private network",
        }
    }

    /// Whose connection it is, where the peer is the client.
    fn origin(&self, peer: SocketAddr) -> Option<Origin> {
        match self {
            Self::Public => Some(Origin::public(peer.ip())),
            Self::Balanced(_) => None,
            Self::Private(cluster) => {
                Some(Origin { address: model::canonical(peer.ip()), way: Way::Private(*cluster) })
            }
        }
    }
}

/// Answers HTTPS requests.
#[derive(Clone)]
pub struct Server {
    tls: TlsAcceptor,
    router: Router,
}

/// The connections that are counted together: those of one door, or of all doors inside of private networks.
#[derive(Clone)]
pub struct Crowd {
    unauthenticated: Arc<Unauthenticated>,
    /// For connections on which somebody has shown a key.
    authenticated: Arc<Semaphore>,
}

/// What the connections of one door have in common.
#[derive(Clone)]
struct Place {
    server: Server,
    crowd: Crowd,
    stop: CancellationToken,
}

impl Crowd {
    /// Of so many without a key and as many with one; of those without, so many from one private network.
    pub fn new(name: &'static str, connections_max: usize, per_network_max: usize) -> Self {
        let first_byte_max = UNAUTHENTICATED_MAX;
        let crowding = Crowding { connections_max, per_network_max, first_byte_max };
        let authenticated = Arc::new(Semaphore::new(connections_max));
        Self { unauthenticated: Unauthenticated::new(name, crowding), authenticated }
    }
}

impl Server {
    /// Of what the router serves.
    pub fn new(certificates: Arc<dyn ResolvesServerCert>, router: Router) -> Result<Self, rustls::Error> {
        let tls = TlsAcceptor::from(Arc::new(tls(certificates)?));
        Ok(Self { tls, router: bounded(router) })
    }

    /// Answers requests at one more door until `stop`, then lets those that were begun finish.
    pub async fn serve(&self, listener: TcpListener, door: HttpDoor, crowd: Crowd, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let unauthenticated = crowd.unauthenticated.clone();
        let place = Place { server: self.clone(), crowd, stop: stop.clone() };
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(cause) => {
                    tracing::warn!(%cause, "an API connection could not be accepted");
                    unauthenticated.not_accepted(&cause);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let slot = unauthenticated.enter(door.origin(peer).as_ref());
            let (place, door) = (place.clone(), door.clone());
            tasks.spawn(async move {
                if let Err(cause) = place.receive(tcp, peer, &door, slot).await {
                    tracing::debug!(address = %peer.ip(), cause, "an API connection ended");
                }
            });
        }
        drop(listener);
        finish(tasks).await;
    }

    /// Answers requests at the operator's socket until `stop`. Nobody else comes in there, and it has places of its own, so
    /// that no crowd at another door keeps the operator out.
    pub async fn serve_operator(&self, socket: operator::Socket, crowd: Crowd, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let unauthenticated = crowd.unauthenticated.clone();
        let place = Place { server: self.clone(), crowd, stop: stop.clone() };
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = socket.accept() => accepted,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(operator::NotAccepted::Refused(why)) => {
                    tracing::warn!("closed a connection to the operator's socket: {why}");
                    continue;
                }
                Err(operator::NotAccepted::Failed(cause)) => {
                    tracing::warn!(%cause, "a connection to the operator's socket could not be accepted");
                    unauthenticated.not_accepted(&cause);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (place, slot) = (place.clone(), unauthenticated.enter(None));
            tasks.spawn(async move {
                let router = place.server.router.clone();
                if let Err(cause) = place.talk(stream, router, slot).await {
                    tracing::debug!(cause, "a connection to the operator's socket ended");
                }
            });
        }
        drop(socket);
        finish(tasks).await;
    }
}

impl Place {
    async fn receive(
        self,
        mut tcp: TcpStream,
        peer: SocketAddr,
        door: &HttpDoor,
        slot: Slot,
    ) -> Result<(), String> {
        gateway::prepare(&tcp);
        let origin = tokio::select! {
            biased;
            () = slot.evicted() => return Err("it made room for others".to_owned()),
            () = self.stop.cancelled() => return Ok(()),
            origin = arrive(&mut tcp, peer, door, &slot) => origin?,
        };
        // Verbs that anybody may call are bounded by who asks.
        let router = self.server.router.clone().layer(axum::Extension(origin));
        self.talk(tcp, router, slot).await
    }

    async fn talk<S>(self, stream: S, router: Router, slot: Slot) -> Result<(), String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = tokio::select! {
            biased;
            () = slot.evicted() => return Err("it made room for others".to_owned()),
            () = self.stop.cancelled() => return Ok(()),
            stream = timeout_at(slot.entered() + UNAUTHENTICATED_MAX, self.server.tls.accept(stream)) => {
                stream.map_err(|_| "the handshake took too long")?.map_err(|cause| cause.to_string())?
            }
        };
        answer(stream, router, slot, self.crowd.authenticated, self.stop).await
    }
}

/// The client, as the door shows it, once it has sent a byte.
async fn arrive(
    tcp: &mut TcpStream,
    peer: SocketAddr,
    door: &HttpDoor,
    slot: &Slot,
) -> Result<Origin, String> {
    let origin = match door {
        HttpDoor::Public | HttpDoor::Private(_) => door.origin(peer),
        HttpDoor::Balanced(trusted) => {
            let header = gateway::read_proxy_header(tcp, peer, trusted).await;
            let origin = header.map(|header| Origin::public(header.source().ip()));
            origin.inspect(|origin| slot.announced(origin))
        }
    };
    let origin = origin.ok_or("there is no PROXY header that counts")?;
    first_byte(tcp, slot).await?;
    slot.heard();
    Ok(origin)
}

async fn first_byte(tcp: &TcpStream, slot: &Slot) -> Result<(), String> {
    let come = timeout_at(slot.first_byte_by(), tcp.peek(&mut [0])).await;
    come.map_err(|_| "it said nothing")?.map_err(|cause| cause.to_string())?;
    Ok(())
}

async fn finish(tasks: TaskTracker) {
    tasks.close();
    if timeout(DRAIN_MAX + Duration::from_secs(1), tasks.wait()).await.is_err() {
        tracing::warn!("API requests did not end in time");
    }
}

/// A handler that hangs holds its client no longer than this.
fn bounded(router: Router) -> Router {
    router.layer(axum::middleware::from_fn(
        |request: axum::extract::Request, next: axum::middleware::Next| async move {
            if let Ok(response) = timeout(REQUEST_MAX, next.run(request)).await {
                return response;
            }
            let body = axum::Json(serde_json::json!({
                "code": 4,
                "message": "the request took too long; it may still be carried out, so look before you repeat it",
                "details": [],
            }));
            (StatusCode::GATEWAY_TIMEOUT, body).into_response()
        },
    ))
}

fn tls(certificates: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // As at the SQL door: nothing to resume, nothing to replay.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}
