//! How many sessions one cluster may have.

use crate::{Cluster, Plan};

/// Most sessions of one cluster at a time, whatever is asked for.
pub const CONNECTIONS_PER_CLUSTER_MAX: u32 = 2_000;
/// Fewest that can be asked for.
pub const CONNECTIONS_PER_CLUSTER_MIN: u32 = 10;
/// What a cluster has where nothing was asked for. An engine reserves memory for each at its start, some 30 KiB and the time to
/// write them: 2,000 take ten times as long to start as 200.
const SERVERLESS_CONNECTIONS: u32 = 200;
const DEDICATED_CONNECTIONS: u32 = 500;

/// What every cluster had before numbers could be chosen. Nobody is refused after an upgrade who was let in before it.
#[expect(clippy::unnecessary_wraps, reason = "the type of the field that it stands for")]
pub(crate) fn of_earlier_versions() -> Option<u32> {
    Some(CONNECTIONS_PER_CLUSTER_MAX)
}

/// Most sessions of one SQL user at a time, in a cluster that may have so many: fewer than all, so that the others of the cluster
/// come in beside a program that opens without end.
pub fn connections_per_user_max(of_cluster: u32) -> u32 {
    of_cluster - (of_cluster / 20).max(1).min(of_cluster)
}

impl Cluster {
    /// Most sessions at a time, from the engine's next start on: what was asked for, else its plan's number or what it grew to.
    /// What was written down without a bound is brought within bounds.
    pub fn connections_max(&self) -> u32 {
        let of_plan = match self.plan {
            Plan::Serverless => SERVERLESS_CONNECTIONS,
            Plan::Dedicated => DEDICATED_CONNECTIONS,
        };
        let wanted = self.asked.connections_max.unwrap_or(of_plan.max(self.connections_floor.unwrap_or(0)));
        wanted.clamp(CONNECTIONS_PER_CLUSTER_MIN, CONNECTIONS_PER_CLUSTER_MAX)
    }

    /// What it grows to when an engine used up so many; none where somebody asked for a number, where that changed since the engine
    /// was started, or where there are no more.
    pub fn connections_grown(&self, used_up: u32) -> Option<u32> {
        let grown = used_up.saturating_mul(2).min(CONNECTIONS_PER_CLUSTER_MAX);
        let is_current = used_up == self.connections_max();
        (self.asked.connections_max.is_none() && is_current && grown > used_up).then_some(grown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_never_takes_all() {
        for (of_cluster, of_user) in [(2_000, 1_900), (200, 190), (10, 9), (1, 0), (0, 0)] {
            assert_eq!(connections_per_user_max(of_cluster), of_user, "{of_cluster}");
        }
    }
}
