//! The command line of every client command, with the help that teaches it.

pub mod allowlist;
pub mod egress;
pub mod key;
pub mod network;
pub mod sign_in;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::Shell;
use model::{AddressRange, ClusterName, Plan};

pub use allowlist::{AllowlistCommand, AllowlistStart, Expiry};
pub use egress::{EgressCommand, EgressEdit, PolicyName, Switch};
pub use key::KeyCommand;
pub use network::{
    ClusterVisibility, EndpointCommand, NetworkChoice, OneEndpoint, OneOwner, OwnedEndpoint, OwnerCommand,
    PeeringCommand, PeeringCreate,
};
pub use sign_in::{
    ClientCaCommand, CrlCommand, CrlSet, HbaCommand, HbaTest, IdentityMapCommand, OcspCommand, OcspSet,
    ProviderCommand, ProviderSet, ThrottleCommand,
};

/// What is the same for every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// The directory where `chitin start` keeps everything [default: ./.chitin]
    // No default of clap's: what was not named is believed less.
    #[arg(long, global = true, help_heading = "The cloud", env = "CHITIN_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// How results are printed: a table for people, or json for programs
    #[arg(long, global = true, help_heading = "The cloud", value_enum, value_name = "FORM", default_value_t = Output::Table)]
    pub output: Output,

    /// The API of a cloud elsewhere, for instance <https://cloud.example.org:8080>; needs CHITIN_API_KEY
    #[arg(long, global = true, help_heading = "The cloud", env = "CHITIN_URL", value_name = "URL")]
    pub url: Option<String>,

    /// The API key for --url
    // Only from the environment: arguments can be read by every user of a machine.
    #[arg(skip = Hidden(std::env::var("CHITIN_API_KEY").ok()))]
    pub api_key: Hidden<String>,

    /// The root certificate (PEM file) for --url; without it, ca.pem in a --data that you name, else the machine's own
    #[arg(long, global = true, help_heading = "The cloud", env = "CHITIN_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// A secret of the environment; printing the command line for a log must not show it.
#[derive(Clone)]
pub struct Hidden<T>(pub Option<T>);

impl<T> std::fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Hidden(set)" } else { "Hidden(unset)" })
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Every command that speaks to a running cloud.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Create, look at, wake, put to sleep and delete clusters
    #[command(subcommand, after_help = "Begin with:  chitin cluster create my-shop")]
    Cluster(ClusterCommand),
    /// Manage the SQL users of a cluster
    #[command(subcommand, after_help = "Begin with:  chitin user create my-shop maria")]
    User(UserCommand),
    /// Manage the databases of a cluster
    #[command(subcommand, after_help = "Begin with:  chitin database list my-shop")]
    Database(DatabaseCommand),
    /// Say from which addresses a cluster may be reached
    #[command(subcommand, after_help = "Begin with:  chitin allowlist list my-shop")]
    Allowlist(AllowlistCommand),
    /// Say what may leave a cluster: a policy, and the destinations that it lets through
    #[command(subcommand, after_help = "Begin with:  chitin egress show my-shop")]
    Egress(EgressCommand),
    /// Join the private networks of clusters with other networks
    #[command(subcommand, after_help = "Begin with:  chitin peering list my-shop")]
    Peering(PeeringCommand),
    /// Say which private endpoints lead to a cluster
    #[command(subcommand, after_help = "Begin with:  chitin endpoint service my-shop")]
    Endpoint(EndpointCommand),
    /// Say who signs in how: rules in the syntax of pg_hba.conf
    #[command(subcommand, after_help = "Begin with:  chitin hba show my-shop")]
    Hba(HbaCommand),
    /// Say which SQL user a certificate's or a token's name means
    #[command(subcommand, after_help = "Begin with:  chitin identity-map show my-shop")]
    IdentityMap(IdentityMapCommand),
    /// Say whose client certificates a cluster accepts
    #[command(subcommand, after_help = "Begin with:  chitin client-ca set my-shop ca.pem")]
    ClientCa(ClientCaCommand),
    /// Say how strictly the revocation of client certificates is asked for
    #[command(subcommand, after_help = "Begin with:  chitin ocsp show my-shop")]
    Ocsp(OcspCommand),
    /// Manage lists of revoked client certificates
    #[command(subcommand, after_help = "Begin with:  chitin crl set my-shop crl.pem")]
    Crl(CrlCommand),
    /// Manage identity providers: whose tokens sign in
    #[command(subcommand, after_help = "Begin with:  chitin provider list")]
    Provider(ProviderCommand),
    /// Keys that need a running cloud. The program puts them under one noun with its own, so they are not parsed here
    #[command(skip)]
    Key(KeyCommand),
    /// Look at failed sign-ins, and forget them
    #[command(subcommand, after_help = "Begin with:  chitin throttle list")]
    Throttle(ThrottleCommand),
    /// Open psql on a cluster, with the encryption and the certificate checked
    #[command(
        long_about = "Open psql on a cluster, with sslmode=verify-full and the cloud's root certificate.\n\nThe password comes from CHITIN_SQL_PASSWORD or PGPASSWORD, or psql asks for it; it is never an argument.",
        after_help = "Example:  chitin sql my-shop --user maria -- -c 'select version()'\nNext:     chitin verify my-shop"
    )]
    Sql(Sql),
    /// Show the cloud: where it listens, what the machine gives, and every cluster's state
    #[command(after_help = "Example:  chitin status --output json\nNext:     chitin cluster list")]
    Status,
    /// Attack a cluster from outside and print the security table with evidence
    #[command(
        long_about = "Attack a cluster from outside and print the security table with evidence.\n\nMakes a throw-away SQL user and removes it again. Wakes a sleeping cluster. If the allowlist is closed to this machine, it is opened for the length of the check; where the cluster listens on loopback, it is narrowed for a moment; it is put back in every case. Exit code 1 if any claim fails.",
        after_help = "Example:  chitin verify my-shop\nNext:     chitin verify my-shop --output json > evidence.json"
    )]
    Verify(Verify),
    /// Show the cloud's certificates
    #[command(subcommand, after_help = "Begin with:  chitin cert ca > ca.pem")]
    Cert(CertCommand),
    /// Print a shell's completion script
    #[command(
        after_help = "Example:  chitin completions bash > ~/.local/share/bash-completion/completions/chitin"
    )]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// `chitin cluster`
#[derive(Clone, Debug, Subcommand)]
pub enum ClusterCommand {
    /// Create a cluster: PostgreSQL with an encrypted volume and a key of its own
    #[command(
        after_help = "Example:  chitin cluster create my-shop\n          chitin cluster create my-bank --plan dedicated --allow 203.0.113.0/24 --protect\n          chitin cluster create my-vault --visibility private\nNext:     chitin user create my-shop maria"
    )]
    Create(CreateCluster),
    /// List the clusters
    #[command(after_help = "Example:  chitin cluster list\nNext:     chitin cluster show my-shop")]
    List,
    /// Show one cluster
    #[command(
        after_help = "Example:  chitin cluster show my-shop\nNext:     chitin cluster url my-shop maria"
    )]
    Show(OneCluster),
    /// Print the connection string of a user, without the password
    #[command(
        after_help = "Example:  psql \"$(chitin cluster url my-shop maria)\"\nNext:     the password was printed by: chitin user create"
    )]
    Url {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// The SQL user
        user: String,
        /// The database
        #[arg(long, default_value = model::DEFAULT_DATABASE)]
        database: String,
    },
    /// Put a cluster to sleep: its engine stops and its key leaves the kernel
    #[command(
        after_help = "Example:  chitin cluster sleep my-shop\nNext:     the next sign-in wakes it, or: chitin cluster wake my-shop"
    )]
    Sleep {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// Stop the engine also where its users could not be copied; then nobody signs in before it was woken
        #[arg(long)]
        force: bool,
    },
    /// Wake a cluster
    #[command(
        after_help = "Example:  chitin cluster wake my-shop\nNext:     chitin sql my-shop --user maria"
    )]
    Wake(OneCluster),
    /// Accept the volume of a cluster as it is, after an older copy was restored on purpose
    #[command(
        name = "accept-restored",
        long_about = "Accept the volume of a cluster as it is, after an older copy was restored on purpose.\n\nChitin remembers how far the files of each cluster have come, and starts none whose files are older: somebody may have put an old copy in their place. What was written after the copy is lost.",
        after_help = "Example:  chitin cluster accept-restored my-shop\nNext:     chitin cluster wake my-shop"
    )]
    AcceptRestored(OneCluster),
    /// Show who can see a cluster, or make it private or public
    #[command(
        long_about = "Show who can see a cluster, or make it private or public.\n\nA private cluster is seen by its private network (chitin peering) and by accepted private endpoints (chitin endpoint) alone, whatever the allowlist says; sessions from elsewhere are cut. A public cluster may have a private network too. Needs Chitin to run as root or with CAP_NET_ADMIN.",
        after_help = "Example:  chitin cluster visibility my-shop\n          chitin cluster visibility my-shop private\n          chitin cluster visibility my-shop public --cidr 10.77.0.0/24\nNext:     chitin peering create my-shop office --namespace office"
    )]
    Visibility(ClusterVisibility),
    /// Change what a cluster may store and use, and which cancel requests it takes; it goes on working meanwhile
    #[command(
        after_help = "Example:  chitin cluster update my-shop --storage 50\n          chitin cluster update my-bank --virtual-cpus 8 --disk-iops 5000\nNext:     chitin cluster show my-shop"
    )]
    Update(UpdateLimits),
    /// Protect a cluster from deletion, or lift the protection
    #[command(
        after_help = "Example:  chitin cluster protect my-shop\n          chitin cluster protect my-shop --off\nNext:     chitin cluster show my-shop"
    )]
    Protect {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// Lift the protection
        #[arg(long)]
        off: bool,
    },
    /// Delete a cluster: first its key, then its data; there is no way back
    #[command(after_help = "Example:  chitin cluster delete my-shop\nNext:     chitin cluster list")]
    Delete {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `chitin cluster update`; what is not given stays.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = true, args = ["storage", "virtual_cpus", "disk_iops", "connections", "plaintext_cancels"])]
pub struct UpdateLimits {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// What it may store in GiB, its write-ahead log included. If this is below what is in use, the cluster cannot grow; where the limit is
    /// only watched, it becomes read-only or is stopped
    #[arg(long, value_name = "GIB", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub storage: Option<u32>,
    /// Processors that it may use; memory comes with them: 2 GiB each for serverless, 4 GiB each for dedicated
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub virtual_cpus: Option<u32>,
    /// Reads a second that a dedicated cluster may ask of the disk, and as many writes
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..))]
    pub disk_iops: Option<u32>,
    /// Sessions that it may have at a time, 10 to 2000, from its engine's next start on; 0 for 200 on serverless and 500 on
    /// dedicated, which double when they are used up
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(..=2_000))]
    pub connections: Option<u32>,
    /// Take cancel requests that are not encrypted, as libpq before 17 sends them: from the session's own address only
    #[arg(long, value_enum)]
    pub plaintext_cancels: Option<Switch>,
}

/// `chitin cluster create`
#[derive(Args, Clone, Debug)]
#[command(disable_version_flag = true)]
pub struct CreateCluster {
    /// Its name: 6 to 40 lower-case letters, digits and dashes
    pub name: ClusterName,
    /// serverless sleeps when idle and is open to every address; dedicated stays awake and is closed until --allow
    #[arg(long, value_enum, default_value_t = PlanName::Serverless)]
    pub plan: PlanName,
    /// The major version of PostgreSQL; chitin status lists what is installed, and which of them new clusters get without this
    #[arg(long, value_name = "MAJOR", value_parser = clap::value_parser!(u32).range(14..=18))]
    pub version: Option<u32>,
    /// An address range that may connect; more than one may be given
    #[arg(long, value_name = "CIDR")]
    pub allow: Vec<AddressRange>,
    /// Processors that it may use; memory comes with them: 2 GiB each for serverless (2 processors unless given), 4 GiB each for
    /// dedicated (the machine's unless given)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub virtual_cpus: Option<u32>,
    /// Reads a second that a dedicated cluster may ask of the disk, and as many writes; a serverless one has 3000
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..))]
    pub disk_iops: Option<u32>,
    /// Sessions that it may have at a time, 10 to 2000; without it 200 on serverless and 500 on dedicated, which double when
    /// they are used up
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..=2_000))]
    pub connections: Option<u32>,
    /// What it may store in GiB, its write-ahead log included; without it 10 on serverless and 100 on dedicated
    #[arg(long, value_name = "GIB", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub storage: Option<u32>,
    /// Take cancel requests that are not encrypted, as libpq before 17 sends them: from the session's own address only; on unless
    /// given
    #[arg(long, value_enum)]
    pub plaintext_cancels: Option<Switch>,
    /// Refuse deletion until the protection is lifted: chitin cluster protect NAME --off
    #[arg(long)]
    pub protect: bool,
    /// Let nothing leave it that no egress rule names: chitin egress add
    #[arg(long)]
    pub restrict_egress: bool,
    /// Who can see it
    #[command(flatten)]
    pub network: NetworkChoice,
}

/// A plan as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlanName {
    /// Shares the machine, sleeps when idle.
    Serverless,
    /// Has its resources to itself.
    Dedicated,
}

impl From<PlanName> for Plan {
    fn from(name: PlanName) -> Self {
        match name {
            PlanName::Serverless => Self::Serverless,
            PlanName::Dedicated => Self::Dedicated,
        }
    }
}

/// A command about one cluster.
#[derive(Args, Clone, Debug)]
pub struct OneCluster {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
}

/// `chitin user`
#[derive(Clone, Debug, Subcommand)]
pub enum UserCommand {
    /// Create a SQL user; the generated password is printed once
    #[command(
        after_help = "Example:  chitin user create my-shop maria\n          pass show maria | chitin user create my-shop maria --password-stdin\nNext:     chitin sql my-shop --user maria"
    )]
    Create(UserPassword),
    /// List the SQL users
    #[command(after_help = "Example:  chitin user list my-shop\nNext:     chitin user create my-shop maria")]
    List(OneCluster),
    /// Give a SQL user a new password; a generated one is printed once
    #[command(
        after_help = "Example:  chitin user password my-shop maria\nNext:     chitin sql my-shop --user maria"
    )]
    Password(UserPassword),
    /// Delete a SQL user; what it owned goes to `admin`
    #[command(after_help = "Example:  chitin user delete my-shop maria\nNext:     chitin user list my-shop")]
    Delete {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// The SQL user
        user: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// A user and where its password comes from.
#[derive(Args, Clone, Debug)]
pub struct UserPassword {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// The SQL user
    pub user: String,
    /// Read the password from standard input instead of generating one
    #[arg(long)]
    pub password_stdin: bool,
}

/// `chitin database`
#[derive(Clone, Debug, Subcommand)]
pub enum DatabaseCommand {
    /// Create a database
    #[command(
        after_help = "Example:  chitin database create my-shop orders\nNext:     chitin sql my-shop --user maria --database orders"
    )]
    Create(OneDatabase),
    /// List the databases
    #[command(
        after_help = "Example:  chitin database list my-shop\nNext:     chitin database create my-shop orders"
    )]
    List(OneCluster),
    /// Rename a database
    #[command(
        after_help = "Example:  chitin database rename my-shop orders sales\nNext:     chitin database list my-shop"
    )]
    Rename {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// Its present name
        database: String,
        /// Its new name
        new_name: String,
    },
    /// Delete a database and everything in it
    #[command(
        after_help = "Example:  chitin database delete my-shop orders\nNext:     chitin database list my-shop"
    )]
    Delete {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// The database
        database: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// A command about one database.
#[derive(Args, Clone, Debug)]
pub struct OneDatabase {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// The database
    pub database: String,
}

/// `chitin sql`
#[derive(Args, Clone, Debug)]
pub struct Sql {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// The SQL user
    #[arg(long, short = 'U', env = "PGUSER")]
    pub user: Option<String>,
    /// The database
    #[arg(long, short = 'd', env = "PGDATABASE", default_value = model::DEFAULT_DATABASE)]
    pub database: String,
    /// The password
    #[arg(skip = Hidden(std::env::var_os("CHITIN_SQL_PASSWORD").or_else(|| std::env::var_os("PGPASSWORD"))))]
    pub password: Hidden<std::ffi::OsString>,
    /// Arguments for psql, after `--`
    #[arg(last = true, value_name = "PSQL ARGUMENTS")]
    pub arguments: Vec<std::ffi::OsString>,
}

/// `chitin verify`
#[derive(Args, Clone, Debug)]
pub struct Verify {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
}

/// `chitin cert`
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum CertCommand {
    /// Print the root certificate that clients trust (sslrootcert)
    #[command(
        after_help = "Example:  chitin cert ca > ca.pem\nNext:     psql \"sslrootcert=ca.pem sslmode=verify-full …\""
    )]
    Ca,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    #[command(name = "chitin")]
    struct Program {
        #[command(flatten)]
        global: Global,
        #[command(subcommand)]
        command: Every,
    }

    /// As the program puts them together.
    #[derive(clap::Subcommand)]
    enum Every {
        /// Manage keys
        #[command(subcommand, after_help = "Begin with:  chitin key list")]
        Key(KeyCommand),
        #[command(flatten)]
        Client(Command),
    }

    fn parse(line: &str) -> Result<Program, clap::Error> {
        Program::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Program::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_about_an_example_and_a_next_step() {
        fn check(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} says not what it does");
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains("chitin "), "{path} has no example");
            if !command.has_subcommands() {
                assert!(after.contains("Next:") || path.ends_with("completions"), "{path} has no next step");
            }
            for inner in command.get_subcommands() {
                check(inner, &format!("{path} {}", inner.get_name()));
            }
        }
        for command in Program::command().get_subcommands() {
            check(command, command.get_name());
        }
    }

    #[test]
    fn a_wrong_name_or_range_is_a_usage_error_that_says_the_rule() {
        let error = parse("chitin cluster create X").err().unwrap().to_string();
        assert!(error.contains("6 to 40"), "{error}");
        let error = parse("chitin allowlist add my-shop 10.1.2.3/8").err().unwrap().to_string();
        assert!(error.contains("did you mean 10.0.0.0/8"), "{error}");
    }

    #[test]
    fn a_range_or_the_own_address_is_named_and_not_both() {
        assert!(parse_line("chitin allowlist add my-shop --current --expires 8h"));
        assert!(parse_line("chitin allowlist remove my-shop 203.0.113.0/24"));
        assert!(!parse_line("chitin allowlist add my-shop"));
        assert!(!parse_line("chitin allowlist add my-shop 203.0.113.0/24 --current"));
    }

    fn parse_line(line: &str) -> bool {
        parse(line).is_ok()
    }

    #[test]
    fn a_key_is_rotated_in_one_way_at_a_time_and_no_secret_is_an_argument() {
        for good in [
            "chitin key rotate my-shop",
            "chitin key rotate --root",
            "chitin key rotate my-shop --data-key --no-wait",
            "chitin key rotate my-shop --type root",
            "chitin key service set vault --type vault --url https://a --role-id r --secret-id-file f",
        ] {
            assert!(parse_line(good), "{good}");
        }
        for wrong in [
            "chitin key rotate",
            "chitin key rotate my-shop --root",
            "chitin key rotate my-shop --data-key --uri a",
            "chitin key enable my-shop --type azure --uri a",
            "chitin key service set vault --token t",
            "chitin key service set vault --token-file a --role-id b",
            "chitin key service set ../vault",
        ] {
            assert!(!parse_line(wrong), "{wrong}");
        }
    }

    #[test]
    fn global_options_may_stand_anywhere() {
        let program = parse("chitin cluster show my-shop --data /x --output json").unwrap();
        assert_eq!(
            (program.global.data.as_deref().and_then(|data| data.to_str()), program.global.output),
            (Some("/x"), Output::Json)
        );
        let Every::Client(Command::Cluster(ClusterCommand::Show(one))) = program.command else { panic!() };
        assert_eq!(one.cluster, "my-shop");
        assert!(parse("chitin --data /x sql my-shop -U maria -- -c select").is_ok());
    }
}
