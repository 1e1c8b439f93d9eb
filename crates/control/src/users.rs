//! SQL users.

use api::{CreateSqlUser, PageQuery, SqlUser, SqlUsers};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State as Shared};
use identity::password::Unfit;
use identity::scram::Verifier;
use keys::SecretText;
use model::{ClusterId, ClusterName, RoleName};
use serde::Deserialize;
use time::OffsetDateTime;

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
    let id = entry.cluster.id;
    let users = state.administration.users(id).await?;
    let snapshot = state.store.snapshot();
    let (users, pagination) = page.cut(users.into_iter().map(|user| {
        let source = snapshot.provisioned(id, &user.name).map(|made| made.source.clone());
        (user.name.clone(), SqlUser { source, ..user })
    }));
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
    let verifier = verifier(request.password.secret().clone(), &name, &entry.cluster.name).await?;
    state.administration.create_user(entry.cluster.id, &name, &verifier).await?;
    // One of that name whom a token had made may have been removed by SQL.
    if let Err(cause) = forget_source(&state, entry.cluster.id, &name, state.clock.now()).await {
        // A user with a password would count as one that a token made.
        return Err(match state.administration.drop_user(entry.cluster.id, &name).await {
            Ok(()) => cause,
            Err(rest) => Refusal::busy(format!(
                "user {name} was made, and could not be removed again ({}) after this: {}; remove it, and create it again",
                rest.reason(),
                cause.reason()
            )),
        });
    }
    Ok(Json(SqlUser::new(request.name)))
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
    // In CockroachDB's words. A password would let somebody in whom the provider has locked out.
    if state.store.snapshot().provisioned(entry.cluster.id, role.as_str()).is_some() {
        return Err(Refusal::wrong_state(format!(
            "cannot alter PASSWORD option for provisioned user {role}"
        )));
    }
    let verifier = verifier(request.password.secret().clone(), &role, &entry.cluster.name).await?;
    state.administration.set_verifier(entry.cluster.id, &role, &verifier).await?;
    Ok(Json(SqlUser::new(name)))
}

/// Removes a user.
pub(crate) async fn destroy(
    Shared(state): Shared<State>,
    Path((id, name)): Path<(String, String)>,
) -> Result<Json<SqlUser>, Refusal> {
    let role = input::role(&name)?;
    let entry = input::made(&state.store, &id)?;
    let began = state.clock.now();
    state.administration.drop_user(entry.cluster.id, &role).await?;
    // The user is gone, whatever becomes of this; the next reading of the roles finishes it, and so does the next user of the name.
    if let Err(cause) = forget_source(&state, entry.cluster.id, &role, began).await {
        tracing::warn!(cluster = %entry.cluster.id, cause = cause.message(), "a dropped user's source is forgotten later");
    }
    Ok(Json(SqlUser::new(name)))
}

/// The next user of this name has a source of its own, or none.
async fn forget_source(
    state: &State,
    id: ClusterId,
    name: &RoleName,
    before: OffsetDateTime,
) -> Result<(), Refusal> {
    if state.store.snapshot().provisioned(id, name.as_str()).is_none() {
        return Ok(());
    }
    let (store, name) = (state.store.clone(), name.clone());
    let work = move || store.remove_provisioned(id, name.as_str(), before);
    Ok(tokio::task::spawn_blocking(work).await.map_err(Refusal::internal)??)
}

/// The password becomes a verifier here and goes no further: neither SQL nor a log of the engine ever holds it.
async fn verifier(password: SecretText, user: &RoleName, cluster: &ClusterName) -> Result<String, Refusal> {
    let (user, cluster) = (user.clone(), cluster.clone());
    let work = move || {
        identity::password::check_for(&password, &[user.as_str(), cluster.as_str()])?;
        Ok(Verifier::from_password(&password).to_string())
    };
    let made: Result<String, Unfit> = tokio::task::spawn_blocking(work).await.map_err(Refusal::internal)?;
    made.map_err(|unfit| Refusal::invalid(format_args!("{unfit}")))
}
