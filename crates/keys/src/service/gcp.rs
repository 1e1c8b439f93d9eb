//! Google Cloud KMS: `encrypt` and `decrypt` with additional authenticated data, and checksums both ways, as Google
//! advises (`cloud.google.com/kms/docs/data-integrity-guidelines`). API: `cloud.google.com/kms/docs/reference/rest`.

mod session;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::KeyService;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::asking::{Answer, Asker, Question, clean, encoded};
use crate::{Binding, DataKey, KeyEncryption, KeyFailure, WrappedKey};
pub(super) use session::Account;
use session::Session;

/// What `encrypt` of Cloud KMS does with a symmetric key.
const ALGORITHM: &str = "GOOGLE_SYMMETRIC_ENCRYPTION";
/// Longest wrapped key in base64, in bytes. Ours have about 200.
const WRAPPED_BYTES_MAX: usize = 8_192;

/// Whether the text is `projects/P/locations/L/keyRings/R/cryptoKeys/K`.
pub(super) fn check_key(uri: &str) -> Result<(), String> {
    let parts: Vec<&str> = uri.split('/').collect();
    let is_name = |name: &str| {
        (1..=100).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    // The projects of an organisation of old are named `example.com:project`.
    let is_project = |name: &str| {
        (1..=100).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b))
            && name.bytes().any(|b| b.is_ascii_alphanumeric())
    };
    match parts.as_slice() {
        ["projects", project, "locations", location, "keyRings", ring, "cryptoKeys", key]
            if is_project(project) && [location, ring, key].into_iter().all(|name| is_name(name)) =>
        {
            Ok(())
        }
        ["projects", .., "cryptoKeyVersions", _] => {
            Err("that is one version of a key; name the key, without /cryptoKeyVersions/, and its primary version is \
                 used"
                .to_owned())
        }
        _ => {
            Err("a key of Google Cloud KMS is named projects/P/locations/L/keyRings/R/cryptoKeys/K".to_owned())
        }
    }
}

/// The service account as which the key is used; empty for the key service's own.
pub(super) fn check_account(address: &str) -> Result<(), String> {
    let is_address = address.strip_suffix(".gserviceaccount.com").is_some_and(|rest| {
        rest.split_once('@').is_some_and(|(name, domain)| {
            [name, domain].into_iter().all(|part| {
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
            })
        })
    });
    if address.is_empty() || is_address {
        Ok(())
    } else {
        Err("the principal of a key of Google's is a service account, NAME@PROJECT.iam.gserviceaccount.com, or empty"
            .to_owned())
    }
}

/// One key of Cloud KMS.
#[derive(Debug)]
pub(super) struct GcpKms {
    session: Session,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToEncrypt<'a> {
    plaintext: &'a str,
    plaintext_crc32c: String,
    additional_authenticated_data: String,
    additional_authenticated_data_crc32c: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Encrypted {
    /// The version that was used.
    name: String,
    ciphertext: String,
    ciphertext_crc32c: Checksum,
    #[serde(default)]
    verified_plaintext_crc32c: bool,
    #[serde(default)]
    verified_additional_authenticated_data_crc32c: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToDecrypt<'a> {
    ciphertext: &'a str,
    ciphertext_crc32c: String,
    additional_authenticated_data: String,
    additional_authenticated_data_crc32c: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decrypted {
    plaintext: Zeroizing<String>,
    plaintext_crc32c: Checksum,
}

/// A 64-bit number, which is text in the JSON of Google's APIs.
#[derive(Deserialize)]
#[serde(untagged)]
enum Checksum {
    Text(String),
    Number(u64),
}

impl Checksum {
    fn is_of(&self, bytes: &[u8]) -> bool {
        let said = match self {
            Self::Text(text) => text.parse().ok(),
            Self::Number(number) => Some(*number),
        };
        said == Some(u64::from(crc32c::crc32c(bytes)))
    }
}

fn checksum(bytes: &[u8]) -> String {
    crc32c::crc32c(bytes).to_string()
}

/// `google.rpc.Status`, as HTTP carries it.
#[derive(Deserialize)]
struct Refusal {
    error: Status,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
    #[serde(default)]
    status: String,
}

impl GcpKms {
    pub(super) fn new(service: &KeyService, asker: Asker) -> Result<Self, KeyFailure> {
        Ok(Self { session: Session::new(service, asker)? })
    }

    fn asker(&self) -> &Asker {
        self.session.asker()
    }

    /// Asks, and signs in again when the token is refused.
    async fn call(
        &self,
        verb: &'static str,
        body: &impl Serialize,
        place: &Binding,
    ) -> Result<Answer, KeyFailure> {
        let url = format!("{}/v1/{}:{verb}", self.session.base(), self.asker().spec.uri);
        let ask = |token: &str| {
            let authorization = Some(Zeroizing::new(format!("Bearer {token}")));
            self.asker().ask(Question { authorization, ..Question::json(url.clone(), body, place) })
        };
        let token = self.session.token(place).await?;
        let mut answer = ask(token.expose()).await?;
        if answer.status == 401 {
            let token = self.session.another_token(&token, place).await?;
            answer = ask(token.expose()).await?;
        }
        if answer.is_success() { Ok(answer) } else { Err(refused(self.asker(), &answer)) }
    }

    fn garbled(&self) -> KeyFailure {
        self.asker()
            .subject
            .unreachable("what was sent or received was changed on the way (its CRC32C differs)")
    }
}

/// What a refusal of one of Google's APIs means to the key.
fn refused(asker: &Asker, answer: &Answer) -> KeyFailure {
    let subject = &asker.subject;
    let Some(Refusal { error: Status { message, status } }) = answer.read() else {
        return asker.senseless(answer);
    };
    let said = format!("{}: {}", clean(&status), clean(&message));
    let lower = message.to_lowercase();
    let says = |part: &str| lower.contains(part);
    match (answer.status, status.as_str()) {
        (408 | 429 | 499 | 500.., _) | (_, "RESOURCE_EXHAUSTED" | "UNAVAILABLE") => subject.unreachable(said),
        (401, _) => subject.unauthenticated(format!(
            "Google does not accept the credentials ({said}); give the key service a service account's key that is valid"
        )),
        (403 | 404, _) => subject.denied(said),
        (400, "FAILED_PRECONDITION") if says("pending_generation") => subject.unreachable(said),
        (400, "FAILED_PRECONDITION") if says("not enabled") || says("disabled") || says("destroy") => {
            subject.denied(said)
        }
        (400, "INVALID_ARGUMENT") if says("crc32c") || says("checksum") => subject.unreachable(said),
        (400, "INVALID_ARGUMENT") if says("decryption failed") || says("ciphertext") => subject.does_not_open(),
        (_, _) => subject.unusable(said),
    }
}

#[async_trait]
impl KeyEncryption for GcpKms {
    async fn wrap(&self, key: &DataKey, place: &Binding) -> Result<WrappedKey, KeyFailure> {
        let spec = &self.asker().spec;
        let (plaintext, context) = (encoded(key.expose()), place.context());
        let body = ToEncrypt {
            plaintext: &plaintext,
            plaintext_crc32c: checksum(key.expose()),
            additional_authenticated_data: STANDARD.encode(&context),
            additional_authenticated_data_crc32c: checksum(context.as_bytes()),
        };
        let answer = self.call("encrypt", &body, place).await?;
        let encrypted: Encrypted = answer.read().ok_or_else(|| self.asker().senseless(&answer))?;
        let is_verified =
            encrypted.verified_plaintext_crc32c && encrypted.verified_additional_authenticated_data_crc32c;
        let bytes = STANDARD.decode(&encrypted.ciphertext).map_err(|_| self.asker().senseless(&answer))?;
        if !is_verified || !encrypted.ciphertext_crc32c.is_of(&bytes) {
            return Err(self.garbled());
        }
        let version = encrypted
            .name
            .strip_prefix(&format!("{}/cryptoKeyVersions/", spec.uri))
            .filter(|version| {
                (1..=20).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_digit())
            })
            .filter(|_| encrypted.ciphertext.len() <= WRAPPED_BYTES_MAX)
            .ok_or_else(|| self.asker().senseless(&answer))?;
        Ok(WrappedKey {
            key: spec.clone(),
            key_id: spec.uri.clone(),
            key_version: version.to_owned(),
            algorithm: ALGORITHM.to_owned(),
            wrapped: encrypted.ciphertext,
        })
    }

    async fn unwrap(&self, wrapped: &WrappedKey, place: &Binding) -> Result<DataKey, KeyFailure> {
        let does_not_open = || self.asker().subject.does_not_open();
        let is_ours = wrapped.algorithm == ALGORITHM
            && wrapped.key_id == self.asker().spec.uri
            && wrapped.wrapped.len() <= WRAPPED_BYTES_MAX;
        let bytes = STANDARD.decode(&wrapped.wrapped).ok().filter(|_| is_ours).ok_or_else(does_not_open)?;
        let context = place.context();
        let body = ToDecrypt {
            ciphertext: &wrapped.wrapped,
            ciphertext_crc32c: checksum(&bytes),
            additional_authenticated_data: STANDARD.encode(&context),
            additional_authenticated_data_crc32c: checksum(context.as_bytes()),
        };
        let answer = self.call("decrypt", &body, place).await?;
        let Decrypted { plaintext, plaintext_crc32c } =
            answer.read().ok_or_else(|| self.asker().senseless(&answer))?;
        let key = self.asker().data_key(&plaintext)?;
        if plaintext_crc32c.is_of(key.expose()) { Ok(key) } else { Err(self.garbled()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_accounts_have_google_s_names() {
        assert!(check_key("projects/p-1/locations/europe-west3/keyRings/r/cryptoKeys/shop").is_ok());
        assert!(check_key("projects/example.com:p/locations/global/keyRings/r/cryptoKeys/k").is_ok());
        let version = "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1";
        assert!(check_key(version).unwrap_err().contains("one version"));
        for wrong in [
            "",
            "projects/../locations/l/keyRings/r/cryptoKeys/k",
            "projects/p/locations/l/keyRings/r/cryptoKeys/",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k:decrypt",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k?x=1",
            "/projects/p/locations/l/keyRings/r/cryptoKeys/k",
        ] {
            assert!(check_key(wrong).is_err(), "{wrong}");
        }
        assert!(check_account("").is_ok());
        assert!(check_account("kms-user@p-1.iam.gserviceaccount.com").is_ok());
        for wrong in ["me@example.com", "@p.iam.gserviceaccount.com", "a/b@p.iam.gserviceaccount.com"] {
            assert!(check_account(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn checksums_are_castagnoli_s_as_text_or_number() {
        // The check value of CRC-32C in the catalogue of parametrised CRC algorithms.
        assert_eq!(checksum(b"123456789"), 0xE306_9283_u32.to_string());
        let text: Checksum = serde_json::from_str("\"3808858755\"").unwrap();
        let number: Checksum = serde_json::from_str("3808858755").unwrap();
        assert!(text.is_of(b"123456789") && number.is_of(b"123456789") && !text.is_of(b"12345678"));
    }
}
