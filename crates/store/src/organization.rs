//! What holds for every cluster.

use model::Organization;

use crate::file::{Batch, Table};
use crate::{Error, Snapshot, Store};

/// There is one.
const KEY: &str = "organization";

impl Store {
    /// Changes what holds for every cluster that is made from now on.
    pub fn set_organization(&self, wanted: Organization) -> Result<(), Error> {
        let _writer = self.write();
        let mut next = (*self.snapshot()).clone();
        let mut batch = Batch::default();
        self.file.put(&mut batch, Table::Organization, KEY, &wanted)?;
        self.file.commit(batch)?;
        next.organization = wanted;
        self.publish(next);
        Ok(())
    }
}

impl Snapshot {
    /// What holds for every cluster.
    pub fn organization(&self) -> Organization {
        self.organization
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::open;

    #[test]
    fn what_holds_for_every_cluster_survives() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        assert!(!store.snapshot().organization().allowlist_starts_closed);
        store.set_organization(Organization { allowlist_starts_closed: true }).unwrap();
        drop(store);
        assert!(open(folder.path()).snapshot().organization().allowlist_starts_closed);
    }
}
