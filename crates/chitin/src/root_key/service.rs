//! The key service that wraps the root key: known from a file of the operator's, because the state that names the others
//! cannot be read yet.

use std::sync::Arc;

use keys::{KeyEncryption, Secret};
use model::{
    Clock, ClusterId, Fetcher, KeyCredentials, KeyService, KeyServiceName, KeySpec, KeyType, SystemClock,
};
use network::{Destination, GateSettings, Target};
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::Error;

/// A key service as the operator writes it down.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    kind: KeyType,
    address: String,
    #[serde(default)]
    ca_pem: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    credentials: KeyCredentials,
}

/// Reads the file's text.
pub(super) fn read(text: &Secret) -> Result<KeyService, Error> {
    // What the parser says may repeat a part of the text, which holds secrets; only the place is told.
    let wrong = |cause: serde_json::Error| {
        Error::Service(format!(
            "the file of the root key's service is not what it should be, near line {} column {}; see docs/root-key.md",
            cause.line(),
            cause.column()
        ))
    };
    let Written { kind, address, ca_pem, namespace, credentials } =
        serde_json::from_slice(text.expose()).map_err(wrong)?;
    let service = KeyService {
        name: name()?,
        kind,
        address,
        ca_pem,
        namespace,
        credentials,
        updated_at: OffsetDateTime::UNIX_EPOCH,
    };
    keys::service::check_service(&service)
        .map_err(|reason| Error::Service(format!("the root key's service cannot be used: {reason}")))?;
    Ok(service)
}

/// What the service is called in a wrapped root key.
pub(super) fn name() -> Result<KeyServiceName, Error> {
    "root-key".parse().map_err(|_| Error::Service("the service has no name".to_owned()))
}

/// The key at the service. Asks nobody yet.
pub(super) fn open(text: &Secret, spec: &KeySpec) -> Result<Arc<dyn KeyEncryption>, Error> {
    let service = read(text)?;
    // Nobody but the operator wrote the address, and it is for this one key: so private addresses are open to it.
    let everywhere = ["0.0.0.0/0", "::/0"].iter().filter_map(|range| range.parse().ok()).collect();
    let settings = GateSettings { allow: everywhere, ..GateSettings::default() };
    let gate = network::Gate::new(settings, Arc::new(NoClusters(watch::channel(0).0)))
        .map_err(|cause| Error::Service(cause.to_string()))?;
    let (fetcher, clock): (Arc<dyn Fetcher>, Arc<dyn Clock>) = (Arc::new(gate), Arc::new(SystemClock));
    keys::service::open(&service, spec, fetcher, clock).map_err(|cause| Error::Service(cause.to_string()))
}

/// There are no clusters yet on whose behalf anything could leave.
struct NoClusters(watch::Sender<u64>);

impl network::Perimeter for NoClusters {
    fn judge(&self, _: ClusterId, _: &Destination<'_>) -> Result<(), String> {
        Err("no cluster is known yet".to_owned())
    }

    fn may_look_up(&self, _: ClusterId, _: &Target) -> Result<(), String> {
        Err("no cluster is known yet".to_owned())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_file_is_said_without_its_secrets() {
        for wrong in [
            r#"{"kind":"VAULT_TRANSIT","address":"https://v:8200","credentials":{"vault_token":"canary"}"#,
            r#"{"kind":"VAULT_TRANSIT","address":"https://v:8200","credentials":{"canary":"canary"}}"#,
            r#"{"kind":"VAULT_TRANSIT","address":"https://v:8200","canary":1,"credentials":{"vault_token":"canary"}}"#,
            r#"{"kind":"canary"}"#,
            r#"{"kind":"VAULT_TRANSIT","address":"ftp://v","credentials":{"vault_token":"canary"}}"#,
        ] {
            let refused = read(&Secret::new(wrong.as_bytes().to_vec())).unwrap_err().to_string();
            assert!(!refused.contains("canary"), "{refused}");
        }
        let good = r#"{"kind":"VAULT_TRANSIT","address":"https://v:8200","credentials":{"vault_token":"hvs.token"}}"#;
        assert!(read(&Secret::new(good.as_bytes().to_vec())).is_ok());
    }
}
