//! `chitin key service`: list, set, remove, test.

use api::{KeyService, KeySignIn, PutKeyCredentials, PutKeyService, TestKey};
use model::KeyType;

use crate::cloud::Cloud;
use crate::command::key::{KeyServiceCommand, KeyServiceSet};
use crate::failure::{Failure, Kind};
use crate::output::{self, Printer, facts, table};
use crate::{secret, text};

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: KeyServiceCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        KeyServiceCommand::List => {
            let found = cloud.api.key_services().await?;
            if found.is_empty() && !printer.is_json() {
                output::say(
                    "there is no key service yet; add one: chitin key service set NAME --type vault --address URL --token-file FILE",
                );
                return Ok(());
            }
            printer.result(&found, || listed(&found))
        }
        KeyServiceCommand::Set(wanted) => {
            let known = cloud.api.key_services().await?;
            let known = known.into_iter().find(|one| one.name == wanted.name.as_str());
            let request = request(known.as_ref(), &wanted)?;
            let spinner = printer.spinner("trying it on the keys that clusters use");
            let set = cloud.api.put_key_service(wanted.name.as_str(), &request).await;
            spinner.finish_and_clear();
            let set = set?;
            printer.result(&set, || shown(&set))
        }
        KeyServiceCommand::Remove { name } => {
            let removed = cloud.api.delete_key_service(name.as_str()).await.map_err(missing)?;
            printer.result(&removed, || format!("removed {name}, and its secret with it"))
        }
        KeyServiceCommand::Test { name, uri, principal, cluster } => {
            if let Some(cluster) = &cluster {
                cloud.cluster(cluster).await?;
            }
            let key = TestKey { uri, auth_principal: principal.unwrap_or_default(), cluster };
            let spinner = printer.spinner("wrapping and unwrapping a throw-away data key");
            let tested = cloud.api.test_key(name.as_str(), &key).await;
            spinner.finish_and_clear();
            let tested = tested.map_err(missing)?;
            printer.result(&tested, || {
                format!("{} works: a throw-away data key was wrapped and unwrapped", tested.key_spec)
            })
        }
    }
}

fn missing(error: api::Error) -> Failure {
    Failure::from(error).listed_by("chitin key service list")
}

/// What is to be sent: what is known, changed by what was said.
fn request(known: Option<&KeyService>, wanted: &KeyServiceSet) -> Result<PutKeyService, Failure> {
    let kind = match (wanted.kind, known) {
        (Some(kind), _) => KeyType::from(kind),
        (None, Some(known)) => known.kind,
        (None, None) => {
            return Err(Failure::new(
                Kind::Usage,
                format!("there is no key service `{}` yet, and a new one needs its --type", wanted.name),
            )
            .next("chitin key service set --help"));
        }
    };
    let said = wanted.address.as_ref().or(wanted.endpoint.as_ref()).or(wanted.module.as_ref());
    let address = said.or(known.map(|known| &known.address)).cloned().unwrap_or_default();
    let replaced = |said: Option<String>, known: Option<&String>| match said {
        Some(said) => Some(said).filter(|said| !said.is_empty()),
        None => known.cloned(),
    };
    let ca_pem = match &wanted.service_ca {
        Some(path) if path.as_os_str().is_empty() => Some(String::new()),
        Some(path) => Some(text::read(path, model::SIGN_IN_TEXT_BYTES_MAX)?),
        None => None,
    };
    Ok(PutKeyService {
        kind,
        address,
        ca_pem: replaced(ca_pem, known.and_then(|known| known.ca_pem.as_ref())),
        namespace: replaced(wanted.namespace.clone(), known.and_then(|known| known.namespace.as_ref())),
        credentials: credentials(kind, known, wanted)?,
        force: wanted.force,
    })
}

/// How to sign in. Nothing where nothing was said of a service that is known.
fn credentials(
    kind: KeyType,
    known: Option<&KeyService>,
    wanted: &KeyServiceSet,
) -> Result<Option<PutKeyCredentials>, Failure> {
    let file = |path: &Option<std::path::PathBuf>| path.as_deref().map(secret::read).transpose();
    let mut given = PutKeyCredentials {
        token: file(&wanted.token_file)?,
        role_id: wanted.role_id.clone(),
        secret_id: file(&wanted.secret_id_file)?,
        role_mount: wanted.role_mount.clone(),
        access_key_id: wanted.access_key_id.clone(),
        secret_access_key: file(&wanted.secret_access_key_file)?,
        session_token: file(&wanted.session_token_file)?,
        external_id: wanted.external_id.clone(),
        credentials_json: file(&wanted.credentials_file)?,
        pin: file(&wanted.pin_file)?,
    };
    let is_silent = given.token.is_none()
        && given.role_id.is_none()
        && given.access_key_id.is_none()
        && given.credentials_json.is_none()
        && given.pin.is_none();
    if is_silent && known.is_some() {
        return Ok(None);
    }
    let is_new = known.is_none();
    match kind {
        KeyType::Vault if given.role_id.is_some() && given.secret_id.is_none() && is_new => {
            given.secret_id = Some(secret::ask("the role's secret id", "--secret-id-file")?);
        }
        KeyType::Vault if is_silent => given.token = Some(secret::ask("the token", "--token-file")?),
        KeyType::Aws if is_silent => {
            return Err(Failure::new(Kind::Usage, "a new key service of AWS needs an access key")
                .next("say --access-key-id ID --secret-access-key-file FILE"));
        }
        KeyType::Aws if given.secret_access_key.is_none() && is_new => {
            let asked = secret::ask("the secret access key", "--secret-access-key-file")?;
            given.secret_access_key = Some(asked);
        }
        KeyType::Gcp if is_silent => {
            return Err(Failure::new(Kind::Usage, "a new key service of Google's needs a key file")
                .next("say --credentials-file FILE"));
        }
        KeyType::Pkcs11 if is_silent => given.pin = Some(secret::ask("the PIN", "--pin-file")?),
        KeyType::Vault
        | KeyType::Aws
        | KeyType::Gcp
        | KeyType::Pkcs11
        // The cloud says why not.
        | KeyType::Null
        | KeyType::Azure => {}
    }
    Ok(Some(given))
}

fn listed(services: &[KeyService]) -> String {
    let rows = services.iter().map(|one| {
        let by = match &one.principal {
            Some(principal) => format!("{} {principal}", one.sign_in.as_str()),
            None => one.sign_in.as_str().to_owned(),
        };
        [one.name.clone(), one.kind.as_str().to_owned(), one.address.clone(), by]
    });
    table(["SERVICE", "TYPE", "ADDRESS", "SIGNS IN BY"], rows)
}

fn shown(one: &KeyService) -> String {
    let secret = match one.sign_in {
        KeySignIn::Token => "a token",
        KeySignIn::AppRole => "a secret id",
        KeySignIn::AccessKey => "a secret access key",
        KeySignIn::ServiceAccount => "a service account's key file",
        KeySignIn::Pin => "a PIN",
    };
    facts([
        ("service", one.name.clone()),
        ("type", one.kind.as_str().to_owned()),
        ("address", one.address.clone()),
        ("namespace", one.namespace.clone().unwrap_or_default()),
        ("own roots", if one.ca_pem.is_some() { "yes" } else { "" }.to_owned()),
        ("signs in as", one.principal.clone().unwrap_or_default()),
        ("mount", one.role_mount.clone().unwrap_or_default()),
        ("external id", one.external_id.clone().unwrap_or_default()),
        ("secret", format!("{secret}: kept, never shown")),
    ])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;
    use time::OffsetDateTime;

    use super::*;

    fn wanted(line: &str) -> KeyServiceSet {
        #[derive(Parser)]
        struct Program {
            #[command(flatten)]
            set: KeyServiceSet,
        }
        Program::try_parse_from(format!("set vault {line}").split_whitespace()).unwrap().set
    }

    fn known() -> KeyService {
        KeyService {
            name: "vault".to_owned(),
            kind: KeyType::Vault,
            address: "https://vault.example.org:8200".to_owned(),
            ca_pem: None,
            namespace: Some("team".to_owned()),
            sign_in: KeySignIn::Token,
            principal: None,
            role_mount: None,
            external_id: None,
            updated_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_is_not_said_stays_and_no_secret_is_made_up() {
        let same = request(Some(&known()), &wanted("")).unwrap();
        assert_eq!((same.kind, same.namespace.as_deref()), (KeyType::Vault, Some("team")));
        assert_eq!(same.address, known().address);
        assert!(same.credentials.is_none());
        assert!(!same.force && request(Some(&known()), &wanted("--force")).unwrap().force);
        let other =
            request(Some(&known()), &wanted("--address https://other.example.org --namespace=")).unwrap();
        assert_eq!((other.address.as_str(), other.namespace), ("https://other.example.org", None));
        assert!(other.credentials.is_none(), "the cloud then asks for the secret again");
    }

    #[test]
    fn a_new_service_needs_its_type_and_a_secret_from_a_file() {
        assert_eq!(request(None, &wanted("--address https://a")).unwrap_err().kind, Kind::Usage);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "canary\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let line = format!("--type vault --address https://a --token-file {}", path.display());
        let made = request(None, &wanted(&line)).unwrap();
        assert!(!format!("{made:?}").contains("canary"));
        assert_eq!(made.credentials.unwrap().token.unwrap().secret().expose(), "canary");
        let aws = request(None, &wanted("--type aws")).unwrap_err();
        assert!(aws.next.unwrap().contains("--secret-access-key-file"));
    }

    #[test]
    fn a_service_is_shown_without_its_secret() {
        let text = shown(&known());
        assert!(text.contains("kept, never shown") && text.contains("VAULT_TRANSIT"), "{text}");
        assert!(listed(&[known()]).contains("token"));
    }
}
