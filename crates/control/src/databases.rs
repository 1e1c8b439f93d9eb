//! Databases.

use api::{CreateDatabase, Database, Databases, PageQuery, RenameDatabase, RenameNamedDatabase};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State as Shared};

use crate::page::Page;
use crate::{Refusal, State, input};

/// Lists databases.
pub(crate) async fn list(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Databases>, Refusal> {
    let page = Page::read("databases", &query)?;
    let entry = input::made(&state.store, &id)?;
    let all = state.administration.databases(entry.cluster.id).await?;
    let (databases, pagination) = page.cut(all.into_iter().map(|database| (database.name.clone(), database)));
    Ok(Json(Databases { databases, pagination }))
}

/// Makes a database.
pub(crate) async fn create(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Database>, Refusal> {
    let request: CreateDatabase = input::body(&body)?;
    let name = input::database(&request.name)?;
    let entry = input::made(&state.store, &id)?;
    state.administration.create_database(entry.cluster.id, &name).await?;
    Ok(Json(Database { name: request.name, table_count: Some(0) }))
}

/// Renames the database that the path names.
pub(crate) async fn rename(
    Shared(state): Shared<State>,
    Path((id, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<Database>, Refusal> {
    let request: RenameDatabase = input::body(&body)?;
    move_name(&state, &id, &name, request.new_name).await
}

/// Renames the database that the body names.
pub(crate) async fn rename_named(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Database>, Refusal> {
    let request: RenameNamedDatabase = input::body(&body)?;
    move_name(&state, &id, &request.name, request.new_name).await
}

async fn move_name(state: &State, id: &str, from: &str, to: String) -> Result<Json<Database>, Refusal> {
    let (old, new) = (input::database(from)?, input::database(&to)?);
    let entry = input::made(&state.store, id)?;
    state.administration.rename_database(entry.cluster.id, &old, &new).await?;
    Ok(Json(Database { name: to, table_count: None }))
}

/// Removes a database.
pub(crate) async fn destroy(
    Shared(state): Shared<State>,
    Path((id, name)): Path<(String, String)>,
) -> Result<Json<Database>, Refusal> {
    let database = input::database(&name)?;
    let entry = input::made(&state.store, &id)?;
    state.administration.drop_database(entry.cluster.id, &database).await?;
    Ok(Json(Database { name, table_count: None }))
}
