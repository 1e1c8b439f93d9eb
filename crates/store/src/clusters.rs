//! Clusters: wished for, edited, observed, forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use model::{
    AllowlistEntry, Asked, Cluster, ClusterId, ClusterName, KeysSeen, Network, NetworkSeen, Observation,
    Plan, Power, Provider, RoutingId, SQL_MEMBERSHIPS_MAX, SQL_ROLES_MAX, SqlRole, SqlRoles, Wish,
};
use time::OffsetDateTime;

use crate::file::{Batch, Table};
use crate::{CLUSTERS_MAX, Entry, Error, Reading, Snapshot, Store};

/// Most clusters that are gone whose documents are kept.
const DELETED_MAX: usize = 10_000;

/// A document that grows by no more can be changed when room is short: numbers and instants have texts of several lengths.
const GROWTH_BYTES_MIN: usize = 64;
/// The copy of the roles of an ordinary cluster has less, and may grow also where room is short: without it nobody who is new signs
/// in, and the cluster is not put to sleep.
const ROLES_BYTES_SMALL: usize = 64 << 10;

/// A cluster as somebody asks for it.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its name.
    pub name: ClusterName,
    /// What is bought.
    pub plan: Plan,
    /// The cloud that the client named.
    pub provider: Provider,
    /// The regions that the client named.
    pub regions: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it starts protected against deletion.
    pub is_delete_protected: bool,
    /// Who may connect, by address.
    pub allowlist: Vec<AllowlistEntry>,
    /// Who can see its front door.
    pub network: Network,
    /// What may leave it.
    pub egress: model::Egress,
    /// What the client asked for that changes nothing here.
    pub asked: Asked,
}

impl Store {
    /// Writes the wish for a new, running cluster. Its routing id was never used before.
    pub fn create(&self, draft: Draft, now: OffsetDateTime) -> Result<Cluster, Error> {
        self.create_among(draft, now, |_, _| Ok(()))
    }

    /// As [`Self::create`], where the new cluster's network depends on those of all others: the closure completes it or
    /// refuses, and no other change comes between its look and the write.
    pub fn create_among<E: From<Error>>(
        &self,
        mut draft: Draft,
        now: OffsetDateTime,
        complete: impl FnOnce(&mut Network, &Snapshot) -> Result<(), E>,
    ) -> Result<Cluster, E> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        if next.by_name(&draft.name).is_some() {
            return Err(Error::NameTaken(draft.name).into());
        }
        let full = || Error::TooMany { what: "clusters", limit: CLUSTERS_MAX };
        if next.len() >= CLUSTERS_MAX {
            return Err(full().into());
        }
        let routing_id = RoutingId::try_from(next.next_routing_id).map_err(|_| full())?;
        complete(&mut draft.network, &next)?;
        let now = to_microseconds(now);
        let cluster = Cluster {
            id: ClusterId::random(),
            routing_id,
            name: draft.name,
            plan: draft.plan,
            provider: draft.provider,
            regions: draft.regions,
            labels: draft.labels,
            is_delete_protected: draft.is_delete_protected,
            allowlist: draft.allowlist,
            asked: draft.asked,
            storage_floor: None,
            connections_floor: None,
            sign_in: model::SignIn::default(),
            network: draft.network,
            egress: draft.egress,
            keys: model::KeyWish::default(),
            wish: Wish::Exists(Power::Running),
            revision: 1,
            created_at: now,
            updated_at: now,
            deleted_at: None,
        };
        let entry = Entry::new(cluster.clone(), Observation::nothing_yet());
        next.next_routing_id = routing_id.get() + 1;

        let key = cluster.id.to_string();
        let mut batch = Batch::growing();
        self.file.put(&mut batch, Table::Clusters, &key, &entry.cluster)?;
        self.file.put(&mut batch, Table::Observations, &key, &entry.seen)?;
        self.file.put(&mut batch, Table::Counters, "next_routing_id", &next.next_routing_id)?;
        self.file.commit(batch)?;
        next.insert(entry);
        self.publish(next);
        Ok(cluster)
    }

    /// Gives no new cluster this routing id or a lower one.
    pub fn skip_routing_ids(&self, highest: RoutingId) -> Result<(), Error> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        // What lies on the disk is not ours: a number that no cloud comes to must not use up all of them.
        let is_absurd = u64::from(highest.get()) > u64::from(next.next_routing_id) + CLUSTERS_MAX as u64;
        if next.next_routing_id > highest.get() || is_absurd {
            return Ok(());
        }
        next.next_routing_id = highest.get() + 1;
        let mut batch = Batch::default();
        self.file.put(&mut batch, Table::Counters, "next_routing_id", &next.next_routing_id)?;
        self.file.commit(batch)?;
        self.publish(next);
        Ok(())
    }

    /// Changes a cluster's document. What the closure refuses is not written. A deletion once wished for stays.
    pub fn edit<T, E: From<Error>>(
        &self,
        id: ClusterId,
        now: OffsetDateTime,
        change: impl FnOnce(&mut Cluster) -> Result<T, E>,
    ) -> Result<T, E> {
        self.edit_among(id, now, |cluster, _| change(cluster))
    }

    /// As [`Self::edit`], where the change depends on other clusters: the closure sees all of them, and no other change
    /// comes between its look and the write.
    pub fn edit_among<T, E: From<Error>>(
        &self,
        id: ClusterId,
        now: OffsetDateTime,
        change: impl FnOnce(&mut Cluster, &Snapshot) -> Result<T, E>,
    ) -> Result<T, E> {
        self.edit_entry(id, now, |entry, all| change(&mut entry.cluster, all))
    }

    /// The same of a cluster's document and of what was seen of it, in one step.
    fn edit_entry<T, E: From<Error>>(
        &self,
        id: ClusterId,
        now: OffsetDateTime,
        change: impl FnOnce(&mut Entry, &Snapshot) -> Result<T, E>,
    ) -> Result<T, E> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        let entry = next.get(&id).ok_or(Error::NotFound(id))?;
        let mut edited = Entry::clone(entry);
        let answer = change(&mut edited, &next)?;
        let is_seen_anew = edited.seen != entry.seen;
        if edited.cluster == entry.cluster && !is_seen_anew {
            return Ok(answer);
        }
        if entry.cluster.wish == Wish::Deleted {
            return Err(Error::NotFound(id).into());
        }
        // What names a cluster to the outside never changes under its clients.
        edited.cluster.id = entry.cluster.id;
        edited.cluster.routing_id = entry.cluster.routing_id;
        edited.cluster.name = entry.cluster.name.clone();
        edited.cluster.created_at = entry.cluster.created_at;
        edited.cluster.revision = entry.cluster.revision + 1;
        edited.cluster.updated_at = to_microseconds(now);
        if edited.cluster.wish == Wish::Deleted {
            edited.cluster.deleted_at = Some(edited.cluster.updated_at);
        }
        let has_grown = length(&edited.cluster) > length(&entry.cluster) + GROWTH_BYTES_MIN;
        let (mut batch, key) = (if has_grown { Batch::growing() } else { Batch::default() }, id.to_string());
        self.file.put(&mut batch, Table::Clusters, &key, &edited.cluster)?;
        if is_seen_anew {
            self.file.put(&mut batch, Table::Observations, &key, &edited.seen)?;
        }
        self.file.commit(batch)?;
        next.insert(edited);
        self.publish(next);
        Ok(answer)
    }

    /// Writes what should be true of a cluster.
    pub fn wish(&self, id: ClusterId, wish: Wish, now: OffsetDateTime) -> Result<(), Error> {
        self.edit(id, now, |cluster| {
            cluster.wish = wish;
            Ok(())
        })
    }

    /// Wishes that a cluster sleeps although the copy of its roles could not be kept, which is noted: both, or neither.
    pub fn wish_asleep_without_roles(&self, id: ClusterId, now: OffsetDateTime) -> Result<(), Error> {
        self.edit_entry(id, now, |entry, _| {
            entry.seen.roles.is_given_up = true;
            entry.cluster.wish = Wish::Exists(Power::Asleep);
            Ok(())
        })
    }

    /// Writes what was last seen true of a cluster's engine and volume. Its network is [`Self::observe_network`]'s, its
    /// keys are [`Self::observe_keys`]'s.
    pub fn observe(&self, id: ClusterId, seen: Observation) -> Result<(), Error> {
        self.look(id, |known| Observation {
            network: known.network.clone(),
            keys: known.keys.clone(),
            ..seen
        })
    }

    /// Changes what was last seen true of a cluster, in one step with nothing in between.
    pub fn note(&self, id: ClusterId, change: impl FnOnce(&mut Observation)) -> Result<(), Error> {
        self.look(id, |known| {
            let mut seen = known.clone();
            change(&mut seen);
            seen
        })
    }

    /// Writes what was last seen true of a cluster's keys, and nothing else of it.
    pub fn observe_keys(&self, id: ClusterId, change: impl FnOnce(&mut KeysSeen)) -> Result<(), Error> {
        self.look(id, |known| {
            let mut seen = known.clone();
            change(&mut seen.keys);
            seen
        })
    }

    /// Writes what was last seen true of a cluster's private network, and nothing else of it.
    pub fn observe_network(&self, id: ClusterId, network: NetworkSeen) -> Result<(), Error> {
        self.look(id, |known| Observation { network, ..known.clone() })
    }

    /// Several loops look at one cluster; each changes its own part of what is there now.
    fn look(&self, id: ClusterId, change: impl FnOnce(&Observation) -> Observation) -> Result<(), Error> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        let entry = next.get(&id).ok_or(Error::NotFound(id))?;
        let seen = change(&entry.seen);
        if entry.seen == seen {
            return Ok(());
        }
        let observed = Entry { seen, ..Entry::clone(entry) };
        let mut batch = Batch::default();
        self.file.put(&mut batch, Table::Observations, &id.to_string(), &observed.seen)?;
        self.file.commit(batch)?;
        next.insert(observed);
        self.publish(next);
        Ok(())
    }

    /// To be asked before an engine's roles are read for [`Self::set_roles`].
    pub fn begin_reading(&self) -> Reading {
        Reading(self.readings.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Keeps the engine's roles, sealed, so that sign-in works while the engine sleeps. What a later reading already
    /// replaced is left alone.
    pub fn set_roles(
        &self,
        id: ClusterId,
        roles: Vec<SqlRole>,
        reading: Reading,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let roles = SqlRoles::new(roles);
        let too_many = |what, limit| Err(Error::TooMany { what, limit });
        if roles.as_slice().len() > SQL_ROLES_MAX {
            return too_many("SQL roles of one cluster", SQL_ROLES_MAX);
        }
        if roles.memberships() > SQL_MEMBERSHIPS_MAX {
            return too_many("memberships of one cluster's SQL roles", SQL_MEMBERSHIPS_MAX);
        }
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        let entry = next.get(&id).ok_or(Error::NotFound(id))?.clone();
        if entry.reading > reading {
            return Ok(());
        }
        let mut known = Entry { reading, ..Entry::clone(&entry) };
        if *entry.roles != roles {
            // One cluster's tenants must not take the room that is kept for all.
            let bytes = length(&roles.as_slice());
            let grows = bytes > ROLES_BYTES_SMALL && bytes > length(&entry.roles.as_slice());
            let mut batch = if grows { Batch::growing() } else { Batch::default() };
            self.file.put(&mut batch, Table::Roles, &id.to_string(), &roles.as_slice())?;
            self.forget_provisioned_without_role(&mut next, &mut batch, id, &roles, now)?;
            self.file.commit(batch)?;
            known.roles = Arc::new(roles);
        }
        next.insert(known);
        self.publish(next);
        Ok(())
    }

    /// Forgets a cluster whose key and data are destroyed; its document stays among the deleted for a while.
    pub fn forget(&self, id: ClusterId) -> Result<(), Error> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        let Some(entry) = next.entries.remove(&id) else {
            return Ok(());
        };
        next.by_name.remove(&entry.cluster.name);
        next.by_routing_id.remove(&entry.cluster.routing_id);
        next.apart.remove(&id);
        next.reaching.remove(&id);
        next.deleted.insert(id, Arc::new(entry.cluster.clone()));
        let key = id.to_string();
        let mut batch = Batch::default();
        batch.remove(Table::Observations, &key);
        batch.remove(Table::Roles, &key);
        batch.remove(Table::Provisioned, &key);
        next.provisioned.remove(&id);
        for provider in next.own_providers(Some(id)) {
            let key = crate::providers::key(Some(id), &provider.name);
            batch.remove(Table::Providers, &key);
            next.providers.remove(&key);
        }
        if next.deleted.len() > DELETED_MAX {
            let oldest =
                next.deleted.values().min_by_key(|cluster| cluster.deleted_at).map(|cluster| cluster.id);
            if let Some(oldest) = oldest {
                next.deleted.remove(&oldest);
                batch.remove(Table::Clusters, &oldest.to_string());
            }
        }
        self.file.commit(batch)?;
        self.publish(next);
        Ok(())
    }
}

/// Bytes of a document as it is stored.
fn length(document: &impl serde::Serialize) -> usize {
    serde_json::to_vec(document).map_or(usize::MAX, |text| text.len())
}

/// What is stored and what is answered must be the same instant, to the digit (clients compare them).
fn to_microseconds(instant: OffsetDateTime) -> OffsetDateTime {
    instant.replace_nanosecond(instant.microsecond() * 1_000).unwrap_or(instant)
}

#[cfg(test)]
mod tests {
    use model::Phase;

    use super::*;
    use crate::testing::{draft, open, sealer};

    fn role(name: &str) -> SqlRole {
        SqlRole {
            name: name.to_owned(),
            can_login: true,
            verifier: Some("SCRAM-SHA-256$4096:c2FsdA==$canary-verifier".to_owned()),
            valid_until: None,
            connection_limit: -1,
            member_of: Vec::new(),
        }
    }

    #[test]
    fn everything_is_still_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let made = {
            let store = open(folder.path());
            let made = store.create(draft("shop-one"), now).unwrap();
            store.set_roles(made.id, vec![role("maria")], store.begin_reading(), now).unwrap();
            store
                .observe(made.id, Observation { phase: Phase::Asleep, ..Observation::nothing_yet() })
                .unwrap();
            store.wish(made.id, Wish::Exists(Power::Asleep), now).unwrap();
            made
        };
        let snapshot = open(folder.path()).snapshot();
        let entry = snapshot.by_handle(&made.handle()).unwrap();
        assert_eq!(entry.cluster.wish, Wish::Exists(Power::Asleep));
        assert_eq!(entry.cluster.revision, 2);
        assert_eq!(entry.seen.phase, Phase::Asleep);
        assert_eq!(entry.role("maria"), Some(&role("maria")));
    }

    #[test]
    fn an_older_reading_of_the_roles_never_replaces_a_later_one() {
        let folder = tempfile::tempdir().unwrap();
        let (store, now) = (open(folder.path()), OffsetDateTime::now_utc());
        let id = store.create(draft("shop-one"), now).unwrap().id;
        let (early, late) = (store.begin_reading(), store.begin_reading());
        store.set_roles(id, vec![role("new")], late, now).unwrap();
        store.set_roles(id, vec![role("old")], early, now).unwrap();
        let known = store.snapshot().get(&id).unwrap().clone();
        assert!(known.role("new").is_some() && known.role("old").is_none());
        // Also where the later one found nothing new.
        let (early, late) = (store.begin_reading(), store.begin_reading());
        store.set_roles(id, vec![role("new")], late, now).unwrap();
        store.set_roles(id, vec![role("old")], early, now).unwrap();
        assert!(store.snapshot().get(&id).unwrap().role("new").is_some());
    }

    #[test]
    fn one_cluster_keeps_so_many_roles_and_memberships() {
        let folder = tempfile::tempdir().unwrap();
        let (store, now) = (open(folder.path()), OffsetDateTime::now_utc());
        let id = store.create(draft("shop-one"), now).unwrap().id;
        store.set_roles(id, vec![role("maria")], store.begin_reading(), now).unwrap();
        let many = (0..=SQL_ROLES_MAX).map(|number| role(&format!("r{number}"))).collect();
        let refused = store.set_roles(id, many, store.begin_reading(), now);
        assert!(matches!(refused, Err(Error::TooMany { limit: SQL_ROLES_MAX, .. })), "{refused:?}");
        let member_of = (0..=SQL_MEMBERSHIPS_MAX).map(|number| format!("r{number}")).collect();
        let refused =
            store.set_roles(id, vec![SqlRole { member_of, ..role("m") }], store.begin_reading(), now);
        assert!(matches!(refused, Err(Error::TooMany { limit: SQL_MEMBERSHIPS_MAX, .. })), "{refused:?}");
        assert!(store.snapshot().get(&id).unwrap().role("maria").is_some(), "what was kept stays");
    }

    #[test]
    fn a_copy_of_an_earlier_version_counts_where_the_cluster_was_put_to_sleep() {
        let written = |phase: &str, is_initialized: bool| -> Observation {
            let text = format!(
                r#"{{"phase":{phase},"encryption":null,"engine_version":null,"is_initialized":{is_initialized}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let phase = |phase| serde_json::to_string(&phase).unwrap();
        assert!(written(&phase(Phase::Asleep), true).is_copy_whole());
        assert!(written(&phase(Phase::Creating), false).is_copy_whole(), "there is no role yet");
        for cut_off in
            [Phase::Running, Phase::Waking, Phase::Stopping, Phase::Broken { reason: String::new() }]
        {
            assert!(!written(&phase(cut_off.clone()), true).is_copy_whole(), "{cut_off:?}");
        }
    }

    #[test]
    fn a_cluster_expires_at_its_moment_and_never_while_it_is_protected() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let (now, minute) = (to_microseconds(OffsetDateTime::now_utc()), time::Duration::minutes(1));
        let asked = Asked { expires_at: Some(now + minute), ..Asked::default() };
        let id = store.create(Draft { asked, ..draft("thrown-away") }, now).unwrap().id;
        let kept = store.create(draft("kept-here"), now).unwrap();
        drop(store);
        let store = open(folder.path());
        let cluster = || store.snapshot().get(&id).unwrap().cluster.clone();
        assert!(!cluster().is_expired(now) && cluster().is_expired(now + minute));
        assert!(!kept.is_expired(now + 1_000_000 * minute));
        let edit = |change: fn(&mut Cluster)| {
            let edited = store.edit(id, now, |cluster| {
                change(cluster);
                Ok::<(), Error>(())
            });
            edited.unwrap();
        };
        edit(|cluster| cluster.is_delete_protected = true);
        assert!(!cluster().is_expired(now + minute));
        edit(|cluster| (cluster.is_delete_protected, cluster.wish) = (false, Wish::Deleted));
        assert!(!cluster().is_expired(now + minute), "it is on its way already");
    }

    #[test]
    fn a_name_is_taken_once_and_a_routing_id_never_returns() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let now = OffsetDateTime::now_utc();
        let first = store.create(draft("shop-one"), now).unwrap();
        assert!(matches!(store.create(draft("shop-one"), now), Err(Error::NameTaken(_))));
        store.wish(first.id, Wish::Deleted, now).unwrap();
        store.forget(first.id).unwrap();
        drop(store);
        let store = open(folder.path());
        let second = store.create(draft("shop-one"), now).unwrap();
        assert!(second.routing_id > first.routing_id);
        assert!(store.snapshot().by_handle(&first.handle()).is_none());
        assert_eq!(store.snapshot().deleted().count(), 1);
    }

    #[test]
    fn a_wrong_name_with_a_right_number_finds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let made = store.create(draft("shop-one"), OffsetDateTime::now_utc()).unwrap();
        let guess = format!("shop-two-{}", made.routing_id).parse().unwrap();
        assert!(store.snapshot().by_handle(&guess).is_none());
    }

    #[test]
    fn a_deletion_once_wished_for_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let now = OffsetDateTime::now_utc();
        let made = store.create(draft("shop-one"), now).unwrap();
        store.wish(made.id, Wish::Deleted, now).unwrap();
        let revived = store.wish(made.id, Wish::Exists(Power::Running), now);
        assert!(matches!(revived, Err(Error::NotFound(_))));
        assert_eq!(store.snapshot().get(&made.id).unwrap().cluster.wish, Wish::Deleted);
    }

    #[test]
    fn clusters_of_a_kind_are_found_as_long_as_they_are_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let set = |store: &Store, id, range: Option<&str>| {
            let range = range.map(|range| range.parse().unwrap());
            let changed = store.edit(id, now, |cluster| -> Result<(), Error> {
                cluster.network.range = range;
                cluster.egress.engine = range.is_some();
                Ok(())
            });
            changed.unwrap();
        };
        let apart = |store: &Store| {
            let snapshot = store.snapshot();
            let apart: Vec<_> = snapshot.apart().map(|entry| entry.cluster.id).collect();
            let reaching: Vec<_> = snapshot.reaching().map(|entry| entry.cluster.id).collect();
            assert_eq!(apart, reaching, "in this test a cluster is both or neither");
            apart
        };
        let store = open(folder.path());
        store.create(draft("shop-one"), now).unwrap();
        let second = store.create(draft("shop-two"), now).unwrap().id;
        assert!(apart(&store).is_empty());
        set(&store, second, Some("10.77.0.0/24"));
        assert_eq!(apart(&store), [second]);
        drop(store);
        let store = open(folder.path());
        assert_eq!(apart(&store), [second], "a restart finds them again");
        set(&store, second, None);
        assert!(apart(&store).is_empty());
        set(&store, second, Some("10.77.0.0/24"));
        store.wish(second, Wish::Deleted, now).unwrap();
        store.forget(second).unwrap();
        assert!(apart(&store).is_empty());
    }

    #[test]
    fn the_file_shows_neither_names_nor_verifiers() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let made = store.create(draft("canary-cluster"), OffsetDateTime::now_utc()).unwrap();
        let (reading, now) = (store.begin_reading(), OffsetDateTime::now_utc());
        store.set_roles(made.id, vec![role("canary-role")], reading, now).unwrap();
        drop(store);
        let raw = std::fs::read(folder.path().join("state.redb")).unwrap();
        for secret in ["canary-cluster", "canary-role", "canary-verifier"] {
            assert!(!raw.windows(secret.len()).any(|bytes| bytes == secret.as_bytes()), "{secret}");
        }
    }

    #[test]
    fn values_of_another_cloud_or_swapped_values_are_found() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        open(one.path()).create(draft("shop-one"), OffsetDateTime::now_utc()).unwrap();
        let foreign = Store::open(&one.path().join("state.redb"), sealer(two.path()));
        assert!(matches!(foreign, Err(Error::Tampered { .. })));
    }

    #[test]
    fn of_many_at_once_only_one_takes_what_may_be_taken_once() {
        const RACERS: usize = 8;
        let folder = tempfile::tempdir().unwrap();
        let (store, now) = (open(folder.path()), OffsetDateTime::now_utc());
        let late = store.create(draft("latecomer"), now).unwrap();
        let take = |network: &mut Network, all: &Snapshot| {
            let wanted = Some("10.77.0.0/24".parse().unwrap());
            if all.iter().any(|entry| entry.cluster.network.range == wanted) {
                return Err(Error::TooMany { what: "networks", limit: 1 });
            }
            network.range = wanted;
            Ok(())
        };
        let start = std::sync::Barrier::new(RACERS + 1);
        let taken = std::thread::scope(|scope| {
            let creators: Vec<_> = (0..RACERS)
                .map(|number| {
                    let (store, start) = (&store, &start);
                    scope.spawn(move || {
                        start.wait();
                        store.create_among(draft(&format!("racer-{number}")), now, take).is_ok()
                    })
                })
                .collect();
            start.wait();
            let edited =
                store.edit_among(late.id, now, |cluster, all| take(&mut cluster.network, all)).is_ok();
            creators.into_iter().map(|racer| racer.join().unwrap()).filter(|is_ok| *is_ok).count()
                + usize::from(edited)
        });
        assert_eq!(taken, 1);
        let snapshot = store.snapshot();
        assert_eq!(snapshot.iter().filter(|entry| entry.cluster.network.range.is_some()).count(), 1);
    }

    #[test]
    fn changes_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let mut changes = store.changes();
        let _ = changes.borrow_and_update();
        store.create(draft("shop-one"), OffsetDateTime::now_utc()).unwrap();
        assert!(changes.has_changed().unwrap());
    }
}
