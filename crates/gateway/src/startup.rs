//! Station 5: the startup message inside TLS, or a cancel.

use tokio::io::AsyncReadExt;
use wire::hello::{CancelKey, HELLO_BYTES, Hello};
use wire::startup::Startup;

use crate::refusal::Refusal;
use crate::stream::{ClientStream, send};

/// What a client wants, once it can speak in private.
pub(crate) enum Wanted {
    Session(Startup),
    Cancel(CancelKey),
}

pub(crate) async fn read(client: &mut ClientStream) -> Result<Wanted, Refusal> {
    let mut bytes = [0; HELLO_BYTES];
    client.read_exact(&mut bytes).await?;
    match Hello::parse(bytes)? {
        Hello::Startup { minor, rest } => {
            let mut parameters = vec![0; rest];
            client.read_exact(&mut parameters).await?;
            let startup = Startup::parse(minor, &parameters)?;
            if let Some(negotiation) = startup.negotiation() {
                send(client, &negotiation).await?;
            }
            Ok(Wanted::Session(startup))
        }
        Hello::Cancel { rest } => {
            let mut key = vec![0; rest];
            client.read_exact(&mut key).await?;
            Ok(Wanted::Cancel(CancelKey::parse(&key)?))
        }
        Hello::SslRequest | Hello::GssEncRequest | Hello::Tls => {
            Err(Refusal::Protocol("the connection is encrypted already"))
        }
    }
}
