//! SQL roles as the engine's catalog (`pg_authid`) has them: what sign-in needs, also while the engine sleeps.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Most roles of one cluster that are kept for sign-in while its engine sleeps.
pub const SQL_ROLES_MAX: usize = 32_768;
/// Most direct memberships of one cluster that are kept with them.
pub const SQL_MEMBERSHIPS_MAX: usize = 131_072;

/// One row of `pg_authid`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlRole {
    /// `rolname`.
    pub name: String,
    /// `rolcanlogin`.
    pub can_login: bool,
    /// `rolpassword`, if it is a SCRAM verifier. A secret: whoever has it can try passwords offline.
    pub verifier: Option<String>,
    /// `rolvaliduntil`; `None` means for ever.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub valid_until: Option<OffsetDateTime>,
    /// `rolconnlimit`; -1 means none.
    pub connection_limit: i32,
    /// The roles that it is a direct member of, sorted. Copies of earlier versions hold those through others too, which
    /// changes nothing for who asks [`SqlRoles::inherited`].
    #[serde(default)]
    pub member_of: Vec<String>,
}

impl fmt::Debug for SqlRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlRole")
            .field("name", &self.name)
            .field("can_login", &self.can_login)
            .finish_non_exhaustive()
    }
}

/// The roles of one cluster.
#[derive(Clone, Default)]
pub struct SqlRoles {
    /// By name.
    roles: Vec<SqlRole>,
    /// For each role the places of those that it is a direct member of, so that a walk compares no names.
    held: Vec<Vec<u32>>,
}

impl PartialEq for SqlRoles {
    fn eq(&self, other: &Self) -> bool {
        // The rest follows from it.
        self.roles == other.roles
    }
}

impl Eq for SqlRoles {}

impl SqlRoles {
    /// Takes the roles in any order.
    pub fn new(mut roles: Vec<SqlRole>) -> Self {
        roles.sort_by(|one, other| one.name.cmp(&other.name));
        let place = |name: &String| u32::try_from(place(&roles, name)?).ok();
        let held = roles.iter().map(|role| role.member_of.iter().filter_map(place).collect()).collect();
        Self { roles, held }
    }

    /// The role of this name.
    pub fn get(&self, name: &str) -> Option<&SqlRole> {
        self.roles.get(place(&self.roles, name)?)
    }

    /// All of them, by name.
    pub fn as_slice(&self) -> &[SqlRole] {
        &self.roles
    }

    /// How many direct memberships there are.
    pub fn memberships(&self) -> usize {
        self.roles.iter().map(|role| role.member_of.len()).sum()
    }

    /// Those of the named roles that this one is a member of, directly or through others, sorted. Asked before anybody has
    /// proven anything, so it costs a look at each membership at the most, and nothing where no role is named.
    pub fn inherited_of(&self, name: &str, named: &[String]) -> Vec<String> {
        if named.is_empty() {
            return Vec::new();
        }
        let mut is_held = vec![false; self.roles.len()];
        let mut ahead: Vec<usize> = place(&self.roles, name).into_iter().collect();
        while let Some(next) = ahead.pop() {
            for &held in self.held.get(next).map_or(&[][..], Vec::as_slice) {
                let held = held as usize;
                if let Some(is_held) = is_held.get_mut(held)
                    && !std::mem::replace(is_held, true)
                {
                    ahead.push(held);
                }
            }
        }
        let holds = |name: &&String| place(&self.roles, name).is_some_and(|place| is_held[place]);
        let mut found: Vec<String> = named.iter().filter(holds).cloned().collect();
        found.sort();
        found.dedup();
        found
    }

    /// Every role that one of these is a member of, directly or through others, sorted. Each role is looked at once, so
    /// what somebody made of the memberships costs no more than they are.
    pub fn inherited<'a>(&'a self, of: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut found: BTreeSet<&str> = BTreeSet::new();
        let mut looked_at: BTreeSet<&str> = BTreeSet::new();
        let mut ahead: Vec<&str> = of.into_iter().collect();
        while let Some(name) = ahead.pop() {
            if !looked_at.insert(name) {
                continue;
            }
            for held in self.get(name).map_or(&[][..], |role| &role.member_of) {
                found.insert(held);
                ahead.push(held);
            }
        }
        found.into_iter().map(str::to_owned).collect()
    }
}

fn place(roles: &[SqlRole], name: &str) -> Option<usize> {
    roles.binary_search_by(|role| role.name.as_str().cmp(name)).ok()
}

/// As of each of them.
impl fmt::Debug for SqlRoles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqlRoles").field(&self.roles.len()).finish()
    }
}

/// What was last seen of the copy of a cluster's roles. While the engine runs it is asked itself; the copy decides where it
/// does not, and only one that is whole: it holds what the engine had when it stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolesSeen {
    /// Whether nothing can have changed since the copy was made. False from when the engine runs until it was read for the
    /// last time before a proper stop. `None` was written by an earlier version of the program.
    #[serde(default)]
    pub is_whole: Option<bool>,
    /// Why the engine that runs could not be read when that was last tried.
    #[serde(default)]
    pub failure: Option<String>,
    /// Whether the operator put the cluster to sleep all the same: it sleeps with a copy that lets nobody in.
    #[serde(default)]
    pub is_given_up: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, member_of: &[&str]) -> SqlRole {
        SqlRole {
            name: name.to_owned(),
            can_login: true,
            verifier: None,
            valid_until: None,
            connection_limit: -1,
            member_of: member_of.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn membership_counts_through_others_and_each_role_once() {
        let roles = SqlRoles::new(vec![
            role("maria", &["chiefs", "readers"]),
            role("chiefs", &["dba", "gone"]),
            role("dba", &["readers"]),
            role("readers", &[]),
            role("otto", &["dba"]),
        ]);
        assert_eq!(roles.inherited(["maria"]), ["chiefs", "dba", "gone", "readers"]);
        assert_eq!(roles.inherited(["readers"]), Vec::<String>::new());
        assert_eq!(roles.inherited(["nobody"]), Vec::<String>::new());
        assert_eq!(roles.inherited(["readers", "otto"]), ["dba", "readers"]);
        assert_eq!(roles.get("dba").map(|role| role.member_of.len()), Some(1));
        assert_eq!(roles.memberships(), 6);
        // An engine has none in a circle; somebody who took one over can say so.
        let circle = SqlRoles::new(vec![role("a", &["b"]), role("b", &["a"])]);
        assert_eq!(circle.inherited(["a"]), ["a", "b"]);
        assert_eq!(circle.inherited_of("a", &["a".to_owned(), "b".to_owned()]), ["a", "b"]);
    }

    #[test]
    fn of_the_roles_that_are_named_those_are_told_that_somebody_holds() {
        let roles = SqlRoles::new(vec![
            role("maria", &["chiefs", "gone"]),
            role("chiefs", &["dba"]),
            role("dba", &[]),
            role("readers", &[]),
        ]);
        let named = ["readers", "dba", "nobody", "dba", "chiefs"].map(str::to_owned);
        assert_eq!(roles.inherited_of("maria", &named), ["chiefs", "dba"]);
        assert_eq!(
            roles.inherited_of("dba", &named),
            Vec::<String>::new(),
            "a member of itself goes without saying"
        );
        assert_eq!(roles.inherited_of("nobody", &named), Vec::<String>::new());
        assert_eq!(roles.inherited_of("maria", &[]), Vec::<String>::new());
    }

    #[test]
    fn a_walk_over_as_many_memberships_as_are_kept_is_short() {
        // A ladder in which each role is a member of the next 64: every membership has to be looked at.
        let names: Vec<String> = (0..2_112).map(|number| format!("r{number:05}")).collect();
        let ladder = names.iter().enumerate().map(|(place, name)| {
            let next: Vec<&str> = names[place + 1..].iter().take(64).map(String::as_str).collect();
            role(name, &next)
        });
        let roles = SqlRoles::new(ladder.collect());
        assert!(roles.memberships() > SQL_MEMBERSHIPS_MAX);
        let named = [names[2_111].clone(), "nobody".to_owned()];
        let began = std::time::Instant::now();
        for _ in 0..10 {
            assert_eq!(roles.inherited_of("r00000", &named).len(), 1);
        }
        // Far above what it takes: about a millisecond each. Comparing names took half a second each.
        assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
    }
}
