//! Every door of the cloud: opens them before anything else is there, and serves them once everything is.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use gateway::{Door, Gateway};
use model::AddressRange;
use tokio::net::TcpListener;

use crate::cloud::{Error, Stage};
use crate::config::StartOptions;
use crate::descriptors::Budget;
use crate::http::{self, Crowd, HttpDoor};
use crate::operator;

/// The listeners, opened and not served yet.
pub struct Listeners {
    sql: TcpListener,
    http: TcpListener,
    sql_proxy: Option<TcpListener>,
    http_proxy: Option<TcpListener>,
    endpoint: Option<TcpListener>,
    endpoint_tls: Option<TcpListener>,
    operator: operator::Socket,
    trusted: Arc<[AddressRange]>,
}

impl Listeners {
    /// Opens every door that the options ask for, and the operator's socket in the data directory.
    pub async fn open(options: &StartOptions, data: &Path) -> Result<Self, Error> {
        let more = async |what, address: &Option<String>, flag| match address {
            Some(address) => listen(what, address, flag).await.map(Some),
            None => Ok(None),
        };
        Ok(Self {
            sql: listen("SQL", &options.sql, "--sql").await?,
            http: listen("the API", &options.http, "--http").await?,
            sql_proxy: more("SQL behind a balancer", &options.sql_proxy, "--sql-proxy").await?,
            http_proxy: more("the API behind a balancer", &options.http_proxy, "--http-proxy").await?,
            endpoint: more("private endpoints", &options.endpoint, "--endpoint").await?,
            endpoint_tls: more("private endpoints over TLS", &options.endpoint_tls, "--endpoint-tls").await?,
            operator: operator::Socket::open(data)?,
            trusted: options.proxy_from.clone().into(),
        })
    }

    /// Where SQL clients connect.
    pub fn sql_address(&self) -> Result<SocketAddr, Error> {
        local_address("SQL", &self.sql)
    }

    /// Where the API answers.
    pub fn http_address(&self) -> Result<SocketAddr, Error> {
        local_address("the API", &self.http)
    }

    /// Where private endpoints arrive, for people.
    pub fn endpoint_address(&self) -> Option<String> {
        let kinds =
            [(&self.endpoint, "with a PROXY header"), (&self.endpoint_tls, "with a client certificate")];
        let doors = kinds.into_iter().filter_map(|(listener, how)| {
            listener.as_ref()?.local_addr().ok().map(|address| format!("{address} {how}"))
        });
        let doors: Vec<String> = doors.collect();
        (!doors.is_empty()).then(|| doors.join(", "))
    }

    /// Serves them all until their stage stops: one for SQL, and one for the API, which answers until nothing runs any more.
    pub fn serve(
        self,
        (stage, api): (&mut Stage, &mut Stage),
        gateway: &Arc<Gateway>,
        web: &http::Server,
        budget: &Budget,
    ) {
        let Self { sql, http, sql_proxy, http_proxy, endpoint, endpoint_tls, operator, trusted } = self;
        let doors = [
            ("the SQL listener", Some(sql), Door::Public),
            ("the SQL listener behind a balancer", sql_proxy, Door::Balanced(trusted.clone())),
            ("the listener for private endpoints", endpoint, Door::Endpoints(trusted.clone())),
            ("the TLS listener for private endpoints", endpoint_tls, Door::Proxies),
        ];
        for (name, listener, door) in doors {
            let Some(listener) = listener else { continue };
            let (gateway, stop) = (gateway.clone(), stage.stop.clone());
            stage.spawn(name, async move { gateway.serve(listener, door, stop).await });
        }
        let doors = [
            ("the API's listener", Some(http), HttpDoor::Public),
            ("the API's listener behind a balancer", http_proxy, HttpDoor::Balanced(trusted)),
        ];
        for (name, listener, door) in doors {
            let Some(listener) = listener else { continue };
            let (web, stop) = (web.clone(), api.stop.clone());
            let crowd = Crowd::new(door.name(), budget.http, budget.http);
            api.spawn(name, async move { web.serve(listener, door, crowd, stop).await });
        }
        let (web, stop) = (web.clone(), api.stop.clone());
        let crowd = Crowd::new("the operator's socket", budget.operator, budget.operator);
        api.spawn("the operator's socket", async move { web.serve_operator(operator, crowd, stop).await });
    }
}

async fn listen(what: &'static str, address: &str, flag: &str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| {
        let next_step = match source.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!(
                    "another program listens there: stop it, or choose another address with {flag} HOST:PORT"
                )
            }
            std::io::ErrorKind::PermissionDenied => {
                format!("ports below 1024 need root: choose a higher one with {flag} HOST:PORT")
            }
            _ => format!("choose an address of this machine with {flag} HOST:PORT"),
        };
        Error::Listen { what, address: address.to_owned(), source, next_step }
    })
}

fn local_address(what: &'static str, listener: &TcpListener) -> Result<SocketAddr, Error> {
    listener.local_addr().map_err(|source| Error::Listen {
        what,
        address: "a socket".to_owned(),
        source,
        next_step: "start again".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_told_with_the_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let refused = listen("SQL", &address, "--sql").await.unwrap_err().to_string();
        assert!(refused.contains(&address) && refused.contains("--sql HOST:PORT"), "{refused}");
    }
}
