//! What is on record of the data directory that new clusters are copied from. It is sealed with the state.

use serde::{Deserialize, Serialize};

/// The archive of a data directory as `initdb` makes it. It lies on the disk in plaintext, where somebody may change it; what is
/// copied from it is compared with this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// What it was made with. Where that is another by now, for instance a newer minor version, it is made anew.
    pub made_with: String,
    /// SHA-256 of each part of the archive, in hexadecimal digits. All parts but the last are one MiB long.
    pub parts: Vec<String>,
}
