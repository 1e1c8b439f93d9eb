//! A cloud that many tests share, started by the first that asks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use crate::cloud::{Cloud, Cluster, Options};
use crate::runner;

/// A cloud and a cluster of it for the tests of a suite.
pub struct Shared {
    options: fn() -> Options,
    cloud: OnceLock<Cloud>,
    cluster: OnceLock<Cluster<'static>>,
}

impl Shared {
    /// Not started yet; `options` says how it will be.
    pub const fn new(options: fn() -> Options) -> Self {
        Self { options, cloud: OnceLock::new(), cluster: OnceLock::new() }
    }

    /// The cloud. Its log is as verbose as it can be, so that secrets in logs would be found in it.
    pub fn cloud(&self) -> &Cloud {
        self.cloud.get_or_init(|| {
            let mut options = (self.options)();
            options.environment.push(("RUST_LOG".into(), "trace".into()));
            Cloud::start(options)
        })
    }

    /// A serverless cluster with a user; nobody changes its allowlist or stops it.
    pub fn cluster(&'static self) -> &'static Cluster<'static> {
        self.cluster.get_or_init(|| self.cloud().cluster("shared-cluster", &[]))
    }

    /// Stops the cloud, if it runs, and says whether it left nothing behind.
    pub fn stop(&self) -> bool {
        self.cloud.get().is_none_or(stopped)
    }
}

/// Stops a cloud that is never dropped, because it is in a static, and removes its directory; a failed stop or test keeps
/// that, with its log. Says whether nothing was left behind.
pub fn stopped(cloud: &Cloud) -> bool {
    let is_clean = catch_unwind(AssertUnwindSafe(|| cloud.stop())).is_ok();
    if !is_clean || runner::has_failed() {
        println!(
            "the log and the data of a cloud that tests shared are left in {}",
            cloud.scratch().display()
        );
        return is_clean;
    }
    std::fs::remove_dir_all(cloud.scratch()).is_ok()
}

static PLAIN: Shared = Shared::new(Options::default);

/// The cloud with the defaults.
pub fn cloud() -> &'static Cloud {
    PLAIN.cloud()
}

/// A cluster of the cloud with the defaults.
pub fn cluster() -> &'static Cluster<'static> {
    PLAIN.cluster()
}

/// Stops the cloud with the defaults; see [`Shared::stop`].
pub fn stop() -> bool {
    PLAIN.stop()
}
