//! A throw-away cluster: attacks that need other rules than the cluster's own must not touch those that people rely on.

use std::time::Duration;

use api::{CreateCluster, CreateServerless, CreateSpec, PutExpiry, SecretText};
use model::{ClusterId, ClusterState, Provider, Tier};
use tokio::time::{Instant, sleep};

use super::address::Journal;
use super::amnesty::Amnesty;
use super::row::{Row, Verdict};
use super::target::Target;
use super::{certificates, customer_keys, doors, egress, private, throttle, tokens};
use crate::cloud::Cloud;
use crate::failure::{Failure, Kind};
use crate::password;

/// For the cluster to be made.
const MAKE_MAX: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long the cluster exists without us: the cloud deletes it when we are killed.
const LASTS_SECONDS: u32 = 120;
/// How often we say that we are still there. Several may be lost.
const KEEP_EVERY: Duration = Duration::from_secs(15);
/// The region of the throw-away cluster.
pub const REGION: &str = "local";
/// The throw-away user of the throw-away cluster.
pub const USER: &str = "verify_guest";

/// The cluster and what is needed to attack it.
pub struct Stage<'a> {
    /// The cloud that it stands in.
    pub cloud: &'a Cloud,
    /// Its id.
    pub id: ClusterId,
    /// Its front door, whose throttle forgives.
    pub target: Target,
    /// The password of [`USER`].
    pub password: SecretText,
}

/// Makes the cluster and makes every attack that needs one.
pub async fn rows(cloud: &Cloud, door: &Target, name: &str) -> Vec<Row> {
    tokio::select! {
        rows = attacks(cloud, door, name) => rows,
        () = keep(cloud, name) => Vec::new(),
    }
}

/// Keeps the cluster alive, for as long as it is wanted.
async fn keep(cloud: &Cloud, name: &str) {
    let wanted = PutExpiry { expires_in_seconds: Some(LASTS_SECONDS) };
    loop {
        sleep(KEEP_EVERY).await;
        // One that is not there yet, or a cloud that does not answer, shows in the attacks.
        if let Ok(Some(cluster)) = cloud.api.cluster_by_name(name).await {
            let _ = cloud.api.set_expiry(cluster.id, wanted).await;
        }
    }
}

async fn attacks(cloud: &Cloud, door: &Target, name: &str) -> Vec<Row> {
    let stage = match raise(cloud, door, name).await {
        Ok(stage) => stage,
        Err(failure) => {
            let what = format!("no throw-away cluster could be made for it: {}", failure.what);
            return vec![Verdict::failed(what).on("sign-in", "certificates, tokens and the throttle")];
        }
    };
    let mut rows = certificates::attack(&stage).await;
    rows.extend(tokens::attack(&stage).await);
    rows.extend(throttle::attack(&stage).await);
    // Before the attack on its egress, after which it reaches nothing.
    rows.extend(customer_keys::attack(&stage).await);
    rows.extend(egress::attack(&stage).await);
    rows.extend(private::attack(&stage).await);
    rows.extend(doors::attack(&stage).await);
    rows
}

/// Removes the cluster, if it was made.
pub async fn strike(cloud: &Cloud, name: &str) -> Result<(), Failure> {
    let Some(cluster) = cloud.api.cluster_by_name(name).await? else {
        return Ok(());
    };
    cloud.api.delete_cluster(cluster.id).await.map(drop).map_err(|error| {
        Failure::new(Kind::Failed, format!("the cluster {name} could not be removed: {error}"))
            .next(format!("chitin cluster delete {name} --yes"))
    })
}

async fn raise<'a>(cloud: &'a Cloud, door: &Target, name: &str) -> Result<Stage<'a>, Failure> {
    let spec = CreateSpec {
        plan: Some(Tier::Basic),
        serverless: Some(CreateServerless {
            regions: vec![REGION.to_owned()],
            ..CreateServerless::default()
        }),
        expires_in_seconds: Some(LASTS_SECONDS),
        ..CreateSpec::default()
    };
    let request = CreateCluster { name: name.to_owned(), provider: Provider::Gcp, spec };
    let made = cloud.api.create_cluster(&request).await?;
    let end = Instant::now() + MAKE_MAX;
    loop {
        let seen = cloud.api.cluster(made.id).await?;
        match seen.state {
            ClusterState::Created => break,
            ClusterState::Creating | ClusterState::Locked if Instant::now() < end => sleep(LOOK_EVERY).await,
            _ => return Err(Failure::new(Kind::Failed, "it is not made in time, or cannot be")),
        }
    }
    let ours = door.connect(None).await?.local_addr().map_err(super::wire::Fault::from)?.ip();
    // It goes with the cluster, so it need not be undone.
    Journal::new(&cloud.api, made.id).admit(ours).await?;
    let password = password::generate()?;
    cloud.api.create_sql_user(made.id, USER, password.clone()).await?;
    let handle = made.handle().to_owned();
    let amnesty = Some(Amnesty::new(&cloud.api, &handle, ours));
    Ok(Stage { cloud, id: made.id, target: Target { handle, amnesty, ..door.clone() }, password })
}
