//! Identity providers of the cloud and of clusters, and the SQL users that their tokens made.

use std::sync::Arc;

use model::{ClusterId, IdentityProvider, PROVIDERS_MAX, ProviderName, Provisioned, SqlRoles};
use time::OffsetDateTime;

use crate::file::{Batch, Table};
use crate::{Error, Snapshot, Store};

/// Most SQL users of one cluster that tokens made.
pub const PROVISIONED_MAX: usize = 100_000;

/// Whether something was made since then. What was made far ahead of it was made by a clock that was wrong, and counts as long ago.
fn is_since(made_at: OffsetDateTime, then: OffsetDateTime) -> bool {
    made_at > then && made_at - then < WRONG_AFTER
}

impl Store {
    /// Keeps a provider; the one of the same name and scope is replaced.
    pub fn put_provider(&self, provider: IdentityProvider) -> Result<(), Error> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        if let Some(id) = provider.cluster
            && next.get(&id).is_none()
        {
            return Err(Error::NotFound(id));
        }
        let scope = next.own_providers(provider.cluster);
        if scope.len() >= PROVIDERS_MAX && scope.iter().all(|known| known.name != provider.name) {
            return Err(Error::TooMany { what: "identity providers", limit: PROVIDERS_MAX });
        }
        let mut batch = Batch::growing();
        let key = key(provider.cluster, &provider.name);
        self.file.put(&mut batch, Table::Providers, &key, &provider)?;
        self.file.commit(batch)?;
        next.providers.insert(key, Arc::new(provider));
        self.publish(next);
        Ok(())
    }

    /// Removes a provider; its tokens are refused from now on. False if there was none.
    pub fn remove_provider(&self, cluster: Option<ClusterId>, name: &ProviderName) -> Result<bool, Error> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        let key = key(cluster, name);
        if next.providers.remove(&key).is_none() {
            return Ok(false);
        }
        let mut batch = Batch::default();
        batch.remove(Table::Providers, &key);
        self.file.commit(batch)?;
        self.publish(next);
        Ok(true)
    }

    /// Remembers that a token makes this user. To be called when there is no such user: what was remembered of an earlier
    /// one is replaced.
    pub fn put_provisioned(&self, cluster: ClusterId, user: &str, made: Provisioned) -> Result<(), Error> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        if next.get(&cluster).is_none() {
            return Err(Error::NotFound(cluster));
        }
        let mut users = next.provisioned.get(&cluster).map(|users| (**users).clone()).unwrap_or_default();
        if users.len() >= PROVISIONED_MAX && !users.contains_key(user) {
            return Err(Error::TooMany { what: "users made by tokens", limit: PROVISIONED_MAX });
        }
        users.insert(user.to_owned(), made);
        self.keep_provisioned(&mut next, Batch::growing(), cluster, users)?;
        self.publish(next);
        Ok(())
    }

    /// Forgets that a token made this user before that moment, because the user is gone since. One that was made later is
    /// another.
    pub fn remove_provisioned(
        &self,
        cluster: ClusterId,
        user: &str,
        before: OffsetDateTime,
    ) -> Result<(), Error> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        let Some(mut users) = next.provisioned.get(&cluster).map(|users| (**users).clone()) else {
            return Ok(());
        };
        if users.get(user).is_none_or(|made| is_since(made.at, before)) {
            return Ok(());
        }
        users.remove(user);
        self.keep_provisioned(&mut next, Batch::default(), cluster, users)?;
        self.publish(next);
        Ok(())
    }

    /// Forgets the users that somebody dropped by SQL, so that a later user of the same name is nobody's. One that was
    /// made a moment ago may be younger than the copy of the roles, and stays.
    pub(crate) fn forget_provisioned_without_role(
        &self,
        next: &mut Snapshot,
        batch: &mut Batch,
        cluster: ClusterId,
        roles: &SqlRoles,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let Some(users) = next.provisioned.get(&cluster) else {
            return Ok(());
        };
        let mut kept = (**users).clone();
        kept.retain(|name, made| is_since(made.at, now - SETTLED_AFTER) || roles.get(name).is_some());
        if kept.len() == users.len() {
            return Ok(());
        }
        self.file.put(batch, Table::Provisioned, &cluster.to_string(), &kept)?;
        next.provisioned.insert(cluster, Arc::new(kept));
        Ok(())
    }

    fn keep_provisioned(
        &self,
        next: &mut Snapshot,
        mut batch: Batch,
        cluster: ClusterId,
        users: Users,
    ) -> Result<(), Error> {
        self.file.put(&mut batch, Table::Provisioned, &cluster.to_string(), &users)?;
        self.file.commit(batch)?;
        next.provisioned.insert(cluster, Arc::new(users));
        Ok(())
    }
}

/// Readings and deletions take less than this; a clock that is wrong by less does little harm.
const WRONG_AFTER: time::Duration = time::Duration::hours(1);
/// A copy of the roles is never older than this.
const SETTLED_AFTER: time::Duration = time::Duration::minutes(10);

/// The users of one cluster that tokens made, by name.
pub(crate) type Users = std::collections::BTreeMap<String, Provisioned>;

impl Snapshot {
    /// The providers whose tokens count in a cluster: its own first, then the cloud's. One of the cluster's own hides
    /// the cloud's of the same name.
    pub fn providers(&self, cluster: ClusterId) -> Vec<Arc<IdentityProvider>> {
        let mut all = self.own_providers(Some(cluster));
        for shared in self.own_providers(None) {
            if all.iter().all(|own| own.name != shared.name) {
                all.push(shared);
            }
        }
        all
    }

    /// The providers of exactly this cluster, or of the cloud, by name.
    pub fn own_providers(&self, cluster: Option<ClusterId>) -> Vec<Arc<IdentityProvider>> {
        let mut own: Vec<_> =
            self.providers.values().filter(|provider| provider.cluster == cluster).cloned().collect();
        own.sort_by(|one, other| one.name.cmp(&other.name));
        own
    }

    /// How a token made this user, if one did.
    pub fn provisioned(&self, cluster: ClusterId, user: &str) -> Option<&Provisioned> {
        self.provisioned.get(&cluster)?.get(user)
    }
}

pub(crate) fn key(cluster: Option<ClusterId>, name: &ProviderName) -> String {
    match cluster {
        Some(id) => format!("{id}/{name}"),
        None => format!("cloud/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing::{draft, open};

    fn provider(cluster: Option<ClusterId>, name: &str) -> IdentityProvider {
        IdentityProvider {
            name: name.parse().unwrap(),
            cluster,
            issuer: format!("https://{name}.example.org"),
            client_id: None,
            client_secret: Some("canary-secret".to_owned()),
            audiences: vec!["chitin".to_owned()],
            claim: "sub".to_owned(),
            jwks: None,
            jwks_uri: None,
            ca_pem: None,
            scopes: vec!["openid".to_owned()],
            clock_skew_seconds: 30,
            group_claim: None,
            group_roles: BTreeMap::new(),
            provisions: false,
            updated_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn cluster(store: &Store, name: &str) -> ClusterId {
        store.create(draft(name), OffsetDateTime::now_utc()).unwrap().id
    }

    fn names(providers: &[Arc<IdentityProvider>]) -> Vec<(String, bool)> {
        providers.iter().map(|one| (one.name.to_string(), one.cluster.is_some())).collect()
    }

    #[test]
    fn a_cluster_trusts_its_own_providers_and_the_cloud_s_and_no_other_s() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let (one, two) = (cluster(&store, "shop-one"), cluster(&store, "shop-two"));
        for (scope, name) in [(None, "okta"), (None, "corp"), (Some(one), "okta"), (Some(two), "other")] {
            store.put_provider(provider(scope, name)).unwrap();
        }
        drop(store);
        let store = open(folder.path());
        let found = names(&store.snapshot().providers(one));
        assert_eq!(found, [("okta".to_owned(), true), ("corp".to_owned(), false)]);
        assert!(store.remove_provider(Some(one), &"okta".parse().unwrap()).unwrap());
        assert!(!store.remove_provider(Some(one), &"okta".parse().unwrap()).unwrap());
        let found = names(&store.snapshot().providers(one));
        assert_eq!(found, [("corp".to_owned(), false), ("okta".to_owned(), false)]);
        let nobody = store.put_provider(provider(Some(ClusterId::random()), "okta"));
        assert!(matches!(nobody, Err(Error::NotFound(_))));
    }

    #[test]
    fn what_goes_with_a_cluster_is_forgotten_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let id = cluster(&store, "shop-one");
        store.put_provider(provider(Some(id), "okta")).unwrap();
        let made = Provisioned { source: "jwt_token:a".to_owned(), at: OffsetDateTime::UNIX_EPOCH };
        store.put_provisioned(id, "maria", made.clone()).unwrap();
        let early = made.at - time::Duration::seconds(1);
        store.remove_provisioned(id, "maria", early).unwrap();
        assert_eq!(
            store.snapshot().provisioned(id, "maria"),
            Some(&made),
            "made after the earlier one was gone"
        );
        store.remove_provisioned(id, "maria", made.at).unwrap();
        assert_eq!(store.snapshot().provisioned(id, "maria"), None);
        store.put_provisioned(id, "maria", made).unwrap();
        store.wish(id, model::Wish::Deleted, OffsetDateTime::now_utc()).unwrap();
        store.forget(id).unwrap();
        drop(store);
        let store = open(folder.path());
        assert!(store.snapshot().own_providers(Some(id)).is_empty());
        assert_eq!(store.snapshot().provisioned(id, "maria"), None);
    }

    #[test]
    fn a_user_dropped_by_sql_is_forgotten_and_a_fresh_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let id = cluster(&store, "shop-one");
        let now = OffsetDateTime::now_utc();
        let made = |at| Provisioned { source: "jwt_token:a".to_owned(), at };
        store.put_provisioned(id, "old", made(now - time::Duration::hours(1))).unwrap();
        store.put_provisioned(id, "fresh", made(now)).unwrap();
        let other = model::SqlRole {
            name: "other".to_owned(),
            can_login: true,
            verifier: None,
            valid_until: None,
            connection_limit: -1,
            member_of: Vec::new(),
        };
        store.set_roles(id, vec![other], store.begin_reading(), now).unwrap();
        drop(store);
        let snapshot = open(folder.path()).snapshot();
        assert!(snapshot.provisioned(id, "old").is_none());
        assert!(snapshot.provisioned(id, "fresh").is_some());
    }

    #[test]
    fn the_file_does_not_show_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).put_provider(provider(None, "okta")).unwrap();
        let bytes = std::fs::read(folder.path().join("state.redb")).unwrap();
        assert!(!bytes.windows(13).any(|window| window == b"canary-secret"));
    }
}
