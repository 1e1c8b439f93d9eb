//! Names of keys and services that keep them. Nothing is asked: a key that is well named may still be none.

use model::{KEY_URI_BYTES_MAX, KeyCredentials, KeyService, KeyType};

use super::{Plaintext, roots, url};
use crate::Refusal;

const TEXT_BYTES_MAX: usize = 1_024;
const SECRET_BYTES_MAX: usize = 64 * 1024;

/// A key's name at its service, and as whom it is used.
pub(crate) fn key(kind: KeyType, uri: &str, auth_principal: &str) -> Result<(), Refusal> {
    let is_plain = |text: &str| {
        text.len() <= KEY_URI_BYTES_MAX
            && text.bytes().all(|byte| byte.is_ascii_graphic())
            && !text.contains("..")
    };
    match kind {
        KeyType::Null if uri.is_empty() && auth_principal.is_empty() => Ok(()),
        KeyType::Null => Err(Refusal::invalid(
            "NULL_KMS is the cloud's own root key; leave `uri` and `auth_principal` empty",
        )),
        KeyType::Azure => Err(Refusal::unbuilt("keys in Azure Key Vault are")),
        KeyType::Aws | KeyType::Gcp | KeyType::Vault | KeyType::Pkcs11 => {
            if uri.is_empty() || !is_plain(uri) || !is_plain(auth_principal) {
                return Err(Refusal::invalid(format_args!(
                    "`uri` names a key of type {} in at most {KEY_URI_BYTES_MAX} printable characters without \
                     spaces and `..`, and so does `auth_principal` a principal",
                    kind.as_str()
                )));
            }
            Ok(())
        }
    }
}

/// A key service as a whole.
pub(crate) fn key_service(service: &KeyService) -> Result<(), Refusal> {
    let plain = |what: &str, text: &str| {
        if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(Refusal::invalid(format_args!(
                "{what} has 1 to {TEXT_BYTES_MAX} bytes and no control characters"
            )));
        }
        Ok(())
    };
    if let Some(pem) = &service.ca_pem {
        roots("ca_pem", pem)?;
    }
    if let Some(namespace) = &service.namespace {
        plain("namespace", namespace)?;
    }
    let secret = |text: &model::KeptSecret| {
        if text.expose().is_empty() || text.expose().len() > SECRET_BYTES_MAX {
            return Err(Refusal::invalid(format_args!("a secret has 1 to {SECRET_BYTES_MAX} bytes")));
        }
        Ok(())
    };
    match &service.credentials {
        KeyCredentials::VaultToken(token) => secret(token)?,
        KeyCredentials::VaultAppRole { role_id, secret_id, mount } => {
            plain("role_id", role_id)?;
            plain("role_mount", mount)?;
            secret(secret_id)?;
        }
        KeyCredentials::AwsAccessKey { access_key_id, secret_access_key, session_token, external_id } => {
            plain("access_key_id", access_key_id)?;
            secret(secret_access_key)?;
            session_token.as_ref().map_or(Ok(()), secret)?;
            external_id.as_ref().map_or(Ok(()), |id| plain("external_id", id))?;
        }
        KeyCredentials::GcpServiceAccount(json) => secret(json)?,
        KeyCredentials::Pkcs11Pin(pin) => secret(pin)?,
    }
    let address = service.address.as_str();
    match service.kind {
        KeyType::Pkcs11 => plain("address", address),
        KeyType::Aws | KeyType::Gcp if address.is_empty() => Ok(()),
        KeyType::Aws | KeyType::Gcp | KeyType::Vault => {
            url("address", address, Plaintext::OnLoopback).map(drop)
        }
        KeyType::Null | KeyType::Azure => {
            Err(Refusal::invalid("a key service is one of VAULT_TRANSIT, AWS_KMS, GCP_CLOUD_KMS and PKCS11"))
        }
    }
}
