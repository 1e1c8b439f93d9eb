//! One client's way through the stations.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use keys::ChannelBinding;
use model::{ClusterHandle, ClusterId, Origin};
use rustix::io::Errno;
use rustls::pki_types::CertificateDer;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use wire::hello::CancelKey;

use crate::admit::{Admission, admit, refusal};
use crate::attach::{Attached, attach};
use crate::directory::{Engine, NotReady};
use crate::door::{Arrived, Door, arrive};
use crate::hello::{Alert, Greeted, Opening, alert, greet};
use crate::listen::House;
use crate::refusal::Refusal;
use crate::relay::relay;
use crate::route::{Route, handle_in_server_name, route};
use crate::sessions::{Limits, Seat};
use crate::sign_in::{Claim, Identity, prove};
use crate::startup::Wanted;
use crate::stream::{ClientStream, send};
use crate::{Cut, SessionFacts, Slot, cancel, startup, tls};

/// A client in private: TLS stands, nobody knows yet who it is.
struct Private {
    client: ClientStream,
    origin: Origin,
    manner: Manner,
}

/// What the listener and the handshake showed of a client.
struct Manner {
    /// Whether the connection is its own, and not that of somebody who speaks for many.
    is_direct: bool,
    server_name: Option<String>,
    binding: ChannelBinding,
    /// The certificates that the client sent, its own first. The handshake has proven that it holds that one's key.
    presented: Vec<CertificateDer<'static>>,
}

/// How far a client got.
enum Entered {
    Session(Box<Seated>),
    /// It only came to cancel: with this key, in the cluster that it named.
    Cancel(CancelKey, Option<ClusterHandle>),
}

/// A session that can begin.
struct Seated {
    engine: Arc<dyn Engine>,
    attached: Attached,
    seat: Seat,
    cut: oneshot::Receiver<Cut>,
}

/// Takes a client as far as it gets. Ends when its connection does.
pub(crate) async fn travel(house: Arc<House>, tcp: TcpStream, peer: SocketAddr, door: Door, slot: Slot) {
    let deadline = Instant::now() + house.settings.sign_in_max;
    // Boxed, so that what signing in needs is given back before the session begins.
    let private = Box::pin(become_private(&house, tcp, peer, door, &slot));
    let private = tokio::select! {
        biased;
        () = slot.evicted() => return tracing::debug!(%peer, "a connection made room for others before TLS"),
        private = timeout_at(deadline, private) => private,
    };
    let private = match private {
        Ok(Ok(private)) => private,
        Ok(Err(refusal)) => return tracing::debug!(%peer, ?refusal, "a connection ended before TLS"),
        Err(_) => return tracing::debug!(%peer, "a connection was too slow"),
    };
    let Private { mut client, origin, manner } = private;
    let is_direct = manner.is_direct;
    // Kept until the session has a slot of its own, or the client has heard why there is none.
    let mut slot = Some(slot);
    let entered = Box::pin(enter(&house, &mut client, manner, &origin, deadline, &mut slot)).await;
    match entered {
        Ok(Entered::Session(seated)) => {
            let Seated { engine, attached, seat, cut } = *seated;
            let facts = seat.facts.clone();
            let Attached { engine: stream, engine_key, .. } = attached;
            let interrupt = async || {
                cancel::interrupt(&house.cancels, facts.cluster, &*engine, engine_key.as_ref()).await;
            };
            let ended = relay(client, stream, cut, &house.settings, &*engine, interrupt).await;
            drop(seat);
            tracing::info!(cluster = %facts.cluster, user = %facts.user, from = %origin, ?ended, "session ended");
        }
        Ok(Entered::Cancel(key, named)) => {
            // Closed first: how long the rest takes must not show.
            let _ = client.shutdown().await;
            drop(client);
            let named = named.as_ref();
            let request =
                cancel::Request { key: &key, origin: &origin, named, is_encrypted: true, is_direct };
            let cancel = cancel::cancel(&house.sessions, &*house.directory, &house.cancels, request);
            let _ = timeout_at(deadline, cancel).await;
        }
        Err(refusal) => {
            tracing::info!(from = %origin, ?refusal, "refused");
            let farewell = async {
                if let Some(report) = refusal.report() {
                    client.write_all(&report).await?;
                }
                client.shutdown().await
            };
            let _ = timeout(house.settings.cut_max, farewell).await;
        }
    }
}

async fn become_private(
    house: &House,
    tcp: TcpStream,
    peer: SocketAddr,
    door: Door,
    slot: &Slot,
) -> Result<Private, Refusal> {
    if door.shows_clients() {
        timeout_at(slot.first_byte_by(), tcp.peek(&mut [0])).await??;
        slot.heard();
    }
    let Arrived { mut line, origin, inside } = arrive(tcp, peer, &door, &*house.certificates).await?;
    if !door.shows_clients() {
        // Until now only the proxy was known, which speaks for many and sends its header by itself.
        slot.announced(&origin);
        timeout_at(slot.first_byte_by(), line.look()).await??;
        slot.heard();
    }
    let Greeted { handshake, server_name } = match greet(line).await? {
        Opening::Tls(greeted) => *greeted,
        Opening::Cancel(key) => {
            let (is_encrypted, is_direct) = (false, door.is_direct());
            let request =
                cancel::Request { key: &key, origin: &origin, named: None, is_encrypted, is_direct };
            cancel::cancel(&house.sessions, &*house.directory, &house.cancels, request).await;
            return Err(Refusal::Lost);
        }
    };
    let named = server_name.as_deref().and_then(handle_in_server_name);
    let refused = match named.as_ref().map(|handle| admit(&*house.directory, handle, &origin)) {
        Some(Admission::Admitted(_) | Admission::Unknown) => None,
        Some(Admission::Refused(refusal)) => Some(refusal),
        // Many clients name their cluster inside TLS only: whom nobody lets in need not get that far.
        None => (!house.directory.might_admit(&origin)).then(|| refusal(&origin)),
    };
    if let Some(refusal) = refused {
        tracing::info!(from = %origin, cluster = ?named, ?refusal, "refused before the handshake");
        return Err(alert(handshake.io, Alert::AccessDenied).await);
    }
    let shown = house.certificates.shown(server_name.as_deref(), inside);
    let client = handshake.into_stream(shown.config.clone()).await?;
    let presented = tls::presented(client.get_ref().1)
        .iter()
        .map(|certificate| certificate.clone().into_owned())
        .collect();
    let binding = shown.binding.clone();
    let manner = Manner { is_direct: door.is_direct(), server_name, binding, presented };
    Ok(Private { client, origin, manner })
}

async fn enter(
    house: &House,
    client: &mut ClientStream,
    manner: Manner,
    origin: &Origin,
    deadline: Instant,
    slot: &mut Option<Slot>,
) -> Result<Entered, Refusal> {
    let is_direct = manner.is_direct;
    let known = tokio::select! {
        biased;
        Some(()) = evicted(slot.as_ref()) => return Err(Refusal::Crowded),
        known = become_known(house, client, manner, origin, deadline) => known?,
    };
    let (identity, route, minor) = match known {
        Known::Person(identity, route, minor) => (identity, *route, minor),
        Known::Canceller(key, named) => return Ok(Entered::Cancel(key, named)),
    };
    let cluster = identity.cluster();
    let facts = SessionFacts {
        cluster: cluster.id,
        user: identity.user().as_str().into(),
        origin: origin.clone(),
        is_direct,
        certificate: identity.certificate().cloned(),
    };
    let limits = Limits {
        per_cluster: cluster.connections_max,
        per_user: cluster.connections_per_user_max.min(identity.connections_max().unwrap_or(u32::MAX)),
    };
    let told = |refusal: &Refusal| tell_operator(refusal, cluster.id, house.settings.sessions_max);
    let (seat, mut cut) = house.sessions.seat(facts, limits).inspect_err(told)?;
    drop(slot.take());
    // Once more, now that a cut would find us: the rules may have changed while the client was proving itself.
    if !house.directory.admits(cluster.id, origin) {
        return Err(refusal(origin));
    }
    let method = identity.method().as_str();
    tracing::info!(cluster = %route.handle, user = %identity.user(), from = %origin, method, "signed in");

    let (engine, attached) = tokio::select! {
        reason = &mut cut => return Err(reason.map_or(Refusal::Lost, Refusal::Cut)),
        attached = open(house, &identity, &route) => attached.inspect_err(told)?,
    };
    let mut messages = attached.greeting.clone();
    if let Some(engine_key) = attached.engine_key.clone() {
        // 32 bytes from protocol 3.2 on, as PostgreSQL 18; 4 before, which is all that older clients can hold.
        let secret_bytes = if minor >= 2 { 32 } else { 4 };
        let told = seat.attached(engine.clone(), engine_key, secret_bytes);
        messages.extend(wire::backend::key_data(told.process_id, &told.secret));
    }
    messages.extend_from_slice(&attached.ready);
    timeout(house.settings.attach_max, send(client, &messages)).await??;
    Ok(Entered::Session(Box::new(Seated { engine, attached, seat, cut })))
}

async fn evicted(slot: Option<&Slot>) -> Option<()> {
    slot?.evicted().await;
    Some(())
}

/// Who a client is, or that it only came to cancel.
enum Known {
    Person(Identity, Box<Route>, u16),
    Canceller(CancelKey, Option<ClusterHandle>),
}

/// Startup and sign-in.
async fn become_known(
    house: &House,
    client: &mut ClientStream,
    manner: Manner,
    origin: &Origin,
    deadline: Instant,
) -> Result<Known, Refusal> {
    let startup = match timeout_at(deadline, startup::read(client)).await?? {
        Wanted::Session(startup) => startup,
        Wanted::Cancel(key) => {
            let named = manner.server_name.as_deref().and_then(handle_in_server_name);
            return Ok(Known::Canceller(key, named));
        }
    };
    let route = route(&startup, manner.server_name.as_deref())?;
    let cluster = match admit(&*house.directory, &route.handle, origin) {
        Admission::Admitted(found) => Some(found),
        Admission::Unknown => None,
        Admission::Refused(refusal) => return Err(refusal),
    };
    let claim = Claim {
        handle: &route.handle,
        cluster,
        user: &route.user,
        database: &route.database,
        origin,
        brings_token: route.brings_token,
        presented: manner.presented,
    };
    let identity = prove(house, client, &claim, &manner.binding, deadline).await?;
    Ok(Known::Person(identity, Box::new(route), startup.minor()))
}

/// Wakes the engine where it sleeps and opens the session.
async fn open(
    house: &House,
    identity: &Identity,
    route: &Route,
) -> Result<(Arc<dyn Engine>, Attached), Refusal> {
    let wake = house.waker.engine(identity.cluster().id, identity.user(), identity.vouched());
    let engine = timeout(house.settings.wake_max, wake)
        .await
        .map_err(|_| Refusal::NotReady(NotReady::TimedOut))?
        .map_err(Refusal::NotReady)?;
    let attached = timeout(house.settings.attach_max, async {
        let stream = engine.connect().await.map_err(|cause| unreached(&cause))?;
        attach(stream, identity, route).await
    });
    let attached = attached.await.map_err(|_| Refusal::EngineLost("it does not answer"))?;
    Ok((engine, attached?))
}

fn unreached(cause: &io::Error) -> Refusal {
    match Errno::from_io_error(cause) {
        Some(Errno::MFILE | Errno::NFILE) => Refusal::NoRoom,
        _ => Refusal::EngineLost("it does not answer"),
    }
}

/// Says what only the operator can change. Without numbers that change, so that the log counts what is said again and again.
fn tell_operator(refusal: &Refusal, cluster: ClusterId, sessions_max: usize) {
    match refusal {
        Refusal::NoRoom => tracing::warn!(
            %cluster, sessions_max,
            "a session was refused: a cluster has at most as many sessions as are left for all of them; for more, raise the limit \
             on open files (LimitNOFILE= of a systemd unit, ulimit -Hn) and start Chitin again"
        ),
        Refusal::NoProcess { reason } => tracing::warn!(
            %cluster, reason,
            "a session was refused: the cluster's engine could not start a process for it; let it have fewer sessions at a time, or \
             raise the limit that is reached (TasksMax= of a systemd unit, pids.max of a control group, ulimit -u), or give \
             the machine more memory"
        ),
        _ => {}
    }
}
