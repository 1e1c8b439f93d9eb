//! Who gets into a cluster and where to: SQL users, databases, allowlist, connection string.

use std::fmt;

use keys::SecretText;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;

use crate::Pagination;

/// A password on its way to the cloud. It prints nothing and no error repeats it.
#[derive(Clone)]
pub struct Password(SecretText);

impl Password {
    /// Takes the text.
    pub fn new(text: SecretText) -> Self {
        Self(text)
    }

    /// The secret.
    pub fn secret(&self) -> &SecretText {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

impl Serialize for Password {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Self(SecretText::new(text)))
    }
}

/// `POST …/sql-users`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateSqlUser {
    /// The user's name.
    pub name: String,
    /// Its password; also the body of `PUT …/password`.
    pub password: Password,
}

/// A SQL user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlUser {
    /// Its name.
    pub name: String,
    /// Where it came from, for a user whom a token made: `jwt_token:ISSUER` or `oidc:ISSUER`. Ours; the Cloud API has
    /// no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Its deletion began and did not come to its end: it can no longer sign in, and is to be deleted again. Ours too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_deletion_unfinished: bool,
}

impl SqlUser {
    /// A user whom somebody made by name.
    pub fn new(name: String) -> Self {
        Self { name, source: None, is_deletion_unfinished: false }
    }
}

/// A page of SQL users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlUsers {
    /// The users.
    pub users: Vec<SqlUser>,
    /// How to go on.
    #[serde(default)]
    pub pagination: Pagination,
}

/// `POST …/databases`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateDatabase {
    /// The database's name.
    pub name: String,
}

/// `PATCH …/databases/{name}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenameDatabase {
    /// What it shall be called.
    pub new_name: String,
}

/// `PATCH …/databases`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenameNamedDatabase {
    /// What it is called.
    pub name: String,
    /// What it shall be called.
    pub new_name: String,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Tables in it, where they were counted.
    #[serde(default, with = "crate::number", skip_serializing_if = "Option::is_none")]
    pub table_count: Option<i64>,
}

/// A page of databases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Databases {
    /// The databases.
    pub databases: Vec<Database>,
    /// How to go on.
    #[serde(default)]
    pub pagination: Pagination,
}

/// A line of an allowlist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowlistEntry {
    /// The range's first address.
    pub cidr_ip: String,
    /// Bits of the prefix.
    pub cidr_mask: u8,
    /// What the operator calls it.
    #[serde(default)]
    pub name: String,
    /// Whether the cluster's HTTP surfaces are open to it.
    pub ui: bool,
    /// Whether SQL clients from there are let in.
    pub sql: bool,
    /// From this moment on the line lets nobody in; absent for a line that stays. Chitin's own addition.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<OffsetDateTime>,
}

impl From<&model::AllowlistEntry> for AllowlistEntry {
    fn from(entry: &model::AllowlistEntry) -> Self {
        Self {
            cidr_ip: entry.range.address().to_string(),
            cidr_mask: entry.range.prefix_bits(),
            name: entry.name.clone(),
            ui: entry.ui,
            sql: entry.sql,
            expires_at: entry.expires_at,
        }
    }
}

/// `PUT` or `PATCH …/allowlist/{ip}/{mask}`. With PATCH, what is absent stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AllowlistChange {
    /// What the operator calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether the cluster's HTTP surfaces are open to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ui: Option<bool>,
    /// Whether SQL clients from there are let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<bool>,
    /// When the line ends by itself.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<OffsetDateTime>,
    /// With PATCH: the line no longer ends by itself. Not together with `expires_at`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_expires: bool,
}

/// A page of an allowlist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowlist {
    /// The lines.
    pub allowlist: Vec<AllowlistEntry>,
    /// Whether a change is on its way. Ours hold when they are answered.
    pub propagating: bool,
    /// How to go on.
    #[serde(default)]
    pub pagination: Pagination,
}

/// `GET …/connection-string`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionString {
    /// A URL without a password.
    pub connection_string: String,
    /// The same in parts.
    pub params: ConnectionParameters,
}

/// A connection string in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConnectionParameters {
    /// The host.
    pub host: String,
    /// The port.
    pub port: String,
    /// The database.
    pub database: String,
    /// The user, when one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}
