//! New clusters: their volumes and their first files.

use std::sync::Arc;

use keys::{DataKey, WrappedKey};
use model::{Cluster, Encryption};

use super::template::Source;
use super::{Host, Made, Started, blocking, to_its_end};
use crate::Error;
use crate::inside::Inside;
use crate::places::{Marker, Owner, make_folder};
use crate::postgres::Postgres;
use crate::volume::{self, Unlocked};

impl Host {
    /// Makes a cluster's volume and data directory and leaves its engine running. What a crash left half made is
    /// undone first.
    pub async fn create(self: &Arc<Self>, cluster: &Cluster) -> Result<Made, Error> {
        let (host, cluster) = (self.clone(), cluster.clone());
        to_its_end(async move { host.create_now(&cluster).await }).await
    }

    async fn create_now(self: &Arc<Self>, cluster: &Cluster) -> Result<Made, Error> {
        let slot = self.slot(cluster.id);
        let _turn = slot.turn.lock().await;
        if self.places.read_marker(cluster.id).is_some() {
            let Started { volume, engine_version } = self.start_in(&slot, cluster).await?;
            return Ok(Made { volume, engine_version });
        }
        let kind = self.posture.encryption_of_new()?;
        self.must_have_room()?;
        // Before there are files that would have to be removed again. Its start takes the place.
        self.place_for_engine()?;
        self.destroy_in(&slot, cluster.id, Some(cluster.routing_id)).await?;
        let postgres = self.postgres_of(cluster.id).await?;
        let source = self.source(&postgres).await?;
        let key = DataKey::random();
        let wrapped = self.keys.wrap(cluster, &key).await?;
        let (host, wanted, engine) = (self.clone(), cluster.clone(), postgres.clone());
        let volume =
            blocking(move || host.make_files((&wanted, &engine), source, kind, (&key, &wrapped))).await?;
        let marker = Marker { routing_id: cluster.routing_id, encryption: kind, generation: 0 };
        let made = self.launch(&slot, (cluster, &postgres), (marker.volume(), volume), &[]).await;
        if made.is_err() {
            // Nothing half made stays; the next attempt begins at the beginning.
            self.destroy_in(&slot, cluster.id, Some(cluster.routing_id)).await?;
        }
        made?;
        let text = serde_json::to_vec(&marker).map_err(|cause| Error::Unready(cause.to_string()))?;
        let path = self.places.marker(cluster.id);
        blocking(move || Ok(keys::write_atomically(&path, &text)?)).await?;
        Ok(Made { volume: marker.volume(), engine_version: postgres.version.clone() })
    }

    fn make_files(
        &self,
        (cluster, postgres): (&Cluster, &Postgres),
        source: Source,
        kind: Encryption,
        (key, wrapped): (&DataKey, &WrappedKey),
    ) -> Result<Unlocked, Error> {
        let owner = Owner::of(cluster);
        let folder = self.places.volume(cluster.id, 0);
        make_folder(&folder, 0o711)?;
        // The key before the volume: a volume whose key was never kept could never be opened.
        volume::keep_wrapped_key(&folder, wrapped)?;
        let volume = volume::create(&self.companion, &folder, kind, key, owner, (cluster.storage(), 0))?;
        let made = (|| {
            let base = Inside::at(&volume.base)?;
            for name in ["pg", "log"] {
                base.make_folder(name, 0o700, owner)?;
            }
            let (run, etc) = self.prepare_run(cluster, owner)?;
            let group = self.limited(cluster)?;
            let jail = self.jail(postgres, (owner, &volume.base), (&run, &etc), group.as_ref());
            if source.fills_what_is_empty() {
                source.fill(&jail)?;
                volume.separate_wal(&folder, owner)?;
            } else {
                volume.prepare_empty(&folder, owner)?;
                source.fill(&jail)?;
            }
            volume.sync(&folder)
        })();
        match made {
            Ok(()) => Ok(volume),
            Err(cause) => {
                let _ = volume.lock();
                let _ = volume::destroy_all(&self.places, cluster.id);
                Err(cause)
            }
        }
    }
}
