//! How people sign in to a cluster: rules, identity map, client authorities, revocation, providers, throttle.

use std::collections::BTreeMap;

use model::{ClusterId, OcspMode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::Password;

/// Whether a cluster has client authorities of its customer. Ours are set when they are answered, so the Cloud API's
/// `PENDING` and `FAILED` never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientCaStatus {
    /// None; nobody signs in with a certificate.
    NotSet,
    /// There are some.
    IsSet,
    /// A change is on its way.
    Pending,
    /// A change did not work.
    Failed,
}

/// `GET`, `POST`, `PATCH` and `DELETE …/client-ca-cert`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCa {
    /// Whether there are any.
    pub status: ClientCaStatus,
    /// The roots in PEM, exactly as they were given; empty without any.
    #[serde(default)]
    pub x509_pem_cert: String,
}

/// `POST` and `PATCH …/client-ca-cert`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetClientCa {
    /// One or several root certificates in PEM, after each other.
    pub x509_pem_cert: String,
}

/// `GET /chitin/clusters/{id}/client-ca`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAuthorities {
    /// In the order of the bundle.
    pub authorities: Vec<ClientAuthority>,
}

/// One root whose certificates may sign in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAuthority {
    /// Its distinguished name.
    pub subject: String,
    /// Until when it is valid.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// SHA-256 of the certificate, in hexadecimal.
    pub sha256: String,
}

/// `GET` and `PUT /chitin/clusters/{id}/hba`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hba {
    /// The rules in force, in the syntax of `pg_hba.conf`.
    pub text: String,
    /// Whether these are the default, because the cluster has none of its own.
    pub is_default: bool,
    /// What the operator should know of them, for instance rules that can never match.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The body of `PUT …/hba` and `PUT …/identity-map`, and the answer of the latter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignInText {
    /// The whole text; an empty one takes the cluster's own away.
    pub text: String,
}

/// `POST /chitin/clusters/{id}/hba/test`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TestHba {
    /// The SQL user.
    pub user: String,
    /// The database.
    pub database: String,
    /// The client's IP address.
    pub address: String,
    /// How the client would prove who it is, by the name of a rule's method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The roles that the user is a member of; those of the SQL user when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<String>>,
}

/// What the rules do with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HbaOutcome {
    /// The client is asked to prove who it is by the rule's method.
    Proceeds,
    /// The rule wants another method than the one that was asked about.
    OtherMethod,
    /// The rule rejects.
    Rejected,
    /// No rule matches, which rejects too.
    NoRule,
}

impl HbaOutcome {
    /// The outcome by its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proceeds => "proceeds",
            Self::OtherMethod => "other-method",
            Self::Rejected => "rejected",
            Self::NoRule => "no-rule",
        }
    }
}

/// Which rule a client meets, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HbaVerdict {
    /// The rule's line, counted from 1; absent when none matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Its method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// What becomes of the client.
    pub outcome: HbaOutcome,
    /// The rules that were looked at, in their order.
    pub steps: Vec<HbaStep>,
}

/// One rule that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HbaStep {
    /// Its line, counted from 1.
    pub line: u32,
    /// The rule.
    pub text: String,
    /// Whether it matched.
    pub is_match: bool,
    /// Why, or why not.
    pub why: String,
}

/// `GET` and `PUT /chitin/clusters/{id}/ocsp`. PUT replaces all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ocsp {
    /// How strictly revocation is asked for.
    pub mode: OcspMode,
    /// The responder to ask instead of those that certificates name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub responder_url: Option<String>,
    /// In strict: whether a certificate that names no responder is accepted all the same.
    #[serde(default)]
    pub accept_without_responder: bool,
    /// For all checks of one certificate chain together, in milliseconds, 100 to 10,000.
    #[serde(default = "timeout")]
    pub timeout_ms: u32,
}

fn timeout() -> u32 {
    model::OCSP_TIMEOUT_MS_DEFAULT
}

impl From<&model::Ocsp> for Ocsp {
    fn from(kept: &model::Ocsp) -> Self {
        Self {
            mode: kept.mode,
            responder_url: kept.responder.clone(),
            accept_without_responder: kept.accept_without_responder,
            timeout_ms: kept.timeout_ms,
        }
    }
}

/// The body of `PUT /chitin/clusters/{id}/crls`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetCrls {
    /// One or several revocation lists in PEM, after each other.
    pub pem: String,
    /// Whether a certificate counts all the same that an authority without a list among these issued.
    #[serde(default)]
    pub accept_without_list: bool,
}

/// `GET`, `PUT` and `DELETE /chitin/clusters/{id}/crls`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crls {
    /// The lists in PEM, exactly as they were given; empty without any.
    pub pem: String,
    /// What is in them, in their order.
    pub lists: Vec<Crl>,
    /// Whether a certificate counts all the same that an authority without a list among these issued.
    #[serde(default)]
    pub accept_without_list: bool,
    /// The cluster's client authorities that have no list among these, where there are any lists: unless
    /// `accept_without_list`, nobody signs in by whom they certified. Authorities that clients bring are not known here.
    #[serde(default)]
    pub authorities_without_list: Vec<String>,
}

/// One revocation list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crl {
    /// The authority that signed it.
    pub issuer: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub this_update: OffsetDateTime,
    /// Until when it holds. A list that is older refuses everybody whom its authority certified.
    #[serde(with = "time::serde::rfc3339")]
    pub next_update: OffsetDateTime,
    /// How many certificates it revokes.
    pub revoked: usize,
}

/// A provider of identities, as it is shown. The client secret never is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityProvider {
    /// Its name here.
    pub name: String,
    /// The one cluster that trusts it; absent for a provider of the whole cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<ClusterId>,
    /// Its issuer, exactly as tokens carry it in `iss`.
    pub issuer: String,
    /// Our client id there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Whether a client secret is kept.
    pub has_client_secret: bool,
    /// Audiences that are accepted in tokens, besides the client id.
    pub audiences: Vec<String>,
    /// The claim that names the person.
    pub claim: String,
    /// Keys (a JWK Set) where they were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    /// Where the keys are, instead of where discovery says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_uri: Option<String>,
    /// Certificates (PEM) that are trusted for the provider's addresses, instead of the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// What is asked for in the browser.
    pub scopes: Vec<String>,
    /// By how much clocks may differ, in seconds.
    pub clock_skew_seconds: u32,
    /// The claim that lists groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_claim: Option<String>,
    /// Which SQL role a group gives.
    pub group_roles: BTreeMap<String, String>,
    /// Whether a SQL user is made at the first sign-in.
    pub provisions: bool,
    /// When it was last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

impl From<&model::IdentityProvider> for IdentityProvider {
    fn from(kept: &model::IdentityProvider) -> Self {
        Self {
            name: kept.name.to_string(),
            cluster_id: kept.cluster,
            issuer: kept.issuer.clone(),
            client_id: kept.client_id.clone(),
            has_client_secret: kept.client_secret.is_some(),
            audiences: kept.audiences.clone(),
            claim: kept.claim.clone(),
            jwks: kept.jwks.clone(),
            jwks_uri: kept.jwks_uri.clone(),
            ca_pem: kept.ca_pem.clone(),
            scopes: kept.scopes.clone(),
            clock_skew_seconds: kept.clock_skew_seconds,
            group_claim: kept.group_claim.clone(),
            group_roles: kept.group_roles.clone(),
            provisions: kept.provisions,
            updated_at: kept.updated_at,
        }
    }
}

/// The body of `PUT …/providers/{name}`. It replaces all but the client secret: what is absent is the default.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PutIdentityProvider {
    /// Its issuer, exactly as tokens carry it in `iss`.
    pub issuer: String,
    /// Our client id there. Needed to sign in through a browser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Our client secret there. Absent keeps the one that is known, empty takes it away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<Password>,
    /// Audiences that are accepted in tokens, besides the client id.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// The claim that names the person; `sub` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// Keys (a JWK Set); they are discovered when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    /// Where the keys are, instead of where discovery says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_uri: Option<String>,
    /// Certificates (PEM) that are trusted for the provider's addresses, instead of the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// What is asked for in the browser; `openid` when empty.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// By how much clocks may differ, in seconds, 0 to 300; 30 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_seconds: Option<u32>,
    /// The claim that lists groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_claim: Option<String>,
    /// Which SQL role a group gives.
    #[serde(default)]
    pub group_roles: BTreeMap<String, String>,
    /// Whether a SQL user is made at the first sign-in.
    #[serde(default)]
    pub provisions: bool,
    /// Sets it without trying it at the provider.
    #[serde(default)]
    pub force: bool,
}

impl From<IdentityProvider> for PutIdentityProvider {
    /// What leaves the provider as it is.
    fn from(shown: IdentityProvider) -> Self {
        Self {
            issuer: shown.issuer,
            client_id: shown.client_id,
            client_secret: None,
            audiences: shown.audiences,
            claim: Some(shown.claim),
            jwks: shown.jwks,
            jwks_uri: shown.jwks_uri,
            ca_pem: shown.ca_pem,
            scopes: shown.scopes,
            clock_skew_seconds: Some(shown.clock_skew_seconds),
            group_claim: shown.group_claim,
            group_roles: shown.group_roles,
            provisions: shown.provisions,
            force: false,
        }
    }
}

/// `GET /chitin/providers` and `GET /chitin/clusters/{id}/providers`. A cluster's list has those of the cloud that it
/// trusts too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityProviders {
    /// A cluster's own first, then the cloud's.
    pub providers: Vec<IdentityProvider>,
}

/// `GET /chitin/throttle`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// Those with the most failures, at most 1,000.
    pub lines: Vec<ThrottleLine>,
    /// How many there are in all.
    pub total: usize,
}

/// Failed sign-ins that are remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleLine {
    /// The cluster's `NAME-NUMBER`, as clients said it; absent for an address's failures at all clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The SQL user, as clients said it, where failures are counted by user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The client's address or network, where failures are counted by address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// How many failures are remembered.
    pub failures: u32,
    /// What that means for the next attempt, in a word: `counted`, `slowed` or `refused`.
    pub state: String,
    /// Until when it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
}

/// `POST /chitin/throttle/clear`. What is absent means every one; with nothing, all is forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleFilter {
    /// Failures at this cluster only: its id, its name or its `NAME-NUMBER`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Failures as this user only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Failures from this IP address only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// The answer of `POST /chitin/throttle/clear`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleared {
    /// How many lines were forgotten.
    pub cleared: usize,
}

#[cfg(test)]
mod tests {
    use keys::SecretText;
    use serde_json::json;

    use super::*;

    fn kept() -> model::IdentityProvider {
        model::IdentityProvider {
            name: "okta".parse().unwrap(),
            cluster: None,
            issuer: "https://okta.example.org".to_owned(),
            client_id: Some("chitin".to_owned()),
            client_secret: Some("canary-secret".to_owned()),
            audiences: vec!["sql".to_owned()],
            claim: "email".to_owned(),
            jwks: None,
            jwks_uri: None,
            ca_pem: None,
            scopes: vec!["openid".to_owned()],
            clock_skew_seconds: 30,
            group_claim: Some("groups".to_owned()),
            group_roles: BTreeMap::from([("dba".to_owned(), "admin".to_owned())]),
            provisions: true,
            updated_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_client_secret_is_never_shown_and_does_not_print() {
        let shown = IdentityProvider::from(&kept());
        let text = serde_json::to_string(&shown).unwrap();
        assert!(shown.has_client_secret && !text.contains("canary"), "{text}");
        let secret = Some(Password::new(SecretText::new("canary".to_owned())));
        let request = PutIdentityProvider { client_secret: secret, ..shown.into() };
        assert!(!format!("{request:?}").contains("canary"));
        assert!(serde_json::to_string(&request).unwrap().contains("canary"), "the cloud must get it");
    }

    #[test]
    fn what_is_shown_and_sent_back_leaves_a_provider_as_it_is() {
        let shown = IdentityProvider::from(&kept());
        let request = serde_json::to_value(PutIdentityProvider::from(shown)).unwrap();
        assert_eq!(request.get("client_secret"), None, "absent keeps it");
        assert_eq!(request["group_roles"], json!({"dba": "admin"}));
        assert_eq!(request["provisions"], json!(true));
    }

    #[test]
    fn words_are_those_of_the_contract() {
        assert_eq!(json!(ClientCaStatus::NotSet), json!("NOT_SET"));
        assert_eq!(json!(ClientCaStatus::IsSet), json!("IS_SET"));
        let outcomes =
            [HbaOutcome::Proceeds, HbaOutcome::OtherMethod, HbaOutcome::Rejected, HbaOutcome::NoRule];
        for outcome in outcomes {
            assert_eq!(json!(outcome), json!(outcome.as_str()));
        }
        let ocsp: Ocsp = serde_json::from_value(json!({"mode": "strict"})).unwrap();
        assert_eq!((ocsp.timeout_ms, ocsp.accept_without_responder), (3_000, false));
    }
}
