//! Notices installations of PostgreSQL that come and go while Chitin runs.

use std::sync::Arc;
use std::time::Duration;

use engine::Host;
use tokio_util::sync::CancellationToken;

/// Long enough to cost nothing, and short enough for whoever has just installed one and asks for it.
const EVERY: Duration = Duration::from_secs(10);

/// Looks, until `stop`.
pub async fn run(host: Arc<Host>, stop: CancellationToken) {
    let watch = async {
        loop {
            tokio::time::sleep(EVERY).await;
            if let Err(cause) = host.look_for_versions().await {
                tracing::warn!(%cause, "installations of PostgreSQL could not be looked for; it is tried again");
            }
        }
    };
    stop.run_until_cancelled(watch).await;
}
