//! Whether a rule matches a client, and if not, why not.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::pattern::Pattern;
use super::{Client, Method, Rule};

/// By which kind of connection a rule is met (PostgreSQL's first column).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// `host`, `hostssl`, `hostnogssenc`: every connection that we take is one.
    Ours,
    /// `local`, `hostnossl`, `hostgssenc`: by its name. We take none of these.
    Foreign(&'static str),
}

/// One value of the second column.
#[derive(Clone, Debug)]
pub(super) enum Databases {
    All,
    /// The one named like the user.
    SameUser,
    /// One named like a role that the user is or is a member of.
    SameRole,
    /// Only physical replication, which we do not take.
    Replication,
    Named(String),
    Like(Pattern),
}

/// One value of the third column.
#[derive(Clone, Debug)]
pub(super) enum Users {
    All,
    /// The role itself and every member.
    MemberOf(String),
    Named(String),
    Like(Pattern),
}

/// The fourth column.
#[derive(Clone, Copy, Debug)]
pub(super) enum Addresses {
    All,
    Range(IpNet),
}

impl Databases {
    fn matches(&self, asker: &Asker<'_>) -> bool {
        let client = asker.client;
        match self {
            Self::All => true,
            Self::SameUser => client.database == client.user,
            Self::SameRole => asker.is_member(client.database),
            Self::Replication => false,
            Self::Named(name) => name == client.database,
            Self::Like(pattern) => pattern.is_match(client.database),
        }
    }
}

impl Users {
    fn matches(&self, asker: &Asker<'_>) -> bool {
        let client = asker.client;
        match self {
            Self::All => true,
            Self::MemberOf(role) => asker.is_member(role),
            Self::Named(name) => name == client.user,
            Self::Like(pattern) => pattern.is_match(client.user),
        }
    }
}

impl Addresses {
    fn matches(self, address: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Range(range) => range.contains(&model::canonical(address)),
        }
    }
}

/// A client, with what it is a member of in a form in which many rules with many names cost no more than a few.
pub(super) struct Asker<'a> {
    client: &'a Client<'a>,
    held: OnceCell<HashSet<&'a str>>,
}

impl<'a> Asker<'a> {
    pub(super) fn new(client: &'a Client<'a>) -> Self {
        Self { client, held: OnceCell::new() }
    }

    /// A role counts as a member of itself, as in PostgreSQL.
    fn is_member(&self, role: &str) -> bool {
        let held = || self.client.roles.iter().map(String::as_str).collect();
        self.client.user == role || self.held.get_or_init(held).contains(role)
    }
}

/// The first column that keeps a rule from matching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Differs {
    Transport(&'static str),
    Database,
    User,
    Address,
}

impl Rule {
    /// Why the rule does not match; `None` where it does.
    pub(super) fn differs(&self, asker: &Asker<'_>) -> Option<Differs> {
        if let Transport::Foreign(name) = self.transport {
            return Some(Differs::Transport(name));
        }
        if !self.addresses.matches(asker.client.address) {
            return Some(Differs::Address);
        }
        if !self.databases.iter().any(|databases| databases.matches(asker)) {
            return Some(Differs::Database);
        }
        if !self.users.iter().any(|users| users.matches(asker)) {
            return Some(Differs::User);
        }
        None
    }

    /// The roles whose members it treats differently where this database is asked for.
    pub(super) fn roles_named<'a>(&'a self, database: &'a str) -> impl Iterator<Item = String> + 'a {
        let is_same_role = self.databases.iter().any(|databases| matches!(databases, Databases::SameRole));
        let of_users = self.users.iter().filter_map(|users| match users {
            Users::MemberOf(role) => Some(role.clone()),
            Users::All | Users::Named(_) | Users::Like(_) => None,
        });
        is_same_role.then(|| database.to_owned()).into_iter().chain(of_users)
    }

    /// Whether it matches every client.
    pub(super) fn matches_everybody(&self) -> bool {
        self.transport == Transport::Ours
            && matches!(self.addresses, Addresses::All)
            && self.databases.iter().any(|databases| matches!(databases, Databases::All))
            && self.users.iter().any(|users| matches!(users, Users::All))
    }
}

/// One rule that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The rule's line, counted from 1.
    pub line: u32,
    /// The rule as it was written, without comment.
    pub text: String,
    /// Whether it matches, and so decides.
    pub is_match: bool,
    /// Why, or which column does not match.
    pub why: String,
}

pub(super) fn explain(rules: &[Rule], client: &Client<'_>, method: Option<Method>) -> Vec<Step> {
    let mut steps = Vec::new();
    let asker = Asker::new(client);
    for rule in rules {
        let differs = rule.differs(&asker);
        let why = differs.map_or_else(|| decides(rule, method), |differs| reason(rule, client, differs));
        steps.push(Step { line: rule.line, text: rule.text.clone(), is_match: differs.is_none(), why });
        if differs.is_none() {
            break;
        }
    }
    steps
}

fn decides(rule: &Rule, brought: Option<Method>) -> String {
    let method = rule.method;
    match brought {
        _ if method == Method::Reject => "every column matches: the client is rejected".to_owned(),
        Some(brought) if !method.takes(brought) => {
            format!("every column matches: the method is {method}, which does not take {brought}")
        }
        _ => format!("every column matches: the method is {method}"),
    }
}

fn reason(rule: &Rule, client: &Client<'_>, differs: Differs) -> String {
    let Client { user, database, .. } = *client;
    let address = model::canonical(client.address);
    match differs {
        Differs::Transport(name) => format!("`{name}` never matches: every connection comes over TLS"),
        Differs::Database => format!("the database does not match: `{database}`"),
        Differs::User if rule.users.iter().any(|users| matches!(users, Users::MemberOf(_))) => {
            format!("the user does not match: `{user}` is neither named nor a member of the role")
        }
        Differs::User => format!("the user does not match: `{user}`"),
        Differs::Address => format!("the address does not match: {address} is outside the range"),
    }
}
