//! Keys: the Cloud API's CMEK, and what it has no words for, under `/api/v1/chitin`.

use model::{ClusterId, CmekStatus, Encryption, KeyOutage, KeySeen, KeySpec, KeyType, KeyWish, KeysSeen};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// A key-encryption key, as the Cloud API names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmekKeySpec {
    /// What keeps it.
    #[serde(rename = "type")]
    pub kind: KeyType,
    /// The key's name there; empty for the cloud's root key. At most [`model::KEY_URI_BYTES_MAX`] bytes.
    #[serde(default)]
    pub uri: String,
    /// As whom the key is used; empty means as whom the service's credentials say.
    #[serde(default)]
    pub auth_principal: String,
    /// The key service that leads to it. Ours; the Cloud API has none. Absent in a request: the only one of its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

impl From<&KeySpec> for CmekKeySpec {
    fn from(spec: &KeySpec) -> Self {
        Self {
            kind: spec.kind,
            uri: spec.uri.clone(),
            auth_principal: spec.auth_principal.clone(),
            service: spec.service.as_ref().map(ToString::to_string),
        }
    }
}

impl std::fmt::Display for CmekKeySpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            KeyType::Null => f.write_str("the cloud's root key"),
            KeyType::Aws | KeyType::Gcp | KeyType::Azure | KeyType::Vault | KeyType::Pkcs11 => {
                write!(f, "{} {}", self.kind.as_str(), self.uri)
            }
        }
    }
}

/// The key of one region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmekRegionSpec {
    /// The region, as the cluster names it.
    pub region: String,
    /// Its key. One volume serves every region, so all name the same.
    pub key_spec: CmekKeySpec,
}

/// The body of `POST` and `PUT /clusters/{id}/cmek`. `POST` names every region, `PUT` those that change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmekSpecification {
    /// The regions.
    pub region_specs: Vec<CmekRegionSpec>,
}

/// What a customer does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CmekAction {
    /// Takes it away.
    Revoke,
}

/// The body of `PATCH /clusters/{id}/cmek`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateCmekStatus {
    /// What is done.
    pub action: CmekAction,
}

/// Where a cluster's customer-managed key stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmekClusterInfo {
    /// Of the whole cluster.
    pub status: CmekStatus,
    /// Of each region, in the cluster's order; they are always alike.
    pub region_infos: Vec<CmekRegionInfo>,
}

/// Where a region's key stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmekRegionInfo {
    /// The region.
    pub region: String,
    /// Where it stands.
    pub status: CmekStatus,
    /// Every key that was asked for, newest first.
    pub key_infos: Vec<CmekKeyInfo>,
}

/// Where one key stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmekKeyInfo {
    /// Which key.
    pub spec: CmekKeySpec,
    /// Where it stands.
    pub status: CmekStatus,
    /// Why, for people; empty where there is nothing to say.
    pub user_message: String,
    /// When it was first asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When anything of this last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    /// The version in use, as its service says it. Ours.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
}

impl From<KeySeen> for CmekKeyInfo {
    fn from(seen: KeySeen) -> Self {
        Self {
            spec: (&seen.spec).into(),
            status: seen.status,
            user_message: seen.user_message,
            created_at: seen.created_at,
            updated_at: seen.updated_at,
            version: seen.version,
        }
    }
}

impl CmekClusterInfo {
    /// Where the keys of a cluster in these regions stand.
    pub fn of(regions: &[String], wish: &KeyWish, seen: &KeysSeen) -> Self {
        let status = wish.status(seen);
        let key_infos: Vec<CmekKeyInfo> = wish.keys(seen).into_iter().map(Into::into).collect();
        let region_info =
            |region: &String| CmekRegionInfo { region: region.clone(), status, key_infos: key_infos.clone() };
        // Without any key there is nothing to say of a region.
        let regions = if key_infos.is_empty() { &[] } else { regions };
        Self { status, region_infos: regions.iter().map(region_info).collect() }
    }
}

/// A key service that does not answer, or refuses our credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// What was seen.
    pub reason: String,
    /// Whether it answers and does not accept the credentials that are set: others are needed.
    #[serde(default)]
    pub are_credentials_refused: bool,
}

impl From<&KeyOutage> for Outage {
    fn from(seen: &KeyOutage) -> Self {
        let KeyOutage { since, reason, are_credentials_refused } = seen;
        Self { since: *since, reason: reason.clone(), are_credentials_refused: *are_credentials_refused }
    }
}

/// What the disk and the kernel say of a cluster's keys. Nothing is woken and no service asked for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFacts {
    /// The key that wraps the data key, as the key file says; absent where the file cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrapped_by: Option<CmekKeySpec>,
    /// That key's id, as its service says it.
    #[serde(default)]
    pub key_id: String,
    /// That key's version, as its service says it; empty where it does not.
    #[serde(default)]
    pub key_version: String,
    /// How the data key is wrapped.
    #[serde(default)]
    pub algorithm: String,
    /// How the volume is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Whether the data key is in the kernel, as the kernel says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_unlocked: Option<bool>,
    /// What was read for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_evidence: Option<String>,
    /// How far the volume is encrypted anew, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<CopyProgress>,
}

/// How far a volume is encrypted anew under another data key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Done, in bytes.
    pub done_bytes: u64,
    /// To be done in all, in bytes, as far as known.
    pub total_bytes: u64,
}

/// `GET /chitin/clusters/{id}/keys`, and the answer of `POST …/keys/restore` and `POST …/keys/data-key/rotate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterKeys {
    /// The cluster.
    pub id: ClusterId,
    /// Its name.
    pub name: String,
    /// Where its customer-managed key stands.
    pub status: CmekStatus,
    /// The key that should wrap the data key.
    pub key_spec: CmekKeySpec,
    /// Every customer's key that was asked for, newest first.
    pub keys: Vec<CmekKeyInfo>,
    /// What disk and kernel say.
    pub facts: KeyFacts,
    /// When the data key was made, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub data_key_since: Option<OffsetDateTime>,
    /// Whether the volume is on the way to another data key.
    pub is_data_key_rotating: bool,
    /// Whether the customer took the key away.
    pub is_revoked: bool,
    /// Whether the engine is stopped and the data key out of the kernel for that.
    pub is_locked_away: bool,
    /// Why the service refuses the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied: Option<String>,
    /// The service's silence, or its refusal of our credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<Outage>,
    /// Why the newest demand was not met yet; it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What to do, where something is to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_step: Option<String>,
}

/// `GET /chitin/keys`: the root key, and a line for each cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// The cloud's root key.
    pub root_key: RootKey,
    /// The clusters, by name.
    pub clusters: Vec<ClusterKeyLine>,
}

/// What was last seen of a cluster's key. Nothing is measured for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterKeyLine {
    /// The cluster.
    pub id: ClusterId,
    /// Its name.
    pub name: String,
    /// Where its customer-managed key stands.
    pub status: CmekStatus,
    /// The key that should wrap the data key.
    pub key_spec: CmekKeySpec,
    /// The version that was last seen; empty where it is not known.
    pub key_version: String,
    /// When that key was first asked for.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// Whether the volume is on the way to another data key.
    pub is_data_key_rotating: bool,
    /// What to do, where something is to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_step: Option<String>,
}

/// How the root key's file is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootKeyProtection {
    /// By its mode (0600) alone.
    File,
    /// By a passphrase.
    Passphrase,
    /// It is a systemd credential.
    Credential,
    /// It is wrapped by a key service.
    Service,
}

impl RootKeyProtection {
    /// The protection in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "a file with mode 0600",
            Self::Passphrase => "a passphrase",
            Self::Credential => "a systemd credential",
            Self::Service => "a key service",
        }
    }
}

/// `GET /chitin/root-key`, and the answer of `POST /chitin/root-key/rotate`. Never holds the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootKey {
    /// Names the key without giving it away.
    pub id: String,
    /// Goes up with each rotation; the first is 1.
    pub version: u32,
    /// How it is protected on the disk.
    pub protection: RootKeyProtection,
    /// More of that for people, for instance which key of which service; empty where there is nothing to say.
    #[serde(default)]
    pub protection_detail: String,
    /// When this version was made, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// Earlier versions that are kept because something is still under them.
    #[serde(default)]
    pub earlier_versions: Vec<u32>,
    /// Whether the program's memory is locked, so that the key cannot be swapped out.
    pub is_memory_locked: bool,
    /// Whether core dumps are switched off.
    pub are_core_dumps_off: bool,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A cluster cannot be used.
    Critical,
    /// It will come to that, or something was not carried out.
    Warning,
}

impl Severity {
    /// The severity as people and programs read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
        }
    }
}

/// What somebody must look at, in `GET /chitin/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// How bad it is.
    pub severity: Severity,
    /// The name of the cluster that it is about; absent where it is about the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// What is wrong, and why.
    pub what: String,
    /// Since when, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// What to do.
    pub next_step: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vault() -> KeySpec {
        KeySpec { kind: KeyType::Vault, uri: "transit/keys/shop".to_owned(), ..KeySpec::root() }
    }

    #[test]
    fn cmek_has_the_contract_s_words() {
        let wish = KeyWish { cmek: Some(vault()), rewraps: 1, ..KeyWish::default() };
        let seen = KeysSeen { rewraps: 1, wrapped_by: Some(vault()), ..KeysSeen::default() };
        let regions = ["eu".to_owned(), "us".to_owned()];
        let told = json!(CmekClusterInfo::of(&regions, &wish, &seen));
        assert_eq!(told["status"], "ENABLED");
        assert_eq!(
            (&told["region_infos"][0]["region"], &told["region_infos"][1]["region"]),
            (&json!("eu"), &json!("us"))
        );
        let key = &told["region_infos"][1]["key_infos"][0];
        assert_eq!(
            key["spec"],
            json!({"type": "VAULT_TRANSIT", "uri": "transit/keys/shop", "auth_principal": ""})
        );
        assert_eq!((&key["status"], &key["user_message"]), (&json!("ENABLED"), &json!("")));
        assert_eq!(key["created_at"], "1970-01-01T00:00:00Z");
        assert_eq!(json!(UpdateCmekStatus { action: CmekAction::Revoke }), json!({"action": "REVOKE"}));
    }

    #[test]
    fn without_cmek_there_are_no_regions() {
        let told = CmekClusterInfo::of(&["eu".to_owned()], &KeyWish::default(), &KeysSeen::default());
        assert_eq!(json!(told), json!({"status": "DISABLED", "region_infos": []}));
    }

    #[test]
    fn words_are_the_same_for_people_and_programs() {
        for severity in [Severity::Critical, Severity::Warning] {
            assert_eq!(json!(severity), json!(severity.as_str()));
        }
        assert!(Severity::Critical < Severity::Warning, "the worst comes first when sorted");
        assert_eq!(CmekKeySpec::from(&KeySpec::root()).to_string(), KeySpec::root().to_string());
        assert_eq!(CmekKeySpec::from(&vault()).to_string(), vault().to_string());
    }
}
