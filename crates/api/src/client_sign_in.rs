//! The client's calls about how people sign in.

use hyper::Method;
use model::ClusterId;

use crate::sign_in::{
    Cleared, ClientAuthorities, ClientCa, Crls, Hba, HbaVerdict, IdentityProvider, IdentityProviders, Ocsp,
    PutIdentityProvider, SetClientCa, SetCrls, SignInText, TestHba, Throttle, ThrottleFilter,
};
use crate::{Client, Error, encode_segment};

impl Client {
    /// The client authorities of a cluster.
    pub async fn client_ca(&self, id: ClusterId) -> Result<ClientCa, Error> {
        self.get(&format!("/clusters/{id}/client-ca-cert")).await
    }

    /// Sets or replaces the client authorities of a cluster: root certificates in PEM.
    pub async fn set_client_ca(&self, id: ClusterId, pem: String) -> Result<ClientCa, Error> {
        let request = SetClientCa { x509_pem_cert: pem };
        self.call(Method::PATCH, &format!("/clusters/{id}/client-ca-cert"), Some(&request)).await
    }

    /// Takes the client authorities away: nobody signs in with a certificate any more.
    pub async fn delete_client_ca(&self, id: ClusterId) -> Result<ClientCa, Error> {
        self.delete(&format!("/clusters/{id}/client-ca-cert")).await
    }

    /// What is in the bundle of client authorities.
    pub async fn client_authorities(&self, id: ClusterId) -> Result<ClientAuthorities, Error> {
        self.get(&own(id, "client-ca")).await
    }

    /// The rules of a cluster.
    pub async fn hba(&self, id: ClusterId) -> Result<Hba, Error> {
        self.get(&own(id, "hba")).await
    }

    /// Sets the rules of a cluster; an empty text means the default.
    pub async fn set_hba(&self, id: ClusterId, text: String) -> Result<Hba, Error> {
        self.call(Method::PUT, &own(id, "hba"), Some(&SignInText { text })).await
    }

    /// Says which rule a client would meet.
    pub async fn test_hba(&self, id: ClusterId, client: &TestHba) -> Result<HbaVerdict, Error> {
        self.call(Method::POST, &own(id, "hba/test"), Some(client)).await
    }

    /// The identity map of a cluster.
    pub async fn identity_map(&self, id: ClusterId) -> Result<SignInText, Error> {
        self.get(&own(id, "identity-map")).await
    }

    /// Sets the identity map of a cluster; an empty text takes it away.
    pub async fn set_identity_map(&self, id: ClusterId, text: String) -> Result<SignInText, Error> {
        self.call(Method::PUT, &own(id, "identity-map"), Some(&SignInText { text })).await
    }

    /// How revocation is asked for.
    pub async fn ocsp(&self, id: ClusterId) -> Result<Ocsp, Error> {
        self.get(&own(id, "ocsp")).await
    }

    /// Sets how revocation is asked for.
    pub async fn set_ocsp(&self, id: ClusterId, ocsp: &Ocsp) -> Result<Ocsp, Error> {
        self.call(Method::PUT, &own(id, "ocsp"), Some(ocsp)).await
    }

    /// The revocation lists of a cluster.
    pub async fn crls(&self, id: ClusterId) -> Result<Crls, Error> {
        self.get(&own(id, "crls")).await
    }

    /// Sets the revocation lists of a cluster, in PEM.
    pub async fn set_crls(&self, id: ClusterId, lists: SetCrls) -> Result<Crls, Error> {
        self.call(Method::PUT, &own(id, "crls"), Some(&lists)).await
    }

    /// Takes the revocation lists away.
    pub async fn delete_crls(&self, id: ClusterId) -> Result<Crls, Error> {
        self.delete(&own(id, "crls")).await
    }

    /// The providers that a cluster trusts, its own first; without a cluster, those of the cloud.
    pub async fn providers(&self, cluster: Option<ClusterId>) -> Result<Vec<IdentityProvider>, Error> {
        let answer: IdentityProviders = self.get(&providers(cluster)).await?;
        Ok(answer.providers)
    }

    /// Adds or replaces a provider of the cluster, or of the cloud.
    pub async fn put_provider(
        &self,
        cluster: Option<ClusterId>,
        name: &str,
        provider: &PutIdentityProvider,
    ) -> Result<IdentityProvider, Error> {
        self.call(Method::PUT, &one_provider(cluster, name), Some(provider)).await
    }

    /// Removes a provider of the cluster, or of the cloud; its tokens are refused from then on.
    pub async fn delete_provider(
        &self,
        cluster: Option<ClusterId>,
        name: &str,
    ) -> Result<IdentityProvider, Error> {
        self.delete(&one_provider(cluster, name)).await
    }

    /// Failed sign-ins that are remembered.
    pub async fn throttle(&self) -> Result<Throttle, Error> {
        self.get("/chitin/throttle").await
    }

    /// Forgets failed sign-ins.
    pub async fn clear_throttle(&self, filter: &ThrottleFilter) -> Result<Cleared, Error> {
        self.call(Method::POST, "/chitin/throttle/clear", Some(filter)).await
    }
}

fn own(id: ClusterId, what: &str) -> String {
    format!("/chitin/clusters/{id}/{what}")
}

fn providers(cluster: Option<ClusterId>) -> String {
    cluster.map_or_else(|| "/chitin/providers".to_owned(), |id| own(id, "providers"))
}

fn one_provider(cluster: Option<ClusterId>, name: &str) -> String {
    format!("{}/{}", providers(cluster), encode_segment(name))
}
