//! What the programs for benches share: a cluster, and a host's record of volumes.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::Mutex;

use model::{Checkpoint, Cluster, ClusterId, Plan, Power, Provider, Template, VolumeId, Wish};
use time::OffsetDateTime;

/// A record of volumes for one that nobody else gets at.
#[derive(Debug, Default)]
pub(crate) struct Nothing(Mutex<HashMap<u32, Template>>);

impl engine::VolumeRecord for Nothing {
    fn check(&self, _: ClusterId, _: VolumeId) -> Result<(), String> {
        Ok(())
    }

    fn major(&self, _: ClusterId) -> Result<Option<u32>, String> {
        Ok(None)
    }

    fn checkpoint(&self, _: ClusterId) -> Option<Checkpoint> {
        None
    }

    fn template(&self, major: u32) -> Result<Option<Template>, String> {
        Ok(self.0.lock().map_err(|cause| cause.to_string())?.get(&major).cloned())
    }

    fn keep_template(&self, major: u32, template: &Template) -> Result<(), String> {
        self.0.lock().map_err(|cause| cause.to_string())?.insert(major, template.clone());
        Ok(())
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A cluster's document.
pub(crate) fn cluster() -> Result<Cluster, Box<dyn Error>> {
    let now = OffsetDateTime::UNIX_EPOCH;
    Ok(Cluster {
        id: ClusterId::random(),
        routing_id: 2.try_into()?,
        name: "bench-cluster".parse()?,
        plan: Plan::Serverless,
        provider: Provider::Gcp,
        regions: vec!["local".to_owned()],
        labels: BTreeMap::new(),
        is_delete_protected: false,
        allowlist: Vec::new(),
        asked: model::Asked::default(),
        storage_floor: None,
        connections_floor: None,
        sign_in: model::SignIn::default(),
        network: model::Network::default(),
        egress: model::Egress::default(),
        keys: model::KeyWish::default(),
        wish: Wish::Exists(Power::Running),
        revision: 1,
        created_at: now,
        updated_at: now,
        deleted_at: None,
    })
}
