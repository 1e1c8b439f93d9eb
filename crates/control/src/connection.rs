//! Where to connect.

use api::{ConnectionParameters, ConnectionString, encode_segment};
use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use model::{DEFAULT_DATABASE, DatabaseName, RoleName, Visibility};
use serde::Deserialize;

use crate::page::given;
use crate::{Refusal, State, input};

/// The query. `os` changes nothing: the root certificate lies where `start` put it.
#[derive(Deserialize)]
pub(crate) struct Asked {
    database: Option<String>,
    sql_user: Option<String>,
    os: Option<String>,
}

/// Writes a connection string without a password.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Json<ConnectionString>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    if given(asked.os.as_ref()).is_some_and(|os| !["MAC", "LINUX", "WINDOWS"].contains(&os)) {
        return Err(Refusal::invalid("os is MAC, LINUX or WINDOWS"));
    }
    let wrong = |error: model::InvalidName| Refusal::invalid(format_args!("{error}"));
    let database: DatabaseName =
        given(asked.database.as_ref()).unwrap_or(DEFAULT_DATABASE).parse().map_err(wrong)?;
    let user: Option<RoleName> = given(asked.sql_user.as_ref()).map(str::parse).transpose().map_err(wrong)?;
    let (host, port) = (&state.settings.sql_host, state.settings.sql_port);
    let sign_in = user.as_ref().map(|user| format!("{}@", encode_segment(user.as_str()))).unwrap_or_default();
    let root = state.settings.ca_path.as_deref().map(|path| format!("&sslrootcert={}", encode_path(path)));
    // A private cluster is found at its front door only; the name is for the certificate.
    let network = &entry.cluster.network;
    let inside = network.front_door().filter(|_| network.visibility == Visibility::Private);
    let inside = inside.map(|address| format!("&hostaddr={}", encode_segment(&address.to_string())));
    let connection_string = format!(
        "postgresql://{sign_in}{host}:{port}/{}?options=--cluster%3D{}&sslmode=verify-full{}{}",
        encode_segment(database.as_str()),
        entry.cluster.handle(),
        root.unwrap_or_default(),
        inside.unwrap_or_default(),
    );
    let params = ConnectionParameters {
        host: host.clone(),
        port: port.to_string(),
        database: database.to_string(),
        username: user.map(|user| user.to_string()),
    };
    Ok(Json(ConnectionString { connection_string, params }))
}

/// A path stays readable: slashes mean nothing in a query.
fn encode_path(path: &str) -> String {
    path.split('/').map(encode_segment).collect::<Vec<_>>().join("/")
}
