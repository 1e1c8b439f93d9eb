//! Which roles the node may open sessions as, told to a running engine.

use std::collections::HashSet;
use std::time::Duration;

use model::{ClusterId, RoleName};
use tokio::time::{Instant, sleep};

use super::{ADMIT_MAX, Host, blocking, lock};
use crate::inside::Inside;
use crate::places::Owner;
use crate::running::Running;
use crate::{Administration, Error, settings};

/// Between two tries whether it has.
const PAUSE: Duration = Duration::from_millis(5);

impl Host {
    /// Makes sure that the engine opens sessions of this role for us.
    pub async fn admit(&self, id: ClusterId, role: &RoleName) -> Result<(), Error> {
        if role.is_reserved() {
            return Err(Error::Refused(format!("user name '{role}' is reserved")));
        }
        let running = self.running(id)?;
        if settings::admits_all(&running.postgres) {
            return Ok(());
        }
        let mut admitted = running.admitted.lock().await;
        if !admitted.insert(role.as_str().to_owned()) {
            return Ok(());
        }
        let result = self.write_admitted(&running, &admitted, role).await;
        if result.is_err() {
            admitted.remove(role.as_str());
        }
        result
    }

    async fn write_admitted(
        &self,
        running: &Running,
        admitted: &HashSet<String>,
        role: &RoleName,
    ) -> Result<(), Error> {
        let base = lock(&running.volume).as_ref().ok_or(Error::Asleep)?.base.clone();
        let (postgres, names) = (running.postgres.clone(), admitted.clone());
        let owner = Owner::of_routing_id(running.routing_id);
        blocking(move || {
            let data = Inside::open(&base, "pg")?;
            settings::write_identities(&data, &postgres, names.iter().map(String::as_str), owner)
        })
        .await?;
        let administration = Administration::connect(&running.connector).await?;
        administration.batch("SELECT pg_reload_conf()").await?;
        // The engine reads the map in its own time.
        let deadline = Instant::now() + ADMIT_MAX;
        while !administration.is_admitted(role.as_str()).await? {
            if Instant::now() > deadline {
                return Err(Error::Unready("it did not take the user in".to_owned()));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }
}
