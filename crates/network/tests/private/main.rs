//! Private networks with real namespaces, bridges, interfaces and WireGuard. Each test has a machine of its own: a network
//! namespace that stands for the machine's network, so that nothing touches the real one.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod ground;
mod joined;
mod links;
mod residue;
#[path = "../../../../tests/skipped.rs"]
mod skipped;
mod spoof;
mod wireguard;
