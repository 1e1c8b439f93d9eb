//! Attacks on customer-managed keys, with a keeper of keys of our own: another version, revoked, given back, silent.

use std::time::Duration;

use api::{
    CmekKeySpec, CmekRegionSpec, CmekSpecification, Password, PutKeyCredentials, PutKeyService, SecretText,
};
use model::{CmekStatus, Encryption, KeyType};
use tokio::time::{Instant, sleep};

use super::keeper::{Keeper, Mood};
use super::row::{Row, Verdict};
use super::session::{Attempt, Channel, Claim, Encrypted, Session, enter, sign_in};
use super::stage::{Stage, USER};
use super::wire::{Fault, Refusal};

const FEATURE: &str = "customer-managed keys";
const KEY: &str = "transit/keys/verify";
/// For a change of keys to be carried out. A key service that trouble was seen with is asked every few seconds.
const CHANGE_MAX: Duration = Duration::from_secs(45);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Every attack of this file. At the end the root key wraps the data key again, and the key service is gone.
pub async fn attack(stage: &Stage<'_>) -> Vec<Row> {
    let claims = [
        "the data key is wrapped by the customer's key, and another version needs no data rewritten",
        "a revoked key cuts sessions, leaves the kernel and keeps the cluster from starting",
        "given back at its service, the cluster comes back by itself",
        "a silent key service lets a running cluster run and refuses a start with the reason",
    ];
    let name = format!("verify-{}", stage.target.handle.rsplit('-').next().unwrap_or_default());
    let verdicts = match play(stage, &name).await {
        Ok(verdicts) => verdicts,
        Err(Stop::Missing(why)) => claims.iter().map(|_| Verdict::missing(why.clone())).collect(),
        Err(Stop::Broken(fault)) => claims.iter().map(|_| Verdict::failed(fault.to_string())).collect(),
    };
    let _ = put_back(stage, &name).await;
    claims.iter().zip(verdicts).map(|(claim, verdict)| verdict.on(FEATURE, claim)).collect()
}

/// Why the play ended early.
enum Stop {
    Missing(String),
    Broken(Fault),
}

impl<E: Into<Fault>> From<E> for Stop {
    fn from(fault: E) -> Self {
        Self::Broken(fault.into())
    }
}

async fn play(stage: &Stage<'_>, name: &str) -> Result<Vec<Verdict>, Stop> {
    let (api, id) = (&stage.cloud.api, stage.id);
    let keeper = Keeper::open().await?;
    let service = PutKeyService {
        kind: KeyType::Vault,
        address: keeper.url(),
        ca_pem: None,
        namespace: None,
        credentials: Some(PutKeyCredentials {
            token: Some(Password::new(SecretText::new("verify-token".to_owned()))),
            ..PutKeyCredentials::default()
        }),
        force: false,
    };
    api.put_key_service(name, &service).await.map_err(setup)?;
    let encryption = api.cluster_keys(id).await.map_err(setup)?.facts.encryption;
    if let Some(kind @ (Encryption::None | Encryption::Attested)) = encryption {
        return Err(Stop::Missing(format!(
            "the files are not encrypted by Chitin ({}), so no key of a customer's would lock them",
            kind.as_str()
        )));
    }
    api.enable_cmek(id, &wanted(KeyType::Vault, KEY, Some(name))).await.map_err(setup)?;
    let enabled = reach(stage, |status| status != CmekStatus::Enabling).await?;
    if enabled != CmekStatus::Enabled {
        let told = api.cluster_keys(id).await.map_err(setup)?;
        return Err(Stop::Missing(format!(
            "the cloud may not reach {} (chitin start --fetch-allow 127.0.0.1/32): {}",
            keeper.url(),
            told.failure.unwrap_or_else(|| enabled.as_str().to_owned())
        )));
    }
    let verdicts = vec![
        Verdict::from(another_version(stage, &keeper, name).await),
        Verdict::from(revoked(stage, &keeper).await),
        Verdict::from(given_back(stage, &keeper).await),
        Verdict::from(silent(stage, &keeper).await),
    ];
    // The keeper must live for this: what it wrapped goes over to the root key.
    keeper.set(Mood::Willing);
    // Should it fail, it is tried once more outside, and the verdicts count all the same.
    let _ = put_back(stage, name).await;
    Ok(verdicts)
}

/// Takes the key service away, and before that the need for it.
async fn put_back(stage: &Stage<'_>, name: &str) -> Result<(), Fault> {
    let (api, id) = (&stage.cloud.api, stage.id);
    if api.cmek(id).await.map_err(setup)?.status != CmekStatus::Disabled {
        // Revoked still, if an attack broke off.
        api.restore_key(id).await.map_err(setup)?;
        api.update_cmek(id, &wanted(KeyType::Null, "", None)).await.map_err(setup)?;
        reach(stage, |status| status == CmekStatus::Enabled).await?;
    }
    match api.delete_key_service(name).await {
        Ok(_) | Err(api::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(setup(error)),
    }
}

async fn another_version(stage: &Stage<'_>, keeper: &Keeper, name: &str) -> Result<Verdict, Fault> {
    let (api, id) = (&stage.cloud.api, stage.id);
    let before = api.cluster_keys(id).await.map_err(setup)?.facts;
    let kind = before.wrapped_by.as_ref().map(|spec| spec.kind);
    if kind != Some(KeyType::Vault) {
        return Ok(Verdict::failed(format!("the key file says that {kind:?} wraps the data key")));
    }
    keeper.rotate()?;
    api.update_cmek(id, &wanted(KeyType::Vault, KEY, Some(name))).await.map_err(setup)?;
    reach(stage, |status| status == CmekStatus::Enabled).await?;
    let after = api.cluster_keys(id).await.map_err(setup)?.facts;
    if after.key_version == before.key_version {
        return Ok(Verdict::failed(format!("version {} still wraps the data key", after.key_version)));
    }
    Ok(Verdict::proven(format!(
        "key.json: {KEY}, version {} and then {}; the data key is the same",
        before.key_version, after.key_version
    )))
}

async fn revoked(stage: &Stage<'_>, keeper: &Keeper) -> Result<Verdict, Fault> {
    let (api, id) = (&stage.cloud.api, stage.id);
    let mut session = session(stage).await?;
    keeper.set(Mood::Denying);
    api.revoke_cmek(id).await.map_err(setup)?;
    let Some(cut) = end_of(&mut session.wire).await? else {
        return Ok(Verdict::failed("an open session was not ended"));
    };
    if reach(stage, |status| status == CmekStatus::Revoked).await? != CmekStatus::Revoked {
        return Ok(Verdict::failed("the cluster did not become REVOKED in time"));
    }
    // Until the service's no was heard, its yes would end nothing.
    let end = Instant::now() + CHANGE_MAX;
    while api.cluster_keys(id).await.map_err(setup)?.denied.is_none() {
        if Instant::now() > end {
            return Ok(Verdict::failed("the service's denial was not noticed"));
        }
        sleep(LOOK_EVERY).await;
    }
    let facts = api.cluster_keys(id).await.map_err(setup)?.facts;
    if facts.is_unlocked == Some(true) {
        return Ok(Verdict::failed("the kernel still has the data key"));
    }
    let refused = match attempt(stage).await? {
        Attempt { session: Some(_), .. } => return Ok(Verdict::failed("the cluster started all the same")),
        Attempt { refusal, .. } => refusal.map(|refusal| refusal.to_string()).unwrap_or_default(),
    };
    if api.wake(id).await.is_ok() {
        return Ok(Verdict::failed("the cluster was woken all the same"));
    }
    let kernel = facts.volume_evidence.unwrap_or_default();
    Ok(Verdict::proven(format!("session: {cut}; {kernel}; sign-in: {refused}")))
}

async fn given_back(stage: &Stage<'_>, keeper: &Keeper) -> Result<Verdict, Fault> {
    keeper.set(Mood::Willing);
    let began = Instant::now();
    let status = reach(stage, |status| status == CmekStatus::Enabled).await?;
    if status != CmekStatus::Enabled {
        return Ok(Verdict::failed(format!("it is still {}", status.as_str())));
    }
    session(stage).await?;
    Ok(Verdict::proven(format!(
        "signed in again {} s after, and nobody did anything",
        began.elapsed().as_secs()
    )))
}

async fn silent(stage: &Stage<'_>, keeper: &Keeper) -> Result<Verdict, Fault> {
    let (api, id) = (&stage.cloud.api, stage.id);
    let mut running = session(stage).await?;
    keeper.set(Mood::Silent);
    if running.wire.value("select 40 + 2").await? != "42" {
        return Ok(Verdict::failed("a running session was ended"));
    }
    drop(running);
    api.sleep(id, false).await.map_err(setup)?;
    let refused = match attempt(stage).await? {
        Attempt { session: Some(_), .. } => return Ok(Verdict::failed("it started without its key")),
        Attempt { refusal, .. } => refusal.map(|refusal| refusal.to_string()).unwrap_or_default(),
    };
    keeper.set(Mood::Willing);
    let end = Instant::now() + CHANGE_MAX;
    while attempt(stage).await?.session.is_none() {
        if Instant::now() > end {
            return Ok(Verdict::failed("it does not start although the service answers again"));
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(Verdict::proven(format!("sign-in: {refused}; started by itself afterwards")))
}

fn wanted(kind: KeyType, uri: &str, service: Option<&str>) -> CmekSpecification {
    let key_spec = CmekKeySpec {
        kind,
        uri: uri.to_owned(),
        auth_principal: String::new(),
        service: service.map(str::to_owned),
    };
    CmekSpecification {
        region_specs: vec![CmekRegionSpec { region: super::stage::REGION.to_owned(), key_spec }],
    }
}

/// Waits until CMEK stands so, or for as long as a change may take; tells where it stands.
async fn reach(stage: &Stage<'_>, is_there: impl Fn(CmekStatus) -> bool) -> Result<CmekStatus, Fault> {
    let end = Instant::now() + CHANGE_MAX;
    loop {
        let status = stage.cloud.api.cmek(stage.id).await.map_err(setup)?.status;
        if is_there(status) || Instant::now() > end {
            return Ok(status);
        }
        sleep(LOOK_EVERY).await;
    }
}

fn claim<'a>(stage: &'a Stage<'_>) -> Claim<'a> {
    let password = stage.password.expose();
    Claim { handle: &stage.target.handle, user: USER, password, channel: Channel::Bound, source: None }
}

async fn attempt(stage: &Stage<'_>) -> Result<Attempt, Fault> {
    sign_in(&stage.target, claim(stage)).await
}

async fn session(stage: &Stage<'_>) -> Result<Session, Fault> {
    enter(&stage.target, claim(stage)).await
}

/// The reason with which the server ends a session; `None` if it does not.
async fn end_of(wire: &mut Encrypted) -> Result<Option<String>, Fault> {
    match wire.receive(CHANGE_MAX).await {
        Ok(message) if message.tag == b'E' => Ok(Some(Refusal::parse(&message.body).to_string())),
        Ok(_) | Err(Fault::Silent(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

fn setup(error: api::Error) -> Fault {
    Fault::Setup(error.to_string())
}
