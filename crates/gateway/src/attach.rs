//! Station 9: a session on the engine as exactly the user that signed in, by `peer` on the engine's Unix socket.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use wire::backend::{EngineError, authentication_kind, is_protocol_2_error};
use wire::frame::{HEADER_BYTES, Header};
use wire::hello::CancelKey;

use crate::refusal::Refusal;
use crate::route::Route;
use crate::sign_in::Identity;

/// Longest single message of an engine before it is ready. Its messages there are short; a longer one is not PostgreSQL.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of all of them.
const GREETING_BYTES_MAX: usize = 64 * 1024;

/// What is taken of an error in protocol 2's form. PostgreSQL's own has 80 bytes.
const OLD_ERROR_BYTES_MAX: u64 = 1024;

/// An open session on the engine.
pub(crate) struct Attached {
    pub(crate) engine: UnixStream,
    pub(crate) engine_key: Option<CancelKey>,
    /// What the client gets to see of the engine's greeting, up to but without `ReadyForQuery`.
    pub(crate) greeting: Vec<u8>,
    /// `ReadyForQuery`.
    pub(crate) ready: Vec<u8>,
}

pub(crate) async fn attach(
    mut engine: UnixStream,
    identity: &Identity,
    route: &Route,
) -> Result<Attached, Refusal> {
    let own = [("user", identity.user().as_str()), ("database", route.database.as_str())];
    let others = route.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    // One that could not start a process for us may have closed before it was asked; its reason is still there to be read.
    let _ = engine.write_all(&wire::startup::encode(own.into_iter().chain(others))).await;
    let mut attached = Attached { engine, engine_key: None, greeting: Vec::new(), ready: Vec::new() };
    attached.take_first().await?;
    while !attached.take_message().await? {}
    Ok(attached)
}

impl Attached {
    /// Takes the first message, which may be an error in protocol 2's form.
    async fn take_first(&mut self) -> Result<(), Refusal> {
        let header = self.take_header().await?;
        if is_protocol_2_error(header) {
            return Err(self.no_process(header).await);
        }
        // No engine is ready before it has said that it trusts this node.
        self.take_body(header).await.map(drop)
    }

    /// Takes one message of the greeting; true when the engine is ready.
    async fn take_message(&mut self) -> Result<bool, Refusal> {
        let header = self.take_header().await?;
        self.take_body(header).await
    }

    async fn take_header(&mut self) -> Result<[u8; HEADER_BYTES], Refusal> {
        let mut header = [0; HEADER_BYTES];
        self.engine.read_exact(&mut header).await.map_err(|_| Refusal::EngineLost("it broke off"))?;
        Ok(header)
    }

    /// The rest of what the engine's first process says where it has no other process for the session.
    async fn no_process(&mut self, header: [u8; HEADER_BYTES]) -> Refusal {
        let mut said = header[1..].to_vec();
        // What came before a break is told.
        let _ = (&mut self.engine).take(OLD_ERROR_BYTES_MAX).read_to_end(&mut said).await;
        let text = said.split(|byte| *byte == 0).next().unwrap_or_default();
        Refusal::NoProcess { reason: String::from_utf8_lossy(text).trim().to_owned() }
    }

    async fn take_body(&mut self, bytes: [u8; HEADER_BYTES]) -> Result<bool, Refusal> {
        let lost = |_| Refusal::EngineLost("it broke off");
        let wrong = Refusal::EngineLost("it does not speak PostgreSQL's protocol");
        let header = Header::parse(bytes).map_err(|_| wrong.clone())?;
        if header.body_bytes > MESSAGE_BYTES_MAX || self.greeting.len() > GREETING_BYTES_MAX {
            return Err(wrong);
        }
        let mut message = bytes.to_vec();
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::UnixListener;
    use tokio::time::timeout;

    use super::*;

    const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
    const READY: &[u8] = b"Z\0\0\0\x05I";

    /// Attaches to an engine that says this and then waits, or closes.
    async fn greeted_with(words: Vec<u8>, closes: bool) -> Result<(Vec<u8>, Vec<u8>, Vec<u8>), Refusal> {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let engine = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = vec![0; 1024];
            let count = stream.read(&mut heard).await.unwrap();
            // A refused engine finds its socket closed; that is its problem.
            let _ = stream.write_all(&words).await;
            if !closes {
                let _ = stream.read(&mut [0]).await;
            }
            heard.truncate(count);
            heard
        });
        let route = Route {
            handle: "lazy-roach-3".parse().unwrap(),
            user: "maria".parse().unwrap(),
            database: "shop".parse().unwrap(),
            parameters: vec![("application_name".to_owned(), "test".to_owned())],
            brings_token: false,
        };
        let stream = UnixStream::connect(&socket).await.unwrap();
        let attached = attach(stream, &Identity::for_test("maria"), &route).await?;
        let Attached { engine: stream, greeting, ready, .. } = attached;
        drop(stream);
        Ok((greeting, ready, engine.await.unwrap()))
    }

    #[tokio::test]
    async fn the_engine_is_asked_for_exactly_the_user_and_its_key_is_not_passed_on() {
        let key = b"K\0\0\0\x0c\0\0\0\x07keys";
        let status = b"S\0\0\0\x08a\0b\0";
        let (greeting, ready, heard) = greeted_with([OK, status, key, READY].concat(), false).await.unwrap();
        assert_eq!((greeting.as_slice(), ready.as_slice()), (status.as_slice(), READY));
        let asked = wire::startup::Startup::parse(0, &heard[8..]).unwrap();
        let asked: Vec<_> = asked.parameters().collect();
        assert_eq!(asked, [("user", "maria"), ("database", "shop"), ("application_name", "test")]);
    }

    #[tokio::test]
    async fn t11_an_engine_that_never_answers_is_given_up() {
        let silent = timeout(Duration::from_millis(200), greeted_with(Vec::new(), false)).await;
        assert!(silent.is_err(), "the caller's deadline ends the wait");
        assert_eq!(greeted_with(Vec::new(), true).await.err(), Some(Refusal::EngineLost("it broke off")));
    }

    #[tokio::test]
    async fn t14_an_engine_s_endless_greeting_is_refused() {
        let mut long = b"N".to_vec();
        long.extend(u32::try_from(MESSAGE_BYTES_MAX + 5).unwrap().to_be_bytes());
        let refused = Some(Refusal::EngineLost("it does not speak PostgreSQL's protocol"));
        assert_eq!(
            greeted_with(long, false).await.err(),
            refused,
            "one message, refused before its body comes"
        );
        let notice = [b"N\0\0\x20\x04".as_slice(), &[b'x'; 0x2000]].concat();
        assert_eq!(greeted_with(notice.repeat(20), false).await.err(), refused, "many messages");
    }

    #[tokio::test]
    async fn t15_an_engine_s_error_without_fields_is_still_an_error() {
        for body in [b"".as_slice(), b"\0", b"Mno end"] {
            let mut error = b"E".to_vec();
            error.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
            error.extend(body);
            let refused = greeted_with(error, true).await.err();
            assert!(matches!(&refused, Some(Refusal::Engine { code, .. }) if code == "XX000"), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn a_failed_fork_in_an_engine_is_said_as_that() {
        let said = b"Ecould not fork new process for connection: Resource temporarily unavailable\n\0";
        let reason = "could not fork new process for connection: Resource temporarily unavailable".to_owned();
        let refused = greeted_with(said.to_vec(), true).await.err();
        assert_eq!(refused, Some(Refusal::NoProcess { reason }));
        let report = refused.and_then(|refused| refused.report()).unwrap();
        let told = EngineError::parse(&report[HEADER_BYTES..]);
        assert_eq!(told.code, "53000");
        assert!(told.message.contains("could not start a process for the session"), "{told:?}");
    }

    #[tokio::test]
    async fn t14_an_engine_s_endless_error_of_protocol_2_is_cut_off() {
        let refused = greeted_with(vec![b'E'; 1 << 20], false).await.err();
        assert!(
            matches!(&refused, Some(Refusal::NoProcess { reason }) if reason.len() < 2_000),
            "{refused:?}"
        );
        // Later on it is no first message, and so nothing that PostgreSQL would say.
        let late = [OK, b"Ecould not fork"].concat();
        let refused = Some(Refusal::EngineLost("it does not speak PostgreSQL's protocol"));
        assert_eq!(greeted_with(late, true).await.err(), refused);
    }

    #[tokio::test]
    async fn t02_an_engine_that_asks_for_a_password_or_speaks_otherwise_is_refused() {
        let password = b"R\0\0\0\x08\0\0\0\x03".to_vec();
        assert_eq!(
            greeted_with(password, false).await.err(),
            Some(Refusal::EngineLost("it does not trust this node"))
        );
        // What answers `S` to a question that was never asked, with bytes behind it, is no engine of ours.
        let stuffed = b"SHTTP/1.1 200 OK\r\n".to_vec();
        assert!(matches!(greeted_with(stuffed, true).await.err(), Some(Refusal::EngineLost(_))));
    }
}
