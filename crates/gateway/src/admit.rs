//! Station 3: the cluster's allowlist decides on the client's address.

use std::net::IpAddr;

use model::ClusterHandle;

use crate::directory::{Directory, Found};

/// Whether a client may go on to a cluster.
pub(crate) enum Admission {
    /// The cluster exists and lets the address in.
    Admitted(Found),
    /// There is no such cluster; it goes on to fail at sign-in, like a wrong password.
    Unknown,
    /// The cluster does not let the address in.
    Refused,
}

pub(crate) fn admit(directory: &dyn Directory, handle: &ClusterHandle, address: IpAddr) -> Admission {
    match directory.find(handle) {
        None => Admission::Unknown,
        Some(found) if directory.admits(found.id, address) => Admission::Admitted(found),
        Some(_) => Admission::Refused,
    }
}
