//! How keys and key services look when they are well formed, said to whoever sets them.

use model::{KEY_URI_BYTES_MAX, KeptSecret, KeyCredentials, KeyService, KeyType};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use url::{Host, Url};

use super::{aws, gcp, pkcs11, transit};

/// Longest address of a service, in bytes.
const ADDRESS_BYTES_MAX: usize = 2_048;
/// Most bytes of the certificates that are trusted.
const PEM_BYTES_MAX: usize = 64 * 1024;
/// Longest secret, in bytes. The longest are key files of Google's, which have below 3 KiB, and session tokens.
pub(super) const SECRET_BYTES_MAX: usize = 16 * 1024;

/// Whether a key's URI and the principal as which it is used are well formed for this kind of key.
///
/// # Errors
/// A text for people that says how they look.
pub fn check(kind: KeyType, uri: &str, auth_principal: &str) -> Result<(), String> {
    if uri.len() > KEY_URI_BYTES_MAX || auth_principal.len() > KEY_URI_BYTES_MAX {
        return Err(format!("a key's URI and its principal have at most {KEY_URI_BYTES_MAX} bytes each"));
    }
    let is_as_itself = |kind: &str| {
        if auth_principal.is_empty() {
            Ok(())
        } else {
            Err(format!("{kind} has no principals; leave auth_principal empty"))
        }
    };
    match kind {
        KeyType::Null => {
            if uri.is_empty() && auth_principal.is_empty() {
                Ok(())
            } else {
                Err("NULL_KMS is the cloud's own root key; leave uri and auth_principal empty".to_owned())
            }
        }
        KeyType::Azure => {
            Err("keys in Azure Key Vault cannot be used here; use one of AWS_KMS, GCP_CLOUD_KMS, VAULT_TRANSIT or \
                 PKCS11"
                .to_owned())
        }
        KeyType::Vault => {
            transit::Path::parse(uri)?;
            is_as_itself("VAULT_TRANSIT")
        }
        KeyType::Pkcs11 => {
            pkcs11::Uri::parse(uri)?;
            is_as_itself("PKCS11")
        }
        KeyType::Aws => {
            aws::KeyArn::parse(uri)?;
            aws::check_role(auth_principal)
        }
        KeyType::Gcp => {
            gcp::check_key(uri)?;
            gcp::check_account(auth_principal)
        }
    }
}

/// Whether a key service is well formed: its address, the kind of its credentials, its certificates and its namespace.
/// Nothing is asked, so credentials that are well formed can still be wrong.
///
/// # Errors
/// A text for people that says what is wrong and how it looks. It holds no secret.
pub fn check_service(service: &KeyService) -> Result<(), String> {
    let KeyService { name: _, kind, address, ca_pem, namespace, credentials, updated_at: _ } = service;
    match (kind, credentials) {
        (KeyType::Vault, KeyCredentials::VaultToken(token)) => {
            check_url(address)?;
            check_secret("the token", token)?;
        }
        (KeyType::Vault, KeyCredentials::VaultAppRole { role_id, secret_id, mount }) => {
            check_url(address)?;
            check_secret("the role's id", &KeptSecret::new(role_id.clone()))?;
            check_secret("the secret id", secret_id)?;
            transit::check_mount(mount)?;
        }
        (
            KeyType::Aws,
            KeyCredentials::AwsAccessKey { access_key_id, secret_access_key, session_token, external_id },
        ) => {
            check_url_or_empty(address)?;
            aws::check_access_key(access_key_id, external_id.as_deref())?;
            check_secret("the secret access key", secret_access_key)?;
            session_token.as_ref().map_or(Ok(()), |token| check_secret("the session token", token))?;
        }
        (KeyType::Gcp, KeyCredentials::GcpServiceAccount(file)) => {
            check_url_or_empty(address)?;
            gcp::Account::read(file)?;
        }
        (KeyType::Pkcs11, KeyCredentials::Pkcs11Pin(pin)) => {
            pkcs11::check_module(address)?;
            check_secret("the PIN", pin)?;
        }
        (KeyType::Null | KeyType::Azure, _) => {
            return Err(format!(
                "there is no key service of the kind {}; use one of AWS_KMS, GCP_CLOUD_KMS, VAULT_TRANSIT or PKCS11",
                kind.as_str()
            ));
        }
        (KeyType::Vault | KeyType::Aws | KeyType::Gcp | KeyType::Pkcs11, _) => {
            return Err(format!("a key service of the kind {} takes {}", kind.as_str(), wanted(*kind)));
        }
    }
    match namespace.as_deref() {
        None => {}
        Some(_) if *kind != KeyType::Vault => {
            return Err("only Vault and OpenBao have namespaces; leave it out".to_owned());
        }
        Some(namespace) => transit::check_namespace(namespace)?,
    }
    match ca_pem.as_deref() {
        None => Ok(()),
        Some(_) if *kind == KeyType::Pkcs11 => {
            Err("a PKCS #11 module is not reached over TLS; leave the certificates out".to_owned())
        }
        Some(pem) => check_pem(pem),
    }
}

fn wanted(kind: KeyType) -> &'static str {
    match kind {
        KeyType::Vault => "a token, or a role id with a secret id (AppRole)",
        KeyType::Aws => "an access key: its id and its secret",
        KeyType::Gcp => "a service account's key file (JSON)",
        KeyType::Pkcs11 => "the PIN of the token's user",
        KeyType::Null | KeyType::Azure => "no credentials",
    }
}

fn check_url_or_empty(address: &str) -> Result<(), String> {
    if address.is_empty() { Ok(()) } else { check_url(address) }
}

/// Secrets travel to it, so it is `https`; `http` to this machine itself is as good.
pub(super) fn check_url(address: &str) -> Result<(), String> {
    let wrong = |why: &str| format!("the address {why}; it looks like https://vault.example.com:8200");
    if address.len() > ADDRESS_BYTES_MAX {
        return Err(wrong(&format!("has more than {ADDRESS_BYTES_MAX} bytes")));
    }
    let url = Url::parse(address).map_err(|_| wrong("is no URL"))?;
    let is_here = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(_)) => false,
        None => return Err(wrong("has no host")),
    };
    match url.scheme() {
        "https" => {}
        "http" if is_here => {}
        "http" => return Err(wrong("begins with http, and the credentials would travel in plaintext")),
        _ => return Err(wrong("does not begin with https")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("holds a user name or a password, which do not belong there"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("holds a ? or a #"));
    }
    Ok(())
}

fn check_secret(what: &str, secret: &KeptSecret) -> Result<(), String> {
    let text = secret.expose();
    if text.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if text.len() > SECRET_BYTES_MAX {
        return Err(format!("{what} has more than {SECRET_BYTES_MAX} bytes"));
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!("{what} holds a space or a line break; was more copied than belongs to it?"));
    }
    Ok(())
}

fn check_pem(pem: &str) -> Result<(), String> {
    if pem.len() > PEM_BYTES_MAX {
        return Err(format!("the certificates have more than {PEM_BYTES_MAX} bytes"));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate =
            certificate.map_err(|_| "the certificates are not PEM: a block is cut off".to_owned())?;
        roots
            .add(certificate)
            .map_err(|_| "a block among the certificates is not an X.509 certificate".to_owned())?;
    }
    if roots.is_empty() {
        return Err("the certificates hold no block that begins with -----BEGIN CERTIFICATE-----".to_owned());
    }
    Ok(())
}

/// The address without what a path would be appended to wrongly.
pub(super) fn base(address: &str) -> String {
    address.trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn vault(address: &str) -> KeyService {
        KeyService {
            name: "vault".parse().unwrap(),
            kind: KeyType::Vault,
            address: address.to_owned(),
            ca_pem: None,
            namespace: None,
            credentials: KeyCredentials::VaultToken(KeptSecret::new("canary-token".into())),
            updated_at: datetime!(2026-01-01 0:00 UTC),
        }
    }

    #[test]
    fn addresses_are_https_or_this_machine() {
        for right in [
            "https://vault.example:8200",
            "https://example.com/vault/",
            "http://127.0.0.1:8200",
            "http://[::1]",
        ] {
            assert_eq!(check_service(&vault(right)), Ok(()), "{right}");
        }
        for wrong in [
            "",
            "vault.example:8200",
            "http://vault.example:8200",
            "http://localhost:8200",
            "http://127.0.0.1.evil.example",
            "file:///etc/passwd",
            "https://user:secret@vault.example",
            "https://vault.example/?token=x",
            "https://vault.example/#x",
        ] {
            let refused = check_service(&vault(wrong)).unwrap_err();
            assert!(refused.contains("it looks like https://") && !refused.contains("secret"), "{refused}");
        }
    }

    #[test]
    fn a_service_takes_credentials_of_its_own_kind_without_spaces_and_never_repeats_them() {
        let of = |kind, credentials| KeyService { kind, credentials, ..vault("https://vault.example") };
        let secret = |text: &str| KeptSecret::new(text.into());
        let wrong = [
            of(KeyType::Vault, KeyCredentials::Pkcs11Pin(secret("canary"))),
            of(KeyType::Aws, KeyCredentials::VaultToken(secret("canary"))),
            of(KeyType::Gcp, KeyCredentials::GcpServiceAccount(secret("canary"))),
            of(KeyType::Gcp, KeyCredentials::GcpServiceAccount(secret(r#"{"type": "canary"}"#))),
            of(KeyType::Null, KeyCredentials::VaultToken(secret("canary"))),
            of(KeyType::Azure, KeyCredentials::VaultToken(secret("canary"))),
            of(KeyType::Vault, KeyCredentials::VaultToken(secret("canary\n"))),
            of(KeyType::Vault, KeyCredentials::VaultToken(secret(""))),
            // Its address is no path.
            of(KeyType::Pkcs11, KeyCredentials::Pkcs11Pin(secret("canary"))),
        ];
        for service in wrong {
            let refused = check_service(&service).unwrap_err();
            assert!(!refused.contains("canary"), "{refused}");
        }
    }

    #[test]
    fn a_token_uri_that_is_not_https_is_refused() {
        let file = r#"{"type": "service_account", "client_email": "a@b", "private_key_id": "1",
            "private_key": "canary", "token_uri": "http://metadata.google.internal/token"}"#;
        let credentials = KeyCredentials::GcpServiceAccount(KeptSecret::new(file.into()));
        let service = KeyService { kind: KeyType::Gcp, credentials, ..vault("") };
        let refused = check_service(&service).unwrap_err();
        assert!(refused.contains("plaintext") && !refused.contains("canary"), "{refused}");
    }

    #[test]
    fn certificates_and_namespaces_are_looked_at() {
        for pem in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let service = KeyService { ca_pem: Some(pem.into()), ..vault("https://vault.example") };
            assert!(check_service(&service).is_err(), "{pem}");
        }
        let root = crate::testing::root("a root of the operator's");
        let service = KeyService { ca_pem: Some(root.pem()), ..vault("https://vault.example") };
        assert_eq!(check_service(&service), Ok(()));
        for (namespace, is_right) in
            [("team/prod", true), ("team/", true), ("", false), ("../x", false), ("a b", false)]
        {
            let service = KeyService { namespace: Some(namespace.into()), ..vault("https://vault.example") };
            assert_eq!(check_service(&service).is_ok(), is_right, "{namespace}");
        }
    }

    #[test]
    fn keys_of_azure_are_refused_with_what_there_is_instead() {
        let refused = check(KeyType::Azure, "https://vault.azure.net/keys/a", "").unwrap_err();
        assert!(refused.contains("VAULT_TRANSIT"), "{refused}");
        assert_eq!(check(KeyType::Null, "", ""), Ok(()));
        assert!(check(KeyType::Null, "x", "").is_err());
        assert!(check(KeyType::Vault, "transit/keys/shop", "someone").is_err());
        assert!(check(KeyType::Vault, &format!("transit/keys/{}", "a".repeat(2_000)), "").is_err());
    }
}
