//! Opens connections as fast as it can, each to the end of its TLS 1.3 handshake, and prints what came of it as one line
//! of JSON. `bench/accept` runs this against Chitin and its peer:
//!
//!     accept PORT ROOT-PEM plain|proxy x25519|hybrid AT-ONCE SECONDS

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// What a PROXY header says: version 2, a client, TCP over IPv4, two addresses and two ports.
const PROXY_HEADER: [u8; 28] = *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\x9c\x40\x14\x38";
/// PostgreSQL's direct TLS: TLS from the first byte, as the peer speaks it too.
const ALPN: &[u8] = b"postgresql";
/// A connection that takes longer has failed.
const CONNECTION_MAX: Duration = Duration::from_secs(10);

/// What every connection needs.
struct Target {
    port: u16,
    header: Option<&'static [u8]>,
    connector: TlsConnector,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, root, door, exchange, at_once, seconds] = arguments.as_slice() else {
        panic!("accept PORT ROOT-PEM plain|proxy x25519|hybrid AT-ONCE SECONDS");
    };
    let header = match door.as_str() {
        "plain" => None,
        "proxy" => Some(PROXY_HEADER.as_slice()),
        other => panic!("`{other}` is no door"),
    };
    let target = Arc::new(Target {
        port: port.parse().expect("a port"),
        header,
        connector: TlsConnector::from(Arc::new(tls(root, exchange))),
    });
    let at_once: usize = at_once.parse().expect("a count of connections");
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(seconds.parse().expect("seconds"));

    let mut lanes = JoinSet::new();
    for _ in 0..at_once {
        lanes.spawn(lane(target.clone(), end));
    }
    let mut taken = Vec::new();
    let mut failures = Vec::new();
    for (more, failed) in lanes.join_all().await {
        taken.extend(more);
        failures.extend(failed);
    }
    let lasted = begun.elapsed().as_secs_f64();
    if let Some(failure) = failures.first() {
        eprintln!("{} connections failed, the first with: {failure}", failures.len());
    }
    taken.sort_unstable();
    let at = |percent: usize| taken.get(taken.len() * percent / 100).map_or(0, Duration::as_micros);
    println!(
        "{{\"count\":{},\"failed\":{},\"seconds\":{lasted:.3},\"p50_us\":{},\"p99_us\":{}}}",
        taken.len(),
        failures.len(),
        at(50),
        at(99)
    );
}

/// One connection after the other until `end`: how long each took to the end of its handshake, and what failed.
async fn lane(target: Arc<Target>, end: Instant) -> (Vec<Duration>, Vec<io::Error>) {
    let (mut taken, mut failures) = (Vec::new(), Vec::new());
    while Instant::now() < end {
        match timeout(CONNECTION_MAX, connection(&target)).await {
            Ok(Ok(time)) => taken.push(time),
            Ok(Err(failure)) => failures.push(failure),
            Err(_) => failures.push(io::ErrorKind::TimedOut.into()),
        }
    }
    (taken, failures)
}

/// Opens a connection and closes it. Only when the server has closed it too has it read our last flight.
async fn connection(target: &Target) -> io::Result<Duration> {
    let begun = Instant::now();
    let mut tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, target.port)).await?;
    tcp.set_nodelay(true)?;
    if let Some(header) = target.header {
        tcp.write_all(header).await?;
    }
    let name = ServerName::try_from("localhost").expect("a name");
    let mut tls = target.connector.connect(name, tcp).await?;
    let taken = begun.elapsed();
    // TLS's goodbye without TCP's: the server closes first, so that no port here waits for late packets.
    tls.get_mut().1.send_close_notify();
    tls.flush().await?;
    let mut rest = [0; 512];
    while tls.read(&mut rest).await? > 0 {}
    Ok(taken)
}

/// TLS 1.3 with one way to exchange keys, and nothing kept from one connection for the next.
fn tls(root: &str, exchange: &str) -> ClientConfig {
    let group = match exchange {
        "x25519" => aws_lc_rs::kx_group::X25519,
        "hybrid" => aws_lc_rs::kx_group::X25519MLKEM768,
        other => panic!("`{other}` is not measured"),
    };
    let provider = CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(root).expect("a file of certificates") {
        roots.add(certificate.expect("a certificate")).expect("a root");
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config
}
