//! Attacks on the HTTPS API: no key, a wrong key, old TLS, no TLS.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::row::{Row, Verdict};
use super::target::{Target, is_ended, within};
use super::transport::offer_tls_1_2;
use super::wire::Fault;

const FEATURE: &str = "role-based access control";
const FLIGHT: &str = "encryption in flight, TLS 1.3";
/// Well formed, and nobody's.
const WRONG_KEY: &str = "CCDB1_aaaaaaaaaaaaaaaaaaaaaa_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// Of an answer, as much as is read.
const ANSWER_BYTES_MAX: u64 = 4_096;

/// Every attack of this file on the API at `target`.
pub async fn attack(target: &Target) -> Vec<Row> {
    let mut rows = Vec::new();
    for (claim, key) in [
        ("the API refuses a request without a key", None),
        ("the API refuses an unknown key", Some(WRONG_KEY)),
    ] {
        rows.push(Verdict::from(request(target, key).await).on(FEATURE, claim));
    }
    rows.push(Verdict::from(old_tls(target).await).on(FLIGHT, "the API refuses TLS 1.2"));
    rows.push(Verdict::from(plaintext(target).await).on(FLIGHT, "the API refuses HTTP without TLS"));
    rows
}

async fn request(target: &Target, key: Option<&str>) -> Result<Verdict, Fault> {
    let tcp = target.connect(None).await?;
    let tls = target.handshake(tcp, &target.roots, &target.host, &[b"http/1.1"]).await?;
    let status = ask(tls, target, key).await?;
    Ok(match status.as_str() {
        "401" | "403" => Verdict::proven(format!("GET /api/v1/clusters: HTTP {status}")),
        _ => Verdict::failed(format!("GET /api/v1/clusters: HTTP {status} instead of 401")),
    })
}

async fn old_tls(target: &Target) -> Result<Verdict, Fault> {
    offer_tls_1_2(target.connect(None).await?, &target.host).await
}

async fn plaintext(target: &Target) -> Result<Verdict, Fault> {
    let tcp = target.connect(None).await?;
    Ok(match ask(tcp, target, None).await {
        // Also an answer that says no would mean that a key could have been sent in plaintext.
        Ok(status) => match status.as_str() {
            "" => Verdict::proven("GET over plain TCP: closed without an answer"),
            "400" | "426" => Verdict::proven(format!("GET over plain TCP: HTTP {status}, nothing served")),
            _ => Verdict::failed(format!("GET over plain TCP was answered with HTTP {status}")),
        },
        Err(fault) if fault.is_end() => Verdict::proven("GET over plain TCP: connection closed"),
        Err(fault) => return Err(fault),
    })
}

/// The status of the answer to a request; empty when the connection ends without one, or with something else.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    target: &Target,
    key: Option<&str>,
) -> Result<String, Fault> {
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let host = format!("{}:{}", target.host, target.address.port());
    let request = format!("GET /api/v1/clusters HTTP/1.1\r\nHost: {host}\r\n{key}Connection: close\r\n\r\n");
    within(stream.write_all(request.as_bytes())).await??;
    within(stream.flush()).await??;
    let mut answer = Vec::new();
    match within(stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)).await? {
        Ok(_) => {}
        Err(error) if is_ended(&error) => {}
        Err(error) => return Err(error.into()),
    }
    let answer = String::from_utf8_lossy(&answer);
    Ok(answer
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_digit)
        .collect())
}
