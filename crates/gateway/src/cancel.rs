//! Cancel requests, with keys of our own: inside TLS only, from an admitted address only, and silent in every case.

use std::io;
use std::time::Duration;

use model::Origin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use wire::hello::CancelKey;

use crate::Sessions;
use crate::directory::{Directory, Engine};

/// For the engine to take a cancel request and close.
const ENGINE_MAX: Duration = Duration::from_secs(5);

/// Before a key is looked at. On a small machine what a right one sets going would compete with whoever reads that the
/// connection was closed, and so tell him.
const SETTLE: Duration = Duration::from_millis(10);

/// Passes the request on if its key is right. The client's connection is closed before this is called, so that nobody
/// can tell a right key from a wrong one by waiting.
pub(crate) async fn cancel(
    sessions: &Sessions,
    directory: &dyn Directory,
    slots: &Semaphore,
    key: &CancelKey,
    origin: &Origin,
) {
    tokio::time::sleep(SETTLE).await;
    let Some((facts, engine, engine_key)) = sessions.find_cancel(key) else {
        return;
    };
    if !directory.admits(facts.cluster, origin) {
        return;
    }
    // Nobody is promised that a cancel has an effect (PostgreSQL's manual, 55.2.8): a flood is dropped, not queued.
    let Ok(_slot) = slots.try_acquire() else {
        tracing::warn!(cluster = %facts.cluster, %origin, "a cancel was dropped: too many at once");
        return;
    };
    if timeout(ENGINE_MAX, pass_on(&*engine, &engine_key)).await.is_ok_and(|sent| sent.is_ok()) {
        tracing::info!(cluster = %facts.cluster, user = %facts.user, %origin, "canceled a query");
    }
}

/// Ends what the engine does for a session that was cut. Unlike a client's request it waits for its turn.
pub(crate) async fn interrupt(slots: &Semaphore, engine: &dyn Engine, engine_key: Option<&CancelKey>) {
    let Some(engine_key) = engine_key else {
        return;
    };
    let sent = timeout(ENGINE_MAX, async {
        let _slot = slots.acquire().await;
        pass_on(engine, engine_key).await
    });
    match sent.await {
        Ok(Ok(())) => {}
        // An engine that stops takes no more requests, and needs none.
        Ok(Err(cause)) => tracing::debug!(%cause, "the engine of a session that was cut was not interrupted"),
        Err(_) => tracing::warn!("the engine of a session that was cut was not interrupted in time"),
    }
}

async fn pass_on(engine: &dyn Engine, engine_key: &CancelKey) -> io::Result<()> {
    let mut engine = engine.connect().await?;
    engine.write_all(&engine_key.to_request()).await?;
    // The engine closes once the signal is sent.
    engine.read(&mut [0]).await.map(drop)
}
