//! Clusters in networks of their own, joined with others, and what leaves them: real programs in network namespaces.

mod clusters;
mod egress;
mod peering;
mod wireguard;
mod world;

use house::runner::Suite;
use house::{Hosts, tests};

/// Its tests.
pub(crate) fn suite() -> Suite {
    let missing = Hosts::missing();
    let hosts = missing.as_deref();
    Suite::new("private").first_unless(
        hosts,
        tests![
            peering::networks_are_made_again_after_every_end_and_whenever_somebody_removes_a_link,
            peering::t73_a_peering_that_is_deleted_cuts_its_sessions_and_leaves_nothing,
            peering::two_clouds_use_the_same_addresses_and_neither_sees_the_other,
            peering::a_peering_with_a_namespace_that_is_not_there_fails_with_a_reason_and_follows_by_itself,
            peering::nothing_passes_before_a_peering_is_accepted_and_then_the_front_doors_two_ports,
            peering::a_bridge_and_an_interface_lead_to_the_front_door_and_to_nothing_else,
            peering::clients_behind_a_peering_come_in_from_its_ranges_only,
            peering::ranges_that_lead_to_two_places_are_refused,
            wireguard::psql_goes_through_a_tunnel_and_the_internet_sees_nothing_but_wireguard,
            wireguard::t54_a_tunnel_with_another_key_gets_nothing,
            wireguard::t59_a_tunnel_s_peer_is_a_private_endpoint_that_can_be_rejected,
            wireguard::a_peering_on_this_machine_carries_tls_and_nothing_in_plaintext,
            egress::t51_only_the_named_host_and_port_are_asked_and_everything_else_fails_closed,
            egress::t51_a_responder_that_is_permitted_redirects_to_nowhere,
            egress::t51_a_policy_counts_at_once_also_for_what_is_under_way,
            clusters::t59_a_cluster_that_becomes_private_cuts_public_sessions_and_goes_back,
            clusters::t57_a_private_cluster_looks_from_outside_like_one_that_does_not_exist,
            clusters::the_pages_of_a_private_cluster_are_in_its_network_only_and_the_api_is_not_there,
            clusters::t64_cancel_keys_of_private_sessions_do_nothing_at_the_public_door,
            clusters::inside_the_certificate_is_for_the_address_and_the_name_and_the_url_works_as_it_is,
            clusters::another_private_clusters_network_leads_to_no_other_cluster,
            clusters::t73_a_private_cluster_sleeps_and_wakes_by_a_sign_in_from_inside,
            clusters::ranges_that_cannot_be_a_private_network_are_refused_with_the_next_step,
        ],
    )
}

/// Stops what the tests share and says whether nothing was left behind.
pub(crate) fn stop() -> bool {
    // Both, whatever becomes of the first.
    let are_clean = [world::stop(), egress::stop()];
    are_clean.iter().all(|is_clean| *is_clean)
}
