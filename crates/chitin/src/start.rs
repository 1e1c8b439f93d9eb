//! `chitin start`: runs a cloud in the foreground until it is told to stop.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{IsTerminal, Write as _};
use std::time::Instant;

use engine::Capability;
use model::Encryption;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cloud::{Cloud, Error};
use crate::config::StartOptions;
use crate::memory;

/// Runs until SIGINT or SIGTERM. A second signal of either kind stops waiting for sessions and requests; further ones change
/// nothing. Engines are stopped in good order and volumes locked in any case: only SIGKILL skips that.
pub async fn run(options: &StartOptions, root: File) -> Result<(), Error> {
    let began = Instant::now();
    let mut signals = Signals::new();
    let mut cloud = tokio::select! {
        cloud = Cloud::open(options, root) => cloud?,
        () = signals.next() => return Ok(()),
    };
    greet(&cloud, began);
    let ended = tokio::select! {
        () = signals.next() => Ok(()),
        failed = cloud.failed() => Err(failed),
    };
    tracing::info!(
        "stopping: open sessions and requests may finish for some seconds; a second signal (Ctrl-C, SIGTERM) does not wait for them"
    );
    let (hurry, host) = (CancellationToken::new(), cloud.host.clone());
    let closing = cloud.close(hurry.clone());
    tokio::pin!(closing);
    loop {
        tokio::select! {
            () = &mut closing => break,
            () = signals.next() => hurry.cancel(),
        }
    }
    let unlocked = host.still_unlocked().await;
    if unlocked.is_empty() {
        tracing::info!("stopped: no engine runs, and no volume is unlocked");
        return ended;
    }
    let names: Vec<String> = unlocked.iter().map(|(id, reason)| format!("{id}: {reason}")).collect();
    ended.and(Err(Error::Unlocked(names.join("; "))))
}

struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
}

impl Signals {
    fn new() -> Self {
        // Without a handler the signal ends the process at once, and the next start clears up.
        let listen = |kind| match signal(kind) {
            Ok(signal) => Some(signal),
            Err(cause) => {
                tracing::warn!(%cause, "a signal cannot be listened to");
                None
            }
        };
        Self { interrupt: listen(SignalKind::interrupt()), terminate: listen(SignalKind::terminate()) }
    }

    async fn next(&mut self) {
        async fn one(signal: &mut Option<Signal>) {
            match signal {
                Some(signal) => {
                    signal.recv().await;
                }
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = one(&mut self.interrupt) => {}
            () = one(&mut self.terminate) => {}
        }
    }
}

/// The versions that clusters can run on, and what else was found and is not used.
fn engines(installed: &engine::Installed) -> String {
    let word = |one: &engine::Version| {
        let is_default = installed.versions.len() > 1 && Some(one.major) == installed.default_major;
        format!("{}{}", one.version, if is_default { " (of new clusters)" } else { "" })
    };
    let all: Vec<String> = installed.versions.iter().map(word).collect();
    let unusable = installed.unusable.iter().fold(String::new(), |text, one| text + "; NOT USED: " + one);
    format!("PostgreSQL {}{unusable}", all.join(", "))
}

/// Says where everything is, what the machine gives, and what to do next.
fn greet(cloud: &Cloud, began: Instant) {
    let posture = cloud.host.posture();
    let encryption = match posture.encryption {
        Some(Encryption::Attested) => "stated by the operator for the disk below, not proven".to_owned(),
        Some(kind) if kind != Encryption::None => format!("new clusters with {}", kind.as_str()),
        _ if posture.is_unencrypted_allowed => {
            "NONE: clusters lie on the disk in plaintext, as --allow-unencrypted allows".to_owned()
        }
        _ => {
            let reason = posture.no_encryption_reason.clone().unwrap_or_default();
            format!("NONE, so no cluster is made: {}", engine::Error::NoEncryption { reason })
        }
    };
    let capability = |capability: &Capability| match capability {
        Capability::Present { how } => how.clone(),
        Capability::Missing { why, next_step } => format!("missing: {why} ({next_step})"),
    };
    let clusters = cloud.store.snapshot().len();
    let data = cloud.paths.data().display();
    let next = if clusters == 0 {
        format!("chitin --data {data} cluster create my-cluster")
    } else {
        format!("chitin --data {data} cluster list")
    };
    let rows = [
        ("SQL", format!("{} (TLS 1.3 only)", cloud.sql)),
        ("API", format!("https://{}", cloud.http)),
        ("root certificate", cloud.paths.root_certificate().display().to_string()),
        ("data", format!("{data} ({clusters} {})", if clusters == 1 { "cluster" } else { "clusters" })),
        ("engines", engines(&cloud.host.installed())),
        ("encryption at rest", encryption),
        ("sandbox", capability(&posture.sandbox)),
        ("own OS users", capability(&posture.own_users)),
        ("companion", capability(&cloud.host.companion())),
        ("resource limits", capability(&posture.cgroups)),
        ("private networks", capability(&cloud.private_networks)),
        ("root key", cloud.rotation.describe()),
        ("memory locked", capability(&memory::locked())),
        ("swap", capability(&memory::swap())),
        ("memory shortage", capability(&engine::shortage_protection())),
        ("open files", capability(&cloud.budget.standing())),
        ("next", next),
        ("stop", "Ctrl-C".to_owned()),
    ];
    let mut error = std::io::stderr().lock();
    let bold = if error.is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    let mut text = format!(
        "\n  {}Chitin {} is ready{} (after {} ms)\n\n",
        bold.0,
        env!("CARGO_PKG_VERSION"),
        bold.1,
        began.elapsed().as_millis()
    );
    for (what, value) in rows {
        // Writing to text in memory cannot fail.
        let _ = writeln!(text, "  {what:<20}{value}");
    }
    // Nobody may be reading; that is no reason to stop.
    let _ = writeln!(error, "{text}");
}
