//! The gate against real listeners on this machine, honest and hostile.

mod perimeter;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use model::{ClusterId, Fetch, FetchBody, FetchFailure, Fetcher, Hidden};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::{Destination, Gate, GateSettings, Perimeter, Resolver, Target};

/// Says what it was told to, one answer after the other; the last one again and again.
struct Names(Mutex<Vec<Vec<IpAddr>>>, AtomicUsize);

impl Names {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let answers = answers.iter().map(|list| list.iter().map(|text| text.parse().unwrap()).collect());
        Arc::new(Self(Mutex::new(answers.collect()), AtomicUsize::new(0)))
    }
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let mut answers = self.0.lock().unwrap();
        Ok(if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() })
    }
}

/// Never answers.
struct Silent;

#[async_trait]
impl Resolver for Silent {
    async fn resolve(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
        std::future::pending().await
    }
}

/// Lets every cluster go everywhere.
struct Open;

impl Perimeter for Open {
    fn may_look_up(&self, _: ClusterId, _: &Target) -> Result<(), String> {
        Ok(())
    }

    fn judge(&self, _: ClusterId, _: &Destination<'_>) -> Result<(), String> {
        Ok(())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        static NEVER: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));
        NEVER.subscribe()
    }
}

fn gate(allow: &[&str]) -> Gate {
    bounded(settings(allow))
}

fn bounded(settings: GateSettings) -> Gate {
    Gate::new(settings, Arc::new(Open)).unwrap()
}

fn knowing(settings: GateSettings, names: Arc<dyn Resolver>) -> Gate {
    Gate::with_resolver(settings, Arc::new(Open), names).unwrap()
}

fn settings(allow: &[&str]) -> GateSettings {
    let allow = allow.iter().map(|range| range.parse().unwrap()).collect();
    GateSettings { allow, ..GateSettings::default() }
}

fn get(url: impl Into<String>) -> Fetch {
    Fetch {
        url: url.into(),
        body: None,
        accept: "application/json",
        authorization: None,
        headers: Vec::new(),
        ca_pem: None,
        bytes_max: 64 * 1024,
        time_max: Duration::from_secs(5),
        cluster: None,
    }
}

async fn head_of(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { break };
        head.push(byte);
    }
    String::from_utf8(head).unwrap()
}

/// Answers every connection with these bytes and remembers what was asked.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn at(address: &str, answer: impl Into<String>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (answer, heard) = (answer.into(), asked.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let head = head_of(&mut stream).await;
                heard.lock().unwrap().push(head);
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        Self { address, asked }
    }

    async fn new(answer: impl Into<String>) -> Self {
        Self::at("127.0.0.1:0", answer).await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn answer(head: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{head}content-length: {}\r\n\r\n{body}", body.len())
}

fn is_refused<T>(result: Result<T, FetchFailure>) -> bool {
    matches!(result, Err(FetchFailure::Refused(_)))
}

#[tokio::test]
async fn what_was_asked_for_arrives() {
    let head = "Content-Type: Application/JSON; charset=utf-8\r\nCache-Control: public, max-age=600\r\n";
    let server = Server::new(answer(head, "{\"keys\":[]}")).await;
    let mut fetch = get(server.url("/keys?x=1#part"));
    fetch.authorization = Some(Hidden("Bearer abc".to_owned()));
    let fetched = gate(&["127.0.0.0/8"]).fetch(fetch).await.unwrap();
    assert_eq!((fetched.status, fetched.kind.as_str()), (200, "application/json"));
    assert_eq!(
        (fetched.max_age, fetched.body.as_slice()),
        (Some(Duration::from_secs(600)), &b"{\"keys\":[]}"[..])
    );
    let head = server.asked.lock().unwrap()[0].to_ascii_lowercase();
    assert!(head.starts_with("get /keys?x=1 http/1.1\r\n"), "{head}");
    assert!(
        head.contains("accept: application/json") && head.contains("authorization: bearer abc"),
        "{head}"
    );
    assert!(
        !head.contains("accept-encoding") && !head.contains("cookie") && !head.contains("referer"),
        "{head}"
    );
}

#[tokio::test]
async fn a_body_is_posted_with_its_kind() {
    let server = Server::new(answer("Cache-Control: no-store\r\n", "ok")).await;
    let mut fetch = get(server.url("/"));
    let bytes = Hidden(b"abc".to_vec());
    fetch.body = Some(FetchBody { kind: "application/ocsp-request", bytes });
    let fetched = gate(&["127.0.0.0/8"]).fetch(fetch).await.unwrap();
    assert_eq!((fetched.kind.as_str(), fetched.max_age), ("", Some(Duration::ZERO)));
    let head = server.asked.lock().unwrap()[0].to_ascii_lowercase();
    assert!(head.starts_with("post / ") && head.contains("content-type: application/ocsp-request"), "{head}");
}

#[tokio::test]
async fn t51_addresses_that_are_not_everybody_s_are_refused_before_a_byte() {
    let server = Server::new(answer("", "secret")).await;
    let (gate, port) = (gate(&[]), server.address.port());
    let hosts = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "localhost",
        "LocalHost",
        "10.0.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "100.100.100.200",
        "168.63.129.16",
    ];
    for host in hosts {
        let refused = gate.fetch(get(format!("http://{host}:{port}/"))).await;
        assert!(is_refused(refused.clone()), "{host}: {refused:?}");
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn t51_only_plain_web_addresses_are_read() {
    let gate = gate(&["127.0.0.0/8"]);
    let long = format!("http://127.0.0.1/{}", "a".repeat(5_000));
    for url in [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "gopher://127.0.0.1/",
        "unix:/run/x",
        "",
        "//127.0.0.1/",
        "http://user:pass@127.0.0.1/",
        "http://user@127.0.0.1/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:99999/",
        "http://",
        long.as_str(),
    ] {
        let refused = gate.fetch(get(url)).await;
        assert!(is_refused(refused.clone()), "{url}: {refused:?}");
    }
}

#[tokio::test]
async fn t51_redirects_are_answers_and_not_followed() {
    let secret = Server::new(answer("", "secret")).await;
    let location =
        format!("HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", secret.url("/"));
    let server = Server::new(location).await;
    let fetched = gate(&["127.0.0.0/8"]).fetch(get(server.url("/"))).await.unwrap();
    assert_eq!((fetched.status, fetched.body.len()), (302, 0));
    assert_eq!(secret.count(), 0);
}

#[tokio::test]
async fn t51_a_name_that_changes_its_address_reaches_only_what_was_checked() {
    let good = Server::at("127.0.0.2:0", answer("", "good")).await;
    let port = good.address.port();
    let secret = Server::at(&format!("127.0.0.1:{port}"), answer("", "secret")).await;
    let names = Names::new(&[&["127.0.0.2"], &["127.0.0.1"]]);
    let gate = knowing(settings(&["127.0.0.2/32"]), names.clone());
    let url = format!("http://provider.example:{port}/");
    assert_eq!(gate.fetch(get(&url)).await.unwrap().body, b"good");
    assert_eq!(names.1.load(Ordering::Relaxed), 1, "one look-up a fetch: the checked one is the used one");
    assert!(is_refused(gate.fetch(get(&url)).await));
    assert_eq!(secret.count(), 0);
}

#[tokio::test]
async fn t51_one_bad_address_among_good_ones_refuses_the_name() {
    let good = Server::at("127.0.0.2:0", answer("", "good")).await;
    for list in
        [&["127.0.0.2", "127.0.0.1"][..], &["127.0.0.2", "::1"], &["127.0.0.2", "::ffff:169.254.169.254"]]
    {
        let gate = knowing(settings(&["127.0.0.2/32"]), Names::new(&[list]));
        let refused = gate.fetch(get(format!("http://mixed.example:{}/", good.address.port()))).await;
        assert!(is_refused(refused), "{list:?}");
    }
    assert_eq!(good.count(), 0);
    let gate = knowing(settings(&[]), Names::new(&[&[]]));
    let none = gate.fetch(get("http://nowhere.example/")).await;
    assert!(matches!(none, Err(FetchFailure::Failed(_))), "{none:?}");
}

/// Streams for ever and counts what the other side took.
async fn flood(head: &'static str) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, sent) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let counter = sent.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            head_of(&mut stream).await;
            let _ = stream.write_all(head.as_bytes()).await;
            let chunk = [b'a'; 8_192];
            let framed = head.contains("chunked");
            loop {
                let mut bytes = if framed { b"2000\r\n".to_vec() } else { Vec::new() };
                bytes.extend_from_slice(&chunk);
                if framed {
                    bytes.extend_from_slice(b"\r\n");
                }
                if stream.write_all(&bytes).await.is_err() {
                    break;
                }
                counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        }
    });
    (address, sent)
}

#[tokio::test]
async fn t51_a_body_is_read_to_its_bound_and_no_further() {
    let gate = gate(&["127.0.0.0/8"]);
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
    ] {
        let (address, sent) = flood(head).await;
        let result = gate.fetch(get(format!("http://{address}/"))).await;
        assert_eq!(result, Err(FetchFailure::TooLong(65_536)), "{head}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        // What the kernel's buffers hold was sent, and never read.
        assert!(sent.load(Ordering::Relaxed) < 32 << 20, "{}", sent.load(Ordering::Relaxed));
    }
    let exact = Server::new(answer("", &"a".repeat(65_536))).await;
    assert_eq!(gate.fetch(get(exact.url("/"))).await.unwrap().body.len(), 65_536);
    let mut greedy = get(exact.url("/"));
    greedy.bytes_max = usize::MAX;
    let small = bounded(GateSettings { bytes_max: 100, ..settings(&["127.0.0.0/8"]) });
    assert_eq!(small.fetch(greedy).await, Err(FetchFailure::TooLong(100)));
}

#[tokio::test]
async fn everything_together_has_one_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let slow_body = Server::new("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
    let hangs = |url: String| Fetch { time_max: Duration::from_millis(200), ..get(url) };
    let (gate, began) = (gate(&["127.0.0.0/8"]), Instant::now());
    let url = format!("http://{}/", silent.local_addr().unwrap());
    assert_eq!(gate.fetch(hangs(url)).await, Err(FetchFailure::TimedOut));
    let broken = gate.fetch(hangs(slow_body.url("/"))).await;
    assert!(matches!(broken, Err(FetchFailure::Failed(_) | FetchFailure::TimedOut)), "{broken:?}");
    let names = knowing(settings(&[]), Arc::new(Silent));
    assert_eq!(names.fetch(hangs("http://a.example/".to_owned())).await, Err(FetchFailure::TimedOut));
    let endless = Fetch { time_max: Duration::MAX, ..get("http://a.example/") };
    let tight = GateSettings { time_max: Duration::from_millis(200), ..settings(&[]) };
    let names = knowing(tight, Arc::new(Silent));
    assert_eq!(names.fetch(endless).await, Err(FetchFailure::TimedOut));
    // Four times 200 ms; one that had no time of its own would wait for ever.
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn one_cluster_does_not_take_the_others_turns() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let tight = GateSettings { cluster_fetches_max: 2, ..settings(&["127.0.0.0/8"]) };
    let gate = Arc::new(bounded(tight));
    let (busy, other) = (Some(ClusterId::random()), Some(ClusterId::random()));
    let held: Vec<_> = (0..2)
        .map(|_| {
            let (gate, fetch) = (gate.clone(), Fetch { cluster: busy, ..get(&url) });
            tokio::spawn(async move { gate.fetch(fetch).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let third = gate.fetch(Fetch { cluster: busy, ..get(&url) }).await;
    assert!(matches!(&third, Err(FetchFailure::Failed(why)) if why.contains("at once")), "{third:?}");
    let server = Server::new(answer("", "ok")).await;
    assert_eq!(gate.fetch(Fetch { cluster: other, ..get(server.url("/")) }).await.unwrap().body, b"ok");
    // Whoever gave up gives the turn back.
    for task in held {
        task.abort();
        let _ = task.await;
    }
    assert_eq!(gate.fetch(Fetch { cluster: busy, ..get(server.url("/")) }).await.unwrap().body, b"ok");
    let url = server.url("/");
    let refused = Fetch { cluster: busy, ..get(url.replace("127.0.0.1", "10.0.0.1")) };
    for _ in 0..5 {
        assert!(is_refused(gate.fetch(refused.clone()).await), "failures give their turns back too");
    }
}

#[tokio::test]
async fn credentials_never_travel_in_plaintext() {
    let names = Names::new(&[&["10.1.1.1"]]);
    let gate = knowing(settings(&["10.0.0.0/8"]), names);
    let fetch = Fetch { authorization: Some(Hidden("Basic eDp5".to_owned())), ..get("http://a.example/") };
    let refused = gate.fetch(fetch).await;
    assert!(matches!(&refused, Err(FetchFailure::Refused(why)) if why.contains("plaintext")), "{refused:?}");
}

/// One TLS server; answers and says which protocol was agreed on.
async fn secure(versions: &[&'static rustls::SupportedProtocolVersion]) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(vec!["provider.example".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                serve_once(&mut stream).await;
            }
        }
    });
    (address, made.cert.pem())
}

async fn serve_once(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    head_of(stream).await;
    let _ = stream.write_all(answer("", "secure").as_bytes()).await;
    let _ = stream.shutdown().await;
}

#[tokio::test]
async fn only_the_given_roots_and_the_right_name_are_believed() {
    let names = Names::new(&[&["127.0.0.1"]]);
    let gate = knowing(settings(&["127.0.0.0/8"]), names);
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        let (address, pem) = secure(versions).await;
        let url = format!("https://provider.example:{}/", address.port());
        let trusted = Fetch { ca_pem: Some(pem.clone()), ..get(&url) };
        assert_eq!(gate.fetch(trusted).await.unwrap().body, b"secure");
        let unknown = gate.fetch(get(&url)).await;
        assert!(
            matches!(&unknown, Err(FetchFailure::Failed(why)) if why.contains("certificate")),
            "{unknown:?}"
        );
        let other = Fetch { ca_pem: Some(pem), ..get(url.replace("provider", "other")) };
        assert!(matches!(gate.fetch(other).await, Err(FetchFailure::Failed(_))));
        let (_, stranger) = secure(&[&rustls::version::TLS13]).await;
        let wrong = Fetch { ca_pem: Some(stranger), ..get(&url) };
        assert!(matches!(gate.fetch(wrong).await, Err(FetchFailure::Failed(_))));
    }
    for pem in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let fetch = Fetch { ca_pem: Some(pem.to_owned()), ..get("https://provider.example/") };
        assert!(matches!(gate.fetch(fetch).await, Err(FetchFailure::Failed(_))), "{pem}");
    }
}

#[tokio::test]
async fn no_failure_repeats_the_query() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let failure =
        gate(&["127.0.0.0/8"]).fetch(get(format!("http://{closed}/?code=s3cret"))).await.unwrap_err();
    assert!(!failure.to_string().contains("s3cret"), "{failure}");
}
