//! Attacks on the encryption in flight: old TLS, no TLS, another protocol, smuggled bytes, wrong names, foreign roots.

use std::sync::Arc;

use rustls::{ProtocolVersion, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::row::{Row, Verdict};
use super::target::{ALPN, ANSWER_MAX, Target, is_ended, within};
use super::wire::{Fault, Refusal, SSL_REQUEST, Wire, startup};

const FEATURE: &str = "encryption in flight, TLS 1.3";
const IDENTITY: &str = "server identity";

/// A root that signed nothing: made for this check, its private key was thrown away.
const FOREIGN_ROOT: &str = include_str!("foreign-root.pem");

/// Every attack of this file.
pub async fn attack(target: &Target) -> Vec<Row> {
    vec![
        Verdict::from(tls_1_2(target).await).on(FEATURE, "TLS 1.2 is refused"),
        Verdict::from(tls_1_3(target).await)
            .on(FEATURE, "TLS 1.3 with the post-quantum hybrid X25519MLKEM768"),
        Verdict::from(plaintext(target).await).on(FEATURE, "a session without TLS is refused"),
        Verdict::from(direct(target).await).on(FEATURE, "direct TLS needs ALPN postgresql"),
        Verdict::from(smuggled(target).await)
            .on(FEATURE, "bytes sent before the handshake are never read after it"),
        Verdict::from(certificate(target).await).on(IDENTITY, "the certificate verifies for the host's name"),
        Verdict::from(wrong_name(target).await).on(IDENTITY, "under another name a client turns away"),
        Verdict::from(foreign_root(target).await).on(IDENTITY, "with another root a client turns away"),
    ]
}

async fn tls_1_2(target: &Target) -> Result<Verdict, Fault> {
    let tcp = target.welcomed(None).await?;
    offer_tls_1_2(tcp, &target.host).await
}

/// Offers TLS 1.2 at most on a connection that is ready for TLS.
pub async fn offer_tls_1_2(mut tcp: TcpStream, host: &str) -> Result<Verdict, Fault> {
    within(tcp.write_all(&client_hello_1_2(host))).await??;
    let mut record = [0; 7];
    if let Err(error) = within(tcp.read_exact(&mut record)).await? {
        let what = if is_ended(&error) { "the connection was closed without an alert" } else { "no answer" };
        return Ok(Verdict::failed(format!("{what}: TLS 1.2 was not seen to be refused ({error})")));
    }
    Ok(match record {
        // Alert, fatal, protocol_version (RFC 8446, 6.2).
        [21, _, _, 0, 2, 2, 70] => Verdict::proven("TLS 1.2 offered; fatal alert protocol_version (70)"),
        // Another alert may mean that our hello was not understood, which proves nothing.
        [21, _, _, 0, 2, level, alert] => {
            Verdict::failed(format!("TLS 1.2 offered; alert {alert} (level {level}), not protocol_version"))
        }
        [22, ..] => Verdict::failed("TLS 1.2 offered; the server went on with the handshake"),
        [kind, ..] => Verdict::failed(format!("TLS 1.2 offered; answered with record type {kind}, no alert")),
    })
}

async fn tls_1_3(target: &Target) -> Result<Verdict, Fault> {
    let wire = target.encrypted(None).await?;
    let (_, connection) = wire.get_ref().get_ref();
    let version = connection.protocol_version();
    let group = connection.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name);
    let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
    let evidence = format!(
        "{} {} {}",
        version.and_then(|version| version.as_str()).unwrap_or("no version"),
        group.and_then(|group| group.as_str()).unwrap_or("no group"),
        suite.and_then(|suite| suite.as_str()).unwrap_or("no suite"),
    );
    let is_good =
        version == Some(ProtocolVersion::TLSv1_3) && group == Some(rustls::NamedGroup::X25519MLKEM768);
    Ok(if is_good { Verdict::proven(evidence) } else { Verdict::failed(evidence) })
}

async fn plaintext(target: &Target) -> Result<Verdict, Fault> {
    let mut wire = Wire::new(target.connect(None).await?);
    let cluster = format!("--cluster={}", target.handle);
    wire.send(&startup(&[("user", "maria"), ("database", "defaultdb"), ("options", &cluster)])).await?;
    let message = match wire.receive(ANSWER_MAX).await {
        Ok(message) => message,
        Err(fault) if fault.is_end() => return Ok(Verdict::proven("the connection was closed")),
        Err(fault) => return Err(fault),
    };
    Ok(match message.tag {
        b'E' => {
            let refusal = Refusal::parse(&message.body);
            if refusal.code.starts_with("28") {
                Verdict::proven(format!("startup in plaintext: {refusal}"))
            } else {
                Verdict::failed(format!("refused, but not for want of TLS: {refusal}"))
            }
        }
        tag => Verdict::failed(format!("the server went on in plaintext with message {:?}", char::from(tag))),
    })
}

async fn direct(target: &Target) -> Result<Verdict, Fault> {
    let tcp = target.connect(None).await?;
    let with = target.handshake(tcp, &target.roots, &target.host, &[ALPN]).await?;
    if with.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Ok(Verdict::failed("direct TLS: the server did not agree on ALPN postgresql"));
    }
    let mut refused = Vec::new();
    for (name, protocols) in [("no ALPN", &[][..]), ("ALPN h2", &[b"h2".as_slice()][..])] {
        let tcp = target.connect(None).await?;
        match target.handshake(tcp, &target.roots, &target.host, protocols).await {
            Ok(_) => return Ok(Verdict::failed(format!("direct TLS with {name} was accepted"))),
            Err(Fault::Io(error)) => refused.push(format!("{name}: {error}")),
            Err(fault) => return Err(fault),
        }
    }
    Ok(Verdict::proven(format!("with it accepted; {}", refused.join("; "))))
}

async fn smuggled(target: &Target) -> Result<Verdict, Fault> {
    let mut tcp = target.connect(None).await?;
    let mut bytes = SSL_REQUEST.to_vec();
    bytes.extend(startup(&[("user", "smuggled")]));
    within(tcp.write_all(&bytes)).await??;
    let mut answer = [0];
    match within(tcp.read(&mut answer)).await? {
        Ok(0) => return Ok(Verdict::proven("SSLRequest and more in one packet: closed at once")),
        Err(error) if is_ended(&error) => {
            return Ok(Verdict::proven("SSLRequest and more in one packet: connection reset"));
        }
        Err(error) => return Err(error.into()),
        Ok(_) if answer[0] != b'S' => {
            return Ok(Verdict::proven(format!("SSLRequest and more: answered {:#04x}, no TLS", answer[0])));
        }
        Ok(_) => {}
    }
    Ok(match target.handshake(tcp, &target.roots, &target.host, &[]).await {
        // The bytes were kept aside while the handshake went on: they may be read as if they had come through it.
        Ok(_) => {
            Verdict::failed("a handshake succeeds with plaintext bytes waiting before it (CVE-2021-23222)")
        }
        Err(_) => Verdict::proven("the early bytes reached TLS, which refused them"),
    })
}

async fn certificate(target: &Target) -> Result<Verdict, Fault> {
    let wire = target.encrypted(None).await?;
    let chain = wire.get_ref().get_ref().1.peer_certificates().map_or(0, <[_]>::len);
    // The name by which a client reaches the cluster without saying it again in `options`.
    let own = format!("{}.{}", target.handle, target.host);
    let tcp = target.welcomed(None).await?;
    let by_own_name = target.handshake(tcp, &target.roots, &own, &[]).await;
    let host = &target.host;
    Ok(match by_own_name {
        Ok(_) => {
            Verdict::proven(format!("verify-full for {host} and for {own}; {chain} certificate(s) shown"))
        }
        Err(_) => Verdict::proven(format!("verify-full for {host}; {chain} certificate(s) shown")),
    })
}

async fn wrong_name(target: &Target) -> Result<Verdict, Fault> {
    let tcp = target.welcomed(None).await?;
    let name = "not-this-server.invalid";
    turned_away(target.handshake(tcp, &target.roots, name, &[]).await, &format!("as {name}"))
}

async fn foreign_root(target: &Target) -> Result<Verdict, Fault> {
    let foreign: Arc<RootCertStore> = Arc::new(super::target::roots(FOREIGN_ROOT)?);
    let tcp = target.welcomed(None).await?;
    turned_away(target.handshake(tcp, &foreign, &target.host, &[]).await, "trusting a foreign root only")
}

fn turned_away<T>(result: Result<T, Fault>, how: &str) -> Result<Verdict, Fault> {
    match result {
        Ok(_) => Ok(Verdict::failed(format!("{how}: the certificate was accepted"))),
        Err(Fault::Io(error)) if error.to_string().contains("invalid peer certificate") => {
            Ok(Verdict::proven(format!("{how}: {}", first_words(&error.to_string()))))
        }
        Err(fault) => Err(fault),
    }
}

fn first_words(text: &str) -> &str {
    text.split([';', '(']).next().unwrap_or(text).trim()
}

/// A ClientHello of a client that knows TLS 1.2 at most (RFC 5246, 7.4.1.2).
fn client_hello_1_2(host: &str) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    // ECDHE with AES-GCM and ChaCha20-Poly1305, for both kinds of certificate.
    let suites = [0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x2c, 0xc0, 0x30, 0xcc, 0xa9, 0xcc, 0xa8];
    body.extend(sized(&suites));
    body.extend([1, 0]);
    let mut extensions = Vec::new();
    // An address is no server name (RFC 6066, 3).
    if host.parse::<std::net::IpAddr>().is_err() {
        let mut name = vec![0];
        name.extend(sized(host.as_bytes()));
        extensions.extend([0, 0]);
        extensions.extend(sized(&sized(&name)));
    }
    for (kind, data) in [
        (10, sized(&[0, 29, 0, 23, 0, 24])),
        (11, vec![1, 0]),
        (13, sized(&[4, 3, 5, 3, 8, 4, 8, 5, 4, 1, 5, 1])),
        (23, Vec::new()),
        (0xff01, vec![0]),
    ] {
        extensions.extend(u16::to_be_bytes(kind));
        extensions.extend(sized(&data));
    }
    body.extend(sized(&extensions));
    let mut handshake = vec![1, 0];
    handshake.extend(sized(&body));
    let mut record = vec![22, 3, 1];
    record.extend(sized(&handshake));
    record
}

/// Bytes after their length in two bytes.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut all = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    all.extend_from_slice(bytes);
    all
}
