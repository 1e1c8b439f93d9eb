//! Where things of a cluster lie.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use model::{Cluster, ClusterId, RoutingId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::inside::Inside;

/// First uid of the engines; a cluster's is this plus its routing id. Far above what systems give out by themselves,
/// below 2^31.
const FIRST_UID: u32 = 1_900_000_000;
/// First uid of the nodes that engines know: each trusts one of its own, so that what was meant for another is refused.
const FIRST_NODE_UID: u32 = 2_000_000_000;
/// Names the volume that counts.
const MARKER: &str = "complete.json";
/// Folders of volumes after the first are called this and their number.
const VOLUME_PREFIX: &str = "volume-";

/// The data directory's part that belongs to engines.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    data: PathBuf,
}

/// What a cluster's folder says of it. Anybody with the disk can write it, so nothing is unlocked by it that the state does not
/// name too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    pub(crate) routing_id: RoutingId,
    pub(crate) encryption: model::Encryption,
    /// Which of the cluster's volumes counts. Replacing this file is what moves a cluster to a new data key.
    #[serde(default)]
    pub(crate) generation: u32,
}

impl Marker {
    pub(crate) fn volume(self) -> VolumeId {
        VolumeId { encryption: self.encryption, generation: self.generation }
    }
}

impl Places {
    pub(crate) fn new(data: &Path) -> Self {
        Self { data: data.to_owned() }
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn clusters(&self) -> PathBuf {
        self.data.join("clusters")
    }

    /// What new clusters are copied from: on the disk of the clusters, for which room is kept.
    pub(crate) fn templates(&self) -> PathBuf {
        self.clusters().join("templates")
    }

    /// Everything of one cluster.
    pub(crate) fn cluster(&self, id: ClusterId) -> PathBuf {
        self.clusters().join(id.to_string())
    }

    /// The folder of a volume: its wrapped data key and its files. The first lies in the cluster's own folder.
    pub(crate) fn volume(&self, id: ClusterId, generation: u32) -> PathBuf {
        let cluster = self.cluster(id);
        if generation == 0 { cluster } else { cluster.join(format!("{VOLUME_PREFIX}{generation}")) }
    }

    /// The folder of the volume that counts. A damaged marker is an error: it may have named any.
    pub(crate) fn current_volume(&self, id: ClusterId) -> Result<PathBuf, Error> {
        match self.read_marker(id) {
            Some(marker) => Ok(self.volume(id, marker.generation)),
            None if self.has_marker(id) => {
                Err(keys::Error::Damaged { path: self.marker(id), reason: "it names no volume" }.into())
            }
            None => Ok(self.volume(id, 0)),
        }
    }

    /// Volumes that have anything on the disk, the one that counts included; in no order.
    pub(crate) fn generations(&self, id: ClusterId) -> Vec<u32> {
        let names = Inside::at(&self.cluster(id)).and_then(|cluster| cluster.names()).unwrap_or_default();
        names.iter().filter_map(|name| generation(name.to_str()?)).chain([0]).collect()
    }

    /// Written last when a cluster is made.
    pub(crate) fn marker(&self, id: ClusterId) -> PathBuf {
        self.cluster(id).join(MARKER)
    }

    /// Whether there is one, readable or not.
    pub(crate) fn has_marker(&self, id: ClusterId) -> bool {
        // What cannot be looked at may be there.
        let looked = Inside::at(&self.cluster(id)).and_then(|cluster| cluster.look(MARKER));
        match looked {
            Ok(found) => found.is_some(),
            Err(Error::File { source, .. }) => source.kind() != std::io::ErrorKind::NotFound,
            Err(_) => true,
        }
    }

    /// Where the engine's socket lies.
    pub(crate) fn run(&self, routing_id: RoutingId) -> PathBuf {
        self.data.join("run").join(routing_id.to_string())
    }

    /// A place for a sandbox in which no engine runs; no two are the same.
    pub(crate) fn run_of_probe(&self) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        self.data.join("run").join(format!("probe-{}-{number}", std::process::id()))
    }

    pub(crate) fn read_marker(&self, id: ClusterId) -> Option<Marker> {
        serde_json::from_slice(&Inside::at(&self.cluster(id)).ok()?.read_bytes(MARKER)?).ok()
    }
}

fn generation(name: &str) -> Option<u32> {
    name.strip_prefix(VOLUME_PREFIX)?.parse().ok()
}

/// Who an engine runs as: an OS user of its own when we are root, else ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self::of_routing_id(cluster.routing_id)
    }

    pub(crate) fn of_routing_id(routing_id: RoutingId) -> Self {
        Self::numbered(routing_id.get())
    }

    /// Who makes what clusters are copied from: nobody whose number a cluster has.
    pub(crate) fn of_templates() -> Self {
        Self::numbered(0)
    }

    /// Us.
    pub(crate) fn own() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    fn numbered(number: u32) -> Self {
        if is_root() {
            let uid = FIRST_UID + number;
            Self { uid, gid: uid }
        } else {
            Self::own()
        }
    }

    /// Who opens this engine's sessions: an OS user that no other engine trusts when we are root, else ourselves.
    pub(crate) fn node(self) -> u32 {
        if is_root() { FIRST_NODE_UID + (self.uid - FIRST_UID) } else { self.uid }
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes a folder of ours with this mode, or gives one that is there this mode. In an engine's folder, [`Inside`] makes them.
pub(crate) fn make_folder(path: &Path, mode: u32) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(Error::file("create", path))?;
    Inside::at(path)?.dress(mode)
}

/// Gives a folder of ours to an engine's user; without root everything is ours already.
pub(crate) fn give(path: &Path, owner: Owner) -> Result<(), Error> {
    Inside::at(path)?.give(owner)
}

/// Removes a folder in a folder of ours and all in it, or a file; one that is not there is no error.
pub(crate) fn remove_folder(path: &Path) -> Result<(), Error> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::file("remove", path)(std::io::ErrorKind::InvalidInput.into()));
    };
    match Inside::at(above) {
        Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        opened => opened?.remove_tree(name),
    }
}

/// What a disk has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskRoom {
    pub(crate) total_bytes: u64,
    /// What everybody may still write.
    pub(crate) free_bytes: u64,
}

/// What the disk below a folder of ours has.
pub(crate) fn disk_room(folder: &Path) -> std::io::Result<DiskRoom> {
    let room = rustix::fs::statvfs(folder)?;
    let bytes = |blocks: u64| blocks.saturating_mul(room.f_frsize);
    Ok(DiskRoom { total_bytes: bytes(room.f_blocks), free_bytes: bytes(room.f_bavail) })
}

/// Mount points at or below a path, deepest first.
pub(crate) fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|mounted| mounted.starts_with(path))
        .collect();
    found.sort_by_key(|mounted| std::cmp::Reverse(mounted.components().count()));
    found
}

/// What is mounted at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The file system's name, for instance `ext4` or `fuse.gocryptfs`.
    pub(crate) kind: String,
    /// The device, or what the file system says instead.
    pub(crate) source: String,
}

/// What the kernel says is mounted exactly there; of several the topmost.
pub(crate) fn mount_at(path: &Path) -> Option<Mount> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().rev().find_map(|line| {
        let (place, file_system) = line.split_once(" - ")?;
        if unescape(place.split(' ').nth(4)?) != path {
            return None;
        }
        let mut fields = file_system.split(' ');
        Some(Mount { kind: fields.next()?.to_owned(), source: fields.next()?.to_owned() })
    })
}

/// Why what is mounted exactly there cannot be written to, as the kernel says.
pub(crate) fn read_only_reason(path: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let options = table.lines().rev().find_map(|line| {
        let (place, file_system) = line.split_once(" - ")?;
        (unescape(place.split(' ').nth(4)?) == path)
            .then(|| file_system.split(' ').nth(2).map(str::to_owned))?
    })?;
    // Kernels since 6.15 keep `rw` for a file system that they stopped writing to.
    let said = options.split(',').find(|option| ["ro", "emergency_ro", "shutdown"].contains(option))?;
    Some(format!("the kernel stopped writing to its file system after an error (mount option `{said}`)"))
}

/// proc(5): space, tab, newline and backslash are written in octal.
fn unescape(text: &str) -> PathBuf {
    PathBuf::from(
        text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_directories_from_before_there_were_generations_still_open() {
        let folder = tempfile::tempdir().unwrap();
        let (places, id) = (Places::new(folder.path()), ClusterId::random());
        std::fs::create_dir_all(places.cluster(id)).unwrap();
        assert_eq!(places.current_volume(id).unwrap(), places.cluster(id));
        std::fs::write(places.marker(id), br#"{"routing_id":2,"encryption":"fscrypt-image"}"#).unwrap();
        assert_eq!(places.read_marker(id).unwrap().generation, 0);
        assert_eq!(places.current_volume(id).unwrap(), places.cluster(id));
    }

    #[test]
    fn volumes_are_found_by_their_names_and_a_damaged_marker_names_none() {
        let folder = tempfile::tempdir().unwrap();
        let (places, id) = (Places::new(folder.path()), ClusterId::random());
        for name in ["volume-3", "volume-12", "volume-x", "volume-", "etc"] {
            std::fs::create_dir_all(places.cluster(id).join(name)).unwrap();
        }
        let mut found = places.generations(id);
        found.sort_unstable();
        assert_eq!(found, [0, 3, 12]);
        std::fs::write(places.marker(id), b"nonsense").unwrap();
        assert!(places.current_volume(id).is_err());
    }
}
