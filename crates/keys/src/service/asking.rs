//! How services that speak HTTP are asked: one bounded exchange, and what becomes of failures.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::{Clock, Fetch, FetchBody, FetchFailure, Fetcher, Hidden, KeyService, KeySpec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;
use url::form_urlencoded::Serializer;
use zeroize::Zeroizing;

use crate::{Binding, DataKey, KeyFailure};

/// Most bytes of any answer. A wrapped data key is far below 1 KiB, and a token of Google's below 4 KiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// For one exchange, from the name's look-up to the last byte.
const TIME_MAX: Duration = Duration::from_secs(10);
/// For the wait while another signs in, which takes two exchanges at most.
const SIGN_IN_MAX: Duration = Duration::from_secs(25);
/// Most characters of a service's own message that are passed on.
const MESSAGE_CHARACTERS_MAX: usize = 300;
/// Shortest secret that is looked for in messages; shorter ones would make holes in common words.
const SECRET_BYTES_MIN: usize = 6;

/// The kinds of failure, for one key.
#[derive(Clone, Debug)]
pub(super) struct Subject(String);

impl Subject {
    pub(super) fn of(spec: &KeySpec) -> Self {
        Self(spec.to_string())
    }

    pub(super) fn denied(&self, reason: impl Into<String>) -> KeyFailure {
        KeyFailure::Denied { key: self.0.clone(), reason: reason.into() }
    }

    pub(super) fn unauthenticated(&self, reason: impl Into<String>) -> KeyFailure {
        KeyFailure::Unauthenticated { key: self.0.clone(), reason: reason.into() }
    }

    pub(super) fn unreachable(&self, reason: impl Into<String>) -> KeyFailure {
        KeyFailure::Unreachable { key: self.0.clone(), reason: reason.into() }
    }

    pub(super) fn unusable(&self, reason: impl Into<String>) -> KeyFailure {
        KeyFailure::Unusable { key: self.0.clone(), reason: reason.into() }
    }

    pub(super) fn does_not_open(&self) -> KeyFailure {
        KeyFailure::DoesNotOpen { key: self.0.clone() }
    }
}

/// What is asked, apart from what every exchange has.
pub(super) struct Question<'a> {
    pub(super) url: String,
    /// The `Content-Type` and the bytes; `None` for a `GET`.
    pub(super) body: Option<(&'static str, Zeroizing<Vec<u8>>)>,
    /// The `Accept` header.
    pub(super) accept: &'static str,
    pub(super) authorization: Option<Zeroizing<String>>,
    pub(super) headers: Vec<(&'static str, Hidden)>,
    /// On whose behalf.
    pub(super) place: &'a Binding,
}

impl<'a> Question<'a> {
    /// A `GET`.
    pub(super) fn get(url: String, place: &'a Binding) -> Self {
        Self { url, body: None, accept: "application/json", authorization: None, headers: Vec::new(), place }
    }

    /// A `POST` of JSON.
    pub(super) fn json(url: String, body: &impl Serialize, place: &'a Binding) -> Self {
        #[expect(clippy::expect_used, reason = "structures of texts and numbers always have a JSON form")]
        let bytes = serde_json::to_vec(body).expect("JSON of our own");
        Self { body: Some(("application/json", Zeroizing::new(bytes))), ..Self::get(url, place) }
    }

    /// A `POST` of a form.
    pub(super) fn form(url: String, pairs: &[(&str, &str)], place: &'a Binding) -> Self {
        let form = Serializer::new(String::new()).extend_pairs(pairs).finish();
        let body = Some(("application/x-www-form-urlencoded", Zeroizing::new(form.into_bytes())));
        Self { body, ..Self::get(url, place) }
    }
}

/// An answer of any status but a redirect.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(super) fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Asks one service about one key.
pub(super) struct Asker {
    pub(super) spec: KeySpec,
    pub(super) subject: Subject,
    ca_pem: Option<String>,
    fetcher: Arc<dyn Fetcher>,
    clock: Arc<dyn Clock>,
}

impl Asker {
    pub(super) fn new(
        service: &KeyService,
        spec: &KeySpec,
        fetcher: Arc<dyn Fetcher>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            spec: spec.clone(),
            subject: Subject::of(spec),
            ca_pem: service.ca_pem.clone(),
            fetcher,
            clock,
        }
    }

    pub(super) fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    /// Exchanges once. An answer that says by its status alone that nothing is known is a failure already.
    pub(super) async fn ask(&self, question: Question<'_>) -> Result<Answer, KeyFailure> {
        let Question { url, body, accept, authorization, headers, place } = question;
        let fetch = Fetch {
            url,
            body: body
                .map(|(kind, mut bytes)| FetchBody { kind, bytes: Hidden(std::mem::take(&mut *bytes)) }),
            accept,
            authorization: authorization.map(|mut value| Hidden(std::mem::take(&mut *value))),
            headers,
            ca_pem: self.ca_pem.clone(),
            bytes_max: ANSWER_BYTES_MAX,
            time_max: TIME_MAX,
            cluster: place.cluster(),
        };
        let fetched = self.fetcher.fetch(fetch).await.map_err(|failure| match failure {
            FetchFailure::TooLong(_) => self.subject.unusable(failure.to_string()),
            FetchFailure::Refused(_) | FetchFailure::Failed(_) | FetchFailure::TimedOut => {
                self.subject.unreachable(clean(&failure.to_string()))
            }
        })?;
        if (300..400).contains(&fetched.status) {
            return Err(self.subject.unreachable(
                "the service answers with a redirect, which is not followed; give the address that it leads to",
            ));
        }
        Ok(Answer { status: fetched.status, body: Zeroizing::new(fetched.body) })
    }

    /// What a sign-in gave. Those who ask while another signs in wait for it, but not behind each other for ever when the
    /// service hangs.
    pub(super) async fn lock<'a, T>(&self, kept: &'a Mutex<T>) -> Result<MutexGuard<'a, T>, KeyFailure> {
        let waited = timeout(SIGN_IN_MAX, kept.lock()).await;
        waited.map_err(|_| self.subject.unreachable("signing in at the service takes too long"))
    }

    /// What is not an answer of the service's: another program's, or one that is cut.
    pub(super) fn senseless(&self, answer: &Answer) -> KeyFailure {
        let reason = format!("the answer (HTTP {}) is not one of a key service of this kind", answer.status);
        if answer.is_success() { self.subject.unusable(reason) } else { self.subject.unreachable(reason) }
    }

    /// The data key in an answer's base64.
    pub(super) fn data_key(&self, text: &str) -> Result<DataKey, KeyFailure> {
        let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| self.subject.does_not_open())?);
        DataKey::from_bytes(&bytes).ok_or_else(|| self.subject.does_not_open())
    }
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// A secret in base64, as services want it.
pub(super) fn encoded(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(bytes))
}

/// A service's own message: one short line without control characters.
pub(super) fn clean(message: &str) -> String {
    let printable = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    let words = printable.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut = words.chars().take(MESSAGE_CHARACTERS_MAX).collect::<String>();
    if cut.is_empty() { "no reason given".to_owned() } else { cut }
}

/// Like [`clean`], for services that repeat what they were sent: none of our secrets remains.
pub(super) fn without(message: &str, secrets: &[&str]) -> String {
    let hidden = secrets
        .iter()
        .filter(|secret| secret.len() >= SECRET_BYTES_MIN)
        .fold(message.to_owned(), |text, secret| text.replace(secret, "[hidden]"));
    clean(&hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_services_are_one_short_line_without_our_secrets() {
        assert_eq!(
            clean("1 error occurred:\n\t* permission denied\n\n"),
            "1 error occurred: * permission denied"
        );
        assert_eq!(clean(""), "no reason given");
        assert_eq!(clean("\u{1b}[31mred\u{7}"), "[31mred");
        assert_eq!(clean(&"x".repeat(100_000)).len(), MESSAGE_CHARACTERS_MAX);
        let echoed = "x-amz-security-token:AQoDYXdzEJr\nhost:kms";
        assert_eq!(without(echoed, &["AQoDYXdzEJr", ""]), "x-amz-security-token:[hidden] host:kms");
    }
}
