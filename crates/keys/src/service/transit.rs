//! The transit engine of Vault and OpenBao: encrypts and decrypts with a key that stays there, and says which version of
//! the key it took. API: `developer.hashicorp.com/vault/api-docs/secret/transit`, `openbao.org/api-docs/secret/transit`.

mod session;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::{Hidden, KeyService};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::asking::{Answer, Asker, Question, clean, encoded};
use crate::{Binding, DataKey, KeyEncryption, KeyFailure, WrappedKey};
use session::{Session, Standing};

const ALGORITHM: &str = "vault-transit";
/// Longest wrapped text that is sent to be opened, in bytes. Ours have about 130.
const WRAPPED_BYTES_MAX: usize = 4_096;
/// The key types whose ciphers authenticate further data, and so hold a data key to its place.
const KEY_TYPES: [&str; 4] = ["aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"];

/// Where a key is: `MOUNT/keys/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    mount: String,
    name: String,
}

impl Path {
    pub(super) fn parse(uri: &str) -> Result<Self, String> {
        let wrong = || {
            "a key of Vault or OpenBao is named MOUNT/keys/NAME, for instance transit/keys/shop, with letters, \
             digits, and . _ - between the slashes"
                .to_owned()
        };
        let (mount, name) = uri.rsplit_once("/keys/").ok_or_else(wrong)?;
        if !is_path(mount) || !is_segment(name) {
            return Err(wrong());
        }
        Ok(Self { mount: mount.to_owned(), name: name.to_owned() })
    }
}

/// What stands between two slashes, and leads nowhere else.
fn is_segment(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && text.bytes().any(|b| b != b'.')
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_segment)
}

pub(super) fn check_mount(mount: &str) -> Result<(), String> {
    if is_path(mount) {
        Ok(())
    } else {
        Err("the mount of AppRole is a path of letters, digits and . _ - such as approle".to_owned())
    }
}

pub(super) fn check_namespace(namespace: &str) -> Result<(), String> {
    if is_path(namespace.trim_end_matches('/')) {
        Ok(())
    } else {
        Err("a namespace is a path of letters, digits and . _ - such as team/prod".to_owned())
    }
}

/// One key of the transit engine.
#[derive(Debug)]
pub(super) struct Transit {
    path: Path,
    session: Session,
}

/// What a refusal holds.
#[derive(Deserialize)]
struct Refusal {
    errors: Vec<String>,
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[derive(Deserialize)]
struct KeyRead {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    derived: bool,
}

#[derive(Deserialize)]
struct Encrypted {
    ciphertext: String,
}

#[derive(Deserialize)]
struct Decrypted {
    plaintext: Zeroizing<String>,
}

#[derive(Serialize)]
struct ToEncrypt<'a> {
    plaintext: &'a str,
    associated_data: String,
}

impl Transit {
    pub(super) fn new(service: &KeyService, asker: Asker) -> Result<Self, KeyFailure> {
        let path = Path::parse(&asker.spec.uri).map_err(|why| asker.subject.unusable(why))?;
        Ok(Self { path, session: Session::new(service, asker)? })
    }

    fn asker(&self) -> &Asker {
        self.session.asker()
    }

    fn url(&self, verb: &str) -> String {
        let Path { mount, name } = &self.path;
        format!("{}/v1/{mount}/{verb}/{name}", self.session.base())
    }

    /// Asks, and signs in again when the token is refused: to this service one that has ended and one that may not are the
    /// same. A token that was given is all there is, so the service is asked which of both it is.
    async fn ask<'a>(&self, question: impl Fn() -> Question<'a>) -> Result<Answer, KeyFailure> {
        let place = question().place;
        let token = self.session.token(place).await?;
        let answer = self.session.ask_with(question(), &token).await?;
        if answer.status != 403 || answer.read::<Refusal>().is_none() {
            return Ok(answer);
        }
        match self.session.another_token(&token, place).await? {
            Some(token) => self.session.ask_with(question(), &token).await,
            None => match self.session.standing(&token, place).await? {
                Standing::Ended => Err(self.asker().subject.unauthenticated(
                    "the service does not accept the token: it has ended, was revoked, or never was one; give the key \
                     service one that is valid",
                )),
                // Where the service does not tell, the refusal is taken for a word about the key: whoever takes a key away
                // there must be able to rely on it.
                Standing::Good | Standing::Unknown => Ok(answer),
            },
        }
    }

    /// The key must be of a kind that authenticates where a data key belongs. Reading it first also keeps `encrypt` from
    /// making a key where there is none, which it does for tokens that may create.
    async fn look_at_key(&self, place: &Binding) -> Result<(), KeyFailure> {
        let answer = self.ask(|| Question::get(self.url("keys"), place)).await?;
        if !answer.is_success() {
            return Err(self.refused(&answer, "read", "keys"));
        }
        let read: Data<KeyRead> = answer.read().ok_or_else(|| self.asker().senseless(&answer))?;
        let KeyRead { kind, derived } = read.data;
        let subject = &self.asker().subject;
        if !KEY_TYPES.contains(&kind.as_str()) {
            return Err(subject.unusable(format!(
                "it is of the type {}, which cannot bind a data key to its cluster; make one of the type aes256-gcm96",
                clean(&kind)
            )));
        }
        if derived {
            return Err(subject.unusable("it is a derived key; make one without derivation"));
        }
        Ok(())
    }

    /// What a refusal means. Only texts of the service's own count as its word about the key.
    fn refused(&self, answer: &Answer, capability: &str, verb: &str) -> KeyFailure {
        let subject = &self.asker().subject;
        let Some(Refusal { errors }) = answer.read::<Refusal>() else {
            return self.asker().senseless(answer);
        };
        let said = self.session.said(&errors.join("; "));
        let says = |part: &str| said.to_lowercase().contains(part);
        let Path { mount, name } = &self.path;
        match answer.status {
            403 => subject.denied(format!(
                "{said}; the token's policy must allow {capability} on {mount}/{verb}/{name}"
            )),
            404 => subject.denied(format!("there is no such key, or nothing is mounted at {mount} ({said})")),
            400 if says("encryption key not found")
                || says("disallowed by policy")
                || says("soft deleted") =>
            {
                subject.denied(said)
            }
            400 if says("invalid ciphertext")
                || says("unable to decrypt")
                || says("authentication failed")
                || says("could not decode") =>
            {
                subject.does_not_open()
            }
            // Sealed, a standby, too many requests, a store that does not answer.
            412 | 429 | 472 | 473 | 500.. => subject.unreachable(format!("HTTP {}: {said}", answer.status)),
            status => subject.unusable(format!("HTTP {status}: {said}")),
        }
    }
}

/// The version that the text begins with: `vault:v3:...`.
fn version(ciphertext: &str) -> Option<&str> {
    let (version, rest) = ciphertext.strip_prefix("vault:v")?.split_once(':')?;
    let is_number = (1..=10).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_digit());
    (is_number && !rest.is_empty()).then_some(version)
}

#[async_trait]
impl KeyEncryption for Transit {
    async fn wrap(&self, key: &DataKey, place: &Binding) -> Result<WrappedKey, KeyFailure> {
        self.look_at_key(place).await?;
        let plaintext = encoded(key.expose());
        let body = ToEncrypt { plaintext: &plaintext, associated_data: STANDARD.encode(place.context()) };
        let answer = self.ask(|| Question::json(self.url("encrypt"), &body, place)).await?;
        if !answer.is_success() {
            return Err(self.refused(&answer, "update", "encrypt"));
        }
        let Data { data: Encrypted { ciphertext } } =
            answer.read().ok_or_else(|| self.asker().senseless(&answer))?;
        let version = version(&ciphertext)
            .filter(|_| ciphertext.len() <= WRAPPED_BYTES_MAX)
            .ok_or_else(|| self.asker().senseless(&answer))?
            .to_owned();
        Ok(WrappedKey {
            key: self.asker().spec.clone(),
            key_id: self.asker().spec.uri.clone(),
            key_version: version,
            algorithm: ALGORITHM.to_owned(),
            wrapped: ciphertext,
        })
    }

    async fn unwrap(&self, wrapped: &WrappedKey, place: &Binding) -> Result<DataKey, KeyFailure> {
        let is_ours = wrapped.algorithm == ALGORITHM
            && wrapped.key_id == self.asker().spec.uri
            && wrapped.wrapped.len() <= WRAPPED_BYTES_MAX
            && version(&wrapped.wrapped) == Some(&wrapped.key_version);
        if !is_ours {
            return Err(self.asker().subject.does_not_open());
        }
        let body: Value =
            json!({"ciphertext": wrapped.wrapped, "associated_data": STANDARD.encode(place.context())});
        let answer = self.ask(|| Question::json(self.url("decrypt"), &body, place)).await?;
        if !answer.is_success() {
            return Err(self.refused(&answer, "update", "decrypt"));
        }
        let Data { data: Decrypted { plaintext } } =
            answer.read().ok_or_else(|| self.asker().senseless(&answer))?;
        self.asker().data_key(&plaintext)
    }
}

/// The headers of a question, for this token and namespace.
fn headers(token: Option<&str>, namespace: Option<&str>) -> Vec<(&'static str, Hidden)> {
    let mut headers = vec![("x-vault-request", Hidden("true".to_owned()))];
    headers.extend(token.map(|token| ("x-vault-token", Hidden(token.to_owned()))));
    headers.extend(namespace.map(|namespace| ("x-vault-namespace", Hidden(namespace.to_owned()))));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_by_mount_and_name() {
        let path = Path::parse("team/transit/keys/shop-1").unwrap();
        assert_eq!((path.mount.as_str(), path.name.as_str()), ("team/transit", "shop-1"));
        for wrong in [
            "",
            "shop",
            "transit/shop",
            "transit/keys/",
            "/keys/shop",
            "transit/keys/../sys",
            "../keys/shop",
            "transit//keys/shop",
            "transit/keys/a?b",
            "transit/keys/a%2fb",
            "transit/keys/a/b",
        ] {
            assert!(Path::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_version_is_read_from_the_text() {
        assert_eq!(version("vault:v12:abc"), Some("12"));
        for wrong in
            ["vault:v:abc", "vault:vx:abc", "v1:abc", "vault:v1:", "vault:v1", "vault:v12345678901:a"]
        {
            assert_eq!(version(wrong), None, "{wrong}");
        }
    }
}
