//! A client's line to us: a TCP connection, or one inside the tunnel of a connecting proxy. One byte can be looked at
//! before it is read.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// The line. Reads and writes go to what carries it.
pub(crate) struct Line {
    carrier: Carrier,
    /// A byte that was looked at and not read yet.
    ahead: Option<u8>,
}

enum Carrier {
    Tcp(TcpStream),
    /// Boxed: most lines are plain, and idle ones must stay small.
    Tunnel(Box<TlsStream<TcpStream>>),
}

impl Line {
    /// A plain connection.
    pub(crate) fn tcp(tcp: TcpStream) -> Self {
        Self { carrier: Carrier::Tcp(tcp), ahead: None }
    }

    /// A connection inside a proxy's own TLS.
    pub(crate) fn tunnel(tls: TlsStream<TcpStream>) -> Self {
        Self { carrier: Carrier::Tunnel(Box::new(tls)), ahead: None }
    }

    /// The connection that carries it.
    pub(crate) fn socket(&self) -> &TcpStream {
        match &self.carrier {
            Carrier::Tcp(tcp) => tcp,
            Carrier::Tunnel(tls) => tls.get_ref().0,
        }
    }

    /// The next byte, which stays to be read; `None` at the end.
    pub(crate) async fn look(&mut self) -> io::Result<Option<u8>> {
        if self.ahead.is_none() {
            let mut byte = [0];
            self.ahead = (AsyncReadExt::read(self, &mut byte).await? == 1).then_some(byte[0]);
        }
        Ok(self.ahead)
    }

    /// Whether a byte is there already. Does not wait.
    pub(crate) async fn has_more(&mut self) -> bool {
        if self.ahead.is_some() {
            return true;
        }
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let is_read = poll_fn(|cx| {
            Poll::Ready(matches!(Pin::new(&mut *self).poll_read(cx, &mut buffer), Poll::Ready(Ok(()))))
        })
        .await;
        self.ahead = buffer.filled().first().copied().filter(|_| is_read);
        self.ahead.is_some()
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() > 0
            && let Some(byte) = self.ahead.take()
        {
            buffer.put_slice(&[byte]);
            return Poll::Ready(Ok(()));
        }
        match &mut self.carrier {
            Carrier::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Carrier::Tunnel(tls) => Pin::new(&mut **tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.carrier {
            Carrier::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Carrier::Tunnel(tls) => Pin::new(&mut **tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.carrier {
            Carrier::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, pieces),
            Carrier::Tunnel(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.carrier {
            Carrier::Tcp(tcp) => tcp.is_write_vectored(),
            Carrier::Tunnel(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Carrier::Tunnel(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            // The tunnel carries this one client: with it the tunnel ends.
            Carrier::Tunnel(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Line, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Line::tcp(listener.accept().await.unwrap().0), client)
    }

    #[tokio::test]
    async fn what_was_looked_at_is_read_once() {
        let (mut line, mut client) = pair().await;
        assert!(!line.has_more().await);
        client.write_all(b"abc").await.unwrap();
        assert_eq!(line.look().await.unwrap(), Some(b'a'));
        assert_eq!(line.look().await.unwrap(), Some(b'a'));
        assert!(line.has_more().await);
        let mut bytes = [0; 3];
        line.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"abc");
        assert!(!line.has_more().await);
        drop(client);
        assert_eq!(line.look().await.unwrap(), None);
    }

    #[tokio::test]
    async fn asking_whether_more_is_there_loses_nothing() {
        let (mut line, mut client) = pair().await;
        client.write_all(b"xy").await.unwrap();
        while !line.has_more().await {
            tokio::task::yield_now().await;
        }
        let mut bytes = [0; 2];
        line.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"xy");
    }
}
