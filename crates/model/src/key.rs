//! Key-encryption keys: which key wraps a cluster's data key, what is wished for it and what was last seen of it.
//!
//! Names and states are those of the Cloud API's CMEK (`docs: cockroachcloud/managing-cmek.md`).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::KeyServiceName;

/// Most key services of one cloud.
pub const KEY_SERVICES_MAX: usize = 100;
/// Longest name of a key at its service, in bytes.
pub const KEY_URI_BYTES_MAX: usize = 1_024;
/// Most keys of one cluster that are remembered after they are no longer used.
pub const KEYS_KEPT_MAX: usize = 32;

/// What kind of service keeps a key-encryption key. The first four are the Cloud API's names, the others are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyType {
    /// No key of the customer's: the cloud's own root key.
    #[serde(rename = "NULL_KMS")]
    Null,
    /// AWS Key Management Service. The URI is the key's ARN.
    #[serde(rename = "AWS_KMS")]
    Aws,
    /// Google Cloud KMS. The URI is `projects/P/locations/L/keyRings/R/cryptoKeys/K`.
    #[serde(rename = "GCP_CLOUD_KMS")]
    Gcp,
    /// Azure Key Vault. Known by name only: it is refused.
    #[serde(rename = "AZURE_KEY_VAULT")]
    Azure,
    /// The transit engine of Vault or OpenBao. The URI is `MOUNT/keys/NAME`, for instance `transit/keys/shop`.
    #[serde(rename = "VAULT_TRANSIT")]
    Vault,
    /// A hardware security module. The URI is the key's PKCS #11 URI (RFC 7512), for instance
    /// `pkcs11:token=chitin;object=shop`.
    #[serde(rename = "PKCS11")]
    Pkcs11,
}

impl KeyType {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Null => "NULL_KMS",
            Self::Aws => "AWS_KMS",
            Self::Gcp => "GCP_CLOUD_KMS",
            Self::Azure => "AZURE_KEY_VAULT",
            Self::Vault => "VAULT_TRANSIT",
            Self::Pkcs11 => "PKCS11",
        }
    }
}

/// A key-encryption key: where it is kept and how it is named there. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeySpec {
    /// What keeps it.
    #[serde(rename = "type")]
    pub kind: KeyType,
    /// The key's name there; empty for the cloud's root key.
    #[serde(default)]
    pub uri: String,
    /// As whom the key is used: a role's ARN for AWS, a service account's address for GCP. Empty: as whom the service's
    /// own credentials say.
    #[serde(default)]
    pub auth_principal: String,
    /// The key service that leads to it; `None` for the cloud's root key.
    #[serde(default)]
    pub service: Option<KeyServiceName>,
}

impl KeySpec {
    /// The cloud's own root key.
    pub fn root() -> Self {
        Self { kind: KeyType::Null, uri: String::new(), auth_principal: String::new(), service: None }
    }

    /// Whether it is a key of the customer's.
    pub fn is_customers(&self) -> bool {
        self.kind != KeyType::Null
    }
}

impl fmt::Display for KeySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_customers() {
            write!(f, "{} {}", self.kind.as_str(), self.uri)
        } else {
            f.write_str("the cloud's root key")
        }
    }
}

/// A secret that is kept sealed in the state: wiped when dropped, silent when printed. Never part of an answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeptSecret(Zeroizing<String>);

impl KeptSecret {
    /// Takes the text over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeptSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// A service that keeps keys, and how we sign in there. Set by the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyService {
    /// Its name in this cloud.
    pub name: KeyServiceName,
    /// What it is. Never [`KeyType::Null`] or [`KeyType::Azure`].
    pub kind: KeyType,
    /// Vault: its `https` URL. AWS and GCP: another endpoint than the provider's own, or empty. PKCS #11: the path of the
    /// module (`.so`).
    pub address: String,
    /// Certificates (PEM) that are trusted instead of the machine's.
    pub ca_pem: Option<String>,
    /// Vault's namespace, where it has them.
    pub namespace: Option<String>,
    /// How we sign in.
    pub credentials: KeyCredentials,
    /// When it was set.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// How a key service knows us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyCredentials {
    /// A token of Vault's.
    VaultToken(KeptSecret),
    /// Vault's AppRole.
    VaultAppRole {
        /// The role's id.
        role_id: String,
        /// Its secret id.
        secret_id: KeptSecret,
        /// Where the method is mounted, `approle` by default.
        mount: String,
    },
    /// An access key of AWS.
    AwsAccessKey {
        /// The key's id.
        access_key_id: String,
        /// The key's secret.
        secret_access_key: KeptSecret,
        /// With temporary keys.
        session_token: Option<KeptSecret>,
        /// What a role that we assume wants to hear as its external id.
        external_id: Option<String>,
    },
    /// A service account's key file (JSON) of Google's.
    GcpServiceAccount(KeptSecret),
    /// The PIN of a PKCS #11 token's user.
    Pkcs11Pin(KeptSecret),
}

/// What should be true of a cluster's keys. Counts are wishes that can be repeated: they go up with each demand, and the
/// observation says up to which one it was met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyWish {
    /// The key that wraps the data key; `None` if CMEK was never enabled.
    pub cmek: Option<KeySpec>,
    /// When that key was first asked for.
    #[serde(with = "time::serde::rfc3339::option")]
    pub cmek_since: Option<OffsetDateTime>,
    /// The customer took the key away.
    pub is_revoked: bool,
    /// Demands to wrap the data key anew, with the key's newest version.
    pub rewraps: u64,
    /// Demands for another data key, for which the volume is encrypted anew.
    pub data_keys: u64,
}

impl KeyWish {
    /// The key that should wrap the data key.
    pub fn spec(&self) -> KeySpec {
        self.cmek.clone().unwrap_or_else(KeySpec::root)
    }

    /// Where CMEK stands, by what is wished for and what was last seen.
    pub fn status(&self, seen: &KeysSeen) -> CmekStatus {
        if self.cmek.is_none() {
            return CmekStatus::Disabled;
        }
        if seen.is_locked_away && (self.is_revoked || seen.denied.is_some()) {
            return CmekStatus::Revoked;
        }
        if self.is_revoked || seen.denied.is_some() {
            return CmekStatus::Revoking;
        }
        if self.rewraps <= seen.rewraps {
            return CmekStatus::Enabled;
        }
        let was_enabled = seen.rewraps > 0;
        match (was_enabled, self.failure(seen).is_some()) {
            (false, false) => CmekStatus::Enabling,
            (false, true) => CmekStatus::EnableFailed,
            (true, false) => CmekStatus::Rotating,
            (true, true) => CmekStatus::RotateFailed,
        }
    }

    /// Why the newest demand was not met yet. What an earlier one failed of says nothing of it.
    pub fn failure<'a>(&self, seen: &'a KeysSeen) -> Option<&'a String> {
        seen.failure.as_ref().filter(|_| seen.failed_demand == self.rewraps)
    }

    /// Every key that was asked for, newest first: the one that is wished for with where CMEK stands, the one that still
    /// wraps the data key as enabled, earlier ones as disabled.
    pub fn keys(&self, seen: &KeysSeen) -> Vec<KeySeen> {
        let Some(wanted) = &self.cmek else { return Vec::new() };
        let status = self.status(seen);
        let since = self.cmek_since.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let known = seen.keys.iter().find(|key| key.spec == *wanted);
        let message = seen.denied.as_ref().or(self.failure(seen));
        let outage = seen.outage.as_ref().map(|outage| &outage.reason);
        let first = KeySeen {
            spec: wanted.clone(),
            version: known.map(|key| key.version.clone()).unwrap_or_default(),
            status,
            user_message: message.or(outage).cloned().unwrap_or_default(),
            created_at: since,
            updated_at: known.map_or(since, |key| key.updated_at.max(since)),
        };
        let others = seen.keys.iter().filter(|key| key.spec != *wanted).map(|key| {
            let is_used = seen.wrapped_by.as_ref() == Some(&key.spec);
            KeySeen {
                status: if is_used { CmekStatus::Enabled } else { CmekStatus::Disabled },
                ..key.clone()
            }
        });
        std::iter::once(first).chain(others).collect()
    }
}

/// The Cloud API's states of CMEK: of a cluster, of a region, of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CmekStatus {
    /// Not used.
    #[default]
    Disabled,
    /// On the way to not used.
    Disabling,
    /// Could not be left.
    DisableFailed,
    /// Used.
    Enabled,
    /// On the way to be used for the first time.
    Enabling,
    /// Could not be used.
    EnableFailed,
    /// On the way from one key or version to another.
    Rotating,
    /// That failed; the earlier key is still used.
    RotateFailed,
    /// Taken away: the cluster cannot start.
    Revoked,
    /// Being taken away.
    Revoking,
    /// Could not be taken away.
    RevokeFailed,
}

impl CmekStatus {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "DISABLED",
            Self::Disabling => "DISABLING",
            Self::DisableFailed => "DISABLE_FAILED",
            Self::Enabled => "ENABLED",
            Self::Enabling => "ENABLING",
            Self::EnableFailed => "ENABLE_FAILED",
            Self::Rotating => "ROTATING",
            Self::RotateFailed => "ROTATE_FAILED",
            Self::Revoked => "REVOKED",
            Self::Revoking => "REVOKING",
            Self::RevokeFailed => "REVOKE_FAILED",
        }
    }
}

/// A key that wraps, or wrapped, a cluster's data key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySeen {
    /// Which key.
    pub spec: KeySpec,
    /// What the service calls the version in use; empty where it does not say.
    pub version: String,
    /// Where it stands.
    pub status: CmekStatus,
    /// Why, for people.
    pub user_message: String,
    /// When it was first asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When anything of this last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// A key service that does not answer, or refuses our credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyOutage {
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// What was seen, for the operator.
    pub reason: String,
    /// It answers, and does not accept what we sign in with: only other credentials help.
    #[serde(default)]
    pub are_credentials_refused: bool,
}

impl KeyOutage {
    /// Why the credentials have been refused for too long, where that is so: the service has not let the key be used for
    /// longer than `max`, and what it says now is that the credentials are wrong. Without `max` no time is too long.
    pub fn overdue(&self, now: OffsetDateTime, max: Option<Duration>) -> Option<String> {
        let max = max.filter(|max| self.are_credentials_refused && now - self.since >= *max)?;
        let Self { since, reason, are_credentials_refused: _ } = self;
        Some(format!(
            "the key service has refused the credentials for longer than {} s, since {since} \
             (--key-credentials-refused-max): {reason}",
            max.as_secs()
        ))
    }
}

/// What was last seen of a cluster's keys, written by the keeper of keys alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeysSeen {
    /// What wraps the data key now; `None` until it was first looked at, which means the cloud's root key.
    pub wrapped_by: Option<KeySpec>,
    /// Keys that the data key was about to be wrapped by when this was written: after a crash it may be one of them.
    pub tried: Vec<KeySpec>,
    /// Why the newest demand was not met yet; it is tried again.
    pub failure: Option<String>,
    /// The demand for wrapping that was the newest when that failed.
    pub failed_demand: u64,
    /// The engine is stopped and the data key is out of the kernel, because the key may not be used.
    pub is_locked_away: bool,
    /// Every key that wrapped the data key, newest first. At most [`KEYS_KEPT_MAX`].
    pub keys: Vec<KeySeen>,
    /// Up to which demand the data key was wrapped anew.
    pub rewraps: u64,
    /// Up to which demand the volume was encrypted anew.
    pub data_keys: u64,
    /// When the data key in use was made, where that is known.
    #[serde(with = "time::serde::rfc3339::option")]
    pub data_key_since: Option<OffsetDateTime>,
    /// The service said that the key may not be used: it is disabled, destroyed, or not ours to use. Holds until the
    /// service says otherwise.
    pub denied: Option<String>,
    /// The service said so since the customer revoked the key here: when it allows it again, the revocation is over.
    pub was_denied_since_revocation: bool,
    /// The service does not answer, or refuses our credentials.
    pub outage: Option<KeyOutage>,
}

impl KeysSeen {
    /// Why the cluster may not run, for people; `None` if its keys are no reason.
    pub fn hindrance(&self, wish: &KeyWish) -> Option<String> {
        if wish.is_revoked {
            return Some(format!("{} was revoked", wish.spec()));
        }
        self.denied.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_and_states_have_the_cloud_api_s_names() {
        let spec = KeySpec { kind: KeyType::Gcp, uri: "projects/p".into(), ..KeySpec::root() };
        let text = serde_json::to_string(&spec).unwrap();
        assert!(text.contains(r#""type":"GCP_CLOUD_KMS""#), "{text}");
        assert_eq!(serde_json::to_string(&CmekStatus::RotateFailed).unwrap(), r#""ROTATE_FAILED""#);
        for status in [CmekStatus::Disabled, CmekStatus::EnableFailed, CmekStatus::Revoked] {
            assert_eq!(serde_json::to_string(&status).unwrap(), format!("\"{}\"", status.as_str()));
        }
    }

    #[test]
    fn where_cmek_stands_follows_from_the_wish_and_what_was_seen() {
        let key = KeySpec { kind: KeyType::Vault, uri: "transit/keys/shop".into(), ..KeySpec::root() };
        let mut wish = KeyWish::default();
        let mut seen = KeysSeen::default();
        assert_eq!(wish.status(&seen), CmekStatus::Disabled);
        wish = KeyWish { cmek: Some(key.clone()), rewraps: 1, ..wish };
        assert_eq!(wish.status(&seen), CmekStatus::Enabling);
        (seen.failure, seen.failed_demand) = (Some("no such key".into()), 1);
        assert_eq!(wish.status(&seen), CmekStatus::EnableFailed);
        assert_eq!(wish.keys(&seen)[0].user_message, "no such key");
        // Another key, which nobody tried yet.
        wish.rewraps = 2;
        assert_eq!(wish.status(&seen), CmekStatus::Enabling);
        assert_eq!(wish.keys(&seen)[0].user_message, "");
        wish.rewraps = 1;
        seen = KeysSeen { rewraps: 1, wrapped_by: Some(key.clone()), ..KeysSeen::default() };
        assert_eq!(wish.status(&seen), CmekStatus::Enabled);
        wish.rewraps = 2;
        assert_eq!(wish.status(&seen), CmekStatus::Rotating);
        (seen.failure, seen.failed_demand) = (Some("denied".into()), 2);
        assert_eq!(wish.status(&seen), CmekStatus::RotateFailed);
        wish.is_revoked = true;
        assert_eq!(wish.status(&seen), CmekStatus::Revoking);
        seen.is_locked_away = true;
        assert_eq!(wish.status(&seen), CmekStatus::Revoked);
        assert!(seen.hindrance(&wish).is_some());
        // A service that takes the key away is the same as a customer who does.
        wish.is_revoked = false;
        seen.denied = Some("the key is disabled".into());
        assert_eq!(wish.status(&seen), CmekStatus::Revoked);
        assert_eq!(seen.hindrance(&wish).as_deref(), Some("the key is disabled"));
    }

    #[test]
    fn the_key_that_still_wraps_is_told_apart_from_earlier_ones() {
        let key = |name: &str| KeySpec { kind: KeyType::Vault, uri: name.into(), ..KeySpec::root() };
        let was = |name: &str| KeySeen {
            spec: key(name),
            version: "1".into(),
            status: CmekStatus::Enabled,
            user_message: String::new(),
            created_at: OffsetDateTime::UNIX_EPOCH,
            updated_at: OffsetDateTime::UNIX_EPOCH,
        };
        let wish = KeyWish { cmek: Some(key("c")), rewraps: 3, ..KeyWish::default() };
        let seen = KeysSeen {
            rewraps: 2,
            wrapped_by: Some(key("b")),
            keys: vec![was("b"), was("a")],
            ..KeysSeen::default()
        };
        let told: Vec<(String, CmekStatus)> =
            wish.keys(&seen).into_iter().map(|key| (key.spec.uri, key.status)).collect();
        let expected = [("c", CmekStatus::Rotating), ("b", CmekStatus::Enabled), ("a", CmekStatus::Disabled)];
        assert_eq!(told, expected.map(|(uri, status)| (uri.to_owned(), status)));
    }

    #[test]
    fn kept_secrets_do_not_print() {
        let credentials = KeyCredentials::VaultToken(KeptSecret::new("canary".into()));
        assert!(!format!("{credentials:?}").contains("canary"));
    }

    #[test]
    fn a_cluster_without_a_wish_uses_the_root_key() {
        let wish: KeyWish = serde_json::from_str("{}").unwrap();
        assert_eq!(wish.spec(), KeySpec::root());
        assert!(!wish.spec().is_customers());
    }
}
