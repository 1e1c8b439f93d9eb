//! One cloud for all tests of a binary, started by the first that asks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use crate::cloud::{Cloud, Cluster, Options};

static CLOUD: OnceLock<Cloud> = OnceLock::new();
static OPTIONS: OnceLock<Options> = OnceLock::new();
static CLUSTER: OnceLock<Cluster<'static>> = OnceLock::new();

/// Says how the shared cloud is started; before its first use.
pub fn prepare(arguments: &[&str]) {
    OPTIONS.set(Options::with(arguments)).expect("the shared cloud is prepared once");
}

/// The shared cloud. Its log is as verbose as it can be, so that secrets in logs would be found in it.
pub fn cloud() -> &'static Cloud {
    CLOUD.get_or_init(|| {
        let options = OPTIONS.get().cloned().unwrap_or_default();
        Cloud::start(Options { environment: vec![("RUST_LOG".into(), "trace".into())], ..options })
    })
}

/// A serverless cluster with a user that tests share; nobody changes its allowlist or stops it.
pub fn cluster() -> &'static Cluster<'static> {
    CLUSTER.get_or_init(|| cloud().cluster("shared-cluster", &[]))
}

/// Stops the shared cloud, if there is one, and says whether it left nothing behind.
pub fn stop() -> bool {
    let Some(cloud) = CLOUD.get() else { return true };
    let is_clean = catch_unwind(AssertUnwindSafe(|| cloud.stop())).is_ok();
    // A static is never dropped, so its directory is removed here; a failed stop keeps it, with its log.
    is_clean && std::fs::remove_dir_all(cloud.scratch()).is_ok()
}
