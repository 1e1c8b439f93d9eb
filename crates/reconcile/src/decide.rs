//! What to do next for one cluster: a pure answer from the wish and what is seen.

use model::{Observation, Phase, Power, Wish};

/// The next step toward the wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// What is, is what should be.
    Rest,
    /// Make it anew; whatever half of it lies there is undone first.
    Create,
    /// Unlock the volume and start the engine.
    Start,
    /// The engine runs, and only the observation does not say so yet.
    Settle,
    /// Stop the engine and lock the volume.
    Stop,
    /// The engine ended although it should run.
    Bury,
    /// Destroy key and data, then forget the cluster.
    Destroy,
}

/// Decides. `is_running` is the machine's answer; `was_good` says that this process saw the engine work before.
pub fn decide(wish: Wish, seen: &Observation, is_running: bool, was_good: bool) -> Step {
    let power = match wish {
        Wish::Deleted => return Step::Destroy,
        Wish::Exists(power) => power,
    };
    if let Phase::Failed { .. } = seen.phase {
        return Step::Rest;
    }
    if !seen.is_initialized {
        return Step::Create;
    }
    match (power, is_running, &seen.phase) {
        (Power::Running, true, Phase::Running) | (Power::Asleep, false, Phase::Asleep) => Step::Rest,
        (Power::Running, true, _) => Step::Settle,
        (Power::Running, false, Phase::Running) if was_good => Step::Bury,
        (Power::Running, false, _) => Step::Start,
        // Also where no process is left: the volume may still be unlocked, and stopping locks it.
        (Power::Asleep, _, _) => Step::Stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(phase: Phase) -> Observation {
        Observation { phase, is_initialized: true, ..Observation::nothing_yet() }
    }

    fn phases() -> Vec<Phase> {
        let reason = || "it died".to_owned();
        vec![
            Phase::Creating,
            Phase::Failed { reason: reason() },
            Phase::Asleep,
            Phase::Waking,
            Phase::Running,
            Phase::Stopping,
            Phase::Broken { reason: reason() },
            Phase::Deleting,
        ]
    }

    #[test]
    fn a_wish_for_deletion_wins_over_everything() {
        for phase in phases() {
            for is_running in [false, true] {
                assert_eq!(decide(Wish::Deleted, &seen(phase.clone()), is_running, true), Step::Destroy);
            }
        }
    }

    #[test]
    fn what_is_not_completely_made_is_made_anew_whatever_was_seen() {
        for phase in phases() {
            if let Phase::Failed { .. } = phase {
                continue;
            }
            let half = Observation { is_initialized: false, ..seen(phase) };
            for power in [Power::Running, Power::Asleep] {
                assert_eq!(decide(Wish::Exists(power), &half, false, false), Step::Create);
            }
        }
    }

    #[test]
    fn failed_for_good_is_left_alone() {
        let failed = Observation {
            phase: Phase::Failed { reason: "no encryption".to_owned() },
            ..Observation::nothing_yet()
        };
        assert_eq!(decide(Wish::Exists(Power::Running), &failed, false, false), Step::Rest);
    }

    #[test]
    fn after_a_killed_predecessor_every_phase_leads_to_the_wish() {
        for phase in phases() {
            if let Phase::Failed { .. } = phase {
                continue;
            }
            let found = seen(phase.clone());
            assert_eq!(decide(Wish::Exists(Power::Running), &found, false, false), Step::Start, "{phase:?}");
            let expected = if phase == Phase::Asleep { Step::Rest } else { Step::Stop };
            assert_eq!(decide(Wish::Exists(Power::Asleep), &found, false, false), expected, "{phase:?}");
        }
    }

    #[test]
    fn a_running_engine_that_should_run_is_left_alone() {
        assert_eq!(decide(Wish::Exists(Power::Running), &seen(Phase::Running), true, true), Step::Rest);
        assert_eq!(decide(Wish::Exists(Power::Running), &seen(Phase::Waking), true, true), Step::Settle);
    }

    #[test]
    fn an_engine_that_died_under_us_is_buried_before_it_is_started_again() {
        let running = Wish::Exists(Power::Running);
        assert_eq!(decide(running, &seen(Phase::Running), false, true), Step::Bury);
        let broken = seen(Phase::Broken { reason: "it died".to_owned() });
        assert_eq!(decide(running, &broken, false, false), Step::Start);
    }

    #[test]
    fn a_cluster_that_should_sleep_is_stopped() {
        assert_eq!(decide(Wish::Exists(Power::Asleep), &seen(Phase::Running), true, true), Step::Stop);
    }
}
