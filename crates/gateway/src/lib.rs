//! A client's journey to an engine, a file a station: hello, admit, handshake, startup, sign in, seat, attach, relay.
//!
//! Each station consumes what the one before returned, so that a step left out does not compile. The gateway has no
//! database driver and no root key; its questions to the outside are the traits in [`directory`] and [`examine`].

mod admit;
mod attach;
mod cancel;
mod dialogue;
pub mod directory;
mod door;
pub mod examine;
mod hello;
mod journey;
mod line;
mod listen;
mod pace;
mod refusal;
mod relay;
mod route;
mod sessions;
mod settings;
mod sign_in;
mod startup;
mod stream;
mod tls;
mod unauthenticated;

pub use door::{Door, read_proxy_header};
pub use listen::{Answers, Gateway, prepare};
pub use sessions::{Cut, SessionFacts, Sessions};
pub use settings::Settings;
pub use tls::{Certificates, Shown, Unusable};
pub use unauthenticated::{Crowding, Slot, Unauthenticated};
