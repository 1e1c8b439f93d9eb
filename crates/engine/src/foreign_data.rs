//! What SQL users need to reach other databases: foreign tables, and subscriptions where PostgreSQL lets others than
//! superusers have them.

use model::ADMIN_ROLE;

use crate::Error;
use crate::administration::Administration;

/// First major version with `pg_create_subscription` (PostgreSQL 16's release notes).
const SUBSCRIPTIONS_VERSION: i32 = 160_000;

impl Administration {
    /// Lets members of `admin` make foreign servers, in every database that there is and in those to come, and
    /// subscriptions. Safe to repeat. False if this version leaves subscriptions to superusers.
    ///
    /// The extension lies in `pg_catalog`, where no tenant can have put anything before.
    pub async fn open_foreign_data(&self) -> Result<bool, Error> {
        self.ensure_admin().await?;
        let open = format!(
            "CREATE EXTENSION IF NOT EXISTS postgres_fdw SCHEMA pg_catalog;
             GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {ADMIN_ROLE}"
        );
        self.everywhere(&open).await?;
        let has_subscriptions = self.has_subscriptions().await?;
        if has_subscriptions {
            self.batch(&format!("GRANT pg_create_subscription TO {ADMIN_ROLE}")).await?;
        }
        Ok(has_subscriptions)
    }

    /// Takes back what [`Self::open_foreign_data`] gave. What tenants made with it stays, and reaches nothing.
    pub async fn close_foreign_data(&self) -> Result<(), Error> {
        self.ensure_admin().await?;
        let close = format!(
            "DO $$ BEGIN
               IF EXISTS (SELECT FROM pg_foreign_data_wrapper WHERE fdwname = 'postgres_fdw') THEN
                 REVOKE USAGE ON FOREIGN DATA WRAPPER postgres_fdw FROM {ADMIN_ROLE} CASCADE;
               END IF;
             END $$"
        );
        self.everywhere(&close).await?;
        if self.has_subscriptions().await? {
            self.batch(&format!("REVOKE pg_create_subscription FROM {ADMIN_ROLE}")).await?;
        }
        Ok(())
    }

    async fn has_subscriptions(&self) -> Result<bool, Error> {
        let rows = self
            .query(
                "SELECT current_setting('server_version_num')::int4 >= $1
                 AND EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_create_subscription')",
                &[&SUBSCRIPTIONS_VERSION],
            )
            .await?;
        rows.first().map_or(Ok(false), |row| crate::administration::get(row, 0))
    }
}
