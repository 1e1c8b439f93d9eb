//! Who may sign in how: rules in the syntax of PostgreSQL's `pg_hba.conf` (PostgreSQL's manual, 21.1). The first rule
//! that matches decides; where none does, the client is refused.
//!
//! What differs from PostgreSQL: every connection comes over TLS, so `host` and `hostssl` are the same and `local`,
//! `hostnossl` and `hostgssenc` never match; hostnames, `samehost`, `samenet`, `@file` and `include` are refused, because
//! a rule must mean the same at every moment and read nothing of the machine; the methods are those of [`Method`]; and a
//! text that is ambiguous (an open quote, an option twice, an empty list) is refused where PostgreSQL guesses.

pub(crate) mod lex;
mod matching;
mod method;
mod parse;
pub(crate) mod pattern;

use std::fmt;
use std::net::IpAddr;

pub use matching::Step;
pub use method::{ClientCert, ClientName, InvalidMethod, Method, RuleOptions};

use matching::{Addresses, Databases, Transport, Users};

/// The rules of a cluster that has set none: a certificate of the cluster's authorities, or a password.
pub const STANDARD: &str = "host all all all cert-password\n";
/// Most rules of one cluster.
pub const RULES_MAX: usize = 1_000;

/// Why a text was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line, counted from 1.
    pub line: u32,
    /// The column, in characters, counted from 1.
    pub column: u32,
    /// What was refused and why.
    pub message: String,
    /// What to write instead. Not part of the text that [`fmt::Display`] gives.
    pub hint: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for Mistake {}

/// A cluster's rules, in their order.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    notes: Vec<String>,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    line: u32,
    text: String,
    transport: Transport,
    databases: Vec<Databases>,
    users: Vec<Users>,
    addresses: Addresses,
    method: Method,
    options: RuleOptions,
}

/// Who wants to sign in, as far as rules look at it.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The SQL user that the client asks for. It need not exist.
    pub user: &'a str,
    /// The database that it asks for. It need not exist.
    pub database: &'a str,
    /// The roles that the user is a member of, directly or through others: every one, or at least those of
    /// [`Rules::roles_named`].
    pub roles: &'a [String],
    /// Where it comes from. IPv4 inside IPv6 counts as IPv4.
    pub address: IpAddr,
}

impl Rules {
    /// Reads rules. A text without any rule is refused: it would lock everybody out, which `reject` says better.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        parse::rules(text)
    }

    /// Reads rules that are to be set. What is only read because rules from before have it is refused.
    pub fn parse_new(text: &str) -> Result<Self, Mistake> {
        let rules = Self::parse(text)?;
        if let Some(rule) = rules.iter().find(|rule| rule.options.clientname == ClientName::San) {
            return Err(Mistake {
                line: rule.line,
                column: 1,
                message: "`clientname=SAN` says not which type of alternative name counts".to_owned(),
                hint: Some(parse::SAN_TYPES.to_owned()),
            });
        }
        Ok(rules)
    }

    /// The rules of a cluster that has set none: [`STANDARD`].
    pub fn standard() -> Self {
        // A test shows that the text can be read; rules without any rule let nobody in.
        Self::parse(STANDARD).unwrap_or_else(|_| Self { rules: Vec::new(), notes: Vec::new() })
    }

    /// What the operator should know of rules that are allowed but probably not meant, each with its line.
    pub fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    /// All rules, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// The roles whose members the rules treat differently where this database is asked for, sorted. Whoever looks a client up
    /// need not find out about other memberships.
    pub fn roles_named(&self, database: &str) -> Vec<String> {
        let mut named: Vec<String> = self.rules.iter().flat_map(|rule| rule.roles_named(database)).collect();
        named.sort();
        named.dedup();
        named
    }

    /// The rule that decides about the client: the first that matches.
    pub fn find(&self, client: &Client<'_>) -> Option<&Rule> {
        let asker = matching::Asker::new(client);
        self.rules.iter().find(|rule| rule.differs(&asker).is_none())
    }

    /// How [`Rules::find`] comes to its answer: each rule that is looked at, the last of them being the one that decides,
    /// if any does. With a method, the deciding step says whether a client that brings it gets on.
    pub fn explain(&self, client: &Client<'_>, method: Option<Method>) -> Vec<Step> {
        matching::explain(&self.rules, client, method)
    }
}

impl Rule {
    /// The line on which the rule begins, counted from 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The rule as it was written, without comment.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How a client that meets the rule must prove who it is.
    pub fn method(&self) -> Method {
        self.method
    }

    /// What the rule says beyond its method.
    pub fn options(&self) -> &RuleOptions {
        &self.options
    }
}

#[cfg(test)]
mod tests;
