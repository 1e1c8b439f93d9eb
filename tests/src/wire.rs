//! A PostgreSQL client that does exactly what a test tells it, right or wrong.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName};

use crate::command::eventually;

/// Longest wait for an answer; a test that waits longer has found a hang.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(180);
/// For what the gateway does at once: less than the ten seconds after which it gives up on anybody who does not sign in.
pub const AT_ONCE: Duration = Duration::from_secs(8);
/// For something that must not come.
const SILENCE: Duration = Duration::from_millis(700);
/// Asks for TLS.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// Asks for GSSAPI encryption.
pub const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
/// Protocol 3.0.
pub const PROTOCOL_3_0: u32 = 3 << 16;
/// Protocol 3.2.
pub const PROTOCOL_3_2: u32 = (3 << 16) + 2;

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The first byte.
    pub tag: u8,
    /// What follows the length.
    pub body: Vec<u8>,
}

/// How the server said no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// SQLSTATE, or `closed` when the connection ended without an error message.
    pub code: String,
    /// The primary text.
    pub message: String,
    /// All fields by their letter.
    pub fields: BTreeMap<char, String>,
}

impl Refusal {
    /// A connection that ended without a word.
    pub fn closed(why: &str) -> Self {
        Self { code: "closed".to_owned(), message: why.to_owned(), fields: BTreeMap::new() }
    }

    /// Reads the body of an ErrorResponse or NoticeResponse.
    pub fn from_body(body: &[u8]) -> Self {
        let mut fields = BTreeMap::new();
        for part in body.split(|byte| *byte == 0).filter(|part| !part.is_empty()) {
            fields.insert(char::from(part[0]), String::from_utf8_lossy(&part[1..]).into_owned());
        }
        let field = |letter| fields.get(&letter).cloned().unwrap_or_default();
        Self { code: field('C'), message: field('M'), fields }
    }
}

/// A statement's rows as text; `None` is NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// What carries a connection: TCP, or a proxy's own TLS over it.
trait Carrier: Read + Write + Send {
    /// The socket at the bottom.
    fn socket(&self) -> &TcpStream;
}

impl Carrier for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Carrier for StreamOwned<ClientConnection, Box<dyn Carrier>> {
    fn socket(&self) -> &TcpStream {
        self.sock.socket()
    }
}

enum Road {
    Plain(Box<dyn Carrier>),
    Tls(Box<StreamOwned<ClientConnection, Box<dyn Carrier>>>),
    Gone,
}

/// One connection to the gateway.
pub struct Wire {
    road: Road,
    /// What the server reported with ParameterStatus, last value wins.
    pub parameters: BTreeMap<String, String>,
    /// The key with which a cancel names this session: process id and secret.
    pub cancel_key: Option<(u32, Vec<u8>)>,
    /// Notifications and notices that came by the way.
    pub asides: Vec<Message>,
}

impl Wire {
    /// Opens a TCP connection.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::tcp_from(address, None).expect("the gateway listens")
    }

    /// Opens a TCP connection from the given source address.
    pub fn tcp_from(address: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        let stream = match source {
            None => TcpStream::connect_timeout(&address, Duration::from_secs(10))?,
            Some(source) => {
                use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
                let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let descriptor: OwnedFd = socket(family, SocketType::STREAM, None)?;
                bind(&descriptor, &SocketAddr::new(source, 0))?;
                connect(&descriptor, &address)?;
                TcpStream::from(descriptor)
            }
        };
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Self::over(Box::new(stream)))
    }

    fn over(carrier: Box<dyn Carrier>) -> Self {
        Self { road: Road::Plain(carrier), parameters: BTreeMap::new(), cancel_key: None, asides: Vec::new() }
    }

    /// The socket below everything.
    pub fn socket(&self) -> &TcpStream {
        match &self.road {
            Road::Plain(stream) => stream.socket(),
            Road::Tls(stream) => stream.socket(),
            Road::Gone => unreachable!("the road is only gone while it changes"),
        }
    }

    /// The TLS connection; panics while there is none.
    pub fn tls(&self) -> &ClientConnection {
        match &self.road {
            Road::Tls(stream) => &stream.conn,
            _ => panic!("this connection is not encrypted"),
        }
    }

    /// The certificate that the server showed.
    pub fn server_certificate(&self) -> CertificateDer<'static> {
        let chain = self.tls().peer_certificates().expect("the handshake is done");
        chain[0].clone().into_owned()
    }

    /// Sends SSLRequest and returns the answer's one byte.
    pub fn ask_for_tls(&mut self) -> io::Result<u8> {
        self.write_all(&SSL_REQUEST)?;
        let mut answer = [0];
        self.read_exact(&mut answer)?;
        Ok(answer[0])
    }

    /// Makes the TLS handshake with this server name.
    pub fn handshake(&mut self, config: &Arc<ClientConfig>, name: &str) -> io::Result<()> {
        let name = ServerName::try_from(name.to_owned()).expect("a DNS name or address");
        let connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        let Road::Plain(stream) = std::mem::replace(&mut self.road, Road::Gone) else {
            panic!("the connection is encrypted already");
        };
        let mut stream = StreamOwned::new(connection, stream);
        let result = loop {
            if !stream.conn.is_handshaking() {
                break Ok(());
            }
            if let Err(error) = stream.conn.complete_io(&mut stream.sock) {
                break Err(error);
            }
        };
        self.road = Road::Tls(Box::new(stream));
        result
    }

    /// What is inside this TLS connection, as a connection of its own: a client behind a connecting proxy.
    pub fn inside(self) -> Self {
        match self.road {
            Road::Tls(stream) => Self::over(stream),
            Road::Plain(_) | Road::Gone => panic!("this connection is not encrypted"),
        }
    }

    /// Sends raw bytes at once.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)?;
        self.flush()
    }

    /// Sends one message.
    pub fn send(&mut self, tag: u8, body: &[u8]) -> io::Result<()> {
        self.send_raw(&message(tag, body))
    }

    /// Reads one message of the server.
    pub fn receive(&mut self) -> io::Result<Message> {
        let mut header = [0; 5];
        self.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let is_framed = (4..=1 << 30).contains(&length) && header[0].is_ascii_graphic();
        if !is_framed {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a message: {header:?}")));
        }
        let mut body = vec![0; length - 4];
        self.read_exact(&mut body)?;
        Ok(Message { tag: header[0], body })
    }

    /// Reads the next message that is not an aside; an error message or the end of the connection is a refusal.
    pub fn expect_message(&mut self) -> Result<Message, Refusal> {
        loop {
            let message = self.receive().map_err(|error| Refusal::closed(&error.to_string()))?;
            match message.tag {
                b'E' => return Err(Refusal::from_body(&message.body)),
                b'S' => {
                    let text = String::from_utf8_lossy(&message.body).into_owned();
                    let mut parts = text.split('\0');
                    let (name, value) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
                    self.parameters.insert(name.to_owned(), value.to_owned());
                }
                b'N' | b'A' => self.asides.push(message),
                b'K' => {
                    let number = u32::from_be_bytes(message.body[..4].try_into().expect("a process id"));
                    self.cancel_key = Some((number, message.body[4..].to_vec()));
                }
                _ => return Ok(message),
            }
        }
    }

    /// Reads until the connection says how it ends: with an error message, or without one.
    pub fn expect_refusal(&mut self) -> Refusal {
        loop {
            match self.expect_message() {
                Err(refusal) => return refusal,
                Ok(message) if message.tag == b'R' && message.body == [0, 0, 0, 0] => {
                    panic!("signed in, but should have been refused")
                }
                Ok(_) => {}
            }
        }
    }

    /// Reads to ReadyForQuery and returns its status byte.
    pub fn expect_ready(&mut self) -> Result<u8, Refusal> {
        loop {
            let message = self.expect_message()?;
            if message.tag == b'Z' {
                return Ok(message.body[0]);
            }
        }
    }

    /// Runs one simple query to its ReadyForQuery and returns all rows.
    pub fn query(&mut self, sql: &str) -> Result<Rows, Refusal> {
        self.send(b'Q', &text(sql)).map_err(|error| Refusal::closed(&error.to_string()))?;
        self.results()
    }

    /// Reads the rest of a simple query's answer.
    pub fn results(&mut self) -> Result<Rows, Refusal> {
        let mut rows = Rows::new();
        loop {
            match self.expect_message() {
                Ok(message) if message.tag == b'D' => rows.push(columns(&message.body)),
                Ok(message) if message.tag == b'Z' => return Ok(rows),
                Ok(_) => {}
                Err(refusal) => {
                    // A session that lives on says so; one that was ended does not.
                    let is_over = refusal.fields.get(&'V').is_none_or(|severity| severity == "FATAL");
                    if !is_over {
                        self.expect_ready()?;
                    }
                    return Err(refusal);
                }
            }
        }
    }

    /// Begins a statement that takes long, and returns when the engine works at it: another session of the same user watches.
    pub fn begin(&mut self, sql: &str, watcher: &mut Self) {
        let process = self.value("select pg_backend_pid()");
        self.send(b'Q', &text(sql)).expect("the session stands");
        let look =
            format!("select count(*) from pg_stat_activity where pid = {process} and state = 'active'");
        eventually("the engine works at it", ANSWER_DEADLINE, || (watcher.value(&look) == "1").then_some(()));
    }

    /// Whether nothing comes for a while. What comes is not to be read by anybody else.
    pub fn is_silent(&mut self) -> bool {
        let limit = |wire: &Self, time| wire.socket().set_read_timeout(Some(time)).expect("a live socket");
        limit(self, SILENCE);
        let answer = self.read(&mut [0]);
        limit(self, ANSWER_DEADLINE);
        answer.is_err()
    }

    /// The single value of a query.
    pub fn value(&mut self, sql: &str) -> String {
        let rows = self.query(sql).unwrap_or_else(|refusal| panic!("{sql}: {refusal:?}"));
        rows[0][0].clone().expect("not NULL")
    }

    /// Whether the server ended the connection within the time; what it still sends is thrown away.
    pub fn is_closed_within(&mut self, wait: Duration) -> bool {
        let until = std::time::Instant::now() + wait;
        let mut bytes = [0; 4096];
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return false;
            }
            let _ = self.socket().set_read_timeout(Some(left));
            match self.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }
}

impl Read for Wire {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.road {
            Road::Plain(stream) => stream.read(bytes),
            Road::Tls(stream) => stream.read(bytes),
            Road::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.road {
            Road::Plain(stream) => stream.write(bytes),
            Road::Tls(stream) => stream.write(bytes),
            Road::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.road {
            Road::Plain(stream) => stream.flush(),
            Road::Tls(stream) => stream.flush(),
            Road::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// A message with its tag and length.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(u32::try_from(body.len() + 4).expect("messages of tests are short").to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Text with the zero byte that ends it on the wire.
pub fn text(value: &str) -> Vec<u8> {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A StartupMessage.
pub fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend(text(name));
        body.extend(text(value));
    }
    body.push(0);
    let mut bytes = u32::try_from(body.len() + 4).expect("short").to_be_bytes().to_vec();
    bytes.extend(body);
    bytes
}

/// A CancelRequest.
pub fn cancel_request(process: u32, secret: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(12 + secret.len()).expect("short").to_be_bytes().to_vec();
    bytes.extend([0x04, 0xd2, 0x16, 0x2e]);
    bytes.extend(process.to_be_bytes());
    bytes.extend(secret);
    bytes
}

/// The columns of a DataRow.
pub fn columns(body: &[u8]) -> Vec<Option<String>> {
    let count = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let mut at = 2;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        let length = i32::from_be_bytes(body[at..at + 4].try_into().expect("a length"));
        at += 4;
        let Ok(length) = usize::try_from(length) else {
            values.push(None);
            continue;
        };
        values.push(Some(String::from_utf8_lossy(&body[at..at + length]).into_owned()));
        at += length;
    }
    values
}
