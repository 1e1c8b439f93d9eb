//! Where a cluster may go: the question to whoever knows its policy, and the destination that it is asked about.

use std::net::IpAddr;

use model::{ClusterId, EgressHost, FetchFailure};
use tokio::sync::watch;
use url::{Host, Url};

use crate::gate::refused;

/// Longest text that names a destination, in bytes.
pub(crate) const URL_BYTES_MAX: usize = 4_096;

/// Where somebody wants to go, as it was asked for: nothing is resolved yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host.
    pub host: EgressHost,
    /// The TCP port, 1 to 65535.
    pub port: u16,
}

/// Where a connection would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination<'a> {
    /// What was asked for.
    pub target: &'a Target,
    /// The address that would be connected to; IPv4 in its own form.
    pub address: IpAddr,
}

/// Whoever knows what may leave each cluster.
pub trait Perimeter: Send + Sync + 'static {
    /// Whether the cluster may connect there at this moment. The text says why not, and what an operator can do about it.
    /// A cluster that is not known may go nowhere.
    fn judge(&self, cluster: ClusterId, to: &Destination<'_>) -> Result<(), String>;

    /// Whether the cluster might be let through there, whatever the host's addresses are. Asked before a name is resolved:
    /// a question to a name's own servers leaves too, and carries whatever is written in the name. The text as above.
    fn may_look_up(&self, cluster: ClusterId, target: &Target) -> Result<(), String>;

    /// Tells of every moment at which an answer may have become another one.
    fn changes(&self) -> watch::Receiver<u64>;
}

impl Target {
    /// Reads a URL, or `HOST:PORT`. Hosts are read as in an `http` URL, where `127.1` is an address.
    pub fn read(text: &str) -> Result<Self, FetchFailure> {
        let wrong = || refused("a destination is a URL, or HOST:PORT, for instance storage.example.com:443");
        if text.len() > URL_BYTES_MAX {
            return Err(refused(format!("the destination is longer than {URL_BYTES_MAX} bytes")));
        }
        let place = if text.contains("://") {
            let url = Url::parse(text).map_err(|_| wrong())?;
            let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
            let port = url.port_or_known_default().ok_or_else(|| {
                refused("the URL names no port, and its scheme has none that is known here")
            })?;
            format!("{host}:{port}")
        } else {
            // Without a port it would be that of the scheme below, which nobody asked for.
            let (_, port) = text.rsplit_once(':').ok_or_else(wrong)?;
            if port.is_empty()
                || !port.bytes().all(|b| b.is_ascii_digit())
                || text.contains(['/', '\\', '?', '#', '@'])
            {
                return Err(wrong());
            }
            text.to_owned()
        };
        Self::of_url(&Url::parse(&format!("http://{place}/")).map_err(|_| wrong())?)
    }

    /// Where a URL leads.
    pub(crate) fn of_url(url: &Url) -> Result<Self, FetchFailure> {
        let port = url
            .port_or_known_default()
            .filter(|port| *port != 0)
            .ok_or_else(|| refused("the URL has no usable port"))?;
        let host = match url.host() {
            Some(Host::Ipv4(address)) => EgressHost::Address(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => EgressHost::Address(model::canonical(IpAddr::V6(address))),
            Some(Host::Domain(name)) => EgressHost::read(name),
            None => return Err(refused("the URL has no host")),
        };
        Ok(Self { host, port })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            EgressHost::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            EgressHost::Address(IpAddr::V4(_)) | EgressHost::Name(_) => {
                write!(f, "{}:{}", self.host, self.port)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_url_or_a_host_with_its_port() {
        for (text, expected) in [
            ("https://Storage.Example.com/x?y", "storage.example.com:443"),
            ("http://a.example.:8080", "a.example:8080"),
            ("postgresql://maria@db.example:5432/x", "db.example:5432"),
            ("db.example:5432", "db.example:5432"),
            ("db.example:80", "db.example:80"),
            ("127.1:80", "127.0.0.1:80"),
            ("postgres://0x7f.1:80/", "127.0.0.1:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ] {
            assert_eq!(Target::read(text).unwrap().to_string(), expected, "{text}");
        }
        let long = "a".repeat(URL_BYTES_MAX + 1);
        for wrong in [
            "",
            "db.example",
            "db.example:",
            "db.example:0",
            "db.example:x",
            ":80",
            "2001:db8::1:443",
            "a@b:80",
            "a/b:80",
            "postgres://db.example",
            "file:///etc/passwd",
            &long,
        ] {
            assert!(Target::read(wrong).is_err(), "{wrong}");
        }
    }
}
