//! What leaves the house on a cluster's behalf: one gate that resolves names, checks addresses and fetches.

mod address;
mod gate;
mod resolve;
#[cfg(test)]
mod tests;
mod trust;

pub use address::judge;
pub use gate::{Gate, GateSettings};
pub use resolve::{Resolver, SystemResolver};
pub use trust::Unusable;
