//! Which door a client comes through, and what the door says of it: the real address, and the way.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use keys::client::key_digest;
use model::{AddressRange, ClusterId, EndpointId, Origin, Way};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use wire::proxy::{CloudEndpoint, PROXY_PREFIX_BYTES, Proxied, ProxyHeader, ProxyPrefix};

use crate::Certificates;
use crate::line::Line;
use crate::refusal::Refusal;
use crate::tls::presented;

/// For a PROXY header to arrive: a balancer sends it at once.
const HEADER_MAX: Duration = Duration::from_secs(3);

/// What kind of door a listener is. Nothing that a client says changes it.
#[derive(Clone, Debug)]
pub enum Door {
    /// Everybody finds it. A PROXY header here is no PROXY header.
    Public,
    /// Behind a balancer: every connection begins with a PROXY header, from one of these peers, and the header's source
    /// is the client.
    Balanced(Arc<[AddressRange]>),
    /// For private endpoints of clouds: every connection begins with a PROXY header, from one of these peers, with the
    /// endpoint's id in it.
    Endpoints(Arc<[AddressRange]>),
    /// For private endpoints of one's own: connecting proxies that show a client certificate, whose key is the endpoint.
    Proxies,
    /// The front door inside this cluster's private network.
    Private(ClusterId),
}

impl Door {
    /// Who is at the other end of a connection, where the door knows that from the beginning.
    pub(crate) fn origin(&self, peer: SocketAddr) -> Option<Origin> {
        let address = model::canonical(peer.ip());
        match self {
            Self::Public | Self::Proxies => Some(Origin::public(address)),
            Self::Private(cluster) => Some(Origin { address, way: Way::Private(*cluster) }),
            Self::Balanced(_) | Self::Endpoints(_) => None,
        }
    }

    /// What the log calls it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Public => "SQL",
            Self::Balanced(_) => "SQL behind a balancer",
            Self::Endpoints(_) => "private endpoints",
            Self::Proxies => "private endpoints over TLS",
            Self::Private(_) => "SQL in a private network",
        }
    }

    /// Whether a connection comes from the client itself, and not from somebody who speaks for many.
    pub(crate) fn is_direct(&self) -> bool {
        match self {
            Self::Public | Self::Private(_) => true,
            Self::Balanced(_) | Self::Endpoints(_) | Self::Proxies => false,
        }
    }

    /// Whether the peer of a connection is who it is counted as: the client itself, or a proxy that nobody vouches for until
    /// it has shown a certificate. The others are listed by the operator, and speak for many.
    pub(crate) fn shows_clients(&self) -> bool {
        match self {
            Self::Public | Self::Proxies | Self::Private(_) => true,
            Self::Balanced(_) | Self::Endpoints(_) => false,
        }
    }
}

/// A client whose door has said where it comes from.
pub(crate) struct Arrived {
    pub(crate) line: Line,
    pub(crate) origin: Origin,
    /// Our own address inside the private network through which it came.
    pub(crate) inside: Option<IpAddr>,
}

/// What stands between a connection and its first own byte: reads what the door asks for, or refuses.
pub(crate) async fn arrive(
    mut tcp: TcpStream,
    peer: SocketAddr,
    door: &Door,
    certificates: &dyn Certificates,
) -> Result<Arrived, Refusal> {
    let address = model::canonical(peer.ip());
    let arrived = |line, origin| Arrived { line, origin, inside: None };
    match door {
        Door::Public => Ok(arrived(Line::tcp(tcp), Origin::public(address))),
        Door::Private(cluster) => {
            let inside = tcp.local_addr().ok().map(|local| model::canonical(local.ip()));
            let origin = Origin { address, way: Way::Private(*cluster) };
            Ok(Arrived { line: Line::tcp(tcp), origin, inside })
        }
        Door::Balanced(trusted) => {
            let header = read_proxy_header(&mut tcp, peer, trusted).await.ok_or(Refusal::Lost)?;
            Ok(arrived(Line::tcp(tcp), Origin::public(header.source().ip())))
        }
        Door::Endpoints(trusted) => {
            let header = read_proxy_header(&mut tcp, peer, trusted).await.ok_or(Refusal::Lost)?;
            let endpoint = header.endpoint()?.ok_or(Refusal::Lost)?;
            let way = Way::Endpoint(endpoint_id(endpoint));
            Ok(arrived(Line::tcp(tcp), Origin { address: model::canonical(header.source().ip()), way }))
        }
        Door::Proxies => {
            let tls = TlsAcceptor::from(certificates.shown(None, None).config.clone()).accept(tcp).await?;
            let certificate = presented(tls.get_ref().1).first();
            let digest = certificate.and_then(|certificate| key_digest(certificate)).ok_or(Refusal::Lost)?;
            let way = Way::Endpoint(EndpointId::Certificate(digest));
            Ok(arrived(Line::tunnel(tls), Origin { address, way }))
        }
    }
}

/// The client that a believed peer speaks for. Nothing else counts, and the connection is to be closed without a word: a
/// balancer's health check, a peer that is not listed, and what is no header or comes too slowly.
pub async fn read_proxy_header(
    tcp: &mut TcpStream,
    peer: SocketAddr,
    trusted: &[AddressRange],
) -> Option<Proxied> {
    if !trusted.iter().any(|range| range.contains(peer.ip())) {
        tracing::warn!(peer = %peer.ip(), "closed a connection: its peer may not send PROXY headers here (--proxy-from)");
        return None;
    }
    let reading = async {
        let mut prefix = [0; PROXY_PREFIX_BYTES];
        tcp.read_exact(&mut prefix).await?;
        let prefix = ProxyPrefix::parse(prefix)?;
        let mut body = vec![0; prefix.body_bytes()];
        tcp.read_exact(&mut body).await?;
        Ok::<_, Refusal>(prefix.header(&body)?)
    };
    match timeout(HEADER_MAX, reading).await {
        Ok(Ok(ProxyHeader::Client(client))) => Some(client),
        Ok(Ok(ProxyHeader::Local)) => None,
        Ok(Err(refusal)) => {
            tracing::warn!(peer = %peer.ip(), ?refusal, "closed a connection: no PROXY header that counts");
            None
        }
        Err(_) => {
            tracing::warn!(peer = %peer.ip(), "closed a connection: its PROXY header did not come in time");
            None
        }
    }
}

fn endpoint_id(endpoint: CloudEndpoint) -> EndpointId {
    match endpoint {
        CloudEndpoint::Aws(id) => EndpointId::Aws(id),
        CloudEndpoint::Gcp(number) => EndpointId::Gcp(number),
        CloudEndpoint::Azure(number) => EndpointId::Azure(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t09_a_stranger_at_the_door_for_proxies_is_counted_before_it_shows_a_certificate() {
        let trusted: Arc<[AddressRange]> = Arc::from(["10.0.0.0/28".parse().unwrap()]);
        // A balancer that is listed speaks for many; nobody vouches for who knocks at the door for proxies.
        assert!(Door::Proxies.shows_clients() && Door::Public.shows_clients());
        assert!(
            !Door::Balanced(trusted.clone()).shows_clients() && !Door::Endpoints(trusted).shows_clients()
        );
    }
}
