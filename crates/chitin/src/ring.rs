//! The ring of key-encryption keys: for each cluster the key that its document names, at the service that keeps it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use keys::{Binding, DataKey, KeyEncryption, KeyFailure, KeyRing, RootKey, WrappedKey};
use model::{Clock, Cluster, ClusterId, Fetcher, KeyService, KeySpec};
use store::Store;

/// Keys that were opened and are kept, at most. An open key costs little; the sign-in at its service is kept with it.
const KEYS_OPEN_MAX: usize = 1_000;

/// The ring.
pub struct Ring {
    root: Arc<RootKey>,
    /// Set when the state is open, which is after engines of an earlier run were cleared away.
    outside: OnceLock<Outside>,
    open: Mutex<HashMap<KeySpec, Open>>,
}

struct Outside {
    store: Arc<Store>,
    fetcher: Arc<dyn Fetcher>,
    clock: Arc<dyn Clock>,
}

/// A key that was opened, and the service as it was then.
struct Open {
    service: Arc<KeyService>,
    key: Arc<dyn KeyEncryption>,
}

impl Ring {
    /// A ring that knows the root key alone, until [`Self::connect`].
    pub fn new(root: Arc<RootKey>) -> Arc<Self> {
        Arc::new(Self { root, outside: OnceLock::new(), open: Mutex::default() })
    }

    /// The cloud's root key.
    pub fn root(&self) -> &RootKey {
        &self.root
    }

    /// Lets the ring look at documents and ask key services. To be called once.
    pub fn connect(&self, store: Arc<Store>, fetcher: Arc<dyn Fetcher>, clock: Arc<dyn Clock>) {
        let _ = self.outside.set(Outside { store, fetcher, clock });
    }

    /// Wraps and unwraps a throw-away key, as a cluster would have it done.
    pub async fn try_out(&self, spec: &KeySpec, cluster: Option<ClusterId>) -> Result<(), KeyFailure> {
        wrap_and_unwrap(&*self.key(spec)?, spec, &cluster.map_or(Binding::Root, Binding::Volume)).await
    }

    /// Uses a cluster's key through a service that is not set yet: wraps and unwraps a throw-away key, and unwraps the
    /// cluster's own, without which a service that holds another key of the same name would pass. Nothing is kept.
    pub async fn try_through(
        &self,
        service: &KeyService,
        spec: &KeySpec,
        cluster: ClusterId,
        own: Option<&WrappedKey>,
    ) -> Result<(), KeyFailure> {
        let Outside { fetcher, clock, .. } = self.outside(spec)?;
        let key = keys::service::open(service, spec, fetcher.clone(), clock.clone())?;
        let place = Binding::Volume(cluster);
        wrap_and_unwrap(&*key, spec, &place).await?;
        match own {
            Some(own) => key.unwrap(own, &place).await.map(drop),
            None => Ok(()),
        }
    }

    fn outside(&self, spec: &KeySpec) -> Result<&Outside, KeyFailure> {
        self.outside.get().ok_or_else(|| KeyFailure::Unreachable {
            key: spec.to_string(),
            reason: "the cloud is still starting".to_owned(),
        })
    }

    /// The key at its service.
    fn key(&self, spec: &KeySpec) -> Result<Arc<dyn KeyEncryption>, KeyFailure> {
        if !spec.is_customers() {
            return Ok(self.root.clone());
        }
        let unusable = |reason: String| KeyFailure::Unusable { key: spec.to_string(), reason };
        let Outside { store, fetcher, clock } = self.outside(spec)?;
        let name = spec.service.as_ref().ok_or_else(|| unusable("no key service leads to it".to_owned()))?;
        let service = store.snapshot().key_service(name).cloned().ok_or_else(|| {
            unusable(format!("there is no key service {name}; set it with: chitin key service set {name}"))
        })?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = open.get(spec)
            && known.service == service
        {
            return Ok(known.key.clone());
        }
        let key = keys::service::open(&service, spec, fetcher.clone(), clock.clone())?;
        if open.len() >= KEYS_OPEN_MAX {
            open.clear();
        }
        open.insert(spec.clone(), Open { service, key: key.clone() });
        Ok(key)
    }

    /// Whether the cluster's document, or what was seen of it, names this key. A key file from elsewhere, or from
    /// before a change of keys, is refused, whoever can open it.
    fn belongs(&self, cluster: ClusterId, found: &KeySpec) -> Result<(), KeyFailure> {
        let Some(Outside { store, .. }) = self.outside.get() else {
            return Ok(());
        };
        let snapshot = store.snapshot();
        let Some(entry) = snapshot.get(&cluster) else {
            return Ok(());
        };
        let wanted = entry.cluster.keys.spec();
        let seen = &entry.seen.keys;
        let in_use = seen.wrapped_by.clone().unwrap_or_else(KeySpec::root);
        if *found == wanted || *found == in_use || seen.tried.contains(found) {
            return Ok(());
        }
        Err(KeyFailure::NotItsKey { found: found.to_string(), wanted: wanted.to_string() })
    }
}

/// Whether what the key wraps comes back.
async fn wrap_and_unwrap(key: &dyn KeyEncryption, spec: &KeySpec, place: &Binding) -> Result<(), KeyFailure> {
    let trial = DataKey::random();
    let wrapped = key.wrap(&trial, place).await?;
    let back = key.unwrap(&wrapped, place).await?;
    if back.expose() == trial.expose() {
        return Ok(());
    }
    Err(KeyFailure::Unusable {
        key: spec.to_string(),
        reason: "what it unwraps is not what it wrapped; ask whoever runs the service".to_owned(),
    })
}

#[async_trait]
impl KeyRing for Ring {
    async fn wrap(&self, cluster: &Cluster, key: &DataKey) -> Result<WrappedKey, KeyFailure> {
        self.key(&cluster.keys.spec())?.wrap(key, &Binding::Volume(cluster.id)).await
    }

    async fn unwrap(&self, cluster: ClusterId, wrapped: &WrappedKey) -> Result<DataKey, KeyFailure> {
        self.belongs(cluster, &wrapped.key)?;
        self.key(&wrapped.key)?.unwrap(wrapped, &Binding::Volume(cluster)).await
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl reconcile::RootRotation for Ring {
    fn rotating_to(&self) -> Option<String> {
        (self.root.versions().len() > 1).then(|| self.root.version().to_string())
    }
}

#[cfg(test)]
mod tests {
    use model::{KeptSecret, KeyCredentials, KeyType, SystemClock};
    use store::Draft;
    use time::OffsetDateTime;

    use super::*;
    use crate::testing::draft;

    struct Ground {
        _folder: tempfile::TempDir,
        ring: Arc<Ring>,
        store: Arc<Store>,
        cluster: Cluster,
    }

    /// Nothing goes out.
    struct Nowhere;

    #[async_trait]
    impl Fetcher for Nowhere {
        async fn fetch(&self, fetch: model::Fetch) -> Result<model::Fetched, model::FetchFailure> {
            Err(model::FetchFailure::Failed(format!("nobody is at {}", fetch.url)))
        }
    }

    fn ground() -> Ground {
        let folder = tempfile::tempdir().unwrap();
        let root = Arc::new(RootKey::open_or_create(&folder.path().join("kek")).unwrap());
        let store = Store::open(&folder.path().join("state"), root.sealer("state").unwrap()).unwrap();
        let draft: Draft = draft("lazy-roach");
        let cluster = store.create(draft, OffsetDateTime::now_utc()).unwrap();
        let ring = Ring::new(root);
        ring.connect(store.clone(), Arc::new(Nowhere), Arc::new(SystemClock));
        Ground { _folder: folder, ring, store, cluster }
    }

    fn shop() -> KeySpec {
        KeySpec {
            kind: KeyType::Vault,
            uri: "transit/keys/shop".to_owned(),
            auth_principal: String::new(),
            service: Some("vault".parse().unwrap()),
        }
    }

    #[tokio::test]
    async fn a_wrapped_key_from_before_a_change_of_keys_is_refused() {
        let Ground { ring, store, cluster, _folder } = ground();
        let (id, key) = (cluster.id, DataKey::random());
        let old = ring.wrap(&cluster, &key).await.unwrap();
        assert_eq!(ring.unwrap(id, &old).await.unwrap().expose(), key.expose());

        let wish = |cmek: KeySpec| {
            let edited: Result<(), store::Error> = store.edit(id, OffsetDateTime::now_utc(), |cluster| {
                cluster.keys.cmek = Some(cmek);
                Ok(())
            });
            edited.unwrap();
        };
        wish(shop());
        // Wished for, and not yet true: the old key is still the one in use.
        assert!(ring.unwrap(id, &old).await.is_ok());
        store.observe_keys(id, |seen| seen.wrapped_by = Some(shop())).unwrap();
        let refused = ring.unwrap(id, &old).await.unwrap_err();
        assert!(matches!(refused, KeyFailure::NotItsKey { .. }), "{refused}");
        // A crash in the middle of going back leaves either of both.
        wish(KeySpec::root());
        assert!(ring.unwrap(id, &old).await.is_ok());
        wish(shop());
        store.observe_keys(id, |seen| seen.tried = vec![KeySpec::root()]).unwrap();
        assert!(ring.unwrap(id, &old).await.is_ok());
    }

    #[tokio::test]
    async fn a_key_at_a_service_that_nobody_set_is_refused_with_the_next_step() {
        let Ground { ring, store, cluster, _folder } = ground();
        let refused = ring.try_out(&shop(), Some(cluster.id)).await.unwrap_err().to_string();
        assert!(refused.contains("chitin key service set vault"), "{refused}");
        let service = |token: &str| KeyService {
            name: "vault".parse().unwrap(),
            kind: KeyType::Vault,
            address: "https://vault.example:8200".to_owned(),
            ca_pem: None,
            namespace: None,
            credentials: KeyCredentials::VaultToken(KeptSecret::new(token.to_owned())),
            updated_at: OffsetDateTime::UNIX_EPOCH,
        };
        store.put_key_service(service("canary-one")).unwrap();
        let silent = ring.try_out(&shop(), Some(cluster.id)).await.unwrap_err();
        assert!(matches!(silent, KeyFailure::Unreachable { .. }), "{silent}");
        assert!(!silent.to_string().contains("canary"), "{silent}");
        // A service that was set anew is opened anew.
        let first = ring.key(&shop()).unwrap();
        assert!(Arc::ptr_eq(&first, &ring.key(&shop()).unwrap()));
        store.put_key_service(service("canary-two")).unwrap();
        assert!(!Arc::ptr_eq(&first, &ring.key(&shop()).unwrap()));
    }
}
