//! Users that a provider's token makes, and the roles that its groups give.

use model::RoleName;

use crate::Error;
use crate::administration::{Administration, named, not_reserved, quote};
use crate::session::{AnswerMax, get};

/// First major version whose memberships belong to whoever granted them (PostgreSQL 16's release notes).
const GRANTORS_VERSION: i32 = 160_000;

impl Administration {
    /// Makes a user without a password and without a right. False if there is one of this name already.
    pub async fn provision(&self, name: &RoleName) -> Result<bool, Error> {
        not_reserved(name)?;
        match self.batch(&format!("CREATE ROLE {} LOGIN", quote(name.as_str()))).await {
            Ok(()) => Ok(true),
            Err(Error::AlreadyExists { .. }) => Ok(false),
            Err(refused) => Err(named(refused, "user", name.as_str())),
        }
    }

    /// Makes the user a member of these roles and of no other. Roles that do not exist are left out, and so are those
    /// that can sign in or are superusers: a group's name must not make somebody another user.
    pub async fn set_memberships(&self, user: &RoleName, wanted: &[RoleName]) -> Result<(), Error> {
        not_reserved(user)?;
        self.ensure_admin().await?;
        let wanted: Vec<&str> = wanted.iter().map(RoleName::as_str).collect();
        let mut grantable: Vec<String> = Vec::new();
        let sql = "SELECT rolname::text FROM pg_roles WHERE rolname::text = ANY($1) AND NOT rolcanlogin AND NOT rolsuper";
        self.each(sql, &[&wanted], AnswerMax::LIST, |row| {
            grantable.push(get(row, 0)?);
            Ok(())
        })
        .await?;
        let mut held: Vec<(String, String, i32)> = Vec::new();
        let sql = "SELECT pg_get_userbyid(roleid)::text, pg_get_userbyid(grantor)::text,
                          current_setting('server_version_num')::int4
                   FROM pg_auth_members WHERE member = (SELECT oid FROM pg_roles WHERE rolname = $1)";
        self.each(sql, &[&user.as_str()], AnswerMax::LIST, |row| {
            held.push((get(row, 0)?, get(row, 1)?, get(row, 2)?));
            Ok(())
        })
        .await?;
        let member = quote(user.as_str());
        let mut changes = Vec::new();
        let mut kept: Vec<String> = Vec::new();
        for (role, grantor, version) in held {
            if grantable.contains(&role) {
                kept.push(role);
                continue;
            }
            let by = if version >= GRANTORS_VERSION {
                format!(" GRANTED BY {}", quote(&grantor))
            } else {
                String::new()
            };
            changes.push(format!("REVOKE {} FROM {member}{by} CASCADE", quote(&role)));
        }
        let missing = grantable.iter().filter(|role| !kept.contains(role));
        changes.extend(missing.map(|role| format!("GRANT {} TO {member}", quote(role))));
        if changes.is_empty() {
            return Ok(());
        }
        // All or nothing: nobody comes in with half of the rights taken away.
        let changed = self.batch(&format!("BEGIN; {}; COMMIT", changes.join("; "))).await;
        if changed.is_err() {
            let _ = self.batch("ROLLBACK").await;
        }
        changed.map_err(|refused| named(refused, "role", user.as_str()))
    }
}
