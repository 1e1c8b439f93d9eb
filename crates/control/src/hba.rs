//! The rules that say who signs in how.

use std::net::IpAddr;

use api::{Hba, HbaVerdict, SignInText, TestHba};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use model::{DatabaseName, RoleName};

use crate::checks::{self, Client, Surroundings};
use crate::{Refusal, State, input};

/// Most roles that a test may name.
const ROLES_MAX: usize = 1_000;

/// Shows the rules in force.
pub(crate) async fn show(Shared(state): Shared<State>, Path(id): Path<String>) -> Result<Json<Hba>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    let providers = state.store.snapshot().providers(entry.cluster.id);
    let around = Surroundings { sign_in: &entry.cluster.sign_in, providers: &providers };
    Ok(Json(checks::hba(entry.cluster.sign_in.hba.as_deref(), &around)?))
}

/// Sets the rules, or goes back to the default with an empty text. They hold for new connections.
pub(crate) async fn put(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Hba>, Refusal> {
    let text = input::body::<SignInText>(&body)?.text;
    let wanted = Some(text).filter(|text| !text.trim().is_empty());
    let entry = input::cluster(&state.store, &id)?;
    let providers = state.store.snapshot().providers(entry.cluster.id);
    let around = Surroundings { sign_in: &entry.cluster.sign_in, providers: &providers };
    let answer = checks::new_hba(wanted.as_deref(), &around)?;
    input::edit(&state, entry.cluster.id, move |cluster| {
        cluster.sign_in.hba = wanted;
        Ok(())
    })
    .await?;
    Ok(Json(answer))
}

/// Says which rule a client would meet, and why. Nothing is tried, and nobody need exist.
pub(crate) async fn test(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<HbaVerdict>, Refusal> {
    let request: TestHba = input::body(&body)?;
    let wrong = |error: model::InvalidName| Refusal::invalid(format_args!("{error}"));
    let user: RoleName = request.user.parse().map_err(wrong)?;
    let database: DatabaseName = request.database.parse().map_err(wrong)?;
    let address: IpAddr = request
        .address
        .parse()
        .map_err(|_| Refusal::invalid("`address` is an IP address, for instance 203.0.113.7"))?;
    let entry = input::cluster(&state.store, &id)?;
    let roles = match request.roles {
        Some(roles) if roles.len() > ROLES_MAX => {
            return Err(Refusal::invalid(format_args!("at most {ROLES_MAX} roles are looked at")));
        }
        Some(roles) => roles,
        None => entry.roles.inherited([user.as_str()]),
    };
    let client = Client {
        user: user.as_str(),
        database: database.as_str(),
        roles: &roles,
        address: model::canonical(address),
        method: request.method.as_deref(),
    };
    checks::hba_test(entry.cluster.sign_in.hba.as_deref(), &client).map(Json)
}
