//! Encryption at rest and its keys, from outside: real key services, real clients, and whoever has the disk.

#[path = "keys/customer.rs"]
mod customer;
#[path = "keys/outage.rs"]
mod outage;
#[path = "keys/revoked.rs"]
mod revoked;
#[path = "keys/world.rs"]
mod world;

fn all() -> Vec<house::runner::Test> {
    house::tests![
        // First those that wait for long, so that the others run meanwhile.
        outage::while_the_service_is_silent_what_runs_goes_on_and_what_sleeps_waits_for_it,
        outage::a_cluster_whose_service_was_silent_starts_by_itself_without_a_client,
        revoked::neither_a_restart_nor_a_kill_brings_a_revoked_cluster_up,
        revoked::a_revoked_key_cuts_sessions_and_locks_until_the_customer_gives_it_back,
        revoked::a_revoked_key_of_a_dedicated_cluster_locks_it_too,
        revoked::a_revoked_key_locks_with_gocryptfs_too,
        revoked::a_key_that_the_service_takes_away_locks_and_comes_back_by_itself,
        revoked::a_key_that_the_service_takes_away_locks_a_dedicated_cluster_too,
        revoked::a_revocation_that_the_service_shares_ends_when_the_service_gives_the_key_back,
        revoked::a_disabled_key_of_aws_locks_and_comes_back_when_it_is_enabled,
        customer::a_key_of_vault_lives_and_goes_under_an_open_session,
        customer::a_key_of_vault_lives_and_goes_with_gocryptfs_too,
        customer::a_key_of_aws_lives_and_goes_under_an_open_session,
        customer::a_key_in_a_security_module_lives_and_goes_under_an_open_session,
        customer::a_new_version_of_a_key_rewrites_the_key_file_and_no_data,
        customer::a_new_version_of_a_key_rewrites_no_data_with_gocryptfs_either,
        customer::a_key_that_cannot_be_used_is_not_gone_over_to,
    ]
}

fn main() -> std::process::ExitCode {
    let ended = house::runner::run_by(5, all(), Vec::new());
    if world::stop() { ended } else { std::process::ExitCode::FAILURE }
}
