//! Descriptors: every connection needs one, and there are as many as the limit on open files says. Each kind of connection has
//! its share, so that none of them takes what the API and the engines need.

use engine::Capability;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::StartOptions;

/// Listeners that share what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// For SQL, outside of private networks.
    pub sql: usize,
    /// For the API and the pages, outside of private networks, without the operator's socket.
    pub http: usize,
}

/// What the program may open, and who gets how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The limit; none where there is none.
    limit: Option<usize>,
    /// SQL sessions of all clusters.
    pub sessions: usize,
    /// Engines that run.
    pub engines: usize,
    /// Connections of engines to the outside.
    pub egress: usize,
    /// SQL connections without a sign-in: at each listener outside of private networks, and at all inside of them.
    pub sql: usize,
    /// Of these, inside one private network.
    pub sql_private: usize,
    /// Connections without a key, and as many with one: at each listener of the API outside of private networks, and of the
    /// pages in all private networks.
    pub http: usize,
    /// Of these, in one private network.
    pub http_private: usize,
    /// Connections without a key, and as many with one, at the operator's socket.
    pub operator: usize,
}

/// The limit on open files is of no use.
#[derive(Debug, thiserror::Error)]
#[error(
    "the limit on open files is {limit}, and Chitin needs at least {needed} to serve anybody; raise it with LimitNOFILE={FULL} in the \
     systemd unit, --ulimit nofile={FULL} of a container, or ulimit -n {FULL} before chitin start"
)]
pub struct TooFew {
    limit: usize,
    needed: usize,
}

impl Listening {
    /// Those that the options ask for.
    pub fn of(options: &StartOptions) -> Self {
        let count = |more: &[&Option<String>]| 1 + more.iter().filter(|address| address.is_some()).count();
        Self {
            sql: count(&[&options.sql_proxy, &options.endpoint, &options.endpoint_tls]),
            http: count(&[&options.http_proxy]),
        }
    }
}

/// Lets this program have as many as the machine allows.
pub fn raise() {
    let files = getrlimit(Resource::Nofile);
    if let Err(cause) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        tracing::warn!(%cause, "the bound on open files could not be raised");
    }
}

/// Who gets how much with the limit that there is now. Says so where that is little.
pub fn budget(listening: Listening) -> Result<Budget, TooFew> {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let budget = Budget::of(limit, listening);
    if let Some(limit) = limit
        && !budget.is_enough()
    {
        let mut needed = (limit..).step_by(16).skip(1);
        let is_enough = |limit: &usize| Budget::of(Some(*limit), listening).is_enough();
        return Err(TooFew { limit, needed: needed.find(is_enough).unwrap_or(FULL) });
    }
    if let Capability::Missing { why, next_step } = budget.standing() {
        tracing::warn!("{why}; {next_step}");
    }
    Ok(budget)
}

impl Budget {
    fn of(limit: Option<usize>, listening: Listening) -> Self {
        let settings = gateway::Settings::default();
        // So many as nobody has, where there is no limit.
        let all = limit.unwrap_or(1 << 32).saturating_sub(OWN);
        // Five listeners and those in private networks have no more than two have otherwise.
        let listeners = listening.sql + 1;
        let sql = settings.unauthenticated_max.min(all / 8).min(all * 3 / 8 / listeners);
        let http = HTTP_MAX.min(all / 32);
        let operator = OPERATOR_MAX.min(all / 32);
        let (engines, egress) = (all * 3 / 16, all / 16);
        let others = sql * listeners + 2 * http * (listening.http + 1) + 2 * operator + engines + egress;
        Self {
            limit,
            sessions: all.saturating_sub(others) / EACH_SESSION,
            engines: engines / EACH_ENGINE,
            egress: egress / EACH_EGRESS,
            sql,
            sql_private: settings.unauthenticated_per_network_max.min(all / 64).max(1),
            http,
            http_private: http.div_ceil(2),
            operator,
        }
    }

    /// Whether anybody can be served at all.
    fn is_enough(&self) -> bool {
        self.sessions >= SESSIONS_MIN && self.engines >= ENGINES_MIN && self.http >= 4
    }

    /// What there is, for people.
    pub fn standing(&self) -> Capability {
        let Self { sessions, engines, .. } = self;
        let room = format!("{sessions} SQL sessions and {engines} running engines at a time");
        match self.limit {
            None => Capability::Present { how: "no limit".to_owned() },
            Some(limit) if *sessions >= SESSIONS_FEW => {
                Capability::Present { how: format!("{limit}: room for {room}") }
            }
            Some(limit) => Capability::Missing {
                why: format!("the limit on open files is low: {limit}, which is room for {room}"),
                next_step: format!(
                    "raise it with LimitNOFILE={FULL} in the systemd unit, --ulimit nofile={FULL} of a container, or ulimit -n {FULL}"
                ),
            },
        }
    }
}

/// What the program has open by itself, and for a moment: its state, its listeners, its threads' eyes on them, fetches.
const OWN: usize = 64;
/// The client's and the engine's.
const EACH_SESSION: usize = 2;
/// The engine's and the other side's.
const EACH_EGRESS: usize = 2;
/// Its folder, its volume and another that takes its place, two sessions of ours, and what starts it.
const EACH_ENGINE: usize = 8;
const HTTP_MAX: usize = 1_024;
const OPERATOR_MAX: usize = 64;
/// What an operator is told to set: nothing is less than it could be.
const FULL: usize = 131_072 + 8 * 16;
/// With fewer sessions or engines nobody is served.
const SESSIONS_MIN: usize = 8;
const ENGINES_MIN: usize = 2;
/// With fewer sessions the operator should know.
const SESSIONS_FEW: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    const FEWEST: Listening = Listening { sql: 1, http: 1 };
    const MOST: Listening = Listening { sql: 4, http: 2 };

    /// What all that is counted may have open together.
    fn opened(budget: &Budget, listening: Listening) -> usize {
        let Budget { sessions, engines, egress, sql, http, operator, .. } = *budget;
        let unauthenticated = sql * (listening.sql + 1);
        let api = 2 * http * (listening.http + 1) + 2 * operator;
        OWN + sessions * EACH_SESSION + engines * EACH_ENGINE + egress * EACH_EGRESS + unauthenticated + api
    }

    #[test]
    fn sessions_and_unauthenticated_connections_leave_what_the_api_and_engines_need() {
        for listening in [FEWEST, MOST] {
            for limit in [256, 320, 1_024, 4_096, 65_536, FULL, 1_048_576] {
                let budget = Budget::of(Some(limit), listening);
                assert!(opened(&budget, listening) <= limit, "{limit}: {budget:?}");
                assert!(budget.sql_private <= budget.sql && budget.http_private <= budget.http);
                assert!(budget.sql > 0 && budget.http > 0 && budget.operator > 0, "{limit}: {budget:?}");
            }
        }
    }

    #[test]
    fn without_a_limit_or_with_a_large_one_everything_is_as_large_as_it_gets() {
        for limit in [None, Some(FULL), Some(1_048_576)] {
            let budget = Budget::of(limit, FEWEST);
            let Budget { sql, sql_private, http, operator, .. } = budget;
            assert_eq!([sql, sql_private, http, operator], [16_384, 1_024, 1_024, 64], "{limit:?}");
            assert!(matches!(budget.standing(), Capability::Present { .. }));
        }
    }

    #[test]
    fn a_low_limit_is_said_with_its_number_and_the_way_out() {
        let Capability::Missing { why, next_step } = Budget::of(Some(1_024), FEWEST).standing() else {
            panic!("1,024 are few");
        };
        assert!(why.contains("1024") && next_step.contains("LimitNOFILE="), "{why}; {next_step}");
    }

    #[test]
    fn a_limit_that_serves_nobody_is_not_enough() {
        for listening in [FEWEST, MOST] {
            assert!(!Budget::of(Some(100), listening).is_enough());
            assert!(Budget::of(Some(512), listening).is_enough());
        }
        assert!(Budget::of(Some(256), FEWEST).is_enough());
    }
}
