//! Who reaches a cluster at all, by address and by way: allowlists from real hosts, doors behind balancers, and
//! every attack on them.

#[path = "network/allowlist.rs"]
mod allowlist;
#[path = "network/proxy.rs"]
mod proxy;
#[path = "network/world.rs"]
mod world;

use house::Hosts;
use house::runner::{Impossible, Test};

/// Tests on this machine's own addresses, side by side.
fn on_this_machine() -> Vec<Test> {
    house::tests![
        allowlist::an_allowlist_begins_closed_where_the_operator_says_so_and_has_a_most,
        proxy::t55_only_a_good_header_from_a_believed_peer_passes,
        proxy::t55_a_header_is_no_header_at_the_public_doors,
        proxy::t55_a_header_that_does_not_come_is_not_waited_for,
        proxy::t55_the_api_behind_a_balancer_goes_by_the_header_too,
        proxy::t56_the_allowlist_decides_on_the_headers_address,
        proxy::t59_a_balanced_clients_session_is_cut_by_the_headers_address,
        proxy::t67_failed_sign_ins_count_against_the_headers_address_and_not_the_balancer,
        proxy::doors_behind_balancers_are_not_opened_without_peers_to_believe,
    ]
}

/// Tests with hosts of their own, side by side.
fn between_hosts() -> Vec<Test> {
    house::tests![
        proxy::a_real_balancer_carries_the_clients_address,
        allowlist::real_hosts_are_let_in_by_their_address_and_no_other,
        allowlist::t57_a_mapped_client_is_ipv4_and_no_ipv6_entry_lets_it_in,
        allowlist::a_refused_address_gets_an_alert_and_no_certificate,
        allowlist::sql_and_ui_are_opened_separately,
        allowlist::the_command_line_adds_the_address_that_its_machine_has,
        allowlist::a_client_that_does_not_read_is_cut_all_the_same,
        allowlist::whoever_is_cut_does_not_work_on_in_the_engine,
    ]
}

/// Tests that measure, and need the machine for themselves.
fn measured_between_hosts() -> Vec<Test> {
    house::tests![
        allowlist::t59_an_added_entry_holds_at_once_and_a_removed_one_cuts_within_200_ms,
        allowlist::t59_an_entry_that_ends_by_itself_cuts_within_200_ms,
        allowlist::t59_hundreds_of_sessions_are_cut_within_a_second_and_others_stay,
        allowlist::t59_nobody_slips_in_while_the_entry_is_being_removed,
    ]
}

fn main() -> std::process::ExitCode {
    world::prepare();
    let (mut side_by_side, mut alone) = (on_this_machine(), Vec::new());
    let others = (between_hosts(), measured_between_hosts());
    let impossible = match Hosts::missing() {
        None => {
            side_by_side.extend(others.0);
            alone.extend(others.1);
            None
        }
        Some(why) => Some(Impossible { tests: [others.0, others.1].concat(), why }),
    };
    let ended = house::runner::run_all(5, side_by_side, alone, impossible);
    if world::stop() { ended } else { std::process::ExitCode::FAILURE }
}
