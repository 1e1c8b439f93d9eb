//! Attacks on doors: a header that only a balancer may send, and private endpoints that nobody accepted.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use api::{AllowlistEntry, EndpointDecision, EndpointStatus};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::row::{Row, Verdict};
use super::session::{Channel, Claim, enter, sign_in};
use super::stage::{Stage, USER};
use super::target::{ANSWER_MAX, Target, within};
use super::wire::Fault;

const ALLOWLIST: &str = "IP allowlist";
const ENDPOINTS: &str = "VPC peering, PrivateLink";
/// Another address of this machine's loopback network, which nobody uses.
const VISITOR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 79));
/// For how long the visitor may stay.
const VISIT: Duration = Duration::from_secs(3);
/// For what changed to be in force: the design allows 200 ms.
const IN_FORCE_MAX: Duration = Duration::from_millis(500);

/// Every attack of this file. The visitor comes last: it needs the list narrowed.
pub async fn attack(stage: &Stage<'_>) -> Vec<Row> {
    let [refused, cut] = match endpoint(stage).await {
        Ok(verdicts) => verdicts,
        Err(fault) => {
            let failed = Verdict::from(Err::<Verdict, _>(fault));
            [failed.clone(), failed]
        }
    };
    vec![
        Verdict::from(header(&stage.target).await)
            .on(ALLOWLIST, "a PROXY header at the public listener makes nobody another address"),
        refused.on(ENDPOINTS, "a private endpoint that nobody accepted is refused"),
        cut.on(
            ENDPOINTS,
            "an accepted one needs no allowlist entry, and loses its sessions when it is rejected",
        ),
        Verdict::from(visit(stage).await).on(ALLOWLIST, "an entry that expires cuts its sessions"),
    ]
}

/// A PROXY protocol header, version 2 (HAProxy, proxy-protocol.txt, section 2.2), that names a client and, with a type-length-value,
/// an endpoint.
fn proxy_header(client: Ipv4Addr, endpoint: &[u8]) -> Vec<u8> {
    let length = u16::try_from(12 + endpoint.len()).unwrap_or(12);
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend(length.to_be_bytes());
    header.extend(client.octets());
    header.extend(Ipv4Addr::LOCALHOST.octets());
    header.extend([0xc0, 0, 0x66, 0x91]);
    header.extend(endpoint);
    header
}

async fn header(target: &Target) -> Result<Verdict, Fault> {
    let mut tcp = target.connect(None).await?;
    let mut bytes = proxy_header(Ipv4Addr::new(198, 51, 100, 7), &[]);
    bytes.extend([0, 0, 0, 8, 4, 210, 22, 47]);
    tcp.write_all(&bytes).await?;
    let mut answer = [0; 1];
    let read = timeout(ANSWER_MAX, tcp.read(&mut answer)).await.map_err(|_| Fault::Silent(ANSWER_MAX))?;
    Ok(match read {
        Ok(1) if answer == *b"S" => Verdict::failed("the header was read, and the connection went on"),
        Ok(0) | Err(_) => Verdict::proven("sent before SSLRequest: the connection was closed"),
        Ok(_) => Verdict::proven("sent before SSLRequest: refused as no message of the protocol"),
    })
}

async fn endpoint(stage: &Stage<'_>) -> Result<[Verdict; 2], Fault> {
    let (api, id) = (&stage.cloud.api, stage.id);
    let missing = |why: String| Ok([Verdict::missing(why.clone()), Verdict::missing(why)]);
    let services = api.endpoint_services(id).await.map_err(setup)?.services;
    let listener = services.first().and_then(|service| service.listener.clone()).unwrap_or_default();
    let Some(door) = listener.split(" with a PROXY header").next().and_then(|text| text.parse().ok()) else {
        return missing(
            "the cloud has no listener for private endpoints (chitin start --endpoint)".to_owned(),
        );
    };
    let mut number = [0; 8];
    aws_lc_rs::rand::fill(&mut number).map_err(|_| Fault::Setup("no randomness".to_owned()))?;
    let name = format!("vpce-{}", hex::encode(number));
    let mut value = vec![0xea, 0, u8::try_from(1 + name.len()).unwrap_or_default(), 1];
    value.extend(name.as_bytes());
    let target = through(&stage.target, door, proxy_header(Ipv4Addr::new(198, 51, 100, 7), &value));
    let claim = honest(stage, None);
    let refusal = match sign_in(&target, claim).await {
        Ok(attempt) if attempt.session.is_some() => {
            let failed = Verdict::failed(format!("{name} was let in"));
            return Ok([failed.clone(), failed]);
        }
        Ok(attempt) => attempt.refusal.unwrap_or_default(),
        Err(Fault::Io(_)) => {
            return missing(format!(
                "{door} does not believe PROXY headers from here (chitin start --proxy-from)"
            ));
        }
        Err(fault) => return Err(fault),
    };
    let refused = if refusal.code == "28000" {
        Verdict::proven(format!("{name}: {refusal}"))
    } else {
        Verdict::failed(format!("{name} was not refused for what it is: {refusal}"))
    };
    // It is written down a moment later.
    sleep(IN_FORCE_MAX).await;
    let known = api.endpoint_connections(id).await.map_err(setup)?;
    let waits = known
        .iter()
        .any(|known| known.endpoint_id == name && known.status == EndpointStatus::PendingAcceptance);
    if !waits {
        return Ok([refused, Verdict::failed(format!("{name} does not wait for acceptance"))]);
    }
    let decide = |decision| api.decide_endpoint_connection(id, &name, decision, None);
    decide(EndpointDecision::Available).await.map_err(setup)?;
    let mut session = enter(&target, claim).await?;
    decide(EndpointDecision::Rejected).await.map_err(setup)?;
    sleep(IN_FORCE_MAX).await;
    let cut = match session.wire.query("select 1", ANSWER_MAX).await {
        Ok(answer) => match answer.error {
            Some(refusal) => Verdict::proven(format!("accepted: in; rejected: {refusal}")),
            None => Verdict::failed("a session outlives its endpoint"),
        },
        Err(fault) if fault.is_end() => Verdict::proven("accepted: in; rejected: the session had ended"),
        Err(fault) => Verdict::failed(fault.to_string()),
    };
    Ok([refused, cut])
}

/// An address that is let in for some seconds. The list ends with the cluster, so nothing is put back.
async fn visit(stage: &Stage<'_>) -> Result<Verdict, Fault> {
    if !stage.target.address.ip().is_loopback() {
        return Ok(Verdict::missing("can be attacked only where the cloud listens on loopback"));
    }
    let (api, id) = (&stage.cloud.api, stage.id);
    let ours = stage.target.connect(None).await?.local_addr()?.ip();
    let entry = |address: IpAddr, expires_at| AllowlistEntry {
        cidr_ip: address.to_string(),
        cidr_mask: if address.is_ipv4() { 32 } else { 128 },
        name: String::new(),
        ui: false,
        sql: true,
        expires_at,
    };
    let before = api.allowlist(id).await.map_err(setup)?;
    api.add_allowlist_entry(id, &entry(ours, None)).await.map_err(setup)?;
    let until = OffsetDateTime::now_utc() + VISIT;
    api.add_allowlist_entry(id, &entry(VISITOR, Some(until))).await.map_err(setup)?;
    for line in before {
        let range = format!("{}/{}", line.cidr_ip, line.cidr_mask).parse().map_err(setup)?;
        api.delete_allowlist_entry(id, range).await.map_err(setup)?;
    }
    let mut visitor = enter(&stage.target, honest(stage, Some(VISITOR))).await?;
    // Nobody says a word: the time alone ends it.
    let ended = within(visitor.wire.receive(VISIT + IN_FORCE_MAX)).await?;
    Ok(match ended {
        Ok(message) if message.tag == b'E' => {
            Verdict::proven(format!("{}: {}", VISITOR, super::wire::Refusal::parse(&message.body)))
        }
        Ok(_) => Verdict::failed("the session goes on"),
        Err(fault) if fault.is_end() => Verdict::proven(format!("{VISITOR}: the session had ended")),
        Err(Fault::Silent(_)) => Verdict::failed("the session outlives its entry"),
        Err(fault) => Verdict::failed(fault.to_string()),
    })
}

fn honest<'a>(stage: &'a Stage<'_>, source: Option<IpAddr>) -> Claim<'a> {
    Claim {
        handle: &stage.target.handle,
        user: USER,
        password: stage.password.expose(),
        channel: Channel::Bound,
        source,
    }
}

fn through(target: &Target, address: SocketAddr, preamble: Vec<u8>) -> Target {
    Target { address, preamble, ..target.clone() }
}

fn setup(error: impl std::fmt::Display) -> Fault {
    Fault::Setup(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_one_of_the_specification() {
        let header = proxy_header(Ipv4Addr::new(198, 51, 100, 7), &[0xea, 0, 1, 1]);
        assert_eq!(&header[..12], b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(&header[12..20], &[0x21, 0x11, 0, 16, 198, 51, 100, 7]);
        assert_eq!(header.len(), 16 + 16);
    }
}
