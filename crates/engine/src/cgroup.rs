//! What each engine may use of the machine, kept by the kernel: a control group of its own (cgroup v2, see cgroups(7) and
//! Documentation/admin-guide/cgroup-v2.rst) where the machine delegates one to us.
//!
//! ```text
//! the group that Chitin was started in, delegated to it
//! ├── supervisor            Chitin itself
//! └── engines-DEVICE-INODE  all engines of one data directory: no more memory than leaves a reserve
//!     └── ROUTING-ID        one engine
//! ```
//!
//! A group that has controllers for others has no process itself, which is why Chitin moves into a leaf. An engine is in its
//! group before bubblewrap runs, so that no process of it is ever outside, and cannot leave it: its sandbox shows no control
//! groups.

use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use model::{Cluster, Resources, RoutingId};
use rustix::io::Errno;

use crate::Error;
use crate::settings::memory_bytes;

/// Chitin's own group. One that was started in it, by another Chitin, uses the group above.
const SUPERVISOR: &str = "supervisor";
/// Without these an engine could still take the whole machine.
const NEEDED: [&str; 2] = ["memory", "pids"];
const WANTED: [&str; 4] = ["memory", "pids", "cpu", "io"];
/// Memory that engines leave to everything else: a sixteenth of the machine's, and at least this.
const MEMORY_RESERVE_BYTES_MIN: u64 = 512 << 20;
/// Over which the limit on processors is kept, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;
/// systemd marks what it delegates (systemd.resource-control(5)).
const DELEGATED: [&str; 2] = ["trusted.delegate", "user.delegate"];

/// The control groups of all engines.
#[derive(Debug)]
pub(crate) struct Groups {
    engines: PathBuf,
    controllers: Vec<&'static str>,
    /// The disk below the data directory, as `io.max` names it.
    disk: Option<String>,
    memory_bytes_max: u64,
}

/// One engine's control group.
#[derive(Clone, Debug)]
pub(crate) struct Group(PathBuf);

/// Tells whether the kernel ended processes of one run of an engine because its memory was used up.
#[derive(Clone, Debug)]
pub struct MemoryKills {
    group: Option<Group>,
    before: u64,
}

impl Groups {
    /// Makes the groups, or says why there can be none.
    pub(crate) fn open(data: &Path) -> Result<Self, String> {
        let base = own_group()?;
        let has = read(&base, "cgroup.controllers").map_err(|cause| cause.to_string())?;
        let has: Vec<&str> = has.split_whitespace().collect();
        let missing: Vec<&str> = NEEDED.into_iter().filter(|needed| !has.contains(needed)).collect();
        if !missing.is_empty() {
            return Err(format!("the controllers {} are not delegated to Chitin", missing.join(" and ")));
        }
        let controllers: Vec<&'static str> = WANTED.into_iter().filter(|name| has.contains(name)).collect();
        let device = std::fs::metadata(data).map_err(|cause| cause.to_string())?;
        let engines = base.join(format!("engines-{:x}-{:x}", device.dev(), device.ino()));
        for folder in [&base.join(SUPERVISOR), &engines] {
            make(folder).map_err(|cause| format!("{} cannot be made: {cause}", folder.display()))?;
        }
        leave(&base).map_err(|cause| format!("Chitin cannot move into a group of its own: {cause}"))?;
        for folder in [&base, &engines] {
            hand_on(folder, &controllers).map_err(|cause| {
                format!("controllers cannot be handed on in {}: {cause}", folder.display())
            })?;
        }
        clear(&engines);
        let machine = read(&base, "memory.max").ok().and_then(|text| text.trim().parse().ok());
        let machine = machine.unwrap_or(u64::MAX).min(memory_bytes());
        let memory_bytes_max = machine - (machine / 16).max(MEMORY_RESERVE_BYTES_MIN).min(machine / 2);
        let groups = Self { engines, controllers, disk: disk_below(device.dev()), memory_bytes_max };
        groups.limit_all().map_err(|cause| format!("limits cannot be set: {cause}"))?;
        Ok(groups)
    }

    /// Where the groups are and what they limit, for people.
    pub(crate) fn describe(&self) -> String {
        let mut limited = vec!["memory", "processes"];
        if self.has("cpu") {
            limited.push("processors");
        }
        if self.has("io") && self.disk.is_some() {
            limited.push("disk operations");
        }
        format!("cgroup v2 at {}: {}", self.engines.display(), limited.join(", "))
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.contains(&controller)
    }

    fn limit_all(&self) -> io::Result<()> {
        write(&self.engines, "memory.max", &self.memory_bytes_max.to_string())?;
        forbid_swap(&self.engines)
    }

    /// Makes an engine's group, or sets its limits anew.
    ///
    /// # Errors
    ///
    /// Where a limit cannot be set: what is not limited is not started.
    pub(crate) fn limit(&self, cluster: &Cluster) -> Result<Group, Error> {
        let group = self.group(cluster.routing_id);
        let failed = Error::file("limit", &group.0);
        self.limit_now(&group.0, &cluster.resources()).map_err(failed)?;
        Ok(group)
    }

    fn limit_now(&self, group: &Path, resources: &Resources) -> io::Result<()> {
        make(group)?;
        let machine_cpus = std::thread::available_parallelism();
        let machine_cpus = machine_cpus.map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
        let memory = resources.memory_bytes.unwrap_or(u64::MAX).min(self.memory_bytes_max);
        write(group, "pids.max", &resources.processes.to_string())?;
        write(group, "memory.max", &memory.to_string())?;
        forbid_swap(group)?;
        if self.has("cpu") {
            let quota = resources.virtual_cpus.map(|cpus| (u64::from(cpus) * PERIOD).to_string());
            write(group, "cpu.max", &format!("{} {PERIOD}", quota.as_deref().unwrap_or("max")))?;
            write(group, "cpu.weight", &resources.weight(machine_cpus).to_string())?;
        }
        if self.has("io") {
            if let Some(disk) = &self.disk {
                let limit = resources.disk_iops.map_or("max".to_owned(), |iops| iops.to_string());
                write(group, "io.max", &format!("{disk} riops={limit} wiops={limit}"))?;
            }
            // Only some of the kernel's I/O schedulers have weights.
            let weight = resources.weight(machine_cpus).to_string();
            for file in ["io.weight", "io.bfq.weight"] {
                match write(group, file, &weight) {
                    Err(other) if !is_not_there(&other) => return Err(other),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Removes an engine's group once it is empty.
    pub(crate) fn remove(&self, routing_id: RoutingId) {
        let _ = std::fs::remove_dir(self.group(routing_id).0);
    }

    fn group(&self, routing_id: RoutingId) -> Group {
        Group(self.engines.join(routing_id.to_string()))
    }
}

impl Group {
    /// The file by which a process enters it: whoever writes `0` there.
    pub(crate) fn entrance(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// How often the kernel ended a process of it because its memory was used up.
    fn memory_kills(&self) -> u64 {
        let events = read(&self.0, "memory.events").unwrap_or_default();
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.unwrap_or_default()
    }

    /// From now on.
    pub(crate) fn watch_memory(group: Option<&Self>) -> MemoryKills {
        MemoryKills { before: group.map_or(0, Self::memory_kills), group: group.cloned() }
    }

    /// The limits as the kernel has them, as long as the group is there.
    pub(crate) fn limits(&self) -> Vec<(&'static str, String)> {
        let files = ["memory.max", "pids.max", "cpu.max", "cpu.weight", "io.max"];
        let value = |file| read(&self.0, file).ok().map(|text| (file, text.trim().to_owned()));
        files.into_iter().filter_map(value).collect()
    }

    /// The processes in it.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let text = read(&self.0, "cgroup.procs").unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }
}

impl MemoryKills {
    /// How many there were since this watch began. None where nothing limits the engine.
    pub fn count(&self) -> u64 {
        self.group.as_ref().map_or(0, Group::memory_kills).saturating_sub(self.before)
    }
}

/// The group that we may divide: the one that we were started in.
fn own_group() -> Result<PathBuf, String> {
    let own = std::fs::read_to_string("/proc/self/cgroup").map_err(|cause| cause.to_string())?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).map(str::trim_end);
    let own = own.filter(|own| !own.starts_with("..")).ok_or("this process is in no group of cgroup v2")?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|cause| cause.to_string())?;
    let mount = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let fields: Vec<&str> = mount.split(' ').collect();
        (kind.starts_with("cgroup2 ") && fields.get(3) == Some(&"/")).then(|| fields.get(4).copied())?
    });
    let mut folder = Path::new(mount.ok_or("the machine has no cgroup v2 file system")?).join(own);
    if folder.file_name().is_some_and(|name| name == SUPERVISOR) {
        folder.pop();
    }
    let is_delegated = DELEGATED.iter().any(|name| {
        let mut value = [0_u8; 8];
        rustix::fs::getxattr(&folder, *name, &mut value[..]).is_ok_and(|length| value[..length] == *b"1")
    });
    // What systemd has not delegated is systemd's to divide.
    if Path::new("/run/systemd/system").exists() && !is_delegated {
        return Err("systemd has not delegated this group to Chitin".to_owned());
    }
    Ok(folder)
}

/// Moves us, and what else was started in the group with us, into the leaf.
fn leave(base: &Path) -> io::Result<()> {
    let supervisor = base.join(SUPERVISOR);
    write(&supervisor, "cgroup.procs", "0")?;
    // The root of all groups keeps its processes: it may have some, and they are not ours.
    if !base.join("cgroup.type").exists() {
        return Ok(());
    }
    for pid in read(base, "cgroup.procs")?.lines() {
        match write(&supervisor, "cgroup.procs", pid) {
            // It has ended.
            Err(cause) if cause.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
            moved => moved?,
        }
    }
    Ok(())
}

fn hand_on(folder: &Path, controllers: &[&str]) -> io::Result<()> {
    let all: Vec<String> = controllers.iter().map(|controller| format!("+{controller}")).collect();
    write(folder, "cgroup.subtree_control", &all.join(" "))
}

/// What a killed predecessor left. Groups in which something still runs stay.
fn clear(engines: &Path) {
    for entry in std::fs::read_dir(engines).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// A tenant's memory must not be written to a disk where nothing of ours encrypts it.
fn forbid_swap(group: &Path) -> io::Result<()> {
    match write(group, "memory.swap.max", "0") {
        // A kernel without swap.
        Err(cause) if is_not_there(&cause) => Ok(()),
        written => written,
    }
}

/// The whole disk that a device lies on, since operations are counted there; none where there is no such disk.
fn disk_below(device: u64) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mut entry = Path::new("/sys/dev/block").join(format!("{major}:{minor}")).canonicalize().ok()?;
    if entry.join("partition").exists() {
        entry.pop();
    }
    Some(std::fs::read_to_string(entry.join("dev")).ok()?.trim().to_owned())
}

fn make(folder: &Path) -> io::Result<()> {
    match std::fs::create_dir(folder) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn read(folder: &Path, file: &str) -> io::Result<String> {
    let path = folder.join(file);
    let explain = |cause: io::Error| io::Error::new(cause.kind(), format!("{}: {cause}", path.display()));
    std::fs::read_to_string(&path).map_err(explain)
}

fn write(folder: &Path, file: &str, text: &str) -> io::Result<()> {
    // Not `fs::write`, which would try to make what this kernel does not have.
    std::fs::OpenOptions::new().write(true).open(folder.join(file))?.write_all(text.as_bytes())
}

fn is_not_there(cause: &io::Error) -> bool {
    let absent = [Errno::NOENT, Errno::OPNOTSUPP].map(Errno::raw_os_error);
    cause.raw_os_error().is_some_and(|number| absent.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_below_is_the_whole_disk() {
        let device = std::fs::metadata("/").unwrap().dev();
        if let Some(disk) = disk_below(device) {
            let entry = Path::new("/sys/dev/block").join(disk);
            assert!(entry.exists() && !entry.join("partition").exists());
        }
        assert_eq!(disk_below(rustix::fs::makedev(0, 1)), None, "memory is no disk");
    }
}
