//! Connections of engines to the outside: opened to an address that was checked, and carried as long as it is permitted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use model::{ClusterId, FetchFailure};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::gate::{Gate, Way, failed, refused};
use crate::perimeter::Target;

/// For the look-up and all addresses together.
const DIAL_MAX: Duration = Duration::from_secs(10);
/// A far side that is silently gone is noticed after this and a few tries more; otherwise an idle connection may last.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// A connection to the outside that was let through.
pub struct Passage {
    far: TcpStream,
    way: Way,
    changes: watch::Receiver<u64>,
}

impl Gate {
    /// Opens a connection for a cluster's engine: as a fetch is judged, and never to this machine itself, whatever the
    /// operator opened. Its services take what comes from here for their own. How many a cluster opens at once is for the
    /// caller to bound.
    pub async fn open(&self, cluster: ClusterId, target: Target) -> Result<Passage, FetchFailure> {
        timeout(DIAL_MAX.min(self.settings.time_max), self.dial(cluster, target))
            .await
            .unwrap_or(Err(FetchFailure::TimedOut))
    }

    async fn dial(&self, cluster: ClusterId, target: Target) -> Result<Passage, FetchFailure> {
        let _all = self.dials.turns.acquire().await.map_err(|_| failed("the gate is closed"))?;
        let changes = self.perimeter.changes();
        let way = self.check(Some(cluster), target, &self.dials).await?;
        if let Some(own) = way.addresses.iter().find(|address| is_here(address.ip())) {
            return Err(refused(format!(
                "{} is at {}, which is this machine: engines never reach it",
                way.target.host,
                own.ip()
            )));
        }
        let far = tokio::select! {
            biased;
            why = self.closed(&way, changes.clone()) => return Err(refused(why)),
            far = first(&way.addresses) => far?,
        };
        Ok(Passage { far, way, changes })
    }

    /// Carries bytes both ways until both sides have ended, or until the way is closed. Gives the bytes out and in.
    pub async fn carry(&self, passage: Passage, mut near: TcpStream) -> Result<(u64, u64), FetchFailure> {
        let Passage { mut far, way, changes } = passage;
        tokio::select! {
            biased;
            why = self.closed(&way, changes) => Err(refused(why)),
            ended = copy_bidirectional(&mut near, &mut far) => ended.map_err(|cause| failed(cause.to_string())),
        }
    }
}

/// The first address that answers.
async fn first(addresses: &[SocketAddr]) -> Result<TcpStream, FetchFailure> {
    let mut causes = Vec::new();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(far) => {
                // Without them a connection works too.
                let _ = far.set_nodelay(true);
                let _ =
                    SockRef::from(&far).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER));
                return Ok(far);
            }
            Err(cause) => causes.push(format!("{address}: {cause}")),
        }
    }
    Err(failed(causes.join("; ")))
}

/// Whether an address is this machine's own: the kernel would send from it to itself. Nothing is sent to find out.
fn is_here(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        // Any port will do: the kernel only chooses the way.
        socket.connect((address, 9))?;
        socket.local_addr()
    };
    // Where there is no way at all, there is nothing to reach either.
    address.is_loopback() || source().is_ok_and(|source| source.ip() == address)
}

impl std::fmt::Debug for Passage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Passage({})", self.way.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_each_of_its_addresses() {
        for own in ["127.0.0.1", "127.200.1.1", "::1"] {
            assert!(is_here(own.parse().unwrap()), "{own}");
        }
        // Whatever address this machine has on a network, if it has one.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_ok() {
            let own = socket.local_addr().unwrap().ip();
            assert!(is_here(own), "{own}");
        }
        assert!(!is_here("192.0.2.1".parse().unwrap()) && !is_here("2001:db8::1".parse().unwrap()));
    }
}
