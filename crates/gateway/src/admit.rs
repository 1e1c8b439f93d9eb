//! Station 3: the cluster decides on where the client comes from: its allowlist on the address, its network on the way.

use model::{ClusterHandle, Origin, Way};

use crate::directory::{Directory, Found};
use crate::refusal::Refusal;

/// Whether a client may go on to a cluster.
pub(crate) enum Admission {
    /// The cluster exists and lets the client in.
    Admitted(Found),
    /// There is no such cluster on this way, and others let the client in; it goes on to fail at sign-in, like a wrong password.
    Unknown,
    /// The cluster does not let the client in.
    Refused(Refusal),
}

pub(crate) fn admit(directory: &dyn Directory, handle: &ClusterHandle, origin: &Origin) -> Admission {
    // Asked of everybody, so that a name that exists costs what one costs that does not.
    let is_admitted_somewhere = directory.might_admit(origin);
    match directory.find(handle, &origin.way) {
        // An endpoint that is not accepted learns nothing about which clusters there are.
        None if matches!(origin.way, Way::Endpoint(_)) => Admission::Refused(refusal(origin)),
        // A made-up name is no way past the lists, and whom no cluster lets in learns of none whether it exists.
        None if !is_admitted_somewhere => Admission::Refused(refusal(origin)),
        None => Admission::Unknown,
        Some(found) if directory.admits(found.id, origin) => Admission::Admitted(found),
        Some(found) => {
            if let Way::Endpoint(id) = &origin.way {
                directory.knocked(found.id, id);
            }
            Admission::Refused(refusal(origin))
        }
    }
}

/// What a client hears whom a cluster does not let in.
pub(crate) fn refusal(origin: &Origin) -> Refusal {
    match origin.way {
        Way::Public => Refusal::Address,
        Way::Endpoint(_) => Refusal::Endpoint,
        Way::Private(_) => Refusal::Peering,
    }
}
