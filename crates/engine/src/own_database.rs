//! The database that our own sessions are in, where no tenant gets in.
//!
//! Until there was one of ours alone that was `postgres`, which new clusters give to their tenants. A cluster of an earlier version
//! gets ours after its next start, beside whatever goes on, and is administered in `postgres` until then. A tenant may have taken
//! the name before, and may do with a database of theirs what they like: so what counts is who owns it, and nobody waits for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model::{ADMIN_ROLE, INTERNAL_DATABASE};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use crate::Error;
use crate::administration::{Administration, Refused};
use crate::connector::Connector;
use crate::host::lock;
use crate::session::get;

/// A tenant's; of a cluster that an earlier version made it is ours until there is another.
const POSTGRES: &str = "postgres";
/// Whoever asks has seconds. A tenant's database of our name may be locked for as long as they like.
const FIRST_MAX: Duration = Duration::from_millis(500);
/// For what tenants may hold: what is not had by then is tried again in the next run.
const PATIENT: &str = "SET lock_timeout = '2s'";

/// Where our sessions with one run of an engine are.
#[derive(Debug, Default)]
pub(crate) struct Maintenance {
    database: Mutex<Option<&'static str>>,
    has_begun: AtomicBool,
}

/// A session in a database that is ours.
struct Own {
    session: Administration,
    database: &'static str,
    /// `postgres` was not given to the tenant yet.
    has_postgres: bool,
}

/// What makes the database that is ours alone: statements, each for itself.
pub(crate) fn made() -> [String; 2] {
    [
        // Of the two templates this is the one that nobody ever was in. The limit is none for a superuser, and keeps everybody else
        // out from the first moment.
        format!("CREATE DATABASE {INTERNAL_DATABASE} TEMPLATE template0 CONNECTION LIMIT 0"),
        closed(),
    ]
}

fn closed() -> String {
    format!("REVOKE ALL ON DATABASE {INTERNAL_DATABASE} FROM PUBLIC")
}

impl Maintenance {
    /// The database that our sessions of this run are in, once there was one.
    pub(crate) fn database(&self) -> Option<&'static str> {
        *lock(&self.database)
    }

    fn choose(&self, database: Option<&'static str>) {
        *lock(&self.database) = database;
    }
}

/// Opens a session in the database that is ours.
pub(crate) async fn connect(connector: &Arc<Connector>) -> Result<Administration, Error> {
    let maintenance = connector.maintenance();
    if let Some(database) = maintenance.database() {
        let opened = Administration::in_database(connector, database).await?.map_err(Error::from);
        // The next one looks anew.
        return opened.inspect_err(|_| maintenance.choose(None));
    }
    let own = first_of_run(connector).await?;
    maintenance.choose(Some(own.database));
    if own.has_postgres && !maintenance.has_begun.swap(true, Ordering::Relaxed) {
        let connector = connector.clone();
        tokio::spawn(async move {
            match move_over(&connector).await {
                Ok(()) => tracing::info!(
                    engine = connector.user(),
                    "database {POSTGRES} is the tenant's from now on"
                ),
                Err(cause) => tracing::warn!(
                    engine = connector.user(), %cause,
                    "a cluster of an earlier version goes on without a database {POSTGRES} of its tenant's; it is tried again at its \
                     engine's next start"
                ),
            }
        });
    }
    Ok(own.session)
}

async fn first_of_run(connector: &Arc<Connector>) -> Result<Own, Error> {
    let late = || Error::Unready(format!("database {INTERNAL_DATABASE} took too long"));
    let first = timeout(FIRST_MAX, look(connector, INTERNAL_DATABASE)).await.unwrap_or_else(|_| Err(late()));
    if let Ok(Some(own)) = first {
        return Ok(own);
    }
    if let Ok(Some(own)) = look(connector, POSTGRES).await {
        return Ok(own);
    }
    // It was slow, or was made and `postgres` given away between the two looks.
    look(connector, INTERNAL_DATABASE).await?.ok_or_else(|| {
        Error::Refused(format!(
            "neither its database {INTERNAL_DATABASE} nor {POSTGRES} is Chitin's own; somebody with the superuser's rights changed \
             that: ALTER DATABASE {INTERNAL_DATABASE} OWNER TO {}",
            model::INTERNAL_ROLE
        ))
    })
}

/// A session in this database, if it is there and the superuser's, who alone can have made it so.
async fn look(connector: &Arc<Connector>, database: &'static str) -> Result<Option<Own>, Error> {
    let session = match Administration::in_database(connector, database).await? {
        Ok(session) => session,
        Err(Refused(missing)) if missing.code() == Some(&SqlState::INVALID_CATALOG_NAME) => return Ok(None),
        Err(refused) => return Err(refused.into()),
    };
    let asked = "SELECT count(*) FILTER (WHERE datname = current_database()) = 1, \
                 count(*) FILTER (WHERE datname = 'postgres') = 1 \
                 FROM pg_database WHERE datdba = 10";
    let rows = session.query(asked, &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (is_own, has_postgres): (bool, bool) = (get(row, 0)?, get(row, 1)?);
    Ok(is_own.then_some(Own { session, database, has_postgres }))
}

/// Makes the database that is ours alone, and gives the tenant the other, as new clusters have it.
async fn move_over(connector: &Arc<Connector>) -> Result<(), Error> {
    let Some(earlier) = look(connector, POSTGRES).await? else {
        return Ok(());
    };
    earlier.session.batch(PATIENT).await?;
    let [make, _] = made();
    match earlier.session.batch(&make).await {
        Ok(()) | Err(Error::AlreadyExists { .. }) => {}
        Err(cause) => return Err(cause),
    }
    let Some(own) = look(connector, INTERNAL_DATABASE).await? else {
        return Err(Error::Refused(format!(
            "a database of this name is the tenant's; they can rename it: ALTER DATABASE {INTERNAL_DATABASE} RENAME TO ..."
        )));
    };
    connector.maintenance().choose(Some(INTERNAL_DATABASE));
    own.session.batch(PATIENT).await?;
    own.session.ensure_admin().await?;
    // One transaction: it is closed whatever ended an earlier try.
    let given = [
        closed(),
        format!("GRANT CONNECT, TEMPORARY ON DATABASE {POSTGRES} TO PUBLIC"),
        format!("ALTER DATABASE {POSTGRES} OWNER TO {ADMIN_ROLE}"),
    ];
    own.session.batch(&given.join("; ")).await
}
