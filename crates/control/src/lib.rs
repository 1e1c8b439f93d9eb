//! The API's verbs: who asks, what is allowed, which wish is written. Nothing here starts or stops an engine.

mod administration;
mod alerts;
mod allowlist;
mod checks;
mod chitin;
mod client_ca;
mod clusters;
mod cmek;
mod connection;
mod create;
mod crls;
mod databases;
mod door;
mod egress;
mod expiry;
mod hba;
mod identity_map;
mod input;
mod key_services;
mod keys;
mod network;
mod ocsp;
mod organization;
mod page;
mod providers;
mod rate;
mod refusal;
mod rejected;
mod shape;
mod stopping;
mod throttle;
mod unbuilt;
mod update;
mod users;
mod versions;
mod web;

use std::sync::Arc;

use axum::Router;
use axum::routing::{any, delete, get, patch, post, put};
use model::Clock;
use store::Store;

use crate::network::{endpoints, owners, peerings};

pub use administration::{Administration, ClearThrottle, KeyInUse};
pub use door::Authenticated;
pub use refusal::Refusal;
pub use stopping::Stopping;
pub use web::{
    Arrival, Callback, Departure, DeskRefused, Login, SignInDesk, Waiting, WebSession, WebSessions,
};

/// What the verbs need.
#[derive(Clone)]
pub struct State {
    /// The cloud's state.
    pub store: Arc<Store>,
    /// Whoever can speak to engines.
    pub administration: Arc<dyn Administration>,
    /// Whoever signs people in through a browser.
    pub desk: Arc<dyn SignInDesk>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// What clients are told.
    pub settings: Arc<Settings>,
    /// Whether the program stops.
    pub stopping: Stopping,
}

/// What clients are told about this cloud.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The host of connection strings, `localhost` for a cloud on loopback.
    pub sql_host: String,
    /// The port of connection strings.
    pub sql_port: u16,
    /// Where SQL clients connect, `HOST:PORT`, for status.
    pub sql: String,
    /// Where the API answers, `HOST:PORT`, for status.
    pub http: String,
    /// The root certificate.
    pub ca_pem: String,
    /// The port of the front door's HTTP inside private networks.
    pub http_port: u16,
    /// The host under which other machines reach this one: that of `--public-url`, or `localhost`.
    pub public_host: String,
    /// Where connections of private endpoints arrive, `HOST:PORT`; `None` where they do not.
    pub endpoint: Option<String>,
    /// Where the root certificate lies, for `sslrootcert`; `None` when clients know the root without it.
    pub ca_path: Option<String>,
    /// The program's version.
    pub version: String,
    /// Most lines of one cluster's allowlist.
    pub allowlist_entries_max: usize,
}

/// The pages for people alone: what a front door inside a private network serves. The API is the operator's, and is not
/// served there.
pub fn pages(desk: Arc<dyn SignInDesk>) -> Router {
    door::pages(web::Web::new(desk))
}

/// Every call of the API. The whole service is behind one door: key, bounds, headers, audit.
pub fn router(state: State) -> Router {
    let cluster = Router::new()
        .route("/", get(clusters::show).patch(update::update).delete(clusters::destroy))
        .route("/sql-users", get(users::list).post(users::create))
        .route("/sql-users/{name}", delete(users::destroy))
        .route("/sql-users/{name}/password", put(users::set_password))
        .route("/databases", get(databases::list).post(databases::create).patch(databases::rename_named))
        .route("/databases/{name}", patch(databases::rename).delete(databases::destroy))
        .route("/networking/allowlist", get(allowlist::list).post(allowlist::add))
        .route(
            "/networking/allowlist/{cidr_ip}/{cidr_mask}",
            put(allowlist::put).patch(allowlist::edit).delete(allowlist::remove),
        )
        .route("/networking/egress-rules", get(egress::list).post(egress::add))
        .route("/networking/egress-rules/egress-traffic-policy", post(egress::set_policy))
        .route(
            "/networking/egress-rules/{rule_id}",
            get(egress::show).patch(egress::edit).delete(egress::remove),
        )
        .route(
            "/networking/private-endpoint-services",
            get(endpoints::services).post(endpoints::create_services),
        )
        .route("/networking/private-endpoint-connections", get(endpoints::list).post(endpoints::add))
        .route("/networking/private-endpoint-connections/{endpoint_id}", delete(endpoints::remove))
        .route("/networking/aws-endpoint-connections", get(endpoints::list_older))
        .route("/networking/aws-endpoint-connections/{endpoint_id}", patch(endpoints::decide))
        .route("/networking/private-endpoint-trusted-owners", get(owners::list).post(owners::add))
        .route(
            "/networking/private-endpoint-trusted-owners/{owner_id}",
            get(owners::show).delete(owners::remove),
        )
        .route(
            "/client-ca-cert",
            get(client_ca::show).post(client_ca::set).patch(client_ca::replace).delete(client_ca::remove),
        )
        .route("/cmek", get(cmek::show).post(cmek::enable).put(cmek::update).patch(cmek::set_status))
        .route("/connection-string", get(connection::show));
    let chitin = Router::new()
        .route("/status", get(chitin::status))
        .route("/ca", get(chitin::authority))
        .route("/whoami", get(organization::whoami))
        .route("/organization", get(organization::show).put(organization::put))
        .route("/clusters", get(chitin::phases))
        .route("/clusters/{cluster_id}", get(chitin::detail))
        .route("/clusters/{cluster_id}/sleep", post(chitin::sleep))
        .route("/clusters/{cluster_id}/wake", post(chitin::wake))
        .route("/clusters/{cluster_id}/accept-restored", post(chitin::accept_restored))
        .route("/clusters/{cluster_id}/expiry", put(expiry::put))
        .route("/clusters/{cluster_id}/proof", post(chitin::prove))
        .route("/clusters/{cluster_id}/client-ca", get(client_ca::describe))
        .route("/clusters/{cluster_id}/crls", get(crls::show).put(crls::put).delete(crls::remove))
        .route("/clusters/{cluster_id}/egress", get(egress::describe).put(egress::set_engine))
        .route("/clusters/{cluster_id}/egress/test", post(egress::test))
        .route("/clusters/{cluster_id}/hba", get(hba::show).put(hba::put))
        .route("/clusters/{cluster_id}/hba/test", post(hba::test))
        .route("/clusters/{cluster_id}/identity-map", get(identity_map::show).put(identity_map::put))
        .route("/clusters/{cluster_id}/network", get(network::show).put(network::put))
        .route("/clusters/{cluster_id}/peerings", get(peerings::list).post(peerings::create))
        .route("/clusters/{cluster_id}/peerings/{name}", get(peerings::show).delete(peerings::remove))
        .route("/clusters/{cluster_id}/peerings/{name}/accept", post(peerings::accept))
        .route("/clusters/{cluster_id}/peerings/{name}/config", get(peerings::config))
        .route("/clusters/{cluster_id}/ocsp", get(ocsp::show).put(ocsp::put))
        .route("/clusters/{cluster_id}/providers", get(providers::list_of_cluster))
        .route(
            "/clusters/{cluster_id}/providers/{name}",
            put(providers::put_of_cluster).delete(providers::remove_of_cluster),
        )
        .route("/clusters/{cluster_id}/keys", get(keys::show))
        .route("/clusters/{cluster_id}/keys/restore", post(keys::restore))
        .route("/clusters/{cluster_id}/keys/data-key/rotate", post(keys::rotate_data_key))
        .route("/keys", get(keys::list))
        .route("/root-key", get(keys::root))
        .route("/root-key/rotate", post(keys::rotate_root))
        .route("/key-services", get(key_services::list))
        .route(
            "/key-services/{name}",
            get(key_services::show).put(key_services::put).delete(key_services::remove),
        )
        .route("/key-services/{name}/test", post(key_services::test))
        .route("/providers", get(providers::list))
        .route("/providers/{name}", put(providers::put).delete(providers::remove))
        .route("/throttle", get(throttle::list))
        .route("/throttle/clear", post(throttle::clear));
    let verbs = Router::new()
        .route("/api/v1/clusters", get(clusters::list).post(create::create))
        .route("/api/v1/clusters/available-regions", any(unbuilt::refuse))
        .nest("/api/v1/clusters/{cluster_id}", cluster)
        .nest("/api/v1/chitin", chitin)
        .route("/api/v1/openapi.json", get(chitin::openapi))
        .fallback(unbuilt::fallback)
        .with_state(state.clone());
    door::close(state, verbs)
}
