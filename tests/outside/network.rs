//! Who reaches a cluster at all, by address and by way: allowlists from real hosts, doors behind balancers, private
//! endpoints, and every attack on them.

mod allowlist;
mod crowd;
mod endpoints;
mod existence;
mod proxy;
mod silence;
mod world;

use house::runner::Suite;
use house::{Hosts, tests};

pub(crate) use world::{cloud, cluster, stop};

/// Its tests.
pub(crate) fn suite() -> Suite {
    let missing = Hosts::missing();
    let hosts = missing.as_deref();
    Suite::new("network")
        .beside(tests![
            allowlist::an_allowlist_begins_closed_where_the_operator_says_so_and_has_a_most,
            proxy::t55_only_a_good_header_from_a_believed_peer_passes,
            proxy::t55_a_header_is_no_header_at_the_public_doors,
            proxy::t55_a_header_that_does_not_come_is_not_waited_for,
            proxy::t55_the_api_behind_a_balancer_goes_by_the_header_too,
            proxy::t56_the_allowlist_decides_on_the_headers_address,
            proxy::t59_a_balanced_clients_session_is_cut_by_the_headers_address,
            proxy::a_cancel_in_plaintext_is_nothing_behind_a_balancer,
            proxy::t67_failed_sign_ins_count_against_the_headers_address_and_not_the_balancer,
            endpoints::t54_every_cloud_s_endpoints_are_read_as_its_balancers_send_them,
            endpoints::t54_tlvs_that_no_cloud_sends_are_refused_and_break_nothing,
            endpoints::an_accepted_endpoint_needs_no_entry_and_opens_nothing_else,
            endpoints::endpoints_that_are_not_accepted_hear_the_same_whether_a_cluster_exists_or_not,
            endpoints::t56_each_door_goes_by_what_it_establishes_and_by_nothing_else,
            endpoints::an_endpoint_that_knocks_waits_to_be_accepted_and_there_is_a_most_of_them,
            endpoints::only_endpoints_of_trusted_owners_come_in,
            endpoints::the_command_line_takes_an_endpoint_from_its_knock_to_its_end,
            endpoints::a_cancel_over_an_endpoint_that_is_not_accepted_is_silent,
            endpoints::t48_a_connecting_proxy_is_known_by_the_key_that_it_holds,
            existence::t57_whom_no_cluster_lets_in_learns_from_no_door_which_clusters_exist,
            proxy::doors_behind_balancers_are_not_opened_without_peers_to_believe,
        ])
        .beside_unless(
            hosts,
            tests![
                proxy::a_real_balancer_carries_the_clients_address,
                endpoints::a_real_connecting_proxy_carries_psql_by_its_key,
                allowlist::real_hosts_are_let_in_by_their_address_and_no_other,
                allowlist::t57_a_mapped_client_is_ipv4_and_no_ipv6_entry_lets_it_in,
                allowlist::a_refused_address_gets_an_alert_and_no_certificate,
                allowlist::sql_and_ui_are_opened_separately,
                allowlist::the_command_line_adds_the_address_that_its_machine_has,
                allowlist::a_client_that_does_not_read_is_cut_all_the_same,
                allowlist::whoever_is_cut_does_not_work_on_in_the_engine,
                silence::a_client_that_vanished_holds_no_lock_for_longer_than_a_minute,
            ],
        )
        .alone_unless(
            hosts,
            tests![
                allowlist::t59_an_added_entry_holds_at_once_and_a_removed_one_cuts_within_200_ms,
                allowlist::t59_an_entry_that_ends_by_itself_cuts_within_200_ms,
                allowlist::t59_hundreds_of_sessions_are_cut_within_a_second_and_others_stay,
                endpoints::t59_rejecting_or_removing_an_endpoint_cuts_its_sessions_within_200_ms,
                crowd::t09_a_flood_of_silent_connections_keeps_nobody_from_elsewhere_out_of_sql,
                crowd::t09_those_of_the_crowded_network_go_and_whoever_came_before_them_stays,
                crowd::t09_a_flood_of_silent_http_2_connections_keeps_neither_the_operator_nor_others_out,
                crowd::t09_a_crowd_behind_the_balancer_keeps_nobody_out,
                crowd::an_api_connection_lives_for_seconds_until_it_has_shown_a_key,
                allowlist::t59_nobody_slips_in_while_the_entry_is_being_removed,
            ],
        )
}
