//! Rotation of the root key in the running cloud: a new version, everything sealed and wrapped anew, the old one dropped.
//!
//! Steps, each of which can be repeated and none of which needs the one before to have ended well: the key file holds the
//! new version beside the old; the authority's key and the state are sealed anew; the reconciler wraps each cluster's data
//! key anew; what no file needs any more is dropped. At each moment everything that is on the disk opens.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keys::{Authority, RootKey, Sealer, WrappedKey};
use model::{ClusterId, KeyType};
use store::Store;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::paths::Paths;

/// A data key that was wrapped just before a rotation is in its file by then.
const WRITTEN_AFTER: Duration = Duration::from_secs(60);
/// How often it is looked whether an earlier version is still needed.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A wrapped key's file is short.
const KEY_FILE_BYTES_MAX: u64 = 256 * 1024;

/// Why a rotation stopped. It goes on by itself, and can be begun again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key cannot be used or written.
    #[error(transparent)]
    Key(#[from] keys::Error),
    /// The state cannot be sealed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The work broke.
    #[error("the rotation of the root key broke off: {0}; it goes on at the next start")]
    Broken(String),
}

/// Where the root key's versions stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The version that wraps and seals.
    pub current: u32,
    /// Earlier versions that are kept because something is still under them, newest first.
    pub earlier: Vec<u32>,
}

/// Rotates the root key of one cloud.
pub struct Rotation {
    root: Arc<RootKey>,
    store: Arc<Store>,
    authority: Sealer,
    paths: Paths,
    /// One step at a time; and since when the newest version is there.
    began: Mutex<Option<Instant>>,
    written_after: Duration,
}

impl Rotation {
    /// For the cloud whose files lie there.
    pub fn new(root: Arc<RootKey>, store: Arc<Store>, paths: Paths) -> Result<Arc<Self>, keys::Error> {
        Self::waiting(root, store, paths, WRITTEN_AFTER)
    }

    pub(super) fn waiting(
        root: Arc<RootKey>,
        store: Arc<Store>,
        paths: Paths,
        written_after: Duration,
    ) -> Result<Arc<Self>, keys::Error> {
        let authority = root.sealer("authority")?;
        Ok(Arc::new(Self { root, store, authority, paths, began: Mutex::default(), written_after }))
    }

    /// Where the versions stand.
    pub fn standing(&self) -> Standing {
        let mut versions = self.root.versions();
        let current = versions.remove(0);
        Standing { current, earlier: versions }
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let Standing { current, earlier } = self.standing();
        let by = self.root.protection();
        let kept =
            if earlier.is_empty() { String::new() } else { format!(", earlier ones kept: {earlier:?}") };
        format!("{} version {current}{kept}, protected by: {}", self.root.id(), by.as_str())
    }

    /// Rotates to a new version. When this returns, the cloud's own state is under it, and clusters follow: an earlier
    /// version is kept until nothing needs it.
    pub async fn rotate_root(self: &Arc<Self>) -> Result<Standing, Error> {
        let rotation = self.clone();
        // In a task of its own: whoever stops waiting does not break it off half way.
        let work = tokio::spawn(async move {
            let mut began = rotation.began.lock().await;
            let (root, store) = (rotation.root.clone(), rotation.store.clone());
            let version = blocking(move || {
                // A new version that the state cannot follow to would be half a rotation, for as long as that is so.
                store.try_write()?;
                Ok(root.begin_rotation()?)
            })
            .await?;
            *began = Some(Instant::now());
            fail::fail_point!("root-rotation-begun");
            rotation.seal_authority().await?;
            fail::fail_point!("root-rotation-authority");
            rotation.seal_state().await?;
            fail::fail_point!("root-rotation-state");
            tracing::info!(
                version,
                "the root key has a new version, and the state is under it; clusters follow"
            );
            Ok(rotation.standing())
        });
        work.await.map_err(|broken| Error::Broken(broken.to_string()))?
    }

    /// Seals anew what is not under the newest version: nothing, unless a rotation was interrupted or just began.
    pub async fn seal_anew(self: &Arc<Self>) -> Result<(), Error> {
        self.seal_authority().await?;
        self.seal_state().await
    }

    async fn seal_authority(self: &Arc<Self>) -> Result<(), Error> {
        let rotation = self.clone();
        blocking(move || Ok(Authority::reseal(rotation.paths.data(), &rotation.authority)?)).await
    }

    async fn seal_state(self: &Arc<Self>) -> Result<(), Error> {
        let rotation = self.clone();
        blocking(move || {
            rotation.store.reseal()?;
            Ok(())
        })
        .await
    }

    /// Drops the versions that nothing on the disk needs any more.
    pub async fn settle(self: &Arc<Self>) -> Result<Standing, Error> {
        let began = self.began.lock().await;
        let standing = self.standing();
        if standing.earlier.is_empty() || began.is_some_and(|began| began.elapsed() < self.written_after) {
            return Ok(standing);
        }
        self.seal_anew().await?;
        let rotation = self.clone();
        blocking(move || {
            let Some(needed) = versions_under(&rotation.paths.clusters()) else {
                return Ok(());
            };
            let dropped = rotation.root.retire(&needed)?;
            fail::fail_point!("root-rotation-retired");
            if !dropped.is_empty() {
                tracing::info!(
                    ?dropped,
                    "earlier versions of the root key are no longer needed and were destroyed; make a new backup: chitin key backup FILE"
                );
            }
            Ok(())
        })
        .await?;
        Ok(self.standing())
    }

    /// Goes on with what is left of rotations, until it is told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            if let Err(cause) = self.settle().await {
                tracing::error!(%cause, "an earlier version of the root key could not be dropped");
            }
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// The versions under which any data key on the disk is wrapped, of volumes in use and of those being made. `None` if a
/// key file cannot be read: what it needs is not known, so everything is kept.
fn versions_under(clusters: &Path) -> Option<BTreeSet<u32>> {
    let mut needed = BTreeSet::new();
    let entries = match std::fs::read_dir(clusters) {
        Ok(entries) => entries,
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Some(needed),
        Err(_) => return None,
    };
    for cluster in entries {
        let cluster = cluster.ok()?;
        // What is not named as a cluster is none, and has no key.
        let is_one = cluster.file_name().to_str().is_some_and(|name| name.parse::<ClusterId>().is_ok());
        let folder = cluster.path();
        if !is_one || !folder.is_dir() {
            continue;
        }
        note_version(&folder, &mut needed)?;
        for volume in std::fs::read_dir(&folder).ok()? {
            let volume = volume.ok()?;
            // Others hold what tenants write, which is not looked at.
            if volume.file_name().to_str().is_some_and(|name| name.starts_with("volume-")) {
                note_version(&volume.path(), &mut needed)?;
            }
        }
    }
    Some(needed)
}

fn note_version(folder: &Path, needed: &mut BTreeSet<u32>) -> Option<()> {
    use std::io::Read;
    let mut text = Vec::new();
    match std::fs::File::open(folder.join("key.json")) {
        Ok(file) => file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut text).ok()?,
        Err(none) if none.kind() == std::io::ErrorKind::NotFound => {
            // One that is being made has a key that is in no file yet; one that is complete has lost it for good.
            return folder.join("complete.json").exists().then_some(());
        }
        Err(_) => return None,
    };
    let wrapped: WrappedKey = serde_json::from_slice(&text).ok()?;
    if wrapped.key.kind == KeyType::Null {
        needed.insert(wrapped.key_version.parse().ok()?);
    }
    Some(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|broken| Error::Broken(broken.to_string()))?
}

impl std::fmt::Debug for Rotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rotation")
    }
}
