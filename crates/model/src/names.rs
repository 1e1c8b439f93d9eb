//! Names and ids, parsed once at the door into types that cannot be wrong.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::INTERNAL_DATABASE;

/// Why a name was refused; the text says what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is not valid: {rule}")]
pub struct InvalidName {
    what: &'static str,
    rule: &'static str,
}

impl InvalidName {
    pub(crate) fn new(what: &'static str, rule: &'static str) -> Self {
        Self { what, rule }
    }
}

/// The id of a cluster in the API: a lower-case UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub Uuid);

impl ClusterId {
    /// Draws a new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for ClusterId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let wrong = InvalidName { what: "cluster id", rule: "it is a UUID in lower case with dashes" };
        if text.len() != 36 || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(wrong);
        }
        Uuid::parse_str(text).map(Self).map_err(|_| wrong)
    }
}

/// The short number in a cluster's address (CockroachDB Cloud's tenant id): at least 2, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct RoutingId(u32);

impl RoutingId {
    /// The first id that a cluster may have; 0 and 1 are the system's own.
    pub const FIRST: Self = Self(2);
    /// The last id: the OS user of a cluster is derived from it and must stay a valid uid.
    pub const LAST: Self = Self(99_999_999);

    /// The number itself.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The id after this one.
    pub fn next(self) -> Option<Self> {
        (self.0 < Self::LAST.0).then(|| Self(self.0 + 1))
    }
}

impl TryFrom<u32> for RoutingId {
    type Error = InvalidName;

    fn try_from(number: u32) -> Result<Self, InvalidName> {
        if (Self::FIRST.0..=Self::LAST.0).contains(&number) {
            Ok(Self(number))
        } else {
            Err(InvalidName { what: "routing id", rule: "it is a number from 2 to 99999999" })
        }
    }
}

impl From<RoutingId> for u32 {
    fn from(id: RoutingId) -> u32 {
        id.0
    }
}

impl fmt::Display for RoutingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A cluster's name: 6 to 40 characters of `a-z`, `0-9` and `-`, no dash at either end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let well_formed = (6..=40).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if !well_formed {
            return Err(InvalidName {
                what: "cluster name",
                rule: "it has 6 to 40 lower-case letters, digits and dashes, with no dash at either end",
            });
        }
        Ok(Self(text.to_owned()))
    }
}

/// How a client names a cluster: `NAME-ROUTINGID`, for instance `lazy-roach-3`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterHandle {
    /// The cluster's name.
    pub name: ClusterName,
    /// The cluster's routing id.
    pub routing_id: RoutingId,
}

/// Why a handle was refused, with the hint that CockroachDB's proxy gives for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHandle {
    /// There is no dash, or nothing after the last one.
    #[error("the tenant ID is missing")]
    NoRoutingId,
    /// The part before the last dash is not a cluster name.
    #[error("the cluster name is not valid")]
    Name,
    /// The part after the last dash is not a routing id.
    #[error("the tenant ID is not valid")]
    RoutingId,
}

impl FromStr for ClusterHandle {
    type Err = InvalidHandle;

    fn from_str(text: &str) -> Result<Self, InvalidHandle> {
        let (name, number) = text.rsplit_once('-').ok_or(InvalidHandle::NoRoutingId)?;
        if number.is_empty() {
            return Err(InvalidHandle::NoRoutingId);
        }
        let name = name.parse().map_err(|_| InvalidHandle::Name)?;
        // One spelling for each number: no sign, no leading zero, so that two names never mean one cluster.
        if !number.bytes().all(|b| b.is_ascii_digit()) || number.starts_with('0') {
            return Err(InvalidHandle::RoutingId);
        }
        let number: u32 = number.parse().map_err(|_| InvalidHandle::RoutingId)?;
        let routing_id = RoutingId::try_from(number).map_err(|_| InvalidHandle::RoutingId)?;
        Ok(Self { name, routing_id })
    }
}

impl fmt::Display for ClusterHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.name.0, self.routing_id.0)
    }
}

/// Most bytes of a role's or database's name: PostgreSQL (NAMEDATALEN less its closing zero) cuts what is longer, and then
/// means another.
const SQL_NAME_BYTES_MAX: usize = 63;

/// A SQL user or role: 1 to 63 bytes of UTF-8 without control characters, not reserved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoleName(String);

impl RoleName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name is one that nobody outside may sign in as or create: ours, PostgreSQL's or CockroachDB's.
    pub fn is_reserved(&self) -> bool {
        let name = self.0.as_str();
        matches!(name, "admin" | "chitin" | "postgres" | "root" | "node" | "public" | "none")
            || name.starts_with("pg_")
            || name.starts_with("chitin_")
            || name.starts_with("crdb_internal")
    }
}

impl FromStr for RoleName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() || text.len() > SQL_NAME_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(InvalidName {
                what: "user name",
                rule: "it has 1 to 63 bytes and no control characters (PostgreSQL's NAMEDATALEN)",
            });
        }
        Ok(Self(text.to_owned()))
    }
}

/// A database: 1 to 63 bytes of UTF-8 without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatabaseName(String);

impl DatabaseName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the database belongs to the engine: it can be neither listed, made nor dropped by a tenant.
    pub fn is_reserved(&self) -> bool {
        matches!(self.0.as_str(), INTERNAL_DATABASE | "template0" | "template1")
    }
}

impl FromStr for DatabaseName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() || text.len() > SQL_NAME_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(InvalidName {
                what: "database name",
                rule: "it has 1 to 63 bytes and no control characters (PostgreSQL's NAMEDATALEN)",
            });
        }
        Ok(Self(text.to_owned()))
    }
}

/// A key service's name: 1 to 64 characters of `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyServiceName(String);

impl KeyServiceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyServiceName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=64).contains(&text.len()) || !text.bytes().all(allowed) {
            return Err(InvalidName {
                what: "key service name",
                rule: "it has 1 to 64 lower-case letters, digits and dashes",
            });
        }
        Ok(Self(text.to_owned()))
    }
}

macro_rules! text_form {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    )*};
}

text_form!(ClusterName, RoleName, DatabaseName, KeyServiceName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_splits_at_the_last_dash() {
        let handle: ClusterHandle = "lazy-roach-3".parse().unwrap();
        assert_eq!((handle.name.as_str(), handle.routing_id.get()), ("lazy-roach", 3));
        assert_eq!(handle.to_string(), "lazy-roach-3");
    }

    #[test]
    fn a_handle_has_one_spelling_only() {
        for wrong in
            ["lazy-roach-03", "lazy-roach-+3", "lazy-roach-1", "lazy-roach-0", "lazy-roach-4294967298"]
        {
            assert_eq!(wrong.parse::<ClusterHandle>(), Err(InvalidHandle::RoutingId), "{wrong}");
        }
        assert_eq!("lazyroach".parse::<ClusterHandle>(), Err(InvalidHandle::NoRoutingId));
        assert_eq!("lazy-roach-".parse::<ClusterHandle>(), Err(InvalidHandle::NoRoutingId));
        assert_eq!("Lazy-Roach-3".parse::<ClusterHandle>(), Err(InvalidHandle::Name));
    }

    #[test]
    fn names_keep_the_documented_bounds() {
        assert!("abcdef".parse::<ClusterName>().is_ok());
        assert!("a".repeat(40).parse::<ClusterName>().is_ok());
        for wrong in ["abcde", &"a".repeat(41), "-abcdef", "abcdef-", "abc_def", "ABCDEF", "äbcdef"] {
            assert!(wrong.parse::<ClusterName>().is_err(), "{wrong}");
        }
        assert!("a".repeat(63).parse::<RoleName>().is_ok());
        assert!("a".repeat(64).parse::<RoleName>().is_err());
        assert!("ä".repeat(32).parse::<RoleName>().is_err(), "bytes are counted, not characters");
        assert!("a".repeat(63).parse::<DatabaseName>().is_ok());
        assert!("a".repeat(64).parse::<DatabaseName>().is_err());
        assert!("a\0b".parse::<RoleName>().is_err());
    }

    #[test]
    fn internal_identities_are_reserved() {
        for name in ["chitin", "postgres", "root", "node", "pg_monitor", "chitin_x", "admin"] {
            assert!(name.parse::<RoleName>().unwrap().is_reserved(), "{name}");
        }
        assert!(!"maria".parse::<RoleName>().unwrap().is_reserved());
    }
}
