//! How people sign in to a cluster: its rules, its client authorities, its providers. Documents only.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::ClusterId;

/// Longest text of rules, of an identity map, of a CA bundle, in bytes.
pub const SIGN_IN_TEXT_BYTES_MAX: usize = 256 * 1024;
/// Longest text of revocation lists, in bytes.
pub const CRL_TEXT_BYTES_MAX: usize = 1024 * 1024;
/// Most providers of the cloud, and of one cluster.
pub const PROVIDERS_MAX: usize = 16;
/// For all of a certificate's revocation checks, unless the cluster says otherwise (CockroachDB's
/// `security.ocsp.timeout`).
pub const OCSP_TIMEOUT_MS_DEFAULT: u32 = 3_000;

/// A cluster's own way of letting people in. Texts were checked when they were set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignIn {
    /// Rules in the syntax of `pg_hba.conf`; `None` for the default.
    #[serde(default)]
    pub hba: Option<String>,
    /// The identity map, in the syntax of `pg_ident.conf`.
    #[serde(default)]
    pub identity_map: Option<String>,
    /// The customer's client authorities: root certificates in PEM, several after each other.
    #[serde(default)]
    pub client_ca: Option<String>,
    /// Revocation lists in PEM, several after each other.
    #[serde(default)]
    pub crls: Option<String>,
    /// Whether, with revocation lists set, a certificate counts that an authority without one among them issued.
    #[serde(default)]
    pub accept_without_list: bool,
    /// How revocation is asked for.
    #[serde(default)]
    pub ocsp: Ocsp,
}

/// How strictly the revocation of client certificates is asked for (CockroachDB's `security.ocsp.mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OcspMode {
    /// Nobody is asked.
    #[default]
    Off,
    /// A revoked certificate is refused; where no answer can be had, the certificate is accepted with a warning.
    Lax,
    /// Only a certificate that is known to be good is accepted.
    Strict,
}

impl OcspMode {
    /// The mode's name as people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Lax => "lax",
            Self::Strict => "strict",
        }
    }
}

/// How revocation is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ocsp {
    /// How strictly.
    pub mode: OcspMode,
    /// The responder to ask instead of those that certificates name.
    #[serde(default)]
    pub responder: Option<String>,
    /// In strict: whether a certificate that names no responder is accepted all the same.
    #[serde(default)]
    pub accept_without_responder: bool,
    /// For all checks of one certificate chain together, in milliseconds, 100 to 10,000.
    pub timeout_ms: u32,
}

impl Default for Ocsp {
    fn default() -> Self {
        Self {
            mode: OcspMode::Off,
            responder: None,
            accept_without_responder: false,
            timeout_ms: OCSP_TIMEOUT_MS_DEFAULT,
        }
    }
}

/// A provider's name: letters, digits, `-` and `_`, at most 63, beginning with a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProviderName(String);

/// Why a text is no provider's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a provider's name has 1 to 63 letters, digits, `-` or `_`, and begins with a letter")]
pub struct InvalidProviderName;

impl ProviderName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ProviderName {
    type Err = InvalidProviderName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
        if is_plain && begins && text.len() <= 63 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidProviderName)
        }
    }
}

impl TryFrom<String> for ProviderName {
    type Error = InvalidProviderName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ProviderName> for String {
    fn from(name: ProviderName) -> Self {
        name.0
    }
}

impl fmt::Display for ProviderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who signs tokens for people: an OpenID Connect provider, or an issuer whose keys were given.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityProvider {
    /// Its name here.
    pub name: ProviderName,
    /// `Some` for the one cluster that trusts it, `None` for all clusters of the cloud.
    pub cluster: Option<ClusterId>,
    /// Its issuer, exactly as tokens carry it in `iss`; discovery is at `{issuer}/.well-known/openid-configuration`.
    pub issuer: String,
    /// Our client id there; also the audience of ID tokens. Needed to sign in through a browser.
    #[serde(default)]
    pub client_id: Option<String>,
    /// Our client secret there, for a confidential client. A secret: never shown.
    #[serde(default)]
    pub client_secret: Option<String>,
    /// Audiences that are accepted in tokens given as a password or by OAUTHBEARER, besides the client id.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// The claim that names the person; `sub` unless said otherwise. Its value is a string or a list of strings.
    pub claim: String,
    /// Keys (a JWK Set in JSON) where they were given; without them they are discovered.
    #[serde(default)]
    pub jwks: Option<String>,
    /// Where the keys are, instead of where discovery says.
    #[serde(default)]
    pub jwks_uri: Option<String>,
    /// Certificates (PEM) that are trusted for the provider's own addresses, instead of the machine's.
    #[serde(default)]
    pub ca_pem: Option<String>,
    /// What is asked for in the browser; begins with `openid`.
    pub scopes: Vec<String>,
    /// By how much clocks may differ, in seconds, 0 to 300.
    pub clock_skew_seconds: u32,
    /// The claim that lists groups. With it, roles are granted and revoked at each sign-in.
    #[serde(default)]
    pub group_claim: Option<String>,
    /// Which SQL role a group gives. A group that is not here gives the role of its own name, if there is one that is
    /// not reserved; `admin` is given only by an entry here.
    #[serde(default)]
    pub group_roles: BTreeMap<String, String>,
    /// Whether a SQL user is made at the first sign-in.
    #[serde(default)]
    pub provisions: bool,
    /// When it was last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// The claim that names a person unless a provider says otherwise.
pub const CLAIM_DEFAULT: &str = "sub";
/// By how many seconds clocks may differ unless a provider says otherwise.
pub const CLOCK_SKEW_SECONDS_DEFAULT: u32 = 30;

impl fmt::Debug for IdentityProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityProvider")
            .field("name", &self.name)
            .field("cluster", &self.cluster)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

/// A SQL user that a provider's token made. Its password is locked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    /// Where it came from: `jwt_token:<issuer>` or `oidc:<issuer>`, as CockroachDB's `PROVISIONSRC`.
    pub source: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_providers_are_plain() {
        for good in ["okta", "Corp-SSO_2", "a"] {
            assert_eq!(good.parse::<ProviderName>().unwrap().as_str(), good);
        }
        for wrong in ["", "2a", "-a", "a b", "a/b", "ä", &"a".repeat(64)] {
            assert!(wrong.parse::<ProviderName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_document_without_rules_reads_as_the_default() {
        let read: SignIn = serde_json::from_str("{}").unwrap();
        assert_eq!(read, SignIn::default());
        assert_eq!(read.ocsp.timeout_ms, 3_000);
    }
}
