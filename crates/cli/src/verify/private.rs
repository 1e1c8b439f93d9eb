//! Attacks on a private cluster: by its name from outside, and through a network namespace that is joined with it, and no
//! longer joined.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use api::{AcceptPeering, CreatePeering, JoinWith, PeeringState, PutNetwork};
use model::{PeeringName, Visibility};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::row::{Row, Verdict};
use super::session::{Attempt, Channel, Claim, sign_in};
use super::stage::{Stage, USER};
use super::target::within;
use super::wire::Fault;

const PRIVATE: &str = "private clusters";
const PEERING: &str = "VPC peering, PrivateLink";
/// For a network or a link to be made.
const MADE_MAX: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// For a connection inside a namespace.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Every attack of this file. The cluster is public again afterwards.
pub async fn attack(stage: &Stage<'_>) -> Vec<Row> {
    let unseen = "no public listener answers to its name: it looks like a cluster that does not exist";
    let joined = "a joined network reaches the private listener's ports and nothing else, and nothing once it is parted";
    let network = PutNetwork { visibility: Visibility::Private, cidr_range: None };
    let made = stage.cloud.api.set_network(stage.id, &network).await;
    if let Err(error) = made {
        let why = format!("this machine has no private networks: {error}");
        return vec![
            Verdict::missing(why.clone()).on(PRIVATE, unseen),
            Verdict::missing(why).on(PEERING, joined),
        ];
    }
    let rows = vec![
        Verdict::from(by_name(stage).await).on(PRIVATE, unseen),
        Verdict::from(by_peering(stage).await).on(PEERING, joined),
    ];
    let public = PutNetwork { visibility: Visibility::Public, cidr_range: None };
    // The cluster is thrown away in any case; what comes after finds it as it was.
    let _ = stage.cloud.api.set_network(stage.id, &public).await;
    rows
}

/// The right password at the public door, for the private cluster and for one that never was.
async fn by_name(stage: &Stage<'_>) -> Result<Verdict, Fault> {
    let own = attempt(stage, &stage.target.handle).await?;
    let never = attempt(stage, &format!("never-{}", stage.target.handle)).await?;
    let same =
        |attempt: &Attempt| (attempt.asked.clone(), attempt.mechanisms.clone(), attempt.refusal.clone());
    Ok(match (&own.session, &own.refusal) {
        (Some(_), _) => Verdict::failed("the private cluster let somebody in at the public listener"),
        (None, _) if same(&own) != same(&never) => {
            Verdict::failed(format!("{:?}, and for one that never was: {:?}", own.refusal, never.refusal))
        }
        (None, Some(refusal)) => Verdict::proven(format!("{refusal}; the same for one that never was")),
        (None, None) => Verdict::failed("the public listener said nothing at all"),
    })
}

async fn attempt(stage: &Stage<'_>, handle: &str) -> Result<Attempt, Fault> {
    let password = stage.password.expose();
    sign_in(&stage.target, Claim { handle, user: USER, password, channel: Channel::Bound, source: None })
        .await
}

async fn by_peering(stage: &Stage<'_>) -> Result<Verdict, Fault> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Verdict::missing("only root can make a network namespace to come from"));
    }
    let namespace = format!("verify-{}", stage.target.handle.rsplit('-').next().unwrap_or_default());
    if let Err(fault) = ip(&["netns", "add", &namespace]).await {
        return Ok(Verdict::missing(format!("no network namespace could be made to come from: {fault}")));
    }
    let verdict = from_namespace(stage, &namespace).await;
    ip(&["netns", "del", &namespace]).await?;
    verdict
}

async fn from_namespace(stage: &Stage<'_>, namespace: &str) -> Result<Verdict, Fault> {
    let (api, id) = (&stage.cloud.api, stage.id);
    let name: PeeringName = "verify".parse().map_err(setup)?;
    let with = JoinWith::Namespace { namespace: namespace.to_owned() };
    let wanted = CreatePeering { name: name.to_string(), with, ranges: Vec::new() };
    api.create_peering(id, &wanted).await.map_err(setup)?;
    let network = api.network(id).await.map_err(setup)?;
    let front_door = network.front_door.ok_or_else(|| setup("the network has no private listener"))?;
    let (sql, http) = (network.sql_port, network.http_port);
    let before = answers(namespace, front_door, sql).await;
    api.accept_peering(id, &name, &AcceptPeering::default()).await.map_err(setup)?;
    let end = Instant::now() + MADE_MAX;
    loop {
        let status = api.peering(id, &name).await.map_err(setup)?.status;
        match (status.state, status.reason) {
            (PeeringState::Active, _) => break,
            // The cloud may run in another container, and see other namespaces.
            (PeeringState::Failed, reason) => {
                let _ = api.delete_peering(id, &name).await;
                return Ok(Verdict::missing(format!("it was not joined: {}", reason.unwrap_or_default())));
            }
            _ if Instant::now() < end => sleep(LOOK_EVERY).await,
            _ => return Ok(Verdict::failed("it is not joined in time")),
        }
    }
    let front = (answers(namespace, front_door, sql).await, opens(namespace, front_door, http).await);
    let mut others = Vec::new();
    for port in [22, 5432, 8081].into_iter().filter(|port| *port != sql && *port != http) {
        if opens(namespace, front_door, port).await {
            others.push(port);
        }
    }
    api.delete_peering(id, &name).await.map_err(setup)?;
    let gone = Instant::now() + MADE_MAX;
    while answers(namespace, front_door, sql).await {
        if Instant::now() >= gone {
            return Ok(Verdict::failed("the private listener answers a network that is no longer joined"));
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(match (before, front, others.is_empty()) {
        (true, _, _) => Verdict::failed("the private listener answered before the peering was accepted"),
        (false, (true, true), true) => Verdict::proven(format!(
            "from a namespace: {front_door} ports {sql} and {http}; no other, nothing before it was accepted or after it was deleted"
        )),
        (false, (true, true), false) => Verdict::failed(format!("other ports answer too: {others:?}")),
        (false, _, _) => Verdict::failed("the private listener does not answer a network that is joined"),
    })
}

/// Whether a PostgreSQL server that speaks TLS answers there.
async fn answers(namespace: &str, address: IpAddr, port: u16) -> bool {
    inside(namespace, move || {
        let mut tcp = TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_MAX)?;
        tcp.set_read_timeout(Some(CONNECT_MAX))?;
        tcp.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
        let mut answer = [0];
        tcp.read_exact(&mut answer)?;
        Ok(answer == *b"S")
    })
    .await
}

async fn opens(namespace: &str, address: IpAddr, port: u16) -> bool {
    inside(namespace, move || {
        TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_MAX).map(|_| true)
    })
    .await
}

/// Does something in a network namespace, on a thread that ends there.
async fn inside(namespace: &str, work: impl FnOnce() -> std::io::Result<bool> + Send + 'static) -> bool {
    let path = format!("/run/netns/{namespace}");
    let thread = std::thread::spawn(move || {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        let namespace = std::fs::File::open(path)?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
        work()
    });
    let ended = tokio::task::spawn_blocking(move || thread.join()).await;
    matches!(ended, Ok(Ok(Ok(true))))
}

async fn ip(arguments: &[&str]) -> Result<(), Fault> {
    let done = within(Command::new("ip").args(arguments).output()).await?.map_err(setup)?;
    if done.status.success() {
        return Ok(());
    }
    Err(setup(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim())))
}

fn setup(error: impl std::fmt::Display) -> Fault {
    Fault::Setup(error.to_string())
}
