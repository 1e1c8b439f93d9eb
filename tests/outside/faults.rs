//! What goes wrong around a cloud: its clock, its disk, the limits on what it may open and start, processes that stand still,
//! clients that vanish, many who want something at once. What was acknowledged is written down outside of the clusters and compared.

mod clocks;
mod descriptors;
mod disk;
mod many;
mod memory;
mod processes;
mod room;
mod stopped;
mod vanished;

use house::runner::Suite;
use house::tests;

/// Its tests.
pub(crate) fn suite() -> Suite {
    Suite::new("faults")
        .beside(tests![
        clocks::a_clock_that_is_put_right_again_locks_nobody_out,
        clocks::a_start_some_hours_ahead_that_is_corrected_locks_nobody_out,
        clocks::the_kernel_says_at_once_that_the_machine_s_clock_was_set,
        descriptors::a_limit_on_open_files_that_is_too_low_is_said_at_the_start,
        descriptors::an_engine_more_than_there_is_room_for_is_refused_with_the_reason_and_runs_once_another_sleeps,
        descriptors::equal_warnings_are_counted_and_everything_goes_on_when_files_can_be_opened_again,
        descriptors::one_tenant_s_sessions_leave_the_api_engines_and_neighbours_what_they_need,
        disk::a_full_disk_of_the_state_stops_nothing_that_runs_and_everything_goes_on_once_it_is_freed,
        disk::a_state_that_is_removed_while_it_is_in_use_is_an_alarm_and_nothing_is_lost,
        room::a_watched_cluster_stores_nothing_more_while_the_machine_has_no_room_and_goes_on_when_it_has,
        disk::an_older_state_than_the_clusters_on_the_disk_is_an_alarm,
        memory::chitin_is_protected_engines_less_and_sessions_not,
        many::many_operations_at_once_do_what_they_say_and_leave_nothing,
        stopped::what_stands_still_for_a_while_loses_nothing_goes_on_and_holds_up_nobody_else,
        vanished::clients_that_vanish_leave_no_session_no_lock_and_no_descriptor,
        processes::a_failed_fork_in_an_engine_is_said_as_that,
        processes::a_start_without_enough_threads_is_refused_with_the_limit_that_is_reached,
        processes::where_no_thread_can_be_started_nothing_breaks_and_what_was_refused_succeeds_later,
    ])
        .alone(tests![memory::the_session_that_takes_all_memory_goes_and_neither_chitin_nor_a_neighbour])
}
