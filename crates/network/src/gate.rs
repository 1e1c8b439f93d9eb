//! The gate: every address is checked before it is reached, and nothing is followed, kept or read without a bound.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use model::{ClusterId, EgressHost, Fetch, FetchFailure, Fetched, Fetcher};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use rustls::ClientConfig;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use url::Url;

use crate::address::{Closed, judge};
use crate::perimeter::{Destination, Perimeter, Target, URL_BYTES_MAX};
use crate::resolve::{Resolver, SystemResolver};
use crate::trust::{self, Unusable};

/// Addresses of one name that are looked at; a name with more is refused.
const ADDRESSES_MAX: usize = 64;
/// Longest time that an answer may ask to be kept.
const AGE_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);
/// Longest `Content-Type` that is passed on, in bytes.
const KIND_BYTES_MAX: usize = 128;

/// What bounds the gate.
#[derive(Clone, Debug)]
pub struct GateSettings {
    /// Ranges the operator opened although they are not everybody's. Empty by default.
    pub allow: Vec<IpNet>,
    /// Fetches at once, 128 by default; further ones wait, within their own time.
    pub fetches_max: usize,
    /// Fetches at once for one cluster, 32 by default; further ones fail, so that no cluster takes the others' turns.
    pub cluster_fetches_max: usize,
    /// Most bytes of any body, whatever was asked for; 4 MiB by default.
    pub bytes_max: usize,
    /// Longest time of any fetch, whatever was asked for; 30 s by default.
    pub time_max: Duration,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            fetches_max: 128,
            cluster_fetches_max: 32,
            bytes_max: 4 * 1024 * 1024,
            time_max: Duration::from_secs(30),
        }
    }
}

/// The one way out. A fetch opens one connection of its own, to an address that was just checked, and closes it.
///
/// What goes out on a cluster's behalf is judged by that cluster's perimeter too: before the connection is opened, and
/// again whenever the perimeter changes, until the last byte is here. A redirect is an answer like any other; whoever
/// follows one fetches again, and is judged again.
pub struct Gate {
    pub(crate) settings: GateSettings,
    resolver: Arc<dyn Resolver>,
    pub(crate) perimeter: Arc<dyn Perimeter>,
    /// Trusts the machine's roots, as they were when the gate was made.
    machine: ClientConfig,
    fetches: Places,
    /// Apart from those of fetches, so that no sign-in waits for what an engine dials.
    pub(crate) dials: Places,
    by_cluster: Mutex<HashMap<ClusterId, usize>>,
}

/// How many at once.
pub(crate) struct Places {
    pub(crate) turns: Semaphore,
    /// A look-up that hangs holds its place, also after whoever asked gave up.
    look_ups: Arc<Semaphore>,
}

impl Places {
    fn new(max: usize) -> Self {
        Self { turns: Semaphore::new(max), look_ups: Arc::new(Semaphore::new(max)) }
    }
}

/// A cluster's turn, given back when dropped.
struct Turn<'a>(&'a Gate, Option<ClusterId>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(cluster) = self.1 else { return };
        let mut by_cluster = self.0.by_cluster();
        if let Some(count) = by_cluster.get_mut(&cluster) {
            *count -= 1;
            if *count == 0 {
                by_cluster.remove(&cluster);
            }
        }
    }
}

impl Gate {
    /// A gate that resolves names as the machine does. Reads the machine's root certificates.
    pub fn new(settings: GateSettings, perimeter: Arc<dyn Perimeter>) -> Result<Self, Unusable> {
        Self::with_resolver(settings, perimeter, Arc::new(SystemResolver))
    }

    /// A gate with another source of addresses.
    pub fn with_resolver(
        settings: GateSettings,
        perimeter: Arc<dyn Perimeter>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, Unusable> {
        Ok(Self {
            resolver,
            perimeter,
            machine: trust::of_machine()?,
            fetches: Places::new(settings.fetches_max),
            dials: Places::new(settings.fetches_max),
            by_cluster: Mutex::default(),
            settings,
        })
    }

    fn by_cluster(&self) -> MutexGuard<'_, HashMap<ClusterId, usize>> {
        // Counts are whole at every moment.
        self.by_cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn_of(&self, cluster: Option<ClusterId>) -> Result<Turn<'_>, FetchFailure> {
        if let Some(cluster) = cluster {
            let mut by_cluster = self.by_cluster();
            let count = by_cluster.entry(cluster).or_insert(0);
            if *count >= self.settings.cluster_fetches_max {
                return Err(failed("too many fetches for this cluster at once"));
            }
            *count += 1;
        }
        Ok(Turn(self, cluster))
    }

    async fn whole(&self, fetch: Fetch, url: Url) -> Result<Fetched, FetchFailure> {
        let _all = self.fetches.turns.acquire().await.map_err(|_| failed("the gate is closed"))?;
        // Taken before anything is judged, so that no change falls between the two.
        let changes = self.perimeter.changes();
        let way = self.check(fetch.cluster, Target::of_url(&url)?, &self.fetches).await?;
        tokio::select! {
            biased;
            why = self.closed(&way, changes) => Err(refused(why)),
            fetched = self.exchange(fetch, url, &way.addresses) => fetched,
        }
    }

    /// Returns when the perimeter lets the way through no longer, and says why.
    pub(crate) async fn closed(&self, way: &Way, mut changes: watch::Receiver<u64>) -> String {
        let Some(cluster) = way.cluster else { return std::future::pending().await };
        loop {
            // Without anybody who tells of changes, nothing is known to be permitted.
            if changes.changed().await.is_err() {
                return "the perimeter is gone".to_owned();
            }
            for address in &way.addresses {
                let to = Destination { target: &way.target, address: address.ip() };
                if let Err(why) = self.perimeter.judge(cluster, &to) {
                    return why;
                }
            }
        }
    }

    async fn exchange(
        &self,
        fetch: Fetch,
        url: Url,
        addresses: &[SocketAddr],
    ) -> Result<Fetched, FetchFailure> {
        let is_here = addresses.iter().all(|address| address.ip().is_loopback());
        let has_secrets = fetch.authorization.is_some() || !fetch.headers.is_empty();
        if has_secrets && url.scheme() == "http" && !is_here {
            return Err(refused("credentials would travel in plaintext; use https"));
        }
        let tls = match &fetch.ca_pem {
            Some(pem) => trust::of_pem(pem).map_err(|cause| failed(cause.to_string()))?,
            None => self.machine.clone(),
        };
        let client = reqwest::Client::builder()
            .use_preconfigured_tls(tls)
            .dns_resolver(Arc::new(Pinned(addresses.to_vec())))
            .redirect(Policy::none())
            .no_proxy()
            .referer(false)
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(0)
            .user_agent("chitin")
            .build()
            .map_err(explain)?;
        let mut request = match fetch.body {
            Some(body) => client.post(url).header(CONTENT_TYPE, body.kind).body(body.bytes.0),
            None => client.get(url),
        };
        request = request.header(ACCEPT, fetch.accept);
        if let Some(authorization) = fetch.authorization {
            let mut value = HeaderValue::try_from(authorization.0)
                .map_err(|_| failed("the credentials cannot stand in a header"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        for (name, value) in fetch.headers {
            let mut value =
                HeaderValue::try_from(value.0).map_err(|_| failed("a value cannot stand in a header"))?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        let bytes_max = fetch.bytes_max.min(self.settings.bytes_max);
        let mut response = request.send().await.map_err(explain)?;
        if response.content_length().is_some_and(|length| length > bytes_max as u64) {
            return Err(FetchFailure::TooLong(bytes_max));
        }
        let (status, kind, max_age) =
            (response.status().as_u16(), kind(response.headers()), max_age(response.headers()));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(explain)? {
            if body.len() + chunk.len() > bytes_max {
                return Err(FetchFailure::TooLong(bytes_max));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Fetched { status, kind, max_age, body })
    }

    /// Resolves the host and checks each of its addresses. One that may not be reached refuses them all: who mixes them
    /// has something in mind.
    pub(crate) async fn check(
        &self,
        cluster: Option<ClusterId>,
        target: Target,
        places: &Places,
    ) -> Result<Way, FetchFailure> {
        if let Some(cluster) = cluster {
            self.perimeter.may_look_up(cluster, &target).map_err(refused)?;
        }
        let found = self.addresses(&target.host, places).await?;
        for address in &found {
            self.judge(cluster, &Destination { target: &target, address: *address })?;
        }
        let addresses = found.into_iter().map(|address| SocketAddr::new(address, target.port)).collect();
        Ok(Way { cluster, target, addresses })
    }

    /// Whether anybody may go there, and then whether this cluster may.
    fn judge(&self, cluster: Option<ClusterId>, to: &Destination<'_>) -> Result<(), FetchFailure> {
        let (host, address) = (&to.target.host, to.address);
        let place = match host {
            EgressHost::Name(name) => format!("{name} is at {address}, which is"),
            EgressHost::Address(_) => format!("{address} is"),
        };
        judge(address, &self.settings.allow).map_err(|closed| match closed {
            Closed::ForEver(kind) => refused(format!("{place} never reached from here ({kind})")),
            Closed::UntilOpened(kind) => refused(format!(
                "{place} not everybody's ({kind}); if that is meant, start with --fetch-allow for its network"
            )),
        })?;
        cluster.map_or(Ok(()), |cluster| self.perimeter.judge(cluster, to).map_err(refused))
    }

    /// Says of every address of a destination whether the cluster would be let through to it. Nothing is connected to.
    pub async fn consider(
        &self,
        cluster: ClusterId,
        target: &Target,
    ) -> Result<Vec<(IpAddr, Result<(), FetchFailure>)>, FetchFailure> {
        let _turn = self.turn_of(Some(cluster))?;
        let found = timeout(self.settings.time_max, self.addresses(&target.host, &self.fetches));
        let found = found.await.unwrap_or(Err(FetchFailure::TimedOut))?;
        let judged = |address| (address, self.judge(Some(cluster), &Destination { target, address }));
        Ok(found.into_iter().map(judged).collect())
    }

    /// All addresses of a host, IPv4 in its own form.
    async fn addresses(&self, host: &EgressHost, places: &Places) -> Result<Vec<IpAddr>, FetchFailure> {
        let found = match host {
            EgressHost::Address(address) => vec![*address],
            EgressHost::Name(name) => self.look_up(name, places).await?,
        };
        if found.is_empty() {
            return Err(failed(format!("{host} has no address")));
        }
        if found.len() > ADDRESSES_MAX {
            return Err(refused(format!("{host} has more than {ADDRESSES_MAX} addresses")));
        }
        Ok(found.into_iter().map(model::canonical).collect())
    }

    async fn look_up(&self, name: &str, places: &Places) -> Result<Vec<IpAddr>, FetchFailure> {
        let place =
            places.look_ups.clone().acquire_owned().await.map_err(|_| failed("the gate is closed"))?;
        let (resolver, host) = (self.resolver.clone(), name.to_owned());
        let asked = tokio::spawn(async move {
            let found = resolver.resolve(&host).await;
            drop(place);
            found
        });
        match asked.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(cause)) => Err(failed(format!("{name} cannot be resolved: {cause}"))),
            Err(_) => Err(failed(format!("{name} cannot be resolved"))),
        }
    }
}

#[async_trait]
impl Fetcher for Gate {
    async fn fetch(&self, fetch: Fetch) -> Result<Fetched, FetchFailure> {
        let url = permitted(&fetch.url)?;
        let _turn = self.turn_of(fetch.cluster)?;
        let time_max = fetch.time_max.min(self.settings.time_max);
        timeout(time_max, self.whole(fetch, url)).await.unwrap_or(Err(FetchFailure::TimedOut))
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A way out that was checked.
pub(crate) struct Way {
    cluster: Option<ClusterId>,
    pub(crate) target: Target,
    pub(crate) addresses: Vec<SocketAddr>,
}

/// The only addresses that a connection may be opened to, whatever name it asks for.
struct Pinned(Vec<SocketAddr>);

impl Resolve for Pinned {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses: Addrs = Box::new(self.0.clone().into_iter());
        Box::pin(std::future::ready(Ok(addresses)))
    }
}

/// Reads a URL, and refuses what is no business of ours: other schemes, and credentials in it.
fn permitted(text: &str) -> Result<Url, FetchFailure> {
    if text.len() > URL_BYTES_MAX {
        return Err(refused(format!("the URL is longer than {URL_BYTES_MAX} bytes")));
    }
    let mut url = Url::parse(text).map_err(|cause| refused(format!("this is no URL: {cause}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused("only http and https are fetched"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused("the URL carries credentials"));
    }
    url.set_fragment(None);
    Ok(url)
}

/// The kind without its parameters, in lower case.
fn kind(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim();
    if kind.len() <= KIND_BYTES_MAX { kind.to_ascii_lowercase() } else { String::new() }
}

/// `Cache-Control` (RFC 9111, section 5.2.2): `no-store` and `no-cache` are an age of nothing.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let mut age = None;
    for value in headers.get_all(CACHE_CONTROL) {
        for directive in value.to_str().unwrap_or_default().split(',') {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "no-store" | "no-cache" => return Some(Duration::ZERO),
                "max-age" => age = age.or(value.trim().trim_matches('"').parse().ok()),
                _ => {}
            }
        }
    }
    age.map(|seconds| Duration::from_secs(seconds).min(AGE_MAX))
}

/// The error with its causes, and without the URL: its query may hold a secret.
fn explain(error: reqwest::Error) -> FetchFailure {
    if error.is_timeout() {
        return FetchFailure::TimedOut;
    }
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    FetchFailure::Failed(text.chars().take(500).collect())
}

pub(crate) fn refused(why: impl Into<String>) -> FetchFailure {
    FetchFailure::Refused(why.into())
}

pub(crate) fn failed(why: impl Into<String>) -> FetchFailure {
    FetchFailure::Failed(why.into())
}
