//! Signing in at Vault or OpenBao: a token that was given, or one that AppRole gives, kept while it lasts.

use std::time::Duration;

use model::{KeptSecret, KeyCredentials, KeyService};
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::super::asking::{Answer, Asker, Question, without};
use super::super::form::base;
use super::{Refusal, headers};
use crate::{Binding, KeyFailure, SecretText};

/// How long a token that was given is used before it is asked again how long it lasts.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// What the service answers to a token that it knows, and whose policies do not name the mount.
const PREFLIGHT: &str = "preflight capability check";
/// What newer services add to the refusal of a token that they do not know, and what older ones said in its place.
const INVALID_TOKEN: &str = "invalid token";
const BAD_TOKEN: &str = "bad token";

/// What a service says of a token that it refused a key to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It knows the token: the refusal is its word about the key.
    Good,
    /// It does not know the token, or not any more: the refusal says nothing of the key.
    Ended,
    /// It does not tell.
    Unknown,
}

/// How we are known there.
pub(super) struct Session {
    asker: Asker,
    base: String,
    namespace: Option<String>,
    login: Login,
    current: Mutex<Option<Current>>,
}

/// What we sign in with.
enum Login {
    Token(KeptSecret),
    AppRole { role_id: String, secret_id: KeptSecret, mount: String },
}

/// A token that is good for now.
struct Current {
    token: SecretText,
    /// When it is to be renewed, or another to be asked for; `None` if it lasts for ever.
    until: Option<OffsetDateTime>,
}

#[derive(Serialize)]
struct ToSignIn<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

#[derive(Deserialize)]
struct LoggedIn {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: Zeroizing<String>,
    /// 0 for a token that does not expire.
    #[serde(default)]
    lease_duration: u32,
}

#[derive(Deserialize)]
struct LookedUp {
    data: TokenRead,
}

#[derive(Deserialize)]
struct TokenRead {
    /// In seconds; 0 for a token that does not expire.
    ttl: u32,
    #[serde(default)]
    renewable: bool,
    /// What it was made with, in seconds.
    #[serde(default)]
    creation_ttl: u32,
}

impl Session {
    pub(super) fn new(service: &KeyService, asker: Asker) -> Result<Self, KeyFailure> {
        let login = match &service.credentials {
            KeyCredentials::VaultToken(token) => Login::Token(token.clone()),
            KeyCredentials::VaultAppRole { role_id, secret_id, mount } => Login::AppRole {
                role_id: role_id.clone(),
                secret_id: secret_id.clone(),
                mount: mount.clone(),
            },
            KeyCredentials::AwsAccessKey { .. }
            | KeyCredentials::GcpServiceAccount(_)
            | KeyCredentials::Pkcs11Pin(_) => {
                return Err(asker.subject.unusable("the key service has credentials of another kind"));
            }
        };
        let namespace = service.namespace.clone();
        Ok(Self { asker, base: base(&service.address), namespace, login, current: Mutex::new(None) })
    }

    pub(super) fn asker(&self) -> &Asker {
        &self.asker
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// The service's words, without our credentials.
    pub(super) fn said(&self, message: &str) -> String {
        match &self.login {
            Login::Token(token) => without(message, &[token.expose()]),
            Login::AppRole { role_id, secret_id, mount: _ } => {
                without(message, &[secret_id.expose(), role_id])
            }
        }
    }

    pub(super) async fn ask_with(
        &self,
        question: Question<'_>,
        token: &SecretText,
    ) -> Result<Answer, KeyFailure> {
        let headers = headers(Some(token.expose()), self.namespace.as_deref());
        self.asker.ask(Question { headers, ..question }).await
    }

    /// The token to use now.
    pub(super) async fn token(&self, place: &Binding) -> Result<SecretText, KeyFailure> {
        let mut current = self.asker.lock(&self.current).await?;
        let now = self.asker.now();
        // A clock that was put back must not keep a token from being renewed until it catches up.
        let ahead_max = matches!(self.login, Login::Token(_)).then_some(LOOK_AGAIN);
        let is_soon = |until| ahead_max.is_none_or(|most| until - now <= most);
        if let Some(Current { token, until }) = &*current
            && until.is_none_or(|until| now < until && is_soon(until))
        {
            return Ok(token.clone());
        }
        let fresh = self.sign_in(place).await?;
        let token = fresh.token.clone();
        *current = Some(fresh);
        Ok(token)
    }

    /// Another token in place of one that was refused; `None` if there is no other.
    pub(super) async fn another_token(
        &self,
        refused: &SecretText,
        place: &Binding,
    ) -> Result<Option<SecretText>, KeyFailure> {
        match &self.login {
            Login::Token(_) => Ok(None),
            Login::AppRole { .. } => {
                let mut current = self.asker.lock(&self.current).await?;
                current.take_if(|current| current.token.expose() == refused.expose());
                drop(current);
                self.token(place).await.map(Some)
            }
        }
    }

    /// Whether a token that was refused is accepted for anything. A token that has ended and one whose policy was taken
    /// away get the same refusal, so further questions must tell: first whether it may look at itself, as the default
    /// policy lets it; and if not, one that the service answers to every token that it knows, whatever its policies: a
    /// "preflight" for a mount that is always there (`sys/internal/ui/mounts`, which the service's own clients use).
    pub(super) async fn standing(&self, token: &SecretText, place: &Binding) -> Result<Standing, KeyFailure> {
        for path in ["auth/token/lookup-self", "sys/internal/ui/mounts/sys"] {
            let answer =
                self.ask_with(Question::get(format!("{}/v1/{path}", self.base), place), token).await?;
            if answer.is_success() {
                answer.read::<serde_json::Value>().ok_or_else(|| self.asker.senseless(&answer))?;
                return Ok(Standing::Good);
            }
            // A page of something that stands before the service says nothing of the token, and nothing of the key.
            let Refusal { errors } = answer.read().ok_or_else(|| self.asker.senseless(&answer))?;
            let said = errors.join("; ").to_lowercase();
            match answer.status {
                403 if said.contains(INVALID_TOKEN) || said.contains(BAD_TOKEN) => {
                    return Ok(Standing::Ended);
                }
                403 if said.contains(PREFLIGHT) => return Ok(Standing::Good),
                403 if path.starts_with("sys/") && said.contains("permission denied") => {
                    return Ok(Standing::Ended);
                }
                412 | 429 | 472 | 473 | 500.. => {
                    let said = self.said(&errors.join("; "));
                    return Err(self.asker.subject.unreachable(format!("HTTP {}: {said}", answer.status)));
                }
                _ => {}
            }
        }
        Ok(Standing::Unknown)
    }

    async fn sign_in(&self, place: &Binding) -> Result<Current, KeyFailure> {
        match &self.login {
            Login::Token(token) => self.keep_alive(token, place).await,
            Login::AppRole { role_id, secret_id, mount } => {
                let url = format!("{}/v1/auth/{mount}/login", self.base);
                let body = ToSignIn { role_id, secret_id: secret_id.expose() };
                let question = Question {
                    headers: headers(None, self.namespace.as_deref()),
                    ..Question::json(url, &body, place)
                };
                let answer = self.asker.ask(question).await?;
                if !answer.is_success() {
                    return Err(self.not_signed_in(&answer));
                }
                let LoggedIn { auth: Auth { client_token, lease_duration } } =
                    answer.read().ok_or_else(|| self.asker.senseless(&answer))?;
                let token = SecretText::new(client_token.to_string());
                Ok(Current { token, until: self.before_end(lease_duration) })
            }
        }
    }

    /// Two thirds of what is left, so that a token does not end between two questions.
    fn before_end(&self, seconds: u32) -> Option<OffsetDateTime> {
        (seconds > 0).then(|| self.asker.now() + Duration::from_secs(u64::from(seconds)) * 2 / 3)
    }

    /// A token that was given is used as it is. If it ends and can be renewed, it is renewed in its second half; whether
    /// that works is seen when it is used.
    async fn keep_alive(&self, token: &KeptSecret, place: &Binding) -> Result<Current, KeyFailure> {
        let token = SecretText::new(token.expose().to_owned());
        let url = format!("{}/v1/auth/token/lookup-self", self.base);
        let answer = self.ask_with(Question::get(url, place), &token).await?;
        // Its policy may not let it look at itself.
        let Some(LookedUp { data: TokenRead { ttl, renewable, creation_ttl } }) = answer.read() else {
            let until = Some(self.asker.now() + LOOK_AGAIN);
            return Ok(Current { token, until });
        };
        if ttl == 0 {
            return Ok(Current { token, until: None });
        }
        let look_again = self.asker.now() + LOOK_AGAIN;
        if renewable && ttl <= creation_ttl / 2 {
            let url = format!("{}/v1/auth/token/renew-self", self.base);
            let renewed = self.ask_with(Question::json(url, &json!({}), place), &token).await?;
            if !renewed.is_success() {
                tracing::warn!(
                    service = ?self.asker.spec.service,
                    status = renewed.status,
                    "the token of the key service could not be renewed; it ends in {ttl} s"
                );
            }
        }
        let until = self.before_end(ttl).map(|until| until.min(look_again));
        Ok(Current { token, until })
    }

    fn not_signed_in(&self, answer: &Answer) -> KeyFailure {
        let subject = &self.asker.subject;
        let Some(Refusal { errors }) = answer.read::<Refusal>() else {
            return self.asker.senseless(answer);
        };
        let said = self.said(&errors.join("; "));
        match answer.status {
            400 | 401 | 403 => subject.unauthenticated(format!(
                "the service does not let us sign in by AppRole ({said}); give the key service a role id and a secret \
                 id that are valid"
            )),
            404 => subject.unusable(format!("AppRole is not mounted there ({said}); give its mount")),
            412 | 429 | 472 | 473 | 500.. => {
                subject.unreachable(format!("HTTP {}: {said}", answer.status))
            }
            status => subject.unusable(format!("HTTP {status} to signing in: {said}")),
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("base", &self.base)
            .field("asker", &self.asker)
            .finish_non_exhaustive()
    }
}
