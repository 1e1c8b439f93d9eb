//! What one cluster may use of the machine.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{Cluster, Plan};

/// Processors of a serverless cluster that says nothing of its size.
const SERVERLESS_VIRTUAL_CPUS: u32 = 2;
/// Disk operations a second of a serverless cluster that says nothing of them: those of a plain volume in the clouds.
const SERVERLESS_DISK_IOPS: u32 = 3_000;
/// Memory that comes with a processor: a serverless cluster's, and a dedicated one's, as with the clouds' general machines.
const SERVERLESS_MEMORY_BYTES_PER_CPU: u64 = 2 << 30;
const DEDICATED_MEMORY_BYTES_PER_CPU: u64 = 4 << 30;
/// Most processors that mean anything here.
const VIRTUAL_CPUS_MAX: u32 = 1_024;
/// Processes of an engine beside its sessions: PostgreSQL's own, and its workers.
const PROCESSES_BESIDE_SESSIONS: u32 = 128;

/// What one cluster may use of the machine, by its plan and the size that it was created with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Processors, at least one; none where it may use all that the machine has.
    pub virtual_cpus: Option<u32>,
    /// Memory in bytes; none where it may use all that engines may have.
    pub memory_bytes: Option<u64>,
    /// Reads a second, and as many writes; none where it may use all that the disk does.
    pub disk_iops: Option<u32>,
    /// Processes and threads.
    pub processes: u32,
}

/// What was last seen of an engine that used up its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemorySeen {
    /// When the kernel last ended a process of the engine for it. None where it has not since the engine was started, or where
    /// that is long ago.
    #[serde(with = "time::serde::rfc3339::option")]
    pub killed_at: Option<OffsetDateTime>,
    /// How many it ended since the engine was started.
    pub kills: u64,
}

impl Resources {
    /// How much it gets where clusters compete for processors or the disk, relative to others: a hundred for each processor,
    /// 1 to 10,000 as cgroup v2 has it.
    ///
    /// `machine_cpus` is how many the machine has.
    pub fn weight(&self, machine_cpus: u32) -> u32 {
        self.virtual_cpus.unwrap_or(machine_cpus).saturating_mul(100).clamp(1, 10_000)
    }
}

impl Cluster {
    /// What it may use of the machine.
    pub fn resources(&self) -> Resources {
        let asked = &self.asked;
        let processes = crate::CONNECTIONS_PER_CLUSTER_MAX + PROCESSES_BESIDE_SESSIONS;
        let disk_iops = asked.disk_iops.filter(|iops| *iops > 0);
        let (virtual_cpus, per_cpu, disk_iops) = match self.plan {
            Plan::Serverless => {
                let asked = asked.provisioned_virtual_cpus.and_then(|cpus| u32::try_from(cpus).ok());
                let cpus = asked.filter(|cpus| *cpus > 0).unwrap_or(SERVERLESS_VIRTUAL_CPUS);
                let iops = disk_iops.unwrap_or(SERVERLESS_DISK_IOPS);
                (Some(cpus), SERVERLESS_MEMORY_BYTES_PER_CPU, Some(iops))
            }
            Plan::Dedicated => {
                (asked.virtual_cpus.filter(|cpus| *cpus > 0), DEDICATED_MEMORY_BYTES_PER_CPU, disk_iops)
            }
        };
        let virtual_cpus = virtual_cpus.map(|cpus| cpus.min(VIRTUAL_CPUS_MAX));
        let memory_bytes = virtual_cpus.map(|cpus| u64::from(cpus) * per_cpu);
        Resources { virtual_cpus, memory_bytes, disk_iops, processes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_cgroup_v2() {
        let of = |virtual_cpus| Resources { virtual_cpus, memory_bytes: None, disk_iops: None, processes: 1 };
        let weights = [Some(1), Some(2), Some(200), None].map(|cpus| of(cpus).weight(4));
        assert_eq!(weights, [100, 200, 10_000, 400]);
    }
}
