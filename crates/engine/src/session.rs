//! One session of ours with an engine, whose answers are a stranger's bytes: rows and bytes are bounded, and taken one by
//! one.

use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row};
use tokio_util::task::AbortOnDropHandle;

use crate::Error;
use crate::budget::Meter;

/// For one statement. Creating a database from a template takes longest.
const STATEMENT_MAX: Duration = Duration::from_secs(60);
/// What an engine says of a statement before it is carried out: its parameters, its columns, and for a type that the
/// driver does not know, what it is made of. Each of these is a question, and a type's answer may lead to another type; so
/// few bytes keep the chain short.
const PREPARE_BYTES_MAX: usize = 4 << 10;
/// What an engine says of statements that give no rows.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// How much an answer may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerMax {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

impl AnswerMax {
    /// A few facts.
    pub(crate) const FEW: Self = Self { rows: 1_000, bytes: 256 << 10 };
    /// Names of everything that there is of a kind.
    pub(crate) const LIST: Self = Self { rows: model::SQL_ROLES_MAX, bytes: 8 << 20 };
}

/// A session.
pub(crate) struct Session {
    client: Client,
    meter: Meter,
    /// Carries the bytes. The driver alone would wait for as long as an answer is owed, and so for ever.
    _connection: AbortOnDropHandle<()>,
}

impl Session {
    pub(crate) fn new(
        client: Client,
        meter: Meter,
        connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
    ) -> Self {
        let carry = async {
            // Who asks hears of it by the answer that does not come.
            let _ = connection.await;
        };
        Self { client, meter, _connection: AbortOnDropHandle::new(tokio::spawn(carry)) }
    }

    /// Says statements that give no rows.
    pub(crate) async fn batch(&self, sql: &str) -> Result<(), Error> {
        let _question = self.meter.ask(BATCH_BYTES_MAX);
        self.within(self.client.batch_execute(sql)).await
    }

    /// Asks, and takes what comes row by row.
    pub(crate) async fn each(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
        max: AnswerMax,
        mut take: impl FnMut(&Row) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let prepared = {
            let _question = self.meter.ask(PREPARE_BYTES_MAX);
            self.within(self.client.prepare(sql)).await?
        };
        let _question = self.meter.ask(max.bytes);
        let work = async {
            let rows = self.client.query_raw(&prepared, parameters.iter().copied()).await;
            let mut rows = pin!(rows.map_err(|cause| self.unready(cause))?);
            let mut count = 0;
            while let Some(row) = rows.try_next().await.map_err(|cause| self.unready(cause))? {
                count += 1;
                if count > max.rows {
                    return Err(Error::TooMuch { what: "rows", limit: max.rows });
                }
                take(&row)?;
            }
            Ok(())
        };
        timeout(STATEMENT_MAX, work).await.map_err(|_| late())?
    }

    /// Asks, and keeps the few rows that come.
    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        self.each(sql, parameters, AnswerMax::FEW, |row| {
            rows.push(row.clone());
            Ok(())
        })
        .await?;
        Ok(rows)
    }

    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        match timeout(STATEMENT_MAX, work).await {
            Ok(answer) => answer.map_err(|cause| self.unready(cause)),
            Err(_) => Err(late()),
        }
    }

    fn unready(&self, cause: tokio_postgres::Error) -> Error {
        // The driver only knows that the connection ended.
        too_much(&self.meter).unwrap_or_else(|| unready(cause))
    }
}

/// Whether the engine sent more than was asked of it, so that its connection was closed.
pub(crate) fn too_much(meter: &Meter) -> Option<Error> {
    meter.exceeded().map(|limit| Error::TooMuch { what: "bytes", limit })
}

fn late() -> Error {
    Error::Unready("a statement took too long".to_owned())
}

pub(crate) fn unready(cause: tokio_postgres::Error) -> Error {
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

pub(crate) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, Error> {
    row.try_get(column).map_err(|cause| Error::Unready(cause.to_string()))
}

/// A name as its bytes are. A tenant with a database in another encoding can make names that are not UTF-8; one of them
/// must not spoil the answer about all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawName(pub(crate) Option<String>);

impl<'a> FromSql<'a> for RawName {
    fn from_sql(_: &Type, bytes: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(std::str::from_utf8(bytes).ok().map(str::to_owned)))
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::NAME | Type::TEXT)
    }
}
