//! The client's calls about keys and the services that keep them.

use hyper::Method;
use model::ClusterId;

use crate::key_services::{KeyService, KeyServices, PutKeyService, TestKey, TestedKey};
use crate::keys::{
    ClusterKeys, CmekAction, CmekClusterInfo, CmekSpecification, KeyList, RootKey, UpdateCmekStatus,
};
use crate::{Client, Error, encode_segment};

impl Client {
    /// Where a cluster's customer-managed key stands.
    pub async fn cmek(&self, id: ClusterId) -> Result<CmekClusterInfo, Error> {
        self.get(&cmek(id)).await
    }

    /// Wishes for a customer-managed key where there is none; it is on the way when this returns.
    pub async fn enable_cmek(
        &self,
        id: ClusterId,
        wanted: &CmekSpecification,
    ) -> Result<CmekClusterInfo, Error> {
        self.call(Method::POST, &cmek(id), Some(wanted)).await
    }

    /// Wishes for another key, or for the newest version of the same; it is on the way when this returns.
    pub async fn update_cmek(
        &self,
        id: ClusterId,
        wanted: &CmekSpecification,
    ) -> Result<CmekClusterInfo, Error> {
        self.call(Method::PUT, &cmek(id), Some(wanted)).await
    }

    /// Takes the key away; the cluster is being stopped when this returns.
    pub async fn revoke_cmek(&self, id: ClusterId) -> Result<CmekClusterInfo, Error> {
        let request = UpdateCmekStatus { action: CmekAction::Revoke };
        self.call(Method::PATCH, &cmek(id), Some(&request)).await
    }

    /// The root key and the key of every cluster.
    pub async fn keys(&self) -> Result<KeyList, Error> {
        self.get("/chitin/keys").await
    }

    /// What encrypts a cluster, measured.
    pub async fn cluster_keys(&self, id: ClusterId) -> Result<ClusterKeys, Error> {
        self.get(&own(id, "")).await
    }

    /// Gives a key back that was revoked.
    pub async fn restore_key(&self, id: ClusterId) -> Result<ClusterKeys, Error> {
        self.call(Method::POST, &own(id, "/restore"), None::<&()>).await
    }

    /// Wishes for another data key; the volume is being encrypted anew when this returns.
    pub async fn rotate_data_key(&self, id: ClusterId) -> Result<ClusterKeys, Error> {
        self.call(Method::POST, &own(id, "/data-key/rotate"), None::<&()>).await
    }

    /// The cloud's root key, described.
    pub async fn root_key(&self) -> Result<RootKey, Error> {
        self.get("/chitin/root-key").await
    }

    /// Makes a new version of the root key.
    pub async fn rotate_root_key(&self) -> Result<RootKey, Error> {
        self.call(Method::POST, "/chitin/root-key/rotate", None::<&()>).await
    }

    /// The key services, by name.
    pub async fn key_services(&self) -> Result<Vec<KeyService>, Error> {
        let answer: KeyServices = self.get("/chitin/key-services").await?;
        Ok(answer.key_services)
    }

    /// One key service.
    pub async fn key_service(&self, name: &str) -> Result<KeyService, Error> {
        self.get(&service(name)).await
    }

    /// Adds or replaces a key service.
    pub async fn put_key_service(&self, name: &str, wanted: &PutKeyService) -> Result<KeyService, Error> {
        self.call(Method::PUT, &service(name), Some(wanted)).await
    }

    /// Removes a key service that no cluster needs.
    pub async fn delete_key_service(&self, name: &str) -> Result<KeyService, Error> {
        self.delete(&service(name)).await
    }

    /// Wraps and unwraps a throw-away data key.
    pub async fn test_key(&self, name: &str, key: &TestKey) -> Result<TestedKey, Error> {
        self.call(Method::POST, &format!("{}/test", service(name)), Some(key)).await
    }
}

fn cmek(id: ClusterId) -> String {
    format!("/clusters/{id}/cmek")
}

fn own(id: ClusterId, what: &str) -> String {
    format!("/chitin/clusters/{id}/keys{what}")
}

fn service(name: &str) -> String {
    format!("/chitin/key-services/{}", encode_segment(name))
}
