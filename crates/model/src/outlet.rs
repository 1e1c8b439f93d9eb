//! Which of a cluster's egress rules its engine is offered, while engine egress is on.

use std::collections::BTreeSet;

use crate::{Egress, EgressDestination, EgressRuleName, FqdnName};

/// Most outlets of one engine: each is a listener of ours.
pub const OUTLETS_MAX: usize = 256;
/// Most connections of one engine to the outside at a time.
pub const OUTLET_CONNECTIONS_MAX: usize = 64;

/// A name and a port that an engine may reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Outlet {
    /// The name; the gate resolves it at every connection.
    pub host: FqdnName,
    /// The TCP port.
    pub port: u16,
}

/// What an engine is offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlets {
    /// Each once.
    pub offered: BTreeSet<Outlet>,
    /// Rules that are not offered, by name, each with its reason.
    pub left_out: Vec<(EgressRuleName, &'static str)>,
}

impl Egress {
    /// What the rules offer to the engine, whatever the policy is and whether or not engine egress is on. An engine has
    /// no network, only listeners of ours; so it is offered what can have one: a name, and ports that are named.
    pub fn outlets(&self) -> Outlets {
        let mut rules: Vec<_> = self.rules.iter().collect();
        // The bound must not hit others each time that a rule is edited.
        rules.sort_by(|left, right| left.name.cmp(&right.name));
        let mut outlets = Outlets::default();
        for rule in rules {
            let host = match &rule.destination {
                EgressDestination::Fqdn(host) => host,
                EgressDestination::Cidr(_) => {
                    outlets
                        .left_out
                        .push((rule.name.clone(), "ranges are not offered to engines; name the host"));
                    continue;
                }
            };
            if rule.ports.is_empty() {
                outlets
                    .left_out
                    .push((rule.name.clone(), "rules for every port are not offered to engines; name ports"));
                continue;
            }
            let wanted: Vec<Outlet> =
                rule.ports.iter().map(|port| Outlet { host: host.clone(), port: *port }).collect();
            let more = wanted.iter().filter(|outlet| !outlets.offered.contains(outlet)).count();
            if outlets.offered.len() + more > OUTLETS_MAX {
                outlets
                    .left_out
                    .push((rule.name.clone(), "an engine is offered at most 256 names and ports"));
                continue;
            }
            outlets.offered.extend(wanted);
        }
        outlets
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::EgressRule;

    fn rule(name: &str, destination: &str, ports: &[u16]) -> EgressRule {
        EgressRule {
            id: uuid::Uuid::new_v4(),
            name: name.parse().unwrap(),
            destination: match destination.parse() {
                Ok(range) => EgressDestination::Cidr(range),
                Err(_) => EgressDestination::Fqdn(destination.parse().unwrap()),
            },
            written: destination.to_owned(),
            ports: ports.to_vec(),
            description: String::new(),
            created_at: OffsetDateTime::UNIX_EPOCH,
            idempotency_key: None,
        }
    }

    #[test]
    fn names_with_ports_are_offered_once_and_nothing_else_is() {
        let rules = vec![
            rule("b", "db.example", &[5432, 5433]),
            rule("a", "DB.example.", &[5432]),
            rule("range", "192.0.2.0/24", &[5432]),
            rule("single", "192.0.2.7", &[5432]),
            rule("every", "other.example", &[]),
        ];
        let outlets = Egress { rules, ..Egress::default() }.outlets();
        let offered: Vec<String> =
            outlets.offered.iter().map(|outlet| format!("{}:{}", outlet.host, outlet.port)).collect();
        assert_eq!(offered, ["db.example:5432", "db.example:5433"]);
        let left_out: Vec<&str> = outlets.left_out.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(left_out, ["every", "range", "single"]);
    }

    #[test]
    fn an_engine_is_offered_so_much_and_no_more() {
        let ports: Vec<u16> = (1..=64).collect();
        let rules =
            (0..6).map(|number| rule(&format!("rule {number}"), &format!("h{number}.example"), &ports));
        let outlets = Egress { rules: rules.collect(), ..Egress::default() }.outlets();
        assert_eq!((outlets.offered.len(), outlets.left_out.len()), (OUTLETS_MAX, 2));
    }
}
