//! Where things of a cluster lie.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use model::{Cluster, ClusterId, RoutingId};
use serde::{Deserialize, Serialize};

use crate::Error;

/// First uid of the engines; a cluster's is this plus its routing id. Far above what systems give out by themselves,
/// below 2^31.
const FIRST_UID: u32 = 1_900_000_000;

/// The data directory's part that belongs to engines.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    data: PathBuf,
}

/// What must be known of a cluster on disk without asking the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    pub(crate) routing_id: RoutingId,
    pub(crate) encryption: model::Encryption,
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

    /// Everything of one cluster.
    pub(crate) fn cluster(&self, id: ClusterId) -> PathBuf {
        self.clusters().join(id.to_string())
    }

    /// The wrapped data key.
    pub(crate) fn key(&self, id: ClusterId) -> PathBuf {
        self.cluster(id).join("key.json")
    }

    /// Written last when a cluster is made.
    pub(crate) fn marker(&self, id: ClusterId) -> PathBuf {
        self.cluster(id).join("complete.json")
    }

    /// Where the engine's socket lies. Short: a socket's path ends at 107 bytes.
    pub(crate) fn run(&self, routing_id: RoutingId) -> PathBuf {
        self.data.join("run").join(routing_id.to_string())
    }

    pub(crate) fn socket(&self, routing_id: RoutingId) -> PathBuf {
        self.run(routing_id).join(".s.PGSQL.5432")
    }

    pub(crate) fn read_marker(&self, id: ClusterId) -> Option<Marker> {
        serde_json::from_slice(&std::fs::read(self.marker(id)).ok()?).ok()
    }
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
        if is_root() {
            let uid = FIRST_UID + routing_id.get();
            Self { uid, gid: uid }
        } else {
            Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
        }
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes a folder with this mode, or gives one that is there this mode.
pub(crate) fn make_folder(path: &Path, mode: u32) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(Error::file("create", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(Error::file("protect", path))
}

/// Gives a path to an engine's user; without root everything is ours already.
pub(crate) fn give(path: &Path, owner: Owner) -> Result<(), Error> {
    if !is_root() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid)).map_err(Error::file("hand over", path))
}

/// Removes a folder and all in it; one that is not there is no error.
pub(crate) fn remove_folder(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(other) if other.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(other)),
        _ => Ok(()),
    }
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

/// proc(5): space, tab, newline and backslash are written in octal.
fn unescape(text: &str) -> PathBuf {
    PathBuf::from(
        text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"),
    )
}
