//! A cloud's life: commands, sleeping, crashes, allowlists, certificates. Most tests have a cloud of their own.

mod admit;
mod answers;
mod claimed;
mod connections;
mod crash;
mod isolation;
mod killed;
mod names;
mod operator;
mod planted;
mod power;
mod program;
mod resources;
mod roles;
mod silent;
mod stops;
mod storage;
mod versions;
mod volumes;

use house::runner::Suite;
use house::tests;

/// Its tests.
pub(crate) fn suite() -> Suite {
    Suite::new("life")
        .beside(tests![
            power::an_idle_serverless_cluster_sleeps_and_a_sign_in_wakes_it,
            power::t68_failed_sign_ins_never_wake_a_sleeping_cluster,
            power::a_sleeping_clusters_files_cannot_be_read,
            power::t73_sleep_and_delete_take_effect_at_once,
            crash::kill_9_of_chitin_under_load_loses_no_acknowledged_commit,
            crash::t23_kill_9_of_the_engine_under_load_loses_no_acknowledged_commit,
            crash::a_crashed_session_of_the_engine_is_survived,
            crash::kill_9_while_a_cluster_is_made_leaves_nothing_half_made,
            crash::kill_9_while_a_cluster_is_deleted_finishes_the_deletion,
            crash::a_restart_keeps_clusters_users_and_rows,
            crash::a_stop_drains_and_tells_open_sessions,
            claimed::a_second_start_is_refused_whatever_was_removed_and_the_first_one_s_sessions_live_on,
            claimed::a_start_in_another_folder_at_the_same_place_leaves_the_first_one_s_engines_alive,
            claimed::nothing_is_cleared_while_the_folder_or_the_state_is_locked_by_somebody,
            claimed::a_start_waits_for_a_companion_whose_lock_file_was_removed,
            stops::what_six_creates_are_told_at_a_stop_is_what_exists_afterwards,
            stops::a_request_in_flight_at_a_stop_is_answered_and_a_new_one_is_refused_in_words,
            stops::a_second_signal_is_no_error_and_does_not_wait_for_sessions,
            stops::a_stop_that_cannot_lock_a_volume_says_so_and_ends_with_an_error,
            stops::a_stop_whose_data_directory_was_moved_says_what_the_kernel_has_unlocked,
            stops::a_cluster_whose_volume_somebody_holds_is_not_asleep_until_it_is_locked,
            isolation::who_signs_in_to_an_engine_that_was_taken_over_is_led_to_no_other,
            storage::a_full_cluster_is_told_refuses_what_grows_and_grows_when_it_may,
            storage::a_file_system_that_went_read_only_is_checked_and_comes_back_by_itself,
            storage::a_cluster_that_no_file_system_holds_back_is_stopped_from_writing_in_time,
            roles::an_engine_that_cannot_be_asked_lets_nobody_in_and_tells_nobody_apart,
            roles::after_a_crash_nobody_signs_in_by_a_password_from_before,
            connections::a_cluster_has_the_sessions_that_were_asked_for_and_no_more,
            connections::a_cluster_that_used_up_its_sessions_has_more_after_its_next_start,
            answers::an_engine_that_lives_and_does_not_answer_is_started_again,
            answers::a_session_that_was_stopped_holds_up_neither_sleep_nor_deletion,
            admit::t12_a_stricter_allowlist_ends_old_sessions_within_a_second,
            admit::t57_a_dedicated_cluster_begins_closed_and_bad_rules_are_refused,
            admit::t58_what_is_closed_stays_closed_and_no_text_shows_the_inside,
            admit::t64_a_cancel_from_outside_the_allowlist_or_for_another_cluster_is_silent,
            operator::the_operator_s_socket_is_the_owner_s_alone_and_asks_for_the_key,
            operator::commands_use_the_operator_s_socket_by_themselves_also_by_a_long_path,
            operator::a_cloud_whose_data_directory_has_a_longer_path_than_a_socket_s_works_as_any,
            operator::a_process_in_another_namespace_is_refused_at_the_operator_s_socket_though_it_has_the_key,
            planted::a_planted_data_directory_gets_nobody_s_key,
            planted::a_planted_root_certificate_gets_nobody_s_key,
            planted::a_cloud_is_not_started_where_somebody_else_can_exchange_its_folder,
            names::a_name_forges_no_row_of_a_table,
            names::a_name_forges_no_field_of_a_log_line,
            names::titles_of_processes_show_no_user_no_database_and_no_statement,
            names::a_rejected_api_key_leaves_a_trace_without_the_key,
            volumes::a_folder_that_names_another_volume_is_refused_and_alarms,
            volumes::a_folder_that_names_another_volume_while_its_engine_runs_is_told_and_the_engine_goes_on,
            volumes::an_older_copy_of_a_volume_is_told_also_when_it_never_slept,
            volumes::without_encryption_a_cloud_starts_and_makes_no_cluster,
            volumes::a_cluster_without_encryption_never_starts_without_the_operator_s_word,
            volumes::what_new_clusters_are_copied_from_is_believed_by_the_state_alone,
            volumes::an_older_copy_of_a_volume_starts_only_when_it_is_accepted,
            volumes::a_killed_cloud_starts_with_the_files_that_it_had,
            killed::a_killed_cloud_leaves_nothing_unlocked,
            killed::a_cloud_that_is_killed_and_started_at_once_again_and_again_never_meets_its_companion,
            killed::a_companion_that_is_killed_is_said_and_replaced_and_locks_everything_all_the_same,
            killed::a_gocryptfs_that_stands_still_is_told_and_goes_on,
            killed::a_gocryptfs_that_is_killed_is_noticed_and_its_cluster_comes_back_by_itself,
            killed::an_idle_session_hears_that_the_volume_was_lost,
            program::verify_proves_every_row,
            program::verify_calls_missing_and_not_failed_what_nobody_encrypts,
            program::what_verify_made_for_itself_goes_when_it_is_killed,
            program::exit_codes_tell_what_happened,
            program::every_list_is_json_when_asked,
            program::databases_and_users_come_and_go,
            program::chitin_sql_runs_psql_with_the_right_settings,
            program::files_with_secrets_are_for_the_owner_only,
            program::delete_protection_holds,
            program::help_teaches_and_completions_exist,
            program::a_second_start_over_the_same_data_is_refused,
            program::the_api_needs_a_key_and_tls_1_3,
            program::the_certificate_names_the_host_and_every_cluster,
            program::t47_a_new_certificate_is_taken_without_a_restart_and_a_broken_one_is_not,
            program::t30_certificates_of_every_kind_sign_in,
            program::t29_a_man_in_the_middle_without_plus_is_noticed_by_the_client,
            program::an_idle_client_is_ended_after_the_idle_timeout,
            silent::clients_that_do_nothing_when_it_is_their_turn_are_idle_and_hold_no_lock,
            silent::a_result_that_nobody_takes_ends_the_session_and_one_that_is_taken_slowly_does_not,
            silent::a_longer_time_for_a_result_is_longer_than_the_kernel_s_own,
            silent::clients_that_do_nothing_hold_up_no_stop,
        ])
        .beside_unless(
            house::postgres::missing(),
            tests![
                versions::every_version_runs_beside_the_others_and_each_cluster_stays_with_its_own,
                versions::a_cluster_whose_version_is_gone_says_so_and_comes_back_with_it,
                versions::a_newer_version_that_is_installed_later_is_for_new_clusters_alone,
                versions::a_minor_update_is_told_and_is_taken_at_the_next_start,
                versions::a_folder_that_others_may_write_to_is_not_used_and_says_so,
            ],
        )
        .alone(tests![
            resources::a_cluster_that_eats_memory_loses_its_own_sessions_and_says_so,
            resources::a_cluster_that_never_rests_has_no_more_processors_than_its_own,
            resources::a_cluster_that_writes_without_end_has_no_more_of_the_disk_than_its_own,
            resources::engines_leave_a_reserve_and_an_engine_has_so_many_processes,
            power::t69_a_hundred_sign_ins_at_once_are_one_start,
            power::the_first_answer_of_a_sleeping_cluster_is_quick,
            admit::t59_an_allowlist_entry_opens_and_its_removal_cuts_open_sessions,
        ])
}
