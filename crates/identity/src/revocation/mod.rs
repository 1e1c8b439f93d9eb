//! Whether a client's certificate is revoked: asks the responders of its whole chain (OCSP, RFC 6960), keeps their answers,
//! and decides as the cluster says: `off`, `lax` or `strict` (CockroachDB's `security.ocsp.mode`).

mod cache;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use keys::client::{Step, Verified};
use keys::ocsp::{self, Answer, Status};
use model::{Clock, ClusterId, Fetch, FetchBody, Fetcher, Hidden, Ocsp, OcspMode};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use cache::{Cache, Key};

/// How long answers are kept and how often responders are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// At a sign-in, a kept answer that was asked for longer ago than this is asked for again; if the responder does not
    /// answer, the kept one still counts as long as it is valid.
    pub asked_again_after: time::Duration,
    /// The same for sessions that are open ([`Revocation::recheck`]): no responder is asked more often about one
    /// certificate than this, however many sessions it has.
    pub rechecked_after: time::Duration,
    /// For how long a responder that gave no answer is not asked again about the same certificate.
    pub failure_kept: time::Duration,
    /// For how long an answer is kept at most, whatever it says itself.
    pub kept_max: time::Duration,
    /// Most answers that are kept.
    pub entries_max: usize,
}

impl Default for Settings {
    /// 60 s, 1 s, 5 s, 24 h, 10,000.
    fn default() -> Self {
        Self {
            asked_again_after: time::Duration::seconds(60),
            rechecked_after: time::Duration::seconds(1),
            failure_kept: time::Duration::seconds(5),
            kept_max: time::Duration::hours(24),
            entries_max: 10_000,
        }
    }
}

/// Asks about certificates, keeps answers, decides.
pub struct Revocation {
    fetcher: Arc<dyn Fetcher>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    cache: Cache,
}

/// The certificate may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// In lax mode, why it is not known to be good. For the operator's log.
    pub warning: Option<String>,
}

/// The certificate may not be used. The text may be shown to the client; the detail is for the operator's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    why: Why,
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Revoked,
    NoResponder,
    Unknown,
    NoAnswer,
}

impl Refused {
    /// Whether a responder says that the certificate is revoked, in contrast to not being known to be good.
    pub fn is_revoked(&self) -> bool {
        self.why == Why::Revoked
    }

    /// What was asked and what came of it. For the operator's log, never for a client.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl fmt::Display for Refused {
    /// CockroachDB's words, so that people find them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.why {
            Why::Revoked => "OCSP server says cert is revoked",
            Why::NoResponder => {
                "OCSP check failed in strict mode: a certificate of the chain names no responder"
            }
            Why::Unknown => "OCSP check failed in strict mode: the responder does not know the certificate",
            Why::NoAnswer => "OCSP check failed in strict mode: no responder gave an answer that counts",
        })
    }
}

impl std::error::Error for Refused {}

impl Revocation {
    /// Asks through the fetcher, with the default [`Settings`].
    pub fn new(fetcher: Arc<dyn Fetcher>, clock: Arc<dyn Clock>) -> Self {
        Self::with_settings(fetcher, clock, Settings::default())
    }

    /// Asks through the fetcher.
    pub fn with_settings(fetcher: Arc<dyn Fetcher>, clock: Arc<dyn Clock>, settings: Settings) -> Self {
        Self { fetcher, clock, settings, cache: Cache::new(settings.entries_max) }
    }

    /// Whether the certificate of somebody who signs in may be used. Every certificate of the chain but the root is asked
    /// about, all at once; `ocsp.timeout_ms` is for all of them together. A revoked one is refused in lax and strict.
    pub async fn check(
        &self,
        cluster: ClusterId,
        verified: &Verified,
        ocsp: &Ocsp,
    ) -> Result<Passed, Refused> {
        if ocsp.mode == OcspMode::Off {
            return Ok(Passed { warning: None });
        }
        match self.worst(cluster, verified, ocsp, self.settings.asked_again_after).await {
            None => Ok(Passed { warning: None }),
            Some(refused) if refused.is_revoked() => Err(refused),
            Some(refused) if refused.why == Why::NoResponder && ocsp.accept_without_responder => {
                Ok(Passed { warning: None })
            }
            Some(refused) if ocsp.mode == OcspMode::Lax => Ok(Passed { warning: Some(refused.detail) }),
            Some(refused) => Err(refused),
        }
    }

    /// Whether a certificate that an open session stands on was revoked since. A responder that gives no answer cuts
    /// nobody, in strict neither: the session was checked when it began.
    pub async fn recheck(&self, cluster: ClusterId, verified: &Verified, ocsp: &Ocsp) -> Option<Refused> {
        if ocsp.mode == OcspMode::Off {
            return None;
        }
        self.worst(cluster, verified, ocsp, self.settings.rechecked_after).await.filter(Refused::is_revoked)
    }

    /// What is worst about the chain; `None` if all of it is good. A revoked certificate is reported at once, the others'
    /// answers are not waited for.
    async fn worst(
        &self,
        cluster: ClusterId,
        verified: &Verified,
        ocsp: &Ocsp,
        asked_again_after: time::Duration,
    ) -> Option<Refused> {
        let deadline = Instant::now() + std::time::Duration::from_millis(u64::from(ocsp.timeout_ms));
        let mut asked: FuturesUnordered<_> = verified
            .steps
            .iter()
            .map(|step| self.step(cluster, step, ocsp, deadline, asked_again_after))
            .collect();
        let mut worst: Option<Refused> = None;
        while let Some(outcome) = asked.next().await {
            match outcome {
                Some(refused) if refused.is_revoked() => return Some(refused),
                // Without a responder is what an operator may accept, so anything else outweighs it.
                Some(refused) if worst.as_ref().is_none_or(|known| known.why == Why::NoResponder) => {
                    worst = Some(refused);
                }
                _ => {}
            }
        }
        worst
    }

    /// What is wrong with one certificate. Its responders are asked in their order until one knows it.
    async fn step(
        &self,
        cluster: ClusterId,
        step: &Step,
        ocsp: &Ocsp,
        deadline: Instant,
        asked_again_after: time::Duration,
    ) -> Option<Refused> {
        let responders = match &ocsp.responder {
            Some(responder) => std::slice::from_ref(responder),
            None => step.responders.as_slice(),
        };
        if responders.is_empty() {
            let detail =
                "a certificate of the chain names no OCSP responder, and the cluster sets none".to_owned();
            return Some(Refused { why: Why::NoResponder, detail });
        }
        let (mut why, mut details) = (Why::NoAnswer, Vec::new());
        for (index, url) in responders.iter().enumerate() {
            let key = Key::new(cluster, step, url);
            // One that hangs leaves time for the others.
            let shares = u32::try_from(responders.len() - index).unwrap_or(u32::MAX);
            let now = Instant::now();
            let deadline = now + deadline.saturating_duration_since(now) / shares;
            match self.answer(key, step, url, deadline, asked_again_after).await {
                Ok(Answer { status: Status::Good, .. }) => return None,
                Ok(Answer { status: Status::Revoked { at, reason }, .. }) => {
                    let reason = reason.unwrap_or("no reason given");
                    let detail = format!("{url} says that it is revoked since {at} ({reason})");
                    return Some(Refused { why: Why::Revoked, detail });
                }
                Ok(Answer { status: Status::Unknown, .. }) => {
                    why = Why::Unknown;
                    details.push(format!("{url} does not know the certificate"));
                }
                Err(cause) => details.push(format!("{url}: {cause}")),
            }
        }
        Some(Refused { why, detail: details.join("; ") })
    }

    /// The kept answer, or a new one. One question at a time about one certificate to one responder: who comes meanwhile
    /// waits for its answer.
    async fn answer(
        &self,
        key: Key,
        step: &Step,
        url: &str,
        deadline: Instant,
        asked_again_after: time::Duration,
    ) -> Result<Answer, String> {
        let entry = self.cache.entry(&key, self.clock.now());
        let mut kept =
            timeout_at(deadline, entry.lock()).await.map_err(|_| "no answer in time".to_owned())?;
        let now = self.clock.now();
        let until = |answer: &Answer, asked_at: OffsetDateTime| {
            answer.good_until().min(asked_at.saturating_add(self.settings.kept_max))
        };
        let known = kept.answer.filter(|(answer, asked_at)| now <= until(answer, *asked_at));
        kept.answer = known;
        if let Some((answer, asked_at)) = known
            && is_within(asked_at, now, asked_again_after)
        {
            return Ok(answer);
        }
        let old = known.map(|(answer, _)| answer);
        if let Some((cause, failed_at)) = &kept.failure
            && is_within(*failed_at, now, self.settings.failure_kept)
        {
            return old.ok_or_else(|| cause.clone());
        }
        match self.ask(key.cluster(), step, url, deadline).await {
            Ok(new) => {
                // An answer without a nonce can be an old one, played back to hide what was said since.
                let newer = old.filter(|old| old.this_update > new.this_update).unwrap_or(new);
                kept.answer = Some((newer, now));
                kept.failure = None;
                Ok(newer)
            }
            Err(cause) => {
                kept.failure = Some((cause.clone(), self.clock.now()));
                old.ok_or(cause)
            }
        }
    }

    async fn ask(
        &self,
        cluster: ClusterId,
        step: &Step,
        url: &str,
        deadline: Instant,
    ) -> Result<Answer, String> {
        let mut nonce = [0; 32];
        keys::fill_random(&mut nonce);
        let fetch = Fetch {
            url: url.to_owned(),
            body: Some(FetchBody { kind: ocsp::REQUEST_KIND, bytes: Hidden(ocsp::request(step, &nonce)) }),
            accept: ocsp::RESPONSE_KIND,
            authorization: None,
            headers: Vec::new(),
            ca_pem: None,
            bytes_max: ocsp::RESPONSE_BYTES_MAX,
            time_max: deadline.saturating_duration_since(Instant::now()),
            cluster: Some(cluster),
        };
        let fetched = timeout_at(deadline, self.fetcher.fetch(fetch)).await;
        let fetched =
            fetched.map_err(|_| "no answer in time".to_owned())?.map_err(|cause| cause.to_string())?;
        if fetched.status != 200 {
            return Err(format!("it answers with HTTP status {}", fetched.status));
        }
        if fetched.kind != ocsp::RESPONSE_KIND {
            return Err(format!("it does not answer with {}", ocsp::RESPONSE_KIND));
        }
        ocsp::read(&fetched.body, step, self.clock.now(), Some(&nonce)).map_err(|cause| cause.to_string())
    }
}

impl fmt::Debug for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocation").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Whether something is younger than this. What is in the future, because the clock was set back, is not.
fn is_within(then: OffsetDateTime, now: OffsetDateTime, age: time::Duration) -> bool {
    let passed = now - then;
    !passed.is_negative() && passed < age
}
