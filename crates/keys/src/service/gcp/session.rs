//! Signing in at Google: a service account's key signs an assertion (RFC 7523) for which a token is given, and that token
//! may ask for one of another account.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use model::{KeptSecret, KeyCredentials, KeyService};
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;
use url::Url;
use zeroize::Zeroizing;

use super::super::asking::{Answer, Asker, Question, clean};
use super::super::form::{base, check_url};
use super::refused;
use crate::{Binding, KeyFailure, SecretText};

const KMS: &str = "https://cloudkms.googleapis.com";
const IAM_CREDENTIALS: &str = "https://iamcredentials.googleapis.com";
const GOOGLE: &str = ".googleapis.com";
const KMS_SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";
/// What acting as another account needs.
const PLATFORM_SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// For how long an assertion is good, in seconds. It is used at once; Google allows an hour.
const ASSERTION_SECONDS: i64 = 300;
/// Longest time for which a token is kept, in seconds, whatever the answer says.
const TOKEN_SECONDS_MAX: u32 = 3_600;
/// How long before its end a token is asked for anew.
const BEFORE_END: Duration = Duration::from_secs(300);

/// A service account's key, as Google's key files hold it.
#[derive(Deserialize)]
pub(in crate::service) struct Account {
    #[serde(rename = "type")]
    kind: String,
    client_email: String,
    private_key_id: String,
    private_key: Zeroizing<String>,
    token_uri: String,
}

impl Account {
    /// Reads a key file.
    ///
    /// # Errors
    /// A text for people, which repeats nothing of the file.
    pub(in crate::service) fn read(file: &KeptSecret) -> Result<Self, String> {
        let text = file.expose();
        if text.len() > super::super::form::SECRET_BYTES_MAX {
            return Err("a service account's key file is not that long".to_owned());
        }
        let account: Self = serde_json::from_str(text).map_err(|_| {
            "that is no key file of a service account: JSON with type, client_email, private_key_id, private_key and \
             token_uri"
                .to_owned()
        })?;
        if account.kind != "service_account" {
            return Err("the key file's type is not service_account".to_owned());
        }
        check_url(&account.token_uri).map_err(|why| format!("token_uri in the key file: {why}"))?;
        account.key()?;
        Ok(account)
    }

    fn key(&self) -> Result<EncodingKey, String> {
        EncodingKey::from_rsa_pem(self.private_key.as_bytes())
            .map_err(|_| "private_key in the key file is no RSA key in PEM".to_owned())
    }
}

#[derive(Serialize)]
struct Assertion<'a> {
    iss: &'a str,
    scope: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
}

#[derive(Deserialize)]
struct Given {
    access_token: Zeroizing<String>,
    expires_in: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    access_token: Zeroizing<String>,
    expire_time: String,
}

/// RFC 6749, section 5.2.
#[derive(Deserialize)]
struct NotGiven {
    error: String,
    #[serde(default)]
    error_description: String,
}

struct Current {
    token: SecretText,
    until: OffsetDateTime,
}

/// How we are known to Google.
pub(super) struct Session {
    asker: Asker,
    account: Account,
    /// Another endpoint than Google's own.
    address: Option<String>,
    current: Mutex<Option<Current>>,
}

impl Session {
    pub(super) fn new(service: &KeyService, asker: Asker) -> Result<Self, KeyFailure> {
        let KeyCredentials::GcpServiceAccount(file) = &service.credentials else {
            return Err(asker.subject.unusable("the key service has credentials of another kind"));
        };
        let account = Account::read(file).map_err(|why| asker.subject.unusable(why))?;
        let address = (!service.address.is_empty()).then(|| base(&service.address));
        Ok(Self { asker, account, address, current: Mutex::new(None) })
    }

    pub(super) fn asker(&self) -> &Asker {
        &self.asker
    }

    /// Where Cloud KMS is.
    pub(super) fn base(&self) -> &str {
        self.address.as_deref().unwrap_or(KMS)
    }

    /// Where other accounts' tokens are given. An address that was set stands for this too, unless it is one of Google's
    /// own: those are for KMS alone.
    fn credentials_base(&self) -> &str {
        let is_googles = |address: &&str| {
            Url::parse(address).is_ok_and(|url| url.host_str().is_some_and(|host| host.ends_with(GOOGLE)))
        };
        self.address.as_deref().filter(|address| !is_googles(address)).unwrap_or(IAM_CREDENTIALS)
    }

    /// The token to use now.
    pub(super) async fn token(&self, place: &Binding) -> Result<SecretText, KeyFailure> {
        let mut current = self.asker.lock(&self.current).await?;
        if let Some(Current { token, until }) = &*current
            && self.asker.now() < *until
        {
            return Ok(token.clone());
        }
        let fresh = self.sign_in(place).await?;
        let token = fresh.token.clone();
        *current = Some(fresh);
        Ok(token)
    }

    /// Another token in place of one that was refused.
    pub(super) async fn another_token(
        &self,
        refused: &SecretText,
        place: &Binding,
    ) -> Result<SecretText, KeyFailure> {
        self.asker.lock(&self.current).await?.take_if(|current| current.token.expose() == refused.expose());
        self.token(place).await
    }

    async fn sign_in(&self, place: &Binding) -> Result<Current, KeyFailure> {
        if self.asker.spec.auth_principal.is_empty() {
            return self.own_token(KMS_SCOPE, place).await;
        }
        let own = self.own_token(PLATFORM_SCOPE, place).await?;
        let url = format!(
            "{}/v1/projects/-/serviceAccounts/{}:generateAccessToken",
            self.credentials_base(),
            self.asker.spec.auth_principal
        );
        let body = json!({"scope": [KMS_SCOPE], "lifetime": format!("{TOKEN_SECONDS_MAX}s")});
        let authorization = Some(Zeroizing::new(format!("Bearer {}", own.token.expose())));
        let question = Question { authorization, ..Question::json(url, &body, place) };
        let answer = self.asker.ask(question).await?;
        if !answer.is_success() {
            return Err(refused(&self.asker, &answer));
        }
        let Impersonated { access_token, expire_time } =
            answer.read().ok_or_else(|| self.asker.senseless(&answer))?;
        let ends =
            OffsetDateTime::parse(&expire_time, &Rfc3339).map_err(|_| self.asker.senseless(&answer))?;
        Ok(self.kept(&access_token, ends))
    }

    async fn own_token(&self, scope: &str, place: &Binding) -> Result<Current, KeyFailure> {
        let now = self.asker.now();
        let assertion = self.assertion(scope, now).map_err(|why| self.asker.subject.unusable(why))?;
        let form =
            [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", &*assertion)];
        let question = Question::form(self.account.token_uri.clone(), &form, place);
        let answer = self.asker.ask(question).await?;
        if !answer.is_success() {
            return Err(self.not_given(&answer));
        }
        let Given { access_token, expires_in } =
            answer.read().ok_or_else(|| self.asker.senseless(&answer))?;
        Ok(self.kept(&access_token, now + Duration::from_secs(u64::from(expires_in))))
    }

    fn kept(&self, token: &str, ends: OffsetDateTime) -> Current {
        let longest = self.asker.now() + Duration::from_secs(u64::from(TOKEN_SECONDS_MAX));
        Current { token: SecretText::new(token.to_owned()), until: ends.min(longest) - BEFORE_END }
    }

    fn assertion(&self, scope: &str, now: OffsetDateTime) -> Result<Zeroizing<String>, String> {
        let Account { client_email, private_key_id, token_uri, .. } = &self.account;
        let issued = now.unix_timestamp();
        let claims = Assertion {
            iss: client_email,
            scope,
            aud: token_uri,
            iat: issued,
            exp: issued + ASSERTION_SECONDS,
        };
        let header = Header { kid: Some(private_key_id.clone()), ..Header::new(Algorithm::RS256) };
        jsonwebtoken::encode(&header, &claims, &self.account.key()?).map(Zeroizing::new).map_err(|_| {
            "the service account's key does not sign; give the key service another key file".to_owned()
        })
    }

    fn not_given(&self, answer: &Answer) -> KeyFailure {
        let subject = &self.asker.subject;
        let Some(NotGiven { error, error_description }) = answer.read() else {
            return self.asker.senseless(answer);
        };
        let said = format!("{}: {}", clean(&error), clean(&error_description));
        let lower = error_description.to_lowercase();
        match (answer.status, error.as_str()) {
            (400 | 401, "invalid_grant") if lower.contains("iat") || lower.contains("short-lived") => {
                subject.unreachable(format!("{said}; set this machine's clock"))
            }
            (400 | 401 | 403, "invalid_grant" | "invalid_client" | "unauthorized_client" | "disabled_client"
            | "deleted_client" | "access_denied" | "account_disabled") => subject.unauthenticated(format!(
                "Google does not accept the service account's key ({said}); give the key service one that is valid"
            )),
            (408 | 429 | 500.., _) => subject.unreachable(said),
            (_, _) => subject.unusable(said),
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("asker", &self.asker).finish_non_exhaustive()
    }
}
