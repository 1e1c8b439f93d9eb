//! SQL that only we may say: roles, databases and the canary, over the engine's own socket as the internal superuser.

use std::sync::Arc;
use std::time::Duration;

use model::{ADMIN_ROLE, DatabaseName, INTERNAL_DATABASE, INTERNAL_ROLE, RoleName};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, NoTls, Row};

use crate::budget::Budgeted;
use crate::connector::Connector;
use crate::session::{AnswerMax, RawName, Session, get, too_much, unready};
use crate::{Error, is_want_of_descriptors, own_database, pinned};

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// For sessions that were told to end.
const LEAVE_MAX: Duration = Duration::from_secs(5);
const LEAVE_PAUSE: Duration = Duration::from_millis(20);

/// A connection to one engine as its internal superuser.
pub struct Administration {
    session: Session,
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

/// What makes the role that users are members of, if it is not there.
pub(crate) fn ensured_admin() -> String {
    format!(
        "DO $$ BEGIN
           IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ADMIN_ROLE}') THEN
             CREATE ROLE {ADMIN_ROLE} NOLOGIN CREATEDB CREATEROLE;
             GRANT pg_monitor, pg_signal_backend TO {ADMIN_ROLE};
           END IF;
         END $$"
    )
}

/// An engine's refusal to open a session.
pub(crate) struct Refused(pub(crate) tokio_postgres::Error);

impl From<Refused> for Error {
    fn from(Refused(cause): Refused) -> Self {
        unready(cause)
    }
}

impl Administration {
    /// Opens a session in the database that is ours alone.
    pub(crate) async fn connect(connector: &Arc<Connector>) -> Result<Self, Error> {
        own_database::connect(connector).await
    }

    /// Opens a session in this database, or tells why the engine refuses it.
    pub(crate) async fn in_database(
        connector: &Arc<Connector>,
        database: &str,
    ) -> Result<Result<Self, Refused>, Error> {
        let mut config = Config::new();
        config.user(INTERNAL_ROLE).dbname(database).application_name("chitin").options(pinned::options());
        let opened = open(connector, &config).await?;
        Ok(opened.map_err(Refused).map(|session| Self { session, config, connector: connector.clone() }))
    }

    /// Another session with the same engine.
    pub(crate) async fn another(&self) -> Result<Self, Error> {
        let session = connect(&self.connector, &self.config).await?;
        Ok(Self { session, config: self.config.clone(), connector: self.connector.clone() })
    }

    /// Whether the engine would open a session as this role: tried by opening one.
    pub(crate) async fn is_admitted(&self, role: &str) -> Result<bool, Error> {
        let mut config = self.config.clone();
        config.user(role).options("");
        match open(&self.connector, &config).await? {
            Ok(_) => Ok(true),
            Err(refused) => Ok(refused.code() != Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)),
        }
    }

    /// Whether the engine answers who wants to open a session. A refusal is an answer, also that it has no process for it. Where
    /// we could not even ask, it has said nothing that counts against it.
    pub(crate) async fn answers(connector: &Connector) -> Result<(), Error> {
        let mut config = Config::new();
        let database = connector.maintenance().database().unwrap_or(INTERNAL_DATABASE);
        config.user(INTERNAL_ROLE).dbname(database).application_name("chitin");
        match open(connector, &config).await {
            Ok(Err(silent)) if silent.as_db_error().is_none() => Err(unready(silent)),
            Ok(_) | Err(Error::NoProcess { .. } | Error::NoDescriptors(_)) => Ok(()),
            Err(silent) => Err(silent),
        }
    }

    /// The databases that a tenant sees.
    pub async fn databases(&self) -> Result<Vec<Database>, Error> {
        let mut databases = Vec::new();
        let sql = "SELECT datname, pg_get_userbyid(datdba) FROM pg_database
                   WHERE NOT datistemplate AND datdba <> 10 ORDER BY datname";
        self.each(sql, &[], AnswerMax::LIST, |row| {
            // One whose name is not UTF-8 cannot be named by anybody here.
            if let (Some(name), owner) = (get::<RawName>(row, 0)?.0, get::<RawName>(row, 1)?.0) {
                databases.push(Database { name, owner: owner.unwrap_or_default(), table_count: None });
            }
            Ok(())
        })
        .await?;
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
        self.batch(&ensured_admin()).await
    }

    /// Says the same in every database, templates that take sessions among them. One that refuses does not keep the
    /// others from it; the first refusal is the answer.
    pub(crate) async fn everywhere(&self, sql: &str) -> Result<(), Error> {
        let known =
            self.query("SELECT name FROM pg_settings WHERE name = ANY($1)", &[&pinned::later()]).await?;
        let known = known.iter().map(|row| get(row, 0)).collect::<Result<Vec<String>, _>>()?;
        let mut databases = Vec::new();
        let listed = "SELECT datname FROM pg_database WHERE datallowconn";
        self.each(listed, &[], AnswerMax::LIST, |row| {
            databases.extend(get::<RawName>(row, 0)?.0);
            Ok(())
        })
        .await?;
        let mut config = self.config.clone();
        config.options(pinned::options_with(&known));
        let mut outcome = Ok(());
        for database in &databases {
            config.dbname(database);
            let said = async { connect(&self.connector, &config).await?.batch(sql).await };
            outcome = outcome.and(said.await.map_err(|cause| in_database(cause, database)));
        }
        outcome
    }

    pub(crate) async fn batch(&self, sql: &str) -> Result<(), Error> {
        self.session.batch(sql).await
    }

    /// Asks for a few facts.
    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        self.session.query(sql, parameters).await
    }

    /// Asks for what may be much, and takes it row by row.
    pub(crate) async fn each(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
        max: AnswerMax,
        take: impl FnMut(&Row) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.session.each(sql, parameters, max, take).await
    }

    /// Ends the sessions for which this holds, and waits until they are gone.
    pub(crate) async fn end(&self, holds: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<(), Error> {
        let sql = format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {holds}");
        let until = Instant::now() + LEAVE_MAX;
        loop {
            let rows = self.query(&sql, parameters).await?;
            let left: i64 = rows.first().map_or(Ok(0), |row| get(row, 0))?;
            if left == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Error::Unready("a session does not end".to_owned()));
            }
            sleep(LEAVE_PAUSE).await;
        }
    }
}

async fn connect(connector: &Connector, config: &Config) -> Result<Session, Error> {
    open(connector, config).await?.map_err(unready)
}

/// Opens a session, or tells why the engine refuses it.
async fn open(
    connector: &Connector,
    config: &Config,
) -> Result<Result<Session, tokio_postgres::Error>, Error> {
    let late = |_| Error::Unready("it took too long to open a session".to_owned());
    let unreached = |cause: std::io::Error| {
        if is_want_of_descriptors(&cause) {
            Error::NoDescriptors(cause)
        } else {
            Error::Unready(cause.to_string())
        }
    };
    let opened = async {
        let stream = connector.connect().await.map_err(unreached)?;
        let (stream, meter) = Budgeted::new(stream);
        match config.connect_raw(stream, NoTls).await {
            Ok((client, connection)) => Ok(Ok(Session::new(client, meter, connection))),
            Err(refused) => match meter.no_process() {
                Some(reason) => Err(Error::NoProcess { reason }),
                None => too_much(&meter).map_or(Ok(Err(refused)), Err),
            },
        }
    };
    timeout(CONNECT_MAX, opened).await.map_err(late)?
}

/// The same refusal, with where it was met.
fn in_database(cause: Error, database: &str) -> Error {
    match cause {
        Error::Refused(text) => Error::Refused(format!("in database '{database}': {text}")),
        Error::Unready(text) => Error::Unready(format!("in database '{database}': {text}")),
        other => other,
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
