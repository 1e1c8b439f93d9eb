//! SQL users that people make by name: made, given passwords, listed, removed.

use model::{ADMIN_ROLE, RoleName};

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
        let changed =
            self.batch(&format!("ALTER ROLE {} PASSWORD {}", quote(name.as_str()), literal(verifier))).await;
        changed.map_err(|refused| named(refused, "user", name.as_str()))
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
            barred = self.batch(&sql).await;
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
        let dropped = self.batch(&format!("DROP ROLE {user}")).await;
        dropped.map_err(|cause| match emptied.err().unwrap_or(cause) {
            Error::Refused(text) | Error::Unready(text) => Error::Refused(format!(
                "user '{name}' can no longer sign in, but could not be removed: {text}; see to that and delete it again"
            )),
            other => named(other, "user", name.as_str()),
        })
    }
}
