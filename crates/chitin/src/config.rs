//! What the operator may set. Nothing is needed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use model::Encryption;

/// Where data lies unless told otherwise.
pub const DEFAULT_DATA: &str = "./.chitin";

/// Options of `chitin start`.
#[derive(Args, Clone, Debug)]
pub struct StartOptions {
    /// Where everything is kept; made if it does not exist
    #[arg(long, env = "CHITIN_DATA", value_name = "DIR", default_value = DEFAULT_DATA)]
    pub data: PathBuf,
    /// Where SQL clients connect
    #[arg(long, env = "CHITIN_SQL", value_name = "HOST:PORT", default_value = "127.0.0.1:26257")]
    pub sql: String,
    /// Where the API answers
    #[arg(long, env = "CHITIN_HTTP", value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    pub http: String,
    /// A further DNS name under which clients reach this machine; repeat for more
    #[arg(long = "hostname", env = "CHITIN_HOSTNAME", value_name = "NAME", value_delimiter = ',')]
    pub hostnames: Vec<String>,
    /// A certificate chain of your own (PEM), read again whenever it changes
    #[arg(long, env = "CHITIN_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, env = "CHITIN_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Make clusters even where nothing can encrypt their files
    #[arg(long, env = "CHITIN_ALLOW_UNENCRYPTED")]
    pub allow_unencrypted: bool,
    /// How new clusters are encrypted, instead of the best that works here
    #[arg(long, env = "CHITIN_ENCRYPTION", value_name = "KIND")]
    pub encryption: Option<Kind>,
    /// A serverless cluster without sessions sleeps after this (for instance 30s, 5m, 1h)
    #[arg(long, env = "CHITIN_IDLE_AFTER", value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub idle_after: Duration,
    /// A session without a byte either way ends after this; off unless given
    #[arg(long, env = "CHITIN_IDLE_TIMEOUT", value_name = "TIME", value_parser = duration)]
    pub idle_timeout: Option<Duration>,
    /// The folder with PostgreSQL's programs, instead of the newest version found
    #[arg(long, env = "CHITIN_POSTGRES_BIN", value_name = "DIR")]
    pub postgres_bin: Option<PathBuf>,
}

/// A kind of encryption at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The file system's own
    Fscrypt,
    /// The file system's own, inside an image that Chitin makes
    FscryptImage,
    /// gocryptfs over FUSE
    Gocryptfs,
    /// None; needs --allow-unencrypted
    None,
}

impl From<Kind> for Encryption {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Fscrypt => Self::Fscrypt,
            Kind::FscryptImage => Self::FscryptImage,
            Kind::Gocryptfs => Self::Gocryptfs,
            Kind::None => Self::None,
        }
    }
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
    fn times_are_read_with_their_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "5", "m", "0s", "-1s", "99999999999999999999s", "9999h5", "9000000000h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
