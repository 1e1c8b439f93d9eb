//! The client's TLS stream, and reading messages from it one at a time.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::server::TlsStream;
use wire::frame::{HEADER_BYTES, Header};

use crate::line::Line;
use crate::refusal::Refusal;

/// A client after the handshake.
pub(crate) type ClientStream = TlsStream<Line>;

/// Reads the body of one of the client's answers while it signs in (`p`), of at most so many bytes.
pub(crate) async fn read_answer(client: &mut ClientStream, bytes_max: usize) -> Result<Vec<u8>, Refusal> {
    let mut header = [0; HEADER_BYTES];
    client.read_exact(&mut header).await?;
    let length = wire::sasl::expect_up_to(Header::parse(header)?, bytes_max)?;
    let mut body = vec![0; length];
    client.read_exact(&mut body).await?;
    Ok(body)
}

/// Sends whole messages.
pub(crate) async fn send(client: &mut ClientStream, messages: &[u8]) -> Result<(), Refusal> {
    client.write_all(messages).await?;
    client.flush().await?;
    Ok(())
}
