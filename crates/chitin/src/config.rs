//! What the operator may set. Nothing is needed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use model::{AddressRange, Encryption};

use crate::root_key::Unlock;

/// Options of `chitin start`.
#[derive(Args, Clone, Debug)]
pub struct StartOptions {
    /// Where everything is kept; made if it does not exist
    #[arg(long, env = "CHITIN_DATA", value_name = "DIR", default_value = cli::DEFAULT_DATA)]
    pub data: PathBuf,
    /// Where SQL clients connect
    #[arg(long, env = "CHITIN_SQL", value_name = "HOST:PORT", default_value = "127.0.0.1:26257")]
    pub sql: String,
    /// Where the API answers
    #[arg(long, env = "CHITIN_HTTP", value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    pub http: String,
    /// A further listener for SQL clients behind a balancer: every connection begins with a PROXY protocol v2 header
    #[arg(long, env = "CHITIN_SQL_PROXY", value_name = "HOST:PORT", requires = "proxy_from")]
    pub sql_proxy: Option<String>,
    /// A further listener for the API behind a balancer: every connection begins with a PROXY protocol v2 header
    #[arg(long, env = "CHITIN_HTTP_PROXY", value_name = "HOST:PORT", requires = "proxy_from")]
    pub http_proxy: Option<String>,
    /// A listener for private endpoints of clouds: a PROXY protocol v2 header with the endpoint's id (AWS, GCP, Azure)
    #[arg(long, env = "CHITIN_ENDPOINT", value_name = "HOST:PORT", requires = "proxy_from")]
    pub endpoint: Option<String>,
    /// A listener for private endpoints of your own: connecting proxies that show a TLS client certificate
    #[arg(long, env = "CHITIN_ENDPOINT_TLS", value_name = "HOST:PORT")]
    pub endpoint_tls: Option<String>,
    /// The peers whose PROXY headers are believed, at those listeners and nowhere else; repeat for more
    #[arg(long = "proxy-from", env = "CHITIN_PROXY_FROM", value_name = "CIDR", value_delimiter = ',')]
    pub proxy_from: Vec<AddressRange>,
    /// Most entries of one cluster's IP allowlist, 1 to 100000
    #[arg(long, env = "CHITIN_ALLOWLIST_MAX", value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub allowlist_max: u32,
    /// A further DNS name under which clients reach this machine; repeat for more
    #[arg(long = "hostname", env = "CHITIN_HOSTNAME", value_name = "NAME", value_delimiter = ',')]
    pub hostnames: Vec<String>,
    /// A certificate chain of your own (PEM), read again whenever it changes
    #[arg(long, env = "CHITIN_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, env = "CHITIN_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Show an OCSP answer with that certificate, from the responder that the certificate names
    #[arg(long, env = "CHITIN_TLS_STAPLE", requires = "tls_cert")]
    pub tls_staple: bool,
    /// Show an OCSP answer with that certificate, from this responder
    #[arg(long, env = "CHITIN_TLS_OCSP_URL", value_name = "URL", requires = "tls_cert", value_parser = responder_url)]
    pub tls_ocsp_url: Option<String>,
    /// Make clusters even where nothing can encrypt their files
    #[arg(long, env = "CHITIN_ALLOW_UNENCRYPTED")]
    pub allow_unencrypted: bool,
    /// How new clusters are encrypted, instead of the best that works here
    #[arg(long, env = "CHITIN_ENCRYPTION", value_name = "KIND")]
    pub encryption: Option<Kind>,
    /// What encrypts the disk below the data directory, with --encryption attested; shown beside "not proven"
    #[arg(long, env = "CHITIN_ATTESTATION", value_name = "TEXT", value_parser = attestation)]
    pub attestation: Option<String>,
    /// A serverless cluster without sessions sleeps after this (for instance 30s, 5m, 1h)
    #[arg(long, env = "CHITIN_IDLE_AFTER", value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub idle_after: Duration,
    /// A session ends whose client does nothing for this long although it is its turn; off unless given
    #[arg(long, env = "CHITIN_IDLE_TIMEOUT", value_name = "TIME", value_parser = duration)]
    pub idle_timeout: Option<Duration>,
    /// A session ends whose client takes nothing of a result for this long
    #[arg(long, env = "CHITIN_UNREAD_TIMEOUT", value_name = "TIME", default_value = "45s", value_parser = duration)]
    pub unread_timeout: Duration,
    /// Private addresses that may be fetched from (OCSP responders, identity providers, revocation lists); repeat for more
    #[arg(long = "fetch-allow", env = "CHITIN_FETCH_ALLOW", value_name = "CIDR", value_delimiter = ',')]
    pub fetch_allow: Vec<ipnet::IpNet>,
    /// Where people's browsers reach the API's port, if not at https://localhost:PORT
    #[arg(long, env = "CHITIN_PUBLIC_URL", value_name = "URL", value_parser = public_url)]
    pub public_url: Option<String>,
    /// Failed sign-ins that cost an address or a user nothing yet
    #[arg(long, env = "CHITIN_THROTTLE_FREE", value_name = "COUNT", default_value_t = 5)]
    pub throttle_free: u32,
    /// How long the first refusal after them lasts; each further failure doubles it
    #[arg(long, env = "CHITIN_THROTTLE_BASE", value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub throttle_base: Duration,
    /// How long a refusal lasts at most
    #[arg(long, env = "CHITIN_THROTTLE_MAX", value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub throttle_max: Duration,
    /// How often the certificates of open sessions are checked for revocation
    #[arg(long, env = "CHITIN_REVOCATION_EVERY", value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub revocation_every: Duration,
    /// How often key services are asked whether a cluster's key may still be used
    #[arg(long, env = "CHITIN_KEY_CHECK_EVERY", value_name = "TIME", default_value = "1m", value_parser = duration)]
    pub key_check_every: Duration,
    /// Stop a cluster whose key service has refused the credentials for this long, as if it denied the key; without it, it runs on
    #[arg(long, env = "CHITIN_KEY_CREDENTIALS_REFUSED_MAX", value_name = "TIME", value_parser = duration)]
    pub key_credentials_refused_max: Option<Duration>,
    /// What unlocks the root key.
    #[command(flatten)]
    pub unlock: Unlock,
    /// A folder with an installation of PostgreSQL (bin/postgres is in it), or with several; comes before the system's places,
    /// and may be given more than once
    #[arg(long, env = "CHITIN_POSTGRES", value_name = "DIR", value_delimiter = ',')]
    pub postgres: Vec<PathBuf>,
    /// What `--postgres` was called when there was one version for all clusters
    #[arg(long, env = "CHITIN_POSTGRES_BIN", value_name = "DIR", hide = true)]
    pub postgres_bin: Option<PathBuf>,
    /// The major version of PostgreSQL of new clusters that ask for none [default: the newest that is installed]
    #[arg(long, env = "CHITIN_DEFAULT_VERSION", value_name = "MAJOR", value_parser = clap::value_parser!(u32).range(14..=18))]
    pub default_version: Option<u32>,
}

/// A kind of encryption at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The file system's own
    Fscrypt,
    /// The file system's own, inside an image that Chitin makes
    FscryptImage,
    /// dm-crypt, inside an image that Chitin makes
    Luks2,
    /// gocryptfs over FUSE
    Gocryptfs,
    /// By the disk below, as you say in --attestation; Chitin does not prove it
    Attested,
    /// None; needs --allow-unencrypted
    None,
}

impl From<Kind> for Encryption {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Fscrypt => Self::Fscrypt,
            Kind::FscryptImage => Self::FscryptImage,
            Kind::Luks2 => Self::Luks2,
            Kind::Gocryptfs => Self::Gocryptfs,
            Kind::Attested => Self::Attested,
            Kind::None => Self::None,
        }
    }
}

/// A line for people.
fn attestation(text: &str) -> Result<String, String> {
    let is_line = !text.trim().is_empty() && text.len() <= 200 && !text.chars().any(char::is_control);
    if is_line {
        Ok(text.trim().to_owned())
    } else {
        Err("write one line of at most 200 bytes, for instance: LUKS on /dev/sda3, checked in May".to_owned())
    }
}

/// The address of an OCSP responder.
fn responder_url(text: &str) -> Result<String, String> {
    let is_right = url::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none()
    });
    if is_right {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no responder's address; write for instance http://ocsp.example.org"))
    }
}

/// An `https` origin: what sign-in pages and redirects are made of.
fn public_url(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is no origin; write for instance https://chitin.example.org:8080");
    let url = url::Url::parse(text).map_err(|_| wrong())?;
    let is_origin = url.scheme() == "https"
        && url.host().is_some()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if is_origin { Ok(url.as_str().trim_end_matches('/').to_owned()) } else { Err(wrong()) }
}

/// Reads `30s`, `5m`, `2h` or `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time; write for instance 30s, 5m or 1h");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let total = number.checked_mul(milliseconds).ok_or_else(wrong)?;
    // A year: longer is a slip, and far sums of instants would overflow.
    if total == 0 || total > 365 * 24 * 3_600_000 {
        return Err(format!("`{text}` is not between 1ms and one year"));
    }
    Ok(Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_sent_to_an_https_origin_only() {
        assert_eq!(public_url("https://db.example.org/").as_deref(), Ok("https://db.example.org"));
        assert_eq!(public_url("https://localhost:8080").as_deref(), Ok("https://localhost:8080"));
        for wrong in
            ["http://db.example.org", "https://a/b", "https://u:p@a", "https://a?b", "db", "javascript:x"]
        {
            assert!(public_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_attestation_is_one_line_for_people() {
        assert_eq!(attestation(" LUKS on /dev/sda3 ").as_deref(), Ok("LUKS on /dev/sda3"));
        for wrong in ["", "  ", "two\nlines", "\u{1b}[32mproven", &"x".repeat(201)] {
            assert!(attestation(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn responders_are_web_addresses() {
        for good in ["http://ocsp.example.org", "https://ocsp.example.org:8443/ocsp?x=1"] {
            assert_eq!(responder_url(good).as_deref(), Ok(good));
        }
        for wrong in ["ocsp.example.org", "ldap://ocsp.example.org", "http://user:pass@ocsp.example.org", ""]
        {
            assert!(responder_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "5", "m", "0s", "-1s", "99999999999999999999s", "9999h5", "9000000000h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
