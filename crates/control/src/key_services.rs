//! Services that keep customers' keys. A secret comes in and is never shown.

use api::{KeyServices, PutKeyCredentials, PutKeyService, TestKey, TestedKey};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use model::{
    ClusterId, ClusterName, KeptSecret, KeyCredentials, KeyService, KeyServiceName, KeySpec, KeyType, Wish,
};
use store::{Entry, Snapshot};

use crate::{KeyInUse, Refusal, State, checks, input};

const ROLE_MOUNT_DEFAULT: &str = "approle";
/// Most keys on which a key service is tried before it replaces the one that is there.
const KEYS_TRIED_MAX: usize = 16;
/// Most clusters that a refusal names.
const CLUSTERS_NAMED_MAX: usize = 10;

/// Lists them by name.
pub(crate) async fn list(Shared(state): Shared<State>) -> Json<KeyServices> {
    let snapshot = state.store.snapshot();
    let mut key_services: Vec<api::KeyService> =
        snapshot.key_services().map(|service| (&**service).into()).collect();
    key_services.sort_by(|one, other| one.name.cmp(&other.name));
    Json(KeyServices { key_services })
}

/// Shows one.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path(name): Path<String>,
) -> Result<Json<api::KeyService>, Refusal> {
    let name = service_name(&name)?;
    let snapshot = state.store.snapshot();
    let service = snapshot.key_service(&name).ok_or_else(|| missing(&name))?;
    Ok(Json((&**service).into()))
}

/// Adds or replaces one. One that clusters use is tried on their keys first: a wrong secret would stop every one of them from
/// waking.
pub(crate) async fn put(
    Shared(state): Shared<State>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<api::KeyService>, Refusal> {
    let request: PutKeyService = input::body(&body)?;
    let name = service_name(&name)?;
    if matches!(request.kind, KeyType::Null | KeyType::Azure) {
        return Err(no_such_kind());
    }
    let known = state.store.snapshot().key_service(&name).cloned();
    if known.as_ref().is_some_and(|known| known.kind != request.kind) {
        return Err(Refusal::invalid(format_args!(
            "a key service keeps its type; remove '{name}' first, or choose another name"
        )));
    }
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let mut service = KeyService {
        name,
        kind: request.kind,
        address: request.address,
        ca_pem: filled(request.ca_pem),
        namespace: filled(request.namespace),
        // Replaced below, once it is known what it belongs to.
        credentials: KeyCredentials::VaultToken(KeptSecret::new(String::new())),
        updated_at: input::now(&state),
    };
    let kept = known.as_deref().filter(|known| is_same_place(known, &service));
    service.credentials = credentials(request.kind, request.credentials, kept, known.is_some())?;
    checks::key_service(&service)?;
    if known.is_some() {
        let keys = in_use(&service.name, &state.store.snapshot());
        if request.force {
            tracing::warn!(target: "audit", service = %service.name, keys = keys.len(), "a key service is set without being tried");
        } else if !keys.is_empty() {
            state.administration.try_key_service(&service, &keys).await?;
        }
    }
    let answer = api::KeyService::from(&service);
    let store = state.store.clone();
    tokio::task::spawn_blocking(move || store.put_key_service(service))
        .await
        .map_err(Refusal::internal)??;
    Ok(Json(answer))
}

/// Removes one that no cluster needs.
pub(crate) async fn remove(
    Shared(state): Shared<State>,
    Path(name): Path<String>,
) -> Result<Json<api::KeyService>, Refusal> {
    let name = service_name(&name)?;
    let known = state.store.snapshot().key_service(&name).cloned().ok_or_else(|| missing(&name))?;
    let (store, gone) = (state.store.clone(), name.clone());
    let removed =
        tokio::task::spawn_blocking(move || store.remove_key_service(&gone, |all| not_needed(&gone, all)))
            .await
            .map_err(Refusal::internal)??;
    if removed { Ok(Json((&*known).into())) } else { Err(missing(&name)) }
}

/// Wraps and unwraps a throw-away data key.
pub(crate) async fn test(
    Shared(state): Shared<State>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<TestedKey>, Refusal> {
    let request: TestKey = input::body(&body)?;
    let name = service_name(&name)?;
    let snapshot = state.store.snapshot();
    let kind = snapshot.key_service(&name).ok_or_else(|| missing(&name))?.kind;
    checks::key(kind, &request.uri, &request.auth_principal)?;
    let cluster = request.cluster.map(|text| cluster(&snapshot, &text)).transpose()?;
    let spec =
        KeySpec { kind, uri: request.uri, auth_principal: request.auth_principal, service: Some(name) };
    state.administration.try_key(&spec, cluster).await?;
    Ok(Json(TestedKey { key_spec: (&spec).into() }))
}

fn service_name(text: &str) -> Result<KeyServiceName, Refusal> {
    text.parse().map_err(|error| Refusal::invalid(format_args!("{error}")))
}

fn missing(name: &KeyServiceName) -> Refusal {
    Refusal::not_found(format!("there is no key service '{name}'"))
}

fn cluster(snapshot: &Snapshot, text: &str) -> Result<ClusterId, Refusal> {
    let by_id = text.parse::<ClusterId>().ok().and_then(|id| snapshot.get(&id));
    let by_name = || snapshot.by_name(&text.parse::<ClusterName>().ok()?);
    let by_handle = || snapshot.by_handle(&text.parse().ok()?);
    let found = by_id.or_else(by_name).or_else(by_handle);
    found.map(|entry| entry.cluster.id).ok_or_else(|| {
        Refusal::not_found("`cluster` names no cluster; give its id, its name or its NAME-NUMBER")
    })
}

/// The keys that wrap data keys through the service, each once and with one of its clusters; those that are not denied come
/// first, since they have something to lose.
fn in_use(name: &KeyServiceName, all: &Snapshot) -> Vec<KeyInUse> {
    let uses = all.iter().filter(|entry| entry.cluster.wish != Wish::Deleted).filter_map(|entry| {
        let spec = entry.seen.keys.wrapped_by.clone()?;
        (spec.service.as_ref() == Some(name)).then(|| KeyInUse {
            spec,
            cluster: entry.cluster.id,
            cluster_name: entry.cluster.name.clone(),
            is_denied: entry.seen.keys.denied.is_some(),
        })
    });
    let mut uses: Vec<KeyInUse> = uses.collect();
    uses.sort_by(|one, other| {
        (one.is_denied, &one.cluster_name).cmp(&(other.is_denied, &other.cluster_name))
    });
    let mut keys: Vec<KeyInUse> = Vec::new();
    for one in uses {
        if keys.len() < KEYS_TRIED_MAX && keys.iter().all(|known| known.spec != one.spec) {
            keys.push(one);
        }
    }
    keys
}

/// Clusters whose data key could not be opened any more without the service.
fn not_needed(name: &KeyServiceName, all: &Snapshot) -> Result<(), Refusal> {
    let leads_there = |spec: &KeySpec| spec.service.as_ref() == Some(name);
    let needs = |entry: &Entry| {
        let (wish, seen) = (&entry.cluster.keys, &entry.seen.keys);
        wish.cmek.as_ref().is_some_and(leads_there) || seen.wrapped_by.as_ref().is_some_and(leads_there)
    };
    let exist = all.iter().filter(|entry| entry.cluster.wish != Wish::Deleted);
    let mut names: Vec<&str> =
        exist.filter(|entry| needs(entry)).map(|entry| entry.cluster.name.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    names.sort_unstable();
    let count = names.len();
    names.truncate(CLUSTERS_NAMED_MAX);
    Err(Refusal::wrong_state(format!(
        "{count} cluster(s) could not be opened without the key service '{name}': {}; go over to another key first: \
         chitin key rotate CLUSTER --uri URI",
        names.join(", ")
    )))
}

/// Whether a secret that was meant for the one would go to the same place with the other.
fn is_same_place(known: &KeyService, wanted: &KeyService) -> bool {
    let place = |service: &KeyService| {
        (service.kind, service.address.clone(), service.ca_pem.clone(), service.namespace.clone())
    };
    place(known) == place(wanted)
}

/// How we sign in from now on. A secret that is known stays at its place and with whom it belongs to: sent elsewhere, it
/// would be given away by whoever may change services and may not read secrets.
fn credentials(
    kind: KeyType,
    given: Option<PutKeyCredentials>,
    kept: Option<&KeyService>,
    is_known: bool,
) -> Result<KeyCredentials, Refusal> {
    let kept = kept.map(|service| &service.credentials);
    let again = |what: &str| {
        Refusal::invalid(if is_known {
            format!(
                "where the secret goes to or whose it is changes, and the one that is kept belongs to the place before; \
                 give {what} again"
            )
        } else {
            format!("a new key service of type {} needs {what}", kind.as_str())
        })
    };
    let Some(given) = given else {
        return kept.cloned().ok_or_else(|| again(wanted(kind)));
    };
    only(kind, &given)?;
    let secret = |given: &Option<api::Password>| {
        given.as_ref().map(|secret| KeptSecret::new(secret.secret().expose().to_owned()))
    };
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    match kind {
        KeyType::Vault => match (secret(&given.token), given.role_id) {
            (Some(_), Some(_)) => {
                Err(Refusal::invalid("`token` and `role_id` are two ways to sign in; give one of them"))
            }
            (Some(token), None) => Ok(KeyCredentials::VaultToken(token)),
            (None, Some(role_id)) => {
                let mount = filled(given.role_mount).unwrap_or_else(|| ROLE_MOUNT_DEFAULT.to_owned());
                let known = kept_secret_id(kept, &role_id, &mount);
                let secret_id = secret(&given.secret_id).or(known).ok_or_else(|| again("`secret_id`"))?;
                Ok(KeyCredentials::VaultAppRole { role_id, secret_id, mount })
            }
            (None, None) => Err(again(wanted(kind))),
        },
        KeyType::Aws => {
            let access_key_id = given.access_key_id.ok_or_else(|| again(wanted(kind)))?;
            let external_id = filled(given.external_id);
            if let Some(secret_access_key) = secret(&given.secret_access_key) {
                let session_token = secret(&given.session_token);
                return Ok(KeyCredentials::AwsAccessKey {
                    access_key_id,
                    secret_access_key,
                    session_token,
                    external_id,
                });
            }
            let (secret_access_key, known_session) =
                kept_access_key(kept, &access_key_id).ok_or_else(|| again("`secret_access_key`"))?;
            let session_token = secret(&given.session_token).or(known_session);
            Ok(KeyCredentials::AwsAccessKey { access_key_id, secret_access_key, session_token, external_id })
        }
        KeyType::Gcp => secret(&given.credentials_json)
            .map(KeyCredentials::GcpServiceAccount)
            .ok_or_else(|| again(wanted(kind))),
        KeyType::Pkcs11 => {
            secret(&given.pin).map(KeyCredentials::Pkcs11Pin).ok_or_else(|| again(wanted(kind)))
        }
        KeyType::Null | KeyType::Azure => Err(no_such_kind()),
    }
}

/// The secret id that is kept, if it is this role's at this mount.
fn kept_secret_id(kept: Option<&KeyCredentials>, role_id: &str, mount: &str) -> Option<KeptSecret> {
    if let Some(KeyCredentials::VaultAppRole { role_id: id, mount: at, secret_id }) = kept
        && (id.as_str(), at.as_str()) == (role_id, mount)
    {
        return Some(secret_id.clone());
    }
    None
}

/// The secret and the session token that are kept, if they are this access key's.
fn kept_access_key(
    kept: Option<&KeyCredentials>,
    access_key_id: &str,
) -> Option<(KeptSecret, Option<KeptSecret>)> {
    if let Some(KeyCredentials::AwsAccessKey { access_key_id: id, secret_access_key, session_token, .. }) =
        kept
        && id == access_key_id
    {
        return Some((secret_access_key.clone(), session_token.clone()));
    }
    None
}

/// What belongs to another type of service was sent to the wrong one.
fn only(kind: KeyType, given: &PutKeyCredentials) -> Result<(), Refusal> {
    let vault = given.token.is_some()
        || given.role_id.is_some()
        || given.secret_id.is_some()
        || given.role_mount.is_some();
    let aws = given.access_key_id.is_some()
        || given.secret_access_key.is_some()
        || given.session_token.is_some()
        || given.external_id.is_some();
    let (gcp, pkcs11) = (given.credentials_json.is_some(), given.pin.is_some());
    let is_foreign = match kind {
        KeyType::Vault => aws || gcp || pkcs11,
        KeyType::Aws => vault || gcp || pkcs11,
        KeyType::Gcp => vault || aws || pkcs11,
        KeyType::Pkcs11 => vault || aws || gcp,
        KeyType::Null | KeyType::Azure => return Err(no_such_kind()),
    };
    if is_foreign {
        return Err(Refusal::invalid(format_args!(
            "a key service of type {} takes {}, and nothing else",
            kind.as_str(),
            wanted(kind)
        )));
    }
    Ok(())
}

fn wanted(kind: KeyType) -> &'static str {
    match kind {
        KeyType::Vault => "`token`, or `role_id` with `secret_id`",
        KeyType::Aws => "`access_key_id` with `secret_access_key`",
        KeyType::Gcp => "`credentials_json`",
        KeyType::Pkcs11 => "`pin`",
        KeyType::Null | KeyType::Azure => "another type",
    }
}

fn no_such_kind() -> Refusal {
    Refusal::invalid("a key service is one of VAULT_TRANSIT, AWS_KMS, GCP_CLOUD_KMS and PKCS11")
}
