//! SQL users.

use api::{CreateSqlUser, PageQuery, SqlUser, SqlUsers};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State as Shared};
use identity::scram::Verifier;
use keys::SecretText;
use serde::Deserialize;

use crate::page::Page;
use crate::{Refusal, State, input};

/// Lists users.
pub(crate) async fn list(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<SqlUsers>, Refusal> {
    let page = Page::read("sql-users", &query)?;
    let entry = input::made(&state.store, &id)?;
    let names = state.administration.users(entry.cluster.id).await?;
    let (users, pagination) = page.cut(names.into_iter().map(|name| (name.clone(), SqlUser { name })));
    Ok(Json(SqlUsers { users, pagination }))
}

/// Makes a user.
pub(crate) async fn create(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<SqlUser>, Refusal> {
    let request: CreateSqlUser = input::body(&body)?;
    let name = input::role(&request.name)?;
    let entry = input::made(&state.store, &id)?;
    let verifier = verifier(request.password.secret().clone()).await?;
    state.administration.create_user(entry.cluster.id, &name, &verifier).await?;
    Ok(Json(SqlUser { name: request.name }))
}

/// Sets a user's password.
pub(crate) async fn set_password(
    Shared(state): Shared<State>,
    Path((id, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<SqlUser>, Refusal> {
    #[derive(Deserialize)]
    struct Change {
        password: api::Password,
    }
    let request: Change = input::body(&body)?;
    let role = input::role(&name)?;
    let entry = input::made(&state.store, &id)?;
    let verifier = verifier(request.password.secret().clone()).await?;
    state.administration.set_verifier(entry.cluster.id, &role, &verifier).await?;
    Ok(Json(SqlUser { name }))
}

/// Removes a user.
pub(crate) async fn destroy(
    Shared(state): Shared<State>,
    Path((id, name)): Path<(String, String)>,
) -> Result<Json<SqlUser>, Refusal> {
    let role = input::role(&name)?;
    let entry = input::made(&state.store, &id)?;
    state.administration.drop_user(entry.cluster.id, &role).await?;
    Ok(Json(SqlUser { name }))
}

/// The password becomes a verifier here and goes no further: neither SQL nor a log of the engine ever holds it.
async fn verifier(password: SecretText) -> Result<String, Refusal> {
    identity::password::check(&password).map_err(|unfit| Refusal::invalid(format_args!("{unfit}")))?;
    tokio::task::spawn_blocking(move || Verifier::from_password(&password).to_string())
        .await
        .map_err(Refusal::internal)
}
