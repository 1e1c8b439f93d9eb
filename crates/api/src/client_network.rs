//! The client's calls about private networks, peerings and private endpoints.

use hyper::Method;
use model::{ClusterId, PeeringName};
use uuid::Uuid;

use crate::endpoints::{
    AddPrivateEndpointConnection, AddTrustedOwner, AwsEndpointConnection, EndpointDecision, OneTrustedOwner,
    OwnerType, PrivateEndpointConnection, PrivateEndpointConnections, PrivateEndpointServices, Removed,
    SetAwsEndpointConnection, TrustedOwner, TrustedOwners,
};
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

    /// The private endpoint services of a cluster.
    pub async fn endpoint_services(&self, id: ClusterId) -> Result<PrivateEndpointServices, Error> {
        self.get(&networking(id, "private-endpoint-services")).await
    }

    /// Makes the private endpoint services of a cluster, unless they are there.
    pub async fn create_endpoint_services(&self, id: ClusterId) -> Result<PrivateEndpointServices, Error> {
        self.call(Method::POST, &networking(id, "private-endpoint-services"), None::<&()>).await
    }

    /// The private endpoints of a cluster.
    pub async fn endpoint_connections(&self, id: ClusterId) -> Result<Vec<PrivateEndpointConnection>, Error> {
        let answer: PrivateEndpointConnections = self.get(&networking(id, CONNECTIONS)).await?;
        Ok(answer.connections)
    }

    /// Adds a private endpoint.
    pub async fn add_endpoint_connection(
        &self,
        id: ClusterId,
        wanted: &AddPrivateEndpointConnection,
    ) -> Result<PrivateEndpointConnection, Error> {
        self.call(Method::POST, &networking(id, CONNECTIONS), Some(wanted)).await
    }

    /// Removes a private endpoint.
    pub async fn delete_endpoint_connection(&self, id: ClusterId, endpoint: &str) -> Result<Removed, Error> {
        self.delete(&format!("{}/{}", networking(id, CONNECTIONS), encode_segment(endpoint))).await
    }

    /// Accepts or rejects a private endpoint. The answer has the status from before.
    pub async fn decide_endpoint_connection(
        &self,
        id: ClusterId,
        endpoint: &str,
        status: EndpointDecision,
        external_owner_id: Option<String>,
    ) -> Result<AwsEndpointConnection, Error> {
        let path = format!("{}/{}", networking(id, "aws-endpoint-connections"), encode_segment(endpoint));
        let request = SetAwsEndpointConnection { status, external_owner_id };
        self.call(Method::PATCH, &path, Some(&request)).await
    }

    /// Owners whose private endpoints may be accepted; without any, every owner's.
    pub async fn trusted_owners(&self, id: ClusterId) -> Result<Vec<TrustedOwner>, Error> {
        let answer: TrustedOwners = self.get(&networking(id, OWNERS)).await?;
        Ok(answer.trusted_owners)
    }

    /// Adds an owner: an AWS account's 12 digits, or `*`.
    pub async fn add_trusted_owner(&self, id: ClusterId, owner: &str) -> Result<TrustedOwner, Error> {
        let request = AddTrustedOwner { kind: OwnerType::AwsAccountId, external_owner_id: owner.to_owned() };
        let answer: OneTrustedOwner =
            self.call(Method::POST, &networking(id, OWNERS), Some(&request)).await?;
        Ok(answer.trusted_owner)
    }

    /// Removes an owner by its entry's id.
    pub async fn delete_trusted_owner(&self, id: ClusterId, entry: Uuid) -> Result<TrustedOwner, Error> {
        let answer: OneTrustedOwner = self.delete(&format!("{}/{entry}", networking(id, OWNERS))).await?;
        Ok(answer.trusted_owner)
    }
}

const CONNECTIONS: &str = "private-endpoint-connections";
const OWNERS: &str = "private-endpoint-trusted-owners";

fn own(id: ClusterId, what: &str) -> String {
    format!("/chitin/clusters/{id}/{what}")
}

fn peering(id: ClusterId, name: &PeeringName) -> String {
    own(id, &format!("peerings/{}", encode_segment(name.as_str())))
}

fn networking(id: ClusterId, what: &str) -> String {
    format!("/clusters/{id}/networking/{what}")
}
