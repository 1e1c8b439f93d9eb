//! The command lines about what may leave a cluster.

use clap::{Args, Subcommand, ValueEnum};

use super::OneCluster;

/// `chitin egress`
#[derive(Clone, Debug, Subcommand)]
pub enum EgressCommand {
    /// Show the policy and every rule
    #[command(
        after_help = "Example:  chitin egress show my-shop\nNext:     chitin egress policy my-shop default-deny"
    )]
    Show(OneCluster),
    /// Say what leaves where no rule says more; it holds at once, also for what is under way
    #[command(
        long_about = "Say what leaves where no rule says more; it holds at once, also for what is under way.\n\nWhat leaves on a cluster's behalf are questions to OCSP responders and identity providers. Private addresses stay closed under both policies unless the cloud was started with --fetch-allow; the clouds' metadata, link-local addresses and other clusters' networks always do.",
        after_help = "Example:  chitin egress policy my-shop default-deny\nNext:     chitin egress add my-shop provider login.example.com --port 443"
    )]
    Policy {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// What leaves
        #[arg(value_enum)]
        policy: PolicyName,
    },
    /// Name a destination that may be reached under default-deny
    #[command(
        after_help = "Example:  chitin egress add my-shop provider login.example.com --port 443\n          chitin egress add my-shop responders 203.0.113.0/24 --port 80 --description 'OCSP of our CA'\nNext:     chitin egress test my-shop https://login.example.com"
    )]
    Add(EgressAdd),
    /// Change a rule; what is not said stays
    #[command(
        after_help = "Example:  chitin egress edit my-shop provider --port 443 --port 8443\n          chitin egress edit my-shop provider --every-port\nNext:     chitin egress show my-shop"
    )]
    Edit(EgressEdit),
    /// Remove a rule; what stands on it is broken off
    #[command(
        after_help = "Example:  chitin egress remove my-shop provider\nNext:     chitin egress show my-shop"
    )]
    Remove {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// The rule, by name or id
        rule: String,
    },
    /// Let a dedicated cluster's engine itself reach the names and ports of the rules, or not; off by default
    #[command(
        long_about = "Let a dedicated cluster's engine itself reach the names and ports of the rules, or not; off by default.\n\nSQL users then reach other databases by foreign tables (postgres_fdw), from PostgreSQL 16 on by subscriptions too, at the names that rules give and the ports that they list; rules for ranges and rules for every port are not offered. The engine keeps having no network: each connection passes the gate, which resolves the name and asks the policy, and it ends when it is no longer permitted. Needs a cloud that runs as root. Wakes the cluster.",
        after_help = "Example:  chitin egress add my-bank ledger db.example.com --port 5432\n          chitin egress engine my-bank on\nNext:     chitin egress show my-bank"
    )]
    Engine {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// Whether it may
        #[arg(value_enum)]
        switch: Switch,
    },
    /// Say whether a destination would be let through, and by which rule; nothing is connected to
    #[command(
        after_help = "Example:  chitin egress test my-shop https://login.example.com/keys\n          chitin egress test my-shop 203.0.113.7:443\nNext:     chitin egress show my-shop"
    )]
    Test {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// A URL, or HOST:PORT
        #[arg(value_name = "URL-OR-HOST:PORT")]
        destination: String,
    },
}

/// `chitin egress add`
#[derive(Args, Clone, Debug)]
pub struct EgressAdd {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// What to call the rule
    pub name: String,
    /// A name with a dot, for instance login.example.com, or a range, for instance 203.0.113.0/24
    pub destination: String,
    /// A port that may be reached; more than one may be given. Without any, every port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Vec<u16>,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
}

/// `chitin egress edit`
#[derive(Args, Clone, Debug)]
pub struct EgressEdit {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// The rule, by name or id
    pub rule: String,
    /// Another name or range
    #[arg(long)]
    pub destination: Option<String>,
    /// A port that may be reached, in place of those before; more than one may be given
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Vec<u16>,
    /// Let every port be reached
    #[arg(long, conflicts_with = "port")]
    pub every_port: bool,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
}

/// A policy as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// Whatever the cloud lets through for anybody
    AllowAll,
    /// Only what a rule names
    DefaultDeny,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It may
    On,
    /// It may not
    Off,
}
