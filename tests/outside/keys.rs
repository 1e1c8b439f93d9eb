//! Encryption at rest and its keys, from outside: real key services, real clients, and whoever has the disk.

mod canaries;
mod credentials;
mod customer;
mod data_key;
mod outage;
mod revoked;
mod root;
mod shredded;
mod steps;
mod world;

use house::runner::Suite;
use house::tests;

/// Its tests.
pub(crate) fn suite() -> Suite {
    Suite::new("keys").first(tests![
        steps::every_step_in_the_source_has_a_test_that_stops_there,
        steps::kill_9_at_every_step_of_a_change_of_keys_loses_nothing,
        steps::kill_9_at_every_step_of_a_copy_loses_nothing,
        steps::kill_9_at_every_step_of_a_switch_loses_nothing,
        steps::kill_9_at_the_moments_of_a_switch_loses_nothing_with_gocryptfs_either,
        steps::kill_9_at_every_step_of_a_rotation_of_the_root_key_loses_nothing,
        root::a_lost_root_key_is_recovered_by_the_procedure_that_was_printed,
        root::a_backup_of_another_cloud_or_from_before_a_rotation_is_refused,
        root::a_root_key_under_a_passphrase_opens_with_the_right_one_alone,
        root::a_root_key_that_systemd_hands_over_opens_with_that_credential_alone,
        root::a_root_key_that_a_key_service_wraps_opens_while_the_service_permits_it,
        root::a_rotation_of_the_root_key_in_the_running_cloud_is_noticed_by_nobody,
        root::a_rotation_of_the_root_key_while_the_state_cannot_be_written_changes_nothing,
        outage::while_the_service_is_silent_what_runs_goes_on_and_what_sleeps_waits_for_it,
        outage::a_cluster_whose_service_was_silent_starts_by_itself_without_a_client,
        credentials::credentials_that_end_cut_nobody_and_what_sleeps_says_why_it_does_not_wake,
        credentials::a_typo_over_good_credentials_is_refused_and_cuts_nobody,
        credentials::a_typo_over_a_good_access_key_or_pin_is_refused_and_cuts_nobody,
        data_key::no_committed_row_is_lost_when_the_volume_gets_another_data_key_under_load,
        data_key::no_committed_row_is_lost_with_gocryptfs_either,
        data_key::a_sleeping_cluster_gets_another_data_key_and_sleeps_on,
        shredded::a_deleted_cluster_opens_from_no_copy_of_the_disk_and_its_neighbour_still_opens,
        shredded::a_deleted_cluster_opens_from_no_copy_with_gocryptfs_either,
        shredded::a_copy_of_everything_opens_nothing_once_the_customer_s_key_is_destroyed,
        shredded::a_wrapped_key_of_another_cluster_is_refused_and_named,
        shredded::an_old_wrapped_key_put_back_after_a_change_of_keys_is_refused_and_both_are_named,
        revoked::a_revoked_key_cuts_sessions_and_locks_until_the_customer_gives_it_back,
        revoked::a_revoked_key_of_a_dedicated_cluster_locks_it_too,
        revoked::a_revoked_key_locks_with_gocryptfs_too,
        revoked::a_key_that_the_service_takes_away_locks_and_comes_back_by_itself,
        revoked::a_key_that_the_service_takes_away_locks_a_dedicated_cluster_too,
        revoked::a_revocation_that_the_service_shares_ends_when_the_service_gives_the_key_back,
        revoked::a_disabled_key_of_aws_locks_and_comes_back_when_it_is_enabled,
        revoked::neither_a_restart_nor_a_kill_brings_a_revoked_cluster_up,
        canaries::what_a_tenant_wrote_is_in_plaintext_nowhere_on_a_stopped_machine,
        canaries::what_a_tenant_wrote_is_in_plaintext_nowhere_with_gocryptfs_either,
        canaries::the_same_search_finds_every_canary_where_nothing_is_encrypted,
        canaries::t43_what_signs_in_at_key_services_is_in_no_answer_no_log_and_no_file,
        canaries::memory_is_in_no_core_file_and_not_in_the_swap,
        canaries::a_state_file_in_which_a_bit_turned_is_refused_and_named,
        canaries::bits_that_turned_below_the_encryption_serve_no_wrong_row,
        canaries::bits_that_turned_below_gocryptfs_serve_no_wrong_row,
        customer::a_key_of_vault_lives_and_goes_under_an_open_session,
        customer::a_key_of_vault_lives_and_goes_with_gocryptfs_too,
        customer::a_key_of_aws_lives_and_goes_under_an_open_session,
        customer::a_key_in_a_security_module_lives_and_goes_under_an_open_session,
        customer::a_new_version_of_a_key_rewrites_the_key_file_and_no_data,
        customer::a_new_version_of_a_key_rewrites_no_data_with_gocryptfs_either,
        customer::a_key_that_cannot_be_used_is_not_gone_over_to,
    ])
}

pub(crate) use world::stop;
