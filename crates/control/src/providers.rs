//! Identity providers of the cloud and of clusters. A client secret comes in and is never shown.

use std::collections::{BTreeMap, BTreeSet};

use api::{IdentityProviders, PutIdentityProvider};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use model::{
    ADMIN_ROLE, CLAIM_DEFAULT, CLOCK_SKEW_SECONDS_DEFAULT, ClusterId, IdentityProvider, ProviderName,
    RoleName,
};
use time::OffsetDateTime;

use crate::checks::{self, Plaintext};
use crate::{Refusal, State, input};

const CLOCK_SKEW_SECONDS_MAX: u32 = 300;
/// Longest client id, audience, claim, group, in characters.
const TEXT_CHARACTERS_MAX: usize = 512;
const AUDIENCES_MAX: usize = 32;
const SCOPES_MAX: usize = 32;
const GROUPS_MAX: usize = 1_000;
const SECRET_BYTES_MAX: usize = 1_024;

/// Lists those of the cloud.
pub(crate) async fn list(Shared(state): Shared<State>) -> Json<IdentityProviders> {
    let all = state.store.snapshot().own_providers(None);
    Json(IdentityProviders { providers: all.iter().map(|one| (&**one).into()).collect() })
}

/// Lists those that a cluster trusts: its own, then the cloud's.
pub(crate) async fn list_of_cluster(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<IdentityProviders>, Refusal> {
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let all = state.store.snapshot().providers(id);
    Ok(Json(IdentityProviders { providers: all.iter().map(|one| (&**one).into()).collect() }))
}

/// Adds or replaces one of the cloud.
pub(crate) async fn put(
    Shared(state): Shared<State>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<api::IdentityProvider>, Refusal> {
    keep(&state, None, &name, &body).await
}

/// Adds or replaces one of a cluster.
pub(crate) async fn put_of_cluster(
    Shared(state): Shared<State>,
    Path((id, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<api::IdentityProvider>, Refusal> {
    let id = input::cluster(&state.store, &id)?.cluster.id;
    keep(&state, Some(id), &name, &body).await
}

/// Removes one of the cloud.
pub(crate) async fn remove(
    Shared(state): Shared<State>,
    Path(name): Path<String>,
) -> Result<Json<api::IdentityProvider>, Refusal> {
    forget(&state, None, &name).await
}

/// Removes one of a cluster.
pub(crate) async fn remove_of_cluster(
    Shared(state): Shared<State>,
    Path((id, name)): Path<(String, String)>,
) -> Result<Json<api::IdentityProvider>, Refusal> {
    let id = input::cluster(&state.store, &id)?.cluster.id;
    forget(&state, Some(id), &name).await
}

async fn keep(
    state: &State,
    cluster: Option<ClusterId>,
    name: &str,
    body: &Bytes,
) -> Result<Json<api::IdentityProvider>, Refusal> {
    let request: PutIdentityProvider = input::body(body)?;
    let name = provider_name(name)?;
    let known = state.store.snapshot().own_providers(cluster).into_iter().find(|one| one.name == name);
    let force = request.force;
    let provider = read(request, known.as_deref(), cluster, name, state.clock.now())?;
    if force {
        tracing::warn!(target: "audit", provider = %provider.name, "an identity provider is set without being tried");
    } else {
        // A wrong secret or address over good ones would keep everybody out.
        state.administration.try_provider(provider.clone()).await?;
    }
    let answer = api::IdentityProvider::from(&provider);
    let store = state.store.clone();
    tokio::task::spawn_blocking(move || store.put_provider(provider)).await.map_err(Refusal::internal)??;
    Ok(Json(answer))
}

async fn forget(
    state: &State,
    cluster: Option<ClusterId>,
    name: &str,
) -> Result<Json<api::IdentityProvider>, Refusal> {
    let missing = || Refusal::not_found(format!("there is no identity provider '{name}' here"));
    let name = provider_name(name)?;
    let known = state.store.snapshot().own_providers(cluster).into_iter().find(|one| one.name == name);
    let known = known.ok_or_else(missing)?;
    let store = state.store.clone();
    let removed = tokio::task::spawn_blocking(move || store.remove_provider(cluster, &name))
        .await
        .map_err(Refusal::internal)??;
    if removed { Ok(Json((&*known).into())) } else { Err(missing()) }
}

fn provider_name(text: &str) -> Result<ProviderName, Refusal> {
    text.parse().map_err(|error| Refusal::invalid(format_args!("{error}")))
}

/// What is kept, if all of it is sound. Nothing that is refused is repeated: it may be a secret in the wrong place.
fn read(
    request: PutIdentityProvider,
    known: Option<&IdentityProvider>,
    cluster: Option<ClusterId>,
    name: ProviderName,
    now: OffsetDateTime,
) -> Result<IdentityProvider, Refusal> {
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (client_id, group_claim) = (filled(request.client_id), filled(request.group_claim));
    let (jwks, jwks_uri, ca_pem) = (filled(request.jwks), filled(request.jwks_uri), filled(request.ca_pem));
    checks::issuer(&request.issuer)?;
    if let Some(uri) = &jwks_uri {
        checks::url("jwks_uri", uri, Plaintext::OnLoopback)?;
    }
    if let Some(keys) = &jwks {
        checks::jwks(keys)?;
    }
    if jwks.is_some() && jwks_uri.is_some() {
        return Err(Refusal::invalid("`jwks` and `jwks_uri` are two sources of keys; give one of them"));
    }
    if let Some(pem) = &ca_pem {
        checks::roots("ca_pem", pem)?;
    }
    let claim = filled(request.claim).unwrap_or_else(|| CLAIM_DEFAULT.to_owned());
    let texts = [("client_id", &client_id), ("group_claim", &group_claim)];
    for (what, text) in texts.into_iter().filter_map(|(what, text)| Some((what, text.as_ref()?))) {
        plain(what, text)?;
    }
    plain("claim", &claim)?;
    if request.audiences.len() > AUDIENCES_MAX {
        return Err(Refusal::invalid(format_args!("at most {AUDIENCES_MAX} audiences are kept")));
    }
    request.audiences.iter().try_for_each(|audience| plain("an audience", audience))?;
    if request.audiences.is_empty() && client_id.is_none() {
        return Err(Refusal::invalid(
            "without `client_id` and `audiences` no token could be meant for this cloud; give one of them",
        ));
    }
    let clock_skew_seconds = request.clock_skew_seconds.unwrap_or(CLOCK_SKEW_SECONDS_DEFAULT);
    if clock_skew_seconds > CLOCK_SKEW_SECONDS_MAX {
        return Err(Refusal::invalid(format_args!("clock_skew_seconds is at most {CLOCK_SKEW_SECONDS_MAX}")));
    }
    if group_claim.is_none() && !request.group_roles.is_empty() {
        return Err(Refusal::invalid("`group_roles` need a `group_claim` that lists the groups"));
    }
    let client_secret = secret(request.client_secret.as_ref(), known, &request.issuer, client_id.as_deref())?;
    Ok(IdentityProvider {
        name,
        cluster,
        issuer: request.issuer,
        client_id,
        client_secret,
        audiences: request.audiences,
        claim,
        jwks,
        jwks_uri,
        ca_pem,
        scopes: scopes(request.scopes)?,
        clock_skew_seconds,
        group_claim,
        group_roles: group_roles(request.group_roles)?,
        provisions: request.provisions,
        updated_at: now,
    })
}

/// The secret to keep. One that is known stays with its issuer: sent to another, it would be given away by whoever may
/// change providers and may not read secrets.
fn secret(
    given: Option<&api::Password>,
    known: Option<&IdentityProvider>,
    issuer: &str,
    client_id: Option<&str>,
) -> Result<Option<String>, Refusal> {
    let given = given.map(|secret| secret.secret().expose());
    let kept = match given {
        Some("") => None,
        Some(secret) => {
            if secret.len() > SECRET_BYTES_MAX || secret.chars().any(char::is_control) {
                return Err(Refusal::invalid(format_args!(
                    "client_secret has at most {SECRET_BYTES_MAX} bytes and no control characters"
                )));
            }
            Some(secret.to_owned())
        }
        None => {
            let secret = known.and_then(|known| known.client_secret.clone());
            if secret.is_some() && known.is_some_and(|known| known.issuer != issuer) {
                return Err(Refusal::invalid(
                    "the issuer changes, and the client secret that is kept belongs to the one before; give \
                     `client_secret` too, or an empty one to take it away",
                ));
            }
            secret
        }
    };
    if kept.is_some() && client_id.is_none() {
        return Err(Refusal::invalid(
            "a client secret needs its `client_id`; give it, or an empty `client_secret`",
        ));
    }
    Ok(kept)
}

/// Scope tokens as RFC 6749 section 3.3 allows them; `openid` first, because without it no ID token comes.
fn scopes(asked: Vec<String>) -> Result<Vec<String>, Refusal> {
    let scopes = if asked.is_empty() { vec!["openid".to_owned()] } else { asked };
    let is_token = |scope: &String| {
        let is_allowed = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        !scope.is_empty() && scope.len() <= TEXT_CHARACTERS_MAX && scope.bytes().all(is_allowed)
    };
    if scopes.len() > SCOPES_MAX || !scopes.iter().all(is_token) {
        return Err(Refusal::invalid(format_args!(
            "scopes are at most {SCOPES_MAX} words without spaces, quotes and backslashes"
        )));
    }
    if scopes.first().is_none_or(|scope| scope != "openid") {
        return Err(Refusal::invalid("the first scope is `openid`"));
    }
    Ok(scopes)
}

/// `admin` may be given because the operator says so here; other roles of ours never are.
fn group_roles(asked: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refusal> {
    if asked.len() > GROUPS_MAX {
        return Err(Refusal::invalid(format_args!("at most {GROUPS_MAX} groups are mapped")));
    }
    let mut seen = BTreeSet::new();
    for (group, role) in &asked {
        plain("a group", group)?;
        // Groups are compared without regard to case.
        if !seen.insert(group.to_lowercase()) {
            return Err(Refusal::invalid("two groups differ only in upper and lower case; keep one of them"));
        }
        let role: RoleName = role.parse().map_err(|error: model::InvalidName| {
            Refusal::invalid(format_args!("a role of group_roles: {error}"))
        })?;
        if role.is_reserved() && role.as_str() != ADMIN_ROLE {
            return Err(Refusal::invalid(format_args!(
                "the role '{role}' is reserved; no group can give it"
            )));
        }
    }
    Ok(asked)
}

fn plain(what: &str, text: &str) -> Result<(), Refusal> {
    let length = text.chars().count();
    if length == 0 || length > TEXT_CHARACTERS_MAX || text.chars().any(char::is_control) {
        return Err(Refusal::invalid(format_args!(
            "{what} has 1 to {TEXT_CHARACTERS_MAX} characters and no control characters"
        )));
    }
    Ok(())
}
