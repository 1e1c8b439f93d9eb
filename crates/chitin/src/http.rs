//! The API's door: HTTPS over TLS 1.3, HTTP/1.1 and HTTP/2, bounded in every direction.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use model::{AddressRange, ClusterId, Origin, Way};
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// From the first byte to the end of the TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// For the head of a request to arrive.
const HEADERS_MAX: Duration = Duration::from_secs(15);
/// For a request to be answered. A client waits a little less.
const REQUEST_MAX: Duration = Duration::from_secs(150);
/// A connection without requests is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_MAX: Duration = Duration::from_secs(10);
/// A connection is closed after this; clients open another.
const CONNECTION_MAX: Duration = Duration::from_secs(3_600);
const CONNECTIONS_MAX: usize = 1_024;
const STREAMS_MAX: u32 = 64;
const HEADER_BYTES_MAX: u32 = 32 * 1024;
const HEADERS_COUNT_MAX: usize = 64;
/// For requests that were begun when the program stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);
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

/// Answers HTTPS requests.
#[derive(Clone)]
pub struct Server {
    tls: TlsAcceptor,
    router: Router,
    places: Arc<Semaphore>,
}

impl Server {
    /// Of what the router serves.
    pub fn new(certificates: Arc<dyn ResolvesServerCert>, router: Router) -> Result<Self, rustls::Error> {
        let tls = TlsAcceptor::from(Arc::new(tls(certificates)?));
        Ok(Self { tls, router: bounded(router), places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) })
    }

    /// Answers requests at one more door until `stop`, then lets those that were begun finish.
    pub async fn serve(&self, listener: TcpListener, door: HttpDoor, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(cause) => {
                    tracing::warn!(%cause, "an API connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                tracing::warn!(address = %peer.ip(), "dropped an API connection: there are {CONNECTIONS_MAX} already");
                continue;
            };
            let (server, door, stop) = (self.clone(), door.clone(), stop.clone());
            let talk = async move {
                let (tcp, origin) = arrive(tcp, peer, &door).await?;
                // Verbs that anybody may call are bounded by who asks.
                let router = server.router.layer(axum::Extension(origin));
                talk(server.tls, tcp, router, stop, place).await
            };
            tasks.spawn(async move {
                if let Ok(Err(cause)) = timeout(CONNECTION_MAX, talk).await {
                    tracing::debug!(address = %peer.ip(), cause, "an API connection ended");
                }
            });
        }
        drop(listener);
        tasks.close();
        if timeout(DRAIN_MAX + Duration::from_secs(1), tasks.wait()).await.is_err() {
            tracing::warn!("API requests did not end in time");
        }
    }
}

/// The client, as the door shows it.
async fn arrive(
    mut tcp: TcpStream,
    peer: SocketAddr,
    door: &HttpDoor,
) -> Result<(TcpStream, Origin), String> {
    let address = match door {
        HttpDoor::Public => peer.ip(),
        HttpDoor::Private(cluster) => {
            let origin = Origin { address: model::canonical(peer.ip()), way: Way::Private(*cluster) };
            return Ok((tcp, origin));
        }
        HttpDoor::Balanced(trusted) => {
            let header = gateway::read_proxy_header(&mut tcp, peer, trusted).await;
            header.ok_or("there is no PROXY header that counts")?.source().ip()
        }
    };
    Ok((tcp, Origin::public(address)))
}

async fn talk(
    tls: TlsAcceptor,
    tcp: TcpStream,
    router: Router,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
) -> Result<(), String> {
    let _ = tcp.set_nodelay(true);
    let stream = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        stream = timeout(HANDSHAKE_MAX, tls.accept(tcp)) => {
            stream.map_err(|_| "the handshake took too long".to_owned())?.map_err(|cause| cause.to_string())?
        }
    };
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_MAX)
        .max_headers(HEADERS_COUNT_MAX)
        .max_buf_size(HEADER_BYTES_MAX as usize);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX);
    let graceful = GracefulShutdown::new();
    let service = TowerToHyperService::new(router);
    let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
    let served = graceful.watch(connection);
    tokio::pin!(served);
    tokio::select! {
        ended = &mut served => return ended.map_err(|cause| cause.to_string()),
        () = stop.cancelled() => {}
    }
    let leave = async {
        let (ended, ()) = tokio::join!(served, graceful.shutdown());
        ended.map_err(|cause| cause.to_string())
    };
    timeout(DRAIN_MAX, leave).await.unwrap_or(Ok(()))
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
