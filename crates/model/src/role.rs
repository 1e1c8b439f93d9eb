//! A SQL role as the engine's catalog (`pg_authid`) has it: what sign-in needs, also while the engine sleeps.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// One row of `pg_authid`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlRole {
    /// `rolname`.
    pub name: String,
    /// `rolcanlogin`.
    pub can_login: bool,
    /// `rolpassword`, if it is a SCRAM verifier. A secret: whoever has it can try passwords offline.
    pub verifier: Option<String>,
    /// `rolvaliduntil`; `None` means for ever.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub valid_until: Option<OffsetDateTime>,
    /// `rolconnlimit`; -1 means none.
    pub connection_limit: i32,
    /// The roles that it is a member of, directly or through others, sorted.
    #[serde(default)]
    pub member_of: Vec<String>,
}

impl fmt::Debug for SqlRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlRole")
            .field("name", &self.name)
            .field("can_login", &self.can_login)
            .finish_non_exhaustive()
    }
}
