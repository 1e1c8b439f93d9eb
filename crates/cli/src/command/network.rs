//! The command lines about private networks, peerings and private endpoints.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use model::{AddressRange, PeeringName, Visibility};

use super::OneCluster;

/// Who can see a cluster, as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VisibilityName {
    /// Everybody whom the allowlist lets in.
    Public,
    /// Only the cluster's private network and accepted private endpoints.
    Private,
}

impl From<VisibilityName> for Visibility {
    fn from(name: VisibilityName) -> Self {
        match name {
            VisibilityName::Public => Self::Public,
            VisibilityName::Private => Self::Private,
        }
    }
}

/// Who shall see a cluster that is made.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct NetworkChoice {
    /// Who can see it: private is the cluster's private network and accepted private endpoints alone. Needs Chitin to run
    /// as root or with CAP_NET_ADMIN
    #[arg(long, value_enum, value_name = "WHO")]
    pub visibility: Option<VisibilityName>,
    /// The addresses of its private network; a private cluster without it gets a free /24 of 10.224.0.0/11
    #[arg(long, value_name = "CIDR")]
    pub cidr: Option<AddressRange>,
}

/// `chitin cluster visibility`
#[derive(Args, Clone, Debug)]
pub struct ClusterVisibility {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// Who shall see it from now on; without it, what holds is shown
    #[arg(value_enum)]
    pub visibility: Option<VisibilityName>,
    /// The addresses of its private network; a private cluster without any gets a free /24, a public one keeps its own
    /// only while it has peerings
    #[arg(long, value_name = "CIDR", requires = "visibility")]
    pub cidr: Option<AddressRange>,
}

/// `chitin peering`
#[derive(Clone, Debug, Subcommand)]
pub enum PeeringCommand {
    /// Propose to join a cluster's private network with another network
    #[command(
        long_about = "Propose to join a cluster's private network with another network.\n\nThe other network is a network namespace, a bridge or the network behind an interface of the cloud's machine, or a network elsewhere by WireGuard. Nothing is joined until the peering is accepted. Name with --range what lies behind the other side, if more than the other side itself shall reach the cluster. Needs Chitin to run as root or with CAP_NET_ADMIN.",
        after_help = "Example:  chitin peering create my-shop office --namespace office --range 192.168.5.0/24\n          chitin peering create my-shop lan --bridge br0 --address 192.168.5.2/24\n          chitin peering create my-shop lan --interface eth1 --address 192.168.5.2/24\n          chitin peering create my-shop home --wireguard --endpoint vpn.example.org:51820\nNext:     chitin peering accept my-shop office"
    )]
    Create(Box<PeeringCreate>),
    /// Accept a peering: its two sides are joined from then on
    #[command(
        after_help = "Example:  chitin peering accept my-shop office\n          chitin peering accept my-shop home --public-key 'AAEC…Hh8='\nNext:     chitin peering show my-shop office"
    )]
    Accept {
        /// The peering
        #[command(flatten)]
        peering: OnePeering,
        /// The other side's public key, for WireGuard, where it was not said before; `wg pubkey` prints it there
        #[arg(long, value_name = "KEY")]
        public_key: Option<String>,
    },
    /// List what a cluster's private network is joined with
    #[command(
        after_help = "Example:  chitin peering list my-shop\nNext:     chitin peering show my-shop office"
    )]
    List(OneCluster),
    /// Show one peering
    #[command(
        after_help = "Example:  chitin peering show my-shop office\nNext:     chitin cluster visibility my-shop"
    )]
    Show(OnePeering),
    /// End a peering; sessions that come through it are cut
    #[command(
        after_help = "Example:  chitin peering delete my-shop office\nNext:     chitin peering list my-shop"
    )]
    Delete(OnePeering),
    /// Print the WireGuard configuration for the other side, without its private key
    #[command(
        after_help = "Example:  chitin peering config my-shop home > chitin.conf\nNext:     there, fill in the private key, then: wg-quick up ./chitin.conf"
    )]
    Config(OnePeering),
}

/// A command about one peering.
#[derive(Args, Clone, Debug)]
pub struct OnePeering {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// The peering: 1 to 32 lower-case letters, digits and dashes
    pub name: PeeringName,
}

/// `chitin peering create`
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("with").required(true).args(["namespace", "bridge", "interface", "wireguard"])))]
pub struct PeeringCreate {
    /// The peering
    #[command(flatten)]
    pub peering: OnePeering,
    /// A network namespace of the cloud's machine, as `ip netns list` shows it
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// A bridge of the cloud's machine
    #[arg(long, value_name = "BRIDGE", requires = "address")]
    pub bridge: Option<String>,
    /// The network behind an interface of the cloud's machine
    #[arg(long, value_name = "INTERFACE", requires = "address")]
    pub interface: Option<String>,
    /// A free address of the bridge's or the interface's network for the cluster, with that network's prefix length
    #[arg(long, value_name = "IP/LENGTH", conflicts_with_all = ["namespace", "wireguard"])]
    pub address: Option<String>,
    /// A network elsewhere, by WireGuard
    #[arg(long)]
    pub wireguard: bool,
    /// The UDP port on which the cloud's machine listens; without it, the lowest free one from 51820
    #[arg(long, value_name = "PORT", conflicts_with_all = ["namespace", "bridge", "interface"], value_parser = clap::value_parser!(u16).range(1..))]
    pub listen_port: Option<u16>,
    /// Where the other side is reached; without it, the other side calls first
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["namespace", "bridge", "interface"])]
    pub endpoint: Option<String>,
    /// The other side's public key; it may also come with the acceptance
    #[arg(long, value_name = "KEY", conflicts_with_all = ["namespace", "bridge", "interface"])]
    pub public_key: Option<String>,
    /// A range of addresses behind the other side; more than one may be given
    #[arg(long = "range", value_name = "CIDR")]
    pub ranges: Vec<AddressRange>,
}

/// `chitin endpoint`
#[derive(Clone, Debug, Subcommand)]
pub enum EndpointCommand {
    /// Show what a customer needs to reach a cluster by a private endpoint, or make it
    #[command(
        after_help = "Example:  chitin endpoint service my-shop\n          chitin endpoint service my-bank --create\nNext:     chitin endpoint add my-bank vpce-08d2bf15fac5001c9"
    )]
    Service {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// Make the service; on a serverless cluster it exists by itself
        #[arg(long)]
        create: bool,
    },
    /// List the private endpoints of a cluster, those that wait for acceptance too
    #[command(
        after_help = "Example:  chitin endpoint list my-shop\nNext:     chitin endpoint accept my-shop vpce-08d2bf15fac5001c9"
    )]
    List(OneCluster),
    /// Add a private endpoint: it may come in, if its owner is trusted
    #[command(
        long_about = "Add a private endpoint: it may come in, if its owner is trusted.\n\nAn endpoint is vpce-… (AWS), psc:NUMBER (GCP), azure:NUMBER (the link id), wireguard:PUBLIC-KEY (the other side of a peering) or certificate:SHA256 (of a connecting proxy's public key). On a cluster of provider GCP or AZURE a bare number is that provider's.",
        after_help = "Example:  chitin endpoint add my-shop vpce-08d2bf15fac5001c9 --owner 012345678901\n          chitin endpoint add my-shop psc:66591350460354561\nNext:     chitin endpoint list my-shop"
    )]
    Add(OwnedEndpoint),
    /// Accept a private endpoint that waits
    #[command(
        after_help = "Example:  chitin endpoint accept my-shop vpce-08d2bf15fac5001c9\nNext:     chitin endpoint list my-shop"
    )]
    Accept(OwnedEndpoint),
    /// Reject a private endpoint; its sessions are cut
    #[command(
        after_help = "Example:  chitin endpoint reject my-shop vpce-08d2bf15fac5001c9\nNext:     chitin endpoint list my-shop"
    )]
    Reject(OneEndpoint),
    /// Remove a private endpoint; its sessions are cut
    #[command(
        after_help = "Example:  chitin endpoint remove my-shop vpce-08d2bf15fac5001c9\nNext:     chitin endpoint list my-shop"
    )]
    Remove(OneEndpoint),
    /// Say whose private endpoints may be accepted; without any owner, everybody's
    #[command(subcommand, after_help = "Begin with:  chitin endpoint owner list my-shop")]
    Owner(OwnerCommand),
}

/// A command about one private endpoint.
#[derive(Args, Clone, Debug)]
pub struct OneEndpoint {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// The endpoint, for instance vpce-08d2bf15fac5001c9
    pub endpoint: String,
}

/// A private endpoint and whose it is.
#[derive(Args, Clone, Debug)]
pub struct OwnedEndpoint {
    /// The endpoint
    #[command(flatten)]
    pub one: OneEndpoint,
    /// Whose it is: an AWS account's 12 digits. Needed where the cluster trusts certain owners only
    #[arg(long, value_name = "ACCOUNT")]
    pub owner: Option<String>,
}

/// `chitin endpoint owner`
#[derive(Clone, Debug, Subcommand)]
pub enum OwnerCommand {
    /// List the trusted owners
    #[command(
        after_help = "Example:  chitin endpoint owner list my-shop\nNext:     chitin endpoint owner add my-shop 012345678901"
    )]
    List(OneCluster),
    /// Trust an owner
    #[command(
        after_help = "Example:  chitin endpoint owner add my-shop 012345678901\nNext:     chitin endpoint add my-shop vpce-08d2bf15fac5001c9 --owner 012345678901"
    )]
    Add(OneOwner),
    /// Trust an owner no more; its private endpoints are rejected and their sessions cut
    #[command(
        after_help = "Example:  chitin endpoint owner remove my-shop 012345678901\nNext:     chitin endpoint list my-shop"
    )]
    Remove(OneOwner),
}

/// A command about one trusted owner.
#[derive(Args, Clone, Debug)]
pub struct OneOwner {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// An AWS account's 12 digits, or `*` for every owner
    pub owner: String,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{ClusterCommand, Command};
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

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
    fn a_cluster_is_made_private_or_becomes_it() {
        let line = "chitin cluster create my-shop --visibility private --cidr 10.77.0.0/24";
        let Ok(Command::Cluster(ClusterCommand::Create(wanted))) = parse(line) else { panic!() };
        assert_eq!(wanted.network.visibility, Some(VisibilityName::Private));
        let refused = parse("chitin cluster create my-shop --cidr 10.77.0.1/24").err().unwrap().to_string();
        assert!(refused.contains("did you mean 10.77.0.0/24"), "{refused}");
        for (rest, is_good) in [
            ("", true),
            ("private", true),
            ("public --cidr 10.77.0.0/24", true),
            ("--cidr 10.77.0.0/24", false),
            ("hidden", false),
        ] {
            assert_eq!(
                parse(&format!("chitin cluster visibility my-shop {rest}")).is_ok(),
                is_good,
                "{rest}"
            );
        }
    }

    #[test]
    fn a_peering_is_with_exactly_one_network() {
        for good in [
            "--namespace office",
            "--namespace office --range 192.168.5.0/24 --range 192.168.6.0/24",
            "--bridge br0 --address 192.168.5.2/24",
            "--interface eth1 --address 192.168.5.2/24",
            "--wireguard",
            &format!("--wireguard --listen-port 7000 --endpoint vpn.example.org:51820 --public-key {KEY}"),
        ] {
            assert!(parse(&format!("chitin peering create my-shop office {good}")).is_ok(), "{good}");
        }
        for wrong in [
            "",
            "--namespace office --wireguard",
            "--bridge br0",
            "--interface eth1",
            "--address 192.168.5.2/24",
            "--namespace office --address 192.168.5.2/24",
            "--wireguard --address 192.168.5.2/24",
            "--bridge br0 --interface eth1 --address 192.168.5.2/24",
            "--namespace office --listen-port 7000",
            "--namespace office --endpoint vpn.example.org:51820",
            "--wireguard --listen-port 0",
            "--namespace office --range 192.168.5.1/24",
        ] {
            assert!(parse(&format!("chitin peering create my-shop office {wrong}")).is_err(), "{wrong}");
        }
        assert!(parse("chitin peering create my-shop Office --wireguard").is_err());
        assert!(parse(&format!("chitin peering accept my-shop home --public-key {KEY}")).is_ok());
    }

    #[test]
    fn an_endpoint_has_an_owner_where_it_is_let_in_and_nowhere_else() {
        for good in [
            "add my-shop psc:7 --owner 012345678901",
            "accept my-shop 7",
            "reject my-shop 7",
            "remove my-shop 7",
            "list my-shop",
            "service my-shop --create",
            "owner list my-shop",
            "owner add my-shop *",
            "owner remove my-shop 012345678901",
        ] {
            assert!(parse(&format!("chitin endpoint {good}")).is_ok(), "{good}");
        }
        for wrong in ["add my-shop", "reject my-shop 7 --owner 012345678901", "owner add my-shop"] {
            assert!(parse(&format!("chitin endpoint {wrong}")).is_err(), "{wrong}");
        }
    }
}
