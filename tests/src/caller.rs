//! A client that signs in by whatever the gateway asks for: with a password, a token, a certificate, from anywhere.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::authority::Identity;
use crate::cloud::Cluster;
use crate::scram::{self, Exchange, PLUS, initial_response, mechanisms};
use crate::tls;
use crate::wire::{Message, PROTOCOL_3_0, Refusal, Wire, startup, text};

/// Where a client comes from and what it has with it.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    source: Option<IpAddr>,
    identity: Option<Identity>,
    /// Signs with this identity's key instead of its own.
    key_of: Option<Identity>,
    secret: String,
    options: String,
    database: Option<String>,
    /// The server name in its ClientHello, if not `localhost`.
    server_name: Option<String>,
}

/// A loopback address that no other test uses.
pub fn fresh_address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [_, b, c, d] = (0x0040_0000 + number * 3 + 1).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, b, c, d))
}

impl Caller {
    /// Has a password, or a token in its place.
    pub fn with(secret: &str) -> Self {
        Self { secret: secret.to_owned(), ..Self::default() }
    }

    /// Has a token, and says so in its options as CockroachDB's clients do.
    pub fn with_token(token: &str) -> Self {
        Self { options: " --crdb:jwt_auth_enabled=true".to_owned(), ..Self::with(token) }
    }

    /// Has a certificate.
    pub fn holding(identity: &Identity) -> Self {
        Self { identity: Some(identity.clone()), ..Self::default() }
    }

    /// Has options of its own, for instance ` --crdb:jwt_auth_enabled=true`.
    #[must_use]
    pub fn saying(mut self, options: &str) -> Self {
        self.options = format!(" {}", options.trim());
        self
    }

    /// Has a certificate, too.
    #[must_use]
    pub fn and_holding(mut self, identity: &Identity) -> Self {
        self.identity = Some(identity.clone());
        self
    }

    /// Shows this certificate, without its key.
    pub fn pretending(shown: &Identity, held: &Identity) -> Self {
        Self { key_of: Some(held.clone()), ..Self::holding(shown) }
    }

    /// Comes from this address.
    #[must_use]
    pub fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Asks for this server name.
    #[must_use]
    pub fn naming(mut self, server_name: &str) -> Self {
        self.server_name = Some(server_name.to_owned());
        self
    }

    /// Wants this database.
    #[must_use]
    pub fn to(mut self, database: &str) -> Self {
        self.database = Some(database.to_owned());
        self
    }
}

/// What the gateway wants as a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing more: the client is in.
    Nothing,
    /// A password or a token in clear.
    Clear,
    /// One of these SASL mechanisms.
    Sasl(Vec<String>),
}

impl Wanted {
    /// Reads an Authentication message.
    pub fn of(message: &Message) -> Self {
        assert_eq!(message.tag, b'R', "not an Authentication message: {message:?}");
        match message.body[..4] {
            [0, 0, 0, 0] => Self::Nothing,
            [0, 0, 0, 3] => Self::Clear,
            [0, 0, 0, 10] => Self::Sasl(mechanisms(message)),
            _ => panic!("an unknown way to sign in: {message:?}"),
        }
    }
}

impl Cluster<'_> {
    /// A connection after the startup message.
    pub fn knock_as(&self, caller: &Caller) -> Result<Wire, Refusal> {
        let wire = self.cloud.connect(self.cloud.sql_address(), caller.source);
        self.knock_over(wire.map_err(|error| Refusal::closed(&error.to_string()))?, caller)
    }

    /// As [`Cluster::knock_as`], over a connection that stands: to another door, or from another host.
    pub fn knock_over(&self, mut wire: Wire, caller: &Caller) -> Result<Wire, Refusal> {
        let closed = |error: std::io::Error| Refusal::closed(&error.to_string());
        if wire.ask_for_tls().map_err(closed)? != b'S' {
            return Err(Refusal::closed("no TLS"));
        }
        let config = match &caller.identity {
            None => self.cloud.trust().clone(),
            Some(identity) => {
                let root = self.cloud.root_certificate();
                Arc::new(match &caller.key_of {
                    None => tls::client_with(&root, &identity.chain, &identity.key),
                    Some(other) => tls::client_pretending(&root, &identity.chain, &other.key),
                })
            }
        };
        wire.handshake(&config, caller.server_name.as_deref().unwrap_or("localhost")).map_err(closed)?;
        let options = format!("--cluster={}{}", self.handle, caller.options);
        let database = caller.database.as_deref().unwrap_or("defaultdb");
        let all = [("user", self.user.as_str()), ("database", database), ("options", &options)];
        wire.send_raw(&startup(PROTOCOL_3_0, &all)).map_err(closed)?;
        Ok(wire)
    }

    /// What the gateway wants of this caller, or how it refuses at once.
    pub fn wants_of(&self, caller: &Caller) -> Result<Wanted, Refusal> {
        self.knock_as(caller)?.expect_message().map(|message| Wanted::of(&message))
    }

    /// Signs in by whatever the gateway asks for.
    pub fn enter(&self, caller: &Caller) -> Result<Wire, Refusal> {
        prove(self.knock_as(caller)?, caller)
    }

    /// As [`Cluster::enter`], over a connection that stands.
    pub fn enter_over(&self, wire: Wire, caller: &Caller) -> Result<Wire, Refusal> {
        prove(self.knock_over(wire, caller)?, caller)
    }

    /// Signs in; panics when refused.
    #[track_caller]
    pub fn welcome(&self, caller: &Caller) -> Wire {
        match self.enter(caller) {
            Ok(wire) => wire,
            Err(refusal) => panic!("{} was refused: {refusal:?}", self.user),
        }
    }

    /// How the gateway refuses this caller.
    #[track_caller]
    pub fn refusal_of(&self, what: &str, caller: &Caller) -> Refusal {
        match self.enter(caller) {
            Ok(_) => panic!("{what}: {} was let in", self.user),
            Err(refusal) => refusal,
        }
    }
}

/// Answers whatever the gateway asks for after the startup message.
fn prove(mut wire: Wire, caller: &Caller) -> Result<Wire, Refusal> {
    let request = wire.expect_message()?;
    match Wanted::of(&request) {
        Wanted::Nothing => {}
        Wanted::Clear => {
            wire.send(b'p', &text(&caller.secret)).map_err(|error| Refusal::closed(&error.to_string()))?;
            let welcome = wire.expect_message()?;
            assert_eq!(Wanted::of(&welcome), Wanted::Nothing);
        }
        Wanted::Sasl(names) if names == ["OAUTHBEARER"] => {
            let welcome = bear(&mut wire, &caller.secret)?;
            assert_eq!(Wanted::of(&welcome), Wanted::Nothing);
        }
        Wanted::Sasl(names) => {
            let is_bound = names.iter().any(|name| name == PLUS);
            let how = if is_bound { Exchange::bound } else { Exchange::unbound };
            scram::prove(&mut wire, &how(&caller.secret))?;
        }
    }
    wire.expect_ready()?;
    Ok(wire)
}

/// Sends a token by OAUTHBEARER (RFC 7628) after AuthenticationSASL, and returns the next message.
pub fn bear(wire: &mut Wire, token: &str) -> Result<Message, Refusal> {
    say_bearer(wire, &format!("n,,\x01auth=Bearer {token}\x01\x01"))
}

/// Sends any initial response of OAUTHBEARER and returns the next message.
pub fn say_bearer(wire: &mut Wire, words: &str) -> Result<Message, Refusal> {
    let closed = |error: std::io::Error| Refusal::closed(&error.to_string());
    wire.send(b'p', &initial_response("OAUTHBEARER", words)).map_err(closed)?;
    let answer = wire.expect_message()?;
    if answer.body.starts_with(&[0, 0, 0, 11]) && words.contains("auth=Bearer ") {
        // The failure in JSON; the client says that it has read it, and is refused.
        wire.send(b'p', b"\x01").map_err(closed)?;
        return wire.expect_message();
    }
    Ok(answer)
}
