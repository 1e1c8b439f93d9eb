//! Key services: where keys of customers are kept, and how we sign in there.

use std::sync::Arc;

use model::{KEY_SERVICES_MAX, KeyService, KeyServiceName};

use crate::file::{Batch, Table};
use crate::{Error, Snapshot, Store};

impl Store {
    /// Keeps a key service; the one of the same name is replaced.
    pub fn put_key_service(&self, service: KeyService) -> Result<(), Error> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        if next.key_services.len() >= KEY_SERVICES_MAX && !next.key_services.contains_key(&service.name) {
            return Err(Error::TooMany { what: "key services", limit: KEY_SERVICES_MAX });
        }
        let mut batch = Batch::growing();
        self.file.put(&mut batch, Table::KeyServices, service.name.as_str(), &service)?;
        self.file.commit(batch)?;
        next.key_services.insert(service.name.clone(), Arc::new(service));
        self.publish(next);
        Ok(())
    }

    /// Removes a key service, unless the closure, which sees all clusters, refuses. False if there was none.
    pub fn remove_key_service<E: From<Error>>(
        &self,
        name: &KeyServiceName,
        may: impl FnOnce(&Snapshot) -> Result<(), E>,
    ) -> Result<bool, E> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        if next.key_services.remove(name).is_none() {
            return Ok(false);
        }
        may(&next)?;
        let mut batch = Batch::default();
        batch.remove(Table::KeyServices, name.as_str());
        self.file.commit(batch)?;
        self.publish(next);
        Ok(true)
    }
}

impl Snapshot {
    /// The key services, in no order.
    pub fn key_services(&self) -> impl Iterator<Item = &Arc<KeyService>> {
        self.key_services.values()
    }

    /// The key service of this name.
    pub fn key_service(&self, name: &KeyServiceName) -> Option<&Arc<KeyService>> {
        self.key_services.get(name)
    }
}

#[cfg(test)]
mod tests {
    use model::{KeptSecret, KeyCredentials, KeyType};
    use time::OffsetDateTime;

    use super::*;
    use crate::testing::open;

    fn service(name: &str) -> KeyService {
        KeyService {
            name: name.parse().unwrap(),
            kind: KeyType::Vault,
            address: "https://vault.example:8200".to_owned(),
            ca_pem: None,
            namespace: None,
            credentials: KeyCredentials::VaultToken(KeptSecret::new("canary-token".to_owned())),
            updated_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_service_survives_a_restart_and_its_secret_is_not_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        store.put_key_service(service("vault")).unwrap();
        drop(store);
        let raw = std::fs::read(folder.path().join("state.redb")).unwrap();
        assert!(!raw.windows(12).any(|bytes| bytes == b"canary-token"));
        let store = open(folder.path());
        let name = "vault".parse().unwrap();
        assert_eq!(**store.snapshot().key_service(&name).unwrap(), service("vault"));
        assert!(store.remove_key_service::<Error>(&name, |_| Ok(())).unwrap());
        assert!(!store.remove_key_service::<Error>(&name, |_| Ok(())).unwrap());
        drop(store);
        assert_eq!(open(folder.path()).snapshot().key_services().count(), 0);
    }

    #[test]
    fn a_service_that_is_needed_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        store.put_key_service(service("vault")).unwrap();
        let name = "vault".parse().unwrap();
        let needed = |_: &Snapshot| Err(Error::TooMany { what: "clusters", limit: 1 });
        assert!(store.remove_key_service(&name, needed).is_err());
        assert!(store.snapshot().key_service(&name).is_some());
    }
}
