//! Signing requests to AWS, as ourselves or as a role that was assumed.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use model::{Hidden, KeptSecret, KeyCredentials, KeyService};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;
use url::Url;
use zeroize::Zeroizing;

use super::super::asking::{Answer, Asker, Question, without};
use super::super::form::base;
use super::KeyArn;
use super::refusal::Refused;
use crate::{Binding, KeyFailure};

/// For how long a role is asked for, in seconds. An hour is what every role allows.
const ROLE_SECONDS: u32 = 3_600;
/// How long before its end a role is assumed anew.
const BEFORE_END: Duration = Duration::from_secs(300);

/// An access key.
#[derive(Clone)]
pub(super) struct Keys {
    id: String,
    secret: KeptSecret,
    token: Option<KeptSecret>,
}

/// What a role gave, and until when it is used.
struct Assumed {
    keys: Keys,
    until: OffsetDateTime,
}

/// How we are known to AWS.
pub(super) struct Session {
    asker: Asker,
    own: Keys,
    external_id: Option<String>,
    /// Another endpoint than the provider's own.
    address: Option<String>,
    region: String,
    domain: &'static str,
    assumed: Mutex<Option<Assumed>>,
}

impl Session {
    pub(super) fn new(service: &KeyService, asker: Asker, arn: &KeyArn) -> Result<Self, KeyFailure> {
        let KeyCredentials::AwsAccessKey { access_key_id, secret_access_key, session_token, external_id } =
            &service.credentials
        else {
            return Err(asker.subject.unusable("the key service has credentials of another kind"));
        };
        Ok(Self {
            asker,
            own: Keys {
                id: access_key_id.clone(),
                secret: secret_access_key.clone(),
                token: session_token.clone(),
            },
            external_id: external_id.clone(),
            address: (!service.address.is_empty()).then(|| base(&service.address)),
            region: arn.region.clone(),
            domain: arn.domain,
            assumed: Mutex::new(None),
        })
    }

    pub(super) fn asker(&self) -> &Asker {
        &self.asker
    }

    /// The service's words, without our credentials.
    pub(super) fn said(&self, message: &str) -> String {
        let token = self.own.token.as_ref().map_or("", |token| token.expose());
        // What a role gave is repeated only among the headers that were signed, which come after the first line.
        let first_line = message.lines().next().unwrap_or_default();
        without(first_line, &[self.own.secret.expose(), token])
    }

    /// Where a service is. An address that was set stands for all of them, unless it is one of AWS's own: those are for
    /// KMS alone.
    pub(super) fn endpoint(&self, service: &str) -> String {
        let provider = || format!("https://{service}.{}.{}/", self.region, self.domain);
        match &self.address {
            None => provider(),
            Some(address) if service != "kms" && self.is_of_aws(address) => provider(),
            Some(address) => format!("{address}/"),
        }
    }

    fn is_of_aws(&self, address: &str) -> bool {
        let host = Url::parse(address).ok().and_then(|url| url.host_str().map(str::to_owned));
        host.is_some_and(|host| host.ends_with(&format!(".{}", self.domain)))
    }

    /// What to sign with now: our own access key, or what the role gives.
    pub(super) async fn keys(&self, place: &Binding) -> Result<Keys, KeyFailure> {
        if self.asker.spec.auth_principal.is_empty() {
            return Ok(self.own.clone());
        }
        let mut assumed = self.asker.lock(&self.assumed).await?;
        if let Some(Assumed { keys, until }) = &*assumed
            && self.asker.now() < *until
        {
            return Ok(keys.clone());
        }
        let fresh = self.assume(place).await?;
        let keys = fresh.keys.clone();
        *assumed = Some(fresh);
        Ok(keys)
    }

    /// Others in place of those that were refused; `None` if there are no others.
    pub(super) async fn other_keys(
        &self,
        refused: &Keys,
        place: &Binding,
    ) -> Result<Option<Keys>, KeyFailure> {
        if self.asker.spec.auth_principal.is_empty() {
            return Ok(None);
        }
        self.asker.lock(&self.assumed).await?.take_if(|assumed| assumed.keys.id == refused.id);
        self.keys(place).await.map(Some)
    }

    /// Signs a `POST`, Signature Version 4. What is signed is what is sent: the body, its kind and the target.
    pub(super) fn signed<'a>(
        &self,
        mut question: Question<'a>,
        service: &str,
        target: Option<&'static str>,
        keys: &Keys,
    ) -> Result<Question<'a>, KeyFailure> {
        let unusable = |cause: &dyn std::fmt::Display| {
            self.asker.subject.unusable(format!("the request cannot be signed: {cause}"))
        };
        let Keys { id, secret, token } = keys;
        let token = token.as_ref().map(|token| token.expose().to_owned());
        let identity = Credentials::new(id, secret.expose(), token, None, "chitin").into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(service)
            .time(SystemTime::from(self.asker.now()))
            .settings(SigningSettings::default())
            .build()
            .map_err(|cause| unusable(&cause))?
            .into();
        let (kind, body) = match &question.body {
            Some((kind, body)) => (*kind, body.as_slice()),
            None => ("", [].as_slice()),
        };
        let headers =
            [("content-type", kind)].into_iter().chain(target.map(|target| ("x-amz-target", target)));
        let request = SignableRequest::new("POST", &question.url, headers, SignableBody::Bytes(body))
            .map_err(|cause| unusable(&cause))?;
        let (instructions, _) = sign(request, &parameters).map_err(|cause| unusable(&cause))?.into_parts();
        question.headers.extend(target.map(|target| ("x-amz-target", Hidden(target.to_owned()))));
        for (name, value) in instructions.headers() {
            match name {
                "authorization" => question.authorization = Some(Zeroizing::new(value.to_owned())),
                "x-amz-date" => question.headers.push(("x-amz-date", Hidden(value.to_owned()))),
                "x-amz-security-token" => {
                    question.headers.push(("x-amz-security-token", Hidden(value.to_owned())));
                }
                "x-amz-content-sha256" => {
                    question.headers.push(("x-amz-content-sha256", Hidden(value.to_owned())));
                }
                other => return Err(unusable(&format!("an unknown header, {other}"))),
            }
        }
        Ok(question)
    }

    /// STS `AssumeRole`.
    async fn assume(&self, place: &Binding) -> Result<Assumed, KeyFailure> {
        let seconds = ROLE_SECONDS.to_string();
        let mut form = vec![
            ("Action", "AssumeRole"),
            ("Version", "2011-06-15"),
            ("RoleArn", self.asker.spec.auth_principal.as_str()),
            ("RoleSessionName", "chitin"),
            ("DurationSeconds", &seconds),
        ];
        form.extend(self.external_id.as_deref().map(|external_id| ("ExternalId", external_id)));
        let question = Question { accept: "text/xml", ..Question::form(self.endpoint("sts"), &form, place) };
        let question = self.signed(question, "sts", None, &self.own)?;
        let answer = self.asker.ask(question).await?;
        if !answer.is_success() {
            let refused = Refused::of(&answer, self);
            return Err(match refused {
                Some(refused) => refused.meaning(&self.asker.subject),
                None => self.asker.senseless(&answer),
            });
        }
        self.read_assumed(&answer).ok_or_else(|| self.asker.senseless(&answer))
    }

    fn read_assumed(&self, answer: &Answer) -> Option<Assumed> {
        let text = std::str::from_utf8(&answer.body).ok()?;
        let document = roxmltree::Document::parse(text).ok()?;
        let credentials = document.descendants().find(|node| node.tag_name().name() == "Credentials")?;
        let of = |name: &str| {
            credentials.children().find(|node| node.tag_name().name() == name).and_then(|node| node.text())
        };
        let secret = |name: &str| of(name).map(|text| KeptSecret::new(text.trim().to_owned()));
        let ends = OffsetDateTime::parse(of("Expiration")?.trim(), &Rfc3339).ok()?;
        Some(Assumed {
            keys: Keys {
                id: of("AccessKeyId")?.trim().to_owned(),
                secret: secret("SecretAccessKey")?,
                token: Some(secret("SessionToken")?),
            },
            // Never longer than was asked for, whatever the answer says.
            until: (ends - BEFORE_END).min(self.asker.now() + Duration::from_secs(u64::from(ROLE_SECONDS))),
        })
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("asker", &self.asker).finish_non_exhaustive()
    }
}
