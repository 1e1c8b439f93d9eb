//! Every way to prove who one is, and every attack on it: rules, certificates, tokens, browsers, passwords, the throttle.

mod browser;
mod certificates;
mod drivers;
mod fixtures;
mod oauthbearer;
mod passwords;
mod places;
mod providers;
mod provisioning;
mod revocation;
mod rules;
mod stapling;
mod throttle;
mod timing;
mod tokens;

use house::runner::Suite;
use house::shared::Shared;
use house::{Cloud, Cluster, Options, tests};

/// Its tests.
pub(crate) fn suite() -> Suite {
    Suite::new("sign_in")
        .first(tests![
            browser::t53_a_ticket_lapses_and_dies_with_its_client,
            browser::a_provider_that_lies_signs_nobody_in,
            browser::rules_that_change_while_somebody_waits_count,
            places::t70_ten_thousand_sign_ins_from_a_person_s_own_network_take_nobody_s_place,
            places::ten_addresses_do_not_hold_all_places_at_a_cluster,
            browser::the_web_lets_in_only_where_a_token_would_be_let_into_sql,
            tokens::t50_rotated_keys_are_found_and_unknown_ones_ask_once,
            throttle::refusals_grow_and_end,
            throttle::t67_guessing_is_refused_and_the_owner_gets_in_from_elsewhere,
            tokens::t51_a_provider_that_misbehaves_costs_nothing,
            throttle::the_throttle_bites_before_any_expensive_work,
            throttle::t70_made_up_names_cost_no_memory_and_flush_nothing,
        ])
        .beside(tests![
            fixtures::the_authority_signs_what_it_is_told_to,
            fixtures::the_responder_answers_and_misbehaves_as_told,
            fixtures::the_provider_mints_good_and_bad_tokens,
            fixtures::a_person_signs_in_at_the_provider_with_a_browser,
            rules::the_default_lets_passwords_in_by_scram,
            rules::the_first_rule_that_matches_decides,
            rules::rules_hold_at_once_for_new_connections_and_leave_open_ones,
            rules::rules_choose_by_database,
            rules::a_letter_more_than_the_engine_takes_passes_no_rule,
            rules::rules_choose_by_membership,
            rules::rules_choose_by_address_and_user,
            rules::a_password_in_clear_is_checked_like_one_by_scram,
            rules::mistakes_are_refused_with_their_place_and_change_nothing,
            rules::rules_of_one_cluster_are_not_those_of_another,
            rules::t40_no_rule_lets_anybody_be_one_of_the_house,
            rules::the_command_line_shows_sets_and_tests_rules,
            certificates::t44_only_the_right_certificate_passes_in_every_mode,
            certificates::t44_a_certificate_never_makes_one_of_the_house,
            certificates::t44_our_own_certificates_are_nobodys_on_the_sql_port,
            certificates::texts_that_are_no_authorities_are_refused_and_change_nothing,
            certificates::t47_authorities_are_replaced_bundled_and_deleted_at_once,
            certificates::t48_a_certificate_without_its_key_is_worth_nothing,
            certificates::names_come_from_the_subject_or_a_san_by_the_map,
            certificates::t44_an_authority_with_name_constraints_names_nobody_beyond_them,
            certificates::a_certificate_needs_a_user_that_may_sign_in,
            revocation::t45_good_revoked_and_unknown_in_every_mode,
            revocation::t45_answers_that_cannot_be_trusted_count_as_none,
            revocation::t45_a_hanging_responder_costs_the_timeout_once_and_nobody_else,
            revocation::t45_without_a_responder_strict_refuses_unless_told_otherwise,
            revocation::t45_several_responders_are_asked_in_order,
            revocation::t45_every_certificate_of_the_chain_is_asked_for,
            revocation::t45_answers_are_kept_as_long_as_they_say,
            revocation::t45_a_list_refuses_whom_it_names_and_a_stale_one_everybody,
            revocation::t45_every_authority_of_a_chain_needs_a_list_where_lists_are_set,
            revocation::t46_a_session_ends_within_five_seconds_when_its_certificate_is_revoked,
            revocation::t46_a_session_ends_when_its_certificate_comes_on_a_list_or_expires,
            revocation::a_stranger_never_makes_us_ask_anybody,
            revocation::the_command_line_sets_revocation,
            drivers::clients_sign_in_with_certificates,
            drivers::clients_sign_in_with_tokens,
            tokens::t49_a_good_token_signs_in_as_a_password,
            tokens::t49_good_tokens_come_in_many_forms,
            tokens::t49_forged_and_unfit_tokens_are_refused,
            tokens::t49_a_token_is_for_one_user_and_never_for_the_house,
            tokens::t49_providers_belong_to_their_cluster_and_rules_may_name_one,
            tokens::given_keys_need_no_look_outside,
            tokens::t51_addresses_inside_are_not_reached_unless_the_operator_opens_them,
            tokens::a_provider_that_is_down_at_first_is_asked_again,
            tokens::t52_a_client_cannot_say_what_only_the_gateway_knows,
            tokens::t43_tokens_and_client_secrets_are_shown_to_nobody,
            tokens::wrong_settings_of_a_provider_are_refused,
            providers::a_mistake_over_a_good_provider_is_refused_and_sign_ins_go_on,
            tokens::a_map_for_certificates_is_not_for_tokens,
            oauthbearer::a_good_token_signs_in,
            oauthbearer::without_a_token_the_client_learns_where_to_get_one,
            oauthbearer::bad_tokens_are_told_where_to_get_a_good_one_and_refused,
            oauthbearer::words_that_bend_the_rules_are_refused,
            oauthbearer::libpq_18_signs_in_with_a_token,
            browser::t53_psql_waits_while_its_person_signs_in_with_a_browser,
            browser::a_client_that_waits_wakes_its_cluster_only_when_its_person_has_signed_in,
            browser::another_person_does_not_sign_in_for_the_user,
            browser::t53_a_ticket_is_used_once_and_cannot_be_guessed,
            browser::t53_whoever_waits_is_bound_to_the_browser_that_began,
            browser::t53_one_ticket_never_completes_another,
            browser::nobody_waits_where_no_provider_is_for_browsers,
            browser::pages_are_plain_and_closed,
            browser::the_web_side_makes_a_session_and_ends_it,
            provisioning::groups_are_granted_and_revoked_at_each_sign_in,
            provisioning::a_group_s_role_is_no_user_that_a_token_could_be,
            provisioning::a_rule_about_a_role_counts_at_the_sign_in_that_gives_the_role,
            provisioning::an_empty_list_of_groups_refuses,
            provisioning::users_are_made_at_the_first_sign_in_where_the_operator_allows_it,
            provisioning::a_person_is_made_in_the_browser_with_groups_from_userinfo,
            provisioning::a_made_user_that_is_dropped_is_gone_until_it_is_made_again,
            stapling::our_own_certificate_comes_with_an_answer_of_its_responder,
            throttle::a_neighbour_behind_the_same_address_does_not_lock_its_user_out,
            throttle::t66_only_wrong_proofs_are_counted,
            throttle::the_throttle_is_listed_for_people_and_cleared,
            throttle::the_defaults_bite,
            passwords::common_and_guessable_passwords_are_refused,
            passwords::generated_passwords_are_good_and_never_the_same,
            passwords::t39_a_password_changed_by_sql_is_in_force_also_when_the_cluster_sleeps,
            passwords::t39_psqls_own_password_command_works,
            passwords::a_password_ends_when_it_says_also_while_the_cluster_sleeps,
            passwords::t43_a_password_in_a_statement_stands_in_no_log,
        ])
        .alone(tests![timing::t31_no_way_to_sign_in_tells_by_time_whether_a_user_exists,])
}

/// The providers and responders of these tests are on this machine.
static SHARED: Shared =
    Shared::new(|| Options::unencrypted(&["--fetch-allow", "127.0.0.0/8", "--revocation-every", "1s"]));

/// The cloud that these tests share.
pub(crate) fn cloud() -> &'static Cloud {
    SHARED.cloud()
}

/// A cluster of it.
pub(crate) fn cluster() -> &'static Cluster<'static> {
    SHARED.cluster()
}

/// Stops the cloud and says whether it left nothing behind.
pub(crate) fn stop() -> bool {
    SHARED.stop()
}
