//! The cloud's root key: 256 random bits that wrap every data key and seal the cloud's own state, in as many versions as
//! are still needed.

mod file;
mod open;
mod passphrase;
mod refusal;
#[cfg(test)]
mod tests;
pub(crate) mod version;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::{Cluster, ClusterId, KeySpec};
use zeroize::Zeroizing;

use crate::aead::derive;
use crate::private_file::write_private;
use crate::{
    Binding, DataKey, Error, KeyEncryption, KeyFailure, KeyRing, Sealer, Secret, SecretText, WrappedKey,
};

pub use file::Protection;
pub use open::KeyFile;
pub use passphrase::{Derivation, PASSPHRASE_BYTES_MAX, PASSPHRASE_CHARACTERS_MIN};
pub use refusal::Refusal;

use version::Version;

/// Most versions of a root key that are kept at once.
pub const ROOTS_MAX: usize = 16;
const ALGORITHM: &str = "AES-256-GCM";
/// The first byte of a wrapped data key.
const WRAPPED_FORM: u8 = 1;

/// The versions that are known now. Shared with every sealer, so that a rotation reaches all of them.
pub(crate) struct Shared(RwLock<Ring>);

struct Ring {
    current: Arc<Version>,
    /// Newest first.
    earlier: Vec<Arc<Version>>,
}

impl Ring {
    fn all(&self) -> impl Iterator<Item = &Arc<Version>> {
        std::iter::once(&self.current).chain(&self.earlier)
    }
}

impl Shared {
    fn read<T>(&self, look: impl FnOnce(&Ring) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn publish(&self, next: Ring) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    pub(crate) fn current(&self) -> Arc<Version> {
        self.read(|ring| ring.current.clone())
    }

    pub(crate) fn oldest(&self) -> Arc<Version> {
        self.read(|ring| ring.earlier.last().unwrap_or(&ring.current).clone())
    }

    pub(crate) fn numbered(&self, number: u32) -> Option<Arc<Version>> {
        self.read(|ring| ring.all().find(|version| version.number == number).cloned())
    }
}

/// Where the root key lies, and what its file is written with.
struct Kept {
    path: PathBuf,
    protection: Protection,
    /// Under which the file's roots are sealed; `None` where its mode alone protects them.
    key: Option<Zeroizing<[u8; 32]>>,
}

/// How a root key is to be protected from now on.
#[derive(Debug)]
pub enum Protect<'a> {
    /// By the file's mode alone.
    File,
    /// By a passphrase.
    Passphrase(&'a SecretText),
    /// By systemd: the text for the credential is written to this file (mode 0600), and the key file keeps none of it.
    Credential(&'a Path),
}

/// The root key of one cloud.
pub struct RootKey {
    shared: Arc<Shared>,
    /// Locked for as long as the file is written, so that file and memory say the same.
    kept: Mutex<Kept>,
}

impl RootKey {
    /// Opens a key file that its mode alone protects, or makes it (mode 0600) where there is none.
    pub fn open_or_create(path: &Path) -> Result<Self, Error> {
        match KeyFile::read(path)? {
            Some(file) => file.open(),
            None => Self::create(path),
        }
    }

    /// Makes a root key and its file (mode 0600). To be called where there is none.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let version = Version::random(1)?;
        let text = file::write(&Protection::File, None, std::iter::once(&version))?;
        write_private(path, text.expose())?;
        let kept = Kept { path: path.to_owned(), protection: Protection::File, key: None };
        Self::new(kept, vec![version]).ok_or_else(|| Refusal::Unwritable.into())
    }

    /// Takes the root key out of the credential `chitin-kek`, for a cloud that has no key file yet; the file is made, and
    /// says so.
    pub fn create_from_credential(path: &Path, credential: &Secret) -> Result<Self, Error> {
        let root = open::from_credential(path.to_owned(), credential)?;
        write_private(path, file::marker(&root.protection())?.expose())?;
        Ok(root)
    }

    fn new(kept: Kept, roots: Vec<Version>) -> Option<Self> {
        let mut roots = roots.into_iter().map(Arc::new);
        let ring = Ring { current: roots.next()?, earlier: roots.collect() };
        Some(Self { shared: Arc::new(Shared(RwLock::new(ring))), kept: Mutex::new(kept) })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept_mut(&mut self) -> &mut Kept {
        self.kept.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name for the newest version that does not give it away.
    pub fn id(&self) -> String {
        self.shared.current().id()
    }

    /// The number of the newest version: 1, and one more with each rotation.
    pub fn version(&self) -> u32 {
        self.shared.current().number
    }

    /// The numbers of all versions that are kept, newest first.
    pub fn versions(&self) -> Vec<u32> {
        self.shared.read(|ring| ring.all().map(|version| version.number).collect())
    }

    /// The names of all versions that are kept, newest first.
    pub fn ids(&self) -> Vec<String> {
        self.shared.read(|ring| ring.all().map(|version| version.id()).collect())
    }

    /// How its file is protected.
    pub fn protection(&self) -> Protection {
        self.kept().protection.clone()
    }

    /// A sealer whose keys are good for this purpose only.
    pub fn sealer(&self, purpose: &str) -> Result<Sealer, Error> {
        self.shared.current().purpose(purpose)?;
        Ok(Sealer::new(self.shared.clone(), purpose))
    }

    /// Makes a new version and keeps the earlier ones beside it. When this returns, the file holds all of them, and
    /// everything is sealed and wrapped with the new one. What was sealed before opens as ever.
    pub fn begin_rotation(&self) -> Result<u32, Error> {
        let kept = self.kept();
        let (mut earlier, number) = self
            .shared
            .read(|ring| (ring.all().cloned().collect::<Vec<_>>(), ring.current.number.checked_add(1)));
        let number = number.filter(|_| earlier.len() < ROOTS_MAX).ok_or(Refusal::TooManyVersions)?;
        let next = Arc::new(Version::random(number)?);
        earlier.insert(0, next.clone());
        save(&kept, &earlier)?;
        earlier.remove(0);
        self.shared.publish(Ring { current: next, earlier });
        Ok(number)
    }

    /// Drops every earlier version that is not among the needed ones, from the file and from memory. Gives those that
    /// were dropped.
    pub fn retire(&self, needed: &BTreeSet<u32>) -> Result<Vec<u32>, Error> {
        let kept = self.kept();
        let (current, earlier) = self.shared.read(|ring| (ring.current.clone(), ring.earlier.clone()));
        let (stay, go): (Vec<_>, Vec<_>) =
            earlier.into_iter().partition(|version| needed.contains(&version.number));
        if go.is_empty() {
            return Ok(Vec::new());
        }
        let all: Vec<_> = std::iter::once(current.clone()).chain(stay.iter().cloned()).collect();
        save(&kept, &all)?;
        self.shared.publish(Ring { current, earlier: stay });
        Ok(go.iter().map(|version| version.number).collect())
    }

    /// Changes how the file is protected; the root key stays the same.
    pub fn protect(&self, with: &Protect<'_>) -> Result<(), Error> {
        match with {
            Protect::File => self.keep_with(Protection::File, None),
            Protect::Passphrase(passphrase) => {
                let (protection, key) = by_passphrase(passphrase)?;
                self.keep_with(protection, Some(key))
            }
            Protect::Credential(path) => {
                let text = self.shared.read(|ring| {
                    file::write(&Protection::File, None, ring.all().map(|version| &**version))
                })?;
                write_private(path, text.expose())?;
                let mut kept = self.kept();
                let protection = Protection::Credential { id: self.id() };
                write_private(&kept.path, file::marker(&protection)?.expose())?;
                (kept.protection, kept.key) = (protection, None);
                Ok(())
            }
        }
    }

    /// From now on the file opens only with what this service unwraps.
    pub async fn protect_by_service(&self, service: &dyn KeyEncryption) -> Result<(), Error> {
        let data_key = DataKey::random();
        let wrapped = service.wrap(&data_key, &Binding::Root).await.map_err(Refusal::NotWrapped)?;
        // A key that was wrapped and cannot be unwrapped would cost everything.
        let unwrapped = service.unwrap(&wrapped, &Binding::Root).await.map_err(Refusal::NotWrapped)?;
        let key = unlocking_key(&unwrapped)?;
        self.keep_with(Protection::Service { wrapped }, Some(key))
    }

    fn keep_with(&self, protection: Protection, key: Option<Zeroizing<[u8; 32]>>) -> Result<(), Error> {
        let mut kept = self.kept();
        let next = Kept { path: kept.path.clone(), protection, key };
        let all: Vec<_> = self.shared.read(|ring| ring.all().cloned().collect());
        save(&next, &all)?;
        *kept = next;
        Ok(())
    }

    /// Writes all versions to a file of their own, protected by the passphrase.
    pub fn back_up(&self, path: &Path, passphrase: &SecretText) -> Result<(), Error> {
        let (protection, key) = by_passphrase(passphrase)?;
        let all: Vec<_> = self.shared.read(|ring| ring.all().cloned().collect());
        save(&Kept { path: path.to_owned(), protection, key: Some(key) }, &all)
    }

    /// Writes the file to another place, protected as it is, and keeps the root key there from now on.
    pub fn move_to(&self, path: &Path) -> Result<(), Error> {
        let mut kept = self.kept();
        let next = Kept { path: path.to_owned(), protection: kept.protection.clone(), key: kept.key.clone() };
        let all: Vec<_> = self.shared.read(|ring| ring.all().cloned().collect());
        save(&next, &all)?;
        *kept = next;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn for_test(roots: &[(u32, u8)]) -> Self {
        let version =
            |(number, byte): &(u32, u8)| Version::new(*number, Zeroizing::new([*byte; 32])).unwrap();
        let kept = Kept { path: PathBuf::from("/nowhere/kek"), protection: Protection::File, key: None };
        Self::new(kept, roots.iter().map(version).collect()).unwrap()
    }
}

fn save(kept: &Kept, roots: &[Arc<Version>]) -> Result<(), Error> {
    if matches!(kept.protection, Protection::Credential { .. }) {
        return Err(Refusal::InCredential.into());
    }
    let text = file::write(&kept.protection, kept.key.as_deref(), roots.iter().map(|version| &**version))?;
    write_private(&kept.path, text.expose())
}

fn by_passphrase(passphrase: &SecretText) -> Result<(Protection, Zeroizing<[u8; 32]>), Error> {
    passphrase::check(passphrase)?;
    let derivation = Derivation::random();
    let key = derivation.key(passphrase)?;
    Ok((Protection::Passphrase(derivation), key))
}

/// The key of the file out of the data key that a service wraps.
fn unlocking_key(data_key: &DataKey) -> Result<Zeroizing<[u8; 32]>, Error> {
    derive(data_key.expose(), &[b"chitin root key file"])
}

fn context(place: &Binding, version: &Version) -> String {
    format!("{} under {} version {}", place.context(), version.id(), version.number)
}

#[async_trait]
impl KeyEncryption for RootKey {
    async fn wrap(&self, key: &DataKey, place: &Binding) -> Result<WrappedKey, KeyFailure> {
        let version = self.shared.current();
        let mut sealed = vec![WRAPPED_FORM];
        let done = version.wrapper.seal_onto(&mut sealed, context(place, &version).as_bytes(), key.expose());
        done.map_err(|cause| KeyFailure::Unusable {
            key: KeySpec::root().to_string(),
            reason: cause.to_string(),
        })?;
        Ok(WrappedKey {
            key: KeySpec::root(),
            key_id: version.id(),
            key_version: version.number.to_string(),
            algorithm: ALGORITHM.to_owned(),
            wrapped: STANDARD.encode(sealed),
        })
    }

    async fn unwrap(&self, wrapped: &WrappedKey, place: &Binding) -> Result<DataKey, KeyFailure> {
        let version = wrapped.key_version.parse().ok().and_then(|number| self.shared.numbered(number));
        let version =
            version.filter(|version| version.id() == wrapped.key_id && wrapped.algorithm == ALGORITHM);
        let Some(version) = version else {
            return Err(KeyFailure::Unusable {
                key: KeySpec::root().to_string(),
                reason: format!(
                    "the data key is wrapped by root key {} version {}, and this cloud has root key {}; restore the key \
                     file that belongs to this data",
                    wrapped.key_id,
                    wrapped.key_version,
                    self.id()
                ),
            });
        };
        let does_not_open = || KeyFailure::DoesNotOpen { key: KeySpec::root().to_string() };
        let sealed = STANDARD.decode(&wrapped.wrapped).map_err(|_| does_not_open())?;
        let sealed = sealed.strip_prefix(&[WRAPPED_FORM]).ok_or_else(does_not_open)?;
        let plain =
            version.wrapper.open(context(place, &version).as_bytes(), sealed).map_err(|_| does_not_open())?;
        DataKey::from_bytes(plain.expose()).ok_or_else(does_not_open)
    }
}

/// The ring of a cloud without keys of customers'.
#[async_trait]
impl KeyRing for RootKey {
    async fn wrap(&self, cluster: &Cluster, key: &DataKey) -> Result<WrappedKey, KeyFailure> {
        KeyEncryption::wrap(self, key, &Binding::Volume(cluster.id)).await
    }

    async fn unwrap(&self, cluster: ClusterId, wrapped: &WrappedKey) -> Result<DataKey, KeyFailure> {
        KeyEncryption::unwrap(self, wrapped, &Binding::Volume(cluster)).await
    }
}

impl std::fmt::Debug for RootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootKey")
            .field("id", &self.id())
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}
