//! The verifier attacked: small servers that do what they should not, each of which must turn a row to FAILED.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::row::{Outcome, Row};
use super::session::Claim;
use super::target::Target;
use super::wire::SSL_REQUEST;
use super::{http, sign_in, transport};

/// A certificate for `localhost`, its root, and a TLS 1.3 server with it.
struct Tls {
    root_pem: String,
    acceptor: TlsAcceptor,
}

fn tls(protocols: &[&[u8]]) -> Tls {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Tls { root_pem: cert.pem(), acceptor: TlsAcceptor::from(Arc::new(config)) }
}

/// Serves each connection with `talk` until the test's runtime ends.
async fn serve<T, F>(root_pem: &str, talk: T) -> Target
where
    T: Fn(TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(talk(tcp));
        }
    });
    Target {
        address,
        host: "localhost".to_owned(),
        handle: "my-shop-2".to_owned(),
        roots: Arc::new(super::target::roots(root_pem).unwrap()),
        preamble: Vec::new(),
        amnesty: None,
    }
}

fn outcome(rows: &[Row], claim: &str) -> Outcome {
    let row = rows.iter().find(|row| row.claim.contains(claim));
    row.unwrap_or_else(|| panic!("no row says `{claim}`")).outcome
}

async fn skip(tcp: &mut TcpStream) {
    let mut bytes = [0; 4_096];
    let _ = tcp.read(&mut bytes).await;
}

#[tokio::test]
async fn a_server_that_goes_on_in_old_tls_or_in_plaintext_fails() {
    let Tls { root_pem, .. } = tls(&[]);
    let target = serve(&root_pem, |mut tcp| async move {
        let mut first = [0; 8];
        let _ = tcp.read_exact(&mut first).await;
        if first[4..] == [0x04, 0xd2, 0x16, 0x2f] {
            let _ = tcp.write_all(b"S").await;
            skip(&mut tcp).await;
            // The beginning of a TLS 1.2 ServerHello.
            let _ = tcp.write_all(&[22, 3, 3, 0, 74, 2, 0, 0, 70, 3, 3]).await;
        } else {
            let _ = tcp.write_all(b"R\0\0\0\x08\0\0\0\0").await;
        }
    })
    .await;
    let rows = transport::attack(&target).await;
    for claim in
        ["TLS 1.2", "X25519MLKEM768", "without TLS", "ALPN", "verifies", "another name", "another root"]
    {
        assert_eq!(outcome(&rows, claim), Outcome::Failed, "{claim}");
    }
}

#[tokio::test]
async fn a_server_that_takes_direct_tls_without_alpn_fails_and_its_certificate_is_judged_apart() {
    let Tls { root_pem, acceptor } = tls(&[]);
    let target = serve(&root_pem, move |mut tcp| {
        let acceptor = acceptor.clone();
        async move {
            let mut first = [0];
            let _ = tcp.peek(&mut first).await;
            if first[0] != 22 {
                let mut request = [0; 8];
                let _ = tcp.read_exact(&mut request).await;
                let _ = tcp.write_all(b"S").await;
            }
            if let Ok(mut tls) = acceptor.accept(tcp).await {
                let _ = tls.read(&mut [0; 64]).await;
            }
        }
    })
    .await;
    let rows = transport::attack(&target).await;
    assert_eq!(outcome(&rows, "ALPN"), Outcome::Failed, "{rows:#?}");
    for claim in ["TLS 1.2", "X25519MLKEM768", "verifies", "another name", "another root"] {
        assert_eq!(outcome(&rows, claim), Outcome::Proven, "{claim}: {rows:#?}");
    }
}

#[tokio::test]
async fn a_server_that_keeps_early_bytes_aside_fails() {
    let Tls { root_pem, acceptor } = tls(&[]);
    let target = serve(&root_pem, move |mut tcp| {
        let acceptor = acceptor.clone();
        async move {
            // As servers before CVE-2021-23222 did: more than the request is read into a buffer.
            let mut first = [0; 256];
            let _ = tcp.read(&mut first).await;
            if !first.starts_with(&SSL_REQUEST) {
                return;
            }
            let _ = tcp.write_all(b"S").await;
            if let Ok(mut tls) = acceptor.accept(tcp).await {
                let _ = tls.read(&mut [0; 64]).await;
            }
        }
    })
    .await;
    assert_eq!(outcome(&transport::attack(&target).await, "before the handshake"), Outcome::Failed);
}

/// A server inside TLS that lets everybody in, with the authentication request given.
async fn trusting(kind: u8) -> Target {
    let Tls { root_pem, acceptor } = tls(&[]);
    serve(&root_pem, move |mut tcp| {
        let acceptor = acceptor.clone();
        async move {
            let mut request = [0; 8];
            let _ = tcp.read_exact(&mut request).await;
            let _ = tcp.write_all(b"S").await;
            let Ok(mut tls) = acceptor.accept(tcp).await else { return };
            let _ = tls.read(&mut [0; 1_024]).await;
            let _ = tls.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, kind]).await;
            let _ = tls.write_all(b"Z\0\0\0\x05I").await;
            let _ = tls.flush().await;
            let _ = tls.read(&mut [0; 1_024]).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_server_that_trusts_everybody_or_asks_in_cleartext_fails_every_sign_in_claim() {
    for kind in [0, 3, 5] {
        let rows = sign_in::attack(&trusting(kind).await, "verify_x", "secret").await;
        for row in rows {
            assert_eq!(row.outcome, Outcome::Failed, "kind {kind}: {row:?}");
        }
    }
}

#[tokio::test]
async fn a_dead_address_proves_nothing() {
    let Tls { root_pem, .. } = tls(&[]);
    let mut target = serve(&root_pem, |_| async {}).await;
    let free = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    target.address = free.local_addr().unwrap();
    drop(free);
    let honest = Claim {
        handle: "my-shop-2",
        user: "verify_x",
        password: "secret",
        channel: super::session::Channel::Bound,
        source: None,
    };
    let mut rows = transport::attack(&target).await;
    rows.extend(sign_in::attack(&target, "verify_x", "secret").await);
    rows.extend(super::privileges::attack(&target, honest).await);
    rows.extend(super::cancel::attack(&target, honest, true).await);
    rows.extend(http::attack(&target).await);
    for row in rows {
        assert_eq!(row.outcome, Outcome::Failed, "{row:?}");
    }
}

#[tokio::test]
async fn an_api_that_answers_without_a_key_or_without_tls_fails() {
    let Tls { root_pem, acceptor } = tls(&[]);
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let target = serve(&root_pem, move |mut tcp| {
        let acceptor = acceptor.clone();
        async move {
            let mut first = [0];
            let _ = tcp.peek(&mut first).await;
            if first[0] != 22 {
                skip(&mut tcp).await;
                let _ = tcp.write_all(answer).await;
                return;
            }
            let Ok(mut tls) = acceptor.accept(tcp).await else { return };
            let _ = tls.read(&mut [0; 1_024]).await;
            let _ = tls.write_all(answer).await;
            let _ = tls.shutdown().await;
        }
    })
    .await;
    let rows = http::attack(&target).await;
    for claim in ["without a key", "unknown key", "without TLS"] {
        assert_eq!(outcome(&rows, claim), Outcome::Failed, "{claim}");
    }
    assert_eq!(outcome(&rows, "TLS 1.2"), Outcome::Proven);
}
