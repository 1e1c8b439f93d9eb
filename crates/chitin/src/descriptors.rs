//! Descriptors: every connection needs one, and connections that nobody has signed in on must leave enough for the others.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections without a sign-in that doors hold, at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Each SQL door that is not inside a private network, and all that are together.
    pub sql: usize,
    /// Of these, the SQL doors inside one private network.
    pub sql_private: usize,
    /// Each door of the API and of the pages.
    pub http: usize,
}

/// Lets this program have as many as the machine allows.
pub fn raise() {
    let files = getrlimit(Resource::Nofile);
    if let Err(cause) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        tracing::warn!(%cause, "the bound on open files could not be raised");
    }
}

/// What the doors may hold with the bound that there is now.
pub fn shares() -> Shares {
    of(getrlimit(Resource::Nofile).current)
}

/// The four SQL doors, and those inside of private networks as a fifth, take five eighths of the descriptors at the most.
fn of(bound: Option<u64>) -> Shares {
    let settings = gateway::Settings::default();
    let share = |most: usize, part: u64| {
        bound.map_or(most, |bound| usize::try_from(bound / part).unwrap_or(most).clamp(1, most))
    };
    Shares {
        sql: share(settings.unauthenticated_max, 8),
        sql_private: share(settings.unauthenticated_per_network_max, 64),
        http: share(HTTP_MAX, 32),
    }
}

const HTTP_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_leave_descriptors_for_those_who_have_signed_in() {
        let all = Shares { sql: 16_384, sql_private: 1_024, http: 1_024 };
        assert_eq!([of(None), of(Some(1_048_576))], [all, all]);
        for bound in [1_024, 4_096, 65_536] {
            let Shares { sql, sql_private, http } = of(Some(bound));
            // As many doors as there are outside of private networks, and those inside together; the API holds as many with
            // a key besides.
            let all = 5 * sql + 2 * 2 * http;
            assert!(sql_private <= sql);
            assert!(sql > 0 && sql_private > 0 && http > 0 && all as u64 * 4 <= bound * 3, "{bound}");
        }
    }
}
