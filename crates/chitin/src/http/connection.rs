//! One connection of the API, from the end of its handshake: it lives for seconds until a request on it has shown a key,
//! and then as long as it is used.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use gateway::Slot;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::REQUEST_MAX;

/// A connection on which nobody has shown a key is closed after this. People's browsers open another, with a web session too.
pub(super) const UNAUTHENTICATED_MAX: Duration = Duration::from_secs(10);
/// A connection on which somebody has, without a request.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// A connection is closed after this; clients open another.
const CONNECTION_MAX: Duration = Duration::from_secs(3_600);
/// For the head of a request to arrive.
const HEADERS_MAX: Duration = Duration::from_secs(15);
/// A connection without requests is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_MAX: Duration = Duration::from_secs(10);
/// For answers to be taken by a client whose connection is about to be closed.
const TAKEN_MAX: Duration = Duration::from_secs(2);
/// For requests that were begun when the program stops.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(5);
const STREAMS_MAX: u32 = 64;
/// What a client may send before it is read: a stranger's bytes are kept for nobody.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
const HEADER_BYTES_MAX: u32 = 32 * 1024;
const HEADERS_COUNT_MAX: usize = 64;

/// What has happened on a connection.
#[derive(Clone, Copy)]
struct Traffic {
    /// Requests that are not answered yet.
    under_way: usize,
    is_authenticated: bool,
    /// The connection is about to be closed.
    is_leaving: bool,
    /// When the last request was answered.
    since: Instant,
}

/// A request that is not answered yet, also when its client goes away before it is.
struct UnderWay(Arc<watch::Sender<Traffic>>);

impl UnderWay {
    /// None for a request that a leaving connection does not wait for: a client of HTTP/2 that does not want to hear that it
    /// is over could begin requests for ever.
    fn begin(traffic: &Arc<watch::Sender<Traffic>>) -> Option<Self> {
        let is_begun = traffic.send_if_modified(|traffic| {
            let is_begun = !traffic.is_leaving;
            traffic.under_way += usize::from(is_begun);
            is_begun
        });
        is_begun.then(|| Self(traffic.clone()))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|traffic| {
            traffic.under_way -= 1;
            traffic.since = Instant::now();
        });
    }
}

/// Answers the requests of one connection. `slot` is its place among those that nobody has signed in on, `places` has those
/// for the others.
pub(super) async fn answer<S>(
    stream: S,
    router: Router,
    slot: Slot,
    places: Arc<Semaphore>,
    stop: CancellationToken,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let opened = slot.entered();
    let traffic = Traffic { under_way: 0, is_authenticated: false, is_leaving: false, since: Instant::now() };
    let traffic = Arc::new(watch::Sender::new(traffic));
    let mut seen = traffic.subscribe();
    let router = recording(router, traffic.clone());
    let server = builder();
    let graceful = GracefulShutdown::new();
    let connection =
        server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned();
    let served = graceful.watch(connection);
    tokio::pin!(served);

    let mut slot = Some(slot);
    let mut place = None;
    loop {
        let Traffic { under_way, is_authenticated, is_leaving: _, since } = *seen.borrow_and_update();
        if is_authenticated && place.is_none() {
            // Where there is none left, the answer was given all the same, and the client comes again.
            place = places.clone().try_acquire_owned().ok();
            slot = slot.filter(|_| place.is_none());
        }
        let until = match (&slot, under_way) {
            (Some(_), _) => opened + UNAUTHENTICATED_MAX,
            (None, 0) => (since + IDLE_MAX).min(opened + CONNECTION_MAX),
            (None, _) => opened + CONNECTION_MAX,
        };
        tokio::select! {
            ended = &mut served => return ended.map_err(|cause| cause.to_string()),
            () = evicted(slot.as_ref()) => return Err("it made room for others".to_owned()),
            () = stop.cancelled() => break,
            () = sleep_until(until) => break,
            Ok(()) = seen.changed() => {}
        }
    }

    // What was begun is answered, a person's sign-in at a slow provider too; what is begun now is not waited for.
    traffic.send_modify(|traffic| traffic.is_leaving = true);
    let leave = async {
        let (ended, ()) = tokio::join!(served, graceful.shutdown());
        ended.map_err(|cause| cause.to_string())
    };
    let patience = async {
        let _ = timeout(REQUEST_MAX, seen.wait_for(|traffic| traffic.under_way == 0)).await;
        sleep(TAKEN_MAX).await;
    };
    let stopping = async {
        stop.cancelled().await;
        sleep(DRAIN_MAX).await;
    };
    tokio::select! {
        ended = leave => ended,
        () = patience => Ok(()),
        () = stopping => Ok(()),
        () = evicted(slot.as_ref()) => Err("it made room for others".to_owned()),
    }
}

/// Never, for a connection that has signed in.
async fn evicted(slot: Option<&Slot>) {
    match slot {
        Some(slot) => slot.evicted().await,
        None => std::future::pending().await,
    }
}

/// The router, with an eye on what is asked and who has signed in.
fn recording(router: Router, traffic: Arc<watch::Sender<Traffic>>) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| {
        let traffic = traffic.clone();
        async move {
            let _under_way = UnderWay::begin(&traffic);
            let response = next.run(request).await;
            if response.extensions().get::<control::Authenticated>().is_some() {
                traffic.send_modify(|traffic| traffic.is_authenticated = true);
            }
            response
        }
    }))
}

fn builder() -> auto::Builder<TokioExecutor> {
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
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX);
    server
}
