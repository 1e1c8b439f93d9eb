//! Which certificate a client sees: from the cloud's own authority for each name, or the operator's, read anew when it
//! changes. The answer depends on the form of a name only, never on whether a cluster exists.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gateway::{Shown, Unusable};
use keys::{Authority, SERVER_VALIDITY, ServerCertificate};
use model::{Clock, ClusterHandle};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::staple::Staple;

/// Names of clusters whose certificates are kept; more are made again when they are asked for.
const NAMES_MAX: usize = 1_024;
/// How often the operator's files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A certificate that begins less than this before now is issued anew too, for clients whose clock is slow.
const CLOCK_SKEW: time::Duration = time::Duration::hours(1);
/// The operator hears of the end of a certificate of its own this long before.
const WARN_BEFORE: time::Duration = time::Duration::days(14);
const WARN_EVERY: time::Duration = time::Duration::days(1);

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or made.
    #[error(transparent)]
    Key(#[from] keys::Error),
    /// It cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// Key and certificate do not fit.
    #[error("the certificate cannot be used for TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A certificate, ready for both doors.
struct Ready {
    sql: Arc<Shown>,
    http: Arc<CertifiedKey>,
    /// While the present lies in here it is shown; for the operator's own, its whole span.
    fresh: Range<OffsetDateTime>,
}

/// The operator's certificate and key.
struct Files {
    chain: PathBuf,
    key: PathBuf,
    current: Mutex<Arc<Operator>>,
}

/// The operator's certificate as it was read.
struct Operator {
    certificate: Arc<ServerCertificate>,
    staple: Option<Staple>,
    ready: Arc<Ready>,
}

/// The source of certificates for both doors.
pub struct Certificates {
    authority: Authority,
    clock: Arc<dyn Clock>,
    /// What this machine is called; the first is `localhost`.
    hosts: Vec<String>,
    local: Mutex<Arc<Ready>>,
    by_name: Mutex<HashMap<String, Arc<Ready>>>,
    files: Option<Files>,
}

impl Files {
    /// Shows another certificate, with the old one's OCSP answer only if it is the same. Gives its end.
    fn replace(&self, certificate: Arc<ServerCertificate>) -> Result<OffsetDateTime, Error> {
        let mut current = lock(&self.current);
        let is_same = current.certificate.chain.first() == certificate.chain.first();
        let (staple, not_after) = (current.staple.clone().filter(|_| is_same), certificate.not_after);
        *current = Arc::new(operator(certificate, staple)?);
        Ok(not_after)
    }
}

impl Certificates {
    /// Makes the machine's own certificate and reads the operator's, if there is one.
    pub fn new(
        authority: Authority,
        clock: Arc<dyn Clock>,
        hostnames: &[String],
        files: Option<(&Path, &Path)>,
    ) -> Result<Arc<Self>, Error> {
        let mut hosts = vec!["localhost".to_owned()];
        for name in hostnames {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            if !hosts.contains(&name) {
                hosts.push(name);
            }
        }
        let local = Mutex::new(Arc::new(issue(&authority, &local_names(&hosts), &*clock)?));
        let files = files
            .map(|(chain, key)| {
                let current = Mutex::new(Arc::new(operator(load(chain, key, &*clock)?, None)?));
                Ok::<_, Error>(Files { chain: chain.to_owned(), key: key.to_owned(), current })
            })
            .transpose()?;
        Ok(Arc::new(Self { authority, clock, hosts, local, by_name: Mutex::default(), files }))
    }

    /// The cloud's root in PEM.
    pub fn root_pem(&self) -> &str {
        self.authority.root_pem()
    }

    /// Reads the operator's files again whenever they change, and looks at every span whenever the clock was set, until
    /// `stop`. Broken files leave the old certificate.
    pub async fn watch(self: Arc<Self>, mut jumps: watch::Receiver<u64>, stop: CancellationToken) {
        let mut seen = self.files.as_ref().map(fingerprint);
        let mut warned = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = jumps.changed() => self.put_right(),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let Some(files) = &self.files else { continue };
            let now = Some(fingerprint(files));
            if now != seen {
                seen = now;
                self.reload(files);
            }
            self.warn_of_expiry(files, &mut warned);
        }
    }

    /// The operator's chain, if there is one.
    pub fn operator_chain(&self) -> Option<Vec<CertificateDer<'static>>> {
        self.files.as_ref().map(|files| lock(&files.current).certificate.chain.clone())
    }

    /// Shows an OCSP answer, or none, with the operator's certificate from now on. `leaf` is what the answer is about;
    /// if another certificate is in use meanwhile, nothing happens.
    pub fn staple(&self, leaf: &CertificateDer<'_>, staple: Option<Staple>) -> Result<(), Error> {
        let Some(files) = &self.files else { return Ok(()) };
        let mut current = lock(&files.current);
        if current.certificate.chain.first() == Some(leaf) {
            *current = Arc::new(operator(current.certificate.clone(), staple)?);
        }
        Ok(())
    }

    /// After the clock was set: issues anew what is not valid now, and says what we cannot issue.
    fn put_right(&self) {
        let now = self.clock.now();
        self.of_machine();
        let outside = {
            let mut kept = lock(&self.by_name);
            let before = kept.len();
            kept.retain(|_, ready| ready.fresh.contains(&now));
            before - kept.len()
        };
        if outside > 0 {
            tracing::warn!(certificates = outside, clock = %now, "certificates of clusters lie outside of their spans since the clock was set; they are issued anew when they are asked for");
        }
        let say = |what: &str, from: OffsetDateTime, until: OffsetDateTime| {
            if !(from..until).contains(&now) {
                tracing::error!(%from, %until, clock = %now, "{what} is not valid by this machine's clock, and clients with such a clock refuse it");
            }
        };
        match self.authority.root_span() {
            Ok((from, until)) => say("the cloud's root", from, until),
            Err(cause) => tracing::error!(%cause, "the span of the cloud's root cannot be read"),
        }
        if let Some(files) = &self.files {
            let certificate = lock(&files.current).certificate.clone();
            say("the operator's certificate", certificate.not_before, certificate.not_after);
        }
    }

    fn reload(&self, files: &Files) {
        match load(&files.chain, &files.key, &*self.clock).and_then(|certificate| files.replace(certificate))
        {
            Ok(not_after) => tracing::info!(until = %not_after, "a new certificate is in use"),
            // Between writing the two files they do not fit; the second write brings us here again.
            Err(cause) => {
                tracing::error!(%cause, "the new certificate is NOT in use; the old one is shown until it is right");
            }
        }
    }

    fn warn_of_expiry(&self, files: &Files, warned: &mut Option<OffsetDateTime>) {
        let (now, not_after) = (self.clock.now(), lock(&files.current).certificate.not_after);
        if now + WARN_BEFORE >= not_after && warned.is_none_or(|at| (now - at).abs() >= WARN_EVERY) {
            tracing::warn!(until = %not_after, file = %files.chain.display(), "the certificate must be renewed soon");
            *warned = Some(now);
        }
    }

    /// The certificate for the name; `operator_first` chooses for clients that send none.
    fn ready(&self, server_name: Option<&str>, operator_first: bool) -> Arc<Ready> {
        let name = server_name.map(str::to_ascii_lowercase);
        let is_local = match &name {
            Some(name) => name == "localhost" || name.ends_with(".localhost"),
            None => !operator_first,
        };
        if let Some(files) = self.files.as_ref().filter(|_| !is_local) {
            return lock(&files.current).ready.clone();
        }
        match name.filter(|name| self.is_cluster_name(name)) {
            Some(name) => self.of_cluster(name),
            None => self.of_machine(),
        }
    }

    /// Whether the name has the form of a cluster's address on this machine.
    fn is_cluster_name(&self, name: &str) -> bool {
        name.split_once('.').is_some_and(|(handle, host)| {
            handle.parse::<ClusterHandle>().is_ok() && self.hosts.iter().any(|own| own == host)
        })
    }

    fn of_machine(&self) -> Arc<Ready> {
        let (mut local, now) = (lock(&self.local), self.clock.now());
        if !local.fresh.contains(&now) {
            match issue(&self.authority, &local_names(&self.hosts), &*self.clock) {
                Ok(renewed) => {
                    let (from, until) = (local.fresh.start, local.fresh.end);
                    if now < from {
                        tracing::warn!(%from, clock = %now, "the clock was put back, and the machine's certificate would not be valid yet: it is issued anew");
                    } else {
                        tracing::info!(%until, clock = %now, "the machine's certificate is renewed");
                    }
                    *local = Arc::new(renewed);
                }
                Err(cause) => tracing::error!(%cause, "the machine's certificate could not be renewed"),
            }
        }
        local.clone()
    }

    fn of_cluster(&self, name: String) -> Arc<Ready> {
        let names = vec![name.clone()];
        self.issued(name, names)
    }

    /// For clients that dial an address inside a private network, and send no name.
    fn of_address(&self, address: IpAddr) -> Arc<Ready> {
        let mut names = local_names(&self.hosts);
        names.push(address.to_string());
        self.issued(address.to_string(), names)
    }

    fn issued(&self, name: String, names: Vec<String>) -> Arc<Ready> {
        let now = self.clock.now();
        if let Some(ready) = lock(&self.by_name).get(&name).filter(|ready| ready.fresh.contains(&now)) {
            return ready.clone();
        }
        match issue(&self.authority, &names, &*self.clock) {
            Ok(ready) => {
                let ready = Arc::new(ready);
                let mut kept = lock(&self.by_name);
                // Any one goes: who asks for it again pays for one signature.
                if kept.len() >= NAMES_MAX
                    && let Some(victim) = kept.keys().next().cloned()
                {
                    kept.remove(&victim);
                }
                kept.insert(name, ready.clone());
                ready
            }
            Err(cause) => {
                tracing::error!(%cause, "a certificate could not be issued");
                self.of_machine()
            }
        }
    }
}

impl gateway::Certificates for Certificates {
    fn shown(&self, server_name: Option<&str>, inside: Option<IpAddr>) -> Arc<Shown> {
        match (server_name, inside) {
            (None, Some(address)) => self.of_address(address).sql.clone(),
            _ => self.ready(server_name, true).sql.clone(),
        }
    }
}

/// The certificates at the door for the pages inside a private network.
#[derive(Debug)]
pub struct Inside {
    certificates: Arc<Certificates>,
    address: Option<IpAddr>,
}

impl Inside {
    /// At the front door with this address.
    pub fn new(certificates: Arc<Certificates>, address: Option<IpAddr>) -> Self {
        Self { certificates, address }
    }
}

impl ResolvesServerCert for Inside {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match (hello.server_name(), self.address) {
            (None, Some(address)) => Some(self.certificates.of_address(address).http.clone()),
            (name, _) => Some(self.certificates.ready(name, false).http.clone()),
        }
    }
}

/// The API's door. A client on this machine that dials an address sends no name, and trusts the cloud's own root.
impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.ready(hello.server_name(), false).http.clone())
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

fn local_names(hosts: &[String]) -> Vec<String> {
    hosts.iter().cloned().chain(["127.0.0.1".to_owned(), "::1".to_owned()]).collect()
}

fn issue(authority: &Authority, names: &[String], clock: &dyn Clock) -> Result<Ready, Error> {
    let certificate = authority.issue(names, clock)?;
    // It begins long before now, and is renewed at two thirds of what is left from now on.
    let fresh = certificate.not_before.saturating_add(CLOCK_SKEW)
        ..clock.now().saturating_add(SERVER_VALIDITY * 2 / 3);
    ready(&certificate, fresh, Vec::new())
}

fn load(chain: &Path, key: &Path, clock: &dyn Clock) -> Result<Arc<ServerCertificate>, Error> {
    Ok(Arc::new(ServerCertificate::load(chain, key, clock.now())?))
}

fn operator(certificate: Arc<ServerCertificate>, staple: Option<Staple>) -> Result<Operator, Error> {
    let ocsp = staple.as_ref().map(|staple| staple.der.clone()).unwrap_or_default();
    let ready = Arc::new(ready(&certificate, certificate.not_before..certificate.not_after, ocsp)?);
    Ok(Operator { certificate, staple, ready })
}

fn ready(
    certificate: &ServerCertificate,
    fresh: Range<OffsetDateTime>,
    ocsp: Vec<u8>,
) -> Result<Ready, Error> {
    let sql = Arc::new(Shown::new(certificate, ocsp.clone())?);
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = provider.key_provider.load_private_key(certificate.key.clone_key())?;
    let mut http = CertifiedKey::new(certificate.chain.clone(), key);
    http.keys_match()?;
    http.ocsp = Some(ocsp).filter(|ocsp| !ocsp.is_empty());
    Ok(Ready { sql, http: Arc::new(http), fresh })
}

/// What changes when a file is written anew, in place or by a rename, also behind a symbolic link.
fn fingerprint(files: &Files) -> [Option<(u64, u64, i64, i64)>; 2] {
    use std::os::unix::fs::MetadataExt;
    [&files.chain, &files.key].map(|path| {
        let facts = std::fs::metadata(path).ok()?;
        Some((facts.ino(), facts.len(), facts.mtime(), facts.mtime_nsec()))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each holds one value that is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use keys::RootKey;
    use model::SystemClock;

    use super::*;

    struct Turned(AtomicI64);

    impl Clock for Turned {
        fn now(&self) -> OffsetDateTime {
            OffsetDateTime::now_utc() + time::Duration::days(self.0.load(Ordering::Relaxed))
        }
    }

    fn authority(folder: &Path) -> Authority {
        let sealer = RootKey::open_or_create(&folder.join("kek")).unwrap().sealer("authority").unwrap();
        Authority::open_or_create(folder, &sealer, &SystemClock).unwrap()
    }

    fn pem_pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn leaf(ready: &Ready) -> Vec<u8> {
        ready.http.cert[0].to_vec()
    }

    #[test]
    fn every_well_formed_name_gets_a_certificate_and_others_the_machine_s() {
        let folder = tempfile::tempdir().unwrap();
        let hosts = ["db.example.org".to_owned()];
        let source =
            Certificates::new(authority(folder.path()), Arc::new(SystemClock), &hosts, None).unwrap();
        let machine = leaf(&source.ready(None, true));
        let one = leaf(&source.ready(Some("lazy-roach-3.localhost"), true));
        assert_ne!(one, machine);
        assert_eq!(one, leaf(&source.ready(Some("LAZY-ROACH-3.localhost"), true)));
        assert_ne!(machine, leaf(&source.ready(Some("lazy-roach-3.db.example.org"), true)));
        for other in ["localhost", "lazy-roach-3.evil.org", "x.localhost", "a.b.localhost", ""] {
            assert_eq!(machine, leaf(&source.ready(Some(other), true)), "{other}");
        }
    }

    #[test]
    fn a_flood_of_names_costs_bounded_memory() {
        let folder = tempfile::tempdir().unwrap();
        let source = Certificates::new(authority(folder.path()), Arc::new(SystemClock), &[], None).unwrap();
        for number in 2..NAMES_MAX + 50 {
            source.ready(Some(&format!("lazy-roach-{number}.localhost")), true);
        }
        assert_eq!(lock(&source.by_name).len(), NAMES_MAX);
    }

    #[test]
    fn certificates_are_renewed_before_they_end() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Turned(AtomicI64::new(0)));
        let source = Certificates::new(authority(folder.path()), clock.clone(), &[], None).unwrap();
        for name in [None, Some("lazy-roach-3.localhost")] {
            clock.0.store(0, Ordering::Relaxed);
            let first = leaf(&source.ready(name, true));
            clock.0.store(19, Ordering::Relaxed);
            assert_eq!(first, leaf(&source.ready(name, true)));
            clock.0.store(21, Ordering::Relaxed);
            assert_ne!(first, leaf(&source.ready(name, true)));
        }
    }

    #[test]
    fn certificates_are_issued_anew_when_the_clock_is_put_back_before_they_begin() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Turned(AtomicI64::new(0)));
        let source = Certificates::new(authority(folder.path()), clock.clone(), &[], None).unwrap();
        for days in [365, 0, -365, 0, 3_000, -2_000] {
            clock.0.store(days, Ordering::Relaxed);
            source.put_right();
            let now = clock.now();
            for name in [None, Some("lazy-roach-3.localhost")] {
                let shown = leaf(&source.ready(name, true));
                let (_, shown) = x509_parser::parse_x509_certificate(&shown).unwrap();
                let (begins, ends) =
                    (shown.validity().not_before.to_datetime(), shown.validity().not_after.to_datetime());
                assert!(begins <= now - time::Duration::DAY && now < ends, "{days} days: {begins} to {ends}");
            }
        }
        // A clock that was some hours ahead when the certificate was made costs nothing at all.
        let made = leaf(&source.ready(None, true));
        clock.0.store(-2_001, Ordering::Relaxed);
        assert_eq!(leaf(&source.ready(None, true)), made);
    }

    #[tokio::test(start_paused = true)]
    async fn the_operator_s_certificate_is_reloaded_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let write = |(certificate, secret): (String, String)| {
            std::fs::write(&chain, certificate).unwrap();
            std::fs::write(&key, secret).unwrap();
        };
        write(pem_pair("db.example.org"));
        let source = Certificates::new(
            authority(folder.path()),
            Arc::new(SystemClock),
            &[],
            Some((chain.as_path(), key.as_path())),
        )
        .unwrap();
        let shown = || leaf(&source.ready(Some("db.example.org"), true));
        let stop = CancellationToken::new();
        let watching = tokio::spawn(source.clone().watch(watch::Sender::new(0).subscribe(), stop.clone()));
        // Let the watch take its first look, then change the files.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let first = shown();

        std::fs::write(&chain, pem_pair("db.example.org").0).unwrap();
        tokio::time::sleep(3 * LOOK_EVERY).await;
        assert_eq!(shown(), first, "a certificate without its key was shown");
        std::fs::write(&chain, "nonsense").unwrap();
        tokio::time::sleep(3 * LOOK_EVERY).await;
        assert_eq!(shown(), first);

        write(pem_pair("db.example.org"));
        tokio::time::sleep(3 * LOOK_EVERY).await;
        assert_ne!(shown(), first);
        // This machine's own clients trust the cloud's root, whatever the operator shows to others.
        assert_ne!(leaf(&source.ready(Some("localhost"), true)), shown());
        assert_eq!(leaf(&source.ready(None, true)), shown());
        assert_ne!(leaf(&source.ready(None, false)), shown());
        stop.cancel();
        watching.await.unwrap();
    }
}
