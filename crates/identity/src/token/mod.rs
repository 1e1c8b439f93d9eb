//! Tokens that an identity provider signed (JWT, RFC 7519): whether one counts, and whom it names.
//!
//! Only public-key signatures count, by a key whose own type fits; `exp`, `iss` and an audience of ours are required. The
//! words of refusals are CockroachDB's (`pkg/ccl/jwtauthccl`).

mod claims;
mod discovery;
#[cfg(test)]
mod fetching_tests;
mod jwks;
mod jws;
mod kept;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keys::SecretText;
use model::{Clock, ClusterId, Fetch, FetchBody, Fetched, Fetcher, Hidden, IdentityProvider, ProviderName};
use time::OffsetDateTime;

pub use discovery::Discovery;
pub use jwks::{KEYS_MAX, KeySet, UnusableKeys};
pub use jws::TOKEN_BYTES_MAX;

use jwks::Found;
use jws::Unverified;
use kept::{Kept, Need};

/// Longest answer that is read from a provider, in bytes: keys, discovery documents, userinfo, token responses.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// For one question to a provider. Two in a row (discovery, then keys) fit into the time that a sign-in has.
pub const FETCH_TIME_MAX: Duration = Duration::from_secs(4);
/// Providers whose keys are kept. A provider that does not fit is asked again.
const SOURCES_MAX: usize = 10_000;

/// What a token is used for, which decides whom it must have been made for.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// It was given as a password or by OAUTHBEARER: an ID token or an access token for one of the provider's
    /// `audiences`, or for its `client_id`.
    Password,
    /// It came from the provider's token endpoint at the end of a sign-in through a browser (OpenID Connect Core, section
    /// 3.1.3.7).
    IdToken {
        /// The nonce that was sent when the sign-in began.
        nonce: &'a str,
        /// The access token that came with it, for the userinfo endpoint where the ID token lists no groups.
        access_token: Option<&'a SecretText>,
    },
}

/// What a good token says.
#[derive(Clone, Debug)]
pub struct Claims {
    /// Who signed it.
    pub provider: Arc<IdentityProvider>,
    /// The values of the provider's `claim`: whom the token names. At least one.
    pub principals: Vec<String>,
    /// The groups as the provider spells them; `None` where the provider has no `group_claim`.
    pub groups: Option<Vec<String>>,
    /// When the token ends; the clock skew is not in it.
    pub expires_at: OffsetDateTime,
    /// The `sub` claim; empty where the token has none and names its person by another claim.
    pub subject: String,
}

/// Why a token does not count. Its text is for the client; [`Self::detail`] is for the operator's log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// The cluster has no provider.
    #[error("JWT authentication: not enabled")]
    NotEnabled,
    /// It is not a signed JWT of the form that is read here.
    #[error("JWT authentication: invalid token")]
    InvalidToken,
    /// It is a JWT, and its issuer, signature or times are not good.
    #[error("JWT authentication: invalid token")]
    Untrusted(String),
    /// The provider's keys could not be had, so nothing is known about the token.
    #[error("JWT authentication: unable to validate token")]
    Unavailable(String),
    /// The claim that names the person is not in it.
    #[error("JWT authentication: missing claim")]
    MissingClaim(String),
    /// A claim's value is of another type, too long, or not confirmed by the provider.
    #[error("JWT authentication: invalid claim value")]
    InvalidClaimValue(String),
    /// It names somebody else than the SQL user that was asked for.
    #[error("JWT authentication: invalid principal")]
    InvalidPrincipal(String),
    /// The SQL user that was asked for is reserved.
    #[error("JWT authentication: invalid identity")]
    InvalidIdentity(String),
    /// It was made for somebody else than us.
    #[error("JWT authentication: invalid audience")]
    InvalidAudience(String),
    /// The provider says that the person is in no group.
    #[error("JWT authorization: empty group list")]
    EmptyGroupList,
    /// The provider did not say in which groups the person is.
    #[error("JWT authorization: userinfo lookup failed")]
    UserinfoFailed(String),
}

impl TokenRefused {
    /// More for the operator's log, without the token itself; what is quoted of the token is escaped and cut.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::NotEnabled | Self::InvalidToken | Self::EmptyGroupList => None,
            Self::Untrusted(detail)
            | Self::Unavailable(detail)
            | Self::MissingClaim(detail)
            | Self::InvalidClaimValue(detail)
            | Self::InvalidPrincipal(detail)
            | Self::InvalidIdentity(detail)
            | Self::InvalidAudience(detail)
            | Self::UserinfoFailed(detail) => Some(detail),
        }
    }

    /// Whether the token was wrong, which counts against whoever brought it; not so where it could not be checked.
    pub fn is_wrong(&self) -> bool {
        !matches!(self, Self::Unavailable(_) | Self::UserinfoFailed(_))
    }
}

/// Checks tokens, and keeps what providers publish for it.
pub struct Tokens {
    fetcher: Arc<dyn Fetcher>,
    clock: Arc<dyn Clock>,
    sources: Mutex<HashMap<Place, Arc<Source>>>,
}

/// Whose provider, and its name.
type Place = (Option<ClusterId>, ProviderName);

/// What is kept of one provider, as long as its document does not change.
struct Source {
    provider: Arc<IdentityProvider>,
    given: Option<Result<Arc<KeySet>, UnusableKeys>>,
    keys: Arc<Kept<KeySet>>,
    discovery: Arc<Kept<Discovery>>,
}

impl Tokens {
    /// Asks nobody yet: a provider that is down is no reason not to start.
    pub fn new(fetcher: Arc<dyn Fetcher>, clock: Arc<dyn Clock>) -> Self {
        Self { fetcher, clock, sources: Mutex::default() }
    }

    /// Checks a token against the providers that count here and reads what it says. Where several have the token's
    /// issuer, they are tried in their order.
    pub async fn verify(
        &self,
        providers: &[Arc<IdentityProvider>],
        token: &SecretText,
        kind: Kind<'_>,
    ) -> Result<Claims, TokenRefused> {
        if providers.is_empty() {
            return Err(TokenRefused::NotEnabled);
        }
        let unverified = Unverified::parse(token.expose()).ok_or(TokenRefused::InvalidToken)?;
        let issuer = unverified
            .issuer()
            .ok_or_else(|| TokenRefused::Untrusted("the token does not say who issued it".to_owned()))?;
        let mut first = None;
        for provider in providers.iter().filter(|provider| provider.issuer == issuer) {
            match self.verify_by(provider, &unverified, token, kind).await {
                Ok(claims) => return Ok(claims),
                Err(refused) => first = first.or(Some(refused)),
            }
        }
        Err(first.unwrap_or_else(|| TokenRefused::Untrusted(format!("token issued by {}", quoted(issuer)))))
    }

    async fn verify_by(
        &self,
        provider: &Arc<IdentityProvider>,
        unverified: &Unverified<'_>,
        token: &SecretText,
        kind: Kind<'_>,
    ) -> Result<Claims, TokenRefused> {
        unverified.check_purpose(kind)?;
        self.check_signature(provider, unverified).await?;
        let read = claims::check(&unverified.claims, provider, kind, self.clock.now())?;
        let groups = match (&provider.group_claim, read.groups) {
            (None, _) => None,
            (Some(_), Some(groups)) => Some(groups),
            (Some(claim), None) => {
                let bearer = match kind {
                    Kind::Password => Some(token),
                    Kind::IdToken { access_token, .. } => access_token,
                };
                Some(self.groups_by_userinfo(provider, bearer, &read.subject, claim).await?)
            }
        };
        let claims::Read { principals, expires_at, subject, .. } = read;
        Ok(Claims { provider: provider.clone(), principals, groups, expires_at, subject })
    }

    async fn check_signature(
        &self,
        provider: &Arc<IdentityProvider>,
        token: &Unverified<'_>,
    ) -> Result<(), TokenRefused> {
        let source = self.source(provider);
        let mut keys = self.keys(&source, Need::Fresh).await?;
        if source.given.is_none() && keys.lacks(token.key_id()) {
            // Providers change their keys without a word: an id that is not known is the only sign.
            keys = self.keys(&source, Need::NewerThan(keys)).await?;
        }
        is_signed(token, &keys, provider)
    }

    async fn groups_by_userinfo(
        &self,
        provider: &Arc<IdentityProvider>,
        bearer: Option<&SecretText>,
        subject: &str,
        claim: &str,
    ) -> Result<Vec<String>, TokenRefused> {
        let failed =
            |why: String| TokenRefused::UserinfoFailed(format!("{}: {why}", quoted(&provider.issuer)));
        let bearer = bearer.ok_or_else(|| failed("there is no access token to ask with".to_owned()))?;
        let discovery = self.discovery(provider).await.map_err(failed)?;
        let endpoint = discovery
            .userinfo_endpoint
            .as_ref()
            .ok_or_else(|| failed("the provider has no userinfo endpoint".to_owned()))?;
        let question = Question {
            url: endpoint.as_str(),
            body: None,
            authorization: Some(Hidden(format!("Bearer {}", bearer.expose()))),
        };
        let answer = ask(&*self.fetcher, provider, question).await.map_err(failed)?;
        let said =
            jws::object(&answer.body).ok_or_else(|| failed("the answer is not a JSON object".to_owned()))?;
        // OpenID Connect Core, section 5.3.2: else an access token of somebody else could be slipped in.
        if subject.is_empty() || said.get("sub").and_then(serde_json::Value::as_str) != Some(subject) {
            return Err(failed("the answer is about somebody else".to_owned()));
        }
        Ok(claims::groups(&said, claim)?.unwrap_or_default())
    }

    /// What the provider says about itself, kept for a while. The error is for the log.
    pub async fn discovery(&self, provider: &Arc<IdentityProvider>) -> Result<Arc<Discovery>, String> {
        discover(&self.source(provider), &self.fetcher, &self.clock).await
    }

    /// Loads the provider's keys, as they are given or published. The error is for the operator.
    pub(crate) async fn load_keys(&self, provider: &Arc<IdentityProvider>) -> Result<(), String> {
        let loaded = self.keys(&self.source(provider), Need::Fresh).await;
        loaded.map(drop).map_err(|refused| refused.detail().unwrap_or("no details").to_owned())
    }

    async fn keys(&self, source: &Arc<Source>, need: Need<KeySet>) -> Result<Arc<KeySet>, TokenRefused> {
        let unavailable = |why: String| {
            TokenRefused::Unavailable(format!(
                "unable to fetch jwks of {}: {why}",
                quoted(&source.provider.issuer)
            ))
        };
        if let Some(given) = &source.given {
            return given.clone().map_err(|why| unavailable(why.to_string()));
        }
        let (fetcher, clock, owned) = (self.fetcher.clone(), self.clock.clone(), source.clone());
        let fetch = async move {
            let uri = match &owned.provider.jwks_uri {
                Some(uri) => discovery::endpoint(uri, &owned.provider.issuer)?,
                None => discover(&owned, &fetcher, &clock).await?.jwks_uri.clone(),
            };
            let question = Question { url: uri.as_str(), body: None, authorization: None };
            let answer = ask(&*fetcher, &owned.provider, question).await?;
            let keys = KeySet::parse(&answer.body).map_err(|why| why.to_string())?;
            Ok((keys, answer.max_age))
        };
        source.keys.get(&self.clock, need, fetch).await.map_err(unavailable)
    }

    fn source(&self, provider: &Arc<IdentityProvider>) -> Arc<Source> {
        let place = (provider.cluster, provider.name.clone());
        // Single inserts.
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = sources.get(&place)
            && (Arc::ptr_eq(&known.provider, provider) || known.provider == *provider)
        {
            return known.clone();
        }
        if sources.len() >= SOURCES_MAX {
            sources.clear();
        }
        let given = provider.jwks.as_ref().map(|text| KeySet::parse(text.as_bytes()).map(Arc::new));
        let source = Arc::new(Source {
            provider: provider.clone(),
            given,
            keys: Arc::default(),
            discovery: Arc::default(),
        });
        sources.insert(place, source.clone());
        source
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

async fn discover(
    source: &Arc<Source>,
    fetcher: &Arc<dyn Fetcher>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<Discovery>, String> {
    let (fetcher, provider) = (fetcher.clone(), source.provider.clone());
    let fetch = async move {
        let url = discovery::address(&provider.issuer)?;
        let question = Question { url: url.as_str(), body: None, authorization: None };
        let answer = ask(&*fetcher, &provider, question).await?;
        Ok((Discovery::parse(&answer.body, &provider.issuer)?, answer.max_age))
    };
    source.discovery.get(clock, Need::Fresh, fetch).await
}

/// Something to ask a provider.
pub(crate) struct Question<'a> {
    pub(crate) url: &'a str,
    pub(crate) body: Option<FetchBody>,
    pub(crate) authorization: Option<Hidden>,
}

/// Asks a provider. Only status 200 is an answer. The error is for the log.
pub(crate) async fn ask(
    fetcher: &dyn Fetcher,
    provider: &IdentityProvider,
    question: Question<'_>,
) -> Result<Fetched, String> {
    let answer = fetch(fetcher, provider, question).await?;
    if answer.status == 200 { Ok(answer) } else { Err(format!("HTTP status {}", answer.status)) }
}

/// Asks a provider and gives whatever it answers.
pub(crate) async fn fetch(
    fetcher: &dyn Fetcher,
    provider: &IdentityProvider,
    question: Question<'_>,
) -> Result<Fetched, String> {
    let fetch = Fetch {
        url: question.url.to_owned(),
        body: question.body,
        accept: "application/json",
        authorization: question.authorization,
        headers: Vec::new(),
        ca_pem: provider.ca_pem.clone(),
        bytes_max: ANSWER_BYTES_MAX,
        time_max: FETCH_TIME_MAX,
        cluster: provider.cluster,
    };
    let answer = fetcher.fetch(fetch).await.map_err(|failure| failure.to_string())?;
    // Whoever fetches keeps the bound too; a mistake there must not become ours.
    if answer.body.len() > ANSWER_BYTES_MAX {
        return Err(format!("the answer is longer than {ANSWER_BYTES_MAX} bytes"));
    }
    Ok(answer)
}

/// A stranger's text for the log: escaped, and cut after 200 characters.
pub(crate) fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(200).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{}{more}", cut.escape_debug())
}

/// Whether one of the keys signed the token.
fn is_signed(token: &Unverified<'_>, keys: &KeySet, provider: &IdentityProvider) -> Result<(), TokenRefused> {
    let why = match keys.find(token.key_id(), token.algorithm) {
        Found::Keys(candidates) if candidates.iter().any(|key| token.is_signed_by(key)) => return Ok(()),
        Found::Keys(_) => "the signature does not fit",
        Found::Unknown => "it has no key with the token's id",
        Found::Unfit => "the key that the token names is not for the token's algorithm",
        Found::Ambiguous => "the token names no key, and not exactly one key fits",
    };
    Err(TokenRefused::Untrusted(format!("token issued by {}: {why}", quoted(&provider.issuer))))
}

/// Checks a token against one provider and given keys, without a fetch, and gives whom it names.
pub fn check(
    provider: &IdentityProvider,
    keys: &KeySet,
    token: &str,
    kind: Kind<'_>,
    now: OffsetDateTime,
) -> Result<Vec<String>, TokenRefused> {
    let unverified = Unverified::parse(token).ok_or(TokenRefused::InvalidToken)?;
    if unverified.issuer() != Some(provider.issuer.as_str()) {
        return Err(TokenRefused::Untrusted("the token has another issuer".to_owned()));
    }
    unverified.check_purpose(kind)?;
    is_signed(&unverified, keys, provider)?;
    claims::check(&unverified.claims, provider, kind, now).map(|read| read.principals)
}
