//! Our own attacks fail to sign in on purpose; the throttle must not end them before the thing that is attacked does.

use std::net::IpAddr;

use api::{Client, ThrottleFilter};

/// Forgives failed sign-ins at one cluster.
#[derive(Clone, Debug)]
pub struct Amnesty {
    api: Client,
    handle: String,
    /// Our own address, whose failures count at all clusters together.
    ours: IpAddr,
}

impl Amnesty {
    /// For failures at the cluster with this address label.
    pub fn new(api: &Client, handle: &str, ours: IpAddr) -> Self {
        Self { api: api.clone(), handle: handle.to_owned(), ours }
    }

    /// Forgives what failed up to now. A refusal to do so shows in the attacks that follow, not here.
    pub async fn grant(&self) {
        let here = ThrottleFilter { cluster: Some(self.handle.clone()), ..ThrottleFilter::default() };
        let anywhere = ThrottleFilter { address: Some(self.ours.to_string()), ..ThrottleFilter::default() };
        for filter in [here, anywhere] {
            let _ = self.api.clear_throttle(&filter).await;
        }
    }
}
