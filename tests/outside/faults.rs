//! What goes wrong around a cloud: its clock, its disk. Each attack is one that once did more harm than its fault.

mod clocks;

use house::runner::Suite;
use house::tests;

/// Its tests.
pub(crate) fn suite() -> Suite {
    Suite::new("faults").beside(tests![
        clocks::a_clock_that_is_put_right_again_locks_nobody_out,
        clocks::a_start_some_hours_ahead_that_is_corrected_locks_nobody_out,
    ])
}
