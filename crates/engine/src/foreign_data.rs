//! What SQL users need to reach other databases: foreign tables, and subscriptions where PostgreSQL lets others than
//! superusers have them.

use model::ADMIN_ROLE;

use crate::Error;
use crate::administration::Administration;
use crate::session::get;

/// Whether SQL users can have subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscriptions {
    /// They are for superusers: PostgreSQL leaves them to those, or we do.
    ForSuperusers,
    /// Once the engine was started anew: it was started without room for what follows a subscription.
    AfterRestart,
    /// At once.
    Open,
}

/// Versions in which SQL users get them, as `server_version_num`. The first has `pg_create_subscription` (PostgreSQL 16's
/// release notes). From 18 on a subscription's connection takes `sslkeylogfile`, by which libpq writes to any file of the
/// engine's, and nothing of PostgreSQL's keeps a user from saying it: a file `standby.signal` or `recovery.signal` decides how
/// the engine starts. Foreign servers do not take it, as an option for debugging.
const SUBSCRIPTION_VERSIONS: std::ops::Range<i32> = 160_000..180_000;

impl Administration {
    /// Lets members of `admin` make foreign servers, in every database that there is and in those to come, and
    /// subscriptions. Safe to repeat.
    ///
    /// The extension lies in `pg_catalog`, where no tenant can have put anything before.
    pub async fn open_foreign_data(&self) -> Result<Subscriptions, Error> {
        self.ensure_admin().await?;
        let open = format!(
            "CREATE EXTENSION IF NOT EXISTS postgres_fdw SCHEMA pg_catalog;
             GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {ADMIN_ROLE}"
        );
        self.everywhere(&open).await?;
        if !self.has_subscriptions().await? {
            return Ok(Subscriptions::ForSuperusers);
        }
        if !SUBSCRIPTION_VERSIONS.contains(&self.version().await?) {
            // An earlier version of this program granted it.
            self.batch(&format!("REVOKE pg_create_subscription FROM {ADMIN_ROLE}")).await?;
            return Ok(Subscriptions::ForSuperusers);
        }
        self.batch(&format!("GRANT pg_create_subscription TO {ADMIN_ROLE}")).await?;
        // What follows a subscription is counted by the one setting until PostgreSQL 17, by the other from 18 on.
        let rows = self
            .query(
                "SELECT coalesce(current_setting('max_active_replication_origins', true),
                                 current_setting('max_replication_slots'))::int4 > 0",
                &[],
            )
            .await?;
        let has_room = rows.first().map_or(Ok(false), |row| get(row, 0))?;
        Ok(if has_room { Subscriptions::Open } else { Subscriptions::AfterRestart })
    }

    /// Takes back what [`Self::open_foreign_data`] gave. What tenants made with it stays, and with it the extension; it reaches
    /// nothing.
    pub async fn close_foreign_data(&self) -> Result<(), Error> {
        self.ensure_admin().await?;
        let close = format!(
            "DO $$ BEGIN
               IF EXISTS (SELECT FROM pg_foreign_data_wrapper WHERE fdwname = 'postgres_fdw') THEN
                 REVOKE USAGE ON FOREIGN DATA WRAPPER postgres_fdw FROM {ADMIN_ROLE} CASCADE;
                 BEGIN
                   DROP EXTENSION IF EXISTS postgres_fdw;
                 EXCEPTION WHEN dependent_objects_still_exist THEN NULL;
                 END;
               END IF;
             END $$"
        );
        self.everywhere(&close).await?;
        if self.has_subscriptions().await? {
            self.batch(&format!("REVOKE pg_create_subscription FROM {ADMIN_ROLE}")).await?;
        }
        Ok(())
    }

    /// Whether there is the right to make subscriptions.
    async fn has_subscriptions(&self) -> Result<bool, Error> {
        let rows = self.query("SELECT FROM pg_roles WHERE rolname = 'pg_create_subscription'", &[]).await?;
        Ok(!rows.is_empty())
    }

    /// `server_version_num`.
    async fn version(&self) -> Result<i32, Error> {
        let rows = self.query("SELECT current_setting('server_version_num')::int4", &[]).await?;
        rows.first().map_or(Ok(0), |row| get(row, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscriptions_are_for_versions_in_which_they_write_no_files() {
        let are_open = |version| SUBSCRIPTION_VERSIONS.contains(&version);
        assert_eq!(
            [150_014, 160_000, 170_009, 180_000, 190_001].map(are_open),
            [false, true, true, false, false]
        );
    }
}
