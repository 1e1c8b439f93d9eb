//! Processes that stand still for a while and go on, as on a machine that is overloaded or was suspended.

use std::time::Duration;

use house::Cloud;
use house::ledger::Ledger;
use house::machine::{Process, descendants};
use rustix::process::Signal;

/// Longer than any look at an engine that somebody waits for.
const STILL: Duration = Duration::from_secs(3);

/// Stops these processes, does something meanwhile, and lets them go on. Of an engine's some may end by themselves before.
fn while_still(processes: &[Process], meanwhile: impl FnOnce()) {
    let signal =
        |signal| processes.iter().filter(|process| process.is_alive()).for_each(|one| one.signal(signal));
    signal(Signal::STOP);
    meanwhile();
    std::thread::sleep(STILL);
    signal(Signal::CONT);
}

pub fn what_stands_still_for_a_while_loses_nothing_goes_on_and_holds_up_nobody_else() {
    let cloud = Cloud::plain();
    let (victim, neighbour) = (cloud.cluster("stands-still", &[]), cloud.cluster("goes-on", &[]));
    let (of_victim, of_neighbour) = (Ledger::open(&victim), Ledger::open(&neighbour));
    let mut session = victim.sign_in();
    let postmaster = victim.postmaster();
    let chitin = Process::of(cloud.pid()).expect("it runs");
    of_victim.during(|| {
        of_neighbour.during(|| {
            // What starts others first, so that the rest are all there are.
            let engine = || {
                let mut all = descendants(victim.engine_processes()[0].pid);
                all.sort_by_key(|process| process.started_ticks);
                all
            };
            let (companion, backend) = (cloud.companion(), victim.process_of(&mut session));
            let all: [(&str, &dyn Fn() -> Vec<Process>); 4] = [
                ("the first process of its engine", &|| vec![postmaster]),
                ("the process of a session", &|| vec![backend]),
                ("its whole engine", &engine),
                ("the companion", &|| vec![companion]),
            ];
            for (what, processes) in all {
                while_still(&processes(), || of_neighbour.goes_on());
                of_victim.goes_on();
                assert!(cloud.companion() == companion && postmaster.is_alive(), "{what} was started again");
                assert_eq!(session.value("select 1"), "1", "{what}");
            }
            while_still(&[chitin], || {});
            of_victim.goes_on();
            of_neighbour.goes_on();
            assert_eq!(session.value("select 1"), "1");
        });
    });
    assert!(chitin.is_alive() && postmaster.is_alive());
    drop(session);
    of_victim.is_kept();
    of_neighbour.is_kept();
    cloud.stop();
}
