//! Signing in over the network, as an honest client or not, with everything that was seen on the way.

use std::net::IpAddr;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::scram::{Binding, Challenge, Client, server_end_point};
use super::target::{ANSWER_MAX, Target, WAKE_MAX};
use super::wire::{Fault, Refusal, Wire, startup};

/// A connection inside TLS.
pub type Encrypted = Wire<TlsStream<TcpStream>>;

/// What an attacker claims and knows.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The cluster's address label.
    pub handle: &'a str,
    /// The user.
    pub user: &'a str,
    /// The password.
    pub password: &'a str,
    /// What is said about the TLS channel.
    pub channel: Channel,
    /// The source address, if not the usual one.
    pub source: Option<IpAddr>,
}

/// What a client says about the TLS channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// The truth: SCRAM-SHA-256-PLUS bound to the certificate that was shown.
    Bound,
    /// It binds to another certificate, as if somebody were in between.
    Foreign,
    /// It says that the server does not offer channel binding.
    Downgraded,
    /// It cannot bind.
    Unsupported,
}

/// Everything that was seen of one sign-in.
#[derive(Debug, Default)]
pub struct Attempt {
    /// The kinds of authentication request, in order (10 SASL, 11 continue, 12 final, 0 ok, 3 cleartext, 5 MD5).
    pub asked: Vec<u32>,
    /// The SASL mechanisms offered.
    pub mechanisms: Vec<String>,
    /// What the server said of the verifier.
    pub challenge: Option<Challenge>,
    /// Why the server refused; none if it let the client in or did not speak SCRAM.
    pub refusal: Option<Refusal>,
    /// The session, if there is one.
    pub session: Option<Session>,
}

/// An open SQL session.
#[derive(Debug)]
pub struct Session {
    /// Its connection, ready for a query.
    pub wire: Encrypted,
    /// The body of its `BackendKeyData`: process id and secret.
    pub cancel_key: Vec<u8>,
}

/// Tries to sign in. A refusal of the server is a result, not an error.
pub async fn sign_in(target: &Target, claim: Claim<'_>) -> Result<Attempt, Fault> {
    let mut wire = target.encrypted(claim.source).await?;
    let mut attempt = Attempt::default();
    let cluster = format!("--cluster={}", claim.handle);
    let parameters = [
        ("user", claim.user),
        ("database", model::DEFAULT_DATABASE),
        ("options", cluster.as_str()),
        ("application_name", "chitin verify"),
    ];
    wire.send(&startup(&parameters)).await?;
    match run(&mut wire, &mut attempt, claim).await {
        Ok(Some(cancel_key)) => attempt.session = Some(Session { wire, cancel_key }),
        Ok(None) => {}
        Err(Fault::Refused(refusal)) => {
            if let Some(amnesty) = &target.amnesty {
                amnesty.grant().await;
            }
            attempt.refusal = Some(refusal);
        }
        Err(fault) => return Err(fault),
    }
    Ok(attempt)
}

/// As [`sign_in`], for a claim that must succeed.
pub async fn enter(target: &Target, claim: Claim<'_>) -> Result<Session, Fault> {
    let attempt = sign_in(target, claim).await?;
    match (attempt.session, attempt.refusal) {
        (Some(session), _) => Ok(session),
        (None, Some(refusal)) => Err(Fault::Refused(refusal)),
        (None, None) => Err(Fault::Unexpected("the server did not ask for SCRAM".to_owned())),
    }
}

async fn run(
    wire: &mut Encrypted,
    attempt: &mut Attempt,
    claim: Claim<'_>,
) -> Result<Option<Vec<u8>>, Fault> {
    let offer = authentication(wire, attempt).await?;
    if offer.0 != 10 {
        // Trust, cleartext or MD5: neither a session nor a refusal; the caller sees it in `asked`.
        return Ok(None);
    }
    attempt.mechanisms = offer
        .1
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    let client = Client::new(binding(wire, claim.channel)?)?;
    wire.send_message(b'p', &client.initial()).await?;
    let challenge = client.challenge(&expect(wire, attempt, 11).await?)?;
    attempt.challenge = Some(challenge.clone());
    let proof = client.prove(&challenge, claim.password)?;
    wire.send_message(b'p', proof.message.as_bytes()).await?;
    if expect(wire, attempt, 12).await? != proof.expected.as_bytes() {
        return Err(Fault::Unexpected("the server does not know the user's verifier".to_owned()));
    }
    expect(wire, attempt, 0).await?;
    ready(wire).await.map(Some)
}

/// What became of a certificate that was shown instead of a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// It signed in, as this user.
    Entered(String),
    /// The server went on to ask for something else.
    Ignored,
    /// The server refused.
    Refused(Refusal),
}

/// Shows a certificate and tries to sign in with nothing else.
pub async fn offer_certificate(
    target: &Target,
    user: &str,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Shown, Fault> {
    let mut wire = target.presenting(chain, key).await?;
    let mut attempt = Attempt::default();
    let entering = async {
        wire.send(&hello(target, user, "")).await?;
        if authentication(&mut wire, &mut attempt).await?.0 != 0 {
            return Ok(Shown::Ignored);
        }
        ready(&mut wire).await?;
        wire.value("select current_user").await.map(Shown::Entered)
    };
    match entering.await {
        Err(Fault::Refused(refusal)) => Ok(Shown::Refused(refusal)),
        shown => shown,
    }
}

/// Offers a token in a password's place; tells who was signed in, or the refusal.
pub async fn offer_token(target: &Target, user: &str, token: &str) -> Result<Result<String, Refusal>, Fault> {
    let mut wire = target.encrypted(None).await?;
    let mut attempt = Attempt::default();
    let entering = async {
        wire.send(&hello(target, user, " --crdb:jwt_auth_enabled=true")).await?;
        expect(&mut wire, &mut attempt, 3).await?;
        let mut body = token.as_bytes().to_vec();
        body.push(0);
        wire.send_message(b'p', &body).await?;
        expect(&mut wire, &mut attempt, 0).await?;
        ready(&mut wire).await?;
        wire.value("select current_user").await
    };
    match entering.await {
        Ok(who) => Ok(Ok(who)),
        Err(Fault::Refused(refusal)) => {
            if let Some(amnesty) = &target.amnesty {
                amnesty.grant().await;
            }
            Ok(Err(refusal))
        }
        Err(fault) => Err(fault),
    }
}

fn hello(target: &Target, user: &str, more: &str) -> Vec<u8> {
    let options = format!("--cluster={}{more}", target.handle);
    startup(&[
        ("user", user),
        ("database", model::DEFAULT_DATABASE),
        ("options", options.as_str()),
        ("application_name", "chitin verify"),
    ])
}

/// Waits until the session can be used; tells the body of its `BackendKeyData`.
async fn ready(wire: &mut Encrypted) -> Result<Vec<u8>, Fault> {
    let mut cancel_key = Vec::new();
    loop {
        // Here the cluster may have to wake.
        let message = wire.receive(WAKE_MAX).await?;
        match message.tag {
            b'K' => cancel_key = message.body,
            b'Z' => return Ok(cancel_key),
            b'E' => return Err(Fault::Refused(Refusal::parse(&message.body))),
            b'S' | b'N' => {}
            other => return Err(Fault::Unexpected(format!("message {:?} after sign-in", char::from(other)))),
        }
    }
}

async fn expect(wire: &mut Encrypted, attempt: &mut Attempt, kind: u32) -> Result<Vec<u8>, Fault> {
    match authentication(wire, attempt).await? {
        (found, data) if found == kind => Ok(data),
        (found, _) => Err(Fault::Unexpected(format!("authentication step {found} instead of {kind}"))),
    }
}

async fn authentication(wire: &mut Encrypted, attempt: &mut Attempt) -> Result<(u32, Vec<u8>), Fault> {
    loop {
        let message = wire.receive(ANSWER_MAX).await?;
        match message.tag {
            b'R' => {
                let Some((kind, data)) = message.body.split_first_chunk::<4>() else {
                    return Err(Fault::Unexpected("an authentication request without a kind".to_owned()));
                };
                let kind = u32::from_be_bytes(*kind);
                attempt.asked.push(kind);
                return Ok((kind, data.to_vec()));
            }
            b'E' => return Err(Fault::Refused(Refusal::parse(&message.body))),
            b'N' | b'v' => {}
            other => {
                return Err(Fault::Unexpected(format!("message {:?} during sign-in", char::from(other))));
            }
        }
    }
}

fn binding(wire: &Encrypted, channel: Channel) -> Result<Binding, Fault> {
    Ok(match channel {
        Channel::Bound => {
            let (_, connection) = wire.get_ref().get_ref();
            let certificate = connection.peer_certificates().and_then(|chain| chain.first());
            let value = certificate.and_then(server_end_point).ok_or_else(|| {
                Fault::Unexpected(
                    "the server's certificate has no tls-server-end-point value (RFC 5929), for instance Ed25519"
                        .to_owned(),
                )
            })?;
            Binding::Bound(value)
        }
        Channel::Foreign => Binding::Bound(vec![0x5a; 32]),
        Channel::Downgraded => Binding::Downgraded,
        Channel::Unsupported => Binding::Unsupported,
    })
}
