//! Puts the rooms of one cloud together, opens its doors, and closes everything in order.

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::{Capability, Host, HostConfig, Launcher};
use gateway::Gateway;
use identity::api_key::ApiKeyText;
use identity::oidc::Flows;
use identity::revocation::Revocation;
use identity::throttle::Throttle;
use identity::token::Tokens;
use keys::{Authority, Fingerprints};
use model::{ALLOWLIST_ENTRIES_MAX, Clock, Fetcher, SystemClock};
use network::GateSettings;
use network::private::{PrivateNetworks, Unavailable};
use reconcile::{Gate, NetworkReconciler, NetworkSettings, Reconciler};
use store::{ApiKey, Store};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::administration::Administrator;
use crate::certificates::{self, Certificates};
use crate::clock::ClockWatch;
use crate::config::StartOptions;
use crate::descriptors::{Budget, Listening};
use crate::desk::{self, Desk};
use crate::directory::Directory;
use crate::doors::Listeners;
use crate::examiner::{Examiner, Tickets};
use crate::front_doors::FrontDoors;
use crate::outlets::Outlets;
use crate::pages::Pages;
use crate::paths::{Endpoint, Paths, Unsuitable};
use crate::perimeter::Perimeter;
use crate::policy::Policies;
use crate::presence::Presence;
use crate::ring::Ring;
use crate::root_key;
use crate::root_key::rotation::{self, Rotation};
use crate::staple::Stapler;
use crate::trial::Trial;
use crate::versions;
use crate::volume_record::VolumeRecord;
use crate::waker::Waker;
use crate::{descriptors, http, knocks, operator, revoked, watch};

/// For requests that were begun when the program ends.
const REQUESTS_MAX: Duration = Duration::from_secs(10);
/// For engines to stop and volumes to be locked when the program ends.
const SHUTDOWN_MAX: Duration = Duration::from_secs(90);

/// Why the cloud could not be started. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error(transparent)]
    Data(#[from] Unsuitable),
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] keys::Error),
    /// The root key cannot be opened.
    #[error(transparent)]
    RootKey(#[from] root_key::Error),
    /// A rotation of the root key that was interrupted cannot go on.
    #[error(transparent)]
    Rotation(#[from] rotation::Error),
    /// The program may open too few files.
    #[error(transparent)]
    Descriptors(#[from] descriptors::TooFew),
    /// The machine does not give what engines need.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The state cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The program ends, and a volume could not be locked.
    #[error(
        "stopped, but the kernel still has volumes unlocked: {0}; end what has files open there, or move back what was moved, then \
         start Chitin once more, which locks them"
    )]
    Unlocked(String),
    /// There is no certificate to show.
    #[error("{0}")]
    Certificate(#[from] certificates::Error),
    /// A door cannot be opened.
    #[error("could not listen on {address} for {what}: {source}; {next_step}")]
    Listen {
        /// Which door.
        what: &'static str,
        /// Where.
        address: String,
        /// Why not.
        source: std::io::Error,
        /// What to do.
        next_step: String,
    },
    /// The operator's socket cannot be opened.
    #[error(transparent)]
    Operator(#[from] operator::Unusable),
    /// Nothing can be fetched from outside.
    #[error(transparent)]
    Network(#[from] network::Unusable),
    /// TLS cannot be set up.
    #[error("TLS could not be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// A part ended that should have run on.
    #[error("{0} ended unexpectedly; the log above says why")]
    Ended(&'static str),
}

/// A running cloud.
pub struct Cloud {
    /// Where everything lies.
    pub paths: Paths,
    /// Its engines.
    pub host: Arc<Host>,
    /// Its state.
    pub store: Arc<Store>,
    /// Where SQL clients connect.
    pub sql: SocketAddr,
    /// Where the API answers.
    pub http: SocketAddr,
    /// Whether clusters can have networks of their own here.
    pub private_networks: Capability,
    /// What it may open, and who gets how much of it.
    pub budget: Budget,
    /// Rotates its root key.
    pub rotation: Arc<Rotation>,
    gateway: Arc<Gateway>,
    reconciler: Arc<Reconciler>,
    front_doors: Arc<FrontDoors>,
    doors: Stage,
    /// Those of the API, which are closed last.
    api_doors: Stage,
    stopping: control::Stopping,
    loops: Stage,
}

/// Tasks that are stopped together and awaited together.
pub struct Stage {
    pub(crate) stop: CancellationToken,
    tasks: JoinSet<&'static str>,
}

impl Stage {
    fn new() -> Self {
        Self { stop: CancellationToken::new(), tasks: JoinSet::new() }
    }

    /// Begins a task that ends when the stage stops.
    pub fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            work.await;
            name
        });
    }

    /// Waits for a task to end by itself, which none should.
    async fn failed(&mut self) -> &'static str {
        match self.tasks.join_next().await {
            Some(Ok(name)) => name,
            Some(Err(panic)) => {
                tracing::error!(%panic, "a part of the program broke");
                "a part of the program"
            }
            None => std::future::pending().await,
        }
    }

    async fn close(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            // One that was broken off on purpose is no fault.
            if let Err(panic) = ended
                && !panic.is_cancelled()
            {
                tracing::error!(%panic, "a part of the program broke while it stopped");
            }
        }
    }
}

/// What starts engines in their sandboxes: this program, which begins with that in `main`.
#[cfg(not(test))]
fn launcher() -> Result<Launcher, engine::Error> {
    Launcher::this_program()
}

/// The same for a test, which has a `main` of its own.
#[cfg(test)]
#[expect(clippy::unnecessary_wraps, reason = "as the other")]
fn launcher() -> Result<Launcher, engine::Error> {
    Ok(crate::launcher::launcher())
}

impl Cloud {
    /// Opens everything; when this returns, clients are let in.
    /// `root` is the root directory as it was before the program had mounts of its own.
    pub async fn open(options: &StartOptions, root: File) -> Result<Self, Error> {
        let budget = descriptors::budget(Listening::of(options))?;
        let paths = Paths::prepare(&options.data)?;
        // Both before anything is cleared away: either may have been removed under a Chitin that runs.
        let claim = paths.claim()?;
        let state = paths.lock_state()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let root_key = Arc::new(root_key::open(&paths, &options.unlock).await?);
        if paths.has_lost_its_state() {
            return Err(Unsuitable::StateLost { path: paths.data().to_owned() }.into());
        }
        let ring = Ring::new(root_key.clone());
        let record = Arc::new(VolumeRecord::default());
        let config = HostConfig {
            data: paths.data().to_owned(),
            keys: ring.clone(),
            allow_unencrypted: options.allow_unencrypted,
            postgres: options.postgres.iter().chain(&options.postgres_bin).cloned().collect(),
            default_major: options.default_version,
            encryption: options.encryption.map(Into::into),
            attestation: options.attestation.clone(),
            launcher: launcher()?,
            record: record.clone(),
        };
        let host = Host::open_claimed(config, claim).await?;
        host.bound_engines(budget.engines);
        paths.forget_endpoint();
        let store = Store::open_locked(state, root_key.sealer("state")?)?;
        tracing::info!(commits = store.commits(), "the state is whole");
        let stand_ins = root_key.sealer("stand-ins")?.first_secret()?;
        let stand_ins = Fingerprints::new(&store.kept_secret("stand-ins", &stand_ins)?);
        let rotation = Rotation::new(root_key.clone(), store.clone(), paths.clone())?;
        rotation.seal_anew().await?;
        let authority = Authority::open_or_create(paths.data(), &root_key.sealer("authority")?, &*clock)?;
        let hostnames: Vec<String> = machine_name().into_iter().chain(options.hostnames.clone()).collect();
        let files = options.tls_cert.as_deref().zip(options.tls_key.as_deref());
        let certificates = Certificates::new(authority, clock.clone(), &hostnames, files)?;
        ensure_admin_key(&paths, &store, &*clock)?;

        let listeners = Listeners::open(options, paths.data()).await?;
        let (sql_address, http_address) = (listeners.sql_address()?, listeners.http_address()?);

        record.connect(store.clone());
        host.clear_others().await?;
        let gate = Arc::new(Gate::default());
        let presence = Arc::new(Presence::default());
        let policies = Policies::new(store.clone());
        let (knocks, heard) = knocks::channel();
        let directory =
            Directory::new(store.clone(), host.clone(), clock.clone(), policies.clone(), stand_ins, knocks);
        let waker = Waker::new(store.clone(), host.clone(), clock.clone(), gate.clone());
        let public_url = options
            .public_url
            .clone()
            .unwrap_or_else(|| format!("https://localhost:{}", http_address.port()));
        let public_host = url::Url::parse(&public_url)
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned))
            .unwrap_or_else(|| "localhost".to_owned());
        let pages = Pages::new(store.clone(), public_url, http_address.port());
        let gate_settings = GateSettings { allow: options.fetch_allow.clone(), ..GateSettings::default() };
        let gate_out = Arc::new(network::Gate::new(gate_settings, Perimeter::new(store.clone()))?);
        let fetcher: Arc<dyn Fetcher> = gate_out.clone();
        ring.connect(store.clone(), fetcher.clone(), clock.clone());
        let stapler = (options.tls_staple || options.tls_ocsp_url.is_some()).then(|| {
            let responder = options.tls_ocsp_url.clone();
            Stapler::new(certificates.clone(), fetcher.clone(), clock.clone(), responder)
        });
        let revocation = Arc::new(Revocation::new(fetcher.clone(), clock.clone()));
        let tokens = Arc::new(Tokens::new(fetcher.clone(), clock.clone()));
        let tickets = Arc::new(Tickets::default());
        let examiner = Examiner::new(
            store.clone(),
            policies.clone(),
            clock.clone(),
            revocation,
            tokens.clone(),
            tickets.clone(),
            pages.clone(),
        );
        let throttle = Arc::new(Throttle::new(identity::throttle::Settings {
            free_failures: options.throttle_free,
            base: options.throttle_base,
            max: options.throttle_max,
            ..identity::throttle::Settings::default()
        }));
        let desk = Desk::new(desk::Parts {
            store: store.clone(),
            policies,
            clock: clock.clone(),
            flows: Flows::new(tokens, fetcher.clone(), clock.clone()),
            tickets,
            directory: directory.clone(),
            waker: waker.clone(),
            presence: presence.clone(),
            pages: pages.clone(),
        });
        let settings = gateway::Settings {
            idle_max: options.idle_timeout,
            unread_max: options.unread_timeout,
            sessions_max: budget.sessions,
            unauthenticated_max: budget.sql,
            unauthenticated_per_network_max: budget.sql_private,
            ..gateway::Settings::default()
        };
        let gateway = Arc::new(Gateway::new(
            settings,
            gateway::Answers {
                certificates: certificates.clone(),
                directory: directory.clone(),
                waker: waker.clone(),
                examiner: examiner.clone(),
                throttle: throttle.clone(),
            },
        ));
        presence.join(gateway.sessions());
        let reconciler = Reconciler::new(
            store.clone(),
            host.clone(),
            presence.clone(),
            clock.clone(),
            reconcile::Settings {
                idle_after: options.idle_after,
                keys_every: options.key_check_every,
                credentials_refused_max: options.key_credentials_refused_max,
                ..reconcile::Settings::default()
            },
            gate.clone(),
            ring.clone(),
        );
        let private_networks = match PrivateNetworks::probe().await {
            Ok(()) => {
                Capability::Present { how: "a network namespace for each cluster that wants one".to_owned() }
            }
            Err(Unavailable { why, next_step }) => Capability::Missing { why, next_step },
        };
        let outlets = Outlets::new(store.clone(), host.clone(), gate_out, budget.egress);
        let administration = Arc::new(Administrator {
            store: store.clone(),
            host: host.clone(),
            presence: presence.clone(),
            waker: waker.clone(),
            clock: clock.clone(),
            throttle,
            outlets: outlets.clone(),
            trial: Trial { host: host.clone(), ring: ring.clone(), fetcher, clock: clock.clone(), pages },
            ring,
            rotation: rotation.clone(),
            private_networks: private_networks.clone(),
            budget,
        });
        let settings = control::Settings {
            sql_host: "localhost".to_owned(),
            sql_port: sql_address.port(),
            sql: sql_address.to_string(),
            http: http_address.to_string(),
            ca_pem: certificates.root_pem().to_owned(),
            http_port: http_address.port(),
            public_host,
            endpoint: listeners.endpoint_address(),
            ca_path: Some(paths.root_certificate().display().to_string()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            allowlist_entries_max: usize::try_from(options.allowlist_max).unwrap_or(ALLOWLIST_ENTRIES_MAX),
        };
        let stopping = control::Stopping::default();
        let router = control::router(control::State {
            store: store.clone(),
            administration,
            desk: desk.clone(),
            clock: clock.clone(),
            settings: Arc::new(settings),
            stopping: stopping.clone(),
        });

        let (mut doors, mut api_doors, mut loops) = (Stage::new(), Stage::new(), Stage::new());
        let clock_watch = ClockWatch::new(clock.clone());
        loops.spawn("the watch over the clock", clock_watch.clone().run(loops.stop.clone()));
        loops.spawn("the reconciler", reconciler.clone().run(loops.stop.clone()));
        loops.spawn(
            "the watch over sessions",
            watch::run(
                store.clone(),
                presence.clone(),
                directory.clone(),
                clock.clone(),
                clock_watch.jumps(),
                loops.stop.clone(),
            ),
        );
        loops.spawn("the count of abandoned sign-ins", desk.clone().run(loops.stop.clone()));
        loops.spawn(
            "the book of knocking endpoints",
            knocks::run(heard, store.clone(), clock.clone(), loops.stop.clone()),
        );
        loops.spawn(
            "the watch over client certificates",
            revoked::run(examiner, presence.clone(), options.revocation_every, loops.stop.clone()),
        );
        loops.spawn("the watch over versions", versions::run(host.clone(), loops.stop.clone()));
        loops.spawn("the keeper of the root key", rotation.clone().run(loops.stop.clone()));
        loops.spawn("the outlets of engines", outlets.run(loops.stop.clone()));
        let watched = certificates.clone().watch(clock_watch.jumps(), loops.stop.clone());
        loops.spawn("the watch over certificates", watched);
        if let Some(stapler) = stapler {
            loops.spawn("the stapler", stapler.run(loops.stop.clone()));
        }
        let front_doors = FrontDoors::new(
            gateway.clone(),
            certificates.clone(),
            store.clone(),
            presence.clone(),
            directory.clone(),
            desk.clone(),
            http::Crowd::new("the pages in private networks", budget.http, budget.http_private),
        );
        let networks = NetworkReconciler::new(
            store.clone(),
            PrivateNetworks::with_root(root),
            front_doors.clone(),
            NetworkSettings { sql_port: sql_address.port(), http_port: http_address.port() },
        );
        loops.spawn("the keeper of private networks", networks.run(loops.stop.clone()));
        let web = http::Server::new(certificates, router)?;
        listeners.serve((&mut doors, &mut api_doors), &gateway, &web, &budget);
        let endpoint = Endpoint {
            sql: sql_address.to_string(),
            http: http_address.to_string(),
            pid: std::process::id(),
        };
        paths.tell_endpoint(&endpoint)?;
        Ok(Self {
            paths,
            host,
            store,
            sql: sql_address,
            http: http_address,
            private_networks,
            budget,
            rotation,
            gateway,
            reconciler,
            front_doors,
            doors,
            api_doors,
            stopping,
            loops,
        })
    }

    /// Waits for a part to end that should not. To be raced with the signal to stop.
    pub async fn failed(&mut self) -> Error {
        let part = tokio::select! {
            part = self.doors.failed() => part,
            part = self.api_doors.failed() => part,
            part = self.loops.failed() => part,
        };
        Error::Ended(part)
    }

    /// Closes the doors, lets sessions and requests finish, stops the loops, then stops engines and locks volumes. The API
    /// answers until that is done: what was begun as it ended, and what is new with a refusal. When `hurry` is cancelled,
    /// sessions and requests are not waited for any longer.
    pub async fn close(mut self, hurry: CancellationToken) {
        self.stopping.refuse_new();
        let gently = async {
            tokio::join!(self.front_doors.close_all(), self.doors.close());
            let requests = async {
                if timeout(REQUESTS_MAX, self.stopping.idle()).await.is_err() {
                    tracing::warn!(
                        "requests did not end in time; their clients are told what goes on at the next start"
                    );
                }
            };
            tokio::join!(self.gateway.drain(), requests);
            self.stopping.give_up();
            self.loops.close().await;
        };
        tokio::select! {
            () = gently => {}
            () = hurry.cancelled() => {
                tracing::warn!("told to stop once more: sessions and requests are not waited for any longer");
            }
        }
        self.stopping.give_up();
        self.doors.tasks.abort_all();
        self.loops.tasks.abort_all();
        if timeout(SHUTDOWN_MAX, self.host.close()).await.is_err() {
            tracing::error!("engines did not stop in time; the next start clears away what is left");
        }
        self.reconciler.remember_checkpoints().await;
        // Aborted tasks are awaited too, so that nothing of theirs outlives us.
        self.doors.close().await;
        self.loops.close().await;
        self.paths.forget_endpoint();
        self.api_doors.close().await;
    }
}

impl std::fmt::Debug for Cloud {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cloud").field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// What this machine calls itself, if that can stand in a certificate.
fn machine_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    let is_plain = name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        });
    is_plain.then_some(name)
}

/// Hands the local administrator a key, once. A key file that the state does not know (another state was put here) is
/// made known again: who can write the data directory is the administrator.
fn ensure_admin_key(paths: &Paths, store: &Store, clock: &dyn Clock) -> Result<(), Error> {
    let path = paths.admin_key();
    let kept = keys::read_private(&path)?.and_then(|text| {
        std::str::from_utf8(text.expose()).ok().and_then(|text| ApiKeyText::parse(text.trim()))
    });
    let key = if let Some(key) = kept {
        key
    } else {
        let key = ApiKeyText::generate();
        keys::write_private(&path, format!("{}\n", key.expose()).as_bytes())?;
        key
    };
    let known = store.snapshot().api_key(key.id()).is_some_and(|known| key.matches(&known.digest));
    if !known {
        store.put_api_key(ApiKey {
            id: key.id().to_owned(),
            name: "local administrator".to_owned(),
            digest: key.digest(),
            created_at: clock.now(),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn the_administrator_s_key_is_made_once_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::prepare(folder.path()).unwrap();
        let kek = keys::RootKey::open_or_create(&paths.key_encryption_key()).unwrap();
        let store = Store::open(&paths.state(), kek.sealer("state").unwrap()).unwrap();
        ensure_admin_key(&paths, &store, &SystemClock).unwrap();
        let first = std::fs::read_to_string(paths.admin_key()).unwrap();
        ensure_admin_key(&paths, &store, &SystemClock).unwrap();
        assert_eq!(std::fs::read_to_string(paths.admin_key()).unwrap(), first);
        let key = ApiKeyText::parse(first.trim()).unwrap();
        assert!(key.matches(&store.snapshot().api_key(key.id()).unwrap().digest));
        let mode = std::fs::metadata(paths.admin_key()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
