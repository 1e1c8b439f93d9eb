//! A client with a method for each call.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use keys::SecretText;
use model::{AddressRange, ClusterId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};

use crate::transport::{Answer, Transport, encode_segment};
use crate::{
    Allowlist, AllowlistChange, AllowlistEntry, Authority, Caller, Cluster, ClusterDetail, ClusterPhase,
    ClusterPhases, Clusters, ConnectionString, CreateCluster, CreateDatabase, CreateSqlUser, Database,
    Databases, Error, ErrorBody, Expiry, Organization, Password, Proof, PutExpiry, RenameDatabase, STOPPING,
    SqlUser, SqlUsers, Status, UpdateCluster,
};

/// For one call, waiting included. The cloud gives up a little earlier and says so.
pub const DEADLINE: Duration = Duration::from_secs(140);
/// Most pages of one list: 100,000 clusters at 500 each.
const PAGES_MAX: usize = 200;
const PAGE_LIMIT: usize = 500;
const RETRY_AFTER_MAX: u64 = 10;

/// Speaks to one cloud as the owner of one API key.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
}

impl Client {
    /// A client of the cloud at the URL. It trusts this root certificate and no other; without one, the machine's.
    pub fn new(url: &str, key: SecretText, root_pem: Option<&str>) -> Result<Self, Error> {
        Ok(Self { transport: Transport::new(url, key, root_pem)? })
    }

    /// The same client by the operator's socket in this folder, if it is there: see [`crate::OPERATOR_SOCKET`].
    #[must_use]
    pub fn through(self, operator: &Path) -> Self {
        Self { transport: self.transport.through(operator) }
    }

    /// Wishes for a cluster; it is CREATING when this returns.
    pub async fn create_cluster(&self, request: &CreateCluster) -> Result<Cluster, Error> {
        self.call(Method::POST, "/clusters", Some(request)).await
    }

    /// One cluster.
    pub async fn cluster(&self, id: ClusterId) -> Result<Cluster, Error> {
        self.get(&format!("/clusters/{id}")).await
    }

    /// Every cluster that exists, by name.
    pub async fn clusters(&self) -> Result<Vec<Cluster>, Error> {
        self.pages("/clusters", |page: Clusters| (page.clusters, page.pagination.next_page)).await
    }

    /// The cluster with this name, if one exists.
    pub async fn cluster_by_name(&self, name: &str) -> Result<Option<Cluster>, Error> {
        Ok(self.clusters().await?.into_iter().find(|cluster| cluster.name == name))
    }

    /// Changes a cluster.
    pub async fn update_cluster(&self, id: ClusterId, change: &UpdateCluster) -> Result<Cluster, Error> {
        self.call(Method::PATCH, &format!("/clusters/{id}"), Some(change)).await
    }

    /// Deletes a cluster, with its key first; it is gone when this returns.
    pub async fn delete_cluster(&self, id: ClusterId) -> Result<Cluster, Error> {
        self.delete(&format!("/clusters/{id}")).await
    }

    /// Every SQL user, by name.
    pub async fn sql_users(&self, id: ClusterId) -> Result<Vec<SqlUser>, Error> {
        let path = format!("/clusters/{id}/sql-users");
        self.pages(&path, |page: SqlUsers| (page.users, page.pagination.next_page)).await
    }

    /// Makes a SQL user.
    pub async fn create_sql_user(
        &self,
        id: ClusterId,
        name: &str,
        password: SecretText,
    ) -> Result<SqlUser, Error> {
        let request = CreateSqlUser { name: name.to_owned(), password: Password::new(password) };
        self.call(Method::POST, &format!("/clusters/{id}/sql-users"), Some(&request)).await
    }

    /// Gives a SQL user another password.
    pub async fn set_password(
        &self,
        id: ClusterId,
        name: &str,
        password: SecretText,
    ) -> Result<SqlUser, Error> {
        #[derive(Serialize)]
        struct Body {
            password: Password,
        }
        let path = format!("/clusters/{id}/sql-users/{}/password", encode_segment(name));
        self.call(Method::PUT, &path, Some(&Body { password: Password::new(password) })).await
    }

    /// Removes a SQL user.
    pub async fn delete_sql_user(&self, id: ClusterId, name: &str) -> Result<SqlUser, Error> {
        self.delete(&format!("/clusters/{id}/sql-users/{}", encode_segment(name))).await
    }

    /// Every database, by name.
    pub async fn databases(&self, id: ClusterId) -> Result<Vec<Database>, Error> {
        let path = format!("/clusters/{id}/databases");
        self.pages(&path, |page: Databases| (page.databases, page.pagination.next_page)).await
    }

    /// Makes a database.
    pub async fn create_database(&self, id: ClusterId, name: &str) -> Result<Database, Error> {
        let request = CreateDatabase { name: name.to_owned() };
        self.call(Method::POST, &format!("/clusters/{id}/databases"), Some(&request)).await
    }

    /// Renames a database.
    pub async fn rename_database(&self, id: ClusterId, name: &str, to: &str) -> Result<Database, Error> {
        let request = RenameDatabase { new_name: to.to_owned() };
        let path = format!("/clusters/{id}/databases/{}", encode_segment(name));
        self.call(Method::PATCH, &path, Some(&request)).await
    }

    /// Removes a database and what is in it.
    pub async fn delete_database(&self, id: ClusterId, name: &str) -> Result<Database, Error> {
        self.delete(&format!("/clusters/{id}/databases/{}", encode_segment(name))).await
    }

    /// Every line of the allowlist.
    pub async fn allowlist(&self, id: ClusterId) -> Result<Vec<AllowlistEntry>, Error> {
        let path = format!("/clusters/{id}/networking/allowlist");
        self.pages(&path, |page: Allowlist| (page.allowlist, page.pagination.next_page)).await
    }

    /// Adds a line.
    pub async fn add_allowlist_entry(
        &self,
        id: ClusterId,
        entry: &AllowlistEntry,
    ) -> Result<AllowlistEntry, Error> {
        self.call(Method::POST, &format!("/clusters/{id}/networking/allowlist"), Some(entry)).await
    }

    /// Changes a line.
    pub async fn edit_allowlist_entry(
        &self,
        id: ClusterId,
        range: AddressRange,
        change: &AllowlistChange,
    ) -> Result<AllowlistEntry, Error> {
        self.call(Method::PATCH, &line(id, range), Some(change)).await
    }

    /// Removes a line.
    pub async fn delete_allowlist_entry(
        &self,
        id: ClusterId,
        range: AddressRange,
    ) -> Result<AllowlistEntry, Error> {
        self.delete(&line(id, range)).await
    }

    /// Where to connect.
    pub async fn connection_string(
        &self,
        id: ClusterId,
        user: Option<&str>,
        database: Option<&str>,
    ) -> Result<ConnectionString, Error> {
        let mut path = format!("/clusters/{id}/connection-string");
        let query = [("sql_user", user), ("database", database)];
        let mut separator = '?';
        for (name, value) in query.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            path = format!("{path}{separator}{name}={}", encode_segment(value));
            separator = '&';
        }
        self.get(&path).await
    }

    /// The cloud itself.
    pub async fn status(&self) -> Result<Status, Error> {
        self.get("/chitin/status").await
    }

    /// The root certificate.
    pub async fn authority(&self) -> Result<Authority, Error> {
        self.get("/chitin/ca").await
    }

    /// The address that this client has for the cloud.
    pub async fn whoami(&self) -> Result<Caller, Error> {
        // A Unix socket has no address.
        Self { transport: self.transport.over_tcp() }.get("/chitin/whoami").await
    }

    /// What holds for every cluster.
    pub async fn organization(&self) -> Result<Organization, Error> {
        self.get("/chitin/organization").await
    }

    /// Changes what holds for every cluster.
    pub async fn set_organization(&self, wanted: Organization) -> Result<Organization, Error> {
        self.call(Method::PUT, "/chitin/organization", Some(&wanted)).await
    }

    /// Where every cluster stands, by id.
    pub async fn phases(&self) -> Result<Vec<ClusterPhase>, Error> {
        self.pages("/chitin/clusters", |page: ClusterPhases| (page.clusters, page.pagination.next_page)).await
    }

    /// What the Cloud API does not say of a cluster.
    pub async fn detail(&self, id: ClusterId) -> Result<ClusterDetail, Error> {
        self.get(&format!("/chitin/clusters/{id}")).await
    }

    /// Puts a cluster to sleep; it sleeps when this returns. With `force` also where nobody could sign in to it afterwards.
    pub async fn sleep(&self, id: ClusterId, force: bool) -> Result<ClusterDetail, Error> {
        let query = if force { "?force=true" } else { "" };
        self.call(Method::POST, &format!("/chitin/clusters/{id}/sleep{query}"), None::<&()>).await
    }

    /// Wakes a cluster; its engine answers when this returns.
    pub async fn wake(&self, id: ClusterId) -> Result<ClusterDetail, Error> {
        self.call(Method::POST, &format!("/chitin/clusters/{id}/wake"), None::<&()>).await
    }

    /// Accepts a cluster's volume as it is, though the cloud has seen a newer one.
    pub async fn accept_restored(&self, id: ClusterId) -> Result<ClusterDetail, Error> {
        self.call(Method::POST, &format!("/chitin/clusters/{id}/accept-restored"), None::<&()>).await
    }

    /// Lets a cluster exist for so many seconds from now on, then it is deleted by itself; without any, until somebody deletes it.
    pub async fn set_expiry(&self, id: ClusterId, wanted: PutExpiry) -> Result<Expiry, Error> {
        self.call(Method::PUT, &format!("/chitin/clusters/{id}/expiry"), Some(&wanted)).await
    }

    /// What can be proven only from inside: sandbox, volume, canary.
    pub async fn prove(&self, id: ClusterId) -> Result<Proof, Error> {
        self.call(Method::POST, &format!("/chitin/clusters/{id}/proof"), None::<&()>).await
    }

    pub(crate) async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, Error> {
        self.call(Method::GET, path, None::<&()>).await
    }

    pub(crate) async fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, Error> {
        self.call(Method::DELETE, path, None::<&()>).await
    }

    async fn pages<P: DeserializeOwned, T>(
        &self,
        path: &str,
        open: impl Fn(P) -> (Vec<T>, Option<String>),
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        let mut token = String::new();
        for _ in 0..PAGES_MAX {
            let path =
                format!("{path}?pagination.limit={PAGE_LIMIT}&pagination.page={}", encode_segment(&token));
            let (items, next) = open(self.get(&path).await?);
            all.extend(items);
            match next.filter(|next| !next.is_empty()) {
                Some(next) => token = next,
                None => return Ok(all),
            }
        }
        Err(Error::Unexpected("the list has no end".to_owned()))
    }

    pub(crate) async fn call<B: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<A, Error> {
        let body = match body {
            Some(body) => serde_json::to_vec(body)
                .map_err(|error| {
                    Error::Unexpected(format!("the request cannot be written as JSON: {error}"))
                })?
                .into(),
            None => Bytes::new(),
        };
        let path = format!("/api/v1{path}");
        let end = Instant::now() + DEADLINE;
        loop {
            let answer = timeout_at(end, self.transport.send(method.clone(), &path, body.clone()))
                .await
                .map_err(|_| {
                Error::Unexpected("the cloud took too long to answer; look before you repeat".to_owned())
            })??;
            // Refused before anything was done, so every method may be repeated.
            if answer.status == StatusCode::TOO_MANY_REQUESTS {
                let pause = Duration::from_secs(answer.retry_after.unwrap_or(1).clamp(1, RETRY_AFTER_MAX));
                if Instant::now() + pause < end {
                    sleep(pause).await;
                    continue;
                }
            }
            return read(answer);
        }
    }
}

fn line(id: ClusterId, range: AddressRange) -> String {
    let address = encode_segment(&range.address().to_string());
    format!("/clusters/{id}/networking/allowlist/{address}/{}", range.prefix_bits())
}

fn read<A: DeserializeOwned>(answer: Answer) -> Result<A, Error> {
    if answer.status.is_success() {
        return serde_json::from_slice(&answer.body)
            .map_err(|error| Error::Unexpected(format!("the answer is not of this API: {error}")));
    }
    let status = answer.status.as_u16();
    match serde_json::from_slice::<ErrorBody>(&answer.body) {
        Ok(body) if body.has_reason(STOPPING) => Err(Error::Stopping { message: body.message }),
        Ok(body) if status == 404 => Err(Error::NotFound { message: body.message }),
        Ok(body) => Err(Error::Refused { status, code: body.code, message: body.message }),
        Err(_) => {
            Err(Error::Unexpected(format!("HTTP {status} without an explanation; is this a Chitin cloud?")))
        }
    }
}
