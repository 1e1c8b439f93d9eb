//! Drives a real cloud from outside: starts the program, speaks to it as clients and attackers do, and looks at
//! what the machine shows of it.

pub mod api;
pub mod authority;
pub mod browser;
pub mod caller;
pub mod cloud;
pub mod command;
pub mod machine;
pub mod provider;
pub mod responder;
pub mod runner;
pub mod scram;
pub mod shared;
pub mod tls;
pub mod wire;

pub use caller::Caller;
pub use cloud::{Cloud, Cluster, Options};
pub use wire::{Refusal, Wire};
