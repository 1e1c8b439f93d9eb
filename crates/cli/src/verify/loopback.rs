//! A web server of one purpose on loopback, for what attacks pretend to be: a responder, a keeper of keys.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::wire::Fault;

const REQUEST_BYTES_MAX: usize = 16 * 1024;
const TALK_MAX: Duration = Duration::from_secs(5);

/// An answer.
pub struct Reply {
    /// The HTTP status, with its words.
    pub status: &'static str,
    /// The `Content-Type`.
    pub kind: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

/// Who answers.
pub trait Answers: Send + Sync + 'static {
    /// Answers a request for a path; `None` closes the connection without a word.
    fn answer(&self, path: &str, body: &[u8]) -> Option<Reply>;
}

/// A server that answers until it is dropped.
pub struct Loopback {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Loopback {
    /// Opens it on a port that is free.
    pub async fn open(office: Arc<dyn Answers>) -> Result<Self, Fault> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let office = office.clone();
                tokio::spawn(async move {
                    let _ = timeout(TALK_MAX, talk(&*office, tcp)).await;
                });
            }
        });
        Ok(Self { address, task })
    }

    /// Where it is asked.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn talk(office: &dyn Answers, mut tcp: TcpStream) -> Option<()> {
    let mut bytes = Vec::new();
    let (path, body) = loop {
        let mut piece = [0; 2_048];
        let count = tcp.read(&mut piece).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&piece[..count]);
        if bytes.len() > REQUEST_BYTES_MAX {
            return None;
        }
        if let Some((path, body)) = whole_request(&bytes) {
            break (path.to_owned(), body.to_vec());
        }
    };
    let Reply { status, kind, body } = office.answer(&path, &body)?;
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.ok()?;
    tcp.write_all(&body).await.ok()?;
    tcp.shutdown().await.ok()
}

/// Path and body of a request, once all of it is there. Without a length there is no body.
fn whole_request(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let path = head.lines().next()?.split(' ').nth(1)?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    let length = length.unwrap_or(Ok(0)).ok()?;
    Some((path, bytes.get(end + 4..(end + 4).checked_add(length)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_whole_when_its_length_is_there() {
        assert_eq!(whole_request(b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nab"), None);
        let whole = whole_request(b"POST /a HTTP/1.1\r\ncontent-length: 3\r\n\r\nabcd");
        assert_eq!(whole, Some(("/a", b"abc".as_slice())));
        assert_eq!(whole_request(b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n"), None);
        assert_eq!(whole_request(b"GET /b HTTP/1.1\r\n\r\n"), Some(("/b", b"".as_slice())));
    }
}
