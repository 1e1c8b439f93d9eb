//! `chitin key`: list, enable, rotate, revoke, restore.

use std::time::Duration;

use api::{
    ClusterKeys, CmekClusterInfo, CmekKeySpec, CmekRegionSpec, CmekSpecification, CopyProgress, KeyList,
    RootKey,
};
use model::{ClusterId, CmekStatus, Encryption, KeyType};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use crate::cloud::{Cloud, goes_on};
use crate::command::key::{KeyCommand, KeyEnable, KeyRotate, KeyTypeName};
use crate::failure::{Failure, Kind};
use crate::output::{Printer, facts, table};
use crate::{confirm, key_services};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// For a data key to be wrapped anew, or a cluster to be locked.
const SETTLE_MAX: Duration = Duration::from_secs(120);
/// A failure that stays for so long is this demand's, and not one of before.
const FAILURE_STAYS: Duration = Duration::from_secs(6);
/// For a volume that is encrypted anew to get on at all.
const STANDSTILL_MAX: Duration = Duration::from_secs(600);

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: KeyCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        KeyCommand::List { cluster: None } => {
            let all = cloud.api.keys().await?;
            printer.result(&all, || listed(&all))
        }
        KeyCommand::List { cluster: Some(cluster) } => {
            let cluster = cloud.cluster(&cluster).await?;
            let keys = cloud.api.cluster_keys(cluster.id).await?;
            printer.result(&keys, || shown(&keys))
        }
        KeyCommand::Enable(wanted) => enable(cloud, wanted, printer).await,
        KeyCommand::Rotate(wanted) => rotate(cloud, wanted, printer).await,
        KeyCommand::Revoke { cluster, yes, no_wait } => {
            let cluster = cloud.cluster(&cluster).await?;
            confirm::consequence(
                &format!(
                    "This takes the key of {} away: every session ends, it stops, and nobody can start it.",
                    cluster.name
                ),
                &cluster.name,
                yes,
            )?;
            let asked = cloud.api.revoke_cmek(cluster.id).await?;
            let is_there = |info: &CmekClusterInfo| info.status == CmekStatus::Revoked;
            let info = settle(cloud, cluster.id, asked, no_wait, printer, is_there).await?;
            printer.result(&info, || {
                let name = &cluster.name;
                if no_wait {
                    return format!("{name} is being locked; look at it: chitin key list {name}");
                }
                format!("{name} is locked: its engine is stopped and its data key is out of the kernel\nnext: chitin key restore {name}")
            })
        }
        KeyCommand::Restore(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            cloud.api.restore_key(cluster.id).await?;
            let asked = cloud.api.cmek(cluster.id).await?;
            let is_there =
                |info: &CmekClusterInfo| !matches!(info.status, CmekStatus::Revoked | CmekStatus::Revoking);
            let info = settle(cloud, cluster.id, asked, false, printer, is_there).await?;
            printer.result(&info, || format!("{} can start again; the next sign-in wakes it", cluster.name))
        }
        KeyCommand::Service(command) => key_services::run(cloud, command, printer).await,
    }
}

async fn enable(cloud: &Cloud, wanted: KeyEnable, printer: Printer) -> Result<(), Failure> {
    if wanted.kind == KeyTypeName::Root {
        return Err(Failure::new(
            Kind::Usage,
            "the root key is what wraps a cluster's data key without this",
        )
        .next(format!("to go back to it: chitin key rotate {} --type root", wanted.cluster)));
    }
    let cluster = cloud.cluster(&wanted.cluster).await?;
    let key = CmekKeySpec {
        kind: wanted.kind.into(),
        uri: wanted.uri,
        auth_principal: wanted.principal.unwrap_or_default(),
        service: wanted.service.map(|name| name.to_string()),
    };
    let asked = cloud.api.enable_cmek(cluster.id, &everywhere(&cluster, &key)).await?;
    let info = settle(cloud, cluster.id, asked, wanted.no_wait, printer, is_enabled).await?;
    printer.result(&info, || wrapped(&cluster.name, &info, wanted.no_wait))
}

async fn rotate(cloud: &Cloud, wanted: KeyRotate, printer: Printer) -> Result<(), Failure> {
    let Some(text) = &wanted.cluster else {
        let spinner = printer.spinner("making a new version of the root key");
        let rotated = cloud.api.rotate_root_key().await;
        spinner.finish_and_clear();
        let rotated = rotated?;
        return printer.result(&rotated, || {
            format!(
                "the root key is at version {}; data keys of clusters follow by themselves\nnext: chitin key backup FILE, since a backup from before does not hold it",
                rotated.version
            )
        });
    };
    let cluster = cloud.cluster(text).await?;
    if wanted.data_key {
        let asked = cloud.api.rotate_data_key(cluster.id).await?;
        let keys = if wanted.no_wait { asked } else { follow(cloud, cluster.id, printer).await? };
        return printer.result(&keys, || {
            let name = &cluster.name;
            if keys.is_data_key_rotating {
                format!("{name} is being encrypted anew; look how far it is: chitin key list {name}")
            } else {
                format!("{name} lies under another data key; the one before and its volume are destroyed")
            }
        });
    }
    let current = cloud.api.cmek(cluster.id).await?;
    let current = current.region_infos.first().and_then(|region| region.key_infos.first());
    let key = other_key(current.map(|key| &key.spec), &wanted, &cluster.name)?;
    let asked = cloud.api.update_cmek(cluster.id, &everywhere(&cluster, &key)).await?;
    let info = settle(cloud, cluster.id, asked, wanted.no_wait, printer, is_enabled).await?;
    printer.result(&info, || wrapped(&cluster.name, &info, wanted.no_wait))
}

/// The key to go over to.
fn other_key(
    current: Option<&CmekKeySpec>,
    wanted: &KeyRotate,
    cluster: &str,
) -> Result<CmekKeySpec, Failure> {
    let service = wanted.service.as_ref().map(ToString::to_string);
    let auth_principal = wanted.principal.clone();
    match (wanted.kind.map(KeyType::from), &wanted.uri, current) {
        (Some(KeyType::Null), None, _) => Ok(CmekKeySpec {
            kind: KeyType::Null,
            uri: String::new(),
            auth_principal: String::new(),
            service: None,
        }),
        (Some(kind), Some(uri), _) => Ok(CmekKeySpec {
            kind,
            uri: uri.clone(),
            auth_principal: auth_principal.unwrap_or_default(),
            service,
        }),
        (Some(_), None, _) => Err(Failure::new(Kind::Usage, "a key of another type needs its name")
            .next(format!("chitin key rotate {cluster} --type TYPE --uri URI"))),
        (None, None, Some(current)) => Ok(current.clone()),
        (None, Some(uri), Some(current)) => Ok(CmekKeySpec {
            kind: current.kind,
            uri: uri.clone(),
            // The same principal uses the other key, unless another is named.
            auth_principal: auth_principal.unwrap_or_else(|| current.auth_principal.clone()),
            service: service.or_else(|| current.service.clone()),
        }),
        (None, _, None) => Err(Failure::new(
            Kind::Failed,
            format!("{cluster} has no key of its own: the cloud's root key wraps its data key"),
        )
        .next(format!(
            "chitin key enable {cluster} --type TYPE --uri URI; or for the root key: chitin key rotate --root"
        ))),
    }
}

fn everywhere(cluster: &api::Cluster, key: &CmekKeySpec) -> CmekSpecification {
    let spec = |region: &api::Region| CmekRegionSpec { region: region.name.clone(), key_spec: key.clone() };
    CmekSpecification { region_specs: cluster.regions.iter().map(spec).collect() }
}

fn is_enabled(info: &CmekClusterInfo) -> bool {
    info.status == CmekStatus::Enabled
}

/// Waits until the reconciler has done it.
async fn settle(
    cloud: &Cloud,
    id: ClusterId,
    asked: CmekClusterInfo,
    no_wait: bool,
    printer: Printer,
    is_there: impl Fn(&CmekClusterInfo) -> bool,
) -> Result<CmekClusterInfo, Failure> {
    if no_wait || is_there(&asked) {
        return Ok(asked);
    }
    let spinner = printer.spinner("waiting for the key");
    let end = Instant::now() + SETTLE_MAX;
    let mut failing_since = None;
    let settled = loop {
        sleep(LOOK_EVERY).await;
        let info = cloud
            .api
            .cmek(id)
            .await
            .map_err(|error| goes_on("the change of the key", "chitin key list", error))?;
        if is_there(&info) {
            break Ok(info);
        }
        let now = Instant::now();
        if has_failed(info.status) {
            let since = *failing_since.get_or_insert(now);
            if now.duration_since(since) >= FAILURE_STAYS {
                break Err(not_settled(&info, "it failed"));
            }
        } else {
            failing_since = None;
        }
        if now >= end {
            break Err(not_settled(&info, "it takes longer than expected"));
        }
    };
    spinner.finish_and_clear();
    settled
}

fn has_failed(status: CmekStatus) -> bool {
    match status {
        CmekStatus::DisableFailed
        | CmekStatus::EnableFailed
        | CmekStatus::RotateFailed
        | CmekStatus::RevokeFailed => true,
        CmekStatus::Disabled
        | CmekStatus::Disabling
        | CmekStatus::Enabled
        | CmekStatus::Enabling
        | CmekStatus::Rotating
        | CmekStatus::Revoked
        | CmekStatus::Revoking => false,
    }
}

fn not_settled(info: &CmekClusterInfo, what: &str) -> Failure {
    let message = info
        .region_infos
        .first()
        .and_then(|region| region.key_infos.first())
        .map(|key| key.user_message.as_str())
        .filter(|message| !message.is_empty())
        .unwrap_or("no reason was given");
    Failure::new(Kind::Failed, format!("{what} ({}): {message}", info.status.as_str()))
        .next("it is tried again by itself; look at it: chitin key list")
}

/// Follows a volume that is encrypted anew until it is done.
async fn follow(cloud: &Cloud, id: ClusterId, printer: Printer) -> Result<ClusterKeys, Failure> {
    let bar = printer.progress("encrypting the volume anew");
    let mut moved_at = Instant::now();
    let mut last = CopyProgress::default();
    let done = loop {
        let looked = cloud.api.cluster_keys(id).await;
        let keys = looked.map_err(|error| goes_on("the new data key", "chitin key list", error))?;
        if !keys.is_data_key_rotating {
            break Ok(keys);
        }
        let progress = keys.facts.progress.unwrap_or(last);
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        let now = Instant::now();
        if progress != last {
            (last, moved_at) = (progress, now);
        }
        let standstill = now.duration_since(moved_at);
        let is_over = if keys.failure.is_some() { FAILURE_STAYS } else { STANDSTILL_MAX };
        if standstill >= is_over {
            let reason = keys.failure.as_deref().unwrap_or("nothing moves");
            break Err(Failure::new(Kind::Failed, format!("the volume is not encrypted anew yet: {reason}"))
                .next(format!("it is tried again by itself; look at it: chitin key list {}", keys.name)));
        }
        sleep(LOOK_EVERY).await;
    };
    bar.finish_and_clear();
    done
}

fn wrapped(name: &str, info: &CmekClusterInfo, no_wait: bool) -> String {
    let key = info.region_infos.first().and_then(|region| region.key_infos.first());
    let (spec, version) = key.map_or_else(
        || ("the cloud's root key".to_owned(), String::new()),
        |key| (key.spec.to_string(), key.version.clone()),
    );
    if no_wait && !is_enabled(info) {
        return format!("{name} is on the way to {spec}; look at it: chitin key list {name}");
    }
    let version = if version.is_empty() { version } else { format!(", version {version}") };
    format!("the data key of {name} is wrapped by {spec}{version}\nnext: chitin key list {name}")
}

fn moment(at: Option<OffsetDateTime>) -> String {
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

fn listed(all: &KeyList) -> String {
    let root = &all.root_key;
    let first = [
        "(root key)".to_owned(),
        format!("{}, protected by {}", root.id, root.protection.as_str()),
        root.version.to_string(),
        "ENABLED".to_owned(),
        moment(root.since),
        String::new(),
    ];
    let rows = all.clusters.iter().map(|line| {
        let status = if line.is_data_key_rotating {
            format!("{}, data key rotating", line.status.as_str())
        } else {
            line.status.as_str().to_owned()
        };
        [
            line.name.clone(),
            line.key_spec.to_string(),
            line.key_version.clone(),
            status,
            moment(line.since),
            line.next_step.clone().unwrap_or_default(),
        ]
    });
    table(["CLUSTER", "KEY", "VERSION", "STATUS", "SINCE", "NEXT STEP"], std::iter::once(first).chain(rows))
}

/// What wraps a cluster's data key, in one line.
pub fn line(keys: &ClusterKeys) -> String {
    let version = match keys.facts.key_version.as_str() {
        "" => String::new(),
        version => format!(", version {version}"),
    };
    let wrapped_by = keys.facts.wrapped_by.as_ref().unwrap_or(&keys.key_spec);
    match keys.status {
        CmekStatus::Disabled => format!("{wrapped_by}{version}"),
        CmekStatus::Disabling
        | CmekStatus::DisableFailed
        | CmekStatus::Enabled
        | CmekStatus::Enabling
        | CmekStatus::EnableFailed
        | CmekStatus::Rotating
        | CmekStatus::RotateFailed
        | CmekStatus::Revoked
        | CmekStatus::Revoking
        | CmekStatus::RevokeFailed => format!("{wrapped_by}{version} ({})", keys.status.as_str()),
    }
}

/// The root key, in one line.
pub fn root_line(root: &RootKey) -> String {
    let detail = match root.protection_detail.as_str() {
        "" => String::new(),
        detail => format!(" ({detail})"),
    };
    let memory = if root.is_memory_locked { "" } else { ", memory NOT LOCKED" };
    format!("{} version {}, protected by {}{detail}{memory}", root.id, root.version, root.protection.as_str())
}

/// What is wrong with the cluster's key at its service; empty where nothing is.
pub fn trouble(keys: &ClusterKeys) -> String {
    match (&keys.denied, &keys.outage) {
        (Some(reason), _) => format!("REFUSES THE KEY: {reason}"),
        (None, Some(outage)) if outage.are_credentials_refused => {
            format!("DOES NOT ACCEPT THE CREDENTIALS since {}: {}", moment(Some(outage.since)), outage.reason)
        }
        (None, Some(outage)) => {
            format!("DOES NOT ANSWER since {}: {}", moment(Some(outage.since)), outage.reason)
        }
        (None, None) => String::new(),
    }
}

/// Where a volume's key is while files can be read by it.
pub(crate) fn place_of_volume_key(encryption: Option<Encryption>, is_unlocked: Option<bool>) -> &'static str {
    match (encryption, is_unlocked) {
        (Some(Encryption::None), _) => "none: nothing is encrypted",
        (Some(Encryption::Attested), _) => "none of Chitin's: whoever encrypts the disk below has it",
        // Its key is in the process that serves the volume.
        (Some(Encryption::Gocryptfs), Some(true)) => "in the memory of gocryptfs",
        (Some(Encryption::Gocryptfs), Some(false)) => "in nobody's memory",
        (_, Some(true)) => "in the kernel",
        (_, Some(false)) => "not in the kernel",
        (_, None) => "",
    }
}

fn shown(keys: &ClusterKeys) -> String {
    let known = &keys.facts;
    let kernel = place_of_volume_key(known.encryption, known.is_unlocked);
    let progress = known.progress.map(|progress| {
        let percent = progress.done_bytes.saturating_mul(100).checked_div(progress.total_bytes).unwrap_or(0);
        format!("{percent} % of {} bytes", progress.total_bytes)
    });
    let rotating = if keys.is_data_key_rotating { "on the way" } else { "" };
    let outage_of = |are_credentials_refused: bool| {
        let outage = keys.outage.as_ref();
        let outage = outage.filter(|outage| outage.are_credentials_refused == are_credentials_refused);
        outage.map(|outage| format!("since {}: {}", moment(Some(outage.since)), outage.reason))
    };
    let head = facts([
        ("cluster", keys.name.clone()),
        ("status", keys.status.as_str().to_owned()),
        ("wrapped by", line(keys)),
        ("service", known.wrapped_by.as_ref().and_then(|key| key.service.clone()).unwrap_or_default()),
        ("key id", known.key_id.clone()),
        ("algorithm", known.algorithm.clone()),
        ("volume", known.encryption.map(|kind| kind.as_str().to_owned()).unwrap_or_default()),
        ("data key", kernel.to_owned()),
        ("since", moment(keys.data_key_since)),
        ("evidence", known.volume_evidence.clone().unwrap_or_default()),
        ("new data key", progress.unwrap_or_else(|| rotating.to_owned())),
        ("refused", keys.denied.clone().unwrap_or_default()),
        ("no answer", outage_of(false).unwrap_or_default()),
        ("credentials refused", outage_of(true).unwrap_or_default()),
        ("failed", keys.failure.clone().unwrap_or_default()),
        ("next step", keys.next_step.clone().unwrap_or_default()),
    ]);
    if keys.keys.is_empty() {
        return head;
    }
    let rows = keys.keys.iter().map(|key| {
        [
            key.spec.to_string(),
            key.version.clone(),
            key.status.as_str().to_owned(),
            moment(Some(key.created_at)),
            key.user_message.clone(),
        ]
    });
    format!("{head}\n\n{}", table(["KEY", "VERSION", "STATUS", "SINCE", "WHY"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault() -> CmekKeySpec {
        CmekKeySpec {
            kind: KeyType::Vault,
            uri: "transit/keys/shop".to_owned(),
            auth_principal: String::new(),
            service: Some("vault".to_owned()),
        }
    }

    fn wanted() -> KeyRotate {
        KeyRotate {
            cluster: Some("my-shop".to_owned()),
            uri: None,
            kind: None,
            principal: None,
            service: None,
            data_key: false,
            root: false,
            no_wait: false,
        }
    }

    #[test]
    fn rotating_without_a_name_means_the_newest_version_of_the_same_key() {
        assert_eq!(other_key(Some(&vault()), &wanted(), "my-shop").unwrap(), vault());
        let named = KeyRotate { uri: Some("transit/keys/two".to_owned()), ..wanted() };
        let other = other_key(Some(&vault()), &named, "my-shop").unwrap();
        assert_eq!((other.uri.as_str(), other.service.as_deref()), ("transit/keys/two", Some("vault")));
        let back = KeyRotate { kind: Some(KeyTypeName::Root), ..wanted() };
        assert_eq!(other_key(Some(&vault()), &back, "my-shop").unwrap().kind, KeyType::Null);
        let nothing = other_key(None, &wanted(), "my-shop").unwrap_err();
        assert!(nothing.next.unwrap().contains("chitin key enable my-shop"));
        let nameless = KeyRotate { kind: Some(KeyTypeName::Aws), ..wanted() };
        assert_eq!(other_key(Some(&vault()), &nameless, "my-shop").unwrap_err().kind, Kind::Usage);
    }

    #[test]
    fn a_revoked_key_says_so_and_the_next_step() {
        let keys: ClusterKeys = serde_json::from_value(serde_json::json!({
            "id": "00000000-0000-4000-8000-000000000002", "name": "my-shop", "status": "REVOKED",
            "key_spec": vault(), "keys": [], "facts": {"key_version": "3", "wrapped_by": vault()},
            "is_data_key_rotating": false, "is_revoked": true, "is_locked_away": true,
            "next_step": "chitin key restore my-shop",
        }))
        .unwrap();
        let text = shown(&keys);
        for part in ["VAULT_TRANSIT transit/keys/shop, version 3 (REVOKED)", "chitin key restore my-shop"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn credentials_that_are_refused_are_told_apart_from_silence_and_from_a_refused_key() {
        let of = |denied: Option<&str>, refused: bool| -> ClusterKeys {
            serde_json::from_value(serde_json::json!({
                "id": "00000000-0000-4000-8000-000000000002", "name": "my-shop", "status": "ENABLED",
                "key_spec": vault(), "keys": [], "facts": {}, "is_data_key_rotating": false,
                "is_revoked": false, "is_locked_away": false, "denied": denied,
                "outage": {"since": "2026-01-01T00:00:00Z", "reason": "why", "are_credentials_refused": refused},
            }))
            .unwrap()
        };
        let (wrong, silent, denied) = (of(None, true), of(None, false), of(Some("it is disabled"), true));
        assert!(
            trouble(&wrong).contains("DOES NOT ACCEPT THE CREDENTIALS since 2026-01-01"),
            "{}",
            trouble(&wrong)
        );
        assert!(trouble(&silent).starts_with("DOES NOT ANSWER"), "{}", trouble(&silent));
        assert_eq!(trouble(&denied), "REFUSES THE KEY: it is disabled");
        assert!(
            shown(&wrong).contains("credentials refused") && !shown(&wrong).contains("no answer"),
            "{}",
            shown(&wrong)
        );
        assert!(shown(&silent).contains("no answer"), "{}", shown(&silent));
        // An answer of an earlier cloud, which knew silence only.
        let earlier: api::Outage =
            serde_json::from_value(serde_json::json!({"since": "2026-01-01T00:00:00Z", "reason": "why"}))
                .unwrap();
        assert!(!earlier.are_credentials_refused);
    }

    #[test]
    fn a_failure_carries_the_service_s_words_and_cannot_steer_the_terminal() {
        let info: CmekClusterInfo = serde_json::from_value(serde_json::json!({
            "status": "ENABLE_FAILED",
            "region_infos": [{"region": "local", "status": "ENABLE_FAILED", "key_infos": [{
                "spec": vault(), "status": "ENABLE_FAILED", "user_message": "no such key\u{1b}[2J",
                "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
            }]}],
        }))
        .unwrap();
        assert!(has_failed(info.status));
        let text = not_settled(&info, "it failed").to_string();
        assert!(text.contains("no such key\\u{1b}[2J") && !text.contains('\u{1b}'), "{text}");
    }
}
