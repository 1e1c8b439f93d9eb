//! The gateway under attack: raw bytes from outside against the real program, one shared cloud for all.

mod cancel;
mod crowd;
mod forms;
mod hello;
mod poison;
mod relay;
mod rights;
mod sign_in;
mod startup;

use house::runner::Suite;
use house::tests;

/// Its tests.
pub(crate) fn suite() -> Suite {
    Suite::new("wire")
        .beside(tests![
            hello::plaintext_startup_is_refused,
            hello::t01_a_query_stuffed_behind_ssl_request_is_never_read,
            hello::t01_tls_bytes_in_the_same_segment_as_ssl_request_are_refused,
            hello::t03_gss_encryption_is_declined_and_never_opens_plaintext,
            hello::t03_gss_then_tls_still_works_for_an_honest_client,
            hello::t04_a_second_ssl_request_is_refused_before_and_inside_tls,
            hello::t05_direct_tls_needs_the_postgresql_protocol,
            hello::direct_tls_signs_in_and_answers,
            hello::t06_tls_1_2_gets_an_alert,
            hello::t06_early_data_is_never_accepted,
            hello::the_first_key_exchange_is_the_hybrid_one,
            hello::t08_a_client_hello_in_one_byte_records_is_no_panic,
            hello::a_client_that_stops_after_the_handshake_is_dropped,
            hello::t16_startup_packets_with_impossible_lengths_are_closed_at_once,
            hello::t16_messages_before_startup_are_refused,
            startup::every_documented_way_to_name_the_cluster_works,
            startup::a_client_that_names_no_cluster_is_told_so,
            startup::contradicting_cluster_names_are_refused,
            startup::a_wrong_name_with_a_right_number_is_nobody,
            startup::t17_names_beyond_the_limit_get_a_defined_error,
            startup::t17_long_passwords_sign_in_and_oversized_proofs_do_not,
            startup::t21_malformed_parameter_lists_are_refused,
            startup::t21_a_million_parameters_are_closed_unread,
            startup::t22_protocol_negotiation_is_answered_exactly_once,
            startup::other_protocol_versions_are_refused,
            startup::t40_users_that_are_not_people_never_sign_in,
            startup::a_database_that_does_not_exist_is_told_after_sign_in_only,
            startup::t41_startup_parameters_cannot_reach_beyond_the_allowed_list,
            sign_in::both_mechanisms_are_offered_and_both_work,
            sign_in::a_wrong_password_an_unknown_user_and_an_unknown_cluster_look_alike,
            sign_in::t13_sasl_messages_with_wrong_lengths_are_protocol_errors,
            sign_in::t25_sign_in_byte_by_byte_succeeds,
            sign_in::t27_plus_without_channel_binding_is_refused,
            sign_in::t28_saying_that_the_server_has_no_plus_is_a_downgrade,
            sign_in::t29_another_certificate_does_not_match_the_binding,
            sign_in::t31_the_stand_in_for_unknown_people_is_steady,
            forms::t31_iterations_and_salts_of_any_form_tell_nobody_who_exists,
            sign_in::t32_iterations_above_the_ceiling_are_refused,
            sign_in::t33_salts_and_iterations_of_every_reasonable_kind_sign_in,
            sign_in::t34_anything_else_between_sasl_messages_is_refused,
            sign_in::t35_scram_messages_that_bend_the_rules_are_refused,
            sign_in::t35_a_replayed_exchange_is_refused,
            sign_in::t36_a_right_password_never_helps_a_wrong_one,
            sign_in::t37_the_same_user_in_two_clusters_never_crosses,
            sign_in::t39_a_new_password_works_at_once_and_the_old_one_never_again,
            sign_in::a_name_with_quotes_and_spaces_signs_in_as_exactly_itself,
            sign_in::t43_the_most_verbose_log_holds_no_secret,
            sign_in::a_sign_in_that_is_repeated_on_the_same_connection_is_refused,
            sign_in::the_server_proves_that_it_knows_the_password,
            relay::a_session_is_exactly_its_user,
            relay::pipelined_statements_answer_in_order,
            relay::an_error_in_a_pipeline_skips_to_sync_and_no_further,
            relay::rows_of_fifty_megabytes_pass_unchanged,
            relay::notifications_reach_an_idle_listener,
            relay::notices_and_changed_parameters_pass,
            relay::t18_lengths_that_wrap_never_hide_a_message,
            relay::t19_negative_field_lengths_are_protocol_errors,
            relay::t24_copy_data_after_a_failed_copy_leaves_the_session_clean,
            relay::copy_in_and_out_is_the_same,
            relay::terminate_ends_the_session_in_the_engine_too,
            relay::a_client_that_vanishes_frees_its_session_in_the_engine,
            relay::t23_a_killed_session_ends_at_a_frame_boundary,
            cancel::a_cancel_from_another_connection_stops_the_statement,
            cancel::t62_cancel_keys_are_the_gateways_own_and_never_collide,
            cancel::t63_only_the_issued_key_works,
            cancel::t64_a_cancel_in_plaintext_counts_from_the_session_s_own_address_only_and_where_it_may,
            cancel::no_key_leads_outside_of_the_cluster_that_the_connection_names,
            cancel::the_process_that_a_client_is_told_is_its_own_for_every_function_of_postgresql,
            rights::t74_nobody_becomes_superuser_or_reaches_the_machine,
            rights::t74_the_creator_of_a_role_cannot_grant_itself_into_the_house,
            rights::users_of_the_api_are_members_of_admin_and_can_work,
            rights::what_graphical_clients_ask_of_the_catalog_is_answered,
            rights::t72_a_user_over_its_limit_is_refused_and_nobody_else,
            rights::the_engine_has_no_network_and_no_shell,
        ])
        .alone(tests![
            hello::t07_close_notify_right_after_client_hello_does_not_spin,
            hello::t09_thousands_of_silent_sockets_do_not_keep_others_out,
            hello::t10_aborted_handshakes_leak_nothing,
            hello::t20_a_cancel_request_that_claims_two_gigabytes_is_closed_at_once,
            sign_in::t31_refusals_take_the_same_time_whoever_asks,
            forms::t31_many_who_ask_at_once_do_not_make_a_running_cluster_show,
            poison::t31_a_tenant_with_a_slow_engine_makes_no_other_cluster_show,
            sign_in::t38_expired_disabled_and_dropped_roles_are_refused_within_a_second,
            relay::t18_a_long_statement_claimed_and_not_sent_costs_no_memory,
            relay::a_client_that_does_not_read_costs_bounded_memory,
            cancel::t60_a_late_cancel_never_hits_another_session,
            cancel::t61_a_flood_of_wrong_cancels_leaves_room_for_queries_and_sign_ins,
            cancel::t65_right_and_wrong_keys_close_in_the_same_time,
            crowd::t26_thousands_of_sign_ins_leave_memory_flat,
            crowd::t70_made_up_names_are_forgotten,
            crowd::t71_clients_that_die_at_any_step_free_everything,
            crowd::two_thousand_idle_connections_are_held_and_all_answer,
        ])
}
