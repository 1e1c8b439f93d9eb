//! The command line of `chitin allowlist`.

use clap::{Args, Subcommand, ValueEnum};
use model::AddressRange;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::OneCluster;

/// `chitin allowlist`
#[derive(Clone, Debug, Subcommand)]
pub enum AllowlistCommand {
    /// List the address ranges that may connect
    #[command(
        after_help = "Example:  chitin allowlist list my-shop\nNext:     chitin allowlist add my-shop 203.0.113.0/24"
    )]
    List(OneCluster),
    /// Let an address range in
    #[command(
        after_help = "Example:  chitin allowlist add my-shop 203.0.113.0/24 --name office\n          chitin allowlist add my-shop --current --expires 8h\nNext:     chitin allowlist list my-shop"
    )]
    Add(AllowlistLine),
    /// Change the name, the rights or the end of an address range
    #[command(
        after_help = "Example:  chitin allowlist edit my-shop 203.0.113.0/24 --sql false\n          chitin allowlist edit my-shop 203.0.113.0/24 --expires never\nNext:     chitin allowlist list my-shop"
    )]
    Edit(AllowlistLine),
    /// Remove an address range; its open sessions are cut
    #[command(
        after_help = "Example:  chitin allowlist remove my-shop 203.0.113.0/24\nNext:     chitin allowlist list my-shop"
    )]
    Remove {
        /// Name, NAME-ID or id of the cluster
        cluster: String,
        /// The address range; without it, --current
        #[arg(required_unless_present = "current")]
        range: Option<AddressRange>,
        /// The address that this machine has for the cloud
        #[arg(long, conflicts_with = "range")]
        current: bool,
    },
    /// Show or choose how the allowlists of new clusters begin
    #[command(
        after_help = "Example:  chitin allowlist default\n          chitin allowlist default closed\nNext:     chitin cluster create my-shop"
    )]
    Default {
        /// closed: empty on every plan; by-plan: serverless open to every address, dedicated empty
        #[arg(value_enum)]
        start: Option<AllowlistStart>,
    },
}

/// How the allowlists of new clusters begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AllowlistStart {
    /// Serverless open to every address, dedicated empty
    ByPlan,
    /// Empty on every plan
    Closed,
}

/// A line of the allowlist.
#[derive(Args, Clone, Debug)]
pub struct AllowlistLine {
    /// Name, NAME-ID or id of the cluster
    pub cluster: String,
    /// The address range, for instance 203.0.113.0/24 or 2001:db8::/48; without it, --current
    #[arg(required_unless_present = "current")]
    pub range: Option<AddressRange>,
    /// The address that this machine has for the cloud
    #[arg(long, conflicts_with = "range")]
    pub current: bool,
    /// What to call it
    #[arg(long)]
    pub name: Option<String>,
    /// Whether SQL clients may connect from it
    #[arg(long, value_name = "BOOL")]
    pub sql: Option<bool>,
    /// Whether the cluster's HTTP pages are open to it
    #[arg(long, value_name = "BOOL")]
    pub ui: Option<bool>,
    /// When it ends by itself: after a time (30m, 8h, 7d), at a moment (2026-12-31T18:00:00Z), or never
    #[arg(long, value_name = "WHEN")]
    pub expires: Option<Expiry>,
}

/// When a line of the allowlist ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// So long from now.
    After(time::Duration),
    /// At this moment.
    At(OffsetDateTime),
    /// Not at all.
    Never,
}

impl std::str::FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self::Never);
        }
        if let Ok(moment) = OffsetDateTime::parse(text, &Rfc3339) {
            return Ok(Self::At(moment));
        }
        let wrong = || {
            format!(
                "`{text}` is neither a time (30m, 8h, 7d), nor a moment (2026-12-31T18:00:00Z), nor never"
            )
        };
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let number: u32 = number.parse().map_err(|_| wrong())?;
        let unit = match unit {
            "s" => time::Duration::SECOND,
            "m" => time::Duration::MINUTE,
            "h" => time::Duration::HOUR,
            "d" => time::Duration::DAY,
            _ => return Err(wrong()),
        };
        let lasts = unit.checked_mul(i32::try_from(number).map_err(|_| wrong())?).ok_or_else(wrong)?;
        // Ten years: longer is a slip, or `never`.
        if lasts.is_zero() || lasts > time::Duration::days(3_660) {
            return Err(format!("`{text}` is not between one second and ten years"));
        }
        Ok(Self::After(lasts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_after_a_time_at_a_moment_or_never() {
        let parse = |text: &str| text.parse::<Expiry>();
        assert_eq!(parse("8h"), Ok(Expiry::After(time::Duration::hours(8))));
        assert_eq!(parse("7d"), Ok(Expiry::After(time::Duration::days(7))));
        assert_eq!(parse("never"), Ok(Expiry::Never));
        assert!(matches!(parse("2026-12-31T18:00:00Z"), Ok(Expiry::At(_))));
        for wrong in ["", "8", "h", "0h", "-1h", "99999999999d", "4000d", "2026-12-31", "tomorrow"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
