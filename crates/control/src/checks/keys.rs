//! Names of keys and services that keep them, checked by the room that will use them. Nothing is asked: a key that is
//! well named may still be none.

use keys::service;
use model::{KeyService, KeyType};

use super::roots;
use crate::Refusal;

/// A key's name at its service, and as whom it is used.
pub(crate) fn key(kind: KeyType, uri: &str, auth_principal: &str) -> Result<(), Refusal> {
    if kind == KeyType::Azure {
        return Err(Refusal::unbuilt("keys in Azure Key Vault are"));
    }
    service::check(kind, uri, auth_principal).map_err(Refusal::invalid)
}

/// A key service as a whole.
pub(crate) fn key_service(service: &KeyService) -> Result<(), Refusal> {
    if let Some(pem) = &service.ca_pem {
        // Refuses a private key that was pasted along, too.
        roots("ca_pem", pem)?;
    }
    service::check_service(service).map_err(Refusal::invalid)
}
