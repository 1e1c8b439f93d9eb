//! `chitin cluster`: create, list, show, url, sleep, wake, accept-restored, visibility, update, protect, delete.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use api::{
    Cluster, ClusterConfig, ClusterDetail, ClusterKeys, ClusterNetwork, CreateCluster as Request,
    CreateDedicated, CreateServerless, CreateSpec, Error, Hardware, MachineSpec, Protection, UpdateCluster,
    UpdateDedicated, UpdateServerless, UsageLimits,
};
use model::{ClusterState, Enforcement, Fullness, Phase, Plan, Provider, Resources, Tier, Visibility};
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use crate::cloud::{Cloud, UNAVAILABLE, goes_on};
use crate::command::network::VisibilityName;
use crate::command::{ClusterCommand, CreateCluster, Switch, UpdateLimits};
use crate::failure::{Failure, Kind};
use crate::output::{self, Printer, facts, table};
use crate::{confirm, keys, url, visibility};

/// Regions are the client's words; one machine is one region.
const REGION: &str = "local";
/// For a cluster to be made: initdb and the first start on a slow disk.
const CREATE_MAX: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: ClusterCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        ClusterCommand::Create(wanted) => create(cloud, wanted, printer).await,
        ClusterCommand::List => list(cloud, printer).await,
        ClusterCommand::Show(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let detail = cloud.api.detail(cluster.id).await?;
            let network = cloud.api.network(cluster.id).await?;
            // A cluster that is not made yet has no key file to read.
            let keys = cloud.api.cluster_keys(cluster.id).await.ok();
            printer.result(&cluster, || shown(&cluster, &detail, &network, keys.as_ref()))
        }
        ClusterCommand::Url { cluster, user, database } => {
            let cluster = cloud.cluster(&cluster).await?;
            let url = url::of(cloud, &cluster, &user, &database).await?;
            if printer.is_json() {
                printer.result(&serde_json::json!({ "url": url }), String::new)
            } else {
                output::line(&url)
            }
        }
        ClusterCommand::Sleep { cluster, force } => {
            let cluster = cloud.cluster(&cluster).await?;
            let spinner = printer.spinner("stopping the engine and locking the volume");
            let detail = cloud.api.sleep(cluster.id, force).await;
            spinner.finish_and_clear();
            moved(&cluster, &detail?, printer)
        }
        ClusterCommand::Wake(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let spinner = printer.spinner("unlocking the volume and starting the engine");
            let detail = cloud.api.wake(cluster.id).await;
            spinner.finish_and_clear();
            moved(&cluster, &detail?, printer)
        }
        ClusterCommand::AcceptRestored(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let detail = cloud.api.accept_restored(cluster.id).await?;
            printer.result(&detail, || format!("the volume of {} is accepted as it is", cluster.name))
        }
        ClusterCommand::Visibility(wanted) => visibility::run(cloud, wanted, printer).await,
        ClusterCommand::Update(wanted) => update(cloud, &wanted, printer).await,
        ClusterCommand::Protect { cluster, off } => protect(cloud, &cluster, off, printer).await,
        ClusterCommand::Delete { cluster, yes } => delete(cloud, &cluster, yes, printer).await,
    }
}

fn moved(cluster: &Cluster, detail: &ClusterDetail, printer: Printer) -> Result<(), Failure> {
    printer.result(detail, || format!("{} is {}", cluster.name, detail.phase.as_str()))
}

async fn create(cloud: &Cloud, wanted: CreateCluster, printer: Printer) -> Result<(), Failure> {
    let name = wanted.name.to_string();
    // The API answers a repeated request with the first one's result; a person who repeats it is mistaken.
    if cloud.cluster(&name).await.is_ok() {
        return Err(Failure::new(Kind::Failed, format!("a cluster named `{name}` already exists"))
            .next(format!("choose another name, or see it with: chitin cluster show {name}")));
    }
    let spinner = printer.spinner("creating the volume, its key and the engine");
    let made = make(cloud, &wanted).await;
    spinner.finish_and_clear();
    let made = made?;
    printer.result(&made, || {
        let name = &made.name;
        format!("created {name} ({})\nnext: chitin user create {name} maria", made.handle())
    })?;
    // By what it is, since the organization may have every new cluster begin closed.
    let is_open = cloud.api.detail(made.id).await.map_or(true, |detail| detail.is_open_to_every_address);
    if let Some(note) = allowlist_note(&wanted, is_open) {
        output::say(&note);
    }
    Ok(())
}

async fn make(cloud: &Cloud, wanted: &CreateCluster) -> Result<Cluster, Failure> {
    let made = cloud.api.create_cluster(&request(wanted)).await?;
    for range in &wanted.allow {
        let entry = api::AllowlistEntry {
            cidr_ip: range.address().to_string(),
            cidr_mask: range.prefix_bits(),
            name: String::new(),
            ui: false,
            sql: true,
            expires_at: None,
        };
        cloud.api.add_allowlist_entry(made.id, &entry).await.map_err(|error| {
            let failure = Failure::from(error);
            Failure {
                what: format!(
                    "{} is on record and is being made, but {range} was not let in: {}",
                    made.name, failure.what
                ),
                ..failure
            }
            .next(format!("chitin allowlist add {} {range}", made.name))
        })?;
    }
    let end = Instant::now() + CREATE_MAX;
    loop {
        let seen = cloud
            .api
            .cluster(made.id)
            .await
            .map_err(|error| goes_on(&made.name, &format!("chitin cluster show {}", made.name), error))?;
        match seen.state {
            ClusterState::Created => return Ok(seen),
            ClusterState::CreationFailed => return Err(not_made(cloud, &seen).await),
            ClusterState::Deleted => {
                return Err(Failure::new(Kind::Failed, "the cluster was deleted while it was being made"));
            }
            ClusterState::Creating | ClusterState::Locked if Instant::now() < end => sleep(LOOK_EVERY).await,
            ClusterState::Creating | ClusterState::Locked => {
                return Err(Failure::new(Kind::Failed, format!("{} is still being made", seen.name))
                    .next(format!("it goes on by itself; look at it: chitin cluster show {}", seen.name)));
            }
        }
    }
}

async fn not_made(cloud: &Cloud, cluster: &Cluster) -> Failure {
    let reason = match cloud.api.detail(cluster.id).await {
        Ok(ClusterDetail { phase: Phase::Failed { reason } | Phase::Broken { reason }, .. }) => reason,
        _ => "the cloud's log says why".to_owned(),
    };
    Failure::new(Kind::Failed, format!("{} could not be made: {reason}", cluster.name))
        .next(format!("chitin cluster delete {} --yes, then try again", cluster.name))
}

fn request(wanted: &CreateCluster) -> Request {
    let mut spec = CreateSpec {
        delete_protection: wanted.protect.then_some(Protection::Enabled),
        max_connections: wanted.connections,
        postgres_version: wanted.version,
        plaintext_cancels: wanted.plaintext_cancels.map(|switch| switch == Switch::On),
        ..CreateSpec::default()
    };
    let restrict_egress_traffic = wanted.restrict_egress.then_some(true);
    let network_visibility = wanted.network.visibility.map(|name| Visibility::from(name).as_str().to_owned());
    let cidr_range = wanted.network.cidr.map(|range| range.to_string());
    match Plan::from(wanted.plan) {
        Plan::Serverless => {
            // Only the plan with a size has one.
            spec.plan = Some(if wanted.virtual_cpus.is_some() { Tier::Standard } else { Tier::Basic });
            spec.serverless = Some(CreateServerless {
                regions: vec![REGION.to_owned()],
                // With ranges of its own, the list must not begin with everybody.
                with_empty_ip_allowlist: (!wanted.allow.is_empty()).then_some(true),
                network_visibility,
                cidr_range,
                restrict_egress_traffic,
                usage_limits: (wanted.virtual_cpus.is_some() || wanted.storage.is_some()).then(|| {
                    UsageLimits {
                        provisioned_virtual_cpus: wanted.virtual_cpus.map(i64::from),
                        storage_mib_limit: wanted.storage.map(|gib| i64::from(gib) * 1_024),
                        ..UsageLimits::default()
                    }
                }),
                ..CreateServerless::default()
            });
        }
        Plan::Dedicated => {
            spec.plan = Some(Tier::Advanced);
            spec.dedicated = Some(CreateDedicated {
                region_nodes: BTreeMap::from([(REGION.to_owned(), 1)]),
                network_visibility,
                cidr_range,
                restrict_egress_traffic,
                hardware: hardware(wanted.virtual_cpus, wanted.storage, wanted.disk_iops),
                ..CreateDedicated::default()
            });
        }
    }
    Request { name: wanted.name.as_str().to_owned(), provider: Provider::Aws, spec }
}

fn hardware(cpus: Option<u32>, storage_gib: Option<u32>, disk_iops: Option<u32>) -> Option<Hardware> {
    let machine_spec =
        cpus.map(|cpus| MachineSpec { num_virtual_cpus: Some(cpus), ..MachineSpec::default() });
    let hardware = Hardware { machine_spec, storage_gib, disk_iops };
    (hardware != Hardware::default()).then_some(hardware)
}

/// What the operator must know about who may connect.
fn allowlist_note(wanted: &CreateCluster, is_open: bool) -> Option<String> {
    let name = &wanted.name;
    if wanted.network.visibility == Some(VisibilityName::Private) {
        return Some(format!(
            "note: only its private network and accepted private endpoints reach {name}\n  \
             to join a network with it: chitin peering create {name} NAME --namespace NAMESPACE"
        ));
    }
    if !wanted.allow.is_empty() {
        return None;
    }
    Some(if is_open {
        format!(
            "warning: {name} may be reached from every address (passwords and TLS still protect it)\n  \
             to close it: chitin allowlist add {name} CIDR, then remove 0.0.0.0/0 and ::/0 (chitin allowlist remove)"
        )
    } else {
        format!(
            "note: nobody may connect to {name} yet\n  to let an address in: chitin allowlist add {name} 127.0.0.1/32"
        )
    })
}

async fn list(cloud: &Cloud, printer: Printer) -> Result<(), Failure> {
    let clusters = cloud.api.clusters().await?;
    if clusters.is_empty() && !printer.is_json() {
        output::say("there is no cluster yet; create one: chitin cluster create NAME");
        return Ok(());
    }
    let phases: HashMap<_, _> =
        cloud.api.phases().await?.into_iter().map(|one| (one.id, one.phase)).collect();
    // The Cloud API's form, and beside its state what that does not tell.
    let listed = clusters.iter().map(|cluster| {
        let mut fields = serde_json::to_value(cluster).unwrap_or_default();
        if let (Some(fields), Some(phase)) = (fields.as_object_mut(), phases.get(&cluster.id)) {
            fields.insert("phase".to_owned(), phase.as_str().into());
        }
        fields
    });
    printer.result(&listed.collect::<Vec<_>>(), || {
        let row = |cluster: &Cluster| {
            let created = cluster.created_at.date().to_string();
            let phase = phases.get(&cluster.id).map_or("", Phase::as_str);
            [
                cluster.name.clone(),
                cluster.handle().to_owned(),
                plan(cluster).to_owned(),
                format!("{}, {phase}", state(cluster)),
                created,
            ]
        };
        table(["NAME", "ADDRESS", "PLAN", "STATE", "CREATED"], clusters.iter().map(row))
    })
}

fn plan(cluster: &Cluster) -> &'static str {
    match cluster.config {
        ClusterConfig::Serverless(_) => Plan::Serverless.as_str(),
        ClusterConfig::Dedicated(_) => Plan::Dedicated.as_str(),
    }
}

/// The state in the API's own spelling.
fn state(cluster: &Cluster) -> String {
    serde_json::to_value(cluster.state)
        .ok()
        .and_then(|state| state.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn sessions(detail: &ClusterDetail) -> String {
    let (now, next) = (detail.facts.sessions, detail.connections_max);
    match detail.facts.sessions_max {
        Some(max) if max != next => {
            format!("{now} of {max} at most, of {next} from its engine's next start on")
        }
        _ => format!("{now} of {next} at most"),
    }
}

fn resources(resources: &Resources) -> String {
    let cpus = resources.virtual_cpus.map_or("all processors".to_owned(), |cpus| {
        format!("{cpus} {}", if cpus == 1 { "processor" } else { "processors" })
    });
    let memory = resources
        .memory_bytes
        .map_or("the machine's memory".to_owned(), |bytes| format!("{} GiB of memory", bytes >> 30));
    let disk = resources
        .disk_iops
        .map_or("the whole disk".to_owned(), |iops| format!("{iops} disk operations a second"));
    format!("{cpus}, {memory}, {disk}")
}

fn shown(
    cluster: &Cluster,
    detail: &ClusterDetail,
    network: &ClusterNetwork,
    keys: Option<&ClusterKeys>,
) -> String {
    let encryption = match detail.encryption {
        Some(model::Encryption::None) => "NONE: started with --allow-unencrypted".to_owned(),
        Some(encryption) => encryption.as_str().to_owned(),
        None => "not known yet".to_owned(),
    };
    let reason = match &detail.phase {
        Phase::Failed { reason } | Phase::Broken { reason } => reason.clone(),
        _ => String::new(),
    };
    let key = keys::place_of_volume_key(detail.encryption, detail.facts.is_unlocked);
    let allowlist = if cluster.network_visibility == Visibility::Private {
        format!("{} entries, without effect while it is private", detail.allowlist_entries)
    } else if detail.is_open_to_every_address {
        format!("{} entries, OPEN TO EVERY ADDRESS", detail.allowlist_entries)
    } else {
        format!("{} entries", detail.allowlist_entries)
    };
    let cancels = if detail.plaintext_cancels {
        "inside TLS, and in plaintext from the session's own address"
    } else {
        "inside TLS only"
    };
    let protection = match cluster.delete_protection {
        Protection::Enabled => "protected from deletion",
        Protection::Disabled => "",
    };
    facts([
        ("name", cluster.name.clone()),
        ("id", cluster.id.to_string()),
        ("address", format!("{} ({})", cluster.handle(), cluster.sql_dns)),
        ("plan", plan(cluster).to_owned()),
        ("state", format!("{}, {}", state(cluster), detail.phase.as_str())),
        ("reason", reason),
        (
            "engine",
            detail.engine_version.as_ref().map(|version| format!("PostgreSQL {version}")).unwrap_or_default(),
        ),
        ("may use", resources(&detail.resources)),
        ("sessions", sessions(detail)),
        ("encryption", encryption),
        ("storage", storage(detail)),
        ("volume key", key.to_owned()),
        ("wrapped by", keys.map(keys::line).unwrap_or_default()),
        ("key service", keys.map(keys::trouble).unwrap_or_default()),
        ("next step", keys.and_then(|keys| keys.next_step.clone()).unwrap_or_default()),
        ("network", visibility::line(network)),
        ("cancel requests", cancels.to_owned()),
        ("allowlist", allowlist),
        ("protection", protection.to_owned()),
        ("deleted", detail.expires_at.map(|end| format!("by itself at {end}")).unwrap_or_default()),
        ("created", cluster.created_at.format(&Rfc3339).unwrap_or_default()),
    ])
}

async fn protect(cloud: &Cloud, text: &str, off: bool, printer: Printer) -> Result<(), Failure> {
    let cluster = cloud.cluster(text).await?;
    let protection = if off { Protection::Disabled } else { Protection::Enabled };
    let change = UpdateCluster { delete_protection: Some(protection), ..UpdateCluster::default() };
    let changed = cloud.api.update_cluster(cluster.id, &change).await?;
    printer.result(&changed, || {
        let state = if off { "may be deleted" } else { "is protected from deletion" };
        format!("{} {state}", cluster.name)
    })
}

async fn update(cloud: &Cloud, wanted: &UpdateLimits, printer: Printer) -> Result<(), Failure> {
    let cluster = cloud.cluster(&wanted.cluster).await?;
    let change = change(wanted, &cluster.config)?;
    let changed = cloud.api.update_cluster(cluster.id, &change).await?;
    printer.result(&changed, || {
        let named = [
            ("may store", wanted.storage, "GiB"),
            ("may use", wanted.virtual_cpus, "processors"),
            ("may ask of the disk", wanted.disk_iops, "times a second"),
        ];
        let told =
            named.iter().filter_map(|(may, count, of)| count.map(|count| format!("{may} {count} {of}")));
        let sessions = wanted.connections.map(|count| match count {
            0 => "may have its plan's sessions from its engine's next start on".to_owned(),
            count => format!("may have {count} sessions from its engine's next start on"),
        });
        let cancels = wanted.plaintext_cancels.map(|switch| match switch {
            Switch::On => "takes cancel requests in plaintext from a session's own address".to_owned(),
            Switch::Off => "refuses cancel requests in plaintext".to_owned(),
        });
        let told: Vec<String> = told.chain(sessions).chain(cancels).collect();
        format!("{} {}", cluster.name, told.join(", "))
    })
}

/// The change in the words of the cluster's plan.
fn change(wanted: &UpdateLimits, config: &ClusterConfig) -> Result<UpdateCluster, Failure> {
    let plaintext_cancels = wanted.plaintext_cancels.map(|switch| switch == Switch::On);
    match config {
        ClusterConfig::Serverless(_) if wanted.disk_iops.is_some() => Err(Failure::new(
            Kind::Usage,
            "--disk-iops is for dedicated clusters; a serverless one has 3000".to_owned(),
        )),
        // All limits are replaced at once, so the others are said again.
        ClusterConfig::Serverless(config) => {
            let mut limits = config.usage_limits.clone().unwrap_or_default();
            limits.storage_mib_limit =
                wanted.storage.map(|gib| i64::from(gib) * 1_024).or(limits.storage_mib_limit);
            limits.provisioned_virtual_cpus =
                wanted.virtual_cpus.map(i64::from).or(limits.provisioned_virtual_cpus);
            Ok(UpdateCluster {
                max_connections: wanted.connections,
                plaintext_cancels,
                serverless: Some(UpdateServerless {
                    usage_limits: Some(limits),
                    ..UpdateServerless::default()
                }),
                ..UpdateCluster::default()
            })
        }
        ClusterConfig::Dedicated(_) => {
            let hardware = hardware(wanted.virtual_cpus, wanted.storage, wanted.disk_iops);
            Ok(UpdateCluster {
                max_connections: wanted.connections,
                plaintext_cancels,
                dedicated: Some(UpdateDedicated { hardware, ..UpdateDedicated::default() }),
                ..UpdateCluster::default()
            })
        }
    }
}

/// What it may store, and what it stores.
fn storage(detail: &ClusterDetail) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let limit = mib(detail.storage_limit_bytes);
    let Some(usage) = detail.facts.storage else {
        return format!("at most {limit} MiB");
    };
    let held = match usage.enforcement {
        Enforcement::Enforced => "enforced by its file system",
        Enforcement::Watched => "watched",
    };
    let wal = usage
        .wal_used_bytes
        .map(|used| {
            format!(
                ", write-ahead log {} of {} MiB",
                mib(used),
                mib(usage.wal_limit_bytes.unwrap_or_default())
            )
        })
        .unwrap_or_default();
    let full = if usage.fullness == Fullness::Full { ", FULL: what grows is refused" } else { "" };
    format!(
        "{} of {} MiB{wal}; at most {limit} MiB, {held}{full}",
        mib(usage.used_bytes),
        mib(usage.data_limit_bytes)
    )
}

async fn delete(cloud: &Cloud, text: &str, yes: bool, printer: Printer) -> Result<(), Failure> {
    let cluster = cloud.cluster(text).await?;
    if cluster.delete_protection == Protection::Enabled {
        return Err(Failure::new(Kind::Failed, format!("{} is protected from deletion", cluster.name))
            .next(format!("chitin cluster protect {} --off", cluster.name)));
    }
    confirm::destruction("cluster", &cluster.name, yes)?;
    let spinner = printer.spinner("destroying the key, then the data");
    let deleted = cloud.api.delete_cluster(cluster.id).await;
    spinner.finish_and_clear();
    let deleted = deleted.map_err(|error| match error {
        Error::Refused { code: UNAVAILABLE, message, .. } => Failure::new(
            Kind::Failed,
            format!("the deletion of {} is not finished yet: {message}", cluster.name),
        )
        .next("it goes on by itself; look again with: chitin cluster list"),
        other => other.into(),
    })?;
    printer.result(&deleted, || format!("deleted {}: its key, then its data", cluster.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{NetworkChoice, PlanName};

    fn wanted(plan: PlanName, allow: &[&str]) -> CreateCluster {
        CreateCluster {
            virtual_cpus: None,
            disk_iops: None,
            connections: None,
            name: "my-shop".parse().unwrap(),
            plan,
            version: None,
            plaintext_cancels: None,
            allow: allow.iter().map(|range| range.parse().unwrap()).collect(),
            storage: Some(20),
            protect: true,
            restrict_egress: false,
            network: NetworkChoice::default(),
        }
    }

    #[test]
    fn an_open_cluster_warns_a_closed_one_says_how_to_open_it_and_a_set_one_says_nothing() {
        let open = allowlist_note(&wanted(PlanName::Serverless, &[]), true).unwrap();
        assert!(open.starts_with("warning:") && open.contains("every address"), "{open}");
        let closed = allowlist_note(&wanted(PlanName::Dedicated, &[]), false).unwrap();
        assert!(closed.starts_with("note:") && closed.contains("allowlist add my-shop"), "{closed}");
        for plan in [PlanName::Serverless, PlanName::Dedicated] {
            assert_eq!(allowlist_note(&wanted(plan, &["10.0.0.0/8"]), false), None);
        }
    }

    #[test]
    fn a_private_cluster_is_asked_for_on_both_plans_and_says_how_it_is_reached() {
        for plan in [PlanName::Serverless, PlanName::Dedicated] {
            let network = NetworkChoice {
                visibility: Some(VisibilityName::Private),
                cidr: Some("10.77.0.0/24".parse().unwrap()),
            };
            let private = CreateCluster { network, ..wanted(plan, &[]) };
            let spec = serde_json::to_value(request(&private).spec).unwrap();
            let settings = spec.get("serverless").or(spec.get("dedicated")).unwrap();
            assert_eq!(settings["network_visibility"], "PRIVATE");
            assert_eq!(settings["cidr_range"], "10.77.0.0/24");
            let note = allowlist_note(&private, true).unwrap();
            assert!(
                note.contains("chitin peering create my-shop") && !note.contains("every address"),
                "{note}"
            );
        }
    }

    #[test]
    fn a_storage_limit_is_asked_for_in_the_words_of_the_plan() {
        let limits =
            request(&wanted(PlanName::Serverless, &[])).spec.serverless.unwrap().usage_limits.unwrap();
        assert_eq!(limits.storage_mib_limit, Some(20 * 1_024));
        let hardware = request(&wanted(PlanName::Dedicated, &[])).spec.dedicated.unwrap().hardware.unwrap();
        assert_eq!(hardware.storage_gib, Some(20));
    }

    #[test]
    fn an_update_leaves_what_it_does_not_name() {
        let wanted = |storage, virtual_cpus, disk_iops| UpdateLimits {
            cluster: "my-shop".to_owned(),
            storage,
            virtual_cpus,
            disk_iops,
            connections: Some(300),
            plaintext_cancels: Some(Switch::Off),
        };
        let mut cluster = crate::fixtures::cluster();
        let ClusterConfig::Serverless(config) = &mut cluster.config else {
            panic!("the fixture is serverless");
        };
        config.usage_limits = Some(UsageLimits {
            request_unit_limit: Some(5),
            storage_mib_limit: Some(2_048),
            provisioned_virtual_cpus: None,
        });
        let changed = change(&wanted(None, Some(3), None), &cluster.config).unwrap();
        assert_eq!((changed.max_connections, changed.plaintext_cancels), (Some(300), Some(false)));
        let limits = changed.serverless.unwrap().usage_limits.unwrap();
        assert_eq!(limits.request_unit_limit, Some(5));
        assert_eq!(limits.storage_mib_limit, Some(2_048));
        assert_eq!(limits.provisioned_virtual_cpus, Some(3));
        assert!(change(&wanted(None, None, Some(100)), &cluster.config).is_err());
    }

    #[test]
    fn ranges_of_its_own_mean_that_a_serverless_cluster_does_not_begin_open() {
        let begins_empty = |allow: &[&str]| {
            request(&wanted(PlanName::Serverless, allow)).spec.serverless.unwrap().with_empty_ip_allowlist
        };
        assert_eq!((begins_empty(&[]), begins_empty(&["10.0.0.0/8"])), (None, Some(true)));
        let dedicated = request(&wanted(PlanName::Dedicated, &[])).spec;
        assert!(dedicated.serverless.is_none() && dedicated.delete_protection == Some(Protection::Enabled));
    }
}
