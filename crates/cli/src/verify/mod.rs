//! `chitin verify`: attacks a running cluster from outside and prints what became of each claim.

mod address;
mod amnesty;
mod cancel;
mod certificates;
mod customer_keys;
mod doors;
mod egress;
mod http;
mod inside;
mod keeper;
mod later;
mod loopback;
mod private;
mod privileges;
mod report;
mod responder;
mod row;
mod scram;
mod session;
mod sign_in;
mod sleep;
mod stage;
mod target;
mod throttle;
mod tokens;
mod transport;
mod wire;

#[cfg(test)]
mod fakes;

use std::sync::Arc;

use api::Cluster;
use model::Visibility;
use rustls::RootCertStore;
use tokio::signal::unix::{SignalKind, signal};

use crate::cloud::Cloud;
use crate::failure::{Failure, Kind};
use crate::output::{self, Printer};
use crate::password;
use address::Journal;
use amnesty::Amnesty;
use row::Row;
use session::{Channel, Claim};
use target::{Target, within};
use wire::Fault;

/// Attacks the cluster and prints the table; fails if any claim does.
pub async fn run(cloud: &Cloud, text: &str, printer: Printer) -> Result<(), Failure> {
    let cluster = cloud.cluster(text).await?;
    if cluster.network_visibility == Visibility::Private {
        let name = &cluster.name;
        return Err(Failure::new(
            Kind::Failed,
            format!("{name} is private: it has no listener that can be attacked from here"),
        )
        .next(format!(
            "verify a public cluster of the same cloud, which attacks a private one of its own too; or, for the length of \
             the check: chitin cluster visibility {name} public"
        )));
    }
    let door = front_door(cloud, &cluster).await?;
    let api_door = api_door(cloud, &door.roots).await?;
    let user = format!("verify_{}", hex::encode(random()?));
    let stage = format!("verify-{}", hex::encode(&random()?[..4]));
    let password = password::generate()?;

    let journal = Journal::new(&cloud.api, cluster.id);
    let spinner = printer.spinner("making a throw-away SQL user");
    let say = |text: &'static str| spinner.set_message(text);
    let attacks = async {
        let ours = door.connect(None).await.and_then(|tcp| Ok(tcp.local_addr()?.ip()))?;
        if journal.admit(ours).await? {
            tokio::time::sleep(address::IN_FORCE_MAX).await;
        }
        // First, because making the user wakes the cluster.
        let asleep = sleep::attack(&cloud.api, &cluster, &door).await;
        cloud.api.create_sql_user(cluster.id, &user, password.clone()).await?;
        let password = password.expose();
        let honest =
            Claim { handle: &door.handle, user: &user, password, channel: Channel::Bound, source: None };
        let mut rows = Vec::new();
        say("attacking the encryption in flight");
        rows.extend(transport::attack(&door).await);
        say("attacking the sign-in");
        rows.extend(sign_in::attack(&door, &user, password).await);
        say("attacking the privileges");
        rows.extend(privileges::attack(&door, honest).await);
        say("attacking running queries");
        let takes_plaintext = cloud.api.detail(cluster.id).await?.plaintext_cancels;
        rows.extend(cancel::attack(&door, honest, takes_plaintext).await);
        say("attacking the allowlist");
        rows.extend(address::attack(&door, honest, &journal).await);
        say("attacking the API");
        rows.extend(http::attack(&api_door).await);
        say("attacking certificates, tokens and the throttle of a throw-away cluster");
        rows.extend(stage::rows(cloud, &door, &stage).await);
        say("looking inside");
        rows.extend(inside::rows(&cloud.api, cluster.id).await);
        rows.extend(asleep);
        rows.extend(later::rows());
        Ok::<Vec<Row>, Failure>(report::grouped(rows))
    };
    let rows = tokio::select! {
        rows = attacks => rows,
        () = stopped() => Err(Failure::new(Kind::Failed, "interrupted; what was attacked was put back")),
    };
    // Whatever happened, the allowlist is put back and what was made is removed; the signal is still caught, so that this is done too.
    say("cleaning up");
    let clean = clean_up(cloud, &cluster, &user, &journal).await.and(stage::strike(cloud, &stage).await);
    spinner.finish_and_clear();
    let rows = match rows {
        Ok(rows) => rows,
        Err(failure) => {
            if let Err(left) = clean {
                output::say(&left.to_string());
            }
            return Err(failure);
        }
    };
    report::print(&cluster.name, &rows, printer)?;
    clean?;
    report::verdict(&rows)
}

async fn clean_up(
    cloud: &Cloud,
    cluster: &Cluster,
    user: &str,
    journal: &Journal<'_>,
) -> Result<(), Failure> {
    let list = journal.restore().await.map_err(|fault| {
        Failure::new(Kind::Failed, "the allowlist could not be put back").next(fault.to_string())
    });
    let removed = match cloud.api.delete_sql_user(cluster.id, user).await {
        // It was never made, or somebody was faster.
        Ok(_) | Err(api::Error::NotFound { .. }) => Ok(()),
        Err(error) => {
            Err(Failure::new(Kind::Failed, format!("the user {user} could not be removed: {error}"))
                .next(format!("chitin user delete {} {user} --yes", cluster.name)))
        }
    };
    list.and(removed)
}

/// Where SQL clients connect, and what they trust.
async fn front_door(cloud: &Cloud, cluster: &Cluster) -> Result<Target, Failure> {
    let params = cloud.api.connection_string(cluster.id, None, None).await?.params;
    let pem = match &cloud.root {
        Some(root) => root.pem.clone(),
        None => cloud.api.authority().await?.pem,
    };
    let roots = Arc::new(target::roots(&pem)?);
    let address = reach(&params.host, params.port.parse().unwrap_or_default()).await?;
    let handle = cluster.handle().to_owned();
    let mut door = Target { address, host: params.host, handle, roots, preamble: Vec::new(), amnesty: None };
    let ours = door.connect(None).await?.local_addr().map_err(Fault::from)?.ip();
    door.amnesty = Some(Amnesty::new(&cloud.api, &door.handle, ours));
    Ok(door)
}

/// Where the API answers.
async fn api_door(cloud: &Cloud, roots: &Arc<RootCertStore>) -> Result<Target, Failure> {
    let wrong = || Failure::new(Kind::Usage, format!("`{}` names no host and port", cloud.url));
    let authority = cloud.url.trim_start_matches("https://").split('/').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (authority, 443),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = reach(host, port).await?;
    Ok(Target {
        address,
        host: host.to_owned(),
        handle: String::new(),
        roots: Arc::clone(roots),
        preamble: Vec::new(),
        amnesty: None,
    })
}

/// The first address of a host that takes a connection.
async fn reach(host: &str, port: u16) -> Result<std::net::SocketAddr, Failure> {
    let unreachable = |why: String| {
        Failure::new(Kind::Unreachable, format!("{host}:{port} cannot be reached: {why}"))
            .next("is the cloud running? chitin status")
    };
    let mut last = "the name has no address".to_owned();
    let found = within(tokio::net::lookup_host((host, port))).await?;
    for address in found.map_err(|error| unreachable(error.to_string()))? {
        match within(tokio::net::TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Ok(address),
            Ok(Err(error)) => last = error.to_string(),
            Err(fault) => last = fault.to_string(),
        }
    }
    Err(unreachable(last))
}

/// Ends when the person or the system asks the program to stop.
async fn stopped() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals: Vec<_> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
    if let [interrupt, terminate, hangup] = signals.as_mut_slice() {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    } else {
        // Signals cannot be watched: the attacks end by themselves.
        std::future::pending::<()>().await;
    }
}

fn random() -> Result<[u8; 8], Failure> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Failure::new(Kind::Failed, "the machine gives no randomness"))?;
    Ok(bytes)
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::new(Kind::Failed, fault.to_string())
    }
}
