//! Who may reach a cluster, as one question; what leaves the house on its behalf: one gate that resolves names, checks
//! addresses and fetches; and the private networks of clusters: namespaces, and links that join them with other networks.

mod address;
mod allowlist;
mod gate;
mod passage;
mod perimeter;
pub mod private;
mod resolve;
#[cfg(test)]
mod tests;
mod trust;
pub mod wireguard_key;

pub use address::{Closed, judge};
pub use allowlist::Matcher;
pub use gate::{Gate, GateSettings};
pub use passage::Passage;
pub use perimeter::{Destination, Perimeter, Target};
pub use resolve::{Resolver, SystemResolver};
pub use trust::Unusable;
