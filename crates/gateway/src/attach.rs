//! Station 9: a session on the engine as exactly the user that signed in, by `peer` on the engine's Unix socket.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use wire::backend::{EngineError, authentication_kind};
use wire::frame::{HEADER_BYTES, Header};
use wire::hello::CancelKey;

use crate::refusal::Refusal;
use crate::route::Route;
use crate::sign_in::Identity;

/// Longest single message of an engine before it is ready. Its messages there are short; a longer one is not PostgreSQL.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of all of them.
const GREETING_BYTES_MAX: usize = 64 * 1024;

/// An open session on the engine.
pub(crate) struct Attached {
    pub(crate) engine: UnixStream,
    pub(crate) socket: PathBuf,
    pub(crate) engine_key: Option<CancelKey>,
    /// What the client gets to see of the engine's greeting, up to but without `ReadyForQuery`.
    pub(crate) greeting: Vec<u8>,
    /// `ReadyForQuery`.
    pub(crate) ready: Vec<u8>,
}

pub(crate) async fn attach(socket: &Path, identity: &Identity, route: &Route) -> Result<Attached, Refusal> {
    let lost = |_| Refusal::EngineLost("it does not answer");
    let mut engine = UnixStream::connect(socket).await.map_err(lost)?;
    let own = [("user", identity.user().as_str()), ("database", route.database.as_str())];
    let others = route.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    engine.write_all(&wire::startup::encode(own.into_iter().chain(others))).await.map_err(lost)?;
    let mut attached = Attached {
        engine,
        socket: socket.to_owned(),
        engine_key: None,
        greeting: Vec::new(),
        ready: Vec::new(),
    };
    while !attached.take_message().await? {}
    Ok(attached)
}

impl Attached {
    /// Takes one message of the greeting; true when the engine is ready.
    async fn take_message(&mut self) -> Result<bool, Refusal> {
        let lost = |_| Refusal::EngineLost("it broke off");
        let wrong = Refusal::EngineLost("it does not speak PostgreSQL's protocol");
        let mut message = vec![0; HEADER_BYTES];
        self.engine.read_exact(&mut message).await.map_err(lost)?;
        let bytes = message.first_chunk::<HEADER_BYTES>().copied().unwrap_or_default();
        let header = Header::parse(bytes).map_err(|_| wrong.clone())?;
        if header.body_bytes > MESSAGE_BYTES_MAX || self.greeting.len() > GREETING_BYTES_MAX {
            return Err(wrong);
        }
        message.resize(HEADER_BYTES + header.body_bytes, 0);
        self.engine.read_exact(&mut message[HEADER_BYTES..]).await.map_err(lost)?;
        let body = &message[HEADER_BYTES..];
        match header.tag {
            b'R' if authentication_kind(body) == Ok(0) => {}
            b'R' => return Err(Refusal::EngineLost("it does not trust this node")),
            b'S' | b'N' => self.greeting.extend_from_slice(&message),
            b'K' => self.engine_key = CancelKey::parse(body).ok(),
            b'E' => {
                let EngineError { code, message } = EngineError::parse(body);
                return Err(Refusal::Engine { code, message });
            }
            b'Z' => {
                self.ready = message;
                return Ok(true);
            }
            _ => return Err(wrong),
        }
        Ok(false)
    }
}
