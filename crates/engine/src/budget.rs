//! How much an engine may say: a wrapper around the stream to it that counts below the driver, which takes a message whole
//! before anybody sees it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What an engine may say that nobody asked: notices and changed parameters.
const UNASKED_BYTES_MAX: usize = 8 << 10;
/// What all answers that are awaited at once may need, however many ask.
const AWAITED_BYTES_MAX: usize = 32 << 20;
/// What one stream carries in all. The driver keeps some of what it hears for as long as the stream lives; whoever needs more
/// opens another.
const STREAM_BYTES_MAX: usize = 128 << 20;

/// What is kept of an error in protocol 2's form; PostgreSQL's own has 80 bytes.
const OLD_ERROR_BYTES_MAX: usize = 256;
/// A longer error is none for clients (`MAX_ERRLEN` of libpq), but one in protocol 2's form, without a length.
const ERROR_BYTES_MAX: u32 = 30_000;

/// A stream that fails when the other side has sent more than what was asked of it can need.
pub(crate) struct Budgeted<S> {
    stream: S,
    meter: Meter,
}

/// Gives the answers on one stream their bytes.
#[derive(Clone)]
pub(crate) struct Meter(Arc<Mutex<Count>>);

struct Count {
    questions: usize,
    bytes_left: usize,
    stream_bytes_left: usize,
    /// What was left when something was last asked.
    bytes_max: usize,
    is_exceeded: bool,
    /// What came first.
    first: Vec<u8>,
}

/// A question whose answer is awaited. Those that are asked at once have the bytes of all of them.
pub(crate) struct Question(Meter);

impl<S> Budgeted<S> {
    /// Wraps a stream on which nothing was asked yet.
    pub(crate) fn new(stream: S) -> (Self, Meter) {
        let count = Count {
            questions: 0,
            bytes_left: UNASKED_BYTES_MAX,
            stream_bytes_left: STREAM_BYTES_MAX,
            bytes_max: UNASKED_BYTES_MAX,
            is_exceeded: false,
            first: Vec::new(),
        };
        let meter = Meter(Arc::new(Mutex::new(count)));
        (Self { stream, meter: meter.clone() }, meter)
    }
}

impl Meter {
    /// Lets an answer have so many bytes, for as long as the question lives.
    pub(crate) fn ask(&self, bytes: usize) -> Question {
        let mut count = self.count();
        count.questions += 1;
        count.bytes_left = count.bytes_left.saturating_add(bytes).min(AWAITED_BYTES_MAX);
        count.bytes_max = count.bytes_left;
        Question(self.clone())
    }

    /// How much the other side could have sent, if it has sent more. Nothing more comes from it.
    pub(crate) fn exceeded(&self) -> Option<usize> {
        let count = self.count();
        count.is_exceeded.then_some(count.bytes_max)
    }

    /// What an engine's first process said that could start no other for this session. It does so before it knows the
    /// protocol that it is asked in, and the driver does not understand it.
    pub(crate) fn no_process(&self) -> Option<String> {
        let count = self.count();
        let (header, _) = count.first.split_first_chunk::<5>()?;
        let [tag, length @ ..] = *header;
        if tag != b'E' || u32::from_be_bytes(length) <= ERROR_BYTES_MAX {
            return None;
        }
        let text = count.first[1..].split(|byte| *byte == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).trim().to_owned())
    }

    /// Counts bytes that came. An error when they are too many.
    fn came(&self, bytes: &[u8]) -> io::Result<()> {
        let mut count = self.count();
        let left = OLD_ERROR_BYTES_MAX.saturating_sub(count.first.len());
        count.first.extend_from_slice(&bytes[..bytes.len().min(left)]);
        let bytes = bytes.len();
        match (count.bytes_left.checked_sub(bytes), count.stream_bytes_left.checked_sub(bytes)) {
            (Some(left), Some(stream_left)) if !count.is_exceeded => {
                (count.bytes_left, count.stream_bytes_left) = (left, stream_left);
                Ok(())
            }
            _ => {
                count.is_exceeded = true;
                Err(io::Error::new(io::ErrorKind::InvalidData, "the engine sent more than was asked of it"))
            }
        }
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        // Numbers that change in one step each.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut count = self.0.count();
        count.questions -= 1;
        if count.questions == 0 {
            // What was not needed is not saved up.
            count.bytes_left = count.bytes_left.min(UNASKED_BYTES_MAX);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Budgeted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        Poll::Ready(self.meter.came(&buffer.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Budgeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn an_answer_has_its_bytes_and_not_one_more() {
        let (near, mut far) = duplex(1 << 20);
        let (mut stream, meter) = Budgeted::new(near);
        let question = meter.ask(1_000);
        let mut answer = vec![0; UNASKED_BYTES_MAX + 1_000];
        far.write_all(&answer).await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(meter.exceeded(), None);
        far.write_all(b"x").await.unwrap();
        assert!(stream.read_u8().await.is_err());
        assert_eq!(meter.exceeded(), Some(UNASKED_BYTES_MAX + 1_000));
        // Another question does not make it good again.
        drop(question);
        let _question = meter.ask(1_000);
        far.write_all(b"x").await.unwrap();
        assert!(stream.read_u8().await.is_err());
    }

    #[tokio::test]
    async fn bytes_that_were_not_needed_are_not_saved_up() {
        let (near, mut far) = duplex(1 << 20);
        let (mut stream, meter) = Budgeted::new(near);
        for _ in 0..100 {
            drop(meter.ask(10_000));
        }
        let (one, other) = (meter.ask(1_000), meter.ask(1_000));
        drop(one);
        let mut answer = vec![0; UNASKED_BYTES_MAX + 2_000];
        far.write_all(&answer).await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        drop(other);
        far.write_all(b"x").await.unwrap();
        assert!(stream.read_u8().await.is_err());
    }
}
