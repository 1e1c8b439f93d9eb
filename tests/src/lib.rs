//! Drives a real cloud from outside: starts the program, speaks to it as clients and attackers do, and looks at
//! what the machine shows of it.

pub mod api;
pub mod arguments;
pub mod authority;
pub mod balancer;
pub mod browser;
pub mod caller;
pub mod capture;
pub mod clock;
pub mod cloud;
pub mod command;
pub mod crates;
pub mod hosts;
pub mod key_services;
pub mod keys;
pub mod ledger;
pub mod machine;
pub mod networking;
pub mod ports;
pub mod postgres;
pub mod provider;
pub mod proxy;
pub mod responder;
pub mod runner;
pub mod scram;
pub mod shared;
pub mod switch;
pub mod tls;
pub mod wire;

pub use caller::Caller;
pub use cloud::{Cloud, Cluster, Options};
pub use hosts::{Host, Hosts};
pub use wire::{Refusal, Wire};
