//! Key services as the operator sets them. Secrets come in and are never shown.

use model::{KeyCredentials, KeyType};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{CmekKeySpec, Password};

/// A key service, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyService {
    /// Its name in this cloud.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: KeyType,
    /// Vault: its URL. AWS and GCP: another endpoint than the provider's own, or empty. PKCS #11: the module's path.
    pub address: String,
    /// Certificates (PEM) that are trusted instead of the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// Vault's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// How we sign in there.
    pub sign_in: KeySignIn,
    /// Vault's AppRole: the role's id. AWS: the access key's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Where Vault's AppRole is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_mount: Option<String>,
    /// What a role of AWS that we assume wants to hear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// When it was last set.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// How we sign in at a key service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeySignIn {
    /// With a token of Vault's.
    Token,
    /// With Vault's AppRole.
    AppRole,
    /// With an access key of AWS.
    AccessKey,
    /// With a service account's key file of Google's.
    ServiceAccount,
    /// With the PIN of a PKCS #11 token.
    Pin,
}

impl KeySignIn {
    /// The way by its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::AppRole => "app-role",
            Self::AccessKey => "access-key",
            Self::ServiceAccount => "service-account",
            Self::Pin => "pin",
        }
    }
}

impl From<&model::KeyService> for KeyService {
    fn from(kept: &model::KeyService) -> Self {
        let (sign_in, principal, role_mount, external_id) = match &kept.credentials {
            KeyCredentials::VaultToken(_) => (KeySignIn::Token, None, None, None),
            KeyCredentials::VaultAppRole { role_id, mount, secret_id: _ } => {
                (KeySignIn::AppRole, Some(role_id.clone()), Some(mount.clone()), None)
            }
            KeyCredentials::AwsAccessKey {
                access_key_id,
                external_id,
                secret_access_key: _,
                session_token: _,
            } => (KeySignIn::AccessKey, Some(access_key_id.clone()), None, external_id.clone()),
            KeyCredentials::GcpServiceAccount(_) => (KeySignIn::ServiceAccount, None, None, None),
            KeyCredentials::Pkcs11Pin(_) => (KeySignIn::Pin, None, None, None),
        };
        Self {
            name: kept.name.to_string(),
            kind: kept.kind,
            address: kept.address.clone(),
            ca_pem: kept.ca_pem.clone(),
            namespace: kept.namespace.clone(),
            sign_in,
            principal,
            role_mount,
            external_id,
            updated_at: kept.updated_at,
        }
    }
}

/// `GET /chitin/key-services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyServices {
    /// By name.
    pub key_services: Vec<KeyService>,
}

/// The body of `PUT /chitin/key-services/{name}`. It replaces all but the secrets: those that are known stay while the
/// service and as whom we sign in there are the same; else they must be given again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutKeyService {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: KeyType,
    /// Vault: its URL. AWS and GCP: another endpoint than the provider's own, or empty. PKCS #11: the module's path.
    #[serde(default)]
    pub address: String,
    /// Certificates (PEM) that are trusted instead of the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// Vault's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// How we sign in. Absent keeps what is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PutKeyCredentials>,
    /// Sets it without trying it on the keys that clusters use through it.
    #[serde(default)]
    pub force: bool,
}

/// How we sign in. Only what belongs to the service's type may be there.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PutKeyCredentials {
    /// Vault: a token. A secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Password>,
    /// Vault's AppRole: the role's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role_id: Option<String>,
    /// Vault's AppRole: the secret id. A secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_id: Option<Password>,
    /// Where Vault's AppRole is mounted, `approle` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role_mount: Option<String>,
    /// AWS: the access key's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// AWS: the access key. A secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<Password>,
    /// AWS: the session token of temporary keys. A secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_token: Option<Password>,
    /// AWS: what a role that we assume wants to hear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// GCP: a service account's key file (JSON). A secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_json: Option<Password>,
    /// PKCS #11: the PIN of the token's user. A secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<Password>,
}

/// The body of `POST /chitin/key-services/{name}/test`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TestKey {
    /// The key's name at the service.
    pub uri: String,
    /// As whom the key is used.
    #[serde(default)]
    pub auth_principal: String,
    /// On whose behalf it is asked, which is what a cluster's egress policy is about: an id, a name or a `NAME-NUMBER`.
    /// Absent: for the cloud itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

/// The answer: a throw-away data key was wrapped and unwrapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestedKey {
    /// With this key.
    pub key_spec: CmekKeySpec,
}

#[cfg(test)]
mod tests {
    use keys::SecretText;
    use model::KeptSecret;

    use super::*;

    #[test]
    fn no_kind_of_credentials_is_shown() {
        let secret = || KeptSecret::new("canary".to_owned());
        let all = [
            KeyCredentials::VaultToken(secret()),
            KeyCredentials::VaultAppRole {
                role_id: "role".to_owned(),
                secret_id: secret(),
                mount: "approle".to_owned(),
            },
            KeyCredentials::AwsAccessKey {
                access_key_id: "AKIA".to_owned(),
                secret_access_key: secret(),
                session_token: Some(secret()),
                external_id: Some("org".to_owned()),
            },
            KeyCredentials::GcpServiceAccount(secret()),
            KeyCredentials::Pkcs11Pin(secret()),
        ];
        for credentials in all {
            let kept = model::KeyService {
                name: "one".parse().unwrap(),
                kind: KeyType::Vault,
                address: "https://vault.example.org".to_owned(),
                ca_pem: None,
                namespace: None,
                credentials,
                updated_at: OffsetDateTime::UNIX_EPOCH,
            };
            let text = serde_json::to_string(&KeyService::from(&kept)).unwrap();
            assert!(!text.contains("canary"), "{text}");
        }
    }

    #[test]
    fn what_is_sent_does_not_print() {
        let secret = || Some(Password::new(SecretText::new("canary".to_owned())));
        let sent = PutKeyCredentials {
            token: secret(),
            secret_id: secret(),
            secret_access_key: secret(),
            session_token: secret(),
            credentials_json: secret(),
            pin: secret(),
            ..PutKeyCredentials::default()
        };
        assert!(!format!("{sent:?}").contains("canary"));
        assert!(serde_json::to_string(&sent).unwrap().contains("canary"), "the cloud must get it");
    }
}
