//! The little of PostgreSQL's protocol that an attacker needs, over any stream, every length and wait bounded.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::target::{ANSWER_MAX, is_ended};

/// `SSLRequest`.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// Longest message that is read; a front door sends nothing longer to an attacker.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Why an attack broke off.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The network or TLS failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Nothing came in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The server refused with an error of the protocol.
    #[error("{0}")]
    Refused(Refusal),
    /// The server did something that it should not.
    #[error("{0}")]
    Unexpected(String),
    /// The attack could not be prepared.
    #[error("{0}")]
    Setup(String),
}

impl Fault {
    /// Whether the other side ended the connection without a word.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Io(error) if is_ended(error))
    }
}

/// An `ErrorResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// SQLSTATE.
    pub code: String,
    /// The text.
    pub message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code, self.message)
    }
}

impl Refusal {
    /// Reads the body of an `ErrorResponse`.
    pub fn parse(body: &[u8]) -> Self {
        let mut refusal = Self::default();
        for field in body.split(|byte| *byte == 0) {
            let Some((kind, text)) = field.split_first() else { continue };
            // Shown on a terminal: nothing of a hostile server's text may steer it.
            let text: String =
                String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(300).collect();
            match kind {
                b'C' => refusal.code = text,
                b'M' => refusal.message = text,
                _ => {}
            }
        }
        refusal
    }
}

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub tag: u8,
    /// What follows the length.
    pub body: Vec<u8>,
}

/// What a simple query gave: the values of its rows as text, and how it failed if it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Each row's values; NULL is the empty text.
    pub rows: Vec<Vec<String>>,
    /// The first error.
    pub error: Option<Refusal>,
}

/// A connection that speaks PostgreSQL's protocol.
#[derive(Debug)]
pub struct Wire<S> {
    stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A connection over a stream.
    pub fn new(stream: S) -> Self {
        Self { stream }
    }

    /// The stream itself.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// The stream itself, to look at.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let sending = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        timeout(ANSWER_MAX, sending).await.map_err(|_| Fault::Silent(ANSWER_MAX))??;
        Ok(())
    }

    /// Sends a message with a type.
    pub async fn send_message(&mut self, tag: u8, body: &[u8]) -> Result<(), Fault> {
        let mut bytes = vec![tag];
        bytes.extend(length(body.len() + 4));
        bytes.extend_from_slice(body);
        self.send(&bytes).await
    }

    /// Sends `SSLRequest` and reads the one byte that answers it.
    pub async fn ask_for_tls(&mut self) -> Result<u8, Fault> {
        self.send(&SSL_REQUEST).await?;
        let mut answer = [0];
        self.read_exact(&mut answer, ANSWER_MAX).await?;
        Ok(answer[0])
    }

    /// Reads exactly so many bytes.
    pub async fn read_exact(&mut self, bytes: &mut [u8], patience: Duration) -> Result<(), Fault> {
        timeout(patience, self.stream.read_exact(bytes)).await.map_err(|_| Fault::Silent(patience))??;
        Ok(())
    }

    /// Reads one message.
    pub async fn receive(&mut self, patience: Duration) -> Result<Message, Fault> {
        let mut header = [0; 5];
        self.read_exact(&mut header, patience).await?;
        let [tag, a, b, c, d] = header;
        let bytes = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if !(4..=MESSAGE_BYTES_MAX).contains(&bytes) {
            return Err(Fault::Unexpected("the server's bytes are not PostgreSQL's protocol".to_owned()));
        }
        let mut body = vec![0; bytes - 4];
        self.read_exact(&mut body, patience).await?;
        Ok(Message { tag, body })
    }

    /// Runs SQL text and reads up to the next `ReadyForQuery`.
    pub async fn query(&mut self, sql: &str, patience: Duration) -> Result<Answer, Fault> {
        let mut body = sql.as_bytes().to_vec();
        body.push(0);
        self.send_message(b'Q', &body).await?;
        let mut answer = Answer::default();
        loop {
            let message = self.receive(patience).await?;
            match message.tag {
                b'D' => answer.rows.push(values(&message.body)),
                b'E' => {
                    answer.error.get_or_insert(Refusal::parse(&message.body));
                }
                // The server waits for the client's COPY data: there is none.
                b'G' => self.send_message(b'f', b"no data\0").await?,
                b'Z' => return Ok(answer),
                _ => {}
            }
        }
    }

    /// The first value of the first row of a query.
    pub async fn value(&mut self, sql: &str) -> Result<String, Fault> {
        let answer = self.query(sql, ANSWER_MAX).await?;
        match answer.error {
            Some(refusal) => Err(Fault::Refused(refusal)),
            None => Ok(answer.rows.into_iter().flatten().next().unwrap_or_default()),
        }
    }
}

/// A `StartupMessage` of protocol 3.0.
pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = vec![0, 3, 0, 0];
    for (name, value) in parameters {
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    let mut message = length(body.len() + 4).to_vec();
    message.extend(body);
    message
}

/// A `CancelRequest` with the body of a `BackendKeyData`.
pub fn cancel_request(key: &[u8]) -> Vec<u8> {
    let mut message = length(key.len() + 8).to_vec();
    message.extend([0x04, 0xd2, 0x16, 0x2e]);
    message.extend_from_slice(key);
    message
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

fn values(body: &[u8]) -> Vec<String> {
    let mut values = Vec::new();
    let mut rest = body.get(2..).unwrap_or_default();
    while let Some((bytes, after)) = rest.split_first_chunk::<4>() {
        let Ok(bytes) = usize::try_from(i32::from_be_bytes(*bytes)) else {
            values.push(String::new());
            rest = after;
            continue;
        };
        let taken = bytes.min(after.len());
        values.push(String::from_utf8_lossy(&after[..taken]).into_owned());
        rest = &after[taken..];
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_error_text_cannot_steer_the_terminal() {
        let refusal = Refusal::parse(b"SFATAL\0C28P01\0Mwrong\x1b[2J password\0\0");
        assert_eq!((refusal.code.as_str(), refusal.message.as_str()), ("28P01", "wrong[2J password"));
    }

    #[test]
    fn row_values_survive_lengths_that_lie() {
        assert_eq!(values(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff"), ["a", ""]);
        assert_eq!(values(b"\0\x01\x7f\xff\xff\xffab"), ["ab"]);
        assert_eq!(values(b""), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_message_that_claims_a_gigabyte_is_not_read() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(b"R\x3f\xff\xff\xff").await.unwrap();
        let fault = Wire::new(ours).receive(ANSWER_MAX).await.unwrap_err();
        assert!(matches!(fault, Fault::Unexpected(_)), "{fault}");
    }
}
