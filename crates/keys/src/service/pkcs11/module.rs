//! Modules of PKCS #11: one for the whole process, used by one at a time, on threads of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::super::asking::{Subject, clean};
use crate::KeyFailure;

/// For one use. Modules of machines in a network take long when they look for another.
const TIME_MAX: Duration = Duration::from_secs(15);
/// For the wait for those before it: many clusters may ask at once.
const TURN_MAX: Duration = Duration::from_secs(30);
/// Most PINs that are remembered as refused.
const REFUSED_MAX: usize = 256;

/// Modules by their path. A module is initialized for a whole process, whoever uses it.
static MODULES: LazyLock<Mutex<BTreeMap<PathBuf, Arc<Module>>>> = LazyLock::new(Mutex::default);

/// A module, as it is loaded.
pub(super) struct Module {
    path: PathBuf,
    context: OnceLock<Pkcs11>,
    is_initialized: AtomicBool,
    /// Signing in holds for the whole process, not for one session: two at once would use each other's sign-in.
    turn: Arc<Semaphore>,
    refused: Mutex<BTreeSet<Refused>>,
}

/// A PIN that a token refused: which token, and of which key service as it was set then.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Refused {
    pub(super) serial: String,
    pub(super) service: String,
    pub(super) set_at: OffsetDateTime,
}

impl Module {
    /// The module at this path. Loads nothing yet.
    pub(super) fn at(path: &Path) -> Arc<Self> {
        // By what the path leads to, so that a link is no second module.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut modules = locked(&MODULES);
        let module = modules.entry(path.clone()).or_insert_with(|| {
            Arc::new(Self {
                path,
                context: OnceLock::new(),
                is_initialized: AtomicBool::new(false),
                turn: Arc::new(Semaphore::new(1)),
                refused: Mutex::default(),
            })
        });
        module.clone()
    }

    /// Uses the module, with a deadline. One that hangs keeps its turn until it comes back, so that no more threads hang;
    /// and the thread is not one of the runtime's, which would wait for it at the end.
    pub(super) async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        subject: &Subject,
        work: impl FnOnce(&Self, &Pkcs11) -> Result<T, KeyFailure> + Send + 'static,
    ) -> Result<T, KeyFailure> {
        let broken = || subject.unreachable("the PKCS #11 module broke off");
        let late = |max: Duration| {
            subject.unreachable(format!("the PKCS #11 module did not answer in {} s", max.as_secs()))
        };
        let turn = timeout(TURN_MAX, self.turn.clone().acquire_owned());
        let turn = turn.await.map_err(|_| late(TURN_MAX))?.map_err(|_| broken())?;
        let (answer, answered) = oneshot::channel();
        let (module, about) = (self.clone(), subject.clone());
        std::thread::Builder::new()
            .name("pkcs11".to_owned())
            .spawn(move || {
                let result = module.context(&about).and_then(|context| work(&module, context));
                if let Err(KeyFailure::Unreachable { .. }) = &result {
                    module.finalize();
                }
                drop(turn);
                // Whoever asked may have given up.
                let _ = answer.send(result);
            })
            .map_err(|cause| subject.unreachable(format!("no thread for the PKCS #11 module: {cause}")))?;
        timeout(TIME_MAX, answered).await.map_err(|_| late(TIME_MAX))?.map_err(|_| broken())?
    }

    fn context(&self, subject: &Subject) -> Result<&Pkcs11, KeyFailure> {
        let context = match self.context.get() {
            Some(context) => context,
            None => self.load(subject)?,
        };
        if !self.is_initialized.load(Ordering::Relaxed) {
            match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
                Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
                Err(cause) => {
                    let why = clean(&cause.to_string());
                    return Err(subject.unreachable(format!("the PKCS #11 module does not start: {why}")));
                }
            }
            self.is_initialized.store(true, Ordering::Relaxed);
        }
        Ok(context)
    }

    fn load(&self, subject: &Subject) -> Result<&Pkcs11, KeyFailure> {
        // Its code becomes ours.
        trusted(&self.path).map_err(|why| subject.unusable(why))?;
        let context = Pkcs11::new(&self.path).map_err(|cause| {
            subject.unusable(format!(
                "{} cannot be loaded as a PKCS #11 module: {}",
                self.path.display(),
                clean(&cause.to_string())
            ))
        })?;
        Ok(self.context.get_or_init(|| context))
    }

    /// Lets the next use begin from the start: a module that lost its token, or its connection, often finds it again in
    /// no other way. It stays loaded, because not every module survives being unloaded.
    fn finalize(&self) {
        if self.is_initialized.swap(false, Ordering::Relaxed)
            && let Some(context) = self.context.get()
        {
            // One that fails here says so again when it is initialized.
            let _ = context.clone().finalize();
        }
    }

    /// Whether this PIN was refused before. A token locks itself after a few wrong ones, so none is tried twice.
    pub(super) fn was_refused(&self, pin: &Refused) -> bool {
        locked(&self.refused).contains(pin)
    }

    /// Remembers that this PIN was refused.
    pub(super) fn remember_refused(&self, pin: Refused) {
        let mut refused = locked(&self.refused);
        if refused.len() >= REFUSED_MAX {
            refused.pop_first();
        }
        refused.insert(pin);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Only root may be able to change what is loaded: whoever else could would hold every secret of this cloud.
fn trusted(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|cause| {
        format!("the PKCS #11 module {} cannot be read: {cause}; give the path of its .so", path.display())
    })?;
    if !metadata.is_file() {
        return Err(format!("the PKCS #11 module {} is not a file", path.display()));
    }
    let refused = |place: &Path| {
        format!(
            "{} can be changed by others than root, so no PKCS #11 module is loaded from there; let it belong to root, \
             with chmod go-w",
            place.display()
        )
    };
    if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        return Err(refused(path));
    }
    for folder in path.ancestors().skip(1) {
        let is_roots = fs::metadata(folder).is_ok_and(|found| found.uid() == 0 && found.mode() & 0o002 == 0);
        if !is_roots {
            return Err(refused(folder));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_module_that_others_could_change_is_not_loaded() {
        // Below /tmp, which everybody may write to.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("module.so");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(trusted(&path).unwrap_err().contains("others than root"));
        assert!(trusted(&folder.path().join("absent.so")).unwrap_err().contains("cannot be read"));
        assert!(trusted(folder.path()).unwrap_err().contains("not a file"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_module_that_hangs_costs_its_caller_the_deadline_and_one_thread() {
        let module = Module::at(Path::new("/nowhere/hangs.so"));
        let subject = Subject::of(&model::KeySpec::root());
        let turn = module.turn.clone().acquire_owned().await.unwrap();
        let waited = module.with(&subject, |_, _| Ok(())).await.unwrap_err();
        assert!(matches!(waited, KeyFailure::Unreachable { .. }), "{waited}");
        drop(turn);
        // It is not there, which is seen as soon as it is somebody's turn.
        tokio::time::resume();
        let absent = module.with(&subject, |_, _| Ok(())).await.unwrap_err();
        assert!(matches!(absent, KeyFailure::Unusable { .. }), "{absent}");
    }
}
