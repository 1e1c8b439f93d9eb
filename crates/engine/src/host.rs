//! The engines of this machine: made, started, stopped, destroyed. One thing at a time for each cluster.

mod admitting;
mod creating;
mod data_key;
mod ending;
mod looking;
mod marks;
mod next_volume;
mod ready;
mod storage;
mod switching;
mod template;
mod watching;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use keys::KeyRing;
use model::{Checkpoint, Cluster, ClusterId, Encryption, Template, VolumeId};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, broadcast};

use crate::cgroup::{Group, Groups};
use crate::claim::Claim;
use crate::companion::Companion;
use crate::connector::Connector;
use crate::inside::Inside;
use crate::jail::{self, Jail, Purpose};
use crate::launch::Launcher;
use crate::places::{Marker, Owner, Places, give, make_folder, remove_folder};
use crate::postgres::{Installations, Postgres};
use crate::process::none_left;
use crate::running::{Running, Watch};
use crate::volume::{self, Unlocked};
use crate::{Administration, Error, Posture};
use crate::{control_file, leftovers, process, settings};
use next_volume::NextVolume;

/// For the engine to read its identity map again.
const ADMIT_MAX: Duration = Duration::from_secs(5);
/// Deaths that a slow listener may lag behind; it looks at everything then.
const DEATHS_BUFFERED: usize = 64;

pub use data_key::KeyUse;
pub use marks::{OnDisk, StateMark};
pub use next_volume::{Copied, CopyProgress};
pub use storage::MachineRoom;
pub use watching::{Look, Looked};

/// What the host needs to know.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The data directory.
    pub data: PathBuf,
    /// Wraps the clusters' data keys.
    pub keys: Arc<dyn KeyRing>,
    /// Whether clusters may be made where nothing encrypts.
    pub allow_unencrypted: bool,
    /// Folders with installations of PostgreSQL, beside those in the system's places.
    pub postgres: Vec<PathBuf>,
    /// The major version of new clusters that ask for none, if it is to be another than the newest that is installed.
    pub default_major: Option<u32>,
    /// The kind of encryption, if it is to be another than the best found.
    pub encryption: Option<Encryption>,
    /// What encrypts the disk below, in the operator's words. Needed for [`Encryption::Attested`].
    pub attestation: Option<String>,
    /// What starts PostgreSQL inside a sandbox.
    pub launcher: Launcher,
    /// What is known of volumes, and of what they are copied from, beside what lies on the disk.
    pub record: Arc<dyn VolumeRecord>,
}

/// What the cloud's sealed state says of volumes. What lies on the disk decides nothing that it does not say too.
pub trait VolumeRecord: std::fmt::Debug + Send + Sync + 'static {
    /// Whether this may be the volume of the cluster that counts; if not, what is on record instead.
    fn check(&self, id: ClusterId, found: VolumeId) -> Result<(), String>;

    /// The major version of PostgreSQL that the cluster is made with; none where that was never kept, since there was one for
    /// all. `Err` where nothing is known of the cluster.
    fn major(&self, id: ClusterId) -> Result<Option<u32>, String>;

    /// The newest checkpoint that was seen of the cluster; none where none was, or where an older volume was accepted.
    fn checkpoint(&self, id: ClusterId) -> Option<Checkpoint>;

    /// What the template of this major version of PostgreSQL must be; none where none was made.
    fn template(&self, major: u32) -> Result<Option<Template>, String>;

    /// Keeps what a template that was just made is.
    fn keep_template(&self, major: u32, template: &Template) -> Result<(), String>;
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its volume.
    pub volume: VolumeId,
    /// The engine's version.
    pub engine_version: String,
}

/// What was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The volume that it runs on.
    pub volume: VolumeId,
    /// The engine's version.
    pub engine_version: String,
}

/// An installation of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its major version.
    pub major: u32,
    /// Its version, for instance `15.18`.
    pub version: String,
    /// The folder with its programs.
    pub programs: PathBuf,
}

/// The installations of PostgreSQL on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Those that clusters can run on, one of each major version, the oldest first.
    pub versions: Vec<Version>,
    /// The major version of new clusters that ask for none.
    pub default_major: Option<u32>,
    /// What else was found or named, and why it is not used.
    pub unusable: Vec<String>,
}

/// The engines of this machine.
pub struct Host {
    places: Places,
    keys: Arc<dyn KeyRing>,
    record: Arc<dyn VolumeRecord>,
    installations: Arc<Installations>,
    launcher: Launcher,
    posture: Posture,
    groups: Option<Groups>,
    attestation: Option<String>,
    slots: Mutex<HashMap<ClusterId, Arc<Slot>>>,
    deaths: broadcast::Sender<ClusterId>,
    /// Places for engines, and how many there are, where they are bounded.
    engines: OnceLock<(Arc<Semaphore>, usize)>,
    /// Held while what new clusters are copied from is made.
    templates: AsyncMutex<()>,
    /// The disk below has nothing left to give.
    is_frozen: AtomicBool,
    /// Before the claim: what follows on it waits until everything is locked.
    companion: Arc<Companion>,
    _claim: Claim,
}

/// One cluster's place: who wants to change it waits here.
#[derive(Default)]
struct Slot {
    turn: AsyncMutex<()>,
    running: Mutex<Option<Arc<Running>>>,
    /// What its files said when it was stopped.
    checkpoint: Mutex<Option<Checkpoint>>,
    /// Held by the one copy of its volume that may be under way.
    copying: Arc<AsyncMutex<()>>,
    next: Mutex<Option<Arc<NextVolume>>>,
    giving: Arc<Mutex<[volume::Giving; 2]>>,
    /// A volume that could not be locked: it counts as unlocked until that succeeds.
    left: Mutex<Option<Left>>,
}

/// A volume that could not be locked.
#[derive(Clone, Debug)]
struct Left {
    folder: PathBuf,
    kind: Encryption,
    files: Vec<volume::FileId>,
}

impl Slot {
    /// Remembers what a failed unlocking left unlocked all the same, so that it is locked before anything else.
    fn keep_half_unlocked(&self, folder: &Path, kind: Encryption) {
        if volume::still_unlocked(folder, kind, &[]).is_some() {
            *lock(&self.left) = Some(Left { folder: folder.to_owned(), kind, files: Vec::new() });
        }
    }
}

impl Host {
    /// Looks at the machine and clears what a killed predecessor left.
    pub async fn open(config: HostConfig) -> Result<Arc<Self>, Error> {
        let data = config.data.clone();
        let claim = blocking(move || Claim::take(&data)).await?;
        Self::open_claimed(config, claim).await
    }

    /// The same for whoever has claimed the data directory already, and has looked meanwhile whether it may be cleared.
    pub async fn open_claimed(config: HostConfig, claim: Claim) -> Result<Arc<Self>, Error> {
        let work = move || Self::open_now(&config, claim);
        blocking(work).await
    }

    fn open_now(config: &HostConfig, claim: Claim) -> Result<Arc<Self>, Error> {
        let data = config.data.canonicalize().map_err(Error::file("find", &config.data))?;
        let places = Places::new(&data);
        make_folder(&places.clusters(), 0o711)?;
        make_folder(&data.join("run"), 0o711)?;
        // Only when the one of a Chitin that was killed is done.
        let companion = Arc::new(Companion::start(&data, &config.launcher)?);
        leftovers::clear(&places);
        let sandbox = jail::probe().map_err(|reason| Error::NoSandbox { reason })?;
        let ask = jail::asking(places.clone(), config.launcher.clone());
        let installations = Installations::look(&config.postgres, config.default_major, ask)?;
        let groups = Groups::open(&data);
        let posture = Posture::probe(config, sandbox, (&places, &companion), groups.as_ref());
        let host = Arc::new(Self {
            places,
            keys: config.keys.clone(),
            record: config.record.clone(),
            installations: Arc::new(installations),
            launcher: config.launcher.clone(),
            posture,
            groups: groups.ok(),
            attestation: config.attestation.clone(),
            slots: Mutex::default(),
            deaths: broadcast::channel(DEATHS_BUFFERED).0,
            engines: OnceLock::new(),
            templates: AsyncMutex::default(),
            is_frozen: AtomicBool::new(false),
            companion,
            _claim: claim,
        });
        host.clear_others_now();
        Ok(host)
    }

    /// Destroys what a copy or a switch that a crash broke off left: of two volumes of a cluster one counts, and the other's
    /// data belong to nobody. Which counts is for the record to say, so nothing is destroyed of a cluster that it does not
    /// know. To be called once more when the record is open.
    pub async fn clear_others(self: &Arc<Self>) -> Result<(), Error> {
        let host = self.clone();
        let work = move || {
            host.clear_others_now();
            Ok(())
        };
        blocking(work).await
    }

    fn clear_others_now(&self) {
        for id in self.on_disk() {
            let Ok(Some(marker)) = self.marker(id) else {
                continue;
            };
            if let Err(cause) = volume::destroy_others(&self.places, id, marker.generation) {
                tracing::warn!(cluster = %id, %cause, "what a killed Chitin left of a cluster could not be cleared");
            }
        }
    }

    /// Lets at most so many engines run at a time, from now on. To be said once, before any of them is started.
    pub fn bound_engines(&self, max: usize) {
        let places = Semaphore::new(max.min(Semaphore::MAX_PERMITS));
        // The first one counts.
        let _ = self.engines.set((Arc::new(places), max));
    }

    fn place_for_engine(&self) -> Result<Option<OwnedSemaphorePermit>, Error> {
        let Some((places, max)) = self.engines.get() else {
            return Ok(None);
        };
        let place = places.clone().try_acquire_owned();
        place.map(Some).map_err(|_| Error::TooManyEngines { max: *max })
    }

    /// The installations of PostgreSQL that clusters can run on, and what else was found or named and why that is not used.
    pub fn installed(&self) -> Installed {
        let all = self.installations.all();
        let versions = all.iter().map(|one| Version {
            major: one.major,
            version: one.version.clone(),
            programs: one.bin.clone(),
        });
        let (versions, unusable) = (versions.collect(), self.installations.unusable());
        Installed { versions, default_major: self.installations.default_major(), unusable }
    }

    /// Looks for installations of PostgreSQL that were made, updated or removed since.
    pub async fn look_for_versions(self: &Arc<Self>) -> Result<(), Error> {
        let installations = self.installations.clone();
        blocking(move || {
            installations.look_again();
            Ok(())
        })
        .await
    }

    /// What the machine gives.
    pub fn posture(&self) -> &Posture {
        &self.posture
    }

    /// Tells of engines that ended without being asked to.
    pub fn deaths(&self) -> broadcast::Receiver<ClusterId> {
        self.deaths.subscribe()
    }

    /// What the cluster's folder says of its volume, where that is on record; nothing where it was not completely made.
    fn marker(&self, id: ClusterId) -> Result<Option<Marker>, Error> {
        let Some(marker) = self.places.read_marker(id) else {
            return Ok(None);
        };
        let refused = |reason| Error::VolumeRefused { reason };
        let differs = |reason| {
            refused(format!(
                "{reason}: somebody with access to the disk changed it; put the data directory back from a backup, and see \
                 who can write to it"
            ))
        };
        self.record.check(id, marker.volume()).map_err(differs)?;
        if marker.encryption == Encryption::None && !self.posture.is_unencrypted_allowed {
            return Err(refused(
                "it is not encrypted, and Chitin was started without --allow-unencrypted; if you accept files in plaintext, \
                 start with that"
                    .to_owned(),
            ));
        }
        Ok(Some(marker))
    }

    /// Unlocks the volume and starts the engine; returns when that says that it is ready. Does nothing where it runs already.
    pub async fn start(self: &Arc<Self>, cluster: &Cluster) -> Result<Started, Error> {
        let (host, cluster) = (self.clone(), cluster.clone());
        to_its_end(async move {
            let slot = host.slot(cluster.id);
            let _turn = slot.turn.lock().await;
            host.start_in(&slot, &cluster).await
        })
        .await
    }

    async fn start_in(self: &Arc<Self>, slot: &Slot, cluster: &Cluster) -> Result<Started, Error> {
        if let Some(running) = lock(&slot.running).clone()
            && !running.has_exited()
            && running.lost().is_none()
        {
            let engine_version = running.postgres.version.clone();
            return Ok(Started { volume: running.on, engine_version });
        }
        // One that died, or lost its volume, left that unlocked, and so does a copy until it is given up.
        self.stop_in(slot).await?;
        self.place_for_engine()?;
        // Before anything is unlocked.
        let postgres = self.postgres_of(cluster.id).await?;
        let (on, volume, admitted) = self.unlock(cluster).await?;
        self.launch(slot, (cluster, &postgres), (on, volume), &admitted).await?;
        Ok(Started { volume: on, engine_version: postgres.version.clone() })
    }

    /// The installation that the cluster runs on, as it is now.
    async fn postgres_of(self: &Arc<Self>, id: ClusterId) -> Result<Arc<Postgres>, Error> {
        let host = self.clone();
        blocking(move || host.postgres_of_now(id)).await
    }

    fn postgres_of_now(&self, id: ClusterId) -> Result<Arc<Postgres>, Error> {
        match self.record.major(id).map_err(Error::Unready)? {
            Some(major) => self.installations.of(major),
            None => self.installations.default(),
        }
    }

    async fn unlock(self: &Arc<Self>, cluster: &Cluster) -> Result<(VolumeId, Unlocked, Vec<String>), Error> {
        let (host, places, id) = (self.clone(), self.places.clone(), cluster.id);
        let (marker, wrapped) = blocking(move || {
            let marker = host.marker(id)?.ok_or_else(|| Error::File {
                action: "read",
                path: places.marker(id),
                source: std::io::Error::other("the cluster was not completely made"),
            })?;
            Ok((marker, volume::wrapped_key(&places.volume(id, marker.generation))?))
        })
        .await?;
        let key = self.keys.unwrap(id, &wrapped).await?;
        let (places, owner, companion) = (self.places.clone(), Owner::of(cluster), self.companion.clone());
        let (newest, limit, slot) = (self.record.checkpoint(id), cluster.storage(), self.slot(id));
        blocking(move || {
            let folder = places.volume(id, marker.generation);
            let unlocked = volume::unlock(&companion, &folder, marker.encryption, &key, owner, limit);
            let volume = unlocked.inspect_err(|_| slot.keep_half_unlocked(&folder, marker.encryption))?;
            if let Some(newest) = newest
                && let Err(older) = control_file::check(&volume.base, &newest)
            {
                volume.lock()?;
                return Err(older);
            }
            let admitted = admitted_before(&volume.base);
            Ok((marker.volume(), volume, admitted))
        })
        .await
    }

    /// Starts the engine on an unlocked volume and waits until it says that it is ready; locks the volume where it does not.
    async fn launch(
        self: &Arc<Self>,
        slot: &Slot,
        (cluster, postgres): (&Cluster, &Arc<Postgres>),
        (on, volume): (VolumeId, Unlocked),
        admitted: &[String],
    ) -> Result<(), Error> {
        let (host, wanted, names) = (self.clone(), cluster.clone(), admitted.to_vec());
        let engine = postgres.clone();
        let (base, place) = (volume.base.clone(), volume.base.clone());
        let deaths = self.deaths.clone();
        let started = blocking(move || {
            let place = host.place_for_engine()?;
            let watch = Watch::prepare(wanted.id, place, deaths)?;
            host.spawn((&wanted, &engine), &base, &names).map(|started| (watch, started))
        })
        .await;
        let (watch, (child, connector, group)) = match started {
            Ok(started) => started,
            Err(cause) => {
                let _ = blocking(move || volume.lock()).await;
                return Err(cause);
            }
        };
        let admitted = admitted.iter().cloned().collect();
        let running = Arc::new(Running::watch(
            child,
            connector,
            watch,
            (cluster, postgres.clone(), group),
            (on, volume, slot.giving.clone()),
            admitted,
        ));
        *lock(&slot.running) = Some(running.clone());
        if let Err(cause) = self.wait_ready(&running, &place).await {
            // Of a volume that is lost nothing is read: it may not answer.
            let reason = running.lost().or_else(|| running.last_words()).unwrap_or_else(|| cause.to_string());
            self.stop_in(slot).await?;
            return Err(Error::Unready(reason));
        }
        self.settle_storage(&running, cluster.storage()).await;
        Ok(())
    }

    fn spawn(
        &self,
        (cluster, postgres): (&Cluster, &Postgres),
        base: &Path,
        admitted: &[String],
    ) -> Result<(std::process::Child, Connector, Option<Group>), Error> {
        let owner = Owner::of(cluster);
        let data = Inside::open(base, "pg")?;
        settings::write(&data, postgres, cluster, owner)?;
        settings::write_identities(&data, postgres, admitted.iter().map(String::as_str), owner)?;
        // Of a run that was killed. Its process is gone: the slot is ours, and its namespace died with it.
        data.remove("postmaster.pid");
        let (run, etc) = self.prepare_run(cluster, owner)?;
        let folder = Inside::at(&run)?;
        let group = self.limited(cluster)?;
        let jail = self.jail(postgres, (owner, base), (&run, &etc), group.as_ref());
        let mut command = jail.command(Purpose::Run, "postgres", &["-D/volume/pg"])?;
        let log = Inside::open(base, "log")?.create("start.log", owner)?;
        command.stdout(Stdio::null()).stderr(log);
        let child = process::spawn(command)
            .map_err(|cause| Error::Program { program: "bwrap", reason: none_left(&cause) })?;
        let connector = Connector::new(folder, owner, child.id());
        Ok((child, connector, group))
    }

    /// SQL as the internal superuser.
    pub async fn administration(&self, id: ClusterId) -> Result<Administration, Error> {
        Administration::connect(&self.running(id)?.connector).await
    }

    pub(crate) fn running(&self, id: ClusterId) -> Result<Arc<Running>, Error> {
        let slot = lock(&self.slots).get(&id).cloned().ok_or(Error::Asleep)?;
        let running = lock(&slot.running).clone().ok_or(Error::Asleep)?;
        if running.has_exited() || running.lost().is_some() { Err(Error::Asleep) } else { Ok(running) }
    }

    fn slot(&self, id: ClusterId) -> Arc<Slot> {
        lock(&self.slots).entry(id).or_default().clone()
    }

    fn jail<'a>(
        &'a self,
        postgres: &'a Postgres,
        (owner, base): (Owner, &'a Path),
        (run, etc): (&'a Path, &'a Path),
        group: Option<&'a Group>,
    ) -> Jail<'a> {
        Jail { postgres, launcher: &self.launcher, owner, base, run, etc, group }
    }

    /// The cluster's control group with its limits set; none where the machine has no such groups.
    fn limited(&self, cluster: &Cluster) -> Result<Option<Group>, Error> {
        self.groups.as_ref().map(|groups| groups.limit(cluster)).transpose()
    }

    /// Sessions at a time that the cluster's running engine was started for.
    pub fn connections_max(&self, id: ClusterId) -> Option<u32> {
        Some(self.running(id).ok()?.connections_max)
    }

    /// Whether what the cluster's running engine may use of the machine is what the document says, or is being made so.
    pub fn is_sized(&self, cluster: &Cluster) -> bool {
        let (Ok(running), Some(_)) = (self.running(cluster.id), &self.groups) else {
            return true;
        };
        running.resources.try_lock().map_or(true, |resources| *resources == cluster.resources())
    }

    /// Sets what the cluster's running engine may use of the machine. With less memory the kernel takes back what is over, and
    /// that may take its time.
    pub fn resize(&self, cluster: &Cluster) -> Result<(), Error> {
        let (Ok(running), Some(groups)) = (self.running(cluster.id), &self.groups) else {
            return Ok(());
        };
        let wanted = cluster.resources();
        let mut resources = lock(&running.resources);
        if *resources != wanted {
            groups.limit(cluster)?;
            *resources = wanted;
        }
        Ok(())
    }

    /// The jail's own `/etc`.
    pub(crate) fn etc(&self, id: ClusterId) -> PathBuf {
        self.places.cluster(id).join("etc")
    }

    fn prepare_run(&self, cluster: &Cluster, owner: Owner) -> Result<(PathBuf, PathBuf), Error> {
        let run = self.places.run(cluster.routing_id);
        remove_folder(&run)?;
        make_folder(&run, 0o700)?;
        give(&run, owner)?;
        Ok((run, self.etc(cluster.id)))
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("data", &self.places.data()).finish_non_exhaustive()
    }
}

/// The roles that the identity map named before: they are admitted again from the first moment.
fn admitted_before(base: &Path) -> Vec<String> {
    let data = Inside::open(base, "pg").ok();
    let text = data.and_then(|data| data.read("pg_ident.conf")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once('"')?.1.strip_suffix('"'))
        .map(|quoted| quoted.replace("\"\"", "\""))
        .collect()
}

/// Does the work in a task of its own, so that whoever stops waiting for it does not break it off half way: its thread
/// would go on without the cluster's turn.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(cause) => Err(broken_off(&cause)),
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(cause) => Err(broken_off(&cause)),
    }
}

fn broken_off(cause: &tokio::task::JoinError) -> Error {
    Error::Unready(format!("internal work was broken off: {cause}"))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
