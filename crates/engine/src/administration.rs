//! SQL that only we may say: roles, databases and the canary, over the engine's own socket as the internal superuser.

use std::sync::Arc;
use std::time::Duration;

use model::{ADMIN_ROLE, DatabaseName, INTERNAL_ROLE, RoleName, SqlRole};
use time::OffsetDateTime;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row};

use crate::connector::Connector;
use crate::{Error, pinned};

/// For one statement. Creating a database from a template takes longest.
const STATEMENT_MAX: Duration = Duration::from_secs(60);
const CONNECT_MAX: Duration = Duration::from_secs(5);
const MAINTENANCE_DATABASE: &str = "postgres";

/// A connection to one engine as its internal superuser.
pub struct Administration {
    client: Client,
    config: Config,
    connector: Arc<Connector>,
}

/// A database that a tenant sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: String,
    /// Tables that are not the system's; `None` where they were not counted.
    pub table_count: Option<i64>,
}

impl Administration {
    /// Opens a session.
    pub(crate) async fn connect(connector: &Arc<Connector>) -> Result<Self, Error> {
        let mut config = Config::new();
        config.user(INTERNAL_ROLE).dbname(MAINTENANCE_DATABASE).application_name("chitin");
        config.options(pinned::options());
        let client = connect(connector, &config).await?;
        Ok(Self { client, config, connector: connector.clone() })
    }

    /// Whether the engine would open a session as this role: tried by opening one.
    pub(crate) async fn is_admitted(&self, role: &str) -> Result<bool, Error> {
        let mut config = self.config.clone();
        config.user(role).options("");
        let stream = self.connector.connect().await.map_err(unreached)?;
        match timeout(CONNECT_MAX, config.connect_raw(stream, NoTls)).await {
            Ok(Err(refused)) => Ok(refused.code() != Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)),
            Ok(Ok(_)) => Ok(true),
            Err(_) => Err(Error::Unready("it took too long to open a session".to_owned())),
        }
    }

    /// Every role that exists, with its verifier.
    pub async fn roles(&self) -> Result<Vec<SqlRole>, Error> {
        let rows = self.query(ROLES, &[]).await?;
        rows.iter().map(role).collect()
    }

    /// One role.
    pub async fn role(&self, name: &RoleName) -> Result<Option<SqlRole>, Error> {
        let rows = self.query(&format!("{ROLES} WHERE rolname = $1"), &[&name.as_str()]).await?;
        rows.first().map(role).transpose()
    }

    /// The databases that a tenant sees.
    pub async fn databases(&self) -> Result<Vec<Database>, Error> {
        let rows = self
            .query(
                "SELECT datname::text, pg_get_userbyid(datdba)::text FROM pg_database
                 WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY datname",
                &[],
            )
            .await?;
        let mut databases = Vec::with_capacity(rows.len());
        for row in &rows {
            databases.push(Database { name: get(row, 0)?, owner: get(row, 1)?, table_count: None });
        }
        Ok(databases)
    }

    /// Makes a database that `admin` owns.
    pub async fn create_database(&self, name: &DatabaseName) -> Result<(), Error> {
        self.ensure_admin().await?;
        let made = self.batch(&format!("CREATE DATABASE {} OWNER {ADMIN_ROLE}", quote(name.as_str()))).await;
        made.map_err(|refused| named(refused, "database", name.as_str()))
    }

    /// Gives a database another name.
    pub async fn rename_database(&self, name: &DatabaseName, to: &DatabaseName) -> Result<(), Error> {
        not_the_engine_s(name)?;
        not_the_engine_s(to)?;
        let renamed = self
            .batch(&format!("ALTER DATABASE {} RENAME TO {}", quote(name.as_str()), quote(to.as_str())))
            .await;
        renamed.map_err(|refused| match refused {
            Error::AlreadyExists { .. } => named(refused, "database", to.as_str()),
            other => named(other, "database", name.as_str()),
        })
    }

    /// Removes a database and ends its sessions.
    pub async fn drop_database(&self, name: &DatabaseName) -> Result<(), Error> {
        not_the_engine_s(name)?;
        let dropped = self.batch(&format!("DROP DATABASE {} WITH (FORCE)", quote(name.as_str()))).await;
        dropped.map_err(|refused| named(refused, "database", name.as_str()))
    }

    /// Whether there is a database of this name.
    pub async fn has_database(&self, name: &str) -> Result<bool, Error> {
        Ok(!self.query("SELECT FROM pg_database WHERE datname = $1", &[&name]).await?.is_empty())
    }

    /// Writes a value that can be searched for on the disk, and makes sure that it is there.
    pub async fn write_canary(&self, value: &str) -> Result<(), Error> {
        self.batch(&format!(
            "DROP TABLE IF EXISTS public.chitin_canary;
             CREATE TABLE public.chitin_canary (value text);
             INSERT INTO public.chitin_canary SELECT {} FROM generate_series(1, 100)",
            literal(value)
        ))
        .await?;
        self.checkpoint().await
    }

    /// Removes what [`Self::write_canary`] wrote.
    pub async fn remove_canary(&self) -> Result<(), Error> {
        self.batch("DROP TABLE IF EXISTS public.chitin_canary").await
    }

    /// Brings everything to the disk.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        self.batch("CHECKPOINT").await
    }

    /// Makes the role that users are members of, if it is not there: before PostgreSQL 16 whoever may create roles may
    /// also rename or drop this one.
    pub(crate) async fn ensure_admin(&self) -> Result<(), Error> {
        self.batch(&format!(
            "DO $$ BEGIN
               IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ADMIN_ROLE}') THEN
                 CREATE ROLE {ADMIN_ROLE} NOLOGIN CREATEDB CREATEROLE;
                 GRANT pg_monitor, pg_signal_backend TO {ADMIN_ROLE};
               END IF;
             END $$"
        ))
        .await
    }

    /// Says the same in every database, templates that take sessions among them. One that refuses does not keep the
    /// others from it; the first refusal is the answer.
    pub(crate) async fn everywhere(&self, sql: &str) -> Result<(), Error> {
        let known =
            self.query("SELECT name FROM pg_settings WHERE name = ANY($1)", &[&pinned::later()]).await?;
        let known = known.iter().map(|row| get(row, 0)).collect::<Result<Vec<String>, _>>()?;
        let databases = self.query("SELECT datname::text FROM pg_database WHERE datallowconn", &[]).await?;
        let mut config = self.config.clone();
        config.options(pinned::options_with(&known));
        let mut outcome = Ok(());
        for row in &databases {
            let said = async {
                let database: String = get(row, 0)?;
                config.dbname(&database);
                let said = async {
                    let client = connect(&self.connector, &config).await?;
                    within(client.batch_execute(sql)).await
                };
                said.await.map_err(|cause| in_database(cause, &database))
            };
            outcome = outcome.and(said.await);
        }
        outcome
    }

    pub(crate) async fn batch(&self, sql: &str) -> Result<(), Error> {
        within(self.client.batch_execute(sql)).await
    }

    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        within(self.client.query(sql, parameters)).await
    }
}

const ROLES: &str = "SELECT rolname::text, rolcanlogin,
    CASE WHEN rolpassword LIKE 'SCRAM-SHA-256$%' THEN rolpassword END,
    CASE WHEN isfinite(rolvaliduntil) THEN extract(epoch FROM rolvaliduntil)::float8
         WHEN rolvaliduntil = '-infinity' THEN 0 END,
    rolconnlimit,
    ARRAY(WITH RECURSIVE of (id) AS (
        SELECT roleid FROM pg_auth_members WHERE member = pg_authid.oid
        UNION SELECT roleid FROM pg_auth_members JOIN of ON member = of.id)
      SELECT rolname::text FROM of JOIN pg_roles ON oid = of.id ORDER BY 1) FROM pg_authid";

fn role(row: &Row) -> Result<SqlRole, Error> {
    // What lies beyond the year 9999 is as good as for ever.
    let valid_until = get::<Option<f64>>(row, 3)?.and_then(|seconds| {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a cast of floats saturates, and the range is checked"
        )]
        OffsetDateTime::from_unix_timestamp(seconds as i64).ok()
    });
    Ok(SqlRole {
        name: get(row, 0)?,
        can_login: get(row, 1)?,
        verifier: get(row, 2)?,
        valid_until,
        connection_limit: get(row, 4)?,
        member_of: get(row, 5)?,
    })
}

pub(crate) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    column: usize,
) -> Result<T, Error> {
    row.try_get(column).map_err(|cause| Error::Unready(cause.to_string()))
}

async fn connect(connector: &Connector, config: &Config) -> Result<Client, Error> {
    let late = |_| Error::Unready("it took too long to open a session".to_owned());
    let stream = connector.connect().await.map_err(unreached)?;
    let (client, connection) =
        timeout(CONNECT_MAX, config.connect_raw(stream, NoTls)).await.map_err(late)?.map_err(unready)?;
    // Ends when the client is dropped.
    tokio::spawn(connection);
    Ok(client)
}

fn unreached(cause: std::io::Error) -> Error {
    Error::Unready(cause.to_string())
}

async fn within<T>(work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Error> {
    match timeout(STATEMENT_MAX, work).await {
        Ok(answer) => answer.map_err(unready),
        Err(_) => Err(Error::Unready("a statement took too long".to_owned())),
    }
}

/// The same refusal, with where it was met.
fn in_database(cause: Error, database: &str) -> Error {
    match cause {
        Error::Refused(text) => Error::Refused(format!("in database '{database}': {text}")),
        Error::Unready(text) => Error::Unready(format!("in database '{database}': {text}")),
        other => other,
    }
}

fn unready(cause: tokio_postgres::Error) -> Error {
    let Some(refused) = cause.as_db_error() else {
        return Error::Unready(cause.to_string());
    };
    let unnamed = String::new;
    match *refused.code() {
        // Two that are made at once meet in the catalog's index.
        SqlState::DUPLICATE_OBJECT | SqlState::DUPLICATE_DATABASE | SqlState::UNIQUE_VIOLATION => {
            Error::AlreadyExists { what: "it", name: unnamed() }
        }
        SqlState::UNDEFINED_OBJECT | SqlState::INVALID_CATALOG_NAME => {
            Error::NotFound { what: "it", name: unnamed() }
        }
        SqlState::CANNOT_CONNECT_NOW | SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => {
            Error::Unready(refused.message().to_owned())
        }
        // The detail says which objects stand in the way, and where.
        SqlState::DEPENDENT_OBJECTS_STILL_EXIST => {
            let detail = refused.detail().map(|detail| format!(": {}", detail.replace('\n', ", ")));
            Error::Refused(format!("{}{}", refused.message(), detail.unwrap_or_default()))
        }
        _ => Error::Refused(refused.message().to_owned()),
    }
}

pub(crate) fn not_reserved(name: &RoleName) -> Result<(), Error> {
    if name.is_reserved() {
        return Err(Error::Refused(format!("user name '{name}' is reserved; choose another")));
    }
    Ok(())
}

fn not_the_engine_s(name: &DatabaseName) -> Result<(), Error> {
    if name.is_reserved() {
        return Err(Error::Refused(format!("database '{name}' belongs to the engine and cannot be changed")));
    }
    Ok(())
}

/// The same error with the name of what it is about.
pub(crate) fn named(error: Error, what: &'static str, name: &str) -> Error {
    let name = name.to_owned();
    match error {
        Error::AlreadyExists { .. } => Error::AlreadyExists { what, name },
        Error::NotFound { .. } => Error::NotFound { what, name },
        other => other,
    }
}

/// An identifier in double quotes (PostgreSQL's manual, 4.1.1).
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string constant that reads the same whatever `standard_conforming_strings` says.
pub(crate) fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{escaped}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_cannot_leave_their_quotes() {
        assert_eq!(quote("a\"; DROP ROLE b; --"), "\"a\"\"; DROP ROLE b; --\"");
        assert_eq!(literal("a'; DROP"), "E'a''; DROP'");
        assert_eq!(literal("a\\'; DROP"), "E'a\\\\''; DROP'");
    }
}
