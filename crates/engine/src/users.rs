//! SQL users that people make by name: made, given passwords, listed, removed.

use std::time::Duration;

use model::{ADMIN_ROLE, INTERNAL_ROLE, RoleName};
use tokio::time::sleep;

use crate::Error;
use crate::administration::{Administration, literal, named, not_reserved, quote};
use crate::session::{AnswerMax, RawName, get};

/// What a role is whose deletion began: nothing that lets somebody in is left of it, and no role that people make is so.
const LEAVING: &str = "(NOT rolcanlogin AND rolconnlimit = 0 AND rolvaliduntil = '-infinity')";

/// A user that people made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its deletion began and did not come to its end. It cannot sign in.
    pub is_leaving: bool,
}

/// For so long a session of a tenant's may keep a change of a user waiting. It holds the role by what it has changed itself, as
/// everybody with CREATEROLE can up to PostgreSQL 15, in a transaction that is still open.
const HELD_MAX: Duration = Duration::from_secs(1);

/// A session that begins between its sessions' end and the change could hold the role once more.
const BAR_TRIES: usize = 3;

impl Administration {
    /// The users that people made: roles that may sign in and are not ours, and those that are not quite removed.
    pub async fn users(&self) -> Result<Vec<User>, Error> {
        let sql = format!(
            "SELECT rolname, {LEAVING} FROM pg_authid
             WHERE (rolcanlogin OR {LEAVING}) AND NOT rolsuper ORDER BY rolname"
        );
        let mut users = Vec::new();
        self.each(&sql, &[], AnswerMax::LIST, |row| {
            // One whose name is not UTF-8 cannot be named by anybody here, and signs in nowhere.
            if let Some(name) = get::<RawName>(row, 0)?.0 {
                users.push(User { name, is_leaving: get(row, 1)? });
            }
            Ok(())
        })
        .await?;
        Ok(users)
    }

    /// Makes a user who may do what `admin` may.
    pub async fn create_user(&self, name: &RoleName, verifier: &str) -> Result<(), Error> {
        not_reserved(name)?;
        self.ensure_admin().await?;
        let (user, password) = (quote(name.as_str()), literal(verifier));
        let made =
            self.batch(&format!("CREATE ROLE {user} LOGIN CREATEDB CREATEROLE PASSWORD {password}")).await;
        if let Err(refused) = made {
            return Err(named(refused, "user", name.as_str()));
        }
        self.batch(&format!("GRANT {ADMIN_ROLE} TO {user} WITH ADMIN OPTION")).await
    }

    /// Gives a user another password.
    pub async fn set_verifier(&self, name: &RoleName, verifier: &str) -> Result<(), Error> {
        not_reserved(name)?;
        let sql = format!("SELECT FROM pg_authid WHERE rolname = $1 AND {LEAVING}");
        if !self.query(&sql, &[&name.as_str()]).await?.is_empty() {
            return Err(Error::Refused(format!(
                "the deletion of user '{name}' is not finished; delete it again, then make it anew"
            )));
        }
        let sql = format!("ALTER ROLE {} PASSWORD {}", quote(name.as_str()), literal(verifier));
        let changed = self.despite_holders(&sql).await;
        changed.map_err(|refused| named(refused, "user", name.as_str()))
    }

    /// Carries out a statement about one user, and ends the sessions of tenants that keep it waiting: somebody's right to sign
    /// in is not to last for as long as somebody else holds it. What those had not committed is undone.
    async fn despite_holders(&self, sql: &str) -> Result<(), Error> {
        let backend: i32 = match self.query("SELECT pg_backend_pid()", &[]).await?.first() {
            Some(row) => get(row, 0)?,
            None => return Err(Error::Unready("the engine does not name its process".to_owned())),
        };
        let done = self.batch(sql);
        tokio::pin!(done);
        loop {
            tokio::select! {
                done = &mut done => return done,
                () = sleep(HELD_MAX) => {}
            }
            if let Err(cause) = self.end_holders(backend).await {
                tracing::warn!(%cause, "sessions that keep a change of a user waiting could not be ended");
            }
        }
    }

    /// Ends what tenants' sessions keep this process waiting.
    async fn end_holders(&self, backend: i32) -> Result<(), Error> {
        let holders = format!("pid = ANY(pg_blocking_pids($1)) AND usename <> '{INTERNAL_ROLE}'");
        let other = self.another().await?;
        let sql = format!("SELECT usename FROM pg_stat_activity WHERE {holders}");
        let mut held_by = Vec::new();
        other
            .each(&sql, &[&backend], AnswerMax::FEW, |row| {
                held_by.push(get::<RawName>(row, 0)?.0.unwrap_or_default());
                Ok(())
            })
            .await?;
        if !held_by.is_empty() {
            tracing::warn!(target: "audit", ?held_by, "sessions that kept a change of a user waiting are ended");
        }
        other.end(&holders, &[&backend]).await
    }

    /// Takes from a user what lets it in, and ends its sessions. Nothing of that user's can keep it from being done, and
    /// it is what a deletion begins with; one that does not come to its end can be told by it.
    pub async fn bar_user(&self, name: &RoleName) -> Result<(), Error> {
        not_reserved(name)?;
        let sql = format!(
            "ALTER ROLE {} NOLOGIN PASSWORD NULL CONNECTION LIMIT 0 VALID UNTIL '-infinity'",
            quote(name.as_str())
        );
        let own = "usesysid = (SELECT oid FROM pg_authid WHERE rolname = $1)";
        let mut barred = Ok(());
        for _ in 0..BAR_TRIES {
            // A session of the user's that has changed the role and does not end holds it.
            self.end(own, &[&name.as_str()]).await?;
            barred = self.despite_holders(&sql).await;
            if !matches!(barred, Err(Error::Refused(_))) {
                break;
            }
        }
        barred.map_err(|refused| named(refused, "user", name.as_str()))?;
        // Sessions of the user would go on with rights that nobody has any more. One may just have been starting.
        self.end(own, &[&name.as_str()]).await
    }

    /// Removes a user; what it owns becomes `admin`'s, what it was granted is revoked. It is barred first. Where something
    /// stands in the way it stays, barred, among [`Self::users`], and removing it can be repeated.
    pub async fn drop_user(&self, name: &RoleName) -> Result<(), Error> {
        self.bar_user(name).await?;
        self.ensure_admin().await?;
        let user = quote(name.as_str());
        let emptied =
            self.everywhere(&format!("REASSIGN OWNED BY {user} TO {ADMIN_ROLE}; DROP OWNED BY {user}")).await;
        // What was refused in one database may not have been needed for the role to go, and says more if it was.
        let dropped = self.despite_holders(&format!("DROP ROLE {user}")).await;
        dropped.map_err(|cause| match emptied.err().unwrap_or(cause) {
            Error::Refused(text) | Error::Unready(text) => Error::Refused(format!(
                "user '{name}' can no longer sign in, but could not be removed: {text}; see to that and delete it again"
            )),
            other => named(other, "user", name.as_str()),
        })
    }
}
