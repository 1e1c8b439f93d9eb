//! The command lines about keys and the services that keep them.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use model::{KeyServiceName, KeyType};

use super::OneCluster;

/// `chitin key`: what needs a running cloud. The program adds what works on files alone.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// List what encrypts every cluster, or show all of one cluster's keys
    #[command(
        after_help = "Example:  chitin key list\n          chitin key list my-shop\nNext:     chitin key enable my-shop --type vault --uri transit/keys/my-shop"
    )]
    List {
        /// Name, NAME-ID or id of one cluster
        cluster: Option<String>,
    },
    /// Wrap a cluster's data key with a key of your own, which stays at its service
    #[command(
        long_about = "Wrap a cluster's data key with a key of your own, which stays at its service.\n\nNo data are rewritten and no session ends. From then on the cluster can only start while the service lets the cloud use that key. The forms of --uri: vault: transit/keys/NAME; aws: the key's ARN; gcp: projects/P/locations/L/keyRings/R/cryptoKeys/K; pkcs11: pkcs11:token=T;object=NAME.",
        after_help = "Example:  chitin key enable my-shop --type vault --uri transit/keys/my-shop\n          chitin key enable my-shop --type aws --uri arn:aws:kms:eu-central-1:111122223333:key/ID --principal arn:aws:iam::111122223333:role/chitin\nNext:     chitin key list my-shop"
    )]
    Enable(KeyEnable),
    /// Go over to a key's newest version, to another key, or to another data key
    #[command(
        long_about = "Go over to a key's newest version, to another key, or to another data key.\n\nWithout --uri, the data key is wrapped anew by the newest version of the key that the cluster has. With --uri (and --type where it is of another kind), another key takes over; --type root goes back to the cloud's own. Neither rewrites data. --data-key makes another data key and encrypts the whole volume anew: in the background, with a short stop at its end. --root makes a new version of the cloud's root key.",
        after_help = "Example:  chitin key rotate my-shop\n          chitin key rotate my-shop --uri transit/keys/my-shop-2027\n          chitin key rotate my-shop --data-key\n          chitin key rotate --root\nNext:     chitin key list my-shop",
        group(ArgGroup::new("whose").required(true).args(["cluster", "root"]))
    )]
    Rotate(KeyRotate),
    /// Take a cluster's key away: its sessions end, it stops, and it cannot start
    #[command(after_help = "Example:  chitin key revoke my-shop\nNext:     chitin key restore my-shop")]
    Revoke {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Do not wait until the cluster is locked
        #[arg(long)]
        no_wait: bool,
    },
    /// Give a revoked key back; the cluster can start again
    #[command(after_help = "Example:  chitin key restore my-shop\nNext:     chitin key list my-shop")]
    Restore(OneCluster),
    /// Manage the services that keep keys: Vault, AWS KMS, Google Cloud KMS, PKCS #11 modules
    #[command(subcommand, after_help = "Begin with:  chitin key service list")]
    Service(KeyServiceCommand),
}

/// `chitin key enable`
#[derive(Args, Clone, Debug)]
pub struct KeyEnable {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// What keeps the key
    #[arg(long = "type", value_enum)]
    pub kind: KeyTypeName,
    /// The key's name there
    #[arg(long)]
    pub uri: String,
    /// As whom the key is used: a role's ARN for aws, a service account's address for gcp
    #[arg(long, value_name = "WHO")]
    pub principal: Option<String>,
    /// The key service that leads to it; without it, the only one of its type
    #[arg(long, value_name = "NAME")]
    pub service: Option<KeyServiceName>,
    /// Do not wait until the key is in use
    #[arg(long)]
    pub no_wait: bool,
}

/// `chitin key rotate`
#[derive(Args, Clone, Debug)]
pub struct KeyRotate {
    /// Name, NAME-ID or id of the cluster
    pub cluster: Option<String>,
    /// Another key's name at its service
    #[arg(long)]
    pub uri: Option<String>,
    /// What keeps the other key; without it, the same as now. root: the cloud's own key
    #[arg(long = "type", value_enum)]
    pub kind: Option<KeyTypeName>,
    /// As whom the other key is used
    #[arg(long, value_name = "WHO", requires = "uri")]
    pub principal: Option<String>,
    /// The key service that leads to the other key
    #[arg(long, value_name = "NAME", requires = "uri")]
    pub service: Option<KeyServiceName>,
    /// Make another data key, and encrypt the volume anew
    #[arg(long, conflicts_with_all = ["uri", "kind", "root"])]
    pub data_key: bool,
    /// Make a new version of the cloud's root key
    #[arg(long, conflicts_with_all = ["uri", "kind"])]
    pub root: bool,
    /// Do not wait until it is done
    #[arg(long)]
    pub no_wait: bool,
}

/// What keeps a key, as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyTypeName {
    /// The transit engine of Vault or OpenBao.
    Vault,
    /// AWS Key Management Service.
    Aws,
    /// Google Cloud KMS.
    Gcp,
    /// A hardware security module.
    Pkcs11,
    /// The cloud's own root key.
    Root,
}

impl From<KeyTypeName> for KeyType {
    fn from(name: KeyTypeName) -> Self {
        match name {
            KeyTypeName::Vault => Self::Vault,
            KeyTypeName::Aws => Self::Aws,
            KeyTypeName::Gcp => Self::Gcp,
            KeyTypeName::Pkcs11 => Self::Pkcs11,
            KeyTypeName::Root => Self::Null,
        }
    }
}

/// `chitin key service`
#[derive(Clone, Debug, Subcommand)]
pub enum KeyServiceCommand {
    /// List the key services; secrets are never shown
    #[command(
        after_help = "Example:  chitin key service list\nNext:     chitin key service set vault --type vault --address https://vault.example.org:8200 --token-file token"
    )]
    List,
    /// Add a key service, or change one; what is not said stays
    #[command(
        long_about = "Add a key service, or change one; what is not said stays.\n\nWhat changes is tried before it counts: each key that clusters use through the service, sixteen of them at the most, wraps and unwraps a throw-away data key and opens a cluster's own. Where that fails nothing is changed; --force sets it all the same.\n\nSecrets are read from files that only you can read (`-` is standard input), or asked for on a terminal; never from arguments or the environment. A file holds the secret as its service shows it and nothing else: a token, a secret id, a secret access key, a session token or a PIN as one line of text, whose line end is not part of it; for gcp the JSON file of the service account's key as Google gives it. A secret that is kept is never sent to another address: whoever changes the address gives the secret again.",
        after_help = "Example:  chitin key service set vault --type vault --address https://vault.example.org:8200 --token-file token\n          chitin key service set vault --type vault --address https://vault.example.org:8200 --role-id ROLE --secret-id-file secret\n          chitin key service set aws --type aws --access-key-id AKIA… --secret-access-key-file secret\n          chitin key service set google --type gcp --credentials-file account.json\n          chitin key service set module --type pkcs11 --module /usr/lib/softhsm/libsofthsm2.so --pin-file pin\nNext:     chitin key service test vault --uri transit/keys/my-shop"
    )]
    Set(Box<KeyServiceSet>),
    /// Remove a key service that no cluster needs
    #[command(after_help = "Example:  chitin key service remove vault\nNext:     chitin key service list")]
    Remove {
        /// The key service
        name: KeyServiceName,
    },
    /// Try a key: a throw-away data key is wrapped and unwrapped
    #[command(
        after_help = "Example:  chitin key service test vault --uri transit/keys/my-shop\n          chitin key service test vault --uri transit/keys/my-shop --cluster my-shop\nNext:     chitin key enable my-shop --type vault --uri transit/keys/my-shop"
    )]
    Test {
        /// The key service
        name: KeyServiceName,
        /// The key's name there
        #[arg(long)]
        uri: String,
        /// As whom the key is used
        #[arg(long, value_name = "WHO")]
        principal: Option<String>,
        /// The cluster for which it is tried, whose egress policy counts
        #[arg(long)]
        cluster: Option<String>,
    },
}

/// `chitin key service set`
#[derive(Args, Clone, Debug)]
pub struct KeyServiceSet {
    /// What to call it: lower-case letters, digits and dashes
    pub name: KeyServiceName,
    /// What it is; needed for a new one
    #[arg(long = "type", value_enum)]
    pub kind: Option<KeyTypeName>,
    /// vault: its URL
    #[arg(long, value_name = "URL", conflicts_with_all = ["endpoint", "module"])]
    pub address: Option<String>,
    /// aws and gcp: another endpoint than the provider's own; an empty one goes back to that
    #[arg(long, value_name = "URL", conflicts_with = "module")]
    pub endpoint: Option<String>,
    /// pkcs11: the module's file
    #[arg(long, value_name = "PATH")]
    pub module: Option<String>,
    /// A PEM file with the roots to trust instead of the machine's; an empty path goes back to those
    #[arg(long, value_name = "FILE")]
    pub service_ca: Option<PathBuf>,
    /// vault: the namespace; an empty one goes back to none
    #[arg(long)]
    pub namespace: Option<String>,
    /// vault: a file with the token
    #[arg(long, value_name = "FILE", conflicts_with_all = ["role_id", "secret_id_file"])]
    pub token_file: Option<PathBuf>,
    /// vault: the role's id, to sign in by AppRole
    #[arg(long, value_name = "ID")]
    pub role_id: Option<String>,
    /// vault: a file with the role's secret id
    #[arg(long, value_name = "FILE", requires = "role_id")]
    pub secret_id_file: Option<PathBuf>,
    /// vault: where AppRole is mounted, if not at approle
    #[arg(long, value_name = "MOUNT", requires = "role_id")]
    pub role_mount: Option<String>,
    /// aws: the access key's id
    #[arg(long, value_name = "ID")]
    pub access_key_id: Option<String>,
    /// aws: a file with the secret access key
    #[arg(long, value_name = "FILE", requires = "access_key_id")]
    pub secret_access_key_file: Option<PathBuf>,
    /// aws: a file with the session token of temporary keys
    #[arg(long, value_name = "FILE", requires = "access_key_id")]
    pub session_token_file: Option<PathBuf>,
    /// aws: what a role that is assumed wants to hear
    #[arg(long, value_name = "ID", requires = "access_key_id")]
    pub external_id: Option<String>,
    /// gcp: a service account's key file
    #[arg(long, value_name = "FILE")]
    pub credentials_file: Option<PathBuf>,
    /// pkcs11: a file with the PIN
    #[arg(long, value_name = "FILE")]
    pub pin_file: Option<PathBuf>,
    /// Set it without trying it on the keys that clusters use through it
    #[arg(long)]
    pub force: bool,
}
