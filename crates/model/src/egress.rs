//! What may leave a cluster: its egress policy, its rules, and the one question that they answer. Documents only.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{AddressRange, InvalidName, canonical};

/// Most rules of one cluster.
pub const EGRESS_RULES_MAX: usize = 200;
/// Most ports of one rule; a rule for more is a rule for every port.
pub const EGRESS_PORTS_MAX: usize = 64;
/// Longest description of a rule.
pub const EGRESS_DESCRIPTION_CHARACTERS_MAX: usize = 1_024;
/// Longest idempotency key that is kept.
pub const EGRESS_KEY_BYTES_MAX: usize = 128;

/// What leaves a cluster where no rule says more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EgressPolicy {
    /// Everything that the gate lets through for anybody.
    #[default]
    AllowAll,
    /// Only what a rule names.
    DefaultDeny,
}

impl EgressPolicy {
    /// The Cloud API's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllowAll => "ALLOW_ALL",
            Self::DefaultDeny => "DEFAULT_DENY",
        }
    }
}

/// What should be true of what leaves a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Egress {
    /// What holds where no rule does.
    pub policy: EgressPolicy,
    /// What a cluster with the policy `DefaultDeny` may reach; kept and without effect under `AllowAll`.
    pub rules: Vec<EgressRule>,
    /// Whether the engine itself may reach what rules name. Off by default, and never on for serverless clusters.
    pub engine: bool,
}

impl Egress {
    /// Whether the cluster may connect to this address and port, where it asked for this host. What the gate refuses to
    /// everybody is not asked about here.
    pub fn permits(&self, host: &EgressHost, address: IpAddr, port: u16) -> bool {
        match self.policy {
            EgressPolicy::AllowAll => true,
            EgressPolicy::DefaultDeny => self.rule_for(host, address, port).is_some(),
        }
    }

    /// The first rule that names this destination, whatever the policy is.
    pub fn rule_for(&self, host: &EgressHost, address: IpAddr, port: u16) -> Option<&EgressRule> {
        self.rules.iter().find(|rule| rule.names(host, address, port))
    }

    /// The rule with this id.
    pub fn rule(&self, id: Uuid) -> Option<&EgressRule> {
        self.rules.iter().find(|rule| rule.id == id)
    }
}

/// One destination that a cluster may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    /// Names the rule in the API.
    pub id: Uuid,
    /// What people call it; unique in its cluster.
    pub name: EgressRuleName,
    /// Where to.
    pub destination: EgressDestination,
    /// The destination as it was written; clients compare it with what they sent.
    pub written: String,
    /// TCP ports, each once; empty means every port.
    pub ports: Vec<u16>,
    /// What it is for; may be empty.
    pub description: String,
    /// When it was added, to the microsecond.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The key of the request that added it, so that a repeated request finds what the first one made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

impl EgressRule {
    /// Whether the rule names this destination. A rule about a name is about whoever asks for that name, never about one
    /// of its addresses; a rule about a range is about the address that is connected to, by whatever name it was found.
    pub fn names(&self, host: &EgressHost, address: IpAddr, port: u16) -> bool {
        let is_there = match (&self.destination, host) {
            (EgressDestination::Fqdn(name), EgressHost::Name(asked)) => name.0 == *asked,
            (EgressDestination::Fqdn(_), EgressHost::Address(_)) => false,
            (EgressDestination::Cidr(range), EgressHost::Name(_) | EgressHost::Address(_)) => {
                range.contains(address)
            }
        };
        is_there && (self.ports.is_empty() || self.ports.contains(&port))
    }

    /// Whether two rules let the same through.
    pub fn is_like(&self, other: &Self) -> bool {
        let sorted = |ports: &[u16]| {
            let mut ports = ports.to_vec();
            ports.sort_unstable();
            ports
        };
        self.destination == other.destination && sorted(&self.ports) == sorted(&other.ports)
    }
}

/// Where a rule leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE", tag = "type", content = "value")]
pub enum EgressDestination {
    /// Whatever this name resolves to, for whoever asks for the name.
    Fqdn(FqdnName),
    /// Addresses.
    Cidr(AddressRange),
}

impl EgressDestination {
    /// The Cloud API's name for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Fqdn(_) => "FQDN",
            Self::Cidr(_) => "CIDR",
        }
    }
}

impl fmt::Display for EgressDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fqdn(name) => name.fmt(f),
            Self::Cidr(range) => range.fmt(f),
        }
    }
}

/// A fully qualified domain name: labels by RFC 1123, at least two of them, in lower case, without a dot at the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FqdnName(String);

/// Why a text is no fully qualified domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFqdn {
    /// A wildcard.
    #[error("wildcards are not supported; add a rule for each name")]
    Wildcard,
    /// An address, or what URLs read as one.
    #[error("this is an address and not a name; make it a rule of type CIDR")]
    Address,
    /// A name without a dot, which means another host on every machine.
    #[error("a name has at least one dot, for instance storage.example.com")]
    SingleLabel,
    /// Anything else.
    #[error(
        "a name is at most 253 bytes of letters, digits and dashes in parts of 1 to 63, joined by dots, for instance \
         storage.example.com; other letters are written in their ASCII form (xn--…)"
    )]
    Malformed,
}

impl FqdnName {
    /// The name in lower case, without a dot at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FqdnName {
    type Err = InvalidFqdn;

    fn from_str(text: &str) -> Result<Self, InvalidFqdn> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.parse::<AddressRange>().is_ok() || text.starts_with('[') {
            return Err(InvalidFqdn::Address);
        }
        if text.contains('*') {
            return Err(InvalidFqdn::Wildcard);
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.is_empty() || text.len() > 253 || !text.split('.').all(is_label) {
            return Err(InvalidFqdn::Malformed);
        }
        let name = text.to_ascii_lowercase();
        // The URL standard reads a host whose last label is a number as an IPv4 address, `1.2` and `a.0x7f` too.
        let last = name.rsplit('.').next().unwrap_or_default();
        let is_hexadecimal =
            |digits: &str| digits.is_empty() || digits.bytes().all(|b| b.is_ascii_hexdigit());
        if last.bytes().all(|b| b.is_ascii_digit()) || last.strip_prefix("0x").is_some_and(is_hexadecimal) {
            return Err(InvalidFqdn::Address);
        }
        if last.len() == name.len() {
            return Err(InvalidFqdn::SingleLabel);
        }
        Ok(Self(name))
    }
}

impl fmt::Display for FqdnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for FqdnName {
    type Error = InvalidFqdn;

    fn try_from(text: String) -> Result<Self, InvalidFqdn> {
        text.parse()
    }
}

impl From<FqdnName> for String {
    fn from(name: FqdnName) -> String {
        name.0
    }
}

/// A rule's name: 1 to 64 characters, no control characters, no space at either end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EgressRuleName(String);

impl EgressRuleName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EgressRuleName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let is_name = (1..=64).contains(&text.chars().count())
            && !text.chars().any(char::is_control)
            && text.trim() == text;
        if !is_name {
            return Err(InvalidName::new(
                "egress rule name",
                "it has 1 to 64 characters, with no control characters, and no space at either end",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for EgressRuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for EgressRuleName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<EgressRuleName> for String {
    fn from(name: EgressRuleName) -> String {
        name.0
    }
}

/// The host that somebody asks for, before anybody resolved it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EgressHost {
    /// A name in lower case, without a dot at the end.
    Name(String),
    /// An address that was written as one.
    Address(IpAddr),
}

impl EgressHost {
    /// Reads a host as it stands in a URL or before a port, IPv6 without its brackets.
    pub fn read(text: &str) -> Self {
        let text = text.strip_suffix('.').unwrap_or(text);
        match text.parse::<IpAddr>() {
            Ok(address) => Self::Address(canonical(address)),
            Err(_) => Self::Name(text.to_ascii_lowercase()),
        }
    }
}

impl fmt::Display for EgressHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(destination: &str, ports: &[u16]) -> EgressRule {
        let kind = match destination.parse() {
            Ok(range) => EgressDestination::Cidr(range),
            Err(_) => EgressDestination::Fqdn(destination.parse().unwrap()),
        };
        EgressRule {
            id: Uuid::new_v4(),
            name: "one".parse().unwrap(),
            destination: kind,
            written: destination.to_owned(),
            ports: ports.to_vec(),
            description: String::new(),
            created_at: OffsetDateTime::UNIX_EPOCH,
            idempotency_key: None,
        }
    }

    fn closed(rules: Vec<EgressRule>) -> Egress {
        Egress { policy: EgressPolicy::DefaultDeny, rules, engine: false }
    }

    fn permits(egress: &Egress, host: &str, address: &str, port: u16) -> bool {
        egress.permits(&EgressHost::read(host), address.parse().unwrap(), port)
    }

    #[test]
    fn without_a_policy_everything_leaves_and_without_rules_nothing_does() {
        assert!(permits(&Egress::default(), "a.example", "192.0.2.1", 443));
        assert!(!permits(&closed(Vec::new()), "a.example", "192.0.2.1", 443));
    }

    #[test]
    fn a_name_is_asked_for_and_never_reached_by_its_address() {
        let egress = closed(vec![rule("Storage.Example.COM", &[443, 80])]);
        for host in ["storage.example.com", "STORAGE.example.com", "storage.example.com."] {
            assert!(permits(&egress, host, "192.0.2.1", 443), "{host}");
            assert!(!permits(&egress, host, "192.0.2.1", 8443), "{host}");
        }
        for host in [
            "192.0.2.1",
            "example.com",
            "x.storage.example.com",
            "storage.example.com.evil.example",
            "storage.example.comx",
        ] {
            assert!(!permits(&egress, host, "192.0.2.1", 443), "{host}");
        }
    }

    #[test]
    fn a_range_is_about_the_address_that_is_connected_to() {
        let egress = closed(vec![rule("192.0.2.0/24", &[]), rule("2001:db8::/32", &[443])]);
        for host in ["192.0.2.9", "any.name.example", "::ffff:192.0.2.9"] {
            assert!(permits(&egress, host, "192.0.2.9", 1), "{host}");
            assert!(permits(&egress, host, "::ffff:192.0.2.9", 65_535), "{host}");
        }
        assert!(!permits(&egress, "any.name.example", "198.51.100.1", 443));
        assert!(permits(&egress, "any.name.example", "2001:db8::1", 443));
        assert!(!permits(&egress, "any.name.example", "2001:db8::1", 80));
    }

    #[test]
    fn names_are_whole_and_in_one_spelling() {
        let long = format!("{}.example", vec!["a".repeat(60); 4].join("."));
        assert!(long.len() > 244 && long.parse::<FqdnName>().is_ok());
        assert_eq!("A-1.Example.".parse::<FqdnName>().unwrap().as_str(), "a-1.example");
        assert_eq!("xn--bcher-kva.example".parse::<FqdnName>().unwrap().as_str(), "xn--bcher-kva.example");
        let wrong = [
            ("localhost", InvalidFqdn::SingleLabel),
            ("", InvalidFqdn::Malformed),
            (".", InvalidFqdn::Malformed),
            ("a..b", InvalidFqdn::Malformed),
            ("a.example..", InvalidFqdn::Malformed),
            ("-a.example", InvalidFqdn::Malformed),
            ("a-.example", InvalidFqdn::Malformed),
            ("a_b.example", InvalidFqdn::Malformed),
            ("bücher.example", InvalidFqdn::Malformed),
            ("a.example:443", InvalidFqdn::Malformed),
            ("https://a.example", InvalidFqdn::Malformed),
            ("a.example/x", InvalidFqdn::Malformed),
            ("a.exam\nple", InvalidFqdn::Malformed),
            ("*.example.com", InvalidFqdn::Wildcard),
            ("*", InvalidFqdn::Wildcard),
            ("192.0.2.1", InvalidFqdn::Address),
            ("192.0.2.1.", InvalidFqdn::Address),
            ("192.0.2.0/24", InvalidFqdn::Address),
            ("127.1", InvalidFqdn::Address),
            ("a.0x7f", InvalidFqdn::Address),
            ("a.0x", InvalidFqdn::Address),
            ("2001:db8::1", InvalidFqdn::Address),
            ("[::1]", InvalidFqdn::Address),
        ];
        for (text, reason) in wrong {
            assert_eq!(text.parse::<FqdnName>(), Err(reason), "{text}");
            assert!(!reason.to_string().contains("lock"), "clients take those letters for a reason to wait");
        }
        assert!("a".repeat(64).parse::<FqdnName>().is_err());
        assert!(format!("{}.example", vec!["a".repeat(62); 4].join(".")).parse::<FqdnName>().is_err());
    }

    #[test]
    fn the_order_of_ports_makes_no_other_rule() {
        assert!(rule("a.example", &[80, 443]).is_like(&rule("A.example.", &[443, 80])));
        assert!(!rule("a.example", &[80]).is_like(&rule("a.example", &[])));
        assert!(!rule("a.example", &[80]).is_like(&rule("b.example", &[80])));
    }

    #[test]
    fn a_document_without_egress_is_open_and_one_with_it_is_read_back() {
        assert_eq!(serde_json::from_str::<Egress>("{}").unwrap(), Egress::default());
        let egress = closed(vec![rule("a.example", &[443]), rule("2001:db8::/32", &[])]);
        let text = serde_json::to_string(&egress).unwrap();
        assert!(text.contains("\"DEFAULT_DENY\"") && text.contains("\"FQDN\""), "{text}");
        assert_eq!(serde_json::from_str::<Egress>(&text).unwrap(), egress);
        let forged = text.replace("a.example\"}", "*.example\"}");
        assert!(forged != text && serde_json::from_str::<Egress>(&forged).is_err());
    }
}
