//! cgroup v2 limits for one engine, where the machine delegates the controllers to us.

use std::path::{Path, PathBuf};

use model::{Plan, RoutingId};

const ROOT: &str = "/sys/fs/cgroup";
/// Processes of one engine: its sessions and helpers.
const PROCESSES_MAX: u32 = 4_096;
/// Memory of a serverless engine; a dedicated one may have the machine.
const SERVERLESS_MEMORY_BYTES_MAX: u64 = 4 << 30;

/// Whether limits can be set, and where.
pub(crate) fn probe() -> Result<PathBuf, String> {
    let own = std::fs::read_to_string("/proc/self/cgroup").map_err(|cause| cause.to_string())?;
    let path =
        own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("this process is in no cgroup v2")?;
    let folder = Path::new(ROOT).join(path.trim());
    let controllers = std::fs::read_to_string(folder.join("cgroup.controllers"))
        .map_err(|_| "the machine has no cgroup v2 file system".to_owned())?;
    let missing: Vec<&str> = ["memory", "pids"]
        .into_iter()
        .filter(|wanted| !controllers.split(' ').any(|has| has.trim() == *wanted))
        .collect();
    if !missing.is_empty() {
        return Err(format!("the controllers {} are not delegated to this process", missing.join(" and ")));
    }
    let limits = folder.join("chitin");
    std::fs::create_dir_all(&limits).map_err(|cause| format!("{}: {cause}", limits.display()))?;
    std::fs::write(folder.join("cgroup.subtree_control"), "+memory +pids +cpu")
        .or_else(|_| std::fs::write(folder.join("cgroup.subtree_control"), "+memory +pids"))
        .map_err(|cause| format!("controllers cannot be handed on: {cause}"))?;
    std::fs::write(limits.join("cgroup.subtree_control"), "+memory +pids")
        .map_err(|cause| format!("controllers cannot be handed on: {cause}"))?;
    Ok(limits)
}

/// Puts a process and what it starts under the plan's limits.
pub(crate) fn limit(limits: &Path, routing_id: RoutingId, plan: Plan, pid: u32) -> std::io::Result<()> {
    let folder = limits.join(routing_id.to_string());
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("pids.max"), PROCESSES_MAX.to_string())?;
    if plan == Plan::Serverless {
        std::fs::write(folder.join("memory.max"), SERVERLESS_MEMORY_BYTES_MAX.to_string())?;
    }
    std::fs::write(folder.join("cgroup.procs"), pid.to_string())
}

/// Removes an engine's group once it is empty.
pub(crate) fn remove(limits: &Path, routing_id: RoutingId) {
    let _ = std::fs::remove_dir(limits.join(routing_id.to_string()));
}
