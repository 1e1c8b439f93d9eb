//! What the API may have done on a cluster's engine: users, databases, waking, sleeping, and evidence for `verify`.
//!
//! Whoever works on an engine is counted as using it, so that it does not fall asleep meanwhile.

mod refusal;

use std::sync::Arc;
use std::time::Duration;

use api::{
    CopyProgress, Database, EgressVerdict, Facts, KeyFacts, Machine, Outcome, ProofRow, RootKey,
    RootKeyProtection, SqlUser, ThrottleLine,
};
use async_trait::async_trait;
use control::{ClearThrottle, KeyInUse, Refusal};
use engine::{Administration as Engine, Capability, Host, SearchReport, VolumeState};
use gateway::Cut;
use identity::scram::Verifier;
use identity::throttle::{Filter, Throttle};
use model::{
    Clock, ClusterId, DatabaseName, Encryption, INTERNAL_ROLE, IdentityProvider, KeyService, KeySpec, Phase,
    Power, RoleName, SqlRole, Wish,
};
use rustix::process::{Resource, getrlimit};
use store::{Entry, Store};
use tokio::time::timeout;

use crate::descriptors::Budget;
use crate::memory;
use crate::outlets::Outlets;
use crate::perimeter;
use crate::presence::{Errand, Presence};
use crate::ring::Ring;
use crate::root_key::rotation::Rotation;
use crate::trial::Trial;
use crate::waker::Waker;

/// For one errand on an engine that is awake.
const ERRAND_MAX: Duration = Duration::from_secs(120);
/// For a cluster to fall asleep.
const SLEEP_MAX: Duration = Duration::from_secs(130);
/// Should a change be missed, it is looked again after this.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const AT_REST: &str = "all data encrypted at rest";
const PASSWORDS: &str = "username and password";
const SANDBOX: &str = "sandbox";
const COMPANION: &str = "companion";

/// Does the errands.
pub struct Administrator {
    /// The cloud's state.
    pub store: Arc<Store>,
    /// Its engines.
    pub host: Arc<Host>,
    /// Who uses a cluster.
    pub presence: Arc<Presence>,
    /// Who wakes engines.
    pub waker: Arc<Waker>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// What failed sign-ins cost.
    pub throttle: Arc<Throttle>,
    /// What engines may reach, and the gate.
    pub outlets: Arc<Outlets>,
    /// The keys that wrap data keys.
    pub ring: Arc<Ring>,
    /// Tries what is set before it counts.
    pub trial: Trial,
    /// Rotates the root key.
    pub rotation: Arc<Rotation>,
    /// Whether clusters can have networks of their own here.
    pub private_networks: Capability,
    /// What the program may open.
    pub budget: Budget,
}

impl Administrator {
    /// Wakes the cluster; while the errand lives it stays awake.
    async fn awake(&self, id: ClusterId) -> Result<Errand, Refusal> {
        if self.store.snapshot().get(&id).is_none() {
            return Err(Refusal::no_cluster(id));
        }
        let errand = self.presence.errand(id);
        self.waker.wake(id).await.map_err(|reason| refusal::of_engine(reason, id))?;
        Ok(errand)
    }

    /// Wakes the cluster and opens a line to its engine.
    async fn open(&self, id: ClusterId) -> Result<(Errand, Engine), Refusal> {
        let errand = self.awake(id).await?;
        let engine = within(self.host.administration(id)).await?;
        Ok((errand, engine))
    }

    /// Keeps changed roles at once. Where that fails, what was done is done all the same: while the engine runs it is asked
    /// itself, and it is not put to sleep before its roles are kept.
    async fn keep_roles(&self, id: ClusterId, engine: &Engine) -> Result<(), Refusal> {
        let reading = self.store.begin_reading();
        let kept = match within(engine.roles()).await {
            Ok(roles) => {
                let (store, now) = (self.store.clone(), self.clock.now());
                blocking(move || {
                    store.set_roles(id, roles, reading, now)?;
                    store.note(id, |seen| seen.roles.failure = None)
                })
                .await
                .map_err(Refusal::from)
            }
            Err(cause) => Err(cause),
        };
        if let Err(cause) = &kept {
            tracing::warn!(cluster = %id, ?cause, "could not keep the engine's roles");
        }
        kept
    }

    fn volume_row(&self, id: ClusterId) -> ProofRow {
        let claim = "the cluster's files lie in an encrypted volume with a key of its own";
        let Some(state) = self.host.volume_state(id) else {
            return failed(AT_REST, claim, "the volume was not found");
        };
        let outcome = match state.encryption {
            // What the operator says is no proof.
            Encryption::None | Encryption::Attested => Outcome::Missing,
            Encryption::Fscrypt | Encryption::FscryptImage | Encryption::Luks2 | Encryption::Gocryptfs => {
                if state.is_proven {
                    Outcome::Proven
                } else {
                    Outcome::Failed
                }
            }
        };
        row(AT_REST, claim, outcome, &format!("{}: {}", state.encryption.as_str(), state.evidence))
    }

    fn record_row(&self, id: ClusterId) -> ProofRow {
        let claim = "the cluster's folder names the volume that is on record in the sealed state";
        match self.host.check_volume(id) {
            Ok(()) => row(AT_REST, claim, Outcome::Proven, "complete.json agrees with the state"),
            Err(refused) => failed(AT_REST, claim, &refused.to_string()),
        }
    }

    /// Writes a row, and looks for it in what a thief of the disk would have.
    async fn canary_row(&self, id: ClusterId, engine: &Engine) -> ProofRow {
        let claim = "a row that was just written is not found in the raw bytes of the volume";
        let canary = format!("chitin-canary-{}", identity::password::generate().expose());
        let searched = match within(engine.write_canary(&canary)).await {
            Ok(()) => within(self.host.search(id, &canary)).await,
            Err(cause) => Err(cause),
        };
        if let Err(cause) = within(engine.remove_canary()).await {
            tracing::warn!(cluster = %id, ?cause, "the canary row could not be removed");
        }
        match searched {
            Ok(report) => {
                let is_plain = self.host.volume_state(id).is_none_or(|state| is_unlocked(&state).is_none());
                let evidence = format!(
                    "{} bytes of {} searched: found {} times; in the files as the engine sees them: {} times",
                    report.bytes, report.place, report.hits, report.hits_in_plaintext
                );
                row(AT_REST, claim, canary_outcome(&report, is_plain), &evidence)
            }
            Err(cause) => failed(AT_REST, claim, &cause.to_string()),
        }
    }

    async fn sandbox_rows(&self, id: ClusterId) -> Vec<ProofRow> {
        match self.host.sandbox_evidence(id).await {
            Ok(evidence) => evidence
                .into_iter()
                .map(|seen| {
                    let outcome = match seen.is_proven {
                        Some(true) => Outcome::Proven,
                        Some(false) => Outcome::Failed,
                        None => Outcome::Missing,
                    };
                    row(SANDBOX, &seen.claim, outcome, &seen.evidence)
                })
                .collect(),
            Err(cause) => {
                vec![failed(SANDBOX, "the engine's process can be looked at", &cause.to_string())]
            }
        }
    }
}

#[async_trait]
impl control::Administration for Administrator {
    async fn users(&self, id: ClusterId) -> Result<Vec<SqlUser>, Refusal> {
        let (_errand, engine) = self.open(id).await?;
        let users = within(engine.users()).await?;
        let shown = |user: engine::User| SqlUser {
            is_deletion_unfinished: user.is_leaving,
            ..SqlUser::new(user.name)
        };
        Ok(users.into_iter().map(shown).collect())
    }

    async fn create_user(&self, id: ClusterId, name: &RoleName, verifier: &str) -> Result<(), Refusal> {
        let (_errand, engine) = self.open(id).await?;
        within(engine.create_user(name, verifier)).await?;
        let _ = self.keep_roles(id, &engine).await;
        Ok(())
    }

    async fn set_verifier(&self, id: ClusterId, name: &RoleName, verifier: &str) -> Result<(), Refusal> {
        let (_errand, engine) = self.open(id).await?;
        within(engine.set_verifier(name, verifier)).await?;
        let _ = self.keep_roles(id, &engine).await;
        Ok(())
    }

    async fn drop_user(&self, id: ClusterId, name: &RoleName) -> Result<(), Refusal> {
        let (_errand, engine) = self.open(id).await?;
        // First who is in, whose open transaction could hold the role; then what lets somebody in, and the rest.
        let cut = || {
            let is_theirs =
                |facts: &gateway::SessionFacts| facts.cluster == id && *facts.user == *name.as_str();
            self.presence.cut(|facts| is_theirs(facts).then_some(Cut::User));
        };
        cut();
        let barred = within(engine.bar_user(name)).await;
        cut();
        let dropped = match barred {
            Ok(()) => within(engine.drop_user(name)).await,
            refused => refused,
        };
        // Also of a user that could not be removed whole: its verifier is gone.
        let _ = self.keep_roles(id, &engine).await;
        dropped
    }

    async fn databases(&self, id: ClusterId) -> Result<Vec<Database>, Refusal> {
        let (_errand, engine) = self.open(id).await?;
        let databases = within(engine.databases()).await?;
        let shown =
            |database: engine::Database| Database { name: database.name, table_count: database.table_count };
        Ok(databases.into_iter().map(shown).collect())
    }

    async fn create_database(&self, id: ClusterId, name: &DatabaseName) -> Result<(), Refusal> {
        let (_errand, engine) = self.open(id).await?;
        within(engine.create_database(name)).await
    }

    async fn rename_database(
        &self,
        id: ClusterId,
        from: &DatabaseName,
        to: &DatabaseName,
    ) -> Result<(), Refusal> {
        let (_errand, engine) = self.open(id).await?;
        within(engine.rename_database(from, to)).await
    }

    async fn drop_database(&self, id: ClusterId, name: &DatabaseName) -> Result<(), Refusal> {
        let (_errand, engine) = self.open(id).await?;
        within(engine.drop_database(name)).await
    }

    async fn accept_restored(&self, id: ClusterId) -> Result<(), Refusal> {
        if self.host.is_running(id) {
            return Err(Refusal::wrong_state("the cluster runs, so its volume was accepted already"));
        }
        let store = self.store.clone();
        let written = blocking(move || store.note(id, |seen| seen.volume.checkpoint = None)).await;
        written.map_err(|cause| Refusal::wrong_state(cause.to_string()))?;
        tracing::warn!(target: "audit", cluster = %id, "its volume is accepted as it is, though a newer one was seen");
        Ok(())
    }

    async fn wake(&self, id: ClusterId) -> Result<(), Refusal> {
        self.awake(id).await.map(drop)
    }

    async fn sleep(&self, id: ClusterId, force: bool) -> Result<(), Refusal> {
        let unread = |entry: &Entry| match (&entry.seen.phase, &entry.seen.roles.failure) {
            (Phase::Running, Some(reason)) if !force => Some(Refusal::wrong_state(format!(
                "the cluster is not put to sleep, because nobody could sign in to it: the roles of its engine could not be kept ({reason}); \
                 to stop the engine all the same: chitin cluster sleep NAME --force"
            ))),
            _ => None,
        };
        // Tried again before anybody is sent away: what was seen may be over.
        if let Some(refusal) = self.store.snapshot().get(&id).and_then(|entry| unread(entry)) {
            let (_errand, engine) = self.open(id).await?;
            self.keep_roles(id, &engine).await.map_err(|_| refusal)?;
        }
        let (store, now) = (self.store.clone(), self.clock.now());
        blocking(move || {
            if force {
                store.wish_asleep_without_roles(id, now)
            } else {
                store.wish(id, Wish::Exists(Power::Asleep), now)
            }
        })
        .await?;
        self.presence.cut(|facts| (facts.cluster == id).then_some(Cut::Asleep));
        let asleep = async {
            let mut changes = self.store.changes();
            loop {
                changes.mark_unchanged();
                let snapshot = self.store.snapshot();
                let entry = snapshot.get(&id).ok_or_else(|| Refusal::no_cluster(id))?;
                match (entry.cluster.wish, &entry.seen.phase) {
                    (Wish::Deleted, _) => return Err(Refusal::no_cluster(id)),
                    (_, Phase::Asleep) => return Ok(()),
                    (_, Phase::Failed { reason }) => return Err(Refusal::wrong_state(reason.clone())),
                    (Wish::Exists(Power::Running), _) => {
                        return Err(Refusal::wrong_state(
                            "somebody signed in meanwhile and woke the cluster",
                        ));
                    }
                    (Wish::Exists(Power::Asleep), _) => {
                        if let Some(refusal) = unread(entry) {
                            return Err(refusal);
                        }
                    }
                }
                // A lost change costs a moment.
                let _ = timeout(LOOK_EVERY, changes.changed()).await;
            }
        };
        timeout(SLEEP_MAX, asleep).await.map_err(|_| too_slow())?
    }

    async fn facts(&self, id: ClusterId) -> Result<Facts, Refusal> {
        let host = self.host.clone();
        // The kernel's answer may take a moment: it is read from files and by ioctl.
        let volume = blocking(move || host.volume_state(id)).await;
        Ok(Facts {
            sessions: self.presence.sessions(id),
            sessions_max: self.host.connections_max(id),
            is_unlocked: volume.as_ref().and_then(is_unlocked),
            volume_evidence: volume.map(|volume| volume.evidence),
            storage: self.host.last_storage(id),
        })
    }

    fn throttle(&self) -> Vec<ThrottleLine> {
        let lines = self.throttle.list(std::time::Instant::now());
        let now = self.clock.now();
        lines
            .into_iter()
            .map(|line| ThrottleLine {
                cluster: Some(line.cluster),
                user: line.user,
                address: line.address,
                failures: line.failures,
                state: line.state.as_str().to_owned(),
                until: line.remaining.map(|left| now + left),
            })
            .collect()
    }

    fn clear_throttle(&self, which: &ClearThrottle) -> usize {
        let ClearThrottle { cluster, user, address } = which.clone();
        self.throttle.clear(&Filter { cluster, user, address })
    }

    async fn test_egress(&self, id: ClusterId, destination: &str) -> Result<EgressVerdict, Refusal> {
        let snapshot = self.store.snapshot();
        let entry = snapshot.get(&id).ok_or_else(|| Refusal::no_cluster(id))?;
        Ok(perimeter::verdict(self.outlets.gate(), &entry.cluster, destination).await)
    }

    async fn set_engine_egress(&self, id: ClusterId, engine: bool) -> Result<Vec<String>, Refusal> {
        self.switch_engine_egress(id, engine).await
    }

    fn wireguard_private_key(&self) -> String {
        network::wireguard_key::generate()
    }

    fn wireguard_public_key(&self, private_key: &str) -> Option<String> {
        network::wireguard_key::public(private_key)
    }

    async fn key_facts(&self, id: ClusterId) -> Result<KeyFacts, Refusal> {
        let wrapped = self.host.key_use(id).await.map_err(refusal)?;
        let host = self.host.clone();
        let volume = blocking(move || host.volume_state(id)).await;
        Ok(KeyFacts {
            wrapped_by: Some((&wrapped.spec).into()),
            key_id: wrapped.id,
            key_version: wrapped.version,
            algorithm: wrapped.algorithm,
            encryption: volume.as_ref().map(|volume| volume.encryption),
            is_unlocked: volume.as_ref().and_then(is_unlocked),
            volume_evidence: volume.map(|volume| volume.evidence),
            progress: self.host.copy_progress(id).map(|progress| CopyProgress {
                done_bytes: progress.done_bytes,
                total_bytes: progress.total_bytes,
            }),
        })
    }

    async fn try_key(&self, spec: &KeySpec, cluster: Option<ClusterId>) -> Result<(), Refusal> {
        let tried = timeout(ERRAND_MAX, self.ring.try_out(spec, cluster)).await.map_err(|_| too_slow())?;
        tried.map_err(|cause| Refusal::wrong_state(cause.to_string()))
    }

    async fn try_key_service(&self, service: &KeyService, keys: &[KeyInUse]) -> Result<(), Refusal> {
        self.trial.key_service(service, keys).await
    }

    async fn try_provider(&self, provider: IdentityProvider) -> Result<(), Refusal> {
        self.trial.provider(provider).await
    }

    fn root_key(&self) -> RootKey {
        let root = self.ring.root();
        let (protection, detail) = match root.protection() {
            keys::Protection::File => (RootKeyProtection::File, String::new()),
            keys::Protection::Passphrase(_) => (RootKeyProtection::Passphrase, String::new()),
            keys::Protection::Credential { .. } => (RootKeyProtection::Credential, String::new()),
            keys::Protection::Service { wrapped } => (RootKeyProtection::Service, wrapped.key.to_string()),
        };
        RootKey {
            id: root.id(),
            version: root.version(),
            protection,
            protection_detail: detail,
            since: None,
            earlier_versions: root.versions().into_iter().skip(1).collect(),
            is_memory_locked: matches!(memory::locked(), Capability::Present { .. }),
            are_core_dumps_off: getrlimit(Resource::Core).current.is_some_and(|limit| limit <= 1),
        }
    }

    async fn rotate_root_key(&self) -> Result<RootKey, Refusal> {
        let before = self.rotation.standing().current;
        self.rotation.rotate_root().await.map_err(|cause| match self.rotation.standing().current {
            now if now == before => Refusal::busy(format!("nothing was changed: {cause}")),
            now => Refusal::busy(format!(
                "the root key has version {now}, and what is sealed by the cloud is not under it yet, which goes on by itself: {cause}"
            )),
        })?;
        Ok(self.root_key())
    }

    fn machine(&self) -> Machine {
        let (posture, installed) = (self.host.posture(), self.host.installed());
        let default = installed.versions.iter().find(|one| Some(one.major) == installed.default_major);
        let postgres = |one: &engine::Version| api::Postgres {
            major: one.major,
            version: one.version.clone(),
            programs: one.programs.display().to_string(),
        };
        let wall = |name: &str, capability: &Capability| {
            let (is_present, explanation, next_step) = match capability {
                Capability::Present { how } => (true, how.clone(), None),
                Capability::Missing { why, next_step } => (false, why.clone(), Some(next_step.clone())),
            };
            api::Capability { name: name.to_owned(), is_present, explanation, next_step }
        };
        Machine {
            postgres_version: default.map_or_else(String::new, |one| one.version.clone()),
            postgres: installed.versions.iter().map(postgres).collect(),
            default_major: installed.default_major,
            unusable_postgres: installed.unusable.clone(),
            encryption: posture.encryption,
            no_encryption_reason: posture.no_encryption_reason.clone(),
            is_unencrypted_allowed: posture.is_unencrypted_allowed,
            capabilities: vec![
                wall(SANDBOX, &posture.sandbox),
                wall("own OS users", &posture.own_users),
                wall(COMPANION, &self.host.companion()),
                wall("resource limits", &posture.cgroups),
                wall("private networks", &self.private_networks),
                wall("memory locked", &memory::locked()),
                wall("swap", &memory::swap()),
                wall("memory shortage", &engine::shortage_protection()),
                wall("open files", &self.budget.standing()),
            ],
            disk: crate::storage::disk(&self.host),
        }
    }

    async fn prove(&self, id: ClusterId) -> Result<Vec<ProofRow>, Refusal> {
        let (_errand, engine) = self.open(id).await?;
        let mut rows = vec![self.volume_row(id), self.record_row(id), self.canary_row(id, &engine).await];
        rows.extend(self.sandbox_rows(id).await);
        rows.push(crate::storage::row(&self.host, &self.store, id));
        rows.push(passwords_row(&within(engine.roles()).await?));
        Ok(rows)
    }
}

impl std::fmt::Debug for Administrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Administrator")
    }
}

/// Whether the volume's key lets somebody at its files; none where there is no key of ours.
fn is_unlocked(volume: &VolumeState) -> Option<bool> {
    let has_key = !matches!(volume.encryption, Encryption::None | Encryption::Attested);
    has_key.then_some(volume.is_unlocked)
}

fn canary_outcome(report: &SearchReport, is_plain: bool) -> Outcome {
    match (report.hits, report.hits_in_plaintext) {
        // The control: a search that does not even find the row where it must be proves nothing.
        (_, 0) => Outcome::Failed,
        (0, _) => Outcome::Proven,
        _ if is_plain => Outcome::Missing,
        _ => Outcome::Failed,
    }
}

/// What the engine keeps of passwords, told without telling any of it.
fn passwords_row(roles: &[SqlRole]) -> ProofRow {
    let claim = "every password is kept as a SCRAM-SHA-256 verifier only";
    let kept: Vec<(&str, &str)> = roles
        .iter()
        .filter(|role| role.name != INTERNAL_ROLE)
        .filter_map(|role| Some((role.name.as_str(), role.verifier.as_deref()?)))
        .collect();
    let others: Vec<&str> =
        kept.iter().filter(|(_, text)| Verifier::parse(text).is_err()).map(|(name, _)| *name).collect();
    if others.is_empty() {
        let evidence = format!("pg_authid: {} passwords, all of them SCRAM-SHA-256", kept.len());
        row(PASSWORDS, claim, Outcome::Proven, &evidence)
    } else {
        failed(PASSWORDS, claim, &format!("pg_authid holds another kind for: {}", others.join(", ")))
    }
}

fn row(feature: &str, claim: &str, outcome: Outcome, evidence: &str) -> ProofRow {
    ProofRow { feature: feature.to_owned(), claim: claim.to_owned(), outcome, evidence: evidence.to_owned() }
}

fn failed(feature: &str, claim: &str, cause: &str) -> ProofRow {
    row(feature, claim, Outcome::Failed, cause)
}

fn too_slow() -> Refusal {
    Refusal::busy("it took too long; it may still be carried out, so look before you repeat it")
}

/// One errand on an engine, within its time and in the API's words.
async fn within<T>(work: impl Future<Output = Result<T, engine::Error>>) -> Result<T, Refusal> {
    match timeout(ERRAND_MAX, work).await {
        Ok(done) => done.map_err(refusal),
        Err(_) => Err(too_slow()),
    }
}

fn refusal(cause: engine::Error) -> Refusal {
    let text = cause.to_string();
    match cause {
        engine::Error::NotFound { .. } => Refusal::not_found(text),
        engine::Error::AlreadyExists { .. } => Refusal::exists(text),
        engine::Error::Refused(_)
        | engine::Error::NoRoom { .. }
        | engine::Error::TooManyEngines { .. }
        | engine::Error::VersionGone { .. }
        | engine::Error::ReserveReached { .. }
        | engine::Error::TooMuch { .. }
        | engine::Error::VolumeRefused { .. } => Refusal::wrong_state(text),
        engine::Error::Unready(_)
        | engine::Error::NoProcess { .. }
        | engine::Error::NotWatched { .. }
        | engine::Error::NoDescriptors(_)
        | engine::Error::Asleep
        | engine::Error::NoCompanion { .. }
        | engine::Error::DataKey(_) => Refusal::busy(text),
        engine::Error::NoPostgres { .. }
        | engine::Error::NoSandbox { .. }
        | engine::Error::NoEncryption { .. }
        | engine::Error::InUse { .. }
        | engine::Error::File { .. }
        | engine::Error::Program { .. }
        | engine::Error::Key(_) => Refusal::internal(text),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

mod egress;
#[cfg(test)]
mod tests;
