//! What this machine gives and what it cannot, found out by trying.

use std::sync::Arc;

use model::Encryption;
use serde::Serialize;

use crate::cgroup::Groups;
use crate::companion::Companion;
use crate::places::{Places, is_root};
use crate::{Error, HostConfig, volume};

/// Something that the machine gives or does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// It does.
    Present {
        /// By what means.
        how: String,
    },
    /// It does not.
    Missing {
        /// Why not.
        why: String,
        /// What the operator can do.
        next_step: String,
    },
}

/// What the machine gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Posture {
    /// Namespaces around each engine.
    pub sandbox: Capability,
    /// An OS user of its own for each engine.
    pub own_users: Capability,
    /// Limits on what each engine takes of the machine.
    pub cgroups: Capability,
    /// How new clusters are encrypted at rest.
    pub encryption: Option<Encryption>,
    /// Why they are not, where they are not.
    pub no_encryption_reason: Option<String>,
    /// Whether the operator accepts clusters without encryption.
    pub is_unencrypted_allowed: bool,
}

impl Posture {
    pub(crate) fn probe(
        config: &HostConfig,
        sandbox: String,
        (places, companion): (&Places, &Arc<Companion>),
        groups: Result<&Groups, &String>,
    ) -> Self {
        let own_users = if is_root() {
            Capability::Present { how: "uid 1900000000 plus the routing id".to_owned() }
        } else {
            Capability::Missing {
                why: "Chitin does not run as root, so all engines run as its own user".to_owned(),
                next_step: "start Chitin as root".to_owned(),
            }
        };
        let cgroups = match groups {
            Ok(groups) => Capability::Present { how: groups.describe() },
            Err(why) => Capability::Missing {
                why: why.clone(),
                next_step: "run Chitin as a systemd service with Delegate=yes".to_owned(),
            },
        };
        let (encryption, no_encryption_reason) = match config.encryption {
            Some(Encryption::None) => (None, Some("the operator chose none".to_owned())),
            Some(Encryption::Attested) if config.attestation.is_some() => (Some(Encryption::Attested), None),
            Some(Encryption::Attested) => {
                let reason = "attested needs what the operator states: --attestation TEXT";
                (None, Some(reason.to_owned()))
            }
            wanted => match volume::probe(companion, places, wanted) {
                Ok(kind) => (Some(kind), None),
                Err(reason) => (None, Some(reason)),
            },
        };
        Self {
            sandbox: Capability::Present { how: sandbox },
            own_users,
            cgroups,
            encryption,
            no_encryption_reason,
            is_unencrypted_allowed: config.allow_unencrypted,
        }
    }

    /// How a new cluster's volume is to be encrypted, or why none can be made.
    pub(crate) fn encryption_of_new(&self) -> Result<Encryption, Error> {
        match self.encryption {
            Some(kind) => Ok(kind),
            None if self.is_unencrypted_allowed => Ok(Encryption::None),
            None => {
                Err(Error::NoEncryption { reason: self.no_encryption_reason.clone().unwrap_or_default() })
            }
        }
    }
}
