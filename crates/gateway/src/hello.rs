//! Station 2: what the connection begins with. Only TLS goes on, and no byte sent before it is read after it. A cancel may
//! come in plaintext.

use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::StartHandshake;
use wire::hello::{CancelKey, HELLO_BYTES, Hello};

use crate::line::Line;
use crate::refusal::Refusal;
use crate::tls::ALPN;

/// A client that has sent its ClientHello and waits for ours.
pub(crate) struct Greeted {
    pub(crate) handshake: StartHandshake<Line>,
    /// The name that the client asked for, in lower case.
    pub(crate) server_name: Option<String>,
}

/// What a connection begins with.
pub(crate) enum Opening {
    Tls(Box<Greeted>),
    /// A cancel request in plaintext. The connection is closed.
    Cancel(CancelKey),
}

/// TLS alerts (RFC 8446, section 6) that we send before a session exists.
#[derive(Clone, Copy)]
pub(crate) enum Alert {
    AccessDenied = 49,
    NoApplicationProtocol = 120,
}

/// Reads up to the ClientHello.
pub(crate) async fn greet(mut line: Line) -> Result<Opening, Refusal> {
    let mut may_ask_for_gss = true;
    let is_direct = loop {
        let Some(first) = line.look().await? else {
            return Err(Refusal::Lost);
        };
        if Hello::is_tls(first) {
            // After a refused GSSENCRequest, TLS must be asked for (PostgreSQL 17, `ProcessStartupPacket`).
            if !may_ask_for_gss {
                return Err(Refusal::Lost);
            }
            break true;
        }
        let mut bytes = [0; HELLO_BYTES];
        line.read_exact(&mut bytes).await?;
        match Hello::parse(bytes) {
            Ok(Hello::SslRequest) => {
                refuse_early_bytes(&mut line).await?;
                line.write_all(b"S").await?;
                break false;
            }
            Ok(Hello::GssEncRequest) if may_ask_for_gss => {
                refuse_early_bytes(&mut line).await?;
                line.write_all(b"N").await?;
                may_ask_for_gss = false;
            }
            Ok(Hello::Startup { rest, .. }) => {
                // Read to its end, so that closing does not reset the connection before the client reads the reason.
                let mut unread = (&mut line).take(rest as u64);
                tokio::io::copy(&mut unread, &mut tokio::io::sink()).await?;
                return refuse_in_plaintext(line, Refusal::Plaintext).await;
            }
            Ok(Hello::Cancel { rest }) => {
                let mut key = vec![0; rest];
                line.read_exact(&mut key).await?;
                // Closed first: how long the rest takes must not show.
                let _ = line.shutdown().await;
                return Ok(Opening::Cancel(CancelKey::parse(&key)?));
            }
            Ok(Hello::GssEncRequest | Hello::Tls) => return Err(Refusal::Lost),
            Err(malformed) => return refuse_in_plaintext(line, malformed.into()).await,
        }
    };
    let handshake = LazyConfigAcceptor::new(Acceptor::default(), line).await?;
    let hello = handshake.client_hello();
    let server_name = hello.server_name().map(str::to_ascii_lowercase);
    // ALPN is what keeps another protocol's TLS client from being led here (ALPACA); PostgreSQL demands it too.
    if is_direct && !hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ALPN)) {
        return Err(alert(handshake.io, Alert::NoApplicationProtocol).await);
    }
    Ok(Opening::Tls(Box::new(Greeted { handshake, server_name })))
}

/// Ends a handshake that has not begun on our side.
pub(crate) async fn alert(mut line: Line, alert: Alert) -> Refusal {
    // A fatal alert in a plaintext record (RFC 8446, 5.1 and 6).
    let record = [21, 3, 3, 0, 2, 2, alert as u8];
    if line.write_all(&record).await.is_ok() {
        let _ = line.shutdown().await;
    }
    Refusal::Lost
}

/// Bytes that are already there were sent before the client could know our answer: an attempt to have plaintext read as
/// if it had come through TLS (CVE-2021-23222 and its class).
async fn refuse_early_bytes(line: &mut Line) -> Result<(), Refusal> {
    if line.has_more().await { Err(Refusal::Lost) } else { Ok(()) }
}

async fn refuse_in_plaintext(mut line: Line, refusal: Refusal) -> Result<Opening, Refusal> {
    if let Some(report) = refusal.report() {
        line.write_all(&report).await?;
        let _ = line.shutdown().await;
    }
    Err(refusal)
}
