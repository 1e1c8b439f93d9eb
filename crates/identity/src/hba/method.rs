//! How a client proves who it is, and what a rule may say beyond that.

use std::fmt;
use std::str::FromStr;

use model::ProviderName;

/// How a client proves who it is. All of it happens inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Its password, by SCRAM: we never see it.
    ScramSha256,
    /// Its password in clear, checked against the same verifier. A token that the client announces is taken too.
    Password,
    /// A certificate of one of the cluster's authorities.
    Cert,
    /// Such a certificate, or without one the password by SCRAM, or a token that the client announces.
    /// CockroachDB's `cert-password` and `cert-scram-sha-256`.
    CertPassword,
    /// A token (JWT) in the password's place.
    Jwt,
    /// A token by OAUTHBEARER (RFC 7628).
    Oauth,
    /// A person signs in with a browser while the client waits.
    Browser,
    /// Nothing helps.
    Reject,
}

/// A text that is no method's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a method is one of scram-sha-256, password, cert, cert-password, jwt, oauth, browser, reject")]
pub struct InvalidMethod;

impl Method {
    /// Every method, in the order in which people are told of them.
    pub const ALL: [Self; 8] = [
        Self::ScramSha256,
        Self::Password,
        Self::Cert,
        Self::CertPassword,
        Self::Jwt,
        Self::Oauth,
        Self::Browser,
        Self::Reject,
    ];

    /// The method as rules write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ScramSha256 => "scram-sha-256",
            Self::Password => "password",
            Self::Cert => "cert",
            Self::CertPassword => "cert-password",
            Self::Jwt => "jwt",
            Self::Oauth => "oauth",
            Self::Browser => "browser",
            Self::Reject => "reject",
        }
    }

    /// Whether a rule with this method lets a client prove itself that is ready to do so by `brought`: somebody who has
    /// a password gets on under `cert-password`, and a token under `password`. `reject` takes nothing.
    pub fn takes(self, brought: Self) -> bool {
        match self {
            Self::Reject => false,
            Self::ScramSha256 => matches!(brought, Self::ScramSha256 | Self::Password),
            Self::Password => matches!(brought, Self::ScramSha256 | Self::Password | Self::Jwt),
            Self::CertPassword => !matches!(brought, Self::Oauth | Self::Browser | Self::Reject),
            Self::Cert => matches!(brought, Self::Cert | Self::CertPassword),
            Self::Jwt | Self::Oauth | Self::Browser => self == brought,
        }
    }

    /// Whether a token is a proof under a rule with this method, in a password's place or otherwise.
    pub fn takes_tokens(self) -> bool {
        match self {
            Self::Jwt | Self::Oauth | Self::Browser | Self::Password | Self::CertPassword => true,
            Self::ScramSha256 | Self::Cert | Self::Reject => false,
        }
    }

    /// What to write instead of a method of PostgreSQL's or CockroachDB's that is not here.
    pub(super) fn instead_of(name: &str) -> Option<&'static str> {
        Some(match name {
            "trust" => "`trust` would let everybody in who knows a name; write scram-sha-256 or cert",
            "md5" => "MD5 verifiers can be used like the password itself; write scram-sha-256",
            "peer" | "ident" => {
                "clients come over the network, where nobody vouches for their user; write cert"
            }
            "gss" | "sspi" => {
                "Kerberos is not built; write browser, oauth or jwt with an OpenID Connect provider"
            }
            "ldap" => {
                "LDAP is not built; write browser, oauth or jwt with an OpenID Connect provider in front of it"
            }
            "radius" | "pam" | "bsd" => {
                "it would ask a service of the machine; write scram-sha-256, cert or browser"
            }
            "scram-sha-256-plus" => "write scram-sha-256; clients that can bind to the TLS channel do",
            _ => return None,
        })
    }
}

impl FromStr for Method {
    type Err = InvalidMethod;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "cert-scram-sha-256" {
            return Ok(Self::CertPassword);
        }
        Self::ALL.into_iter().find(|method| method.as_str() == text).ok_or(InvalidMethod)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which name of a certificate counts (PostgreSQL's `clientname`; alternative names are ours).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientName {
    /// The common name.
    #[default]
    Cn,
    /// The whole subject, as RFC 2253 writes it.
    Dn,
    /// A subject alternative name that is a DNS name.
    SanDns,
    /// One that is an e-mail address.
    SanEmail,
    /// One that is a URI.
    SanUri,
    /// One of any of these types. Only rules from before have it: a name of one type can be like one of another, and an
    /// authority's name constraints may limit one type and not the other.
    San,
}

/// A certificate beside another proof (PostgreSQL's `clientcert`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCert {
    /// Of one of the cluster's authorities, whatever its name.
    VerifyCa,
    /// And with the user's name, by `clientname` and `map`.
    VerifyFull,
}

/// What a rule says beyond its method.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleOptions {
    /// The identity map that says which SQL user a name of the outside is. Without one, names must be equal.
    pub map: Option<String>,
    /// Which name of a certificate counts.
    pub clientname: ClientName,
    /// Whether a certificate is needed beside the password.
    pub clientcert: Option<ClientCert>,
    /// The only provider whose tokens count, by its name here. Never together with `issuer`.
    pub provider: Option<ProviderName>,
    /// The only provider whose tokens count, by its issuer.
    pub issuer: Option<String>,
    /// What clients are told to ask the provider for, parted by spaces.
    pub scope: Option<String>,
}

impl RuleOptions {
    /// The map for the names in tokens, under a rule with this method. That of a rule for passwords and certificates is
    /// about the names of certificates.
    pub fn token_map(&self, method: Method) -> Option<&str> {
        match method {
            Method::Jwt | Method::Oauth | Method::Browser => self.map.as_deref(),
            _ => None,
        }
    }
}
