//! A cluster for this room's tests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

use model::{Asked, Clock, Cluster, ClusterId, Network, Plan, Power, Provider, RoutingId, SignIn, Wish};
use time::OffsetDateTime;

/// A clock that a test turns, by so many seconds.
pub struct Turned(pub AtomicI64);

impl Clock for Turned {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + time::Duration::seconds(self.0.load(Ordering::Relaxed))
    }
}

/// A serverless cluster that nobody may reach.
pub fn cluster() -> Cluster {
    let now = OffsetDateTime::now_utc();
    Cluster {
        id: ClusterId::random(),
        routing_id: RoutingId::FIRST,
        name: "lazy-roach".parse().unwrap(),
        plan: Plan::Serverless,
        provider: Provider::Gcp,
        regions: vec!["local".to_owned()],
        labels: BTreeMap::new(),
        is_delete_protected: false,
        allowlist: Vec::new(),
        asked: Asked::default(),
        storage_floor: None,
        connections_floor: None,
        sign_in: SignIn::default(),
        network: Network::default(),
        egress: model::Egress::default(),
        keys: model::KeyWish::default(),
        wish: Wish::Exists(Power::Running),
        revision: 1,
        created_at: now,
        updated_at: now,
        deleted_at: None,
    }
}

/// What such a cluster is created from.
pub fn draft(name: &str) -> store::Draft {
    let Cluster {
        plan,
        provider,
        regions,
        labels,
        is_delete_protected,
        allowlist,
        network,
        egress,
        asked,
        ..
    } = cluster();
    store::Draft {
        name: name.parse().unwrap(),
        plan,
        provider,
        regions,
        labels,
        is_delete_protected,
        allowlist,
        network,
        egress,
        asked,
    }
}
