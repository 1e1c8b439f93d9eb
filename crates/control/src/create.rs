//! Creating a cluster: a request becomes a draft, a draft becomes a wish.

use std::collections::BTreeMap;

use api::{CreateCluster, CreateDedicated, CreateServerless, Machine, Protection, UpgradeType};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State as Shared;
use model::{
    AddressRange, AllowlistEntry, Asked, Cluster, ClusterName, Egress, EgressPolicy, Network, Plan, Tier,
    Wish,
};
use store::{Draft, Store};
use time::{Duration, OffsetDateTime};

use crate::network::ranges::Others;
use crate::update::{connections, keep_hardware, keep_limits};
use crate::{Refusal, State, clusters, expiry, input, network, versions};

/// A client whose connection broke sends its request again; within this time it gets the first result.
pub(crate) const REPEAT_MAX: Duration = Duration::minutes(1);
const REGIONS_MAX: usize = 32;
const REGION_CHARACTERS_MAX: usize = 64;
const LABELS_MAX: usize = 50;
const LABEL_CHARACTERS_MAX: usize = 63;

/// Wishes for a cluster and answers at once; clients look until it is made.
pub(crate) async fn create(Shared(state): Shared<State>, body: Bytes) -> Result<Json<api::Cluster>, Refusal> {
    let request: CreateCluster = input::body(&body)?;
    let expires_at = expiry::end(request.spec.expires_in_seconds, input::now(&state))?;
    let (version, plaintext_cancels) = (request.spec.postgres_version, request.spec.plaintext_cancels);
    let mut draft = draft(request)?;
    draft.asked.expires_at = expires_at;
    let machine = state.administration.machine();
    draft.asked.postgres_major = Some(versions::choose(&machine, version)?);
    if state.store.snapshot().organization().allowlist_starts_closed {
        draft.allowlist.clear();
    }
    if draft.network != Network::default() {
        network::machine_allows(&state)?;
    }
    draft.network.refuses_plaintext_cancels = plaintext_cancels == Some(false);
    can_encrypt(&machine)?;
    let (store, now) = (state.store.clone(), state.clock.now());
    let work = move || match make(&store, &draft, now) {
        Ok(cluster) => Ok(cluster.id),
        Err(NotMade::Store(store::Error::NameTaken(name))) => {
            let snapshot = store.snapshot();
            let first = snapshot.by_name(&name).map(|entry| &entry.cluster);
            match first {
                Some(first)
                    if input::is_repeated(first.created_at, now, REPEAT_MAX) && is_same(first, &draft) =>
                {
                    Ok(first.id)
                }
                _ => Err(Refusal::from(store::Error::NameTaken(name))),
            }
        }
        Err(NotMade::Store(error)) => Err(error.into()),
        Err(NotMade::Refused(refusal)) => Err(refusal),
    };
    let id = tokio::task::spawn_blocking(work).await.map_err(Refusal::internal)??;
    clusters::find(&state, id).map(Json)
}

/// Refuses where nothing would encrypt the cluster's files and the operator did not accept that.
fn can_encrypt(machine: &Machine) -> Result<(), Refusal> {
    match &machine.no_encryption_reason {
        Some(reason) if machine.encryption.is_none() && !machine.is_unencrypted_allowed => {
            Err(Refusal::wrong_state(format!(
                "this machine cannot encrypt a cluster's files ({reason}), so none is made; chitin start as root, or with gocryptfs and \
                 fuse3 installed, can, and if you accept files in plaintext: chitin start --allow-unencrypted"
            )))
        }
        _ => Ok(()),
    }
}

/// Why a draft did not become a cluster.
enum NotMade {
    Store(store::Error),
    /// It does not go together with the other clusters.
    Refused(Refusal),
}

impl From<store::Error> for NotMade {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

fn make(store: &Store, draft: &Draft, now: OffsetDateTime) -> Result<Cluster, NotMade> {
    store.create_among(draft.clone(), now, |network, all| {
        network::complete(network, &Others::of(None, all)).map_err(NotMade::Refused)
    })
}

/// Whether the cluster is what the draft asks for, unchanged since.
fn is_same(cluster: &Cluster, draft: &Draft) -> bool {
    let Draft {
        name,
        plan,
        provider,
        regions,
        labels,
        is_delete_protected,
        allowlist,
        network,
        egress,
        asked,
    } = draft;
    matches!(cluster.wish, Wish::Exists(_))
        && cluster.name == *name
        && cluster.plan == *plan
        && cluster.provider == *provider
        && cluster.regions == *regions
        && cluster.labels == *labels
        && cluster.is_delete_protected == *is_delete_protected
        && cluster.allowlist == *allowlist
        && network::is_same(&cluster.network, network)
        && cluster.egress == *egress
        && is_same_asked(&cluster.asked, asked)
}

/// Whether both ask for the same. The same number of seconds is another moment each time.
fn is_same_asked(known: &Asked, asked: &Asked) -> bool {
    let without_moment = |asked: &Asked| Asked { expires_at: None, ..asked.clone() };
    known.expires_at.is_some() == asked.expires_at.is_some() && without_moment(known) == without_moment(asked)
}

fn draft(request: CreateCluster) -> Result<Draft, Refusal> {
    let name: ClusterName =
        request.name.parse().map_err(|error| Refusal::invalid(format_args!("{error}")))?;
    let spec = request.spec;
    if spec.customer_cloud_account.is_some() {
        return Err(Refusal::unbuilt("clusters in a customer's own cloud account are"));
    }
    parent(spec.parent_id.as_deref())?;
    let connections_max = connections(spec.max_connections)?;
    let mut asked = Asked { tier: spec.plan, connections_max, ..Asked::default() };
    let is_restricted = [
        spec.serverless.as_ref().and_then(|spec| spec.restrict_egress_traffic),
        spec.dedicated.as_ref().and_then(|spec| spec.restrict_egress_traffic),
    ]
    .contains(&Some(true));
    let policy = if is_restricted { EgressPolicy::DefaultDeny } else { EgressPolicy::AllowAll };
    let (plan, network, regions, allowlist) = match (spec.serverless, spec.dedicated) {
        (Some(serverless), None) => {
            if spec.plan == Some(Tier::Advanced) {
                return Err(Refusal::invalid("plan ADVANCED goes with `dedicated`, not with `serverless`"));
            }
            let allowlist =
                if serverless.with_empty_ip_allowlist == Some(true) { Vec::new() } else { everybody() };
            let network =
                network::asked(serverless.network_visibility.as_deref(), serverless.cidr_range.as_deref())?;
            (Plan::Serverless, network, serverless_regions(serverless, &mut asked)?, allowlist)
        }
        (None, Some(dedicated)) => {
            if matches!(spec.plan, Some(Tier::Basic | Tier::Standard)) {
                return Err(Refusal::invalid(
                    "plans BASIC and STANDARD go with `serverless`, not with `dedicated`",
                ));
            }
            let network =
                network::asked(dedicated.network_visibility.as_deref(), dedicated.cidr_range.as_deref())?;
            (Plan::Dedicated, network, dedicated_regions(dedicated, &mut asked)?, Vec::new())
        }
        _ => return Err(Refusal::invalid("the spec holds either `serverless` or `dedicated`")),
    };
    Ok(Draft {
        name,
        plan,
        provider: request.provider,
        regions,
        labels: labels(spec.labels.unwrap_or_default())?,
        is_delete_protected: spec.delete_protection == Some(Protection::Enabled),
        allowlist,
        network,
        egress: Egress { policy, ..Egress::default() },
        asked,
    })
}

fn serverless_regions(spec: CreateServerless, asked: &mut Asked) -> Result<Vec<String>, Refusal> {
    let regions = regions(spec.regions)?;
    let primary = spec.primary_region.filter(|primary| !primary.is_empty());
    match &primary {
        Some(primary) if !regions.contains(primary) => {
            return Err(Refusal::invalid("primary_region is one of the regions"));
        }
        None if regions.len() > 1 => return Err(Refusal::invalid("several regions need a primary_region")),
        _ => asked.primary_region = primary,
    }
    keep_limits(asked, spec.usage_limits)?;
    asked.is_upgraded_by_hand = upgrade(spec.upgrade_type, asked.tier)?;
    Ok(regions)
}

fn dedicated_regions(spec: CreateDedicated, asked: &mut Asked) -> Result<Vec<String>, Refusal> {
    let has_text = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    if has_text(&spec.cockroach_version) || spec.region_machine_specs.is_some() {
        return Err(Refusal::unbuilt("cockroach_version and region_machine_specs are"));
    }
    keep_hardware(asked, spec.hardware)?;
    let regions = regions(spec.region_nodes.keys().cloned().collect())?;
    asked.region_nodes = spec.region_nodes;
    Ok(regions)
}

/// Checks regions' names. Any name is a region: the machine is the operator's.
pub(crate) fn regions(regions: Vec<String>) -> Result<Vec<String>, Refusal> {
    let is_name = |name: &String| {
        !name.is_empty()
            && name.chars().count() <= REGION_CHARACTERS_MAX
            && !name.chars().any(char::is_control)
    };
    let is_unique = regions.iter().collect::<std::collections::BTreeSet<_>>().len() == regions.len();
    if regions.is_empty() || regions.len() > REGIONS_MAX || !regions.iter().all(is_name) || !is_unique {
        return Err(Refusal::invalid(
            "one to 32 different regions are needed, of at most 64 characters each",
        ));
    }
    Ok(regions)
}

/// Checks labels.
pub(crate) fn labels(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refusal> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    let fits = |(key, value): (&String, &String)| {
        key.starts_with(|first: char| first.is_ascii_lowercase())
            && [key, value].iter().all(|text| text.len() <= LABEL_CHARACTERS_MAX && text.bytes().all(plain))
    };
    if labels.len() > LABELS_MAX || !labels.iter().all(fits) {
        return Err(Refusal::invalid(
            "at most 50 labels; keys begin with a letter, and keys and values have at most 63 lower-case letters, \
             digits, dashes and underscores",
        ));
    }
    Ok(labels)
}

/// There are no folders yet, only the root.
pub(crate) fn parent(id: Option<&str>) -> Result<(), Refusal> {
    match id {
        None | Some("" | "root") => Ok(()),
        Some(_) => Err(Refusal::unbuilt("folders (parent_id) are")),
    }
}

/// Whether versions change only by hand.
pub(crate) fn upgrade(kind: Option<UpgradeType>, tier: Option<Tier>) -> Result<bool, Refusal> {
    let is_by_hand = kind == Some(UpgradeType::Manual);
    if is_by_hand && tier == Some(Tier::Basic) {
        return Err(Refusal::invalid("upgrade_type MANUAL is not offered on plan BASIC"));
    }
    Ok(is_by_hand)
}

fn everybody() -> Vec<AllowlistEntry> {
    [AddressRange::EVERY_IPV4, AddressRange::EVERY_IPV6]
        .map(|range| AllowlistEntry { range, name: String::new(), sql: true, ui: true, expires_at: None })
        .into()
}
