//! Answers the gateway: which clusters exist, whom they let in by address, and what a user can sign in with.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use engine::{Administration, Host, RoleNow, VERIFIERS_SAMPLED};
use futures::FutureExt;
use futures::future::BoxFuture;
use gateway::directory::{Account, Found, Person};
use identity::hba::Rules;
use identity::scram::{Forms, Verifier};
use keys::Fingerprints;
use model::{
    Clock, ClusterHandle, ClusterId, EndpointId, Origin, RoleName, SqlRoles, Surface, Way, Wish,
    connections_per_user_max,
};
use store::{Entry, Store};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use crate::admission::{Admissions, is_visible};
use crate::knocks::Knocks;
use crate::lines::{Lines, Unanswered};
use crate::policy::Policies;

/// For an engine to start or to stop while somebody waits to be let in. Proving who one is must still fit after it.
const DECIDED_MAX: Duration = Duration::from_secs(6);
/// Should a change be missed, it is looked again after this.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The directory of clusters and their users.
pub struct Directory {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    policies: Arc<Policies>,
    stand_ins: Fingerprints,
    admissions: Admissions,
    knocks: Knocks,
    lines: Arc<Lines>,
    copied_forms: Mutex<CopiedForms>,
}

/// The forms of the verifiers in the copies of roles that were asked for, as long as those are current.
type CopiedForms = HashMap<ClusterId, (Arc<SqlRoles>, Arc<Forms>)>;

impl Directory {
    /// Puts the directory together. The fingerprints make stand-ins for users who do not exist.
    pub fn new(
        store: Arc<Store>,
        host: Arc<Host>,
        clock: Arc<dyn Clock>,
        policies: Arc<Policies>,
        stand_ins: Fingerprints,
        knocks: Knocks,
    ) -> Arc<Self> {
        let (admissions, lines) = (Admissions::default(), Lines::new(host));
        let copied_forms = Mutex::default();
        Arc::new(Self { store, clock, policies, stand_ins, admissions, knocks, lines, copied_forms })
    }

    /// The cluster of this name, if there is one that can be seen on this way.
    pub fn visible(&self, handle: &ClusterHandle, way: &Way) -> Option<Arc<Entry>> {
        let snapshot = self.store.snapshot();
        let entry = snapshot.by_handle(handle)?;
        (entry.cluster.wish != Wish::Deleted && is_visible(&entry.cluster, way)).then(|| entry.clone())
    }

    /// Whether the cluster lets somebody in to this surface from there.
    pub fn admits_to(&self, cluster: ClusterId, origin: &Origin, surface: Surface) -> bool {
        let snapshot = self.store.snapshot();
        let now = self.clock.now();
        snapshot
            .get(&cluster)
            .is_some_and(|entry| self.admissions.admit(&entry.cluster, origin, surface, now))
    }

    /// Whether any cluster lets anybody in to this surface from there.
    pub fn admits_anywhere(&self, origin: &Origin, surface: Surface) -> bool {
        self.admissions.anywhere(&self.store.snapshot(), origin, surface, self.clock.now())
    }

    /// When, after this moment, the next line of any allowlist ends by itself.
    pub fn next_expiry(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let snapshot = self.store.snapshot();
        snapshot.iter().filter_map(|entry| self.admissions.next_expiry(&entry.cluster, now)).min()
    }

    /// Closes the lines to engines that no longer run and forgets clusters that are gone.
    pub fn tidy(&self) {
        self.lines.tidy();
        let snapshot = self.store.snapshot();
        self.admissions.retain(|id| snapshot.get(id).is_some());
        self.copied_forms().retain(|id, _| snapshot.get(id).is_some());
    }

    /// Asks what decides at this moment: the copy of the roles while it is whole, else the engine. `None` where neither can
    /// say. A moment in which an engine starts or stops is waited out.
    async fn decided<'a, T>(
        &'a self,
        cluster: ClusterId,
        by_copy: impl Fn(&Entry) -> T + Send,
        by_engine: impl Fn() -> BoxFuture<'a, Result<T, Unanswered>> + Send,
    ) -> Option<T> {
        let until = Instant::now() + DECIDED_MAX;
        let mut changes = self.store.changes();
        loop {
            changes.mark_unchanged();
            // What is whole stays so until the engine is known to run, and nobody is let into it before.
            let entry = self.store.snapshot().get(&cluster).cloned()?;
            if entry.seen.is_copy_whole() {
                return Some(by_copy(&entry));
            }
            match by_engine().await {
                Ok(answer) => return Some(answer),
                Err(Unanswered::TooSlow) => break,
                Err(Unanswered::Unreachable) => {}
            }
            let look_again = until.min(Instant::now() + LOOK_EVERY);
            if Instant::now() >= until {
                break;
            }
            let _ = timeout_at(look_again, changes.changed()).await;
        }
        tracing::warn!(
            %cluster,
            "nobody signs in now: the engine does not tell its roles, and the copy of them is from before it last ran"
        );
        None
    }

    /// What stand-ins of the cluster look like: its users' verifiers, as the engine has them where it runs, else as in the
    /// copy.
    fn forms(&self, cluster: ClusterId) -> Arc<Forms> {
        if let Some(forms) = self.lines.forms(cluster) {
            return forms;
        }
        let Some(roles) = self.store.snapshot().get(&cluster).map(|entry| entry.roles.clone()) else {
            return Arc::default();
        };
        if let Some((of, forms)) = self.copied_forms().get(&cluster)
            && Arc::ptr_eq(of, &roles)
        {
            return forms.clone();
        }
        let users = roles.as_slice().iter().filter(|role| role.can_login).take(VERIFIERS_SAMPLED);
        let forms = Arc::new(Forms::of(users.filter_map(|role| role.verifier.as_deref())));
        self.copied_forms().insert(cluster, (roles, forms.clone()));
        forms
    }

    fn copied_forms(&self) -> MutexGuard<'_, CopiedForms> {
        // Single inserts and removals.
        self.copied_forms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl gateway::directory::Directory for Directory {
    fn find(&self, handle: &ClusterHandle, way: &Way) -> Option<Found> {
        self.visible(handle, way).map(|entry| {
            // A running engine has what it was started for. Not asked of it, which would take longer than for one that sleeps.
            let running = entry.seen.connections_running;
            let connections_max = running.unwrap_or_else(|| entry.cluster.connections_max());
            let connections_per_user_max = connections_per_user_max(connections_max);
            Found { id: entry.cluster.id, connections_max, connections_per_user_max }
        })
    }

    fn admits(&self, cluster: ClusterId, origin: &Origin) -> bool {
        self.admits_to(cluster, origin, Surface::Sql)
    }

    fn takes_plaintext_cancels(&self, cluster: ClusterId) -> bool {
        let snapshot = self.store.snapshot();
        snapshot.get(&cluster).is_some_and(|entry| !entry.cluster.network.refuses_plaintext_cancels)
    }

    fn might_admit(&self, origin: &Origin) -> bool {
        self.admits_anywhere(origin, Surface::Sql)
    }

    fn knocked(&self, cluster: ClusterId, endpoint: &EndpointId) {
        self.knocks.heard(cluster, endpoint);
    }

    fn rules(&self, cluster: ClusterId) -> Arc<Rules> {
        self.policies.of(cluster).rules.clone()
    }

    async fn account(&self, cluster: ClusterId, user: &RoleName, named: &[String]) -> Account {
        let by_copy = |entry: &Entry| {
            let role = entry.role(user.as_str())?.clone();
            Some(RoleNow { role, inherited: entry.roles.inherited_of(user.as_str(), named) })
        };
        if self.store.snapshot().get(&cluster).is_some_and(|entry| entry.seen.is_copy_whole()) {
            self.lines.nobody(user, named).await;
        }
        let by_engine = || self.lines.role(cluster, user, named).boxed();
        let Some(found) = self.decided(cluster, by_copy, by_engine).await else {
            return Account::Unknown;
        };
        let Some(found) = found else {
            return Account::Missing;
        };
        let Some(mut person) = person(found, self.clock.now()) else {
            return Account::Barred;
        };
        // Whoever a token made signs in by tokens: a password that somebody gave it later does not count.
        if self.store.snapshot().provisioned(cluster, user.as_str()).is_some() {
            person.verifier = None;
        }
        Account::Open(person)
    }

    async fn nobody(&self, user: &RoleName, named: &[String]) {
        self.lines.nobody(user, named).await;
    }

    async fn with_inherited(&self, cluster: ClusterId, roles: &[RoleName]) -> Option<Vec<String>> {
        let by_copy = |entry: &Entry| entry.roles.inherited(roles.iter().map(RoleName::as_str));
        let question = |engine: Arc<Administration>| {
            let roles = roles.to_vec();
            async move { engine.inherited(&roles).await }.boxed()
        };
        let by_engine = || self.lines.ask(cluster, &question).boxed();
        let inherited = self.decided(cluster, by_copy, by_engine).await?;
        let mut all: BTreeSet<String> = roles.iter().map(|role| role.as_str().to_owned()).collect();
        all.extend(inherited);
        Some(all.into_iter().collect())
    }

    fn stand_in(&self, handle: &ClusterHandle, cluster: Option<ClusterId>, user: &str) -> Verifier {
        let seed = self.stand_ins.of(&[handle.to_string().as_bytes(), user.as_bytes()]);
        let form = cluster.map(|cluster| self.forms(cluster).choose(&seed)).unwrap_or_default();
        Verifier::stand_in(&seed, form)
    }
}

/// Who a role is at this moment. `VALID UNTIL` ends the password alone (PostgreSQL's manual, CREATE ROLE).
fn person(found: RoleNow, now: OffsetDateTime) -> Option<Person> {
    let RoleNow { role, inherited } = found;
    if !role.can_login || role.connection_limit == 0 {
        return None;
    }
    let is_expired = role.valid_until.is_some_and(|until| until <= now);
    let verifier = role.verifier.filter(|_| !is_expired).and_then(|text| Verifier::parse(&text).ok());
    // Below zero means no limit of its own.
    let connections_max = u32::try_from(role.connection_limit).ok();
    Some(Person { verifier, connections_max, member_of: inherited })
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Directory")
    }
}

#[cfg(test)]
mod tests {
    use model::SqlRole;

    use super::*;

    fn person(role: SqlRole, now: OffsetDateTime) -> Option<Person> {
        super::person(RoleNow { role, inherited: Vec::new() }, now)
    }

    fn role() -> SqlRole {
        SqlRole {
            name: "maria".to_owned(),
            can_login: true,
            verifier: Some(
                "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
                    .to_owned(),
            ),
            valid_until: None,
            connection_limit: -1,
            member_of: Vec::new(),
        }
    }

    #[test]
    fn only_a_role_that_may_sign_in_now_is_somebody() {
        let now = OffsetDateTime::now_utc();
        let found = person(role(), now).unwrap();
        assert!(found.verifier.is_some() && found.connections_max.is_none());
        assert!(person(SqlRole { can_login: false, ..role() }, now).is_none());
        assert!(person(SqlRole { connection_limit: 0, ..role() }, now).is_none());
        let limited = person(SqlRole { connection_limit: 3, ..role() }, now).unwrap();
        assert_eq!(limited.connections_max, Some(3));
    }

    #[test]
    fn a_password_counts_until_it_ends_and_only_in_the_right_form() {
        let now = OffsetDateTime::now_utc();
        let has_password = |role| person(role, now).unwrap().verifier.is_some();
        let later = Some(now + time::Duration::seconds(1));
        assert!(has_password(SqlRole { valid_until: later, ..role() }));
        assert!(!has_password(SqlRole { valid_until: Some(now), ..role() }));
        assert!(!has_password(SqlRole { verifier: None, ..role() }));
        assert!(!has_password(SqlRole { verifier: Some("md5abc".to_owned()), ..role() }));
    }
}
