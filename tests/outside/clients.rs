//! Real clients against a real cluster, one shared cloud for all.

mod bulk;
mod drivers;
mod libpq;

use house::runner::Suite;
use house::tests;

/// Its tests.
pub(crate) fn suite() -> Suite {
    Suite::new("clients")
        .beside(tests![
            libpq::sslmode_disable_is_refused,
            libpq::sslmode_allow_is_only_ever_served_in_tls,
            libpq::sslmodes_prefer_and_stronger_work,
            libpq::verify_full_by_the_clusters_own_name_works,
            libpq::a_client_that_trusts_others_refuses_us,
            libpq::tls_1_2_is_refused_to_psql,
            libpq::channel_binding_can_be_required,
            libpq::direct_tls_works_where_libpq_has_it,
            libpq::the_pasted_url_signs_in,
            libpq::wrong_password_unknown_user_and_unknown_cluster_read_alike,
            libpq::createdb_and_dropdb_and_whoever_opens_the_database_postgres_first_work,
            libpq::a_client_certificate_of_x509_version_1_counts_as_none,
            libpq::a_dump_restores_to_the_same_dump,
            libpq::control_c_in_psql_cancels_also_where_libpq_sends_it_in_plaintext,
            drivers::psycopg_works,
            drivers::asyncpg_works,
            drivers::sqlalchemy_works,
            drivers::node_postgres_works,
            drivers::jdbc_works,
            drivers::tokio_postgres_works,
        ])
        .alone(tests![
            libpq::pgbench_runs_with_fifty_clients,
            bulk::copy_of_a_gigabyte_in_and_out_keeps_memory_flat,
        ])
}
