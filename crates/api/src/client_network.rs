//! The client's calls about private networks and peerings.

use hyper::Method;
use model::{ClusterId, PeeringName};

use crate::network::{
    AcceptPeering, ClusterNetwork, CreatePeering, Peering, PeeringConfig, Peerings, PutNetwork,
};
use crate::{Client, Error, encode_segment};

impl Client {
    /// Who can see a cluster, and its private network.
    pub async fn network(&self, id: ClusterId) -> Result<ClusterNetwork, Error> {
        self.get(&own(id, "network")).await
    }

    /// Changes who can see a cluster, and its private network.
    pub async fn set_network(&self, id: ClusterId, wanted: &PutNetwork) -> Result<ClusterNetwork, Error> {
        self.call(Method::PUT, &own(id, "network"), Some(wanted)).await
    }

    /// What a cluster's private network is joined with, or will be.
    pub async fn peerings(&self, id: ClusterId) -> Result<Vec<Peering>, Error> {
        let answer: Peerings = self.get(&own(id, "peerings")).await?;
        Ok(answer.peerings)
    }

    /// Proposes a peering.
    pub async fn create_peering(&self, id: ClusterId, wanted: &CreatePeering) -> Result<Peering, Error> {
        self.call(Method::POST, &own(id, "peerings"), Some(wanted)).await
    }

    /// One peering.
    pub async fn peering(&self, id: ClusterId, name: &PeeringName) -> Result<Peering, Error> {
        self.get(&peering(id, name)).await
    }

    /// Accepts a peering; it is made from then on.
    pub async fn accept_peering(
        &self,
        id: ClusterId,
        name: &PeeringName,
        acceptance: &AcceptPeering,
    ) -> Result<Peering, Error> {
        self.call(Method::POST, &format!("{}/accept", peering(id, name)), Some(acceptance)).await
    }

    /// Ends a peering.
    pub async fn delete_peering(&self, id: ClusterId, name: &PeeringName) -> Result<Peering, Error> {
        self.delete(&peering(id, name)).await
    }

    /// The WireGuard configuration for a peering's other side.
    pub async fn peering_config(&self, id: ClusterId, name: &PeeringName) -> Result<PeeringConfig, Error> {
        self.get(&format!("{}/config", peering(id, name))).await
    }
}

fn own(id: ClusterId, what: &str) -> String {
    format!("/chitin/clusters/{id}/{what}")
}

fn peering(id: ClusterId, name: &PeeringName) -> String {
    own(id, &format!("peerings/{}", encode_segment(name.as_str())))
}
