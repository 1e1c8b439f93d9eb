//! Settings of our own sessions, pinned at their start so that no tenant steers or sees them.
//!
//! What a session's start sets wins over `ALTER DATABASE ... SET` and `ALTER ROLE ... SET` (PostgreSQL's manual, 20.1.3).
//! A tenant can so give a value to everything of the context `user` in `pg_settings`, and to nothing of the others.
//! Settings that only choose plans, sizes and formats are left alone; a test goes through all that an engine has.

/// Those that every version from 14 to 18 has.
const PINNED: &[(&str, &str)] = &[
    // What others see of us: `pg_stat_activity` would show statements with verifiers to everybody in `pg_monitor`, and
    // parse trees would go to the log.
    ("track_activities", "off"),
    ("debug_print_parse", "off"),
    ("debug_print_plan", "off"),
    ("debug_print_rewritten", "off"),
    ("log_parameter_max_length_on_error", "0"),
    ("client_min_messages", "error"),
    // Code that would run in our session, or keep it from starting.
    ("local_preload_libraries", ""),
    ("session_preload_libraries", ""),
    // As whom, and what names mean. Temporary objects come last: they are for whoever made them.
    ("role", "none"),
    ("search_path", "pg_catalog,pg_temp"),
    ("row_security", "on"),
    ("session_replication_role", "origin"),
    ("check_function_bodies", "on"),
    // What a text means.
    ("standard_conforming_strings", "on"),
    ("backslash_quote", "safe_encoding"),
    ("array_nulls", "on"),
    ("transform_null_equals", "off"),
    ("bytea_output", "hex"),
    // Whether a statement works, and whether its effect stays after a crash.
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("synchronous_commit", "on"),
    ("exit_on_error", "off"),
    ("default_tablespace", ""),
    ("temp_tablespaces", ""),
    ("default_table_access_method", "heap"),
    // How long it may take.
    ("statement_timeout", "60s"),
    ("lock_timeout", "20s"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("client_connection_check_interval", "0"),
];

/// Those that some versions have. A session that names one to an engine without it does not start.
const LATER: &[(&str, &str)] = &[
    ("transaction_timeout", "0"),
    ("event_triggers", "off"),
    ("restrict_nonsystem_relation_kind", ""),
    ("createrole_self_grant", ""),
    ("debug_parallel_query", "off"),
    ("force_parallel_mode", "off"),
    ("debug_print_raw_parse", "off"),
];

/// For a session in a database that no tenant has.
pub(crate) fn options() -> String {
    written(PINNED.iter())
}

/// The names of all settings that our own sessions pin, where an engine has them.
pub fn pinned_settings() -> Vec<&'static str> {
    PINNED.iter().chain(LATER).map(|(name, _)| *name).collect()
}

/// The names that [`options_with`] wants to know of, whether the engine has them.
pub(crate) fn later() -> Vec<&'static str> {
    LATER.iter().map(|(name, _)| *name).collect()
}

/// For a session in any database of an engine that has these settings.
pub(crate) fn options_with(has: &[String]) -> String {
    written(PINNED.iter().chain(LATER.iter().filter(|(name, _)| has.iter().any(|known| known == name))))
}

fn written<'a>(settings: impl Iterator<Item = &'a (&'a str, &'a str)>) -> String {
    // A backslash keeps a blank in its word (PostgreSQL's `pg_split_opts`).
    settings
        .map(|(name, value)| format!("-c {name}={}", value.replace(' ', "\\ ")))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_named_only_to_an_engine_that_has_it() {
        assert!(options().contains("-c track_activities=off -c"));
        assert!(options().contains("default_transaction_isolation=read\\ committed"));
        assert!(LATER.iter().all(|(name, _)| !options().contains(name)));
        let with = options_with(&["transaction_timeout".to_owned(), "unknown".to_owned()]);
        assert_eq!(with, format!("{} -c transaction_timeout=0", options()));
    }
}
