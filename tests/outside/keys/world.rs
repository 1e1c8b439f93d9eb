//! The clouds and the key services that the tests of this binary share.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use house::key_services::{Aws, Bao, Hsm, set_service};
use house::shared::stopped;
use house::{Cloud, Options};

/// How the clouds of these tests are started: key services are on this machine, and asked often.
pub const ARGUMENTS: [&str; 4] = ["--fetch-allow", "127.0.0.0/8", "--key-check-every", "1s"];

/// A thing that is made by the first who asks, and dropped at the end.
struct Kept<T>(Mutex<Option<Arc<T>>>);

impl<T> Kept<T> {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn get(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get_or_insert_with(|| Arc::new(make())).clone()
    }

    fn drop_it(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

static BAO: Kept<Bao> = Kept::new();
static AWS: Kept<Aws> = Kept::new();
static HSM: Kept<Hsm> = Kept::new();
static NATIVE: OnceLock<Cloud> = OnceLock::new();
static FUSE: OnceLock<Cloud> = OnceLock::new();

/// OpenBao.
pub(crate) fn bao() -> Arc<Bao> {
    BAO.get(Bao::start)
}

/// AWS.
pub(crate) fn aws() -> Arc<Aws> {
    AWS.get(Aws::start)
}

/// The token.
pub(crate) fn hsm() -> Arc<Hsm> {
    HSM.get(Hsm::make)
}

/// The options of a cloud that knows where the token is.
pub(crate) fn options(more: &[&str]) -> Options {
    if more.contains(&"gocryptfs")
        && let Err(missing) = std::fs::File::open("/dev/fuse")
    {
        house::runner::skip(format!("gocryptfs needs FUSE, and /dev/fuse cannot be opened: {missing}"));
    }
    let arguments: Vec<&str> = ARGUMENTS.iter().chain(more).copied().collect();
    let mut options = Options::with(&arguments);
    options.environment.push(hsm().environment());
    options
}

/// A cloud that encrypts in the best way that this machine has.
pub(crate) fn native() -> &'static Cloud {
    NATIVE.get_or_init(|| started(&[]))
}

/// A cloud that encrypts with gocryptfs.
pub(crate) fn fuse() -> &'static Cloud {
    FUSE.get_or_init(|| started(&["--encryption", "gocryptfs"]))
}

fn started(more: &[&str]) -> Cloud {
    // As verbose as it can be, so that secrets in its log would be found.
    let mut options = options(more);
    options.environment.push(("RUST_LOG".into(), "trace".into()));
    let cloud = Cloud::start(options);
    set_service(&cloud, "aws", &aws().service()).ok();
    set_service(&cloud, "hsm", &hsm().service()).ok();
    cloud
}

/// Stops everything and says whether the clouds left nothing behind.
pub(crate) fn stop() -> bool {
    let is_clean = |cloud: &OnceLock<Cloud>| cloud.get().is_none_or(stopped);
    let are_clean = [is_clean(&NATIVE), is_clean(&FUSE)];
    BAO.drop_it();
    AWS.drop_it();
    HSM.drop_it();
    are_clean.iter().all(|is_clean| *is_clean)
}
