//! Drives a real cloud from outside: starts the program, speaks to it as clients and attackers do, and looks at
//! what the machine shows of it.

pub mod cloud;
pub mod command;
pub mod machine;
pub mod runner;
pub mod scram;
pub mod shared;
pub mod tls;
pub mod wire;

pub use cloud::{Cloud, Cluster, Options};
pub use wire::{Refusal, Wire};
