//! The command lines about how people sign in.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use model::{OcspMode, ProviderName};

use super::OneCluster;

/// `chitin hba`
#[derive(Clone, Debug, Subcommand)]
pub enum HbaCommand {
    /// Show the rules in force
    #[command(
        after_help = "Example:  chitin hba show my-shop > rules.conf\nNext:     chitin hba set my-shop rules.conf"
    )]
    Show(OneCluster),
    /// Set the rules; they hold for new connections at once
    #[command(
        long_about = "Set the rules; they hold for new connections at once.\n\nA line is TYPE DATABASE USER ADDRESS METHOD [OPTIONS], as in pg_hba.conf. The first line that matches decides; where none does, the client is refused. Methods: scram-sha-256, password, cert, cert-password, jwt, oauth, browser, reject. For instance:\n\n  host  all  maria  203.0.113.0/24  cert\n  host  all  +dba   all             browser  provider=corp\n  host  all  all    all             scram-sha-256",
        after_help = "Example:  chitin hba set my-shop rules.conf\n          chitin hba set my-shop - < rules.conf\n          chitin hba set my-shop --default\nNext:     chitin hba test my-shop --user maria --address 203.0.113.7",
        group(ArgGroup::new("rules").required(true).args(["file", "default"]))
    )]
    Set {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// The rules; `-` reads standard input
        file: Option<PathBuf>,
        /// Go back to the default, which lets passwords and certificates in
        #[arg(long)]
        default: bool,
    },
    /// Say which rule a client would meet, and why; nothing is tried
    #[command(
        after_help = "Example:  chitin hba test my-shop --user maria --address 203.0.113.7\n          chitin hba test my-shop --user maria --address 203.0.113.7 --method cert --role dba\nNext:     chitin hba show my-shop"
    )]
    Test(HbaTest),
}

/// `chitin hba test`
#[derive(Args, Clone, Debug)]
pub struct HbaTest {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// The SQL user
    #[arg(long, short = 'U')]
    pub user: String,
    /// The database
    #[arg(long, short = 'd', default_value = model::DEFAULT_DATABASE)]
    pub database: String,
    /// The client's address, for instance 203.0.113.7 or 2001:db8::1
    #[arg(long, value_name = "IP")]
    pub address: IpAddr,
    /// How the client would prove who it is, for instance cert or scram-sha-256
    #[arg(long)]
    pub method: Option<String>,
    /// A role that the user is a member of; more than one may be given. Without any, those of the SQL user
    #[arg(long, value_name = "ROLE")]
    pub role: Vec<String>,
}

/// `chitin identity-map`
#[derive(Clone, Debug, Subcommand)]
pub enum IdentityMapCommand {
    /// Show the map
    #[command(
        after_help = "Example:  chitin identity-map show my-shop > map.conf\nNext:     chitin identity-map set my-shop map.conf"
    )]
    Show(OneCluster),
    /// Set the map; it holds for new connections at once
    #[command(
        long_about = "Set the map; it holds for new connections at once.\n\nA line is MAP EXTERNAL-NAME SQL-USER, as in pg_ident.conf. An external name that begins with `/` is a regular expression for the whole name, and \\1 in the SQL user is what its group matched. A rule of `chitin hba` names its map by map=; without that, a token's map is named as its issuer. For instance:\n\n  people  /^(.*)@example\\.org$  \\1\n  people  maria.muster          maria",
        after_help = "Example:  chitin identity-map set my-shop map.conf\n          chitin identity-map set my-shop --clear\nNext:     chitin hba show my-shop",
        group(ArgGroup::new("map").required(true).args(["file", "clear"]))
    )]
    Set {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// The map; `-` reads standard input
        file: Option<PathBuf>,
        /// Take the map away: every name means the SQL user of the same name
        #[arg(long)]
        clear: bool,
    },
}

/// A cluster and a file with certificates or revocation lists.
#[derive(Args, Clone, Debug)]
pub struct Bundle {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// One or several after each other, in PEM; `-` reads standard input
    pub file: PathBuf,
}

/// A cluster, and whether its PEM is wanted as it is.
#[derive(Args, Clone, Debug)]
pub struct ShowBundle {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// Print the PEM itself
    #[arg(long)]
    pub pem: bool,
}

/// `chitin client-ca`
#[derive(Clone, Debug, Subcommand)]
pub enum ClientCaCommand {
    /// Show the authorities whose certificates are accepted
    #[command(
        after_help = "Example:  chitin client-ca show my-shop\n          chitin client-ca show my-shop --pem > ca.pem\nNext:     chitin client-ca set my-shop ca.pem"
    )]
    Show(ShowBundle),
    /// Set or replace the authorities: root certificates; clients send intermediate ones themselves
    #[command(
        after_help = "Example:  chitin client-ca set my-shop ca.pem\n          cat old.pem new.pem | chitin client-ca set my-shop -\nNext:     psql \"… user=maria sslcert=maria.pem sslkey=maria.key\"\n          chitin ocsp set my-shop --mode lax"
    )]
    Set(Bundle),
    /// Take the authorities away: nobody signs in with a certificate any more
    #[command(after_help = "Example:  chitin client-ca delete my-shop\nNext:     chitin hba show my-shop")]
    Delete(OneCluster),
}

/// `chitin ocsp`
#[derive(Clone, Debug, Subcommand)]
pub enum OcspCommand {
    /// Show how revocation is asked for
    #[command(
        after_help = "Example:  chitin ocsp show my-shop\nNext:     chitin ocsp set my-shop --mode lax"
    )]
    Show(OneCluster),
    /// Change how revocation is asked for; what is not said stays
    #[command(
        long_about = "Change how revocation is asked for; what is not said stays.\n\noff: nobody is asked. lax: a revoked certificate is refused; where no answer can be had, the certificate is accepted with a warning in the log. strict: only a certificate that its responder calls good is accepted. Begin with lax: in strict, a responder that is down locks everybody out who signs in with a certificate.",
        after_help = "Example:  chitin ocsp set my-shop --mode strict\n          chitin ocsp set my-shop --responder http://ocsp.example.org --timeout-ms 2000\nNext:     chitin ocsp show my-shop"
    )]
    Set(OcspSet),
}

/// `chitin ocsp set`
#[derive(Args, Clone, Debug)]
#[command(group(
    ArgGroup::new("change").required(true).multiple(true).args(["mode", "responder", "accept_without_responder", "timeout_ms"])
))]
pub struct OcspSet {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// How strictly
    #[arg(long, value_enum)]
    pub mode: Option<ModeName>,
    /// The responder to ask instead of those that certificates name; an empty one goes back to those
    #[arg(long, value_name = "URL")]
    pub responder: Option<String>,
    /// In strict: whether a certificate that names no responder is accepted all the same
    #[arg(long, value_name = "BOOL")]
    pub accept_without_responder: Option<bool>,
    /// For all certificates of a chain together, 100 to 10000
    #[arg(long, value_name = "MILLISECONDS")]
    pub timeout_ms: Option<u32>,
}

/// A mode as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeName {
    /// Nobody is asked.
    Off,
    /// Only a revoked certificate is refused.
    Lax,
    /// Only a certificate that is known to be good is accepted.
    Strict,
}

impl From<ModeName> for OcspMode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Off => Self::Off,
            ModeName::Lax => Self::Lax,
            ModeName::Strict => Self::Strict,
        }
    }
}

/// `chitin crl`
#[derive(Clone, Debug, Subcommand)]
pub enum CrlCommand {
    /// Show the lists of revoked certificates
    #[command(
        after_help = "Example:  chitin crl show my-shop\n          chitin crl show my-shop --pem\nNext:     chitin crl set my-shop crl.pem"
    )]
    Show(ShowBundle),
    /// Set or replace the lists; whoever is on one is refused
    #[command(
        long_about = "Set or replace the lists; whoever is on one is refused.\n\nA list holds until its next update. When that has passed, everybody whom its authority certified is refused until you set a newer one. Where lists are set, every authority of a certificate's chain but the root's own issuer needs one; --accept-without-list permits that one has none.",
        after_help = "Example:  chitin crl set my-shop crl.pem\n          cat root.crl intermediate.crl | chitin crl set my-shop -\nNext:     chitin crl show my-shop"
    )]
    Set(CrlSet),
    /// Take the lists away
    #[command(after_help = "Example:  chitin crl delete my-shop\nNext:     chitin ocsp show my-shop")]
    Delete(OneCluster),
}

/// `chitin crl set`
#[derive(Args, Clone, Debug)]
pub struct CrlSet {
    /// What is set, and where it is.
    #[command(flatten)]
    pub bundle: Bundle,
    /// A certificate counts all the same that an authority without a list among these issued
    #[arg(long)]
    pub accept_without_list: bool,
}

/// `chitin provider`
#[derive(Clone, Debug, Subcommand)]
pub enum ProviderCommand {
    /// List the providers of the cloud, or those that a cluster trusts
    #[command(
        after_help = "Example:  chitin provider list\n          chitin provider list --cluster my-shop\nNext:     chitin provider set corp --issuer https://login.example.org --client-id chitin"
    )]
    List {
        /// Those that this cluster trusts: its own, then the cloud's
        #[arg(long)]
        cluster: Option<String>,
    },
    /// Add a provider, or change one; what is not said stays
    #[command(
        long_about = "Add a provider, or change one; what is not said stays, an empty value goes back to the default.\n\nTokens are accepted only if they come from this issuer and are meant for the client id or one of the audiences. Register the redirect address https://YOUR-CLOUD/oidc/v1/callback at the provider to sign in through a browser. A client secret is read from standard input, never from an argument, and is never shown again.\n\nIt is tried before it counts: the provider is asked for what it publishes, and whether it accepts the client secret. Where that fails nothing is changed; --force sets it all the same.",
        after_help = "Example:  chitin provider set corp --issuer https://login.example.org --client-id chitin --provision true\n          pass show corp | chitin provider set corp --client-secret-stdin\n          chitin provider set ci --cluster my-shop --issuer https://ci.example.org --audience my-shop --jwks keys.json\n          chitin provider set corp --group-claim groups --group-role dba=admin --group-role sales=readers\nNext:     echo 'host all all all browser provider=corp' | chitin hba set my-shop -"
    )]
    Set(Box<ProviderSet>),
    /// Remove a provider; its tokens are refused from then on
    #[command(
        after_help = "Example:  chitin provider remove corp\n          chitin provider remove ci --cluster my-shop\nNext:     chitin provider list"
    )]
    Remove {
        /// The provider
        name: ProviderName,
        /// The cluster whose own provider it is; without it, a provider of the cloud
        #[arg(long)]
        cluster: Option<String>,
    },
}

/// `chitin provider set`
#[derive(Args, Clone, Debug)]
pub struct ProviderSet {
    /// What to call it: letters, digits, `-` and `_`
    pub name: ProviderName,
    /// The one cluster that trusts it; without it, all clusters do
    #[arg(long)]
    pub cluster: Option<String>,
    /// Its issuer, exactly as its tokens carry it in `iss`
    #[arg(long, value_name = "URL")]
    pub issuer: Option<String>,
    /// The cloud's client id there, needed to sign in through a browser
    #[arg(long, value_name = "ID")]
    pub client_id: Option<String>,
    /// Read the cloud's client secret there from standard input
    #[arg(long, conflicts_with = "no_client_secret")]
    pub client_secret_stdin: bool,
    /// Forget the client secret
    #[arg(long)]
    pub no_client_secret: bool,
    /// An audience that is accepted in tokens, besides the client id; more than one may be given
    #[arg(long, value_name = "AUDIENCE")]
    pub audience: Option<Vec<String>>,
    /// The claim that names the person
    #[arg(long)]
    pub claim: Option<String>,
    /// A file with the provider's keys (JWK Set) instead of discovery; `-` reads standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["jwks_uri", "client_secret_stdin"])]
    pub jwks: Option<PathBuf>,
    /// Where the provider's keys are, instead of where discovery says
    #[arg(long, value_name = "URL")]
    pub jwks_uri: Option<String>,
    /// A PEM file with the roots to trust for the provider's own addresses, instead of the machine's
    #[arg(long, value_name = "FILE")]
    pub provider_ca: Option<PathBuf>,
    /// What to ask for in the browser, besides openid; more than one may be given
    #[arg(long, value_name = "SCOPE")]
    pub scope: Option<Vec<String>>,
    /// By how much clocks may differ, 0 to 300
    #[arg(long, value_name = "SECONDS")]
    pub clock_skew: Option<u32>,
    /// The claim that lists groups; with it, roles are granted and revoked at each sign-in
    #[arg(long, value_name = "CLAIM")]
    pub group_claim: Option<String>,
    /// The SQL role that a group gives; more than one may be given, and they replace those that were there
    #[arg(long, value_name = "GROUP=ROLE", value_parser = group_role)]
    pub group_role: Option<Vec<(String, String)>>,
    /// Whether a SQL user is made at the first sign-in
    #[arg(long, value_name = "BOOL")]
    pub provision: Option<bool>,
    /// Set it without trying it at the provider
    #[arg(long)]
    pub force: bool,
}

/// `GROUP=ROLE`, split at the last `=`, since groups are often distinguished names. An empty text is no pair.
fn group_role(text: &str) -> Result<(String, String), String> {
    if text.is_empty() {
        return Ok((String::new(), String::new()));
    }
    match text.rsplit_once('=') {
        Some((group, role)) if !group.is_empty() && !role.is_empty() => {
            Ok((group.to_owned(), role.to_owned()))
        }
        _ => Err("write GROUP=ROLE, for instance dba=admin".to_owned()),
    }
}

/// `chitin throttle`
#[derive(Clone, Debug, Subcommand)]
pub enum ThrottleCommand {
    /// List failed sign-ins that are remembered, by address and by user
    #[command(
        after_help = "Example:  chitin throttle list\nNext:     chitin throttle clear --cluster my-shop --user maria"
    )]
    List,
    /// Forget failed sign-ins, so that the next attempt is not slowed or refused
    #[command(
        long_about = "Forget failed sign-ins, so that the next attempt is not slowed or refused.\n\nWhat is named together must hold together: --cluster and --user forget that user's failures there. An address is counted at all clusters too, under no cluster and no user: --address alone forgets everything of it.",
        after_help = "Example:  chitin throttle clear --cluster my-shop --user maria\n          chitin throttle clear --address 203.0.113.7\n          chitin throttle clear --all\nNext:     chitin throttle list",
        group(ArgGroup::new("which").required(true).multiple(true).args(["cluster", "user", "address", "all"]))
    )]
    Clear {
        /// Only those at this cluster
        #[arg(long)]
        cluster: Option<String>,
        /// Only those as this SQL user
        #[arg(long)]
        user: Option<String>,
        /// Only those from this address
        #[arg(long, value_name = "IP")]
        address: Option<IpAddr>,
        /// All of them
        #[arg(long, conflicts_with_all = ["cluster", "user", "address"])]
        all: bool,
    },
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Command;
    use super::*;

    #[derive(Parser)]
    #[command(name = "chitin")]
    struct Program {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Program::try_parse_from(line.split_whitespace()).map(|program| program.command)
    }

    #[test]
    fn rules_come_from_a_file_or_are_the_default_and_never_both_or_neither() {
        for good in ["rules.conf", "-", "--default"] {
            assert!(parse(&format!("chitin hba set my-shop {good}")).is_ok(), "{good}");
        }
        for wrong in ["", "rules.conf --default"] {
            assert!(parse(&format!("chitin hba set my-shop {wrong}")).is_err(), "{wrong}");
        }
        for (rest, is_good) in
            [("map.conf", true), ("--clear", true), ("", false), ("map.conf --clear", false)]
        {
            assert_eq!(parse(&format!("chitin identity-map set my-shop {rest}")).is_ok(), is_good, "{rest}");
        }
    }

    #[test]
    fn a_client_to_test_has_a_user_and_an_address() {
        let line = "chitin hba test my-shop -U maria --address 2001:db8::1 --role dba --role sales";
        let Ok(Command::Hba(HbaCommand::Test(test))) = parse(line) else { panic!() };
        assert_eq!((test.database.as_str(), test.role.len()), ("defaultdb", 2));
        for wrong in ["--user maria", "--address 203.0.113.7", "--user maria --address 203.0.113.0/24"] {
            assert!(parse(&format!("chitin hba test my-shop {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_is_no_argument() {
        assert!(parse("chitin provider set corp --client-secret abc").is_err());
        assert!(parse("chitin provider set corp --client-secret-stdin --no-client-secret").is_err());
        assert!(
            parse("chitin provider set corp --client-secret-stdin --jwks -").is_err(),
            "one standard input"
        );
        let line = "chitin provider set corp --client-secret-stdin --audience a --audience b";
        let Ok(Command::Provider(ProviderCommand::Set(set))) = parse(line) else { panic!() };
        assert_eq!(set.audience, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert!(parse("chitin provider set 2corp").is_err());
    }

    #[test]
    fn a_group_may_be_a_distinguished_name() {
        let pair = |group: &str, role: &str| Ok((group.to_owned(), role.to_owned()));
        assert_eq!(group_role("dba=admin"), pair("dba", "admin"));
        assert_eq!(group_role("CN=dba,OU=people=admin"), pair("CN=dba,OU=people", "admin"));
        assert_eq!(group_role(""), pair("", ""));
        for wrong in ["dba", "=admin", "dba="] {
            assert!(group_role(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_is_changed_or_forgotten_that_was_not_named() {
        assert!(parse("chitin throttle clear").is_err());
        assert!(parse("chitin throttle clear --all --user maria").is_err());
        assert!(parse("chitin throttle clear --cluster my-shop --user maria").is_ok());
        assert!(parse("chitin ocsp set my-shop").is_err());
        assert!(parse("chitin ocsp set my-shop --mode lax --timeout-ms 500").is_ok());
        assert!(parse("chitin ocsp set my-shop --mode none").is_err());
    }
}
