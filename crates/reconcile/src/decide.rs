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
    /// Read the engine's roles again: it cannot be stopped before they are kept.
    Refresh,
    /// Stop the engine and lock the volume.
    Stop,
    /// Switch to the volume that was copied under another data key.
    Switch,
    /// The engine ended although it should run.
    Bury,
    /// Destroy key and data, then forget the cluster.
    Destroy,
}

/// What the machine says, and what the keys allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct EngineFacts {
    /// The machine's answer.
    pub is_running: bool,
    /// This process saw the engine work before.
    pub was_good: bool,
    /// The data key may not be used, or the cluster is above its storage limit: nothing may run, whatever is wished.
    pub is_barred: bool,
    /// A copy of the volume under another data key is ready.
    pub is_copied: bool,
    /// The copy of the engine's roles may lack what the engine had when it ended.
    pub is_stale: bool,
    /// The roles of the engine that runs could not be read when that was last tried.
    pub is_unread: bool,
}

/// Decides.
pub fn decide(wish: Wish, seen: &Observation, facts: EngineFacts) -> Step {
    let power = match wish {
        Wish::Deleted => return Step::Destroy,
        Wish::Exists(_) if facts.is_barred => Power::Asleep,
        Wish::Exists(power) => power,
    };
    if let Phase::Failed { .. } = seen.phase {
        return Step::Rest;
    }
    if !seen.is_initialized {
        return if facts.is_barred { Step::Rest } else { Step::Create };
    }
    match (power, facts.is_running, &seen.phase) {
        (_, false, Phase::Asleep) if facts.is_copied && !facts.is_barred => Step::Switch,
        (Power::Running, true, Phase::Running) if facts.is_copied => Step::Stop,
        // Nobody signs in by old roles, and so nobody could wake it any more: it runs once to tell them.
        (Power::Asleep, false, Phase::Asleep) if facts.is_stale && !facts.is_barred => Step::Start,
        (Power::Running, true, Phase::Running) | (Power::Asleep, false, Phase::Asleep) => Step::Rest,
        (Power::Running, true, _) => Step::Settle,
        (Power::Asleep, true, Phase::Running) if facts.is_unread && !facts.is_barred && !facts.is_copied => {
            Step::Refresh
        }
        (Power::Running, false, Phase::Running) if facts.was_good => Step::Bury,
        // Else one that dies whenever it is started to tell its roles would be started without end.
        (Power::Asleep, false, Phase::Running) if facts.was_good && !facts.is_barred => Step::Bury,
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

    fn facts(is_running: bool, was_good: bool) -> EngineFacts {
        EngineFacts { is_running, was_good, ..EngineFacts::default() }
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
                assert_eq!(
                    decide(Wish::Deleted, &seen(phase.clone()), facts(is_running, true)),
                    Step::Destroy
                );
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
                assert_eq!(decide(Wish::Exists(power), &half, facts(false, false)), Step::Create);
            }
        }
    }

    #[test]
    fn failed_for_good_is_left_alone() {
        let failed = Observation {
            phase: Phase::Failed { reason: "no encryption".to_owned() },
            ..Observation::nothing_yet()
        };
        assert_eq!(decide(Wish::Exists(Power::Running), &failed, facts(false, false)), Step::Rest);
    }

    #[test]
    fn after_a_killed_predecessor_every_phase_leads_to_the_wish() {
        for phase in phases() {
            if let Phase::Failed { .. } = phase {
                continue;
            }
            let found = seen(phase.clone());
            assert_eq!(
                decide(Wish::Exists(Power::Running), &found, facts(false, false)),
                Step::Start,
                "{phase:?}"
            );
            let expected = if phase == Phase::Asleep { Step::Rest } else { Step::Stop };
            assert_eq!(
                decide(Wish::Exists(Power::Asleep), &found, facts(false, false)),
                expected,
                "{phase:?}"
            );
        }
    }

    #[test]
    fn a_running_engine_that_should_run_is_left_alone() {
        assert_eq!(
            decide(Wish::Exists(Power::Running), &seen(Phase::Running), facts(true, true)),
            Step::Rest
        );
        assert_eq!(
            decide(Wish::Exists(Power::Running), &seen(Phase::Waking), facts(true, true)),
            Step::Settle
        );
    }

    #[test]
    fn an_engine_that_died_under_us_is_buried_before_it_is_started_again() {
        let running = Wish::Exists(Power::Running);
        assert_eq!(decide(running, &seen(Phase::Running), facts(false, true)), Step::Bury);
        let broken = seen(Phase::Broken { reason: "it died".to_owned() });
        assert_eq!(decide(running, &broken, facts(false, false)), Step::Start);
    }

    #[test]
    fn a_cluster_that_should_sleep_is_stopped() {
        assert_eq!(decide(Wish::Exists(Power::Asleep), &seen(Phase::Running), facts(true, true)), Step::Stop);
    }

    #[test]
    fn a_cluster_that_sleeps_on_old_roles_runs_once_to_tell_them() {
        let asleep = Wish::Exists(Power::Asleep);
        let stale = |is_running, was_good| EngineFacts { is_stale: true, ..facts(is_running, was_good) };
        assert_eq!(decide(asleep, &seen(Phase::Asleep), stale(false, false)), Step::Start);
        // It runs, and its roles were read: to sleep. They were not: once more.
        assert_eq!(decide(asleep, &seen(Phase::Running), stale(true, true)), Step::Stop);
        let unread = EngineFacts { is_unread: true, ..stale(true, true) };
        assert_eq!(decide(asleep, &seen(Phase::Running), unread), Step::Refresh);
        assert_eq!(decide(asleep, &seen(Phase::Asleep), facts(false, true)), Step::Rest);
        // One that dies of it waits its time.
        assert_eq!(decide(asleep, &seen(Phase::Running), stale(false, true)), Step::Bury);
        // A key that may not be used is stronger.
        let barred = EngineFacts { is_barred: true, ..unread };
        assert_eq!(decide(asleep, &seen(Phase::Running), barred), Step::Stop);
        assert_eq!(
            decide(asleep, &seen(Phase::Asleep), EngineFacts { is_running: false, ..barred }),
            Step::Rest
        );
        // One that should run runs, whether its roles can be read or not.
        assert_eq!(decide(Wish::Exists(Power::Running), &seen(Phase::Running), unread), Step::Rest);
    }

    #[test]
    fn nothing_runs_while_the_key_may_not_be_used() {
        for phase in phases() {
            let barred =
                |is_running| EngineFacts { is_barred: true, is_copied: true, ..facts(is_running, true) };
            for wish in [Wish::Exists(Power::Running), Wish::Exists(Power::Asleep)] {
                for is_running in [false, true] {
                    let step = decide(wish, &seen(phase.clone()), barred(is_running));
                    assert!(
                        matches!(step, Step::Stop | Step::Rest),
                        "{wish:?} {phase:?} {is_running}: {step:?}"
                    );
                }
                let half = Observation { is_initialized: false, ..seen(Phase::Creating) };
                assert_eq!(decide(wish, &half, barred(false)), Step::Rest);
            }
        }
        let stopped = EngineFacts { is_barred: true, ..facts(true, true) };
        assert_eq!(decide(Wish::Exists(Power::Running), &seen(Phase::Running), stopped), Step::Stop);
    }

    #[test]
    fn a_copied_volume_is_switched_to_between_a_stop_and_a_start() {
        let run = Wish::Exists(Power::Running);
        let copied = |is_running| EngineFacts { is_copied: true, ..facts(is_running, true) };
        assert_eq!(decide(run, &seen(Phase::Running), copied(true)), Step::Stop);
        assert_eq!(decide(run, &seen(Phase::Asleep), copied(false)), Step::Switch);
        assert_eq!(decide(Wish::Exists(Power::Asleep), &seen(Phase::Asleep), copied(false)), Step::Switch);
        assert_eq!(decide(run, &seen(Phase::Asleep), facts(false, true)), Step::Start);
        // One that died starts first, so that what is copied is whole.
        let broken = seen(Phase::Broken { reason: "it died".to_owned() });
        assert_eq!(decide(run, &broken, copied(false)), Step::Start);
        assert_eq!(decide(Wish::Deleted, &seen(Phase::Asleep), copied(false)), Step::Destroy);
    }
}
