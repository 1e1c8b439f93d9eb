//! What a provider says about itself (OpenID Connect Discovery 1.0, section 4).

use serde::Deserialize;
use url::{Host, Url};

/// The parts of a discovery document that are used here. Its addresses were checked: `https`, or `http` only on a loopback
/// address whose issuer is there too, for tests and development.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Where the keys are.
    pub jwks_uri: Url,
    /// Where a person signs in.
    pub authorization_endpoint: Option<Url>,
    /// Where a code becomes tokens.
    pub token_endpoint: Option<Url>,
    /// Where more is said about a person.
    pub userinfo_endpoint: Option<Url>,
    /// Whether the client secret goes into the body of a token request instead of its header.
    pub secret_in_body: bool,
    /// Whether the answer to an authorization request names its issuer (RFC 9207).
    pub names_issuer: bool,
}

#[derive(Deserialize)]
struct Raw {
    issuer: String,
    jwks_uri: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    userinfo_endpoint: Option<String>,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: Option<bool>,
}

impl Discovery {
    /// Reads a document. It must name the very issuer that was asked (section 4.3), else one provider could speak for
    /// another.
    pub(super) fn parse(json: &[u8], issuer: &str) -> Result<Self, String> {
        let raw: Raw =
            serde_json::from_slice(json).map_err(|_| "the discovery document cannot be read".to_owned())?;
        if raw.issuer != issuer {
            return Err(format!("the discovery document is of the issuer {}", super::quoted(&raw.issuer)));
        }
        let optional = |text: Option<String>| text.map(|text| endpoint(&text, issuer)).transpose();
        let methods = raw.token_endpoint_auth_methods_supported.unwrap_or_default();
        let has = |wanted: &str| methods.iter().any(|method| method == wanted);
        Ok(Self {
            jwks_uri: endpoint(&raw.jwks_uri, issuer)?,
            authorization_endpoint: optional(raw.authorization_endpoint)?,
            token_endpoint: optional(raw.token_endpoint)?,
            userinfo_endpoint: optional(raw.userinfo_endpoint)?,
            secret_in_body: has("client_secret_post") && !has("client_secret_basic"),
            names_issuer: raw.authorization_response_iss_parameter_supported.unwrap_or(false),
        })
    }
}

/// Where an issuer's document is. An issuer may end with a slash, which is not doubled (section 4.1).
pub(super) fn address(issuer: &str) -> Result<Url, String> {
    endpoint(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/')), issuer)
}

/// Reads an address that a provider, or its document here, names.
pub(super) fn endpoint(text: &str, issuer: &str) -> Result<Url, String> {
    let refused = || format!("{} is not an https address that is used", super::quoted(text));
    let url = Url::parse(text).map_err(|_| refused())?;
    let is_local = |url: &Url| match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    let is_local_issuer =
        || Url::parse(issuer).is_ok_and(|issuer| issuer.scheme() == "http" && is_local(&issuer));
    let is_good = match url.scheme() {
        "https" => url.host().is_some(),
        "http" => is_local(&url) && is_local_issuer(),
        _ => false,
    };
    // Names and passwords in an address would end up in logs, and nobody needs them.
    let is_plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    (is_good && is_plain && text.len() <= 2_048).then_some(url).ok_or_else(refused)
}
