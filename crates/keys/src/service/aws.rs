//! AWS Key Management Service: `Encrypt` and `Decrypt` with an encryption context, over its JSON protocol, signed by
//! AWS's own library. API: `docs.aws.amazon.com/kms/latest/APIReference`.

mod refusal;
mod session;

use std::collections::BTreeMap;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::KeyService;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::asking::{Answer, Asker, Question, encoded};
use crate::{Binding, DataKey, KeyEncryption, KeyFailure, WrappedKey};
use refusal::Refused;
use session::{Keys, Session};

/// What the answer must say too: another algorithm would be another kind of key.
const ALGORITHM: &str = "SYMMETRIC_DEFAULT";
/// Longest wrapped key in base64, in bytes: AWS's own bound is 6,144 bytes before base64.
const WRAPPED_BYTES_MAX: usize = 8_192;

/// A key's name: `arn:PARTITION:kms:REGION:ACCOUNT:key/ID` or `...:alias/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyArn {
    /// Everything before `key/` or `alias/`.
    place: String,
    region: String,
    /// Where the partition's endpoints are.
    domain: &'static str,
    is_alias: bool,
}

impl KeyArn {
    pub(super) fn parse(uri: &str) -> Result<Self, String> {
        let wrong = || {
            "a key of AWS is named by its ARN, arn:aws:kms:REGION:ACCOUNT:key/ID or arn:aws:kms:REGION:ACCOUNT:alias/NAME"
                .to_owned()
        };
        let parts: Vec<&str> = uri.split(':').collect();
        let ["arn", partition, "kms", region, account, name] = parts.as_slice() else {
            return Err(wrong());
        };
        let is_region = (1..=40).contains(&region.len())
            && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let is_name = |name: &str| {
            (1..=256).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-".contains(&b))
        };
        let is_alias = match name.split_once('/') {
            Some(("key", id)) if is_name(id) => false,
            Some(("alias", alias)) if is_name(alias) => true,
            _ => return Err(wrong()),
        };
        if !is_region || !is_account(account) {
            return Err(wrong());
        }
        let domain = domain(partition).ok_or_else(wrong)?;
        let place = format!("arn:{partition}:kms:{region}:{account}:");
        Ok(Self { place, region: (*region).to_owned(), domain, is_alias })
    }

    /// Whether `key` can be the key that this name leads to. An alias may lead to any key of its account and region,
    /// and to others over time; a key's own name leads to that key alone.
    fn leads_to(&self, uri: &str, key: &str) -> bool {
        if self.is_alias {
            KeyArn::parse(key).is_ok_and(|found| !found.is_alias && found.place == self.place)
        } else {
            key == uri
        }
    }
}

/// The domain of a partition's endpoints.
fn domain(partition: &str) -> Option<&'static str> {
    match partition {
        "aws" | "aws-us-gov" => Some("amazonaws.com"),
        "aws-cn" => Some("amazonaws.com.cn"),
        _ => None,
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// The role that is assumed before a key is used; empty for none.
pub(super) fn check_role(arn: &str) -> Result<(), String> {
    if arn.is_empty() {
        return Ok(());
    }
    let parts: Vec<&str> = arn.split(':').collect();
    let is_role = match parts.as_slice() {
        ["arn", partition, "iam", "", account, name] => {
            domain(partition).is_some()
                && is_account(account)
                && name.strip_prefix("role/").is_some_and(|name| {
                    (1..=512).contains(&name.len())
                        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/+=,.@_-".contains(&b))
                })
        }
        _ => false,
    };
    if is_role {
        Ok(())
    } else {
        Err("the principal of a key of AWS is a role's ARN, arn:aws:iam::ACCOUNT:role/NAME, or empty"
            .to_owned())
    }
}

pub(super) fn check_access_key(id: &str, external_id: Option<&str>) -> Result<(), String> {
    let is_id = (16..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !is_id {
        return Err(
            "an access key's id has 16 to 128 letters and digits, such as AKIAIOSFODNN7EXAMPLE".to_owned()
        );
    }
    let is_external_id = |text: &str| {
        (2..=1_224).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b))
    };
    match external_id {
        Some(text) if !is_external_id(text) => {
            Err("an external id has 2 to 1,224 letters, digits and _ + = , . @ : / -".to_owned())
        }
        Some(_) | None => Ok(()),
    }
}

/// One key of AWS KMS.
#[derive(Debug)]
pub(super) struct AwsKms {
    arn: KeyArn,
    session: Session,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ToEncrypt<'a> {
    key_id: &'a str,
    plaintext: &'a str,
    encryption_context: BTreeMap<&'static str, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypted {
    ciphertext_blob: String,
    key_id: String,
    encryption_algorithm: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ToDecrypt<'a> {
    /// Without it, AWS would take any key that the text names and that we may use: also a stranger's.
    key_id: &'a str,
    ciphertext_blob: &'a str,
    encryption_context: BTreeMap<&'static str, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypted {
    plaintext: Zeroizing<String>,
    key_id: String,
}

/// What the wrapped key is held to. It stands in CloudTrail, and in key policies as a condition.
fn context(place: &Binding) -> BTreeMap<&'static str, String> {
    let mut context = BTreeMap::from([("chitin:purpose", place.context())]);
    if let Some(cluster) = place.cluster() {
        context.insert("chitin:cluster", cluster.to_string());
    }
    context
}

impl AwsKms {
    pub(super) fn new(service: &KeyService, asker: Asker) -> Result<Self, KeyFailure> {
        let arn = KeyArn::parse(&asker.spec.uri).map_err(|why| asker.subject.unusable(why))?;
        let session = Session::new(service, asker, &arn)?;
        Ok(Self { arn, session })
    }

    fn asker(&self) -> &Asker {
        self.session.asker()
    }

    async fn call_once(
        &self,
        target: &'static str,
        body: &impl Serialize,
        keys: &Keys,
        place: &Binding,
    ) -> Result<Answer, KeyFailure> {
        let mut question = Question::json(self.session.endpoint("kms"), body, place);
        if let Some((kind, _)) = &mut question.body {
            *kind = "application/x-amz-json-1.1";
        }
        let question = self.session.signed(question, "kms", Some(target), keys)?;
        self.asker().ask(question).await
    }

    /// Calls, and once more with a role that is assumed anew if what the role gave is no longer accepted.
    async fn call(
        &self,
        target: &'static str,
        body: &impl Serialize,
        place: &Binding,
    ) -> Result<Answer, KeyFailure> {
        let keys = self.session.keys(place).await?;
        let answer = self.call_once(target, body, &keys, place).await?;
        if answer.is_success() {
            return Ok(answer);
        }
        let refused = self.refusal(&answer)?;
        if refused.is_of_credentials()
            && let Some(keys) = self.session.other_keys(&keys, place).await?
        {
            let answer = self.call_once(target, body, &keys, place).await?;
            if answer.is_success() {
                return Ok(answer);
            }
            return Err(self.refusal(&answer)?.meaning(&self.asker().subject));
        }
        Err(refused.meaning(&self.asker().subject))
    }

    fn refusal(&self, answer: &Answer) -> Result<Refused, KeyFailure> {
        Refused::of(answer, &self.session).ok_or_else(|| self.asker().senseless(answer))
    }
}

#[async_trait]
impl KeyEncryption for AwsKms {
    async fn wrap(&self, key: &DataKey, place: &Binding) -> Result<WrappedKey, KeyFailure> {
        let spec = &self.asker().spec;
        let plaintext = encoded(key.expose());
        let body = ToEncrypt { key_id: &spec.uri, plaintext: &plaintext, encryption_context: context(place) };
        let answer = self.call("TrentService.Encrypt", &body, place).await?;
        let Encrypted { ciphertext_blob, key_id, encryption_algorithm } =
            answer.read().ok_or_else(|| self.asker().senseless(&answer))?;
        let is_whole =
            ciphertext_blob.len() <= WRAPPED_BYTES_MAX && STANDARD.decode(&ciphertext_blob).is_ok();
        let is_its_algorithm = encryption_algorithm.is_none_or(|algorithm| algorithm == ALGORITHM);
        if !is_whole || !is_its_algorithm || !self.arn.leads_to(&spec.uri, &key_id) {
            return Err(self.asker().senseless(&answer));
        }
        Ok(WrappedKey {
            key: spec.clone(),
            key_id,
            // AWS keeps all that a key ever was under one id, and does not say which it took.
            key_version: String::new(),
            algorithm: ALGORITHM.to_owned(),
            wrapped: ciphertext_blob,
        })
    }

    async fn unwrap(&self, wrapped: &WrappedKey, place: &Binding) -> Result<DataKey, KeyFailure> {
        let is_ours = wrapped.algorithm == ALGORITHM
            && wrapped.wrapped.len() <= WRAPPED_BYTES_MAX
            && self.arn.leads_to(&self.asker().spec.uri, &wrapped.key_id);
        if !is_ours {
            return Err(self.asker().subject.does_not_open());
        }
        let body = ToDecrypt {
            key_id: &wrapped.key_id,
            ciphertext_blob: &wrapped.wrapped,
            encryption_context: context(place),
        };
        let answer = self.call("TrentService.Decrypt", &body, place).await?;
        let Decrypted { plaintext, key_id } = answer.read().ok_or_else(|| self.asker().senseless(&answer))?;
        if key_id != wrapped.key_id {
            return Err(self.asker().subject.does_not_open());
        }
        self.asker().data_key(&plaintext)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn keys_are_named_by_arns() {
        let key = KeyArn::parse(KEY).unwrap();
        assert_eq!((key.region.as_str(), key.domain, key.is_alias), ("eu-central-1", "amazonaws.com", false));
        let china = KeyArn::parse("arn:aws-cn:kms:cn-north-1:111122223333:alias/shop").unwrap();
        assert_eq!((china.domain, china.is_alias), ("amazonaws.com.cn", true));
        for wrong in [
            "",
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:s3:eu-central-1:111122223333:key/a",
            "arn:aws:kms:eu-central-1.evil.example/:111122223333:key/a",
            "arn:aws:kms::111122223333:key/a",
            "arn:aws:kms:eu-central-1:1:key/a",
            "arn:evil:kms:eu-central-1:111122223333:key/a",
            "arn:aws:kms:eu-central-1:111122223333:key/",
        ] {
            assert!(KeyArn::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_s_name_leads_to_itself_and_an_alias_stays_in_its_account() {
        let key = KeyArn::parse(KEY).unwrap();
        let other = "arn:aws:kms:eu-central-1:111122223333:key/ffff";
        let foreign = "arn:aws:kms:eu-central-1:999999999999:key/ffff";
        assert!(key.leads_to(KEY, KEY) && !key.leads_to(KEY, other));
        let name = "arn:aws:kms:eu-central-1:111122223333:alias/shop";
        let alias = KeyArn::parse(name).unwrap();
        assert!(alias.leads_to(name, KEY) && alias.leads_to(name, other));
        assert!(!alias.leads_to(name, foreign) && !alias.leads_to(name, name));
    }

    #[test]
    fn principals_are_roles() {
        assert!(check_role("").is_ok() && check_role("arn:aws:iam::111122223333:role/chitin/keys").is_ok());
        for wrong in ["chitin", "arn:aws:iam::111122223333:user/u", "arn:aws:iam::111122223333:role/"] {
            assert!(check_role(wrong).is_err(), "{wrong}");
        }
    }
}
