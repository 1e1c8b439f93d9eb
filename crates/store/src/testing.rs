//! A store in a folder and a cluster to put into it, for the tests of this room.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ::keys::{RootKey, Sealer};
use model::{Asked, Plan, Provider};

use crate::{Draft, Store};

pub(crate) fn sealer(folder: &Path) -> Sealer {
    RootKey::open_or_create(&folder.join("kek")).unwrap().sealer("state").unwrap()
}

pub(crate) fn open(folder: &Path) -> Arc<Store> {
    Store::open(&folder.join("state.redb"), sealer(folder)).unwrap()
}

pub(crate) fn draft(name: &str) -> Draft {
    Draft {
        name: name.parse().unwrap(),
        plan: Plan::Serverless,
        provider: Provider::Gcp,
        regions: vec!["local".to_owned()],
        labels: BTreeMap::new(),
        is_delete_protected: false,
        allowlist: Vec::new(),
        network: model::Network::default(),
        egress: model::Egress::default(),
        asked: Asked::default(),
    }
}
