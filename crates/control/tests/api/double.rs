//! Engines in memory: what the verbs ask is kept and can be looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use api::{
    Capability, Database, Disk, EgressVerdict, Facts, KeyFacts, Machine, Outcome, ProofRow, RootKey,
    RootKeyProtection, SqlUser, ThrottleLine,
};
use async_trait::async_trait;
use control::{
    Administration, Arrival, Callback, ClearThrottle, Departure, DeskRefused, KeyInUse, Login, Refusal,
    SignInDesk, Waiting, WebSession,
};
use keys::SecretText;
use model::{ClusterId, DatabaseName, EgressPolicy, IdentityProvider, KeyService, KeySpec, Origin, RoleName};

#[derive(Default)]
pub struct Engines {
    pub users: Mutex<BTreeMap<String, String>>,
    /// Whether no user can be dropped.
    pub keeps_users: AtomicBool,
    /// Users whose deletion did not come to its end.
    pub half_removed: Mutex<BTreeSet<String>>,
    pub databases: Mutex<BTreeSet<String>>,
    pub asleep: Mutex<BTreeSet<ClusterId>>,
    pub throttle: Mutex<Vec<ThrottleLine>>,
    pub cleared: Mutex<Vec<ClearThrottle>>,
    pub capabilities: Mutex<Vec<Capability>>,
    pub disk: Mutex<Option<Disk>>,
    /// What is installed, if it is to be something else than 15.18.
    pub postgres: Mutex<Option<Vec<api::Postgres>>>,
    tunnels: AtomicUsize,
    pub engine_egress: Mutex<Vec<(ClusterId, bool)>>,
    /// Which keys were tried, and for whom.
    pub tried_keys: Mutex<Vec<(KeySpec, Option<ClusterId>)>>,
    /// Why keys that are tried do not work; `None` where they do.
    pub key_refusal: Mutex<Option<Refusal>>,
    /// Which key services were tried, on which keys.
    pub tried_services: Mutex<Vec<(KeyService, Vec<KeyInUse>)>>,
    /// Which identity providers were tried.
    pub tried_providers: Mutex<Vec<IdentityProvider>>,
    /// Why they do not work; `None` where they do.
    pub provider_refusal: Mutex<Option<Refusal>>,
    pub key_facts: Mutex<KeyFacts>,
    root_rotations: AtomicUsize,
}

/// An installation.
pub fn installed(version: &str) -> api::Postgres {
    let major = version.split('.').next().unwrap().parse().unwrap();
    api::Postgres { major, version: version.to_owned(), programs: format!("/opt/{major}/bin") }
}

/// What stands in every private key of these engines.
pub const KEY_CANARY: &str = "canary";

#[async_trait]
impl Administration for Engines {
    async fn users(&self, _: ClusterId) -> Result<Vec<SqlUser>, Refusal> {
        let half_removed = self.half_removed.lock().unwrap().clone();
        let shown = |name: &String| SqlUser {
            is_deletion_unfinished: half_removed.contains(name),
            ..SqlUser::new(name.clone())
        };
        Ok(self.users.lock().unwrap().keys().map(shown).collect())
    }

    async fn create_user(&self, _: ClusterId, name: &RoleName, verifier: &str) -> Result<(), Refusal> {
        let mut users = self.users.lock().unwrap();
        if users.contains_key(name.as_str()) {
            return Err(Refusal::exists(format!("user '{name}' already exists")));
        }
        users.insert(name.to_string(), verifier.to_owned());
        Ok(())
    }

    async fn set_verifier(&self, _: ClusterId, name: &RoleName, verifier: &str) -> Result<(), Refusal> {
        let mut users = self.users.lock().unwrap();
        let known = users.get_mut(name.as_str()).ok_or_else(|| Refusal::not_found("no such user"))?;
        verifier.clone_into(known);
        Ok(())
    }

    async fn drop_user(&self, _: ClusterId, name: &RoleName) -> Result<(), Refusal> {
        if self.keeps_users.load(Ordering::Relaxed) {
            return Err(Refusal::busy("the engine does not answer"));
        }
        let removed = self.users.lock().unwrap().remove(name.as_str());
        removed.map(drop).ok_or_else(|| Refusal::not_found("no such user"))
    }

    async fn databases(&self, _: ClusterId) -> Result<Vec<Database>, Refusal> {
        let names = self.databases.lock().unwrap().clone();
        Ok(names.into_iter().map(|name| Database { name, table_count: None }).collect())
    }

    async fn create_database(&self, _: ClusterId, name: &DatabaseName) -> Result<(), Refusal> {
        let is_new = self.databases.lock().unwrap().insert(name.to_string());
        is_new.then_some(()).ok_or_else(|| Refusal::exists("there is one already"))
    }

    async fn rename_database(
        &self,
        _: ClusterId,
        name: &DatabaseName,
        to: &DatabaseName,
    ) -> Result<(), Refusal> {
        let mut databases = self.databases.lock().unwrap();
        if !databases.remove(name.as_str()) {
            return Err(Refusal::not_found("no such database"));
        }
        databases.insert(to.to_string());
        Ok(())
    }

    async fn drop_database(&self, _: ClusterId, name: &DatabaseName) -> Result<(), Refusal> {
        let removed = self.databases.lock().unwrap().remove(name.as_str());
        removed.then_some(()).ok_or_else(|| Refusal::not_found("no such database"))
    }

    async fn accept_restored(&self, _: ClusterId) -> Result<(), Refusal> {
        Ok(())
    }

    async fn wake(&self, id: ClusterId) -> Result<(), Refusal> {
        self.asleep.lock().unwrap().remove(&id);
        Ok(())
    }

    async fn sleep(&self, id: ClusterId, _: bool) -> Result<(), Refusal> {
        self.asleep.lock().unwrap().insert(id);
        Ok(())
    }

    async fn facts(&self, id: ClusterId) -> Result<Facts, Refusal> {
        let is_asleep = self.asleep.lock().unwrap().contains(&id);
        Ok(Facts { sessions: 3, is_unlocked: Some(!is_asleep), ..Facts::default() })
    }

    async fn prove(&self, _: ClusterId) -> Result<Vec<ProofRow>, Refusal> {
        Ok(vec![ProofRow {
            feature: "sandbox".to_owned(),
            claim: "no network".to_owned(),
            outcome: Outcome::Proven,
            evidence: "one interface".to_owned(),
        }])
    }

    async fn test_egress(&self, _: ClusterId, destination: &str) -> Result<EgressVerdict, Refusal> {
        Ok(EgressVerdict {
            destination: destination.to_owned(),
            policy: EgressPolicy::AllowAll,
            is_permitted: true,
            reason: None,
            addresses: Vec::new(),
        })
    }

    async fn set_engine_egress(&self, id: ClusterId, engine: bool) -> Result<Vec<String>, Refusal> {
        self.engine_egress.lock().unwrap().push((id, engine));
        Ok(vec!["a note".to_owned()])
    }

    async fn key_facts(&self, _: ClusterId) -> Result<KeyFacts, Refusal> {
        Ok(self.key_facts.lock().unwrap().clone())
    }

    async fn try_key(&self, spec: &KeySpec, cluster: Option<ClusterId>) -> Result<(), Refusal> {
        self.tried_keys.lock().unwrap().push((spec.clone(), cluster));
        self.key_refusal.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    async fn try_key_service(&self, service: &KeyService, keys: &[KeyInUse]) -> Result<(), Refusal> {
        self.tried_services.lock().unwrap().push((service.clone(), keys.to_vec()));
        self.key_refusal.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    async fn try_provider(&self, provider: IdentityProvider) -> Result<(), Refusal> {
        self.tried_providers.lock().unwrap().push(provider);
        self.provider_refusal.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn root_key(&self) -> RootKey {
        let rotations = self.root_rotations.load(Ordering::Relaxed);
        RootKey {
            id: "0123456789abcdef".to_owned(),
            version: u32::try_from(rotations).unwrap() + 1,
            protection: RootKeyProtection::File,
            protection_detail: String::new(),
            since: None,
            earlier_versions: Vec::new(),
            is_memory_locked: false,
            are_core_dumps_off: true,
        }
    }

    async fn rotate_root_key(&self) -> Result<RootKey, Refusal> {
        self.root_rotations.fetch_add(1, Ordering::Relaxed);
        Ok(self.root_key())
    }

    fn machine(&self) -> Machine {
        let capabilities = self.capabilities.lock().unwrap().clone();
        let disk = self.disk.lock().unwrap().clone();
        let postgres = self.postgres.lock().unwrap().clone();
        let postgres = postgres.unwrap_or_else(|| vec![installed("15.18")]);
        Machine {
            postgres_version: postgres.last().map_or_else(String::new, |one| one.version.clone()),
            default_major: postgres.last().map(|one| one.major),
            postgres,
            capabilities,
            disk,
            ..Machine::default()
        }
    }

    fn wireguard_private_key(&self) -> String {
        let number = self.tunnels.fetch_add(1, Ordering::Relaxed);
        format!("{KEY_CANARY}{number:036}A=")
    }

    fn wireguard_public_key(&self, private_key: &str) -> Option<String> {
        private_key.strip_prefix(KEY_CANARY).map(|rest| format!("public{rest}"))
    }

    fn throttle(&self) -> Vec<ThrottleLine> {
        self.throttle.lock().unwrap().clone()
    }

    fn clear_throttle(&self, which: &ClearThrottle) -> usize {
        self.cleared.lock().unwrap().push(which.clone());
        std::mem::take(&mut *self.throttle.lock().unwrap()).len()
    }
}

/// A desk at which nobody sits.
pub struct Nobody;

#[async_trait]
impl SignInDesk for Nobody {
    async fn begin_login(&self, _: Login) -> Result<Departure, DeskRefused> {
        Err(DeskRefused::NotBegun)
    }

    async fn finish(&self, _: Callback) -> Result<Arrival, DeskRefused> {
        Err(DeskRefused::NotCompleted)
    }

    async fn ticket(&self, _: &str, _: Option<&Origin>) -> Result<Waiting, DeskRefused> {
        Err(DeskRefused::Gone)
    }

    async fn begin_ticket(&self, _: &str, _: Option<&Origin>) -> Result<Departure, DeskRefused> {
        Err(DeskRefused::Gone)
    }

    async fn session(&self, _: &SecretText, _: Option<&Origin>) -> Option<WebSession> {
        None
    }

    async fn log_out(&self, _: &SecretText) -> bool {
        false
    }
}
